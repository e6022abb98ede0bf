"""Which metrics the answers of a version can be measured by: one that never has an outcome decides and guards nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from registry.models import ModelVersion

from .arms import FIELDS, refused
from .models import Experiment

# The task whose answers a label judges so; all other metrics are of any answer.
TASKS = {Experiment.Metric.ACCURACY: "classification", Experiment.Metric.ABSOLUTE_ERROR: "regression"}
ANSWERS = {"classification": "one class", "regression": "one number"}


def refuse_unmeasured(metric: str, version: ModelVersion, field: str = "metric") -> None:
    """Raises ValidationError on ``field`` where no answer of the version has an outcome of this metric."""
    task = TASKS.get(metric)  # type: ignore[call-overload]
    several = version.signature.get("output", {}).get("kind") == "numbers"
    if task is None or (version.task == task and not several):
        return
    raise refused(
        field,
        f"The {Experiment.Metric(metric).label} is measured of answers that are {ANSWERS[task]}, which v{version.number} does "
        "not give. Choose number, and send what an answer was worth as feedback; or errors or latency.",
        "unmeasured",
    )


def refuse_unmeasured_guardrails(guardrails: Sequence[Mapping[str, Any]], version: ModelVersion) -> None:
    """Raises ValidationError on `guardrails.<position>.kind`: an alarm that can never come protects nobody."""
    for position, one in enumerate(guardrails):
        refuse_unmeasured(one["kind"], version, f"guardrails.{position}.kind")


def refuse_other_tasks(versions: Sequence[ModelVersion]) -> None:
    """A, B and further ones are versions of one task. Raises ValidationError on the field of the first that is not."""
    for field, one in zip(FIELDS, versions, strict=False):
        if one.task != versions[0].task:
            sentence = f"v{one.number} is for {one.task}, and A for {versions[0].task}: compare versions of one task."
            raise refused(field, sentence, "task_mismatch")
