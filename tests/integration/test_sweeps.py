"""The life of a sweep, with real runs in this process: drawn, judged, pruned, paused, run again, promoted."""

import threading

import pytest
from django.db import connection
from django.urls import reverse

from datasets.models import DatasetVersion
from dlplatform.api import Conflict
from tests.integration.conftest import QUICK
from training.jobs import advance_sweep, train
from training.models import MetricSeries, Run, Sweep, Trial
from training.sweeps import services
from training.sweeps.advancing import Step
from training.sweeps.waking import wake_idle_sweeps

pytestmark = pytest.mark.django_db(transaction=True)
SPACE = [
    {"name": "learning_rate", "kind": "float", "low": 0.001, "high": 0.1, "log": True},
    {"name": "params.width", "kind": "integer", "low": 4, "high": 16},
]


@pytest.fixture
def start(flowers, trainer):
    def make(**wanted):
        chosen = {"task": "classification", "target": "kind", "space": SPACE, "config": QUICK, "trials": 6} | wanted
        return services.create_sweep(actor=trainer, dataset_version=flowers, **chosen)

    return make


def work(sweep, most=60):
    """As a worker would: the sweep's own job, then its runs one after the other, each of which looks after it."""
    advance_sweep(str(sweep.pk))
    for _ in range(most):
        run = Run.objects.filter(trial__sweep=sweep, state="queued").order_by("queued_at").first()
        if run is None:
            break
        train(str(run.pk))
    sweep.refresh_from_db()
    return list(sweep.trials.all())


def test_six_trials_train_to_the_end_and_the_best_is_promoted(start, trainer):
    sweep = start()
    trials = work(sweep)
    assert (sweep.state, [one.state for one in trials]) == ("finished", ["succeeded"] * 6)
    best = services.best_trial(sweep)
    assert best.value == min(one.value for one in trials)
    assert set(sweep.importance) == {"learning_rate", "params.width"}
    ref = services.promote_best(actor=trainer, sweep=sweep)
    assert ref.version == best.runs.get().output_version and (ref.kind, ref.name) == ("branch", "main")


def test_asha_spends_few_epochs_and_says_why_a_run_ended(start):
    sweep = start(pruner="asha", config=QUICK | {"epochs": 9}, trials=9)
    trials = work(sweep)
    assert sweep.rungs == [1, 3] and sweep.state == "finished"
    ended = [one for one in trials if one.state == "succeeded"]
    pruned = [one for one in trials if one.state == "pruned"]
    assert ended and len(pruned) + len(ended) == 9
    run = pruned[0].runs.get()
    assert run.state == "cancelled" and "Pruned" in run.reason
    assert sum(one.epoch for one in Run.objects.filter(trial__sweep=sweep)) < 9 * 9


def test_the_median_ends_bad_trials_at_rungs(start, monkeypatch):
    monkeypatch.setattr("training.sweeps.rungs.MEDIAN_STARTUP", 2)
    wide = [{"name": "learning_rate", "kind": "categorical", "choices": [1e-6, 0.01, 0.02, 0.03]}]
    sweep = start(pruner="median", config=QUICK | {"epochs": 4, "early_stopping": False}, sampler="grid", space=wide,
                  parallel=1, least_epochs=1, trials=None)  # fmt: skip
    trials = work(sweep)
    assert sweep.rungs == [1, 2, 3] and sweep.trial_count == 4 == len(trials)
    slow = next(one for one in trials if one.params["learning_rate"] == 1e-6)
    assert sweep.state == "finished" and (slow.number < 2 or slow.state == "pruned")
    assert all(one.state in ("succeeded", "pruned") for one in trials)


def test_several_seeds_are_one_trial_with_a_mean_and_a_spread(start, web, trainer):
    sweep = start(trials=2, seeds=2, metric="validation/accuracy")
    trials = work(sweep)
    assert sweep.direction == "maximize" and sweep.state == "finished"
    for trial in trials:
        runs = list(trial.runs.all())
        finals = [MetricSeries.objects.get(run=run, key="validation/accuracy").maximum for run in runs]
        assert sorted(run.config["seed"] for run in runs) == [3, 4]
        assert trial.value == pytest.approx(sum(finals) / 2)
        assert trial.spread == pytest.approx(abs(finals[0] - finals[1]) / 2)
    together = "&".join(f"run={run.pk}" for run in trials[0].runs.all())
    page = web(trainer).get(f"{reverse('compare')}?{together}").content.decode()
    assert "mean of 2 seeds" in page and '"band"' in page
    assert '"band"' not in web(trainer).get(f"{reverse('compare')}?{together}&group=none").content.decode()
    assert "mean of 2 seeds" in web(trainer).get(reverse("sweep", args=[sweep.pk])).content.decode()


def test_only_the_failed_ones_run_again(start, flowers, trainer):
    sweep = start(trials=3, parallel=1)
    advance_sweep(str(sweep.pk))
    train(str(Run.objects.get(state="queued").pk))
    there = flowers.parts
    DatasetVersion.objects.filter(pk=flowers.pk).update(parts=[{**there[0], "sha256": "f" * 64}])
    assert [one.state for one in work(sweep)] == ["succeeded", "failed", "failed"]
    assert sweep.state == "finished"
    DatasetVersion.objects.filter(pk=flowers.pk).update(parts=there)
    services.rerun_failed(actor=trainer, sweep=sweep)
    assert Run.objects.filter(state="queued").count() == 2
    trials = work(sweep)
    assert [one.state for one in trials] == ["succeeded"] * 3 and sweep.state == "finished"
    assert [one.runs.get().attempt for one in trials] == [1, 2, 2]
    with pytest.raises(Conflict):
        services.rerun_failed(actor=trainer, sweep=sweep)


def test_a_sweep_is_paused_and_goes_on(start, trainer):
    sweep = start(trials=3)
    advance_sweep(str(sweep.pk))
    services.pause_sweep(actor=trainer, sweep=sweep)
    assert set(Run.objects.values_list("state", flat=True)) == {"paused"}
    work(sweep)
    assert sweep.state == "paused" and Run.objects.count() == 2
    with pytest.raises(Conflict):
        services.pause_sweep(actor=trainer, sweep=sweep)
    services.resume_sweep(actor=trainer, sweep=sweep)
    assert [one.state for one in work(sweep)] == ["succeeded"] * 3
    assert sweep.state == "finished"


def test_cancelling_ends_every_run_and_draws_no_more(start, trainer):
    sweep = start(trials=5)
    advance_sweep(str(sweep.pk))
    services.cancel_sweep(actor=trainer, sweep=sweep)
    assert [one.state for one in work(sweep)] == ["cancelled"] * 2
    assert sweep.state == "cancelled" and set(Run.objects.values_list("state", flat=True)) == {"cancelled"}
    for change in (services.cancel_sweep, services.resume_sweep, services.rerun_failed, services.promote_best):
        with pytest.raises(Conflict):
            change(actor=trainer, sweep=sweep)


def test_a_step_that_was_cut_off_or_done_twice_comes_to_the_same(start, monkeypatch):
    sweep = start(trials=4)
    begin = Step._run

    def cut(step, trial, number):
        if trial.number == 1:
            raise RuntimeError("the worker died")
        return begin(step, trial, number)

    monkeypatch.setattr(Step, "_run", cut)
    with pytest.raises(RuntimeError):
        advance_sweep(str(sweep.pk))
    assert Trial.objects.count() == Run.objects.count() == 0
    monkeypatch.setattr(Step, "_run", begin)
    assert wake_idle_sweeps() == 1
    for _ in range(3):
        advance_sweep(str(sweep.pk))
    assert [one.number for one in sweep.trials.all()] == [0, 1] and Run.objects.count() == 2
    assert wake_idle_sweeps() == 0
    Run.objects.update(state="cancelled")  # as if whoever worked on them had not lived to look after the sweep
    assert wake_idle_sweeps() == 1


def test_two_workers_look_after_a_sweep_at_once(start):
    sweep = start(trials=8, parallel=3)

    def look():
        try:
            advance_sweep(str(sweep.pk))
        finally:
            connection.close()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in sweep.trials.all()] == [0, 1, 2] and Run.objects.count() == 3


def test_settings_that_do_not_go_together_fail_their_trial_and_in_the_end_the_search_waits(start):
    odd = [{"name": "params.text_width", "kind": "integer", "low": 9, "high": 9},
           {"name": "params.text_heads", "kind": "integer", "low": 2, "high": 2}]  # fmt: skip
    sweep = start(space=odd, sampler="random", trials=20)
    trials = work(sweep)
    assert [one.state for one in trials] == ["failed"] * 5
    assert trials[0].error["code"] == "refused" and "text_heads" in trials[0].error["sentence"]
    assert sweep.state == "paused" and "failed" in sweep.reason and Run.objects.count() == 0


def test_a_trial_leaves_out_what_its_architecture_does_not_know(start):
    networks = {"name": "architecture", "kind": "categorical", "choices": ["linear", "mlp"]}
    shared = QUICK | {"params": {"layers": 2}}
    sweep = start(space=[networks, SPACE[1] | {"points": 2}], sampler="grid", config=shared, trials=6)
    trials = work(sweep)
    assert [one.state for one in trials] == ["succeeded"] * 3 and sweep.state == "finished"
    assert all(set(one.params) == {"architecture", "params.width"} for one in trials), "whatever was drawn is kept"
    configs = [run.config for run in Run.objects.filter(trial__sweep=sweep)]
    assert sorted((one["architecture"], len(one["params"])) for one in configs) == [
        ("linear", 0),
        ("mlp", 2),
        ("mlp", 2),
    ]


def test_a_sweep_waits_when_its_maker_may_not_train_any_more(start, trainer):
    sweep = start()
    trainer.memberships.update(role="viewer")
    work(sweep)
    assert sweep.state == "paused" and "may not train" in sweep.reason and Run.objects.count() == 0


def test_what_cannot_be_searched_is_refused_by_name(api, trainer, flowers):
    body = {"dataset_version": str(flowers.pk), "task": "classification", "target": "kind", "space": SPACE}
    refusals = [
        ({"space": [{**SPACE[0], "low": 0}]}, "space.0.low"), ({"space": []}, "space"), ({"target": "no"}, "target"),
        ({"pruner": "asha"}, "pruner"), ({"pruner": "asha", "config": {"epochs": 1}}, "least_epochs"),
        ({"metric": "validation/rmse"}, "metric"), ({"sampler": "odd"}, "sampler"), ({"trials": 0}, "trials"),
        ({"config": {"epochs": -1}}, "config.epochs"), ({"more": 1}, "more"), ({"space": "x"}, "space"),
        ({"pruner": "asha", "config": {"epochs": 9}, "space": [{"name": "epochs", "kind": "integer", "low": 1, "high": 9}]},
         "pruner"),
    ]  # fmt: skip
    for changed, field in refusals:
        answer = api(trainer).post("/api/v1/sweeps", body | changed, format="json")
        assert answer.status_code == 400, (changed, answer.content)
        assert answer.json()["errors"][0]["attr"] == field, (changed, answer.content)
    assert Sweep.objects.count() == 0


def test_the_api_starts_watches_and_ends_a_sweep(api, trainer, viewer, stranger, flowers):
    body = {"dataset_version": str(flowers.pk), "task": "classification", "target": "kind", "space": SPACE, "trials": 1,
            "config": QUICK}  # fmt: skip
    assert api(viewer).post("/api/v1/sweeps", body, format="json").status_code == 403
    assert api(stranger).post("/api/v1/sweeps", body, format="json").status_code == 400
    made = api(trainer).post("/api/v1/sweeps", body, format="json")
    assert made.status_code == 201, made.content
    address = f"/api/v1/sweeps/{made.json()['id']}"
    work(Sweep.objects.get())
    told = api(viewer).get(address).json()
    assert (told["state"], told["best"], told["progress"]) == ("finished", 0, 1.0)
    assert told["trial_list"][0]["runs"][0]["output_version"] and told["counts"] == {"succeeded": 1}
    assert [one["id"] for one in api(viewer).get("/api/v1/sweeps?state=finished").json()["results"]] == [told["id"]]
    assert api(viewer).get("/api/v1/sweeps?state=odd").status_code == 400
    assert api(trainer).post(f"{address}/promote", {}, format="json").json()["name"] == "main"
    alias = {"kind": "alias", "name": "production"}
    assert api(trainer).post(f"{address}/promote", alias, format="json").status_code == 403
    assert api(viewer).post(f"{address}/cancel").status_code == 403
    assert api(trainer).post(f"{address}/cancel").status_code == 409
    run = told["trial_list"][0]["runs"][0]["id"]
    assert api(viewer).get(f"/api/v1/runs/{run}").json()["sweep"] == told["id"]


def test_the_form_starts_a_sweep_and_shows_an_error_in_its_row(web, trainer, flowers):
    address = reverse("sweep-new")
    page = web(trainer).get(address)
    assert page.status_code == 200 and b"learning_rate" in page.content
    given = {
        "dataset_version": str(flowers.pk), "target": "kind", "task": "classification", "sampler": "grid", "pruner": "none",
        "features": ["length", "width", "colour"], "metric": "validation/loss", "space.2.name": "params.width",
        "space.2.low": "8", "space.2.high": "zero", "space.4.name": "schedule", "space.5.name": "batch_size",
        "space.5.choices": "16, 32", "config.epochs": "3",
    }  # fmt: skip
    refused = web(trainer).post(address, given)
    assert refused.status_code == 200 and Sweep.objects.count() == 0
    assert refused.context["form"].errors.keys() == {"space.2.high"}
    made = web(trainer).post(address, given | {"space.2.high": "16", "space.2.points": "3"})
    sweep = Sweep.objects.get()
    assert made.status_code == 302 and sweep.trial_count == 3 * 4 * 2
    assert [one["name"] for one in sweep.space] == ["params.width", "schedule", "batch_size"]
    assert sweep.space[2]["choices"] == [16, 32]
    for query in ("", "?sort=value", "?sort=-params.width", "?part=state", "?part=charts"):
        assert web(trainer).get(reverse("sweep", args=[sweep.pk]) + query).status_code == 200
