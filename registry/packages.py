"""Model packages as folders on this machine: a version's files, and for an adapter those of its base beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlplatform.engine.job import BASE

from .models import ModelVersion
from .transformers_bases import is_needed, is_transformers

MODEL = "model.json"


def package_files(version: ModelVersion) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path within the folder, {sha256, size}) of everything that loading the version needs."""
    whole = not is_transformers(version)
    yield from ((path, entry) for path, entry in version.tree.items() if whole or is_needed(path))
    if version.base is not None:
        for path, entry in package_files(version.base):
            yield f"{BASE}/{path}", entry


def safe_target(folder: Path, path: str) -> Path:
    """Where a file of a tree goes. Raises ValueError for a path that leads out of the folder."""
    target = folder / path
    if not target.is_relative_to(folder) or ".." in target.parts:
        raise ValueError(f"unsafe path in tree: {path!r}")
    return target
