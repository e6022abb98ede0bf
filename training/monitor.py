"""Reads a run's event stream: ships it to the database, hints to watchers, and notices silence."""

import time
from pathlib import Path
from typing import Any

from django.db import transaction

from dlplatform import events
from dlplatform.engine.events import SPOOL, read_events
from dlplatform.jobs import LeaseLost

from .models import Run
from .records import append_spool
from .vetting import Vetting

BATCH_BYTES = 4 * 1024 * 1024


class Monitor:
    """Follows ``events.jsonl`` of one attempt. Shipping the same spool twice changes nothing."""

    def __init__(self, run: Run, directory: Path) -> None:
        self.run = run
        self._vetting = Vetting() if run.code_id else None
        self.spool = directory / SPOOL
        self.offset = 0
        self.finished: dict[str, Any] | None = None
        self.failed: dict[str, Any] | None = None
        self._heard = time.monotonic()

    def ship(self) -> bool:
        """Move what is new into the database. True when there was something."""
        found = False
        while True:
            lines, offset = read_events(self.spool, self.offset, BATCH_BYTES)
            if offset == self.offset:
                return found
            self._ship(lines)
            self.offset, found = offset, True

    def _ship(self, lines: list[dict[str, Any]]) -> None:
        if self._vetting:
            lines = self._vetting(lines)
        for line in lines:
            self._notice(line)
        fresh = [line for line in lines if line["sequence"] > self.run.spool_sequence]
        if not fresh:
            return
        self._heard = time.monotonic()
        columns = summary(fresh)
        if self._vetting:
            columns.pop("failures", None)  # anybody can say that there is a checkpoint
        with transaction.atomic():
            last = append_spool(self.run, fresh)
            if columns:
                self.run.write(**columns)
        events.publish_run(self.run.pk, last)

    def _notice(self, line: dict[str, Any]) -> None:
        """The newest attempt decides: `started` voids an earlier attempt's end."""
        kind = line["type"]
        if kind == "started":
            self.finished = self.failed = None
        elif kind == "finished":
            self.finished = line
        elif kind == "failed":
            self.failed = line

    def refresh(self) -> None:
        """Read our position again after the database was away and the last commit's fate is unknown."""
        row = Run.objects.only("spool_sequence", "last_sequence", "lease_epoch").get(pk=self.run.pk)
        if row.lease_epoch != self.run.lease_epoch:
            raise LeaseLost(str(self.run.pk))
        self.run.spool_sequence, self.run.last_sequence = row.spool_sequence, row.last_sequence

    def silence(self) -> float:
        """Seconds since the engine said anything new."""
        return time.monotonic() - self._heard


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of the run that follow from the newest lines."""
    columns: dict[str, Any] = {}
    metrics: dict[str, float | None] = {}
    for line in lines:
        if line["type"] == "progress":
            columns |= {
                "progress": min(max(float(line["fraction"]), 0.0), 1.0),
                "phase": str(line["phase"])[:60],
                "step": int(line["step"]),
                "total_steps": int(line["total_steps"]) or None,
                "epoch": int(line["epoch"]),
                "eta_seconds": line["eta_seconds"],
                "rows_per_second": line["rows_per_second"],
            }
        elif line["type"] == "metric":
            metrics |= line["values"]
        elif line["type"] == "started":
            columns["environment"] = environment(line)
        elif line["type"] == "checkpoint":
            columns["failures"] = 0  # there is progress to resume from: the budget of attempts starts again
    if metrics:
        columns["metrics"] = metrics
    return columns


def environment(line: dict[str, Any]) -> dict[str, Any]:
    return {
        **line["environment"],
        "device": line["device"],
        "threads": line["threads"],
        "parameters": line["parameters"],
        "rows": line["rows"],
        "resumed_from": line["resumed_from"],
        "settings": line["config"],
    }
