"""Uploads of models in parts: begun, parts noted, completed, aborted. The work on what came is in `registry.importing`."""

import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.files.storage import storages
from django.db import transaction
from django.utils import timezone

from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.objects.staging import StagedFiles, staged_names
from dlplatform.objects.storages import DurableFileStorage
from dlplatform.objects.writing import ObjectIdentity, incoming_folder

from . import availability, pickles, trees
from .models import Ref, RegisteredModel, Upload, UploadPart

STORAGE = "models"
SMALLEST_PART, LARGEST_PART = 1024 * 1024, 256 * 1024 * 1024
USUAL_PART = 16 * 1024 * 1024
MOST_PARTS = 10_000  # of one file; S3 has the same limit
MOST_OPEN = 20  # uploads of one person that wait for parts
KEPT = timedelta(days=7)  # an upload to which no part comes
MAIN = "main"


@dataclass(frozen=True)
class Place:
    """Where a part belongs: its file, its number there, its first byte and its length."""

    file: int
    number: int
    offset: int
    size: int


def staged(upload: Upload) -> StagedFiles:
    return StagedFiles(storages[STORAGE], str(upload.pk))


# --- begin --------------------------------------------------------------------------------------------


@transaction.atomic
def begin(
    *,
    actor: User,
    model: RegisteredModel,
    files: Sequence[Mapping[str, Any]],
    message: str = "",
    branch: str = MAIN,
    part_size: int | None = None,
) -> Upload:
    """Open an upload of ``files``: [{path, size, sha256?}]. Raises ValidationError, Conflict, PickleRefused.

    What can be told from names and sizes is refused now, before a byte is sent.
    """
    require(actor, "model.write", model)
    check_target(model, branch)
    check_files(files)
    size = part_size or _usual_part(max(file["size"] for file in files))
    _check_parts(files, size)
    check_room(sum(file["size"] for file in files))
    if Upload.objects.open().filter(created_by=actor).count() >= MOST_OPEN:
        raise Conflict(f"You have {MOST_OPEN} unfinished uploads; finish or abort one.", code="too_many_uploads")
    rows = [{"path": file["path"], "size": file["size"], "sha256": file.get("sha256")} for file in files]
    upload: Upload = Upload.objects.create(
        model=model, branch=branch, message=message, files=rows, part_size=size, created_by=actor,
        state=Upload.RECEIVING,
    )  # fmt: skip
    audit.record(actor, "upload.begin", model, model.organization, upload=str(upload.pk), bytes=upload.size)
    return upload


def check_target(model: RegisteredModel, branch: str) -> None:
    """Raise ValidationError, Conflict unless a version can be added to the branch."""
    availability.require_living(model)
    known = Ref.objects.filter(model=model, kind=Ref.Kind.BRANCH, name=branch).exists()
    if not known and (branch != MAIN or model.versions.exists()):
        raise _invalid("branch", f"There is no branch “{branch[:80]}”.", "does_not_exist")


def check_files(files: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValidationError, PickleRefused for names that a version cannot have."""
    if not files:
        raise _invalid("files", "Name at least one file.", "required")
    paths = [str(file["path"]) for file in files]
    for path in paths:
        pickles.check_name(path)
    twice = sorted({path for path in paths if paths.count(path) > 1}) if len(set(paths)) < len(paths) else []
    if twice:
        raise _invalid("files", f"{twice[0][:100]!r} is named twice.", "unique")
    trees.changed({}, {path: {} for path in paths}, ())


def _usual_part(size: int) -> int:
    """Sixteen megabytes, or as many as keep the number of parts below the limit."""
    needed = math.ceil(size / MOST_PARTS)
    return max(USUAL_PART, math.ceil(needed / SMALLEST_PART) * SMALLEST_PART)


def _check_parts(files: Sequence[Mapping[str, Any]], part_size: int) -> None:
    for file in files:
        if math.ceil(file["size"] / part_size) > MOST_PARTS:
            raise _invalid(
                "part_size", f"{file['path'][:100]!r} would have more than {MOST_PARTS:,} parts.", "too_small"
            )


def check_room(size: int) -> None:
    """The limit of the platform, and of the disk: what is sent is there twice until it is committed."""
    if size > settings.MODEL_UPLOAD_MAX_BYTES:
        limit = settings.MODEL_UPLOAD_MAX_BYTES
        raise _invalid("files", f"They have {size:,} bytes together; the limit here is {limit:,}.", "too_large")
    storage = storages[STORAGE]
    if isinstance(storage, DurableFileStorage):
        folder = incoming_folder(storage)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if 2 * size > free:
            raise _invalid(
                "files", f"They need {2 * size:,} bytes of disk while they come; {free:,} are free.", "no_space"
            )


def _invalid(field: str, detail: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(detail, code=code)})


# --- parts --------------------------------------------------------------------------------------------


def place_of(upload: Upload, file: int, number: int) -> Place | None:
    """Where that part belongs; None when the upload has no such part."""
    if not 0 <= file < len(upload.files):
        return None
    size = upload.files[file]["size"]
    offset = number * upload.part_size
    return Place(file, number, offset, min(upload.part_size, size - offset)) if 0 <= offset < size else None


def count_of_parts(upload: Upload, file: int) -> int:
    return math.ceil(upload.files[file]["size"] / upload.part_size)


def note_fetched(*, upload: Upload, place: Place, identity: ObjectIdentity) -> None:
    """Remember a part that a worker has fetched itself and made durable."""
    UploadPart.objects.update_or_create(
        upload=upload, file=place.file, number=place.number, defaults={"size": identity.size, "sha256": identity.sha256}
    )
    Upload.objects.filter(pk=upload.pk).update(touched_at=timezone.now())


@transaction.atomic
def note_part(*, upload: Upload, place: Place, identity: ObjectIdentity) -> UploadPart:
    """Remember a part that is durable. The same part again changes nothing; other bytes for it are a Conflict."""
    row = Upload.objects.select_for_update(of=("self",)).get(pk=upload.pk)
    check_open(row)
    part, made = UploadPart.objects.get_or_create(
        upload=row, file=place.file, number=place.number, defaults={"size": identity.size, "sha256": identity.sha256}
    )
    if not made and part.sha256 != identity.sha256:
        raise Conflict(
            f"Part {place.number} of this file came before with other bytes; abort this upload and begin anew.",
            code="part_differs",
        )
    Upload.objects.filter(pk=row.pk).update(touched_at=timezone.now())
    return part


def check_open(upload: Upload) -> None:
    if upload.state != Upload.RECEIVING:
        raise Conflict(f"This upload is {upload.state}; it takes no parts any more.", code="not_open")


def missing(upload: Upload) -> list[dict[str, Any]]:
    """What has not come yet: [{file, path, parts: [[first, last], …]}], nothing for files that are whole."""
    there: dict[int, set[int]] = {}
    for part in upload.parts.all():
        there.setdefault(part.file, set()).add(part.number)
    found = []
    for file, row in enumerate(upload.files):
        wanted = range(count_of_parts(upload, file))
        if gaps := _ranges([number for number in wanted if number not in there.get(file, ())]):
            found.append({"file": file, "path": row["path"], "parts": gaps})
    return found


def _ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Successive numbers as [first, last]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


# --- the end ------------------------------------------------------------------------------------------


@transaction.atomic
def complete(*, actor: User, upload: Upload, hashes: Mapping[str, str] | None = None) -> Upload:
    """Every part is there: hand the files to a worker. ``hashes`` is {path: SHA-256} of those not named at the start.

    Asked for again, it is answered again.
    """
    require(actor, "model.write", upload.model)
    row: Upload = Upload.objects.select_for_update(of=("self",)).select_related("model").get(pk=upload.pk)
    if row.state != Upload.RECEIVING:
        if row.state == "cancelled":
            raise Conflict("This upload was aborted; begin a new one.", code="not_open")
        return row
    if gaps := missing(row):
        first = gaps[0]
        text = f"{first['path'][:100]!r} lacks the parts {first['parts'][:10]}."
        raise Conflict(text + (f" {len(gaps) - 1} more files lack some." if len(gaps) > 1 else ""), code="incomplete")
    files = _with_hashes(row.files, hashes or {})
    Upload.objects.filter(pk=row.pk).update(state=Upload.QUEUED, files=files, queued_at=timezone.now())
    row.refresh_from_db()
    jobs.enqueue(row)
    return row


def _with_hashes(files: Sequence[Mapping[str, Any]], hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    unknown = sorted(hashes.keys() - {file["path"] for file in files})
    if unknown:
        raise _invalid("sha256", f"This upload has no file {unknown[0][:100]!r}.", "does_not_exist")
    found = [{**file, "sha256": hashes.get(file["path"], file["sha256"])} for file in files]
    for before, after in zip(files, found, strict=True):
        if before["sha256"] and before["sha256"] != after["sha256"]:
            raise _invalid("sha256", f"{before['path'][:100]!r} was announced with another hash.", "differs")
    return found


@transaction.atomic
def take_whole(
    *, actor: User, model: RegisteredModel, identifier: uuid.UUID, path: str, identity: ObjectIdentity, message: str,
    branch: str,
) -> Upload:  # fmt: skip
    """An upload whose one file came in a single request and waits under ``identifier``; a worker goes on with it."""
    require(actor, "model.write", model)
    check_target(model, branch)
    file = {"path": path, "size": identity.size, "sha256": identity.sha256}
    check_files([file])
    if not identity.size:
        raise _invalid("file", "The file is empty; send one with data.", "empty")
    upload: Upload = Upload.objects.create(
        id=identifier, model=model, branch=branch, message=message, files=[file], part_size=identity.size,
        created_by=actor,
    )  # fmt: skip
    UploadPart.objects.create(upload=upload, file=0, number=0, size=identity.size, sha256=identity.sha256)
    audit.record(actor, "upload.begin", model, model.organization, upload=str(upload.pk), bytes=upload.size)
    jobs.enqueue(upload)
    return upload


def abort(*, actor: User, upload: Upload) -> Upload:
    """Give an upload up: at once while parts come, within a second while a worker has it. Frees what was sent."""
    require(actor, "model.write", upload.model)
    stopped: Upload = jobs.cancel(upload)
    if stopped.ended:
        staged(stopped).remove()
    return stopped


def expire(now: datetime | None = None) -> int:
    """Abort uploads to which nothing came for a week, and free what no upload waits for any more; how many."""
    oldest = (now or timezone.now()) - KEPT
    expired = 0
    for upload in Upload.objects.open().filter(touched_at__lt=oldest):
        error = {"code": "expired", "sentence": "No part came for a week.", "next_step": "Begin the upload again."}
        expired += upload.end_unheld("failed", error=error)
    waiting = {str(pk) for pk in Upload.objects.exclude(state__in=Upload.ENDED).values_list("pk", flat=True)}
    for name in staged_names(storages[STORAGE]) - waiting:
        _remove_if_old(name, oldest)
    return expired


def _remove_if_old(name: str, oldest: datetime) -> None:
    """What belongs to an ended upload goes; what belongs to none may be that of a request under way."""
    ended = Upload.objects.filter(pk=name, state__in=Upload.ENDED).exists() if _is_uuid(name) else False
    files = StagedFiles(storages[STORAGE], name)
    if ended or files.modified_before(oldest):
        files.remove()


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
