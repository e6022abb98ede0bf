"""Where files lie: folders of this machine that are whole or absent, or S3."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, Storage

CHUNK = 1024 * 1024
WRITE_BACK = 8 * 1024 * 1024
UPLOADS = 4
FSYNCS = 4  # at a time: the file system joins what waits together into one commit


class DurableFileStorage(FileSystemStorage):
    """Local files that are whole or absent: temporary name, fsync, rename, fsync of the folder."""

    def _save(self, name: str, content: File) -> str:
        target = Path(self.path(name))
        make_durable_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            with temporary.open("wb") as out:
                for chunk in content.chunks(CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            publish(temporary, target)
            fsync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return name

    def adopt(self, files: Sequence[tuple[Path, str]], beat: Callable[[], None] = lambda: None) -> None:
        """Make files of this file system durable and give them their names, without a copy; one fsync a folder."""
        with ThreadPoolExecutor(FSYNCS) as pool:
            for _ in pool.map(fsync_file, [path for path, _ in files]):
                beat()
        targets = [Path(self.path(name)) for _, name in files]
        for folder in {target.parent for target in targets}:
            make_durable_folder(folder)
        for (source, _), target in zip(files, targets, strict=True):
            publish(source, target)
        for folder in {target.parent for target in targets}:
            fsync_folder(folder)


def publish(temporary: Path, target: Path) -> None:
    """Rename a fsynced file to its final name; the name is durable once its folder is."""
    temporary.replace(target)


def make_durable_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable in the one that holds it."""
    if folder.is_dir():
        return
    make_durable_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    fsync_file(folder)


def start_writing_back(descriptor: int, offset: int, length: int) -> None:
    """Let the disk begin with these bytes now, so that the fsync at the end finds little left to wait for.

    POSIX_FADV_DONTNEED starts the write-back of changed pages and frees those that are on the disk already
    (posix_fadvise(2), Linux).
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


class WriteBehind:
    """The way to the disk of a file that is written from ``start`` on, a few megabytes behind the writer.

    The pages of what has arrived there are used again for what comes next: a file of any size takes a few megabytes of
    the page cache, and leaves in it what others read. Memory that was free for a while is also slow to write to where
    the machine is a virtual one, which gives such memory back (250 MB/s instead of 4 GB/s).
    """

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self._descriptor = descriptor
        self._start = self._begun = start

    def reached(self, end: int) -> None:
        """The file has been written up to ``end``."""
        if end - self._begun >= WRITE_BACK:
            start_writing_back(self._descriptor, self._start, end - self._start)
            self._begun = end


# --- what differs between storages --------------------------------------------------------------------


def save_files(storage: Storage, files: Sequence[tuple[Path, str]], beat: Callable[[], None] = lambda: None) -> None:
    """Move complete local files into the storage under names that nothing has yet: all of them, or none.

    ``beat`` is called as each of them is done.
    """
    try:
        if isinstance(storage, DurableFileStorage):
            storage.adopt(files, beat)
        else:
            _upload(storage, files, beat)
    except BaseException:
        with suppress(Exception):  # what cannot be written may not be removable either
            delete_files(storage, [name for _, name in files])
        raise


def _upload(storage: Storage, files: Sequence[tuple[Path, str]], beat: Callable[[], None]) -> None:
    with ThreadPoolExecutor(UPLOADS) as pool:
        for _ in pool.map(lambda file: _upload_one(storage, *file), files):
            beat()


def _upload_one(storage: Storage, path: Path, name: str) -> None:
    with path.open("rb") as content:
        kept = storage.save(name, File(content))
    if kept != name:
        raise OSError(f"the storage kept {name} as {kept}; names must not change")
    path.unlink(missing_ok=True)


def read_range(storage: Storage, name: str, offset: int, length: int) -> bytes:
    """At most ``length`` bytes of a file. Raises FileNotFoundError."""
    if hasattr(storage, "read_range"):
        return bytes(storage.read_range(name, offset, length))
    with storage.open(name, "rb") as source:
        source.seek(offset)
        return bytes(source.read(length))


def announce(storage: Storage, name: str, offset: int, length: int) -> None:
    """Have the disk fetch bytes that will be read soon; where nothing can be fetched ahead, this does nothing."""
    if not isinstance(storage, DurableFileStorage) or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # who reads it will say so
        descriptor = os.open(storage.path(name), os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def open_file(storage: Storage, name: str) -> IO[bytes]:
    """A file for reading and seeking. Raises FileNotFoundError."""
    return storage.open(name, "rb")


def delete_files(storage: Storage, names: Sequence[str]) -> None:
    """Remove files; one that is gone already is as good as removed."""
    for name in names:
        with suppress(FileNotFoundError):
            storage.delete(name)


def files_below(storage: Storage, folder: str) -> Iterator[str]:
    """Names of all files in a folder and the folders in it, hidden ones included."""
    try:
        folders, files = storage.listdir(folder)
    except FileNotFoundError:
        return
    yield from (f"{folder}/{file}" for file in files if file)
    for inner in folders:
        yield from files_below(storage, f"{folder}/{inner}")


def modified_at(storage: Storage, name: str) -> datetime | None:
    """When a file was last written, in UTC; None when it is gone."""
    try:
        moment = storage.get_modified_time(name)
    except FileNotFoundError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
