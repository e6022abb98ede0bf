"""Rows added to a dataset by the API: each request makes a version, which is an earlier one's rows and the new ones.

Versions never change, since runs and models name them, so an addition is a version like any other: queued, worked on
in the isolated child, ready or rejected. It joins the newest version before it that has rows, and waits while
that one is still being read: of two additions sent one after the other none is lost. As long as the types of the
columns hold, it shares the stored parts of the version it joins; when one has to widen, all rows are written again
(`ingestion.extension`). Either way a worker reads all rows once, for the profile: a thousand requests of one row are
far dearer than one request of a thousand.
"""

import json
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction

from dlplatform import jobs
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from . import services
from .ingestion.added import misfits
from .ingestion.limits import Limits
from .ingestion.result import Column, Problem
from .models import Dataset, DatasetVersion

MAX_ROWS = 10_000
WITHOUT_ROWS = (DatasetVersion.State.REJECTED, DatasetVersion.State.CANCELLED, DatasetVersion.State.DELETED)
NO_IMAGES_AS_ROWS = (
    "This dataset holds images, to which no rows are added. Upload an archive with all images as a new version."
)
NOTHING_LEFT = Problem(
    code="nothing_to_extend",
    detail="The version that these rows were to join was rejected, cancelled or deleted, and there is none before it. "
    "Upload a file, then send the rows again.",
)


@transaction.atomic
def add_rows(*, actor: User, dataset: Dataset, rows: list[Any]) -> DatasetVersion:
    """A new version with the rows behind those of the newest one; all of them or, when one does not fit, none.

    The first rows of an empty dataset are its first version, and their types are inferred. Raises ValidationError
    with the row's place and the column, such as `rows.2.age`, and for a dataset of images.
    """
    require(actor, "dataset.write", dataset)
    columns = _known_columns(dataset)
    if any(column.type == "image" for column in columns):
        raise ValidationError({"rows": ValidationError(NO_IMAGES_AS_ROWS, code="image_rows")})
    problems = misfits(rows, columns, Limits())
    if problems:
        raise ValidationError({_place(problem): ValidationError(problem.detail, problem.code) for problem in problems})
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    stored = services.object_store(dataset.organization_id).put_bytes(lines.encode())
    version = services.create_version(
        actor=actor, dataset=dataset, stored=stored, filename="rows.ndjson", content_type="application/x-ndjson"
    )
    version.extends = base_of(version)
    version.save(update_fields=["extends"])
    return version


def _known_columns(dataset: Dataset) -> list[Column]:
    """The columns that rows sent now will meet; none where an upload, still being read, decides about them."""
    for version in _living(dataset).only("state", "extends", "columns"):
        if version.state == DatasetVersion.State.READY:
            return [Column.from_dict(column) for column in version.columns]
        if version.extends_id is None:
            break
    return []


def _place(problem: Problem) -> str:
    """Where the value stands in the request, counted as JSON counts."""
    assert problem.row is not None
    return ".".join(["rows", str(problem.row - 1), *([problem.column] if problem.column else [])])


def base_of(version: DatasetVersion) -> DatasetVersion | None:
    """The version whose rows come first: the newest one before it that has, or will have, rows."""
    return _living(version.dataset).filter(number__lt=version.number).first()


def _living(dataset: Dataset) -> Any:
    return dataset.versions.exclude(state__in=WITHOUT_ROWS).order_by("-number")


def waits(identifier: UUID) -> bool:
    """Whether a queued addition cannot begin yet, since the version it joins is still being worked on."""
    version = DatasetVersion.objects.filter(
        pk=identifier, state=DatasetVersion.State.QUEUED, extends__isnull=False
    ).first()
    base = base_of(version) if version else None
    return base is not None and not base.ended


def wake_following(version: DatasetVersion) -> None:
    """The addition that waited for this version to end. Without this the reconciler would find it, later."""
    waiting = version.dataset.versions.filter(
        number__gt=version.number, state=DatasetVersion.State.QUEUED, extends__isnull=False
    )
    if following := waiting.order_by("number").first():
        jobs.wake(following)
