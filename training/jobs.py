"""RQ entry points of training."""

from uuid import UUID

from .models import Run
from .orchestrator import Orchestrator


def train(run: str) -> None:
    """Work on a run, unless it is gone, held, ended or not yet due."""
    claimed = Run.claim(UUID(run))
    if claimed is not None:
        Orchestrator(claimed).work()
