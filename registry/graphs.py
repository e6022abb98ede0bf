"""Whether the graph in a version may be run by onnxruntime: only one that an optimization here made and verified.

Anybody who may commit files could put a graph into a tree, and onnxruntime is a large program that reads it.
"""

from dlplatform.engine.errors import PackageError
from dlplatform.engine.runtime import GRAPH

from .models import ModelVersion, OptimizedVariant


def brings_graph(version: ModelVersion) -> bool:
    return GRAPH in version.tree


def require_ours(version: ModelVersion) -> None:
    """Raises PackageError for a version with a graph that was not made here."""
    if not brings_graph(version):
        return
    made = OptimizedVariant.objects.filter(
        graph=version.tree[GRAPH]["sha256"], optimization__model__organization=version.model.organization_id
    )
    if not made.exists():
        raise PackageError(f"its {GRAPH} was not made by an optimization here, and is not run.")
