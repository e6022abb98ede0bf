"""How a caller proves who they are: API key, JWT or session cookie; the same three on HTTP and sockets."""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from rest_framework.authentication import BaseAuthentication, SessionAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken, Token

from . import keys
from .models import User

FINGERPRINT = "pwd"


class Refused(AuthenticationFailed):
    """Answered like every other 401 (`dlplatform.api.ErrorHandler`): an attacker learns nothing from it."""


def bearer(request: Any) -> str | None:
    """The credential of an `Authorization: Bearer …` header, or None."""
    parts = get_authorization_header(request).split()
    if len(parts) != 2 or parts[0].lower() != b"bearer":
        return None
    return parts[1].decode("latin-1")


class ApiKeyAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, Any] | None:
        presented = bearer(request)
        if presented is None or not presented.startswith(keys.MARK):
            return None
        user = user_of_bearer(presented)
        if user is None:
            raise Refused
        return user, presented

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="api"'


class TokenAuthentication(JWTAuthentication):
    """A JWT access token; void from the moment the password changes or the user is deactivated."""

    def authenticate(self, request: Request) -> tuple[User, Any] | None:
        presented = bearer(request)
        if presented is None:
            if request.META.get("HTTP_AUTHORIZATION"):
                raise Refused
            return None
        user = user_of_bearer(presented)
        if user is None:
            raise Refused
        return user, presented


class CookieAuthentication(SessionAuthentication):
    """The browser's session, with CSRF checked; answers 401, not 403, to a caller without one."""

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="api"'


def password_fingerprint(user: User) -> str:
    """Changes with the password, so that a token minted before the change is refused after it."""
    return hmac.new(settings.SECRET_KEY.encode(), user.password.encode(), hashlib.sha256).hexdigest()[:16]


def tokens_for(user: User) -> dict[str, str]:
    refresh = RefreshToken.for_user(user)
    refresh[FINGERPRINT] = password_fingerprint(user)
    return {"access": str(refresh.access_token), "refresh": str(refresh)}


def rotate(presented: str) -> dict[str, str] | None:
    """A new pair for a live refresh token, which is spent by this; None for any other token."""
    try:
        token = RefreshToken(presented)  # type: ignore[arg-type]
    except TokenError:
        return None
    user = _user_of(token)
    if user is None:
        return None
    token.blacklist()
    return tokens_for(user)


def revoke(presented: str) -> bool:
    try:
        RefreshToken(presented).blacklist()  # type: ignore[arg-type]
    except TokenError:
        return False
    return True


def user_of_bearer(presented: str) -> User | None:
    """The person behind an API key or an access token, with the key's scopes and the end of either set on them."""
    if presented.startswith(keys.MARK):
        key = keys.find(presented)
        if key is None:
            return None
        key.user.scopes = frozenset(key.scopes)
        key.user.speaks_until = key.expires_at
        return key.user
    try:
        return _user_of(AccessToken(presented))  # type: ignore[arg-type]
    except TokenError:
        return None


def _user_of(token: Token) -> User | None:
    user = User.objects.filter(pk=token.get("user_id"), is_active=True).first()
    if user is None or token.get(FINGERPRINT) != password_fingerprint(user):
        return None
    user.speaks_until = datetime.fromtimestamp(token["exp"], UTC)
    return user
