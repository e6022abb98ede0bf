"""Between the training loop and the doctor: what the loop has goes in, findings go into the spool."""

from __future__ import annotations

import time
from typing import Any, Final

from torch import nn

from dlplatform.engine.doctor import WAITING_SECONDS, Doctor, Epoch, Finding
from dlplatform.engine.errors import EngineError
from dlplatform.engine.learner import Learner
from dlplatform.engine.processes import Processes
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.vitals import memory_of, silent_units

LOOKS: Final = 10  # at the network in a run, at most about
LEAST_LOOK: Final = 5  # epochs between two looks
WEIGH_SECONDS: Final = 1.0
NAMED_ROWS: Final = 5


class Checkup:
    """Costs a few comparisons an epoch, and about ten times in a run the pass of one batch."""

    def __init__(self, learner: Learner, reporter: Reporter, processes: Processes) -> None:
        self.learner = learner
        self.reporter = reporter
        self.looks = processes.leads or processes.divides
        self.doctor = Doctor(learner.config, learner.reference(), learner.judged, learner.begins_trained)
        self._since = time.monotonic()
        self._waited = 0.0
        self._weighed = 0.0

    def window(self, step: int, loss: float) -> None:
        """The mean training loss of some steps, the last of which is ``step``."""
        self._tell(self.doctor.trained(step, loss))

    def epoch(self, ended: Epoch, network: nn.Module) -> None:
        """An epoch is validated; ``network`` is the one that trains."""
        self._tell(self.doctor.ended(ended))
        self._time()
        self._weigh()
        assert isinstance(self.learner.config.epochs, int)
        if self.looks and (ended.number + 1) % max(LEAST_LOOK, self.learner.config.epochs // LOOKS) == 0:
            with silent_units(network) as shares:
                self.learner.glance(network)
                self._tell(self.doctor.looked(shares()))

    def not_finite(self, sentence: str) -> EngineError:
        """The failure to raise; told as a finding too, with its way out."""
        self._tell(self.doctor.not_finite(sentence))
        return EngineError("nan_loss", sentence)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return self.doctor.state()

    def _time(self) -> None:
        now, waited = time.monotonic(), self.learner.waited
        if now - self._since >= WAITING_SECONDS:
            self._tell(self.doctor.timed(waited - self._waited, now - self._since))
            self._since, self._waited = now, waited

    def _weigh(self) -> None:
        now = time.monotonic()
        if now - self._weighed >= WEIGH_SECONDS:
            self._weighed = now
            self._tell(self.doctor.weighed(memory_of(self.learner.device)))

    def _tell(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.reporter.writer.finding(finding.payload())


def rows_in_words(places: list[int]) -> str:
    """Rows of a batch as the dataset's page counts them, from 1; the first few by number."""
    if not places:
        return ""
    named = ", ".join(f"{place + 1:,}" for place in places[:NAMED_ROWS])
    more = f" and {len(places) - NAMED_ROWS:,} more" if len(places) > NAMED_ROWS else ""
    return f" Its batch held the row{'s' if len(places) > 1 else ''} {named}{more} of the data."
