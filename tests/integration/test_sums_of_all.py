"""Bandits, pairs and canaries carry their sums on as splits do: after any events they are those that the log has."""

import random
import threading
import uuid
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from dlplatform.api import Conflict
from registry.models import ModelVersion
from registry.serving import prediction_log
from registry.serving.experiments import looks, rollouts, running, ticking
from registry.serving.experiments import services as experiments
from registry.serving.experiments.sums import Window
from registry.serving.feedback import Label, give_feedback
from registry.serving.models import (
    Experiment,
    Feedback,
    PredictionRecord,
    Rollout,
    RunningSum,
    SupersededLabel,
)  # fmt: skip
from tests.integration.experimenting import deployment, further_versions, started, versions  # noqa: F401

pytestmark = pytest.mark.django_db

LIMITS = [{"kind": "errors", "limit": 0.99}, {"kind": "slow", "milliseconds": 7, "limit": 0.999}]
BESIDE = [{"kind": "latency", "tolerance": 1000.0}, {"kind": "accuracy", "tolerance": 1.0}]
KINDS = {
    "bandit of classes": {"mode": "bandit", "metric": "accuracy", "guardrails_wanted": LIMITS},
    "bandit of numbers": {"mode": "bandit", "metric": "number", "cap": 5.0, "missing_as_zero": True},
    "bandit of latency": {"mode": "bandit", "metric": "latency", "cap": 100.0},
    "bandit of five": {"mode": "bandit", "metric": "accuracy", "further": 3, "guardrails_wanted": LIMITS},
    "pairs of classes": {
        "mode": "paired", "metric": "accuracy", "minimum_effect": 0.01, "baseline": 0.1, "guardrails_wanted": LIMITS + BESIDE,
    },
    "pairs of errors": {
        "mode": "paired", "metric": "absolute_error", "minimum_effect": 0.5, "baseline": 2.0, "cap": 3.0,
        "guardrails_wanted": LIMITS,
    },
    "canary": {"guardrails_wanted": LIMITS + BESIDE},
}  # fmt: skip
STEPS = [{"share": 0.1, "minutes": 1}, {"share": 0.5, "minutes": 1}, {"share": 1, "minutes": 10_000}]


class Life:
    """An experiment or a canary, its log, and a clock of its own: what happens, happens at that time."""

    def __init__(self, kind, maintainer, deployment, versions):  # noqa: F811
        self.chance, self.deployment, self.maintainer = random.Random(kind), deployment, maintainer
        self.now = timezone.now() - timedelta(hours=1)
        self.requests = []
        wanted = {"deployment": deployment, "actor": maintainer, **KINDS[kind]}
        if kind == "pairs of errors":
            ModelVersion.objects.update(task="regression")
        if kind == "canary":
            rollouts.start_rollout(candidate=versions[1].pk, steps=STEPS, **wanted)
            Rollout.objects.update(started_at=self.now, step_began_at=self.now)
        else:
            if count := wanted.pop("further", 0):
                wanted["further"] = [one.pk for one in further_versions(versions, count)]
            made = experiments.create_experiment(challenger=versions[1].pk, **wanted)
            started(experiments.start_experiment(actor=maintainer, experiment=made), 3600.0)
        self.number = kind in ("bandit of numbers", "pairs of errors")
        self.copied = kind.startswith("pairs")
        self.steps = kind == "canary"

    @property
    def holder(self):
        return Rollout.objects.get() if self.steps else Experiment.objects.get()

    def variants(self):
        holder = self.holder
        if self.steps:
            return holder.variant_stable, holder.variant_candidate
        return holder.variant_a, holder.variant_b, *(arm.variant for arm in holder.further.all())

    def answer(self):
        a, b, *further = self.variants()
        for _ in range(self.chance.randrange(1, 15)):
            request, key = uuid.uuid4(), self.chance.choice(["", f"k{self.chance.randrange(5)}"])
            variant = a if self.copied or self.chance.random() < 0.5 else self.chance.choice([b, *further])
            self._record(request, variant, "live", key)
            self.requests.append(request)
            if self.copied and self.chance.random() < 0.8:
                self._record(request, b, "shadow", "")

    def copy_late(self):
        """The copy of an earlier request, which its shadow took long for."""
        if not self.copied or not self.requests:
            return
        request = self.chance.choice(self.requests)
        if not PredictionRecord.objects.filter(request_id=request, role="shadow").exists():
            self._record(request, self.variants()[1], "shadow", "")

    def _record(self, request, variant, role, key, error=None):
        chance = self.chance
        error = (
            error
            if error is not None
            else chance.choice(["", "", "", "failed", "dropped" if role == "shadow" else "bad_request"])
        )
        rows = [
            {"value": round(chance.uniform(-9, 9), 3)} if self.number else {"label": chance.choice("ab")}
            for _ in range(2)
        ]
        PredictionRecord.objects.create(
            request_id=request, deployment=self.deployment, variant=variant, role=role, key=key, instances=[{"x": 1}] * 2,
            predictions=None if error else rows, error=error, milliseconds=chance.uniform(1, 10), at=self.now,
            propensity=chance.choice([None, 0.5, 1 / 3, 0.1, 0.05]) if role == "live" else None,
        )  # fmt: skip

    def label(self):
        """Feedback for earlier requests, often again; for both rows or one; or for a request that has no record."""
        chosen = [*self.chance.sample(self.requests, min(6, len(self.requests))), uuid.uuid4()]
        label = self.chance.choice
        labels = [
            Label(request, label([7.25, -3, True, 1 / 3, "words"]) if self.number else label(["a", "b"]), index)
            for request in chosen for index in range(self.chance.randrange(1, 3))
        ]  # fmt: skip
        before = set(SupersededLabel.objects.values_list("pk", flat=True))
        give_feedback(actor=self.maintainer, deployment=self.deployment, labels=labels)
        Feedback.objects.filter(request_id__in=chosen, at__gt=self.now).update(at=self.now)
        SupersededLabel.objects.exclude(pk__in=before).update(replaced_at=self.now)

    def sweep(self):
        prediction_log.forget_old()

    def crash(self):
        """A tick that dies between what it has summed and the end of its transaction."""
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            self.carried(self.window())
            raise ZeroDivisionError

    def go_on(self):
        """A canary is paused, continued, or goes to its next step."""
        if not self.steps:
            return
        rollout = self.holder
        if rollout.state == "paused":
            rollouts.continue_rollout(actor=self.maintainer, rollout=rollout)
        elif self.chance.random() < 0.5:
            rollouts.pause_rollout(actor=self.maintainer, rollout=rollout)
        elif rollouts.advance(rollout=rollout, requests=10**9):
            # its step begins by this clock
            Rollout.objects.update(step_began_at=self.now)

    def window(self):
        holder = self.holder
        last = PredictionRecord.objects.order_by("-id").values_list("id", flat=True).first() or 0
        return Window(self.deployment.pk, holder.started_at, self.now, last, 0)

    def carried(self, window):
        return (rollouts if self.steps else looks).carried_sums(self.holder, window)

    def read(self, window):
        return (rollouts if self.steps else looks).read_sums(self.holder, window)


@pytest.fixture
def life(maintainer, deployment, versions):  # noqa: F811
    return lambda kind: Life(kind, maintainer, deployment, versions)


@pytest.mark.parametrize("kind", KINDS)
def test_after_any_events_they_are_those_of_the_log(life, kind, settings):
    settings.PREDICTION_LOG_DAYS = 0.001  # what nobody needs goes at once
    lived = life(kind)
    happens = [
        lived.answer,
        lived.answer,
        lived.label,
        lived.label,
        lived.copy_late,
        lived.sweep,
        lived.crash,
        lived.go_on,
    ]
    for _ in range(25):
        for _ in range(lived.chance.randrange(5)):
            lived.chance.choice(happens)()
            lived.now += timedelta(seconds=lived.chance.choice([0, 0.5, 7]))
        window = lived.window()
        carried = lived.carried(window)
        assert carried == lived.read(window)
        earlier = Window(window.deployment, window.since, window.until - timedelta(seconds=20), window.last_record)
        assert lived.carried(earlier) == carried, "a tick that comes late finds what another has summed meanwhile"
        lived.now += timedelta(seconds=1)  # what comes after a tick comes later
    assert len(lived.requests) > 30 and SupersededLabel.objects.exists() and RunningSum.objects.count() > 5
    running.forget(lived.holder)
    assert lived.carried(window) == carried, "made at once they are the same"


@pytest.mark.parametrize("kind", ["bandit of classes", "pairs of classes", "canary"])
def test_what_a_tick_reads_is_what_is_new(life, kind):
    """Sums of what is no longer in the log stay as they were: nothing but requests that came, or that got a label, is read."""
    lived = life(kind)
    for _ in range(5):
        lived.answer()
        lived.label()
        lived.now += timedelta(seconds=1)
    before = lived.carried(lived.window())
    PredictionRecord.objects.all().delete()
    lived.now += timedelta(seconds=7)
    assert lived.carried(lived.window()) == before != lived.read(lived.window())


def test_an_alarm_of_a_canary_is_confirmed_by_the_log(life, caplog):
    lived = life("canary")
    Rollout.objects.update(
        guardrails=[{"kind": "errors", "limit": 0.02}], steps=[{"share": 1, "minutes": 10_000, "requests": 0}]
    )
    b = lived.variants()[1]
    lived.now += timedelta(minutes=1)
    for _ in range(50):
        lived._record(uuid.uuid4(), b, "live", "")
    PredictionRecord.objects.update(error="failed")
    lived.now += timedelta(seconds=1)
    lived.carried(lived.window())
    PredictionRecord.objects.update(error="")
    assert ticking.watch_rollout(lived.holder) is False
    assert "made anew" in caplog.text and lived.holder.state == "running" and not RunningSum.objects.exists()
    PredictionRecord.objects.update(error="failed")
    assert ticking.watch_rollout(lived.holder) is True
    assert lived.holder.state == "rolled_back" and not RunningSum.objects.exists()
    with pytest.raises(Conflict):
        lived.carried(lived.window())


def test_a_canary_goes_on_only_where_the_log_says_so_too(life, caplog):
    lived = life("canary")
    Rollout.objects.update(guardrails=[], steps=[{"share": 0.5, "minutes": 0, "requests": 9}, *STEPS[-1:]])
    lived.now += timedelta(minutes=1)
    for _ in range(10):
        lived._record(uuid.uuid4(), lived.variants()[1], "live", "", error="")
    lived.now += timedelta(seconds=1)
    assert lived.carried(lived.window())["requests"] == 10
    gone = PredictionRecord.objects.last()
    PredictionRecord.objects.exclude(pk=gone.pk).delete()
    assert ticking.watch_rollout(lived.holder) is False
    assert "made anew" in caplog.text and lived.holder.step == 0 and lived.holder.summed is None
    assert ticking.watch_rollout(lived.holder) is False and lived.holder.watched["requests"] == 1
    for _ in range(10):
        lived._record(uuid.uuid4(), lived.variants()[1], "live", "", error="")
    assert ticking.watch_rollout(lived.holder) is True and lived.holder.step == 1
    assert ticking.watch_rollout(lived.holder) is False and lived.holder.watched["requests"] == 0, "of the new step"


@pytest.mark.django_db(transaction=True)
def test_ticks_at_once_count_everything_once(life):
    lived = life("pairs of classes")
    for _ in range(6):
        lived.answer()
        lived.label()
        lived.now += timedelta(seconds=5)
    windows = [Window(w.deployment, w.since, w.until - timedelta(seconds=8 * n), w.last_record) for w in [lived.window()] for n in range(4)]  # fmt: skip
    together = threading.Barrier(len(windows))

    def tick(window):
        together.wait(30)
        lived.carried(window)
        connection.close()

    threads = [threading.Thread(target=tick, args=[window]) for window in windows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holder = lived.holder
    assert datetime.fromisoformat(holder.summed["until"]) == windows[0].until
    assert lived.carried(windows[0]) == lived.read(windows[0])
