"""Sums that ticks carry on are those of the whole log, digit by digit, whatever comes late; where they are not, they are made anew."""

import random
import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from registry.serving import feedback
from registry.serving.experiments import looks, running, ticking
from registry.serving.experiments import services as experiments
from registry.serving.models import Experiment, Feedback, Look, PredictionRecord, RunningSum
from tests.integration.experimenting import deployment, right, started, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db

GUARDS = [
    {"kind": "errors", "limit": 0.9}, {"kind": "slow", "milliseconds": 7, "limit": 0.999},
    {"kind": "latency", "tolerance": 1000.0},
]  # fmt: skip
DESIGNS = {
    "accuracy": {"minimum_effect": 0.001, "baseline": 0.5},
    "number": {"minimum_effect": 0.01, "baseline": 1.0, "cap": 20.0},
    "missing": {"minimum_effect": 0.01, "baseline": 1.0, "missing_as_zero": True},
    "errors": {"minimum_effect": 0.001, "baseline": 0.5},
    "latency": {"minimum_effect": 0.01, "baseline": 1.0},
}


@pytest.fixture
def running_on(maintainer, deployment, versions):  # noqa: F811
    def start(kind, **more):
        metric = "number" if kind == "missing" else kind
        made = experiments.create_experiment(
            actor=maintainer, deployment=deployment, challenger=versions[1].pk, metric=metric, guardrails_wanted=GUARDS,
            **DESIGNS[kind], **more,
        )  # fmt: skip
        return started(experiments.start_experiment(actor=maintainer, experiment=made))

    return start


def traffic(experiment, chance, ago):
    """Some requests of both arms: with keys and without, failed, slow, labelled and not."""
    written = []
    for variant in (experiment.variant_a, experiment.variant_b):
        count = chance.randrange(1, 12)
        if experiment.metric == "accuracy":
            outcomes = [chance.choice([True, False, None]) for _ in range(count)]
        else:
            outcomes = [chance.choice([None, round(chance.uniform(-30, 30), 3), 1 / 3, True]) for _ in range(count)]
        keys = [chance.choice(["", f"k{chance.randrange(6)}"]) for _ in range(count)]
        errors = [chance.choice(["", "", "", "failed", "bad_request"]) for _ in range(count)]
        milliseconds = [chance.uniform(1, 10) for _ in range(count)]
        written += write(
            variant, outcomes, metric="accuracy" if experiment.metric == "accuracy" else "number", ago=ago, keys=keys,
            errors=errors, milliseconds=milliseconds,
        )  # fmt: skip
    return written


@pytest.mark.parametrize("kind", DESIGNS)
def test_they_are_those_of_the_log_after_every_tick(running_on, viewer, deployment, kind):  # noqa: F811
    chance = random.Random(kind)
    experiment, seen = running_on(kind), []
    windows = []
    for ago in range(1000, 100, -100):
        seen += traffic(experiment, chance, ago + chance.randrange(90))
        for record in chance.sample(seen, min(4, len(seen))):
            label = chance.choice(["a", "b"]) if kind == "accuracy" else chance.choice([7.25, -3, "nothing", False])
            feedback.give_feedback(
                actor=viewer, deployment=deployment, labels=[feedback.Label(record.request_id, label)]
            )
            # the label as if it had been given then, and what it replaced, until then
            at = timezone.now() - timedelta(seconds=ago)
            Feedback.objects.filter(request_id=record.request_id).update(at=at)
            replaced = experiments_superseded(record.request_id)
            if replaced is not None:
                replaced.replaced_at = at
                replaced.save()
        now = timezone.now() - timedelta(seconds=ago)
        last = PredictionRecord.objects.order_by("-id").first().pk - chance.randrange(3)
        windows.append(looks.Window(deployment.pk, experiment.started_at, now, last, experiment.revision))
        carried = looks.carried_sums(experiment, windows[-1])
        experiment.refresh_from_db()
        assert looks.agree(carried, looks.read_sums(experiment, windows[-1])), ago
    assert carried["outcomes"]["a"][0] > 10 and carried["guardrails"][0]["b"][1] > 0
    assert RunningSum.objects.filter(measure=0).exclude(unit="").count() > 3
    running.forget(experiment)
    experiment.refresh_from_db()
    assert looks.carried_sums(experiment, windows[-1]) == carried, "made at once they are the same"


def experiments_superseded(request):
    from registry.serving.models import SupersededLabel

    return SupersededLabel.objects.filter(request_id=request).order_by("-id").first()


def test_what_came_too_late_for_a_tick_is_found_by_the_next_look(running_on, caplog):
    experiment = running_on("accuracy")
    Experiment.objects.update(looks=4, units_a=400, units_b=400)
    write(experiment.variant_a, right(50, 60))
    write(experiment.variant_b, right(50, 60))
    assert ticking.tick()["looks"] == 0
    assert Experiment.objects.get().watched["units"] == {"a": [60, 60], "b": [60, 60]}
    late = write(experiment.variant_a, right(5, 6), ago=50)
    PredictionRecord.objects.filter(pk__in=[row.pk for row in late]).delete()
    for row in late:  # as if their numbers had been given earlier than those that were seen
        row.pk = PredictionRecord.objects.order_by("id").first().pk - 1
        row.request_id = uuid.uuid4()
        row.save(force_insert=True)
    write(experiment.variant_a, right(50, 60), ago=8)
    write(experiment.variant_b, right(50, 60), ago=8)
    PredictionRecord.objects.filter(pk__gt=max(row.pk for row in late)).update(at=timezone.now() - timedelta(seconds=6))
    Experiment.objects.update(watch_after=None)
    ticking.tick()
    assert "made anew" in caplog.text
    look = Look.objects.get()
    assert all(one.results_agree and one.sums_agree for one in looks.replay(Experiment.objects.get())), look.sums
    Experiment.objects.update(watch_after=None)
    ticking.tick()
    assert Experiment.objects.get().watched["units"] == look.sums["units"]


def test_they_are_gone_when_it_has_ended(running_on, maintainer):
    experiment = running_on("latency")
    write(experiment.variant_b, [None] * 3, keys=["a", "b", ""])
    ticking.tick()
    assert RunningSum.objects.exists()
    experiments.stop_experiment(actor=maintainer, experiment=experiment)
    assert not RunningSum.objects.exists() and Experiment.objects.get().summed is None
