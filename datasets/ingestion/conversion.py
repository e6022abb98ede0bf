"""One text column turned into values of its final type, with what had to be given up counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.ingestion.inference import MISSING, Reading, cleaned, without_markers
from datasets.ingestion.parts import ARROW_TYPES

Array = Any
EXAMPLES_KEPT = 5
FORMULA = r"^(?:=\S|@\w+\(|[+-](?:[A-Za-z]+\(|\d+[+*/-]\d|cmd\|))"


@dataclass(frozen=True, slots=True)
class TypedValues:
    """Stands in for a reading where there is nothing to parse."""

    key: str = "typed"
    kind: str = "text"

    def accepts(self, values: Array) -> bool:
        return True

    def strict(self, values: Array) -> Array | None:
        return values

    def parse(self, values: Array) -> Array:
        return values


@dataclass(slots=True)
class ColumnConverter:
    """Applies a reading to every batch of a column.

    `forced` marks a type the user chose: values that do not fit become missing. In a column forced to text
    only an empty cell is missing.
    """

    reading: Reading
    forced: bool = False
    unreadable: int = 0
    infinite: int = 0
    markers: int = 0
    marker_examples: list[str] = field(default_factory=list)
    unreadable_examples: list[tuple[int, str]] = field(default_factory=list)
    formulas: int = 0
    formula_examples: list[tuple[int, str]] = field(default_factory=list)
    already_typed: bool = False

    @classmethod
    def typed(cls, kind: str) -> ColumnConverter:
        """For a column that arrives with its type, as from Parquet."""
        return cls(TypedValues(kind=kind), already_typed=True)

    def convert(self, raw: Array, first_record: int) -> Array:
        """The typed array, as long as `raw`."""
        if self.already_typed:
            raw = pc.cast(raw, ARROW_TYPES[self.reading.kind], safe=False)
            if self.reading.kind == "number":
                return self._finite(raw)
        if self.reading.kind == "text":
            return self._text(raw, first_record)
        if self.already_typed:
            return raw
        parsed = self.reading.strict(raw)
        if parsed is None:
            values = cleaned(raw)
            self._count_markers(raw, values)
            parsed = self.reading.parse(values)
            if parsed.null_count > values.null_count:
                self._count_unreadable(values, parsed, first_record)
        return self._finite(parsed) if self.reading.kind == "number" else parsed

    def _text(self, raw: Array, first_record: int) -> Array:
        self._count_formulas(raw, first_record)
        if self.forced or self.already_typed:
            return raw
        values = without_markers(raw)
        self._count_markers(raw, values)
        return values

    def _count_markers(self, raw: Array, values: Array) -> None:
        lost = values.null_count - raw.null_count
        if lost <= 0:
            return
        self.markers += lost
        if not self.marker_examples:
            hidden = pc.filter(raw, pc.and_(pc.is_valid(raw), pc.is_null(values)))
            found = [text.strip() for text in pc.unique(hidden)[:50].to_pylist()]
            self.marker_examples = [text for text in dict.fromkeys(found) if text in MISSING and text][:EXAMPLES_KEPT]

    def _count_formulas(self, raw: Array, first_record: int) -> None:
        """Cells a spreadsheet would run; +49 171… and -x are not counted, exports neutralise them all the
        same.
        """
        if not any(pc.any(pc.starts_with(raw, mark)).as_py() for mark in "=@+-"):
            return
        found = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(raw, FORMULA), False))
        self.formulas += len(found)
        if not self.formula_examples and len(found):
            index = found[0].as_py()
            self.formula_examples.append((first_record + index, raw[index].as_py()))

    def _count_unreadable(self, values: Array, parsed: Array, first_record: int) -> None:
        lost = pc.and_(pc.is_valid(values), pc.is_null(parsed))
        self.unreadable += pc.sum(lost).as_py() or 0
        for index in pc.indices_nonzero(lost)[: EXAMPLES_KEPT - len(self.unreadable_examples)].to_pylist():
            self.unreadable_examples.append((first_record + index, values[index].as_py()))

    def _finite(self, parsed: Array) -> Array:
        """Infinity and NaN as missing: no statistic and no loss survives them."""
        numbers = parsed.to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        if finite.all():
            return parsed
        infinite = int(np.isinf(numbers).sum())
        self.infinite += infinite
        return pa.array(numbers, pa.float64(), mask=~finite)
