"""RQ entry points of the registry."""

from uuid import UUID

from .comparing import Comparing
from .importing import Importing
from .merging import Merging
from .models import Comparison, Merge, Optimization, Upload
from .optimizing import Optimizing


def compare(comparison: str) -> None:
    """Work on a comparison, unless it is gone, held, ended or not yet due."""
    claimed = Comparison.claim(UUID(comparison))
    if claimed is not None:
        Comparing(claimed).work()


def merge(merge: str) -> None:
    """Work on a merge, unless it is gone, held, ended or not yet due."""
    claimed = Merge.claim(UUID(merge))
    if claimed is not None:
        Merging(claimed).work()


def import_upload(upload: str) -> None:
    """Make a version of an upload, unless it is gone, held, ended or not yet due."""
    claimed = Upload.claim(UUID(upload))
    if claimed is not None:
        Importing(claimed).work()


def optimize(optimization: str) -> None:
    """Work on an optimization, unless it is gone, held, ended or not yet due."""
    claimed = Optimization.claim(UUID(optimization))
    if claimed is not None:
        Optimizing(claimed).work()
