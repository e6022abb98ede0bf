"""Whether a model and the files of its versions are there to be worked with."""

from dlplatform.api import Conflict
from dlplatform.objects.grace import undoable_until

from .models import ModelVersion, RegisteredModel


def require_files(version: ModelVersion) -> None:
    """Raise Conflict for a version whose files were deleted."""
    if version.deleted_at is not None:
        raise Conflict(
            f"The files of v{version.number} were deleted on {version.deleted_at:%-d %B %Y}; they can be brought back "
            f"until {undoable_until(version.deleted_at):%-d %B %Y}.",
            code="files_deleted",
        )


def require_living(model: RegisteredModel) -> None:
    """Raise Conflict for a model that was deleted."""
    if model.deleted_at is not None:
        raise Conflict(f"The model “{model.name}” was deleted; bring it back first.", code="deleted")
