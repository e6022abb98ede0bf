"""New objects on their way in.

A batch writes files under hidden names, fsyncs them, gives them names that nothing ever had, and then inserts the rows
of all its objects in one transaction. A row is what makes an object visible: dying before that leaves files without
rows, which the collection removes, and nothing else.
"""

import hashlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Self

from django.core.files.storage import Storage

from dlplatform.engine.durable import write_pieces

from . import index
from .ancestors import Ancestor
from .encodings import DELTA, RAW, Encoded, encode, shrinks
from .errors import MissingObject
from .index import COMPOSITE, Scope, Superseded
from .models import StoredObject
from .packs import SMALL, PackWriter
from .reading import THREADS, Contents, ahead
from .safetensors_layout import PREFIX, SLICE, Region, fixed_slices, header_length, regions
from .storages import CHUNK, DurableFileStorage, WriteBehind, delete_files, save_files, start_writing_back
from .zstd import Bytes

SAMPLE = 256 * 1024

_buffers = threading.local()


@dataclass(frozen=True)
class ObjectIdentity:
    """What names an object: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: int


def incoming_folder(storage: Storage) -> Path:
    """Where files wait that have no name yet: on the file system of their place when that is on this machine."""
    if isinstance(storage, DurableFileStorage):
        return Path(storage.location) / ".incoming"
    return Path(tempfile.gettempdir())


class IncomingBytes:
    """A hidden file that is being written: bytes are hashed as they come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder)
        self.path = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()
        self._behind = WriteBehind(descriptor)
        self.size = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self._hash.update(chunk)
        write_pieces(self._file, chunk)
        self.size += len(chunk)
        self._behind.reached(self.size)

    def finish(self) -> ObjectIdentity:
        self._file.close()
        return ObjectIdentity(self._hash.hexdigest(), self.size)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Batch:
    """Objects that become visible together. Use as a context; without ``commit`` nothing of it stays.

    ``beat`` is called at least every few seconds, in the thread that owns the batch, with the number of bytes that were
    worked through since: every byte of a file counts twice. What it raises ends the batch.
    """

    def __init__(self, storage: Storage, scope: Scope, beat: Callable[[int], None] = lambda _: None) -> None:
        self.storage = storage
        self.scope = scope
        self._beat = beat
        self.folder = incoming_folder(storage)
        self._token = secrets.token_hex(8)
        self._rows: dict[str, StoredObject] = {}
        self._relied_on: set[str] = set()
        self._written: list[tuple[Path, str]] = []
        self._pack = PackWriter(self.folder, lambda number: self._name(f"pack-{number}"))

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._pack.close()  # on a full disk its last bytes fail once more
        for path, _ in [*self._written, *self._pack.files]:
            path.unlink(missing_ok=True)

    # --- adding -------------------------------------------------------------------------------------

    def add_file(self, path: Path, like: str | None = None) -> ObjectIdentity:
        """A file that somebody else wrote, left where it is. ``like`` is an earlier version of it in the store."""
        size = path.stat().st_size
        laid_out = _regions_of(path, size)
        if laid_out is not None:
            return self._add_composite(path, size, laid_out, like)
        if size <= SLICE:
            return self.add_bytes(path.read_bytes())
        return self._add_copy(path)

    def add_bytes(self, data: bytes) -> ObjectIdentity:
        identity = ObjectIdentity(hashlib.sha256(data).hexdigest(), len(data))
        if not self._has(identity.sha256):
            self._keep(*self._stored(identity.sha256, data, encode(data), None))
        return identity

    def add_many(self, contents: Sequence[bytes]) -> list[ObjectIdentity]:
        """Objects of at most a few megabytes; the index is asked once for all of them."""
        identities = [ObjectIdentity(hashlib.sha256(data).hexdigest(), len(data)) for data in contents]
        by_id = {identity.sha256: data for identity, data in zip(identities, contents, strict=True)}
        self._relied_on |= index.find(self.scope, by_id.keys() - self._rows.keys()).keys()
        missing = {sha256: data for sha256, data in by_id.items() if not self._holds(sha256)}
        with ThreadPoolExecutor(THREADS) as pool:
            for row, payload in ahead(pool, self._encoded_alone, missing.items()):
                self._keep(row, payload)
                self._beat(row.size)
        return identities

    def _encoded_alone(self, missing: tuple[str, bytes]) -> tuple[StoredObject, Bytes]:
        sha256, data = missing
        return self._stored(sha256, data, encode(data), None)

    def add_written(self, path: Path, identity: ObjectIdentity) -> bool:
        """Take over a complete file of the incoming folder as it is; False when its content is in the store."""
        if self._has(identity.sha256):
            return False
        row = self._row(identity.sha256, identity.size, RAW, identity.size)
        row.file = self._name(identity.sha256)
        self._written.append((path, row.file))
        self._rows[row.sha256] = row
        return True

    def _add_copy(self, path: Path) -> ObjectIdentity:
        incoming = IncomingBytes(self.folder)
        try:
            with path.open("rb") as source:
                while chunk := source.read(CHUNK):
                    incoming.write(chunk)
                    self._beat(2 * len(chunk))
            identity = incoming.finish()
            taken = self.add_written(incoming.path, identity)
        except BaseException:
            incoming.discard()
            raise
        if not taken:
            incoming.discard()
        return identity

    def _add_composite(self, path: Path, size: int, laid_out: list[Region], like: str | None) -> ObjectIdentity:
        """Two passes: hashes of the whole and of the parts, then encodings of those that the store has not yet."""
        with path.open("rb") as source, ThreadPoolExecutor(THREADS) as pool:
            before = _state(source.fileno())
            whole, ids = self._hashes(pool, source.fileno(), laid_out)
            identity = ObjectIdentity(whole, size)
            if not self._has(identity.sha256):
                parts = self._add_parts(pool, source.fileno(), laid_out, ids, like)
                row = self._row(identity.sha256, size, COMPOSITE, 0)
                row.parts = parts
                self._rows[row.sha256] = row
            if _state(source.fileno()) != before:
                raise OSError(f"{path.name} changed while it was being stored")
        return identity

    def _hashes(self, pool: ThreadPoolExecutor, source: int, laid_out: list[Region]) -> tuple[str, list[str]]:
        """SHA-256 of the whole and of every region. Each is read once: this thread hashes the whole, another one the
        region meanwhile."""
        whole, ids = hashlib.sha256(), []
        buffers = cycle([memoryview(bytearray(max(region.size for region in laid_out))) for _ in range(2)])
        last: Future[str] | None = None
        for region in laid_out:
            content = _fill(source, next(buffers)[: region.size], region.start)
            if last is not None:
                ids.append(last.result())
            last = pool.submit(_hash_of, content)
            whole.update(content)
            self._beat(region.size)
        return whole.hexdigest(), [*ids, last.result()] if last else ids

    def _add_parts(
        self, pool: ThreadPoolExecutor, source: int, laid_out: list[Region], ids: list[str], like: str | None
    ) -> list[list[str | int]]:
        known = index.find(self.scope, set(ids) - self._rows.keys())
        self._relied_on |= known.keys()
        missing = {sha256: region for sha256, region in zip(ids, laid_out, strict=True) if not self._holds(sha256)}
        ancestor = self._ancestor(like) if missing else None
        for row, payload in ahead(pool, partial(self._encoded, source, ancestor), missing.items()):
            self._keep(row, payload)
            self._beat(row.size)
        parts: list[list[str | int]] = []
        for sha256, region in zip(ids, laid_out, strict=True):
            there = known.get(sha256) or self._rows.get(sha256)
            parts += there.parts if there and there.codec == COMPOSITE else [[sha256, region.size]]
        return parts

    def _ancestor(self, like: str | None) -> Ancestor | None:
        if like is None:
            return None
        with suppress(MissingObject):
            return Ancestor(Contents(self.storage, self.scope, like))
        return None

    def _encoded(
        self, source: int, ancestor: Ancestor | None, missing: tuple[str, Region]
    ) -> tuple[StoredObject, Bytes]:
        sha256, region = missing
        data = _read(source, region)
        base = ancestor.base_for(region) if ancestor else None
        base_bytes = ancestor.read(base) if ancestor and base else None
        encoded = encode(data, width=region.width, base=base_bytes)
        return self._stored(sha256, data, encoded, base)

    # --- rows and files -----------------------------------------------------------------------------

    def _has(self, sha256: str) -> bool:
        if not self._holds(sha256):
            self._relied_on |= index.find(self.scope, [sha256]).keys()
        return self._holds(sha256)

    def _holds(self, sha256: str) -> bool:
        return sha256 in self._rows or sha256 in self._relied_on

    def _row(self, sha256: str, size: int, codec: str, stored_size: int) -> StoredObject:
        return StoredObject(
            storage=self.scope.storage, organization=self.scope.organization, sha256=sha256, size=size, codec=codec,
            stored_size=stored_size,
        )  # fmt: skip

    def _stored(
        self, sha256: str, data: Bytes, encoded: Encoded, base: StoredObject | None
    ) -> tuple[StoredObject, Bytes]:
        """The row, and the payload unless it is in a file already; packs belong to the thread that owns the batch."""
        row = self._row(sha256, len(data), encoded.codec, len(encoded.payload))
        if encoded.codec == DELTA:
            assert base is not None
            row.base, row.depth = base.sha256, base.depth + 1
        if len(encoded.payload) < SMALL:
            return row, bytes(encoded.payload)  # what it was read into is used again
        row.file = self._name(sha256)
        self._write(row.file, encoded.payload)
        return row, b""

    def _write(self, name: str, payload: Bytes) -> None:
        descriptor, path = tempfile.mkstemp(dir=self.folder)
        self._written.append((Path(path), name))
        with os.fdopen(descriptor, "wb") as out:
            write_pieces(out, payload)
            out.flush()
            start_writing_back(out.fileno(), 0, len(payload))

    def _keep(self, row: StoredObject, payload: Bytes) -> None:
        if not row.file:
            row.file, row.offset = self._pack.add(payload)
        if row.base:
            self._relied_on.add(row.base)
        self._rows[row.sha256] = row

    def _name(self, stem: str) -> str:
        return f"{self.scope.prefix}/{self._token[:2]}/{stem}.{self._token}"

    # --- the end ------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything durable and visible. Raises Superseded, and then nothing of the batch is in the store."""
        self._pack.close()
        files = [*self._written, *self._pack.files]
        save_files(self.storage, files, lambda: self._beat(0))
        try:
            beaten = index.add(self.scope, self._rows.values(), self._relied_on)
        except Superseded:
            delete_files(self.storage, [name for _, name in files])
            raise
        # Any other error may have come after the rows were committed: such files are left to the collection.
        lost = {row.sha256 for row in beaten}
        kept = {row.file for row in self._rows.values() if row.sha256 not in lost}
        delete_files(self.storage, [name for _, name in files if name not in kept])


def _regions_of(path: Path, size: int) -> list[Region] | None:
    """How a file is cut, or None when it is kept in one piece."""
    with path.open("rb") as source:
        length = header_length(source.read(PREFIX), size)
        found = regions(source.read(length), size) if length is not None else None
        if found is None and size > SLICE:
            source.seek(size // 2)
            found = fixed_slices(size) if shrinks(source.read(SAMPLE)) else None
    return found


def _state(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


def _hash_of(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(source: int, region: Region) -> memoryview:
    """The bytes of a region, in memory that the thread uses again for the next one: fresh pages cost more than reading."""
    if len(getattr(_buffers, "read", b"")) < region.size:
        _buffers.read = bytearray(max(region.size, SLICE))
    return _fill(source, memoryview(_buffers.read)[: region.size], region.start)


def _fill(source: int, buffer: memoryview, start: int) -> memoryview:
    if os.preadv(source, [buffer], start) != len(buffer):
        raise OSError("a file became shorter while it was being stored")
    return buffer
