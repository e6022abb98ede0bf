"""How far a sweep is, and when it will probably end."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Avg, Count
from django.utils import timezone

from training.models import Sweep, Trial

LEAST_SHARE = 0.02  # below, a time left would be a guess


@dataclass(frozen=True)
class Progress:
    """``share`` of the work, from 0 to 1; ``counts``: {state: trials}; ``eta_seconds`` is None when nothing tells it."""

    share: float
    counts: dict[str, int]
    eta_seconds: float | None

    @property
    def drawn(self) -> int:
        return sum(self.counts.values())


def progress_of(sweep: Sweep) -> Progress:
    rows = sweep.trials.values("state").annotate(count=Count("pk"))
    counts = {row["state"]: row["count"] for row in rows}
    if sweep.ended:
        return Progress(1.0, counts, None)
    # Of trials that wait at a rung few go on, so that each counts as done.
    training = counts.get(Trial.State.RUNNING, 0)
    begun = sweep.trials.filter(state=Trial.State.RUNNING).aggregate(mean=Avg("runs__progress"))["mean"] or 0.0
    done = sum(counts.values()) - training + training * begun
    share = min(done / sweep.trial_count, 1.0)
    return Progress(share, counts, _time_left(sweep, share))


def _time_left(sweep: Sweep, share: float) -> float | None:
    if sweep.state != Sweep.State.RUNNING or share < LEAST_SHARE:
        return None
    return (timezone.now() - sweep.created_at).total_seconds() * (1 - share) / share


def summary(sweep: Sweep) -> dict[str, Any]:
    """As lists and the API show it."""
    found = progress_of(sweep)
    return {"progress": found.share, "eta_seconds": found.eta_seconds, "counts": found.counts}
