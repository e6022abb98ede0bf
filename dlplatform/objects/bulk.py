"""Many small objects at once: the index is asked in bulk, and what lies close together in a file comes in one read."""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from django.core.files.storage import Storage

from dlplatform.engine.durable import write_pieces

from . import index
from .encodings import decode
from .errors import CorruptObject, DamagedEncoding, MissingObject
from .index import COMPOSITE, Scope
from .models import StoredObject
from .reading import THREADS, Contents, ahead
from .safetensors_layout import SLICE
from .storages import read_range
from .zstd import Bytes

ROWS_AT_ONCE = 1000
GAP = 64 * 1024  # bytes between two objects that are sooner read than asked past

Span = Sequence[StoredObject]


def fetch_many(
    storage: Storage, scope: Scope, files: Mapping[str, Path], beat: Callable[[int], None] = lambda _: None
) -> None:
    """Write objects to files, by their SHA-256, each verified and whole or not at all.

    ``beat`` is called in the caller's thread with the number of objects that were written since. Raises MissingObject
    and CorruptObject; what was written by then stays.
    """
    names = iter(files)
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(names, ROWS_AT_ONCE)):
            spans = _spans(_rows(scope, some))
            for written in ahead(pool, partial(_write_span, storage, scope, files), spans):
                beat(written)


def _rows(scope: Scope, names: Sequence[str]) -> list[StoredObject]:
    rows = index.find(scope, names)
    if gone := set(names) - rows.keys():
        raise MissingObject(", ".join(sorted(gone)[:3]))
    return list(rows.values())


def _spans(rows: Iterable[StoredObject]) -> Iterator[Span]:
    """Rows that are read together: neighbours in one file, at most a slice of it."""
    span: list[StoredObject] = []
    for row in sorted(rows, key=lambda one: (one.file, one.offset)):
        if span and not _joins(span, row):
            yield span
            span = []
        span.append(row)
    if span:
        yield span


def _joins(span: Span, row: StoredObject) -> bool:
    first, last = span[0], span[-1]
    near = row.offset - (last.offset + last.stored_size) <= GAP
    return bool(row.file) and row.file == first.file and near and row.offset + row.stored_size - first.offset <= SLICE


def _write_span(storage: Storage, scope: Scope, files: Mapping[str, Path], span: Span) -> int:
    for sha256, data in _contents(storage, scope, span):
        _write(files[sha256], data)
    return len(span)


def _contents(storage: Storage, scope: Scope, span: Span) -> Iterator[tuple[str, Bytes]]:
    first, last = span[0], span[-1]
    if first.codec == COMPOSITE or any(row.base for row in span) or first.size > SLICE:
        yield from ((row.sha256, _alone(storage, scope, row.sha256)) for row in span)
        return
    try:
        held = read_range(storage, first.file, first.offset, last.offset + last.stored_size - first.offset)
    except FileNotFoundError:  # its pack was rewritten meanwhile
        yield from ((row.sha256, _alone(storage, scope, row.sha256)) for row in span)
        return
    for row in span:
        start = row.offset - first.offset
        yield row.sha256, _verified(row, held[start : start + row.stored_size])


def _alone(storage: Storage, scope: Scope, sha256: str) -> bytes:
    contents = Contents(storage, scope, sha256)
    data = b"".join(contents.leaf(part, verify=True) for part, _ in contents.parts)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptObject(sha256)
    return data


def _verified(row: StoredObject, payload: bytes) -> Bytes:
    try:
        data = decode(row.codec, payload, size=row.size)
    except DamagedEncoding as error:
        raise CorruptObject(row.sha256, str(error)) from None
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise CorruptObject(row.sha256)
    return data


def _write(path: Path, data: Bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("wb") as out:
            write_pieces(out, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
