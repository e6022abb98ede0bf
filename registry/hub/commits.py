"""The body of a commit: one JSON object a line, read as it comes; of its files no more than one is in memory."""

import base64
import re
from pathlib import Path
from typing import Any

import orjson
from django.conf import settings

from registry import pickles, trees

from . import objects
from .changes import REGULAR_BYTES
from .errors import HubError

LONGEST_LINE = REGULAR_BYTES * 3 // 2
PARENT = re.compile(r"[0-9a-f]{7,64}")


class CommitBody:
    """What a commit says. Files inside it wait in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = self.description = ""
        self.parent: str | None = None
        self.files: dict[str, Path] = {}
        self.large: dict[str, str] = {}
        self.deleted: list[str] = []
        self._line = bytearray()
        self._size = self._lines = 0

    def write(self, chunk: bytes | memoryview) -> None:
        self._size += len(chunk)
        if self._size > settings.UPLOAD_MAX_BYTES:
            raise HubError("The commit is too long; split it.", status=413)
        *whole, rest = bytes(chunk).split(b"\n")
        for part in whole:
            self._line += part
            self._take()
        self._line += rest
        if len(self._line) > LONGEST_LINE:
            raise HubError("A line of the commit is too long; send large files by LFS.", status=413)

    def close(self) -> None:
        self._take()
        if not self._lines:
            raise HubError("The commit is empty.")

    @property
    def message(self) -> str:
        return f"{self.summary}\n\n{self.description}".strip()

    def _take(self) -> None:
        line, self._line = bytes(self._line), bytearray()
        if not line.strip():
            return
        self._lines += 1
        if self._lines > 2 * trees.MOST_FILES:
            raise HubError("The commit has too many operations; split it.", status=413)
        try:
            item = orjson.loads(line)
            key, value = item["key"], dict(item["value"])
            if (key == "header") != (self._lines == 1):
                raise HubError("The first line of a commit, and no other, is its header.")
            getattr(self, f"_{KINDS[key]}")(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise HubError(f"Line {self._lines} of the commit cannot be read.") from None

    def _header(self, value: dict[str, Any]) -> None:
        self.summary, self.description = (_text(value.get(name) or "") for name in ("summary", "description"))
        parent = value.get("parentCommit")
        if parent is not None and not PARENT.fullmatch(parent):
            raise HubError("parentCommit is not the id of a commit.")
        self.parent = parent

    def _file(self, value: dict[str, Any]) -> None:
        path = _path(value)
        if value.get("encoding", "base64") == "base64":
            content = base64.b64decode(value["content"], validate=True)
        else:
            content = value["content"].encode()
        pickles.check_content(content[: pickles.SAMPLE], repr(path[:100]))
        place = self.folder / str(self._lines)
        place.write_bytes(content)
        self.files[path] = place
        self.large.pop(path, None)

    def _large_file(self, value: dict[str, Any]) -> None:
        path = _path(value)
        if not objects.OBJECT_ID.fullmatch(value["oid"]):
            raise HubError(f"The oid of {path[:100]!r} is no SHA-256.")
        self.large[path] = value["oid"]
        self.files.pop(path, None)

    def _deletion(self, value: dict[str, Any]) -> None:
        self.deleted.append(_text(value["path"]))

    def _folder_deletion(self, value: dict[str, Any]) -> None:
        self.deleted.append(_text(value["path"]).rstrip("/") + "/")


KINDS = {
    "header": "header", "file": "file", "lfsFile": "large_file", "deletedFile": "deletion",
    "deletedFolder": "folder_deletion",
}  # fmt: skip


def _path(value: dict[str, Any]) -> str:
    path = _text(value["path"])
    trees.check_path(path)
    pickles.check_name(path)
    return path


def _text(value: str) -> str:
    if "\0" in value:
        raise HubError("A text of the commit has a NUL in it.")
    return value
