"""What shadow variants made of their copies of the traffic, beside what was answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q

from . import processes
from .models import Deployment, PredictionRecord, Variant

COUNTED = 10_000  # copies of a shadow, the newest first
LOOKED_AT = 1000  # pairs of a shadow, the newest first


@dataclass
class Comparison:
    """Of one shadow: its copies in the log, and how the newest of its answers compare with the live ones, row by row.

    ``same`` of ``classified`` rows have the same label (or labels); ``distance`` is the sum of the absolute differences
    of ``measured`` rows' numbers. ``resting``: when its process is started again, if it ended again and again.
    """

    variant: Variant
    answered: int = 0
    dropped: int = 0
    failed: int = 0
    classified: int = 0
    same: int = 0
    measured: int = 0
    distance: float = 0.0
    resting: str = ""

    def compare(self, live: Mapping[str, Any], shadow: Mapping[str, Any]) -> None:
        """Count one row."""
        for name in ("label", "labels", "text"):
            if name in live and name in shadow:
                self.classified += 1
                self.same += _plain(live[name]) == _plain(shadow[name])
                return
        for distance in _distances(live, shadow):
            self.measured += 1
            self.distance += distance

    @property
    def agreement(self) -> float | None:
        """Share of rows with the same label, from 0 to 1."""
        return self.same / self.classified if self.classified else None

    @property
    def mean_difference(self) -> float | None:
        """Mean absolute difference, in the target's unit."""
        return self.distance / self.measured if self.measured else None


def _plain(label: Any) -> Any:
    return sorted(map(str, label)) if isinstance(label, list) else label


def _distances(live: Mapping[str, Any], shadow: Mapping[str, Any]) -> list[float]:
    ours, theirs = live.get("values", {"": live.get("value")}), shadow.get("values", {"": shadow.get("value")})
    pairs = [(ours[name], theirs.get(name)) for name in ours]
    return [abs(one - other) for one, other in pairs if isinstance(one, int | float) and isinstance(other, int | float)]


def comparisons_of(deployment: Deployment) -> list[Comparison]:
    """Of every shadow that is in the deployment now."""
    shadows = Variant.objects.filter(deployment=deployment, removed_at=None, role=Variant.Role.SHADOW)
    found = [Comparison(variant) for variant in shadows.select_related("version__model")]
    rests = [one.resting for one in processes.told()] if found else []
    for comparison in found:
        comparison.resting = processes.together(rests, str(comparison.variant.version_id))
        _count(comparison)
        _compare(comparison)
    return found


def _records(variant: Variant) -> Any:
    return PredictionRecord.objects.filter(deployment=variant.deployment_id, variant=variant, role=Variant.Role.SHADOW)


def _count(comparison: Comparison) -> None:
    dropped = Q(error=PredictionRecord.DROPPED)
    newest = _records(comparison.variant).order_by("-id")[:COUNTED]
    counts = newest.aggregate(
        answered=Count("pk", filter=Q(error="")), dropped=Count("pk", filter=dropped),
        failed=Count("pk", filter=~Q(error="") & ~dropped),
    )  # fmt: skip
    comparison.answered, comparison.dropped, comparison.failed = counts["answered"], counts["dropped"], counts["failed"]


def _compare(comparison: Comparison) -> None:
    newest = _records(comparison.variant).filter(error="").order_by("-id").values_list("request_id", "predictions")
    answers = dict(newest[:LOOKED_AT])
    live = PredictionRecord.objects.filter(
        deployment=comparison.variant.deployment_id, request_id__in=answers, role=Variant.Role.LIVE
    )
    for request, predictions in live.values_list("request_id", "predictions"):
        for ours, theirs in zip(predictions or (), answers[request] or (), strict=False):
            comparison.compare(ours, theirs)
