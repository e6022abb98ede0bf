"""Sweeps that start from a base: fine-tunings in every way that is searched, with real runs in this process."""

import pytest
from django.urls import reverse

from registry import deletion
from registry.models import ModelVersion
from tests import factories
from tests.integration.conftest import QUICK
from tests.integration.test_sweeps import work
from tests.integration.test_transformers_bases import bert, texts  # noqa: F401 - fixtures
from training.jobs import advance_sweep, train
from training.models import Run, Sweep
from training.sweeps import advancing, services

pytestmark = pytest.mark.django_db(transaction=True)
FEW = {"epochs": 2, "threads": 1, "importance": False, "early_stopping": False}
WAYS = [
    {"name": "finetune.mode", "kind": "categorical", "choices": ["head", "lora"]},
    {"name": "finetune.rank", "kind": "categorical", "choices": [1, 2]},
]
RANKS = [{"name": "finetune.rank", "kind": "integer", "low": 1, "high": 4},
         {"name": "learning_rate", "kind": "float", "low": 0.0001, "high": 0.1, "log": True}]  # fmt: skip


@pytest.fixture
def base(queue_run):
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model__organization", "dataset_version__dataset").get()


def asked(api, actor, base, **wanted):
    body = {"dataset_version": str(base.dataset_version_id), "base_version": str(base.pk), "config": FEW, "space": WAYS}
    return api(actor).post("/api/v1/sweeps", body | wanted, format="json")


def test_every_way_is_a_fine_tuning_and_the_best_is_promoted(base, api, web, trainer):
    answer = asked(api, trainer, base, sampler="grid", finetune={"alpha": 4.0})
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert (told["base_version"], told["finetune"]["alpha"], told["trials"]) == (str(base.pk), 4.0, 3)
    assert (told["task"], told["targets"], told["register_as"]) == ("classification", ["kind"], base.model.name)
    sweep = Sweep.objects.get()
    trials = work(sweep)
    assert (sweep.state, [one.state for one in trials]) == ("finished", ["succeeded"] * 3), [
        one.error for one in trials
    ]
    made = {}
    for trial in trials:
        run = trial.runs.get()
        version = ModelVersion.objects.get(pk=run.output_version_id)
        assert run.base_version == base and version.model == base.model and list(version.parents.all()) == [base]
        assert version.lineage["finetune"] == run.finetune and run.finetune["format"] == "peft"
        made[run.finetune["mode"], run.finetune["rank"]] = version
    assert set(made) == {("head", 8), ("lora", 1), ("lora", 2)}
    assert [version.base for version in made.values()].count(base) == 2
    assert "model.safetensors" not in made["lora", 1].tree and made["lora", 1].size < made["lora", 2].size
    ref = services.promote_best(actor=trainer, sweep=sweep)
    assert ref.name == "main" and ref.version in made.values()
    page = web(trainer).get(reverse("sweep", args=[sweep.pk])).content.decode()
    assert f"/model-versions/{base.pk}/" in page and "finetune.rank" in page
    both = "&".join(f"run={trial.runs.get().pk}" for trial in trials)
    assert "finetune.rank" in web(trainer).get(f"{reverse('compare')}?{both}").content.decode()


def test_asha_lets_adapters_train_on_and_failed_ones_run_again(base, api, trainer):
    answer = asked(api, trainer, base, space=RANKS, finetune={"mode": "lora"}, pruner="asha", trials=4, eta=2)
    assert answer.status_code == 201, answer.content
    sweep = Sweep.objects.get()
    assert sweep.rungs == [1]
    advance_sweep(str(sweep.pk))
    failing = Run.objects.filter(state="queued").latest("queued_at")
    Run.objects.filter(pk=failing.pk).update(state="failed")
    trials = work(sweep)
    assert sorted({one.state for one in trials}) == ["failed", "pruned", "succeeded"]
    services.rerun_failed(actor=trainer, sweep=sweep)
    trials = work(sweep)
    assert sweep.state == "finished" and {one.state for one in trials} == {"pruned", "succeeded"}
    ended = Run.objects.filter(trial__sweep=sweep, state="succeeded")
    assert all(run.epoch == 1 and run.attempt == 2 and run.output_version.base == base for run in ended)
    assert all(1 <= run.finetune["rank"] <= 4 and run.finetune["mode"] == "lora" for run in ended)


def test_what_cannot_be_searched_from_a_base_is_refused_by_name(base, api, trainer, stranger, organization, queue_run):
    adapter = asked(api, trainer, base, space=RANKS[1:], finetune={"mode": "lora"}, trials=1)
    work(Sweep.objects.get(pk=adapter.json()["id"]))
    over = ModelVersion.objects.exclude(base=None).get()
    width = {"name": "params.width", "kind": "integer", "low": 4, "high": 8}
    unknown = {"name": "finetune.blocks", "kind": "categorical", "choices": ["usual", "nowhere"]}
    refusals = [
        ({"finetune": {"rank": 0}}, "finetune.rank"), ({"finetune": {"odd": 0}}, "finetune.odd"),
        ({"finetune": {"mode": "head"}, "space": RANKS}, "space.0.name"), ({"space": [width]}, "space.0.name"),
        ({"space": [{**WAYS[0], "choices": ["half"]}]}, "space.0.choices"),
        ({"space": [unknown], "finetune": {"mode": "head"}}, "space.0.choices"),
        ({"finetune": {"mode": "head", "blocks": ["nowhere"]}, "space": RANKS[1:]}, "finetune.blocks"),
        ({"base_version": None, "space": RANKS[1:], "finetune": {"mode": "head"}}, "base_version"),
        ({"base_version": None, "space": WAYS, "task": "classification", "target": "kind"}, "space.0.name"),
        ({"base_version": str(over.pk)}, "space.0.choices"), ({"task": "regression"}, "task"),
        ({"base_version": "0c1c9a52-0000-0000-0000-000000000000"}, "base_version"), ({"target": "no"}, "dataset_version"),
        ({"base_version": None, "space": RANKS[1:]}, "task"),
        ({"finetune": {"mode": "full", "rank": 4}, "space": RANKS[1:]}, "finetune.rank"),
    ]  # fmt: skip
    count = Sweep.objects.count()
    for changed, field in refusals:
        answer = asked(api, trainer, base, **changed)
        assert answer.status_code == 400, (changed, answer.content)
        assert answer.json()["errors"][0]["attr"] == field, (changed, answer.content)
    assert Sweep.objects.count() == count
    # One that the person may not see looks as if it did not exist, beside data that they may use.
    theirs = factories.DatasetVersionFactory(dataset__organization=stranger.memberships.get().organization, number=1)
    foreign = asked(api, stranger, base, dataset_version=str(theirs.pk))
    assert foreign.status_code == 400 and foreign.json()["errors"][0]["attr"] == "base_version", foreign.content


def test_a_sweep_from_before_pixels_goes_on_with_images_as_they_were(base, api, trainer):
    assert asked(api, trainer, base, space=RANKS, finetune={"mode": "lora"}, trials=1).status_code == 201
    sweep = Sweep.objects.get()
    assert sweep.finetune["pixels"] is None, "a package keeps its own"
    Sweep.objects.filter(pk=sweep.pk).update(finetune={k: v for k, v in sweep.finetune.items() if k != "pixels"})
    Run.objects.filter(trial__sweep=sweep).delete()
    advance_sweep(str(sweep.pk))
    assert Run.objects.get(trial__sweep=sweep).finetune["pixels"] == "letterbox"


def test_tpe_is_told_of_a_trial_what_counted_in_it(base, api, trainer, monkeypatch):
    told = []

    def proposed(sampler, dimensions, seed, past, counting):
        told.extend(set(counting(one.params)) for one in past)
        return {"finetune.mode": ["head", "lora"][len(past)], "finetune.rank": 2}

    monkeypatch.setattr(advancing, "propose", proposed)
    assert asked(api, trainer, base, trials=2, parallel=2).status_code == 201
    advance_sweep(str(Sweep.objects.get().pk))
    assert told == [{"finetune.mode"}]


def test_a_sweep_waits_while_the_files_of_its_base_are_deleted(base, api, trainer, maintainer):
    assert asked(api, trainer, base, space=RANKS, finetune={"mode": "lora"}, trials=1).status_code == 201
    base.refs.all().delete()
    deletion.delete_version(actor=maintainer, version=base)
    sweep = Sweep.objects.get()
    assert work(sweep) == [] and sweep.state == "paused" and "were deleted" in sweep.reason
    assert asked(api, trainer, base).json()["errors"][0]["code"] == "files_deleted"
    deletion.restore_version(actor=maintainer, version=base)
    services.resume_sweep(actor=trainer, sweep=sweep)
    assert [one.state for one in work(sweep)] == ["succeeded"]


def test_the_page_of_fine_tuning_leads_to_a_form_that_starts_a_sweep(base, web, trainer, viewer, stranger):
    assert "data-carries" in web(trainer).get(f"/model-versions/{base.pk}/finetune").content.decode()
    address = reverse("sweep-new")
    asked = {"base": str(base.pk), "finetune.mode": "lora", "blocks": ["head", "hidden.0"], "config.epochs": "2"}
    shown = web(trainer).get(address, asked)
    form = shown.context["form"]
    assert shown.status_code == 200 and "target" not in form.fields and form["space.1.name"].value() == "finetune.rank"
    assert (form["finetune.blocks"].value(), form["config.epochs"].value()) == ("head hidden.0", "2")
    assert "params.width" not in form.searchable() and "config.architecture" not in form.fields
    assert web(viewer).get(address, asked).status_code == 403
    assert web(stranger).get(address, asked).status_code == 404
    given = {
        "base": str(base.pk), "dataset_version": str(base.dataset_version_id), "sampler": "grid", "pruner": "none",
        "metric": "validation/loss", "finetune.rank": "0", "finetune.mode": "lora", "config.epochs": "2",
        "space.0.name": "finetune.adapter", "space.3.name": "finetune.blocks", "space.3.choices": "usual, hidden.*",
    }  # fmt: skip
    refused = web(trainer).post(address, given)
    assert refused.status_code == 200 and refused.context["form"].errors.keys() == {"finetune.rank"}
    made = web(trainer).post(address, given | {"finetune.rank": "2"})
    sweep = Sweep.objects.get()
    assert made.status_code == 302 and (sweep.base_version, sweep.trial_count) == (base, 3 * 2)
    assert [one["choices"] for one in sweep.space] == [["lora", "dora", "ia3"], ["usual", "hidden.*"]]
    assert (sweep.finetune["rank"], sweep.config["epochs"], sweep.register_as) == (2, 2, base.model.name)
    assert web(trainer).get(reverse("sweep", args=[sweep.pk])).status_code == 200
    deleted = ModelVersion.objects.filter(pk=base.pk)
    deleted.update(deleted_at="2026-01-01T00:00Z")
    assert web(trainer).get(address, asked).url == f"/model-versions/{base.pk}/finetune"


def test_a_hugging_face_directory_is_tuned_in_many_ways(bert, texts, api, trainer, web):  # noqa: F811
    body = {"dataset_version": str(texts.pk), "base_version": str(bert.pk), "config": FEW | {"epochs": 1}, "sampler": "grid",
            "features": ["note"], "space": WAYS[:1], "finetune": {"rank": 2}}  # fmt: skip
    refused = api(trainer).post("/api/v1/sweeps", body, format="json")
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "target"
    for dimension, field in (
        ({"kind": "integer", "low": 8, "high": 8192}, "high"), ({"kind": "categorical", "choices": [8, 8192]}, "choices"),
    ):  # fmt: skip
        longer = body | {"target": "kind", "space": [*WAYS[:1], {"name": "text_length", **dimension}]}
        refused = api(trainer).post("/api/v1/sweeps", longer, format="json")
        told = refused.json()["errors"][0]
        assert refused.status_code == 400 and told["attr"] == f"space.1.{field}", told
        assert told["detail"].startswith("The base reads ")
    assert api(trainer).post("/api/v1/sweeps", body | {"target": "kind"}, format="json").status_code == 201
    sweep = Sweep.objects.get()
    assert [one.state for one in work(sweep)] == ["succeeded"] * 2
    shown = web(trainer).get(reverse("sweep-new"), {"base": str(bert.pk)})
    assert {"target", "task", "features"} <= set(shown.context["form"].fields)
