"""Reading one object: where its bytes are is asked once, then they come in pieces, decoded and verified."""

import hashlib
import io
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from django.core.files.storage import Storage

from .encodings import decode
from .errors import CorruptObject, DamagedEncoding, MissingObject
from .index import COMPOSITE, Scope, with_all_it_needs
from .models import StoredObject
from .safetensors_layout import SLICE
from .storages import announce, read_range
from .zstd import Bytes

THREADS = 2
IN_FLIGHT = 3
ANNOUNCED = 3  # leaves: what the disk reads meanwhile is in the page cache, and not in our memory

Given = TypeVar("Given")
Made = TypeVar("Made")


def unindexed_name(scope: Scope, sha256: str) -> str:
    """Where an object lies that was stored before there was an index. Raises MissingObject for what is no hash."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise MissingObject(sha256)
    return f"{scope.prefix}/{sha256[:2]}/{sha256}"


class Contents:
    """The leaves of an object in order, and their bytes."""

    def __init__(self, storage: Storage, scope: Scope, sha256: str) -> None:
        """Raises MissingObject."""
        self.storage = storage
        self.scope = scope
        self.sha256 = sha256
        self._spans: dict[str, tuple[int, int]] = {}
        self._held: dict[str, tuple[int, bytes]] = {}
        self._locate()

    def _locate(self) -> None:
        self.rows = with_all_it_needs(self.scope, self.sha256) or self._unindexed()
        self.row = self.rows[self.sha256]
        composite = self.row.codec == COMPOSITE
        self.parts: list[tuple[str, int]] = [(sha256, size) for sha256, size in self.row.parts]
        if not composite:
            self.parts = [(self.sha256, self.row.size)]
        self._spans, self._held = self._shared_spans(), {}

    def _unindexed(self) -> dict[str, StoredObject]:
        name = unindexed_name(self.scope, self.sha256)
        if not self.storage.exists(name):
            raise MissingObject(self.sha256)
        size = self.storage.size(name)
        row = StoredObject(
            storage=self.scope.storage, organization=self.scope.organization, sha256=self.sha256, size=size,
            stored_size=size, codec=StoredObject.Codec.RAW, file=name,
        )  # fmt: skip
        return {self.sha256: row}

    @property
    def streamed(self) -> bool:
        """Whether this is one file as it is, of any size, and thus read in blocks instead of at once."""
        return self.row.codec == StoredObject.Codec.RAW and self.row.size > SLICE

    def leaf(self, sha256: str, *, verify: bool) -> Bytes:
        """The bytes of a leaf. Raises CorruptObject and MissingObject."""
        try:
            data = self._decoded(sha256)
        except FileNotFoundError:  # its file was collected after its bytes had moved to a new one
            self._locate()
            try:
                data = self._decoded(sha256)
            except FileNotFoundError:
                raise MissingObject(sha256) from None
        if verify and hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptObject(sha256)
        return data

    def _decoded(self, sha256: str) -> Bytes:
        data: Bytes | None = None
        for row in reversed(self._chain(sha256)):
            try:
                data = decode(row.codec, self._payload(row), size=row.size, base=data)
            except DamagedEncoding as error:
                raise CorruptObject(row.sha256, str(error)) from None
        assert data is not None
        return data

    def _chain(self, sha256: str) -> list[StoredObject]:
        """A leaf, its base, the base of that one, …"""
        chain = []
        while sha256:
            row = self.rows.get(sha256)
            if row is None:
                raise MissingObject(sha256)
            chain.append(row)
            sha256 = row.base
        return chain

    def _payload(self, row: StoredObject) -> bytes:
        span = self._spans.get(row.file)
        if span is None:
            payload = read_range(self.storage, row.file, row.offset, row.stored_size)
        else:
            payload = self._from_span(row, span)
        if len(payload) != row.stored_size:
            raise CorruptObject(row.sha256, f"{len(payload)} stored bytes instead of {row.stored_size}")
        return payload

    def _from_span(self, row: StoredObject, span: tuple[int, int]) -> bytes:
        start, end = span
        held = self._held.get(row.file)
        if held is None:
            held = start, read_range(self.storage, row.file, start, end - start)
            self._held[row.file] = held
        return held[1][row.offset - start : row.offset - start + row.stored_size]

    def _shared_spans(self) -> dict[str, tuple[int, int]]:
        """Ranges of packs that hold several of the rows: read at once, they cost one request instead of many."""
        spans: dict[str, tuple[int, int]] = {}
        shared = set()
        for row in self.rows.values():
            start, end = row.offset, row.offset + row.stored_size
            if row.file in spans:
                shared.add(row.file)
                start, end = min(start, spans[row.file][0]), max(end, spans[row.file][1])
            spans[row.file] = start, end
        return {file: spans[file] for file in shared if file and spans[file][1] - spans[file][0] <= SLICE}

    def in_order(self) -> Iterator[Bytes]:
        """The leaves' bytes. Not verified one by one: for a reader that hashes the whole.

        One leaf is decoded while the reader has another: decoding takes less than hashing, so that more threads would
        only take turns, and every leaf ahead is 8 MiB of memory.
        """
        if len(self.parts) == 1:
            yield self.leaf(self.parts[0][0], verify=False)
            return
        with ThreadPoolExecutor(1) as pool:
            yield from ahead(pool, lambda part: self.leaf(part[0], verify=False), self._announced(), in_flight=2)

    def _announced(self) -> Iterator[tuple[str, int]]:
        """The leaves, where the disk is told of each a little before it is read."""
        for index, part in enumerate(self.parts):
            if index + ANNOUNCED < len(self.parts):
                for row in self._chain(self.parts[index + ANNOUNCED][0]):
                    announce(self.storage, row.file, row.offset, row.stored_size)
            yield part


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], *, in_flight: int = IN_FLIGHT
) -> Iterator[Made]:
    """Results in order, with a few computed ahead of the one that is asked for."""
    pending: deque[Future[Made]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) == in_flight:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class LeafReader(io.RawIOBase):
    """An object as a file: seekable, one decoded leaf in memory. Leaves are verified if the caller wants it."""

    def __init__(self, contents: Contents, *, verify: bool) -> None:
        super().__init__()
        self._contents = contents
        self._verify = verify
        self._starts = [0]
        for _, size in contents.parts:
            self._starts.append(self._starts[-1] + size)
        self._position = 0
        self._index = -1
        self._leaf = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        if self._position >= self._starts[-1]:
            return 0
        index = bisect_right(self._starts, self._position) - 1
        if index != self._index:
            leaf = self._contents.leaf(self._contents.parts[index][0], verify=self._verify)
            self._leaf, self._index = memoryview(leaf), index
        start = self._position - self._starts[index]
        piece = self._leaf[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class RangeReader(io.RawIOBase):
    """A file of a storage that is not on this machine, read by ranges."""

    def __init__(self, storage: Storage, row: StoredObject) -> None:
        super().__init__()
        self._storage = storage
        self._row = row
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._row.size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        wanted = min(len(buffer), self._row.stored_size - self._position)
        if wanted <= 0:
            return 0
        piece = read_range(self._storage, self._row.file, self._row.offset + self._position, wanted)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
