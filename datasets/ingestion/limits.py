"""What one ingestion may use. Every number is a ceiling, none is a reservation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings for one file; sizes in bytes, times in seconds.

    `bytes` counts the file after decompression; `expansion_ratio` is decoded bytes per stored byte;
    `nesting` is the depth of objects and lists inside one cell. `files` counts what an archive lists.
    """

    bytes: int = 5 * GIB
    rows: int = 50_000_000
    columns: int = 2_000
    cell_bytes: int = 1 << 20
    expansion_ratio: float = 200.0
    nesting: int = 8
    files: int = 200_000
    memory_bytes: int = 4 * GIB
    cpu_seconds: int = 1_800
    wall_seconds: float = 3_600.0
    open_files: int = 64
    problems: int = 100

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Limits:
        """Raises ValueError on a key that is not a limit."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}")
        return cls(**values)
