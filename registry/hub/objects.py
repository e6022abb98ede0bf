"""Large files on their way in: what a client may send, and which stored objects it may commit.

An object may be committed to a model when one of its versions has it, or when the same person has sent it to the
same model within a day. Knowing an id is not enough: it may be that of a file in a model that they may not see.
"""

import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.core import signing
from django.core.cache import cache

from dlplatform.accounts.access import may
from dlplatform.accounts.models import User
from registry.models import RegisteredModel

from .errors import HubError
from .revisions import visible_models

OBJECT_ID = re.compile(r"[0-9a-f]{64}")
REMEMBERED_SECONDS = 24 * 3600
GRANTED_SECONDS = 12 * 3600
SALT = "registry.hub.objects"


def answer_to(model: RegisteredModel, user: User, oid: str, size: int, known: dict[str, int], folder: str) -> Any:
    """One object of a batch: where to send it, nothing to do when we have it, or why not."""
    if size > settings.UPLOAD_MAX_BYTES:
        message = f"The file is larger than {settings.UPLOAD_MAX_BYTES:,} bytes, which is the limit here."
        return {"oid": oid, "size": size, "error": {"code": 413, "message": message}}
    if oid in known:
        return {"oid": oid, "size": known[oid]}
    href = f"{folder}/{oid}?{urlencode({'grant': grant(model, user, oid, size)})}"
    return {"oid": oid, "size": size, "actions": {"upload": {"href": href}}}


def grant(model: RegisteredModel, user: User, oid: str, size: int) -> str:
    """Lets whoever has it send this one object: clients send no credential with it."""
    return signing.dumps([str(model.pk), str(user.pk), oid, size], salt=SALT)


def granted(text: str, oid: str) -> tuple[RegisteredModel, User, int]:
    """Model, person and size of a grant. Raises HubError when it is not one, or its person may not write any more."""
    refusal = HubError("This address to send a file to is wrong or has expired; start the upload again.", status=403)
    try:
        model_id, user_id, granted_oid, size = signing.loads(text, salt=SALT, max_age=GRANTED_SECONDS)
    except signing.BadSignature:
        raise refusal from None
    user = User.objects.filter(pk=user_id, is_active=True).first()
    model = visible_models(user).filter(pk=model_id).first() if user and granted_oid == oid else None
    if user is None or model is None or not may(user, "model.write", model):
        raise refusal
    return model, user, size


def note_received(model: RegisteredModel, user: User, oid: str, size: int) -> None:
    cache.set(_key(model, user, oid), size, REMEMBERED_SECONDS)


def known_sizes(model: RegisteredModel, user: User, oids: Collection[str]) -> dict[str, int]:
    """{id: size} of those objects that this person may commit to this model."""
    keys = {_key(model, user, oid): oid for oid in oids}
    found = {keys[key]: size for key, size in cache.get_many(keys).items()}
    missing = set(oids) - found.keys()
    if missing:
        for tree in model.versions.values_list("tree", flat=True).iterator(chunk_size=50):
            found |= {one["sha256"]: one["size"] for one in tree.values() if one["sha256"] in missing}
    return found


def _key(model: RegisteredModel, user: User, oid: str) -> str:
    return f"hub-object:{model.pk}:{user.pk}:{oid}"
