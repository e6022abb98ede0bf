"""Whether the code in a version may be run, in a sandbox: only code that a run here was launched with.

Anybody who may commit files could put code into a tree. Launching code is a permission of its own, which was asked for
when a run was launched with it; the collector wrote the hashes of its files into the version's lineage.
"""

from dlplatform.engine.job import CODE

from .models import ModelVersion


def brings_code(version: ModelVersion) -> bool:
    """Whether the version says that its model is built by code of its own."""
    return isinstance(version.lineage.get("code"), dict) and f"{CODE}/model.py" in version.tree


def is_trusted(version: ModelVersion) -> bool:
    """Whether the files of the code are those that a run was launched with."""
    told = version.lineage.get("code")
    inside = {
        path.removeprefix(f"{CODE}/"): entry["sha256"]
        for path, entry in version.tree.items()
        if path.startswith(f"{CODE}/")
    }
    return isinstance(told, dict) and bool(inside) and told.get("files") == inside
