"""Column and input schema types. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

COLUMN_TYPES: Final = ("number", "integer", "boolean", "category", "datetime", "text", "image")
NUMBER_LIKE: Final = frozenset({"number", "integer", "boolean"})
STRING_LIKE: Final = frozenset({"category", "text", "image"})  # an image is stored as the SHA-256 of its file
TASKS: Final = ("classification", "regression", "multilabel", "language-model")


_ALIKE: Final = (NUMBER_LIKE, frozenset({"category", "text"}))


def reads(wanted: str, found: str) -> bool:
    """Whether a model that was trained on a column of one type can read one of another: both numbers, or words."""
    return wanted == found or any({wanted, found} <= kinds for kinds in _ALIKE)


@dataclass(frozen=True)
class Column:
    """A column of a typed table."""

    name: str
    type: str


@dataclass(frozen=True)
class InputColumn:
    """What a model expects in one input column; enough to draw a form without loading the model.

    ``minimum``, ``maximum`` and ``median`` are numbers for number, integer and boolean columns and
    ISO 8601 strings for datetime columns; None for the others. ``categories`` are the most frequent
    values first, at most 100 of them. ``example`` is a real value of a training row.
    """

    name: str
    type: str
    nullable: bool
    categories: tuple[str, ...] = ()
    minimum: float | str | None = None
    maximum: float | str | None = None
    median: float | str | None = None
    example: float | int | bool | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as it stands in ``model.json`` under ``inputs``."""
        return {**asdict(self), "categories": list(self.categories)}


def example_row(description: dict[str, Any]) -> dict[str, Any]:
    """One whole input row, from a package description, that the model accepts."""
    return {column["name"]: column["example"] for column in description["inputs"]}
