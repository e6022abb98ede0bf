"""Content-addressed objects over Django's STORAGES.

An object is an immutable sequence of bytes named by its SHA-256. Objects live under the organization that
wrote them: a store shared by all would answer "does this file exist elsewhere".
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO
from uuid import UUID

from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, Storage, storages

CHUNK = 4 * 1024 * 1024
WRITE_BACK = 8 * 1024 * 1024


class CorruptObject(Exception):
    """The bytes that the storage returned do not have the hash that names them."""


class MissingObject(Exception):
    """No object of that name is in the store."""


@dataclass(frozen=True)
class StoredObject:
    """Identity of an object: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int


class DurableFileStorage(FileSystemStorage):
    """Local files that are whole or absent: temporary name, fsync, rename, fsync of the folder."""

    def _save(self, name: str, content: File) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            with temporary.open("wb") as out:
                for chunk in content.chunks(CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            publish(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return name

    def adopt(self, source: Path, name: str) -> None:
        """Take over a file that is already on this file system, without a copy."""
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        publish(source, target)


def publish(temporary: Path, target: Path) -> None:
    """Rename a fsynced file to its final name and make the name itself durable."""
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def start_writing_back(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with these bytes now, so that the fsync at the end finds little left to wait for.

    POSIX_FADV_DONTNEED starts the write-back of changed pages and keeps them (posix_fadvise(2), Linux).
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


class IncomingFile:
    """A file that is being received: bytes are hashed and written as they come, then committed or discarded.

    The final name is known only when the last byte has come, so the bytes wait in a hidden folder of the
    same file system and are renamed.
    """

    def __init__(self, store: "ObjectStore") -> None:
        folder = store.incoming_folder()
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder)
        self.path = Path(name)
        self._store = store
        self._file = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()
        self._on_its_way = 0
        self.size = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)
        if self.size - self._on_its_way >= WRITE_BACK:
            start_writing_back(self._file.fileno(), self._on_its_way, self.size - self._on_its_way)
            self._on_its_way = self.size

    def commit(self) -> StoredObject:
        """Make the bytes a durable object of the store and return its identity."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        stored = StoredObject(self._hash.hexdigest(), self.size)
        self._store.adopt(self.path, stored)
        return stored

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class ObjectStore:
    """The objects of one organization in one of the configured storages ("models" or "datasets")."""

    def __init__(self, storage: str, organization: UUID) -> None:
        self.storage: Storage = storages[storage]
        self.prefix = organization.hex

    def name(self, sha256: str) -> str:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise MissingObject(sha256)
        return f"{self.prefix}/{sha256[:2]}/{sha256}"

    def incoming_folder(self) -> Path:
        if isinstance(self.storage, DurableFileStorage):
            return Path(self.storage.location) / ".incoming"
        return Path(tempfile.gettempdir())

    def exists(self, sha256: str) -> bool:
        return self.storage.exists(self.name(sha256))

    def put_file(self, path: Path) -> StoredObject:
        """Store a file that somebody else wrote; the file itself is left where it is."""
        with path.open("rb") as source:
            return self.put_stream(iter(lambda: source.read(CHUNK), b""))

    def put_stream(self, chunks: Iterator[bytes]) -> StoredObject:
        incoming = IncomingFile(self)
        try:
            for chunk in chunks:
                incoming.write(chunk)
            return incoming.commit()
        except BaseException:
            incoming.discard()
            raise

    def put_bytes(self, data: bytes) -> StoredObject:
        return self.put_stream(iter([data]))

    def adopt(self, path: Path, stored: StoredObject) -> None:
        """Give a complete, fsynced file its name; two writers of the same object are harmless."""
        name = self.name(stored.sha256)
        if self.storage.exists(name):
            path.unlink(missing_ok=True)
        elif isinstance(self.storage, DurableFileStorage):
            self.storage.adopt(path, name)
        else:
            with path.open("rb") as content:
                self.storage.save(name, File(content))
            path.unlink(missing_ok=True)

    def open(self, sha256: str) -> IO[bytes]:
        try:
            return self.storage.open(self.name(sha256), "rb")
        except FileNotFoundError:
            raise MissingObject(sha256) from None

    def chunks(self, sha256: str) -> Iterator[bytes]:
        """The object's bytes, verified: the last chunk is held back until the hash is known to match."""
        digest = hashlib.sha256()
        held: bytes | None = None
        with self.open(sha256) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                if held is not None:
                    yield held
                held = chunk
        if digest.hexdigest() != sha256:
            raise CorruptObject(f"object {sha256} fails its hash: restore it from a backup")
        if held is not None:
            yield held

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

    def delete(self, sha256: str) -> None:
        self.storage.delete(self.name(sha256))


def copy_chunks(chunks: Iterator[bytes], out: BinaryIO | IO[bytes]) -> None:
    for chunk in chunks:
        out.write(chunk)
