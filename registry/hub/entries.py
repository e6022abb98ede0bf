"""Models, trees and commits in the words of Hugging Face clients.

Every file is shown as one in git's large file storage: its id there, the SHA-256, is that of our object store, and
no content has to be read to show it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from registry import history
from registry.models import ModelVersion, Ref, RegisteredModel

from .names import commit_id, repo_id

Entry = dict[str, Any]


def model_info(model: RegisteredModel, version: ModelVersion | None, *, blobs: bool = False) -> Entry:
    tree = version.tree if version else {}
    changed = version.created_at if version else model.created_at
    return {
        "id": repo_id(model), "modelId": repo_id(model), "author": model.organization.slug,
        "sha": commit_id(version) if version else None, "lastModified": moment(changed),
        "createdAt": moment(model.created_at), "private": True, "gated": False, "disabled": False, "tags": [],
        "downloads": 0, "likes": 0, "siblings": [_sibling(path, tree[path], blobs) for path in sorted(tree)],
    }  # fmt: skip


def tree_entries(tree: Mapping[str, Entry], folder: str = "", *, recursive: bool = False) -> list[Entry]:
    """Files and folders below a folder (of the whole tree by default), by path."""
    prefix = f"{folder}/" if folder else ""
    below = {path: entry for path, entry in tree.items() if path.startswith(prefix)}
    if not recursive:
        files = {path: entry for path, entry in below.items() if "/" not in path.removeprefix(prefix)}
    else:
        files = below
    folders = {name for path in below for name in _parents(path) if name.startswith(prefix)}
    if not recursive:
        folders = {name for name in folders if "/" not in name.removeprefix(prefix)}
    entries = [file_entry(path, entry) for path, entry in files.items()]
    return sorted(entries + [folder_entry(name, below) for name in folders], key=lambda one: one["path"])


def named_entries(tree: Mapping[str, Entry], paths: Iterable[str]) -> list[Entry]:
    """The entries of exactly these files and folders; those that are not there are left out."""
    folders = {name for path in tree for name in _parents(path)}
    wanted = list(dict.fromkeys(path.strip("/") for path in paths))
    files = [file_entry(path, tree[path]) for path in wanted if path in tree]
    return files + [folder_entry(path, tree) for path in wanted if path in folders]


def file_entry(path: str, entry: Entry) -> Entry:
    return {"type": "file", "path": path, "size": entry["size"], "oid": pointer_id(entry), "lfs": _large(entry)}


def folder_entry(name: str, tree: Mapping[str, Entry]) -> Entry:
    content = "".join(f"{path} {tree[path]['sha256']}\n" for path in sorted(tree) if path.startswith(f"{name}/"))
    return {"type": "directory", "path": name, "size": 0, "oid": git_blob_id(content.encode())}


def commit_entry(version: ModelVersion) -> Entry:
    title, _, message = version.message.partition("\n")
    authors = [{"user": version.author.username}] if version.author else []
    return {
        "id": commit_id(version), "title": title, "message": message.strip(), "date": moment(version.created_at),
        "authors": authors,
    }  # fmt: skip


def ref_entry(ref: Ref) -> Entry:
    place = "heads" if ref.kind == Ref.Kind.BRANCH else "tags"
    return {"name": ref.name, "ref": f"refs/{place}/{ref.name}", "targetCommit": commit_id(ref.version)}


def with_last_commits(version: ModelVersion, entries: list[Entry]) -> list[Entry]:
    """Each entry with the commit that made it what it is, along the line of first parents."""
    open_entries = {entry["path"]: entry for entry in entries}
    shown = _ids_below(version.tree, open_entries)
    newer = version
    for older in [*_line(version), None]:
        ids = _ids_below(older.tree if older else {}, open_entries)
        for path in [path for path in open_entries if ids[path] != shown[path]]:
            open_entries.pop(path)["lastCommit"] = _last_commit(newer)
        if older is None or not open_entries:
            break
        newer = older
    return entries


def git_blob_id(content: bytes) -> str:
    """The name that git gives to these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def pointer_id(entry: Entry) -> str:
    return git_blob_id(_pointer(entry))


def moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _pointer(entry: Entry) -> bytes:
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{entry['sha256']}", f"size {entry['size']}", "")
    return "\n".join(lines).encode()


def _large(entry: Entry) -> Entry:
    return {
        "oid": entry["sha256"],
        "sha256": entry["sha256"],
        "size": entry["size"],
        "pointerSize": len(_pointer(entry)),
    }


def _sibling(path: str, entry: Entry, blobs: bool) -> Entry:
    more = {"size": entry["size"], "blobId": pointer_id(entry), "lfs": _large(entry)} if blobs else {}
    return {"rfilename": path, **more}


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _last_commit(version: ModelVersion) -> Entry:
    entry = commit_entry(version)
    return {name: entry[name] for name in ("id", "title", "date")}


def _line(version: ModelVersion) -> Iterable[ModelVersion]:
    """The versions that this one continues, first parents only, the newest first."""
    parents = history.edges_of(version.model_id)
    number = version.number
    while parents.get(number):
        number = parents[number][0]
        yield ModelVersion.objects.select_related("author").get(model_id=version.model_id, number=number)


def _ids_below(tree: Mapping[str, Entry], paths: Iterable[str]) -> dict[str, Any]:
    """What tells whether a file, or anything in a folder, is another one."""
    return {
        path: tree[path]["sha256"] if path in tree else frozenset(
            (name, entry["sha256"]) for name, entry in tree.items() if name.startswith(f"{path}/")
        )
        for path in paths
    }  # fmt: skip
