"""Versions made by code of one's own: fine-tuned, replayed, searched over; in the sandbox, for whom may run code."""

import sys

import pytest
from django.core.exceptions import PermissionDenied, ValidationError

from dlplatform.accounts.models import Membership
from registry.serving.cache import loaded
from tests.fixtures import own_code
from tests.integration.coding import ended, log_of
from tests.integration.test_sweeps import work
from training import code, finetuning, replay, services
from training.models import CodeBundle, ReplayCertificate, Run, Sweep
from training.sweeps import services as sweeps

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]
ROW = {"length": 5.0, "width": 3.0, "colour": "red"}


@pytest.fixture
def base(queue_code):
    run = ended(queue_code({"model.py": own_code.ARCHITECTURE}, {"width": 8}, epochs=3, seed=4))
    assert run.state == "succeeded", (run.error, log_of(run))
    return run.output_version


def tuned(actor, base, flowers, config=None, **settings):
    run = finetuning.finetune(
        actor=actor, version=base, dataset_version=flowers, settings=settings,
        config={"epochs": 2, "threads": 1, "importance": False, **(config or {})},
    )  # fmt: skip
    return ended(run)


def weights(version):
    from safetensors.torch import load_file

    from registry.serving.cache import package_directory

    return load_file(package_directory(version) / "model.safetensors")


@pytest.mark.parametrize(
    ("how", "trained"),
    [({"mode": "full"}, None), ({"mode": "head", "blocks": ["model.body.4"]}, {"model.body.4"})],
)
def test_an_own_architecture_is_fine_tuned_in_its_sandbox(base, flowers, coder, how, trained):
    run = tuned(coder, base, flowers, **how)
    assert run.state == "succeeded", (run.error, log_of(run))
    version = run.output_version
    assert list(version.parents.all()) == [base] and version.lineage["finetune"]["mode"] == how["mode"]
    assert version.lineage["base"]["id"] == str(base.pk) and version.tree["code/model.py"] == base.tree["code/model.py"]
    before, after = weights(base), weights(version)
    changed = {name for name in before if not before[name].equal(after[name])}
    learnt = {name for name in changed if name.endswith(("weight", "bias")) and name.startswith("model.")}
    assert learnt and (trained is None or {name.rpartition(".")[0] for name in learnt} == trained)
    predictor = loaded(version)
    try:
        assert predictor.predict([ROW])[0]["label"] in "abc"
    finally:
        predictor.close()


def test_a_fine_tune_comes_out_the_same_and_is_a_base_in_its_turn(base, flowers, coder):
    first, second = (tuned(coder, base, flowers, mode="full").output_version for _ in range(2))
    assert first.tree["model.safetensors"] == second.tree["model.safetensors"]
    third = tuned(coder, first, flowers, mode="full")
    assert third.state == "succeeded", third.error


def test_a_paused_fine_tune_goes_on_to_the_same_bytes(base, flowers, coder):
    whole = tuned(coder, base, flowers, {"epochs": 4, "early_stopping": False}, mode="full")
    parts = finetuning.finetune(
        actor=coder, version=base, dataset_version=flowers, settings={"mode": "full"},
        config={"epochs": 4, "threads": 1, "importance": False, "early_stopping": False},
    )  # fmt: skip
    Run.objects.filter(pk=parts.pk).update(stop_after_epoch=2)
    assert ended(parts).state == "paused", parts.error
    services.resume_run(actor=coder, run=parts)
    assert ended(parts).state == "succeeded", parts.error
    files = [run.output_version.tree["model.safetensors"]["sha256"] for run in (whole, parts)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("how", "config", "field"),
    [
        ({"mode": "lora"}, {}, "mode"),
        ({"mode": "head"}, {}, "blocks"),
        ({"mode": "head", "blocks": ["nowhere"]}, {}, "blocks"),
        ({"mode": "full"}, {"params": {"width": 9}}, "config.params.width"),
        ({"mode": "full"}, {"devices": 2}, "config.devices"),
    ],
)
def test_what_is_not_for_own_code_is_named(base, flowers, coder, how, config, field):
    with pytest.raises(ValidationError) as refused:
        finetuning.finetune(actor=coder, version=base, dataset_version=flowers, settings=how, config=config)
    assert field in refused.value.message_dict
    assert Run.objects.count() == 1


def test_fine_tuning_and_replaying_code_need_the_permission(base, flowers, coder, stranger, api, web):
    Membership.objects.filter(user=coder).update(may_run_code=False)
    for act in (
        lambda: finetuning.finetune(actor=coder, version=base, dataset_version=flowers, settings={"mode": "full"}),
        lambda: finetuning.request_finetune_preflight(
            actor=coder, version=base, dataset_version=flowers, settings={"mode": "full"}
        ),
        lambda: replay.replay(actor=coder, version=base),
    ):
        with pytest.raises(PermissionDenied, match="permission of its own"):
            act()
    body = {"dataset_version": str(flowers.pk), "mode": "full"}
    assert api(coder).post(f"/api/v1/models/{base.model_id}/finetune", body, format="json").status_code == 403
    assert api(stranger).post(f"/api/v1/models/{base.model_id}/finetune", body, format="json").status_code == 404


def test_code_that_nobody_launched_is_not_trained(base, flowers, coder):
    base.lineage["code"]["files"]["model.py"] = "0" * 64
    base.save(update_fields=["lineage"])
    with pytest.raises(ValidationError) as refused:
        finetuning.finetune(actor=coder, version=base, dataset_version=flowers, settings={"mode": "full"})
    assert "version" in refused.value.message_dict


def test_code_that_was_forgotten_is_taken_from_the_version(base, flowers, coder):
    Run.objects.all().update(code=None, output_version=None)
    CodeBundle.objects.all().delete()
    bundle = code.bundle_of(coder, base)
    assert bundle.digest == base.lineage["code"]["digest"]


def test_the_page_of_fine_tuning_tries_it_out_in_the_sandbox(base, flowers, coder, web):
    from training.jobs import preflight
    from training.models import Preflight

    address = f"/model-versions/{base.pk}/finetune"
    assert "model.body.4" in web(coder).get(address).content.decode()
    form = {"dataset_version": str(flowers.pk), "finetune.mode": "full", "config.epochs": "2"}
    web(coder).post(f"{address}-preflight", form)
    row = Preflight.objects.get()
    preflight(str(row.pk))
    row.refresh_from_db()
    assert row.state == "succeeded" and row.result["trainable"] > 0, row.error
    said = web(coder).post(address, form | {"finetune.mode": "lora"}).content.decode()
    assert "Adapters are for networks of the platform" in said


@pytest.mark.parametrize("files", [{"model.py": own_code.ARCHITECTURE}, {"main.py": own_code.SCRIPT}])
def test_a_version_by_own_code_is_replayed_to_a_certificate(queue_code, coder, files):
    made = ended(queue_code(files, {"steps": 12} if "main.py" in files else {"width": 8}, epochs=2))
    assert made.state == "succeeded", (made.error, log_of(made))
    again = ended(replay.replay(actor=coder, version=made.output_version))
    assert again.state == "succeeded", (again.error, log_of(again))
    certificate = ReplayCertificate.objects.get()
    assert certificate.equal, certificate.details
    assert again.output_version is None and made.output_version.model.versions.count() == 1


def test_a_replay_of_a_script_left_to_chance_says_that_it_differs(queue_code, coder):
    chancy = own_code.SCRIPT.replace("torch.manual_seed(run.seed)", "torch.seed()")
    made = ended(queue_code({"main.py": chancy}, {"steps": 3}))
    ended(replay.replay(actor=coder, version=made.output_version))
    certificate = ReplayCertificate.objects.get()
    assert not certificate.equal and certificate.details["weights"]["changed"]


# --- sweeps --------------------------------------------------------------------------------------------


@pytest.fixture
def search(coder, organization, flowers):
    def make(source, name, space, **more):
        bundle = code.add_code(actor=coder, organization=organization, filename=name, content=source.encode())
        return sweeps.create_sweep(
            actor=coder, dataset_version=flowers, task="classification", target="kind", space=space, code=bundle,
            config={"epochs": 2, "threads": 1, "importance": False, **more.pop("config", {})}, parallel=1, **more,
        )  # fmt: skip

    return make


WIDTH = [{"name": "params.width", "kind": "categorical", "choices": [4, 8]}]


def test_parameters_of_an_own_architecture_are_searched(search):
    sweep = search(own_code.ARCHITECTURE, "model.py", WIDTH, sampler="grid")
    work(sweep)
    sweep.refresh_from_db()
    trials = list(sweep.trials.all())
    assert sweep.state == "finished" and [one.state for one in trials] == ["succeeded"] * 2
    assert {one.params["params.width"] for one in trials} == {4, 8} and all(one.value is not None for one in trials)
    runs = Run.objects.filter(trial__sweep=sweep)
    assert {run.code_id for run in runs} == {sweep.code_id} and all(run.output_version for run in runs)


def test_ways_of_fine_tuning_an_own_architecture_are_searched(base, flowers, coder):
    mode = {"name": "finetune.mode", "kind": "categorical", "choices": ["full", "head"]}
    blocks = {
        "name": "finetune.blocks",
        "kind": "categorical",
        "choices": ["model.body.4", "model.body.0 model.body.4"],
    }

    def start(*space):
        return sweeps.create_sweep(
            actor=coder, dataset_version=flowers, base_version=base, space=list(space), sampler="grid",
            config={"epochs": 2, "threads": 1, "importance": False},
        )  # fmt: skip

    for space, field in (([{**mode, "choices": ["full", "lora"]}, blocks], "space.0.choices"),
                         ([mode, {**blocks, "choices": ["usual"]}], "space.1.choices"), ([mode], "finetune.blocks"),
                         (WIDTH, "space.0.name")):  # fmt: skip
        with pytest.raises(ValidationError) as refused:
            start(*space)
        assert list(refused.value.message_dict) == [field]
    sweep = start(mode, blocks)
    work(sweep)
    sweep.refresh_from_db()
    runs = Run.objects.filter(trial__sweep=sweep)
    assert (sweep.state, sweep.trial_count, {run.state for run in runs}) == ("finished", 3, {"succeeded"})
    assert all(run.code_id == sweep.code_id and list(run.output_version.parents.all()) == [base] for run in runs)


def test_bad_trials_of_an_own_architecture_are_pruned(search):
    space = [{"name": "learning_rate", "kind": "categorical", "choices": [1e-6, 0.05, 1e-5]}]
    sweep = search(own_code.ARCHITECTURE, "model.py", space, sampler="grid", pruner="median", config={"epochs": 4})
    work(sweep)
    sweep.refresh_from_db()
    assert sweep.state == "finished" and "succeeded" in {one.state for one in sweep.trials.all()}


def test_parameters_of_a_script_are_searched_by_a_metric_of_its_own(search):
    space = [{"name": "params.lr", "kind": "float", "low": 0.001, "high": 0.1, "log": True, "points": 2}]
    sweep = search(
        own_code.SCRIPT, "main.py", space, sampler="grid", metric="accuracy", direction="maximize",
        config={"params": {"steps": 8}},
    )  # fmt: skip
    work(sweep)
    sweep.refresh_from_db()
    best = sweeps.best_trial(sweep)
    assert sweep.state == "finished" and best is not None and best.value is not None


@pytest.mark.parametrize(
    ("name", "source", "more", "field"),
    [
        ("main.py", own_code.SCRIPT, {"pruner": "asha"}, "pruner"),
        ("main.py", own_code.SCRIPT, {"metric": "score"}, "direction"),
        ("main.py", own_code.SCRIPT, {"metric": "x" * 200}, "metric"),
        ("model.py", own_code.ARCHITECTURE, {"metric": "score"}, "metric"),
        ("model.py", own_code.ARCHITECTURE, {"entry": "gone.py"}, "entry"),
        ("model.py", own_code.ARCHITECTURE, {"config": {"devices": 2}}, "config.devices"),
    ],
)
def test_searches_that_cannot_be_are_refused_by_name(search, name, source, more, field):
    with pytest.raises(ValidationError) as refused:
        search(source, name, WIDTH, **more)
    assert field in refused.value.message_dict and not Sweep.objects.exists()


def test_the_code_is_the_architecture_of_all_trials(search):
    with pytest.raises(ValidationError) as refused:
        search(own_code.ARCHITECTURE, "model.py", [{"name": "architecture", "kind": "categorical", "choices": ["mlp"]}])
    assert "space.0.name" in refused.value.message_dict


def test_who_may_search_over_code(coder, flowers, organization, viewer, api, web):
    bundle = code.add_code(actor=coder, organization=organization, filename="model.py", content=b"x = 1")
    body = {"dataset_version": str(flowers.pk), "task": "classification", "target": "kind", "space": WIDTH,
            "code": str(bundle.pk)}  # fmt: skip
    assert api(viewer).post("/api/v1/sweeps", body, format="json").status_code == 403
    Membership.objects.filter(user=coder).update(may_run_code=False)
    assert api(coder).post("/api/v1/sweeps", body, format="json").status_code == 403
    assert web(coder).get(f"/sweeps/new?code={bundle.pk}&version={flowers.pk}").status_code == 403


def test_the_form_starts_a_search_over_code(coder, flowers, organization, web):
    bundle = code.add_code(actor=coder, organization=organization, filename="main.py", content=own_code.SCRIPT.encode())
    page = web(coder).get(f"/sweeps/new?code={bundle.pk}&version={flowers.pk}").content.decode()
    assert "params.width" in page and 'name="direction"' in page and "Start with" in page
    form = {
        "dataset_version": str(flowers.pk), "task": "classification", "target": "kind", "code": str(bundle.pk),
        "features": ["length", "width", "colour"], "entry": "main.py", "code_params": '{"steps": 3}', "sampler": "random",
        "pruner": "none", "metric": "accuracy", "direction": "maximize", "trials": "2", "space.0.name": "params.lr",
        "space.0.low": "0.01", "space.0.high": "0.1",
    }  # fmt: skip
    answer = web(coder).post("/sweeps/new", form)
    assert answer.status_code == 302, answer.content.decode()[-3000:]
    sweep = Sweep.objects.get()
    assert sweep.entry == "main.py" and sweep.space[0]["kind"] == "float" and sweep.direction == "maximize"
    assert sweep.config["params"] == {"steps": 3}
    assert "Start a sweep" in web(coder).get(f"/code/{bundle.pk}/").content.decode()
