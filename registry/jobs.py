"""RQ entry points of the registry."""

from uuid import UUID

from .comparing import Comparing
from .models import Comparison


def compare(comparison: str) -> None:
    """Work on a comparison, unless it is gone, held, ended or not yet due."""
    claimed = Comparison.claim(UUID(comparison))
    if claimed is not None:
        Comparing(claimed).work()
