"""RQ entry points of serving."""

from uuid import UUID

from .models import BatchPrediction
from .predicting import Predicting


def predict_dataset(batch: str) -> None:
    """Work on a batch prediction, unless it is gone, held, ended or not yet due."""
    claimed = BatchPrediction.claim(UUID(batch))
    if claimed is not None:
        Predicting(claimed).work()
