"""Booleans written as text: true/false, yes/no, t/f, y/n in any letter case; 0/1 stays integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Array = Any


@dataclass(frozen=True, slots=True)
class Booleans:
    """One pair of words."""

    key: str
    truthy: tuple[str, ...]
    falsy: tuple[str, ...]
    kind: str = "boolean"

    def accepts(self, values: Array) -> bool:
        known = pc.is_in(values, pa.array(_spellings(self.truthy + self.falsy)))
        return pc.all(pc.or_(known, pc.is_null(values))).as_py() is not False

    def strict(self, values: Array) -> Array | None:
        return None

    def parse(self, values: Array) -> Array:
        yes = pc.is_in(values, pa.array(_spellings(self.truthy)))
        no = pc.is_in(values, pa.array(_spellings(self.falsy)))
        return pc.if_else(pc.or_(yes, no), yes, pa.scalar(None, pa.bool_()))


def _spellings(words: tuple[str, ...]) -> list[str]:
    return [spelling for word in words for spelling in dict.fromkeys((word, word.capitalize(), word.upper()))]


TRUE_FALSE = Booleans("true_false", ("true",), ("false",))
YES_NO = Booleans("yes_no", ("yes",), ("no",))
T_F = Booleans("t_f", ("t",), ("f",))
Y_N = Booleans("y_n", ("y",), ("n",))
# What a column forced to boolean may hold.
ANY_BOOLEAN = Booleans("any_boolean", ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0"))
