"""Files that arrive in parts and in any order, before anybody knows their hash.

They wait where every web process and every worker reaches them. On local files that is one sparse file, into which each
part is written where it belongs: nothing is copied when the last one has come. In S3 every part is a file of its own.
A part that ``finish`` has returned for is durable.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from django.core.files.base import File
from django.core.files.storage import Storage

from dlplatform.engine.durable import PIECE

from .storages import CHUNK, DurableFileStorage, WriteBehind, delete_files, files_below, modified_at
from .writing import ObjectIdentity, incoming_folder

FOLDER = "uploads"


class IncomingPart:
    """Bytes for one place of a local file, hashed as they come."""

    def __init__(self, path: Path, offset: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.size = 0
        self._offset = offset
        self._hash = hashlib.sha256()
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._behind = WriteBehind(self._descriptor, offset)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        assert self._descriptor is not None
        self._hash.update(chunk)
        left = memoryview(chunk)
        while left:  # a nearly full disk takes less than it is given before it refuses
            written = os.pwrite(self._descriptor, left[:PIECE], self._offset + self.size)
            left, self.size = left[written:], self.size + written
        self._behind.reached(self._offset + self.size)

    def finish(self) -> ObjectIdentity:
        """Make the bytes durable; their hash and number."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        self._close()
        return ObjectIdentity(self._hash.hexdigest(), self.size)

    def discard(self) -> None:
        """What was written stays in its place until the part is sent again; nobody was told to rely on it."""
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RemotePart(IncomingPart):
    """A part that becomes a file of the storage once it is whole."""

    def __init__(self, storage: Storage, name: str) -> None:
        descriptor, path = tempfile.mkstemp()
        os.close(descriptor)
        super().__init__(Path(path), 0)
        self._storage = storage
        self._name = name

    def finish(self) -> ObjectIdentity:
        identity = super().finish()
        delete_files(self._storage, [self._name])  # the same part, sent before: the storage would take another name
        with self.path.open("rb") as content:
            self._storage.save(self._name, File(content))
        self.path.unlink(missing_ok=True)
        return identity

    def discard(self) -> None:
        super().discard()
        self.path.unlink(missing_ok=True)


class StagedFiles:
    """The files of one upload, by their position in it; ``name`` is the upload's own and never used twice."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage = storage
        self._name = f"{FOLDER}/{name}"
        self._local = isinstance(storage, DurableFileStorage)
        self.folder = incoming_folder(storage) / self._name

    def part(self, file: int, offset: int) -> IncomingPart:
        if self._local:
            return IncomingPart(self.folder / str(file), offset)
        return RemotePart(self._storage, self._part_name(file, offset))

    def fetch(self, file: int, offsets: Iterable[int]) -> Path:
        """The whole file on this machine, in ``folder``; its parts begin at ``offsets``."""
        path = self.folder / str(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._local:
            path.touch()
            return path
        with path.open("wb") as out:
            for offset in sorted(offsets):
                with self._storage.open(self._part_name(file, offset), "rb") as part:
                    shutil.copyfileobj(part, out, CHUNK)
        return path

    def remove(self) -> None:
        """Free everything that was sent, and what was fetched here."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self._local:
            with suppress(FileNotFoundError):
                delete_files(self._storage, list(files_below(self._storage, self._name)))

    def modified_before(self, moment: datetime) -> bool:
        """Whether nothing has come here since."""
        local = [path.stat().st_mtime for path in self.folder.rglob("*")] if self.folder.is_dir() else []
        newest = [datetime.fromtimestamp(seconds, UTC) for seconds in local]
        if not self._local:
            newest += filter(
                None, (modified_at(self._storage, name) for name in files_below(self._storage, self._name))
            )
        return max(newest, default=datetime.min.replace(tzinfo=UTC)) < moment

    def _part_name(self, file: int, offset: int) -> str:
        return f"{self._name}/{file}/{offset}"


def staged_names(storage: Storage) -> set[str]:
    """The names of all uploads that something is kept of."""
    found = {path.name for path in (incoming_folder(storage) / FOLDER).glob("*")}
    if not isinstance(storage, DurableFileStorage):
        with suppress(FileNotFoundError):
            found |= set(storage.listdir(FOLDER)[0])
    return found
