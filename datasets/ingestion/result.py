"""What an ingestion answers: plain dataclasses that go through JSON and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["ready", "rejected"]
Severity = Literal["error", "warning"]

COLUMN_TYPES = ("number", "integer", "boolean", "category", "datetime", "text", "image")
CHOOSABLE_TYPES = COLUMN_TYPES[:-1]  # whether a column holds images is told by the files, not by a wish
PROFILE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about the file.

    `row` counts as a spreadsheet numbers its rows: the header is row 1, the first record below it row 2,
    blank lines count, a line break inside quotes does not. For NDJSON it is the line; for Parquet, which
    has no header row, the first record is row 1. `file` is the path of a file inside an archive, a label.
    `detail` states the reason and the fix.
    """

    code: str
    detail: str
    severity: Severity = "error"
    row: int | None = None
    column: str | None = None
    file: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Problem:
        """Raises TypeError or KeyError when the shape is not that of a problem."""
        severity: Severity = "warning" if values["severity"] == "warning" else "error"
        return cls(
            code=str(values["code"]),
            detail=str(values["detail"]),
            severity=severity,
            row=None if values["row"] is None else int(values["row"]),
            column=None if values["column"] is None else str(values["column"]),
            file=None if values["file"] is None else str(values["file"]),
        )


class Rejected(Exception):
    """The file cannot be used; carries the problem to show."""

    def __init__(self, code: str, detail: str, *, row: int | None = None, column: str | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(code=code, detail=detail, row=row, column=column)


class Reported(Exception):
    """The errors are among the findings already; there is nothing to store."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as stored; `type` is one of COLUMN_TYPES."""

    name: str
    type: str
    nullable: bool

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Column:
        """Raises ValueError on an unknown type."""
        if values["type"] not in COLUMN_TYPES:
            raise ValueError("unknown column type")
        return cls(name=str(values["name"]), type=str(values["type"]), nullable=bool(values["nullable"]))


@dataclass(frozen=True, slots=True)
class Base:
    """The version that rows are added to: the files of its parts in row order, and its columns."""

    parts: Sequence[Path]
    columns: list[Column]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values, the inverse of `from_dict`."""
        parts = [str(part.resolve()) for part in self.parts]
        return {"parts": parts, "columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Base:
        """Raises KeyError, TypeError or ValueError when the shape is wrong."""
        return cls([Path(part) for part in values["parts"]], [Column.from_dict(item) for item in values["columns"]])


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file; `path` is its bare name inside the destination."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Part:
        """Raises KeyError, TypeError or ValueError when the shape is wrong."""
        return cls(
            path=str(values["path"]),
            rows=int(values["rows"]),
            bytes=int(values["bytes"]),
            sha256=str(values["sha256"]),
        )


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What an archive's images are handed over in: `count` records of `images.index`, in their order the images in
    `packs` files and their thumbnails in `thumbnail_packs` files; `bytes` of all images together.
    """

    count: int
    bytes: int
    packs: int
    thumbnail_packs: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageFiles:
        """Raises KeyError, TypeError or ValueError when the shape is wrong."""
        return cls(**{name: int(values[name]) for name in ("count", "bytes", "packs", "thumbnail_packs")})


@dataclass(slots=True)
class Detected:
    """How the file was read. `layout` of an archive of images is folders, table or flat."""

    format: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    quotechar: str | None = None
    header: bool | None = None
    compression: str | None = None
    layout: str | None = None


@dataclass(slots=True)
class IngestResult:
    """The outcome of one ingestion; `bytes` is the size of the source file as uploaded.

    `problem_count` counts every problem found, `problems` holds the first ones (Limits.problems). Where rows were
    added to a version, `rows`, `columns` and `profile` are those of the whole, and its rows are the first `kept`
    parts of that version followed by `parts`.
    """

    state: State
    rows: int = 0
    bytes: int = 0
    columns: list[Column] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    profile: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    detected: Detected = field(default_factory=Detected)
    kept: int = 0
    images: ImageFiles | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values, the inverse of `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IngestResult:
        """Raises KeyError, TypeError or ValueError when the shape is wrong: the child is not trusted."""
        if values["state"] not in ("ready", "rejected"):
            raise ValueError("unknown state")
        if not all(isinstance(entry, dict) for entry in values["profile"].values()):
            raise ValueError("the profile must be an object per column")
        return cls(
            state=values["state"],
            rows=int(values["rows"]),
            bytes=int(values["bytes"]),
            columns=[Column.from_dict(item) for item in values["columns"]],
            parts=[Part.from_dict(item) for item in values["parts"]],
            profile={str(name): entry for name, entry in values["profile"].items()},
            problems=[Problem.from_dict(item) for item in values["problems"]],
            problem_count=int(values["problem_count"]),
            detected=Detected(**values["detected"]),
            kept=int(values["kept"]),
            images=ImageFiles.from_dict(values["images"]) if values["images"] is not None else None,
        )


def rejected(problem: Problem, *, size: int = 0, detected: Detected | None = None) -> IngestResult:
    """A rejected result with one reason."""
    return IngestResult(
        state="rejected",
        bytes=size,
        problems=[problem],
        problem_count=1,
        detected=detected or Detected(),
    )


class Findings:
    """Collects problems; keeps the first `capacity`, counts all, and keeps errors over warnings."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def add(self, problem: Problem) -> None:
        self.count += 1
        kept = self.errors if problem.severity == "error" else self.warnings
        if len(kept) < self.capacity:
            kept.append(problem)

    def warn(
        self, code: str, detail: str, *, row: int | None = None, column: str | None = None, file: str | None = None
    ) -> None:
        self.add(Problem(code=code, detail=detail, severity="warning", row=row, column=column, file=file))

    def error(self, code: str, detail: str, *, row: int | None = None, column: str | None = None) -> None:
        self.add(Problem(code=code, detail=detail, severity="error", row=row, column=column))

    def listed(self) -> list[Problem]:
        """Errors first, at most `capacity` in all."""
        return (self.errors + self.warnings)[: self.capacity]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 file`, `1,200 files`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def shown(value: object, length: int = 60) -> str:
    """A value quoted for a message: control characters replaced, cut to `length` characters."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value)[: length + 1])
    return f"“{text[:length]}…”" if len(text) > length else f"“{text}”"
