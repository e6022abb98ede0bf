"""New objects on their way in.

A batch writes files under hidden names, fsyncs them, gives them names that nothing ever had, and then inserts the rows
of all its objects in one transaction. A row is what makes an object visible: dying before that leaves files without
rows, which the collection removes, and nothing else.
"""

import hashlib
import os
import secrets
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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
from .parts import GROUPS_HELD, Part, PartsInOrder
from .reading import THREADS, Contents, ahead
from .safetensors_layout import PREFIX, SLICE, Region, fixed_slices, header_length, regions
from .storages import CHUNK, DurableFileStorage, WriteBehind, delete_files, save_files, start_writing_back
from .zstd import Bytes

SAMPLE = 256 * 1024


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
        """One pass: parts that the store has not yet are encoded while the next ones are read and hashed."""
        with path.open("rb") as source:
            before = _state(source.fileno())
            reading = PartsInOrder(source.fileno(), laid_out)
            known, ids = self._add_parts(reading, like)
            if _state(source.fileno()) != before:
                raise OSError(f"{path.name} changed while it was being stored")
        identity = ObjectIdentity(reading.sha256, size)
        if not self._has(identity.sha256):
            self._relied_on |= known.keys()
            row = self._row(identity.sha256, size, COMPOSITE, 0)
            row.parts = self._leaves(ids, laid_out, known)
            self._rows[row.sha256] = row
        return identity

    def _add_parts(self, reading: PartsInOrder, like: str | None) -> tuple[dict[str, StoredObject], list[str]]:
        """(those parts that were in the store, the ids of all in order)."""
        known: dict[str, StoredObject] = {}
        ids: list[str] = []
        ancestor = self._ancestor(like)
        with ThreadPoolExecutor(THREADS) as pool:
            under_way: deque[dict[str, Future[tuple[StoredObject, Bytes]]]] = deque()
            for group in reading.groups():
                by_id = {part.sha256: part for part in group}
                fresh = by_id.keys() - known.keys() - self._rows.keys() - set().union(*under_way)
                known |= index.find(self.scope, fresh)
                under_way.append({
                    sha256: pool.submit(self._encoded, ancestor, part)
                    for sha256, part in by_id.items() if sha256 in fresh and sha256 not in known
                })  # fmt: skip
                ids += (part.sha256 for part in group)
                self._beat(sum(part.region.size for part in group))
                if len(under_way) == GROUPS_HELD:
                    self._keep_all(under_way.popleft().values())
            for encodings in under_way:
                self._keep_all(encodings.values())
        return known, ids

    def _keep_all(self, encodings: Iterable[Future[tuple[StoredObject, Bytes]]]) -> None:
        for encoding in encodings:
            row, payload = encoding.result()
            self._keep(row, payload)
            self._beat(row.size)

    def _leaves(
        self, ids: Sequence[str], laid_out: Sequence[Region], known: Mapping[str, StoredObject]
    ) -> list[list[str | int]]:
        """What a composite consists of: a part that is one itself gives way to its own parts."""
        leaves: list[list[str | int]] = []
        for sha256, region in zip(ids, laid_out, strict=True):
            there = known.get(sha256) or self._rows.get(sha256)
            leaves += there.parts if there and there.codec == COMPOSITE else [[sha256, region.size]]
        return leaves

    def _ancestor(self, like: str | None) -> Ancestor | None:
        if like is None:
            return None
        with suppress(MissingObject):
            return Ancestor(Contents(self.storage, self.scope, like))
        return None

    def _encoded(self, ancestor: Ancestor | None, part: Part) -> tuple[StoredObject, Bytes]:
        base = ancestor.base_for(part.region) if ancestor else None
        base_bytes = ancestor.read(base) if ancestor and base else None
        encoded = encode(part.data, width=part.region.width, base=base_bytes)
        return self._stored(part.sha256, part.data, encoded, base)

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
