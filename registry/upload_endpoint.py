"""Parts of uploads, and models that come in one request: received in front of Django with constant memory."""

import asyncio
import base64
import hashlib
import re
import uuid
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.files.storage import storages
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404
from rest_framework.exceptions import ErrorDetail, ValidationError

from datasets.bodies import FIELD_LIMIT, Broken, Chunk, TooLarge, body_for, drain
from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import Answer, answered_once, fingerprint_of, key_of
from dlplatform.accounts.models import User
from dlplatform.accounts.receiving import Handler, ReceivingEndpoint, in_thread, signed_in
from dlplatform.objects.staging import IncomingPart, StagedFiles
from dlplatform.objects.writing import ObjectIdentity

from . import uploads
from .models import RegisteredModel, Upload
from .serializers import PartOut, UploadOut
from .uploads import STORAGE, Place

PART = re.compile(r"/api/v1/uploads/([0-9a-fA-F-]{36})/files/(\d{1,5})/parts/(\d{1,5})/?")
VERSIONS = re.compile(r"/api/v1/models/([0-9a-fA-F-]{36})/versions/?")
DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
LONGEST_MESSAGE = 2000


class ModelUploads(ReceivingEndpoint):
    """ASGI: answers parts of uploads, and whole models."""

    def handler(self, scope: dict[str, Any]) -> Handler | None:
        method, path = scope.get("method"), scope["path"]
        if method == "PUT" and (matched := PART.fullmatch(path)):
            upload, file, number = matched.groups()
            return lambda request, receive: _receive_part(request, receive, upload, int(file), int(number))
        if method == "POST" and (matched := VERSIONS.fullmatch(path)):
            model = matched[1]
            return lambda request, receive: _receive_model(request, receive, model)
        return None


# --- a part -------------------------------------------------------------------------------------------


class PartBody:
    """Exactly the bytes of one part; written where they belong, unless the part is there already."""

    def __init__(self, place: Place, incoming: IncomingPart | None) -> None:
        self.place = place
        self.incoming = incoming
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, chunk: Chunk) -> None:
        self.size += len(chunk)
        if self.size > self.place.size:
            raise Broken(f"More bytes came than the {self.place.size:,} of this part.")
        if self.incoming is not None:
            self.incoming.write(chunk)
        else:
            self._hash.update(chunk)

    def finish(self) -> ObjectIdentity:
        if self.size != self.place.size:
            raise Broken(f"This part has {self.place.size:,} bytes and {self.size:,} came; send it again.")
        return self.incoming.finish() if self.incoming else ObjectIdentity(self._hash.hexdigest(), self.size)


async def _receive_part(request: ASGIRequest, receive: Any, identifier: str, file: int, number: int) -> Answer:
    wanted = _digest(request)
    upload, place, there = await sync_to_async(_authorise_part)(request, identifier, file, number)
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) != place.size:
        raise Broken(f"This part has {place.size:,} bytes, not {int(length):,}.")
    body = PartBody(place, None if there else uploads.staged(upload).part(place.file, place.offset))
    try:
        await drain(request, receive, body)  # type: ignore[arg-type]
        identity = await in_thread(lambda: _checked(body, wanted))
        part = await sync_to_async(uploads.note_part)(upload=upload, place=place, identity=identity)
    except BaseException:
        if body.incoming is not None:
            body.incoming.discard()
        raise
    return Answer(200, PartOut(part).data)


def _digest(request: ASGIRequest) -> str:
    """The SHA-256 of `Content-Digest` (RFC 9530), in hexadecimal; empty when none was sent."""
    header = request.headers.get("Content-Digest", "").strip()
    if not header:
        return ""
    matched = DIGEST.fullmatch(header)
    if matched is None:
        text = "Send it as sha-256=:…:, the hash in base64 between colons."
        raise ValidationError({"Content-Digest": [ErrorDetail(text, "invalid")]})
    return base64.b64decode(matched[1]).hex()


def _checked(body: PartBody, wanted: str) -> ObjectIdentity:
    identity = body.finish()
    if wanted and identity.sha256 != wanted:
        raise Broken("The bytes that came have another SHA-256 than Content-Digest says; send the part again.")
    return identity


def _authorise_part(request: ASGIRequest, identifier: str, file: int, number: int) -> tuple[Upload, Place, bool]:
    """The upload, the part's place, and whether it is there already; before a byte is kept."""
    user = signed_in(request, "model.write")
    upload = visible_or_404(Upload.objects.select_related("model__organization"), user, pk=_uuid(identifier))
    require(user, "model.write", upload.model)
    place = uploads.place_of(upload, file, number)
    if place is None:
        raise Http404
    uploads.check_open(upload)
    return upload, place, upload.parts.filter(file=file, number=number).exists()


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Http404 from None


# --- a whole model ------------------------------------------------------------------------------------


async def _receive_model(request: ASGIRequest, receive: Any, identifier: str) -> Answer:
    user, model = await sync_to_async(_authorise_model)(request, identifier)
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > settings.UPLOAD_MAX_BYTES + FIELD_LIMIT:
        raise TooLarge
    name = uuid.uuid4()
    files = StagedFiles(storages[STORAGE], str(name))
    incoming = files.part(0, 0)
    try:
        body = body_for(request, incoming)
        await drain(request, receive, body)
        await asyncio.to_thread(body.close)
        identity = await in_thread(incoming.finish)
        answer = await sync_to_async(_answer)(user, model, name, identity, body.filename, request)
    except BaseException:
        incoming.discard()
        await in_thread(files.remove)
        raise
    if answer.again:
        await in_thread(files.remove)
    return answer


def _authorise_model(request: ASGIRequest, identifier: str) -> tuple[User, RegisteredModel]:
    user = signed_in(request, "model.write")
    model = visible_or_404(RegisteredModel.objects.select_related("organization"), user, pk=_uuid(identifier))
    require(user, "model.write", model)
    return user, model


def _answer(
    user: User, model: RegisteredModel, name: uuid.UUID, identity: ObjectIdentity, filename: str, request: ASGIRequest
) -> Answer:
    """A new upload, or what was answered to the same request before."""
    path = filename.replace("\\", "/").rsplit("/", 1)[-1]
    branch = request.GET.get("branch", uploads.MAIN).replace("\0", "")
    message = request.GET.get("message", "").replace("\0", "")[:LONGEST_MESSAGE]

    def act() -> Answer:
        upload = uploads.take_whole(
            actor=user, model=model, identifier=name, path=path, identity=identity, message=message, branch=branch
        )
        return Answer(202, UploadOut(upload).data)

    key = key_of(request)
    if not key:
        return act()
    content = (f"upload to {model.pk}", identity.sha256, path, branch, message)
    fingerprint = fingerprint_of(*(part.encode() for part in content))
    return answered_once(user=user, key=key, fingerprint=fingerprint, act=act)
