"""What one sandboxed program may use. Every number is a ceiling, none is a reservation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds. ``processes`` counts threads too; ``spool`` is what it may report.

    ``files`` counts the entries of its folder. Memory holds what it keeps in /tmp and /dev/shm.
    """

    memory: int = 4096 * MIB
    processes: int = 256
    disk: int = 10_240 * MIB
    files: int = 100_000
    spool: int = 64 * MIB
    seconds: float = 86_400.0
    open_files: int = 1024

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
