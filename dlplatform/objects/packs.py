"""Packs: files that hold many small objects one after the other. Written once, never changed."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .zstd import Bytes

SMALL = 64 * 1024
MOST_BYTES = 64 * 1000 * 1000


class PackWriter:
    """Collects payloads in files of at most 64 MB in a folder of this machine."""

    def __init__(self, folder: Path, name_of: Callable[[int], str]) -> None:
        """``name_of(number)`` is the name in the storage of the n-th pack."""
        self._folder = folder
        self._name_of = name_of
        self._out: BinaryIO | None = None
        self.files: list[tuple[Path, str]] = []

    def add(self, payload: Bytes) -> tuple[str, int]:
        """The name of the file and the offset in it where the payload will be found."""
        if self._out is None or self._out.tell() + len(payload) > MOST_BYTES:
            self._begin()
        assert self._out is not None
        offset = self._out.tell()
        self._out.write(payload)
        return self.files[-1][1], offset

    def _begin(self) -> None:
        self.close()
        descriptor, path = tempfile.mkstemp(dir=self._folder)
        self.files.append((Path(path), self._name_of(len(self.files))))
        self._out = os.fdopen(descriptor, "wb")

    def close(self) -> None:
        if self._out is not None:
            out, self._out = self._out, None
            out.close()
