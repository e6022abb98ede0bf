"""RQ entry points of training."""

from uuid import UUID

from .models import Node, Preflight, Run, Trial
from .nodes.joining import Joining
from .orchestrator import Orchestrator
from .sweeps.advancing import advance
from .trying import Trying


def train(run: str) -> None:
    """Work on a run, unless it is gone, held, ended or not yet due."""
    claimed = Run.claim(UUID(run))
    if claimed is None:
        return
    Orchestrator(claimed).work()
    if claimed.trial_id is not None:
        advance(Trial.objects.values_list("sweep_id", flat=True).get(pk=claimed.trial_id))


def join_run(node: str) -> None:
    """Work on a run that another machine leads, unless that does not wait for us any more."""
    claimed = Node.claim(UUID(node))
    if claimed is not None:
        Joining(claimed).work()


def advance_sweep(sweep: str) -> None:
    """Take a sweep as far as it can go now."""
    advance(UUID(sweep))


def preflight(preflight: str) -> None:
    """Try out a run, unless the request is gone, held, ended or not yet due."""
    claimed = Preflight.claim(UUID(preflight))
    if claimed is not None:
        Trying(claimed).work()
