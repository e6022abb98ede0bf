"""A record of the prediction log on its way: in memory, to the process that writes it, and as a line for PostgreSQL.

Without Django, which the process that writes needs only for what is rare.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\0", ""))


@dataclass(frozen=True, slots=True)
class Sent:
    """An image as it was sent: the row's position, the column, and base64 or a data URL."""

    position: int
    name: str
    text: str


@dataclass(slots=True)
class Entry:
    """A record before it is in the database, with the columns of `PredictionRecord`: the model's own objects take ten
    times as long to make, in the path of the request."""

    request_id: UUID
    deployment_id: UUID
    variant_id: UUID
    role: str
    revision: int
    propensity: float | None
    key: str
    instances: Sequence[dict[str, Any]]
    predictions: Sequence[dict[str, Any]] | None
    milliseconds: float
    error: str
    at: datetime
    organization_id: UUID | None = None
    images: tuple[Sent, ...] = ()  # of its rows, which name them by hash until they are stored
    packed: bytes = (
        b""  # for the process that writes, once `pack` was called; then its rows and predictions are in it alone
    )

    @property
    def size(self) -> int:
        """Characters of its images."""
        return sum(len(image.text) for image in self.images) if self.images else 0

    def pack(self) -> None:
        """Do now, while nobody waits, what `packed` would do for a whole batch at once, which keeps Python's lock from
        those who answer for milliseconds; and let go of rows and predictions, at which the collector of garbage would look again and
        again while they wait. What cannot be packed is left as it is."""
        with contextlib.suppress(TypeError):
            self.packed = _packed(self)
            self.instances, self.predictions = (), None

    def opened(self) -> "Entry":
        """As it was before `pack`."""
        if not self.packed:
            return self
        return replace(unpacked(orjson.loads(self.packed)), organization_id=self.organization_id, images=self.images)


COLUMNS = tuple(field.name for field in fields(Entry))[:-3]
DEPLOYMENT, INSTANCES, AT = map(COLUMNS.index, ("deployment_id", "instances", "at"))


def told(record: Entry) -> tuple[Any, ...]:
    """Its columns in the order of COLUMNS, rows and predictions as the text of their JSON."""
    return (
        record.request_id, record.deployment_id, record.variant_id, record.role, record.revision, record.propensity,
        record.key, _json(record.instances), None if record.predictions is None else _json(record.predictions),
        record.milliseconds, record.error, record.at,
    )  # fmt: skip


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a number of more digits than orjson knows, or more levels
        pass
    try:
        return json.dumps(value)
    except (RecursionError, TypeError, ValueError):  # no model reads such rows: the record without them
        return "[]"


def line_of(columns: Sequence[Any]) -> str:
    """What `told` tells as a line of COPY's text format."""
    return "\t".join("\\N" if value is None else _escaped(str(value)) for value in columns) + "\n"


def _escaped(text: str) -> str:
    """For COPY; without NUL, which PostgreSQL cannot hold in a text."""
    for character, escape in ESCAPES:
        if character in text:
            text = text.replace(character, escape)
    return text


def _packed(record: Entry) -> bytes:
    return orjson.dumps(told(record))


def packed(batch: Sequence[Entry], urgent: bool = False) -> bytes:
    """Records as one line for the process that writes, which need not rest while it does where that is ``urgent``. Raises TypeError
    for a text that is no Unicode."""
    records = b",".join([record.packed or _packed(record) for record in batch])
    images = {
        str(position): [record.organization_id, [[one.position, one.name, one.text] for one in record.images]]
        for position, record in enumerate(batch)
        if record.images
    }
    parts = (orjson.dumps(urgent), orjson.dumps(images), records)
    return b'{"urgent":%b,"images":%b,"records":[%b]}\n' % parts


class Opened:
    """A record that came packed, of which only what its images need is read. ``told`` gives its columns, as they came but for its
    rows."""

    def __init__(self, columns: Sequence[Any], images: Sequence[Any]) -> None:
        """``images``: organization and images, as `packed` writes them."""
        self._columns = list(columns)
        self.deployment_id = UUID(columns[DEPLOYMENT])
        self.organization_id = images[0] and UUID(images[0])
        self.instances: Sequence[dict[str, Any]] = json.loads(columns[INSTANCES])
        self.images = tuple(Sent(*one) for one in images[1])
        self.at = datetime.fromisoformat(columns[AT])

    @property
    def told(self) -> list[Any]:
        self._columns[INSTANCES] = _json(self.instances)
        return self._columns


def unpacked(columns: Sequence[Any]) -> Entry:
    """A record as it was before `packed`, without its images."""
    values = dict(zip(COLUMNS, columns, strict=True))
    for name in ("request_id", "deployment_id", "variant_id"):
        values[name] = UUID(values[name])
    for name in ("instances", "predictions"):
        values[name] = None if values[name] is None else json.loads(values[name])
    values["at"] = datetime.fromisoformat(values["at"])
    return Entry(**values)
