"""API keys: `dlp_<prefix>_<secret>`; the secret is shown once and kept as a peppered HMAC."""

import hashlib
import hmac
import secrets
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from .models import ApiKey

MARK = "dlp_"
LAST_USED_STEP = timedelta(minutes=1)


def new_secret() -> tuple[str, str, str]:
    """A fresh key: (prefix, the whole key as the owner will send it, digest to store)."""
    prefix = secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    return prefix, f"{MARK}{prefix}_{secret}", digest(secret)


def digest(secret: str) -> str:
    pepper = hashlib.sha256(b"api-key-pepper:" + settings.SECRET_KEY.encode()).digest()
    return hmac.new(pepper, secret.encode(), hashlib.sha256).hexdigest()


def find(presented: str) -> ApiKey | None:
    """The live key that was presented, or None for every other case, in constant time per candidate."""
    prefix, _, secret = presented.removeprefix(MARK).partition("_")
    key = ApiKey.objects.live().select_related("user").filter(prefix=prefix[:16]).first()
    stored = key.digest if key else digest("no such key")
    if not hmac.compare_digest(stored, digest(secret)) or key is None:
        return None
    _touch(key)
    return key


def _touch(key: ApiKey) -> None:
    """Note the use, at most once a minute: a busy key must not cost a write a request."""
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at > LAST_USED_STEP:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)
