"""Bodies of any size from Hugging Face clients, received in front of Django with constant memory.

Large files come by `PUT …/info/lfs/objects/{id}` and are hashed and written as they come; a commit comes as one JSON
object a line.
"""

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ValidationError as DjangoValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from rest_framework.exceptions import NotAuthenticated

from datasets.bodies import FIELD_LIMIT, Body, TooLarge, drain
from dlplatform.accounts.access import require
from dlplatform.accounts.authentication import Refused, bearer, user_of_bearer
from dlplatform.accounts.idempotency import Answer
from dlplatform.accounts.models import User
from dlplatform.accounts.receiving import Handler, ReceivingEndpoint, in_thread
from dlplatform.api import Conflict
from dlplatform.objects.store import IncomingFile, MissingObject
from registry import pickles, services
from registry.models import ModelVersion, RegisteredModel

from . import errors, objects
from .changes import branch_head
from .commits import CommitBody
from .errors import EntryNotFound, HubError, RevisionNotFound
from .names import commit_id, repo_id
from .revisions import MAIN, head_of, model_of
from .views import origin

OBJECT = re.compile(r"/[^/]+/[^/]+\.git/info/lfs/objects/([0-9a-f]{64})")
COMMIT = re.compile(r"/api/models/([^/]+)/([^/]+)/commit/(.+)")
WEIGHTS = "model.safetensors"


class HubUploads(ReceivingEndpoint):
    """ASGI: answers large files and commits."""

    def handler(self, scope: dict[str, Any]) -> Handler | None:
        method, path = scope.get("method"), scope["path"]
        if method == "PUT" and (matched := OBJECT.fullmatch(path)):
            oid = matched[1]
            return lambda request, receive: _receive_object(request, receive, oid)
        if method == "POST" and (matched := COMMIT.fullmatch(path)):
            names = matched.groups()
            return lambda request, receive: _receive_commit(request, receive, *names)
        return None

    def refusal(self, error: Exception, request: ASGIRequest) -> Answer | None:
        known = errors.known_error(error)
        if known is None:
            return None
        return Answer(known.status_code, {"error": errors.text_of(known)}, more_headers=errors.headers_of(known))


# --- large files --------------------------------------------------------------------------------------


class ObjectBody(Body):
    """A large file; its first bytes are remembered, for they tell what it is."""

    def __init__(self, incoming: IncomingFile, size: int) -> None:
        super().__init__(incoming, "", "")
        self.expected = size
        self.beginning = b""

    def write(self, chunk: bytes | memoryview) -> None:
        if len(self.beginning) < pickles.SAMPLE:
            self.beginning += bytes(chunk[: pickles.SAMPLE - len(self.beginning)])
        if self.incoming.size + len(chunk) > self.expected:
            raise HubError("More bytes came than the file has.")
        super().write(chunk)

    @property
    def has_tensors(self) -> bool:
        """Whether it looks like safetensors: the length of the header, and the header's brace."""
        length = int.from_bytes(self.beginning[:8], "little")
        return self.beginning[8:9] == b"{" and length < self.incoming.size


async def _receive_object(request: ASGIRequest, receive: Any, oid: str) -> Answer:
    model, user, size = await sync_to_async(_grant_of)(request, oid)
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > settings.UPLOAD_MAX_BYTES:
        raise TooLarge
    incoming = IncomingFile(services.object_store(model.organization_id))
    body = ObjectBody(incoming, size)
    try:
        await drain(request, receive, body)
        await in_thread(lambda: _store_object(model, body, oid))
    except BaseException:
        incoming.discard()
        raise
    await sync_to_async(objects.note_received)(model, user, oid, size)
    return Answer(200, {})


def _grant_of(request: ASGIRequest, oid: str) -> tuple[RegisteredModel, User, int]:
    close_old_connections()
    return objects.granted(request.GET.get("grant", ""), oid)


def _store_object(model: RegisteredModel, body: ObjectBody, oid: str) -> None:
    """Keep the file under its hash, which must be the announced one; weights tensor by tensor."""
    pickles.check_content(body.beginning)
    identity = body.incoming.finish()
    if (identity.sha256, identity.size) != (oid, body.expected):
        raise HubError("The bytes that came are not those of the announced file; send it again.")
    if body.has_tensors:
        head = head_of(model, MAIN)
        like = head.tree.get(WEIGHTS, {}).get("sha256") if head else None
        services.object_store(model.organization_id).put_file(body.incoming.path, like)
        body.incoming.discard()
    else:
        body.incoming.commit()


# --- commits ------------------------------------------------------------------------------------------


async def _receive_commit(request: ASGIRequest, receive: Any, namespace: str, name: str, branch: str) -> Answer:
    user, model = await sync_to_async(_authorise)(request, namespace, name, branch)
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > settings.UPLOAD_MAX_BYTES + FIELD_LIMIT:
        raise TooLarge
    with tempfile.TemporaryDirectory(prefix="commit-") as folder:
        body = CommitBody(Path(folder))
        await drain(request, receive, body)  # type: ignore[arg-type]
        await asyncio.to_thread(body.close)
        added = await in_thread(lambda: _stored(model, user, body, branch))
    version = await sync_to_async(_commit)(user, model, body, added, branch)
    url = f"{origin(request)}/{repo_id(model)}/commit/{commit_id(version)}"
    return Answer(200, {"success": True, "commitOid": commit_id(version), "commitUrl": url, "hookOutput": ""})


def _authorise(request: ASGIRequest, namespace: str, name: str, branch: str) -> tuple[User, RegisteredModel]:
    """As for every view: the credential, the sight of the model, the right; before a byte is read."""
    close_old_connections()
    if not request.headers.get("Authorization"):
        raise NotAuthenticated
    presented = bearer(request)
    user = user_of_bearer(presented) if presented else None
    if user is None:
        raise Refused
    model = model_of(user, namespace, name)
    require(user, "model.write", model)
    if request.GET.get("create_pr", "").lower() in ("1", "true"):
        raise HubError("There are no pull requests here; commit to a branch and merge it.")
    branch_head(model, branch)
    return user, model


def _stored(model: RegisteredModel, user: User, body: CommitBody, branch: str) -> dict[str, dict[str, Any]]:
    """{path: what the tree says of it} of all files of a commit, with their bytes in the store."""
    known = objects.known_sizes(model, user, set(body.large.values()))
    unknown = [path for path, oid in body.large.items() if oid not in known]
    if unknown:
        raise HubError(f"The content of {unknown[0][:100]!r} was not sent (or a day ago); upload it again.")
    store = services.object_store(model.organization_id)
    try:
        store.revive(known)
    except MissingObject:
        raise HubError("A file was removed meanwhile; upload it again.") from None
    head = head_of(model, branch)
    earlier = {path: entry["sha256"] for path, entry in head.tree.items()} if head else {}
    stored = store.put_files([(place, earlier.get(path)) for path, place in body.files.items()])
    added = {path: {"sha256": one.sha256, "size": one.size} for path, one in zip(body.files, stored, strict=True)}
    return added | {path: {"sha256": oid, "size": known[oid]} for path, oid in body.large.items()}


def _commit(
    user: User, model: RegisteredModel, body: CommitBody, added: dict[str, dict[str, Any]], branch: str
) -> ModelVersion:
    try:
        return services.commit_files(
            actor=user, model=model, branch=branch, message=body.message, added=added, deleted=body.deleted,
            expected=body.parent, lineage={"source": "hub"},
        )  # fmt: skip
    except Conflict as conflict:
        if conflict.get_codes() == "ref_moved":
            raise HubError(str(conflict.detail), status=412) from None
        raise
    except DjangoValidationError as refused:
        fields = getattr(refused, "error_dict", {})
        if "deleted" in fields:
            raise EntryNotFound(f"A file with this name doesn't exist: {' '.join(refused.messages)}") from None
        if "branch" in fields:
            raise RevisionNotFound(branch) from None
        raise
