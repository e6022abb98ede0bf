"""Runs that were asked for over the API, trained to their end."""

from registry.models import ModelVersion
from training.jobs import train
from training.models import Run


def trained_version(answer) -> ModelVersion:
    """The version that the run of a 201 answer ends in."""
    assert answer.status_code == 201, answer.content
    train(answer.json()["id"])
    run = Run.objects.get(pk=answer.json()["id"])
    assert run.state == "succeeded", run.error
    return ModelVersion.objects.select_related("model", "base").get(pk=run.output_version_id)
