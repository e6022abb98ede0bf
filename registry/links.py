"""Links to a version's files that need no account, signed and expiring.

A link works as long as its maker may see the version: taking away their access takes away their links.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core import signing
from django.utils import timezone

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from .models import ModelVersion

SALT = "registry.links"
LONGEST = timedelta(days=30)


def sign_link(*, actor: User, version: ModelVersion, path: str, lasts: timedelta) -> tuple[str, datetime]:
    """(token, when it expires) for one file of a version, or for the whole of it when ``path`` is empty."""
    require(actor, "read", version)
    expires = timezone.now() + min(lasts, LONGEST)
    content = {"v": str(version.pk), "p": path, "u": str(actor.pk), "e": int(expires.timestamp())}
    audit.record(actor, "version.link", version, version.model.organization, path=path, expires=expires.isoformat())
    return signing.dumps(content, salt=SALT, compress=True), expires


def read_link(token: str) -> tuple[ModelVersion, str] | None:
    """(version, path) of a link that is ours, has not expired and whose maker may still see the version; else None."""
    try:
        content: dict[str, Any] = signing.loads(token, salt=SALT)
    except signing.BadSignature:
        return None
    maker = User.objects.filter(pk=UUID(content["u"]), is_active=True).first()
    if maker is None or timezone.now().timestamp() > content["e"]:
        return None
    rows = ModelVersion.objects.visible_to(maker).select_related("model")
    version = rows.filter(pk=UUID(content["v"])).first()
    return (version, str(content["p"])) if version else None
