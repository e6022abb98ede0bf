"""The object store, from outside: bytes in, named by their SHA-256; bytes out, verified.

Objects belong to the organization that wrote them: a store shared by all would answer "does this file exist
elsewhere". How they are cut, encoded and packed shows nowhere.
"""

import hashlib
import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, TypeVar, cast
from uuid import UUID

from django.core.files.storage import Storage, storages

from dlplatform.engine.durable import write_pieces

from . import bulk, index
from .errors import CorruptObject, MissingObject
from .index import Scope, Superseded
from .reading import Contents, LeafReader, RangeReader, unindexed_name
from .safetensors_layout import SLICE
from .storages import CHUNK, DurableFileStorage
from .writing import Batch, IncomingBytes, ObjectIdentity, incoming_folder
from .zstd import Bytes

ATTEMPTS = 5

Added = TypeVar("Added")

__all__ = [
    "CHUNK", "CorruptObject", "DurableFileStorage", "IncomingFile", "MissingObject", "ObjectIdentity", "ObjectStore",
]  # fmt: skip


class ObjectStore:
    """The objects of one organization in one of the configured storages ("models" or "datasets")."""

    def __init__(self, storage: str, organization: UUID) -> None:
        self.storage: Storage = storages[storage]
        self.scope = Scope(storage, organization)
        self.prefix = self.scope.prefix

    def incoming_folder(self) -> Path:
        return incoming_folder(self.storage)

    # --- in -----------------------------------------------------------------------------------------

    def put_file(self, path: Path, like: str | None = None) -> ObjectIdentity:
        """Store a file that somebody else wrote; the file itself is left where it is.

        ``like`` is the SHA-256 of an earlier version of a safetensors file: tensors may then be kept as their
        difference from it.
        """
        return self.put_files([(path, like)])[0]

    def put_files(
        self, files: Sequence[tuple[Path, str | None]], beat: Callable[[int], None] = lambda _: None
    ) -> list[ObjectIdentity]:
        """Store several files, each with its ``like``; all of them become visible together.

        ``beat`` is told of the work as it goes on, see `writing.Batch`.
        """
        return self._batched(lambda batch: [batch.add_file(path, like) for path, like in files], beat)

    def put_bytes(self, data: bytes) -> ObjectIdentity:
        if len(data) > SLICE:
            return self.put_stream([data])
        return self._batched(lambda batch: batch.add_bytes(data))

    def put_many(self, contents: Sequence[bytes], beat: Callable[[int], None] = lambda _: None) -> list[ObjectIdentity]:
        """Store many small objects that are in memory; all of them become visible together."""
        return self._batched(lambda batch: batch.add_many(contents), beat)

    def put_stream(self, chunks: Iterable[bytes]) -> ObjectIdentity:
        incoming = IncomingFile(self)
        try:
            for chunk in chunks:
                incoming.write(chunk)
            return incoming.commit()
        except BaseException:
            incoming.discard()
            raise

    def adopt(self, path: Path, identity: ObjectIdentity) -> None:
        """Take over a complete file of the incoming folder; two writers of the same object are harmless."""
        self._batched(lambda batch: batch.add_written(path, identity))
        path.unlink(missing_ok=True)

    def _batched(self, fill: Callable[[Batch], Added], beat: Callable[[int], None] = lambda _: None) -> Added:
        """A batch, made anew when the collection took something away that it relied on."""
        for _ in range(ATTEMPTS):
            with suppress(Superseded), Batch(self.storage, self.scope, beat) as batch:
                added = fill(batch)
                batch.commit()
                return added
        raise Superseded(f"the objects of {self.prefix} change faster than they can be written")

    def revive(self, ids: Iterable[str]) -> None:
        """Keep objects that nothing referred to for a while. Raises MissingObject when one is gone already."""
        wanted = set(ids)
        try:
            index.touch(self.scope, wanted)
        except Superseded:
            gone = wanted - index.find(self.scope, wanted).keys()
            raise MissingObject(", ".join(sorted(gone))) from None

    # --- out ----------------------------------------------------------------------------------------

    def exists(self, sha256: str) -> bool:
        if index.find(self.scope, [sha256]):
            return True
        with suppress(MissingObject):
            return self.storage.exists(unindexed_name(self.scope, sha256))
        return False

    def open(self, sha256: str, *, verify: bool = True) -> IO[bytes]:
        """The object as a seekable file; raises MissingObject, and CorruptObject while it is read.

        With ``verify`` every piece of at most 8 MiB is verified before a byte of it is returned. One large file
        that is kept as it is (an upload, a Parquet part) is not: whoever reads all of it compares its hash.
        """
        contents = self._contents(sha256)
        if not contents.streamed:
            return io.BufferedReader(LeafReader(contents, verify=verify), 64 * 1024)  # type: ignore[return-value]
        return self._opened(contents)

    def _opened(self, contents: Contents) -> IO[bytes]:
        if isinstance(self.storage, DurableFileStorage):
            return cast(IO[bytes], self.storage.open(contents.row.file, "rb"))
        return io.BufferedReader(RangeReader(self.storage, contents.row), SLICE)  # type: ignore[return-value]

    def chunks(self, sha256: str) -> Iterator[Bytes]:
        """The object's bytes, verified: the last chunk is held back until the hash is known to match.

        Raises MissingObject at once, and CorruptObject instead of the last chunk.
        """
        return _verified(sha256, self._pieces(self._contents(sha256)))

    def read(self, sha256: str) -> bytes:
        return b"".join(self.chunks(sha256))

    def fetch(self, sha256: str, destination: Path) -> None:
        """Write the verified object to a file, whole or not at all."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(6)}")
        try:
            with temporary.open("wb") as out:
                copy_chunks(self.chunks(sha256), out)
            temporary.replace(destination)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def fetch_many(self, files: Mapping[str, Path], beat: Callable[[int], None] = lambda _: None) -> None:
        """Write many verified objects to files, by their SHA-256; see `bulk.fetch_many`."""
        bulk.fetch_many(self.storage, self.scope, files, beat)

    def local_path(self, sha256: str) -> Path | None:
        """The file of this machine whose whole content is the object, or None when there is no such file."""
        if not isinstance(self.storage, DurableFileStorage):
            return None
        row = self._contents(sha256).row
        path = Path(self.storage.path(row.file)) if row.codec == row.Codec.RAW and row.offset == 0 else None
        return path if path and path.exists() and path.stat().st_size == row.size else None

    def _contents(self, sha256: str) -> Contents:
        return Contents(self.storage, self.scope, sha256)

    def _pieces(self, contents: Contents) -> Iterator[Bytes]:
        if not contents.streamed:
            yield from contents.in_order()
            return
        with self._opened(contents) as source:
            while chunk := source.read(CHUNK):
                yield chunk


class IncomingFile(IncomingBytes):
    """A file that is being received: written as it comes, then committed to the store or discarded.

    The final name is known only when the last byte has come, so the bytes wait in a hidden folder of the
    same file system and are renamed. They are kept as they are: whoever sends is not made to wait for encodings.
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store.incoming_folder())
        self._store = store

    def commit(self) -> ObjectIdentity:
        """Make the bytes a durable object of the store and return its identity."""
        identity = self.finish()
        self._store.adopt(self.path, identity)
        return identity


def _verified(sha256: str, pieces: Iterator[Bytes]) -> Iterator[Bytes]:
    digest = hashlib.sha256()
    held: Bytes | None = None
    for piece in pieces:
        digest.update(piece)
        if held is not None:
            yield held
        held = piece
    if digest.hexdigest() != sha256:
        raise CorruptObject(sha256)
    if held is not None:
        yield held


def copy_chunks(chunks: Iterator[Bytes], out: BinaryIO | IO[bytes]) -> None:
    for chunk in chunks:
        write_pieces(out, chunk)
