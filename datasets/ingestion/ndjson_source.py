"""NDJSON as batches of text columns: one object a line, or a JSON list of objects of moderate size.

The file is parsed once; its cells are staged on disk as Arrow batches, since keys may appear anywhere and a
second parse would cost more than a second read.
"""

from __future__ import annotations

import bisect
import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from datasets.ingestion.decoding import PreparedText
from datasets.ingestion.limits import Limits
from datasets.ingestion.names import clean_header, unique_names
from datasets.ingestion.result import Findings, Rejected, Reported, shown
from datasets.ingestion.sources import Batch, internal_names

LINE_BYTES = 32 << 20
LIST_BYTES = 64 << 20
BATCH_ROWS = 16_384
BATCH_CELLS = 400_000
# Values may be long: a batch of documents ends sooner than one of numbers.
BATCH_BYTES = 16 << 20
ONE_PER_LINE = 'Write one object per line, such as {"age": 41, "city": "Oslo"}.'


class NdjsonSource:
    """Parsed on construction; `on_read` gets the fraction read. Raises Rejected."""

    def __init__(
        self,
        prepared: PreparedText,
        work: Path,
        limits: Limits,
        findings: Findings,
        on_read: Callable[[float], None],
    ) -> None:
        self.typed, self.kinds = False, list[str]()
        self.delimiter: str | None = None
        self._prepared, self._limits, self._findings, self._on_read = prepared, limits, findings, on_read
        self._staging = work / "staging.arrow"
        self._keys: dict[str, int] = {}
        self._nested: set[str] = set()
        self._records = self._batch_count = self._served = self._pending_bytes = 0
        self._gaps = array("q")
        self._stage()
        self.names, blank, renamed = unique_names(list(self._keys))
        self.blank: set[int] = set()
        self._report(blank, renamed)

    def batches(self) -> Iterator[Batch]:
        self._served = 0
        with pa.OSFile(str(self._staging)) as file:
            for _ in range(self._batch_count):
                batch = pa.ipc.open_stream(file).read_all().to_batches()[0]
                self._served += 1
                yield self._widened(batch)

    def row_number(self, record: int) -> int:
        return record + 1 + bisect.bisect_right(self._gaps, record)

    def fraction(self) -> float:
        return self._served / max(self._batch_count, 1)

    def _widened(self, batch: Batch) -> Batch:
        """With the keys that appeared only after this batch."""
        missing = len(self.names) - batch.num_columns
        columns = [*batch.columns, *(pa.nulls(batch.num_rows, pa.string()) for _ in range(missing))]
        return pa.RecordBatch.from_arrays(columns, names=internal_names(len(columns)))

    def _stage(self) -> None:
        pending: list[dict[str, Any]] = []
        with pa.OSFile(str(self._staging), "wb") as out:
            for row, value in self._values():
                self._accept(row, value, pending)
                if self._full(pending):
                    self._write(out, pending)
                    pending, self._pending_bytes = [], 0
            if pending:
                self._write(out, pending)
        if self._findings.errors:
            raise Reported
        if not self._records:
            raise Rejected("no_rows", f"The file holds no objects. {ONE_PER_LINE}")
        if not self._keys:
            raise Rejected("no_columns", f"The objects of the file have no keys. {ONE_PER_LINE}")

    def _full(self, pending: Sequence[dict[str, Any]]) -> bool:
        most = max(1, min(BATCH_ROWS, BATCH_CELLS // max(len(self._keys), 1)))
        return len(pending) >= most or (bool(pending) and self._pending_bytes >= BATCH_BYTES)

    def _accept(self, row: int, value: Any, pending: list[dict[str, Any]]) -> None:
        if not isinstance(value, dict):
            self._error("not_an_object", f"Line {row} is {_kind(value)}, not an object. {ONE_PER_LINE}", row)
            return
        for key in value:
            if key not in self._keys:
                self._add_key(key, row)
        self._gaps.extend([self._records] * (row - 1 - self._records - len(self._gaps)))
        self._records += 1
        if self._records > self._limits.rows:
            raise Rejected(
                "too_many_rows",
                f"The file has more than {self._limits.rows:,} rows. Split it or take a sample.",
            )
        pending.append(value)

    def _add_key(self, key: str, row: int) -> None:
        self._keys[key] = len(self._keys)
        if len(self._keys) > self._limits.columns:
            raise Rejected(
                "too_many_columns",
                f"By line {row} the objects use more than {self._limits.columns:,} different keys. "
                "Use the same keys in every object, and put varying names into values.",
                row=row,
            )

    def _values(self) -> Iterator[tuple[int, Any]]:
        with self._prepared.path.open("rb") as stream:
            stream.seek(self._prepared.start)
            if stream.read(1024).lstrip()[:1] == b"[":
                yield from self._listed()
                return
            stream.seek(self._prepared.start)
            done = 0
            for row, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), start=1):
                if len(line) >= LINE_BYTES and not line.endswith(b"\n"):
                    raise Rejected("line_too_long", f"Line {row} is longer than 32 MB. {ONE_PER_LINE}", row=row)
                done += len(line)
                self._pending_bytes += len(line)
                if row % 10_000 == 0:
                    self._on_read(done / max(self._prepared.size, 1))
                if line.strip():
                    yield from self._parsed(row, line)

    def _listed(self) -> Iterator[tuple[int, Any]]:
        """A JSON list is read whole, so its size is limited."""
        if self._prepared.size > LIST_BYTES:
            raise Rejected("json_list_too_large", f"The file is one JSON list of more than 64 MB. {ONE_PER_LINE}")
        content = self._prepared.path.read_bytes()[self._prepared.start :]
        try:
            values = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            values = self._lenient_list(content, error)
        yield from enumerate(values if isinstance(values, list) else [values], start=1)

    def _lenient_list(self, content: bytes, error: orjson.JSONDecodeError) -> Any:
        try:
            return json.loads(content, parse_int=_integer)
        except (ValueError, RecursionError):
            raise Rejected(
                "invalid_json",
                f"Line {error.lineno}, character {error.colno}: the JSON list breaks off or is malformed "
                f"({error.msg}). "
                f"Correct it there. {ONE_PER_LINE}",
                row=error.lineno,
            ) from error

    def _parsed(self, row: int, line: bytes) -> Iterator[tuple[int, Any]]:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            value = self._lenient(row, line, error)
            if value is None:
                return
        if isinstance(value, dict) and line.count(b'":') + line.count(b'" :') > len(value):
            self._refuse_repeated_keys(row, line)
        yield row, value

    def _lenient(self, row: int, line: bytes, error: orjson.JSONDecodeError) -> Any:
        """Python writes NaN and Infinity, which JSON does not have; nothing else is forgiven."""
        try:
            if b"NaN" in line or b"Infinity" in line:
                return json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):
            pass
        deep = "recursion" in error.msg.lower() or "depth" in error.msg.lower()
        reason = "is nested too deeply" if deep else f"is not complete, valid JSON ({error.msg})"
        self._error(
            "nesting_limit" if deep else "invalid_json",
            f"Line {row}, character {error.colno}: the line {reason}. {ONE_PER_LINE}",
            row,
        )
        return None

    def _refuse_repeated_keys(self, row: int, line: bytes) -> None:
        def pairs(items: list[tuple[str, Any]]) -> None:
            keys = [key for key, _ in items]
            for position, key in enumerate(keys):
                if key in keys[:position]:
                    self._error(
                        "duplicate_key",
                        f"Line {row}: the key {shown(key)} occurs twice in one object. Remove or rename one of them.",
                        row,
                        key,
                    )

        try:
            json.loads(line, object_pairs_hook=pairs, parse_int=_integer)
        except RecursionError:
            self._error("nesting_limit", f"Line {row} is nested too deeply. Flatten it into plain values.", row)

    def _error(self, code: str, detail: str, row: int, column: str | None = None) -> None:
        self._findings.error(code, detail, row=row, column=None if column is None else clean_header(column))
        if self._findings.count >= self._limits.problems:
            raise Reported

    def _write(self, out: Any, rows: Sequence[dict[str, Any]]) -> None:
        first = self._records - len(rows)
        columns = [self._column(key, [row.get(key) for row in rows], first) for key in self._keys]
        batch = pa.RecordBatch.from_arrays(columns, names=internal_names(len(columns)))
        with pa.ipc.new_stream(out, batch.schema) as writer:
            writer.write_batch(batch)
        self._batch_count += 1

    def _column(self, key: str, values: list[Any], first: int) -> Any:
        texts = [
            value if type(value) is str else None if value is None else self._text(key, value, first + index)
            for index, value in enumerate(values)
        ]
        limit = self._limits.cell_bytes
        for index, text in enumerate(texts):
            if text is not None and (len(text) * 4 > limit or "\x00" in text):
                self._check_text(key, text, first + index)
        try:
            return pa.array(texts, pa.string())
        except UnicodeEncodeError as error:
            raise Rejected(
                "invalid_text",
                f"Column {shown(key)} holds half a surrogate pair after line {self.row_number(first)}, "
                "which is not "
                "text. Write the file with another JSON library.",
                row=self.row_number(first),
                column=clean_header(key),
            ) from error

    def _check_text(self, key: str, text: str, record: int) -> None:
        row = self.row_number(record)
        size = len(text.encode("utf-8", "replace"))
        if size > self._limits.cell_bytes:
            raise Rejected(
                "cell_too_long",
                f"Line {row}, key {shown(key)}: the value holds {size:,} bytes, the limit is "
                f"{self._limits.cell_bytes:,}. Shorten it.",
                row=row,
                column=clean_header(key),
            )
        if "\x00" in text:
            raise Rejected(
                "nul_byte",
                f"Line {row}, key {shown(key)}: the text holds a NUL character. Remove it.",
                row=row,
                column=clean_header(key),
            )

    def _text(self, key: str, value: Any, record: int) -> str | None:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return repr(value) if not math.isnan(value) else None
        if isinstance(value, int):
            return str(value)
        if _depth(value, self._limits.nesting) > self._limits.nesting:
            raise Rejected(
                "nesting_limit",
                f"Line {self.row_number(record)}, key {shown(key)}: the value is nested more than "
                f"{self._limits.nesting} levels deep. Flatten it into plain values.",
                row=self.row_number(record),
                column=clean_header(key),
            )
        self._nested.add(key)
        return json.dumps(value, ensure_ascii=False, default=str)

    def _report(self, blank: list[int], renamed: list[int]) -> None:
        keys = list(self._keys)
        for position in (*blank, *renamed):
            self._findings.warn(
                "blank_header" if position in blank else "duplicate_header",
                f"The key {shown(keys[position])} is blank or equals another one once cleaned; the column "
                "is named "
                f"{shown(self.names[position])}. Rename the key.",
                column=self.names[position],
            )
        for key in self._nested:
            self._findings.warn(
                "nested_values",
                f"Column {shown(key)} holds lists or objects; they are kept as JSON text. Flatten them "
                "into columns of "
                "their own to use them as features.",
                column=self.names[self._keys[key]],
            )


def _depth(value: Any, ceiling: int) -> int:
    """Levels of lists and objects, counted no further than just past `ceiling`."""
    if ceiling < 0 or not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, ceiling - 1) for item in inner), default=0)


def _integer(digits: str) -> int | float:
    """Python refuses to parse thousands of digits as an integer, and a column could not hold it."""
    return int(digits) if len(digits) < 40 else float(digits)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
