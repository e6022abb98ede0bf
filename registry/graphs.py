"""Whether the graph in a version may be run: only one that an optimization here made and verified.

Anybody who may commit files could put a graph, or a traced program, into a tree, and large programs read them.
"""

from typing import Any

from dlplatform.engine.errors import PackageError
from dlplatform.engine.runtime import FILES

from .models import ModelVersion, OptimizedVariant


def brings_graph(version: ModelVersion) -> bool:
    return graph_file(version.tree) is not None


def graph_file(tree: dict[str, Any]) -> str | None:
    """The file of a tree that holds the network whole."""
    return next((name for name in FILES.values() if name in tree), None)


def require_ours(version: ModelVersion) -> None:
    """Raises PackageError for a version with a graph that was not made here."""
    name = graph_file(version.tree)
    if name is None:
        return
    made = OptimizedVariant.objects.filter(
        graph=version.tree[name]["sha256"], optimization__model__organization=version.model.organization_id
    )
    if not made.exists():
        raise PackageError(f"its {name} was not made by an optimization here, and is not run.")
