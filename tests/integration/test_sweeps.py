"""The life of a sweep, with real runs in this process: drawn, judged, pruned, paused, run again, promoted."""

import pytest

from tests.integration.conftest import QUICK
from training.jobs import advance_sweep, train
from training.models import Run
from training.sweeps import services

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
