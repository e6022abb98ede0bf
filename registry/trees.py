"""Trees of versions: which paths a file may have, and a tree with files added and taken away."""

from collections.abc import Collection, Mapping
from typing import Any

from django.core.exceptions import ValidationError

MOST_FILES = 10_000
LONGEST_PATH = 1000
LONGEST_NAME = 255
DESCRIBING = ("model.json", "model.safetensors", "adapter.safetensors")

Tree = dict[str, dict[str, Any]]


def check_path(path: str) -> None:
    """Raise ValidationError unless the path stays inside the tree on every system that a tree is written out to."""
    names = path.split("/")
    wrong = not all(names) or any(name in (".", "..") or len(name.encode()) > LONGEST_NAME for name in names)
    wrong = wrong or "\\" in path or not path.isprintable() or len(path.encode()) > LONGEST_PATH
    if wrong or names[0].lower() == ".git":
        text = (
            f"{path[:100]!r} is no path for a file: use names with single slashes between them, and no \\, “.” or “..”."
        )
        raise ValidationError({"path": ValidationError(text, code="bad_path")})


def changed(tree: Mapping[str, Any], added: Mapping[str, Any], deleted: Collection[str]) -> Tree:
    """The tree without the deleted files (and folders, named with a slash at the end), then with the added ones.

    Raises ValidationError: on `deleted` for what is not there, on `path` for a path that no tree can have.
    """
    kept = dict(tree)
    for path in deleted:
        gone = [path] if path in tree else [name for name in tree if path.endswith("/") and name.startswith(path)]
        if not gone:
            raise ValidationError({"deleted": ValidationError(f"There is no file {path[:100]!r}.", "does_not_exist")})
        for name in gone:
            kept.pop(name, None)
    for path in added:
        check_path(path)
    kept.update(added)
    _check_whole(kept)
    return kept


def same_model(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two trees hold the same package, so that what is known of one holds for the other."""
    return "model.json" in after and all(before.get(name) == after.get(name) for name in DESCRIBING)


def _check_whole(tree: Tree) -> None:
    if len(tree) > MOST_FILES:
        raise ValidationError(
            {"path": ValidationError(f"A version has at most {MOST_FILES:,} files.", code="too_many")}
        )
    for path in tree:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if (folder := "/".join(parts[:count])) in tree:
                text = f"{folder[:100]!r} cannot be a file and the folder of another file."
                raise ValidationError({"path": ValidationError(text, code="file_and_folder")})
