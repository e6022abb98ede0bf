"""RQ entry points of training."""

from uuid import UUID

from .models import Preflight, Run
from .orchestrator import Orchestrator
from .trying import Trying


def train(run: str) -> None:
    """Work on a run, unless it is gone, held, ended or not yet due."""
    claimed = Run.claim(UUID(run))
    if claimed is not None:
        Orchestrator(claimed).work()


def preflight(preflight: str) -> None:
    """Try out a run, unless the request is gone, held, ended or not yet due."""
    claimed = Preflight.claim(UUID(preflight))
    if claimed is not None:
        Trying(claimed).work()
