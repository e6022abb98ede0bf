"""What a run should be told about while it trains: findings in words, each with what to do about it.

The doctor only judges numbers that the loop has anyway. It never changes the training, draws no random numbers, and
says each thing once for a run, whatever the number of resumes. Thresholds and their reasons: docs/doctor.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.vitals import Memory

# A loss so many times that of a model without inputs is worse than guessing; so many times in a row, no accident.
DIVERGED: Final = 2.0
DIVERGED_TIMES: Final = 2
LEARNT: Final = 0.5
LOST: Final = 0.95
# Of the loss of a model without inputs: less than a hundredth below it, or than chance gives on so few rows, is
# nothing learnt.
LEAST_GAIN: Final = 0.01
CHANCE: Final = 0.5
PATIENT_EPOCHS: Final = 10
# Overfitting: so far above the best validation loss, for so many epochs, while the training loss is far below it.
RISEN: Final = 1.3
RISING_EPOCHS: Final = 3
APART: Final = 0.6
# Too good at once: so small a part of the loss without inputs, this early, on at least so many rows.
TOO_GOOD: Final = 0.015
EARLY: Final = 0.25
JUDGED_ROWS: Final = 30
# Shares of an epoch's time spent waiting for data; judged from so many seconds on.
WAITING: Final = 0.5
WAITING_SECONDS: Final = 3.0
DEAD: Final = 0.6
MEMORY: Final = 0.92


@dataclass(frozen=True)
class Finding:
    """``severity``: info, warning or error. ``change``: settings for another try, or None."""

    code: str
    severity: str
    sentence: str
    next_step: str
    change: dict[str, Any] | None = None

    def payload(self) -> dict[str, Any]:
        """The body of a ``finding`` event."""
        return asdict(self)


@dataclass(frozen=True)
class Epoch:
    """How an epoch ended. ``last``: nothing is trained after it."""

    number: int
    train_loss: float
    validation_loss: float
    last: bool


@dataclass
class Memories:
    """What the doctor must remember over a resume."""

    said: list[str] = field(default_factory=list)
    first: float | None = None
    least: float | None = None
    above: int = 0
    best: float | None = None
    rising: int = 0


class Doctor:
    """Told of losses, times and looks at the network; answers with findings that are new.

    ``reference``: the validation loss of a model without inputs. ``rows``: rows or documents that validate.
    """

    def __init__(self, config: TrainingConfig, reference: float, rows: int, begins_trained: bool = False) -> None:
        self.config = config
        self.reference = reference
        self.rows = rows
        self.begins_trained = begins_trained
        self.memories = Memories()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the doctor."""
        return asdict(self.memories)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; a checkpoint of an earlier release has none."""
        self.memories = replace(Memories(), **state)

    # --- told by the loop -----------------------------------------------------------------------------

    def trained(self, step: int, loss: float) -> list[Finding]:
        """The mean training loss of some steps, the last of which is ``step``."""
        memories = self.memories
        if memories.first is None:
            memories.first = memories.least = loss
            return []
        guessing = max(self.reference, memories.first)
        least = min(memories.least or loss, loss)
        memories.least = least
        lost = least < LEARNT * guessing and loss > LOST * guessing
        memories.above = memories.above + 1 if loss > DIVERGED * guessing or lost else 0
        if memories.above < DIVERGED_TIMES:
            return []
        worse = "what it had learnt is lost" if lost else "it is worse than guessing"
        sentence = f"Training diverges: at step {step} the loss is {loss:.3g}, after {least:.3g}; {worse}."
        return self._once(self._slower("divergence", "error", sentence))

    def ended(self, epoch: Epoch) -> list[Finding]:
        """An epoch is validated."""
        memories = self.memories
        if memories.best is None or epoch.validation_loss < memories.best:
            memories.best, memories.rising = epoch.validation_loss, 0
        elif epoch.validation_loss > RISEN * memories.best:
            memories.rising += 1
        return [*self._too_good(epoch), *self._no_learning(epoch), *self._overfitting(epoch)]

    def timed(self, waited: float, elapsed: float) -> list[Finding]:
        """Seconds of ``elapsed`` in which steps waited for their data."""
        if waited < WAITING * elapsed:
            return []
        sentence = (
            f"Steps wait for data: {waited / elapsed:.0%} of the time goes into fetching rows, not into computing."
        )
        step = "Choose smaller images or shorter texts, a larger batch size, or a machine with faster memory."
        return self._once(Finding("input_bound", "warning", sentence, step))

    def looked(self, dead: dict[str, float]) -> list[Finding]:
        """The share of units of each layer that were silent on a whole batch of validation rows."""
        if not dead:
            return []
        layer, share = max(dead.items(), key=lambda entry: entry[1])
        if share < DEAD:
            return []
        sentence = f"{share:.0%} of the units of {layer} are dead: they are zero for every row, so they cannot learn."
        return self._once(self._slower("dead_units", "warning", sentence))

    def weighed(self, memory: Memory | None) -> list[Finding]:
        """Memory in use against its limit."""
        if memory is None or memory.used < MEMORY * memory.limit:
            return []
        used, limit = memory.used / 2**30, memory.limit / 2**30
        sentence = f"Memory is almost full: {used:.1f} of {limit:.1f} GiB ({memory.where}) are in use."
        size = self.config.batch_size
        change = {"batch_size": max(1, size // 2)} if isinstance(size, int) and size > 1 else None
        step = "Lower the batch size or the model's width, cut the batch into parts (accumulation), or free memory."
        return self._once(Finding("memory_near", "warning", sentence, step, change))

    def not_finite(self, sentence: str) -> list[Finding]:
        """The run ends because a loss is infinite or undefined."""
        return self._once(self._slower("nan_loss", "error", sentence))

    # --- judged -----------------------------------------------------------------------------------------

    def _too_good(self, epoch: Epoch) -> list[Finding]:
        assert isinstance(self.config.epochs, int)
        early = epoch.number < max(1, round(EARLY * self.config.epochs))
        if self.begins_trained or not early or self.rows < JUDGED_ROWS or self.reference <= 0:
            return []
        if epoch.validation_loss > TOO_GOOD * self.reference:
            return []
        sentence = (
            f"Too good at once: after epoch {epoch.number + 1} the validation loss is {epoch.validation_loss:.2g}, where "
            f"knowing nothing gives {self.reference:.2g}. A column may give the target away."
        )
        step = "Look at what the model goes by; leave out columns that are not known before the target is."
        return self._once(Finding("leakage_suspected", "warning", sentence, step))

    def _no_learning(self, epoch: Epoch) -> list[Finding]:
        assert isinstance(self.config.epochs, int)
        patient = max(PATIENT_EPOCHS, self.config.epochs // 4)
        best = self.memories.best
        if best is None or self.rows < JUDGED_ROWS or best < (1 - self._chance()) * self.reference:
            return []
        if "divergence" in self.memories.said:  # the cause is told already
            return []
        if epoch.number + 1 < patient and not (epoch.last and epoch.number + 1 >= PATIENT_EPOCHS // 2):
            return []
        sentence = (
            f"Nothing is learnt: after {epoch.number + 1} epochs the best validation loss is {best:.3g}, and a model "
            f"without inputs reaches {self.reference:.3g}."
        )
        step = "See whether these columns can tell the target at all, and whether rows and targets belong together."
        moved = self.memories.first is not None and epoch.train_loss < LOST * self.memories.first
        change = None if moved else {"learning_rate": _rounded(min(1.0, self._rate() * 3))}
        return self._once(Finding("no_learning", "warning", sentence, step, change))

    def _chance(self) -> float:
        """The gain that the best of many looks at the validation rows shows without any learning."""
        return max(LEAST_GAIN, CHANCE / math.sqrt(self.rows))

    def _overfitting(self, epoch: Epoch) -> list[Finding]:
        best = self.memories.best
        if best is None or self.memories.rising < RISING_EPOCHS or epoch.train_loss > APART * epoch.validation_loss:
            return []
        sentence = (
            f"It overfits: the validation loss has risen from {best:.3g} to {epoch.validation_loss:.3g} while the "
            f"training loss fell to {epoch.train_loss:.3g}. The weights of the best epoch are kept."
        )
        step = "Add rows, or use more dropout and weight decay, a smaller network or early stopping."
        return self._once(Finding("overfitting", "warning", sentence, step, self._stricter()))

    def _stricter(self) -> dict[str, Any]:
        decay, dropout = self.config.weight_decay, self.config.params.get("dropout")
        assert isinstance(decay, float)
        change: dict[str, Any] = {"weight_decay": _rounded(min(10.0, max(0.05, decay * 5)))}
        if isinstance(dropout, int | float):
            change["params"] = {"dropout": _rounded(min(0.6, dropout + 0.2))}
        return change

    def _slower(self, code: str, severity: str, sentence: str) -> Finding:
        step = "Lower the learning rate, or look for extreme values in the target and in the columns."
        return Finding(code, severity, sentence, step, {"learning_rate": _rounded(self._rate() / 3)})

    def _rate(self) -> float:
        assert isinstance(self.config.learning_rate, float)
        return self.config.learning_rate

    def _once(self, finding: Finding) -> list[Finding]:
        if finding.code in self.memories.said:
            return []
        self.memories.said.append(finding.code)
        return [finding]


def _rounded(value: float) -> float:
    """Two digits: a suggestion is not more exact than that."""
    return float(f"{value:.2g}")
