"""A deployment with traffic for tests of experiments and rollouts: records written straight into the log."""

import uuid
from datetime import datetime, timedelta

import pytest
from django.db.models import F
from django.utils import timezone

from registry.serving import services
from registry.serving.experiments import ticking
from registry.serving.models import Deployment, Experiment, Feedback, PredictionRecord, Rollout, Variant
from registry.serving.services import Wanted
from tests import factories

TREE = {"model.json": {"sha256": "a" * 64, "size": 10}}


@pytest.fixture
def versions(organization):
    model = factories.RegisteredModelFactory(organization=organization, name="flowers")
    return [factories.ModelVersionFactory(model=model, number=number, tree=TREE) for number in (1, 2, 3)]


def further_versions(versions, count):
    """So many others of the same model, the oldest first."""
    model, last = versions[0].model, versions[-1].number
    return [factories.ModelVersionFactory(model=model, number=last + n, tree=TREE) for n in range(1, count + 1)]


@pytest.fixture
def deployment(maintainer, organization, versions):
    made = services.create_deployment(
        actor=maintainer, organization=organization, name="screening", variants=[Wanted(versions[0].pk)]
    )
    Deployment.objects.filter(pk=made.pk).update(created_at=timezone.now() - timedelta(days=30))
    return Deployment.objects.get(pk=made.pk)


def write(
    variant, outcomes, *, metric="accuracy", ago=60, keys=None, milliseconds=None, errors=(), revision=None,
    propensity=None,
):  # fmt: skip
    """One record for each outcome, seconds ``ago``, and a label that makes it its outcome (None: no label)."""
    at = timezone.now() - timedelta(seconds=ago)
    records, labels = [], []
    for position, outcome in enumerate(outcomes):
        request = uuid.uuid4()
        answer = {"value": 0.0} if metric == "absolute_error" else {"label": "a"}
        failed = errors[position] if position < len(errors) else ""
        records.append(
            PredictionRecord(
                request_id=request, deployment_id=variant.deployment_id, variant=variant, instances=[{"x": 1}],
                predictions=None if failed else [answer], error=failed, at=at, revision=revision,
                propensity=propensity,
                key=keys[position] if keys else "",
                milliseconds=milliseconds[position] if milliseconds else 5.0,
            )
        )  # fmt: skip
        if outcome is not None:
            label = ("a" if outcome else "b") if metric == "accuracy" else outcome
            labels.append(Feedback(deployment_id=variant.deployment_id, request_id=request, label=label, at=at))
    PredictionRecord.objects.bulk_create(records, batch_size=1000)
    Feedback.objects.bulk_create(labels, batch_size=1000)
    return records


def right(count, of):
    """Outcomes of which ``count`` are 1, spread evenly."""
    return [(position * count // of) != ((position + 1) * count // of) for position in range(of)]


def started(experiment, ago=3600.0):
    """The experiment as if it had been started then."""
    Experiment.objects.filter(pk=experiment.pk).update(started_at=timezone.now() - timedelta(seconds=ago))
    return Experiment.objects.select_related("deployment", "variant_a", "variant_b").get(pk=experiment.pk)


def shares_of(deployment):
    """By the number of its version, and arm, the weight of each live variant that is in it."""
    rows = Variant.objects.filter(deployment=deployment, removed_at=None, role="live").select_related("version")
    return {f"{row.version.number}{row.arm}": row.weight for row in rows}


def later(minutes):
    """A tick of canaries, as if it were that many minutes later."""
    earlier = timedelta(minutes=minutes)
    Rollout.objects.update(
        started_at=F("started_at") - earlier, step_began_at=F("step_began_at") - earlier, paused_at=F("paused_at") - earlier,
        watch_after=None,
    )  # fmt: skip
    PredictionRecord.objects.update(at=F("at") - earlier)
    for rollout in Rollout.objects.exclude(summed=None):
        until = datetime.fromisoformat(rollout.summed["until"]) - earlier
        Rollout.objects.filter(pk=rollout.pk).update(summed=rollout.summed | {"until": until.isoformat()})
    return ticking.tick()["canaries moved"]
