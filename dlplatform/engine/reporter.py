"""The run's heartbeat: progress lines from the loop itself, at most about four a second."""

from __future__ import annotations

import time
from typing import Final

from dlplatform.engine.errors import Interrupted
from dlplatform.engine.events import EventWriter

INTERVAL: Final = 0.25
# Share of the whole run at which each phase begins.
PHASES: Final[dict[str, float]] = {
    "loading": 0.0,
    "training": 0.01,
    "evaluating": 0.95,
    "explaining": 0.96,
    "packaging": 0.99,
    "finished": 1.0,
}


class Reporter:
    """Knows where the run is, says so, and carries the request to stop."""

    def __init__(self, writer: EventWriter) -> None:
        self.writer = writer
        self.stop_requested = False
        self.phase = "loading"
        self.epoch = 0
        self.step = 0
        self.total_steps = 0
        self.last = float("-inf")
        self._rows = 0
        self._began = time.monotonic()
        self._first_step = 0

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.phase = phase
        self.report()

    def begin_training(self, step: int, total_steps: int) -> None:
        """Begin to measure speed at a step (not 0 when resumed)."""
        self.step = self._first_step = step
        self.total_steps = total_steps
        self._began = time.monotonic()
        self.enter("training")

    def beat(self) -> None:
        """Called between pieces of work. Raises Interrupted when the run was asked to stop."""
        if self.stop_requested:
            raise Interrupted
        if time.monotonic() - self.last >= INTERVAL:
            self.report()

    def advance(self, epoch: int, step: int, rows: int) -> None:
        """Where training is; ``rows`` were trained on since the last call."""
        self.epoch, self.step = epoch, step
        self._rows += rows

    def report(self) -> None:
        """One progress line now."""
        self.last = time.monotonic()
        elapsed = self.last - self._began
        done = self.step - self._first_step
        training = self.phase == "training"
        eta = elapsed / done * (self.total_steps - self.step) if training and done else None
        self.writer.emit(
            "progress",
            phase=self.phase,
            epoch=self.epoch,
            step=self.step,
            total_steps=self.total_steps,
            fraction=self._fraction(),
            eta_seconds=eta,
            rows_per_second=self._rows / elapsed if training and done and elapsed > 0 else None,
        )

    def _fraction(self) -> float:
        start = PHASES[self.phase]
        if self.phase != "training" or not self.total_steps:
            return start
        return start + (PHASES["evaluating"] - start) * self.step / self.total_steps
