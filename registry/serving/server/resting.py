"""Shadows whose process ends again and again are started again more and more rarely: each start takes seconds of a core,
which the answers need. Who asks a live model gets its error instead, and the model is started again at once."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import UUID

from dlplatform.engine.errors import PackageError

FIRST_SECONDS, MOST_SECONDS = 1.0, 60.0  # between an end and the next start; twice as long each time
STEADY_SECONDS = 300.0  # what lived so long ends for the first time again


class Resting(PackageError):
    """The process of this model is not started again yet."""


@dataclass
class Ends:
    """How often a process has ended in a row, how long it rests, and until when by the clock."""

    count: int
    pause: float
    until: float
    reason: str = ""  # why it did not start

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count} times in a row"
        told = f"its process ended {times}; it rests for {self.pause:.0f} s before it is started again"
        return f"{told}. {self.reason}" if self.reason else told


class Rests:
    """By version of a shadow. ``shadows``: those that answer nobody, anywhere. Safe to use from all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.shadows: frozenset[UUID] = frozenset()
        self._clock = clock
        self._ends: dict[UUID, Ends] = {}
        self._lock = threading.Lock()

    def follow(self, shadows: Collection[UUID]) -> None:
        """These, and only these, are shadows now; of others nothing is remembered."""
        with self._lock:
            self.shadows = frozenset(shadows)
            self._ends = {version: ends for version, ends in self._ends.items() if version in self.shadows}

    def ended(self, version: UUID, lived: float, reason: str = "") -> None:
        """A process ended of itself, so many seconds after it was ready, or did not become ready for a reason."""
        with self._lock:
            if version in self.shadows:
                before = self._ends.get(version)
                count = before.count + 1 if before and lived < STEADY_SECONDS else 1
                pause = min(FIRST_SECONDS * 2.0 ** min(count - 1, 16), MOST_SECONDS)
                self._ends[version] = Ends(count, pause, self._clock() + pause, reason)

    def refusal(self, version: UUID) -> Resting | None:
        """Why it is not started now; None where it may be."""
        with self._lock:
            ends = self._ends.get(version)
            return Resting(str(ends)) if ends and self._clock() < ends.until else None

    def told(self) -> dict[UUID, str]:
        """What rests now, and for how many seconds more."""
        with self._lock:
            now = self._clock()
            return {
                version: f"ended {ends.count}×, tried again in {max(1, round(ends.until - now))} s"
                for version, ends in self._ends.items()
                if now < ends.until
            }
