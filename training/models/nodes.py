"""Machines beside the leader's that work on a run together."""

from typing import ClassVar

from django.db import models
from django.db.models import Exists, OuterRef, Q

from dlplatform.jobs import Job, JobQuerySet

from .runs import Run


class NodeQuerySet(JobQuerySet):
    def of_living_runs(self) -> "NodeQuerySet":
        """Those whose run is still held by the claim that asked for them."""
        held = Run.objects.filter(pk=OuterRef("run_id"), lease_epoch=OuterRef("run_epoch"), state__in=Run.HELD)
        return self.filter(Exists(held))

    def gathering(self) -> "NodeQuerySet":
        """Those of groups that have not begun to train."""
        return self.of_living_runs().filter(run__state=Run.State.PREPARING)


class Node(Job):
    """One machine's part in one claim of a run. It is never tried again: the run's next claim gathers its own."""

    QUEUE: ClassVar[str] = Run.QUEUE
    CLAIMED: ClassVar[str] = "preparing"
    HELD: ClassVar[tuple[str, ...]] = ("preparing", "ready", "running")
    ENTRY: ClassVar[str] = "training.jobs.join_run"

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="nodes")
    run_epoch = models.PositiveIntegerField(help_text="Of the run's lease; another one sends the machine away")
    rank = models.PositiveSmallIntegerField(help_text="The leader is 0")
    host = models.CharField(max_length=120, help_text="The machine that is asked")
    meeting = models.JSONField(null=True, help_text="{name, address, port} of the group, once all are ready")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = NodeQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-queued_at"]
        constraints = [
            models.UniqueConstraint(fields=["run", "run_epoch", "rank"], name="node_once"),
            models.UniqueConstraint(fields=["run", "run_epoch", "host"], name="node_on_another_machine"),
        ]
        indexes = [
            models.Index(
                fields=["run"],
                condition=Q(state__in=["queued", "preparing", "ready", "running"]),
                name="node_at_work",
            )
        ]

    def __str__(self) -> str:
        return f"{self.run} on {self.host}"

    @property
    def queue_name(self) -> str:
        return queue_of(self.host)


def queue_of(host: str) -> str:
    """The queue that only the workers of a machine serve."""
    return f"{Run.QUEUE}@{host}"
