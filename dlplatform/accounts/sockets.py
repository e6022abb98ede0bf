"""What every WebSocket shares: who is calling, from which origin, and a sender that never waits for a slow client."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from channels.db import database_sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.sessions.backends.db import SessionStore
from django.http import HttpRequest
from django.http.request import validate_host

from .authentication import user_of_bearer
from .models import User

CLOSE_UNAUTHENTICATED = 4401
CLOSE_FORBIDDEN_ORIGIN = 4403
CLOSE_NOT_FOUND = 4404
CLOSE_TRY_AGAIN = 1013
CLOSE_POLICY = 1008

QUEUE_MESSAGES = 2000
SEND_SECONDS = 10.0
SUBPROTOCOL = "bearer"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Credential:
    """What the caller presented; the same value is checked again while the socket is open."""

    bearer: str = ""
    session: str = ""

    def user(self) -> User | None:
        """The person behind it now, or None once it is expired, revoked or logged out."""
        if self.bearer:
            return user_of_bearer(self.bearer)
        if not self.session:
            return None
        request = HttpRequest()
        request.session = SessionStore(self.session)
        user = get_user(request)
        return user if isinstance(user, User) and user.is_active else None


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", [])}


def query_of(scope: Scope) -> dict[str, str]:
    parsed = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return {name: values[-1] for name, values in parsed.items()}


def credential_of(scope: Scope) -> Credential:
    """A bearer header, the subprotocols ["bearer", token], or the session cookie."""
    headers = headers_of(scope)
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        return Credential(bearer=token.strip())
    offered = scope.get("subprotocols", [])
    if len(offered) == 2 and offered[0] == SUBPROTOCOL:
        return Credential(bearer=offered[1])
    cookie = SimpleCookie(headers.get("cookie", "")).get(settings.SESSION_COOKIE_NAME)
    return Credential(session=cookie.value if cookie else "")


def origin_is_ours(scope: Scope, credential: Credential) -> bool:
    """A browser must come from the page's own host; a program without Origin must bring a bearer token."""
    headers = headers_of(scope)
    host = headers.get("host", "")
    if not validate_host(host.rsplit(":", 1)[0] if not host.endswith("]") else host, settings.ALLOWED_HOSTS):
        return False
    origin = headers.get("origin")
    if origin is None:
        return bool(credential.bearer)
    return urlsplit(origin).netloc == host or origin in settings.CSRF_TRUSTED_ORIGINS


class Subscriber:
    """The sending half of one socket: a bounded queue; a client that does not read is dropped, never waited for."""

    def __init__(self, send: Send, credential: Credential, last: int = 0) -> None:
        self.credential = credential
        self.last = last
        self.closing: int | None = None
        self._send = send
        self._waiting: deque[str] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._sending_since: float | None = None

    def offer(self, text: str, sequence: int = 0) -> None:
        """Queue one message, unless this client has it already."""
        if sequence and sequence <= self.last:
            return
        self.last = max(self.last, sequence)
        if len(self._waiting) >= QUEUE_MESSAGES:
            self.close(CLOSE_TRY_AGAIN)
        else:
            self._waiting.append(text)
            self._rouse()

    def close(self, code: int) -> None:
        self.closing = self.closing or code
        self._waiting.clear()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def stuck(self) -> bool:
        """One message has been on its way for too long: the client does not read."""
        return self._sending_since is not None and time.monotonic() - self._sending_since > SEND_SECONDS

    async def run(self) -> None:
        """Send until closed; returns after the close frame. A thousand of these run at once: it does little."""
        try:
            while not self.closing:
                while self._waiting and not self.closing:
                    self._sending_since = time.monotonic()
                    await self._send({"type": "websocket.send", "text": self._waiting.popleft()})
                self._sending_since = None
                if not self.closing:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
            await self._send({"type": "websocket.close", "code": self.closing})
        except OSError:  # the client is gone
            return


async def enter(scope: Scope, receive: Receive, send: Send) -> tuple[User, Credential] | None:
    """Check origin and caller and accept the socket; close it and answer None otherwise."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return None
    credential = credential_of(scope)
    code = None
    user = None
    if not origin_is_ours(scope, credential):
        code = CLOSE_FORBIDDEN_ORIGIN
    else:
        user = await database_sync_to_async(credential.user)()
        code = None if user else CLOSE_UNAUTHENTICATED
    chosen = SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", []) else None
    await send({"type": "websocket.accept", "subprotocol": chosen})
    if code or user is None:
        await send({"type": "websocket.close", "code": code or CLOSE_UNAUTHENTICATED})
        return None
    return user, credential


async def until_disconnect(receive: Receive) -> None:
    """Our sockets only send: a message from the client is ignored, a flood of them ends the socket."""
    received = 0
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        received += 1
        if received > 1000:
            return


async def serve(subscriber: Subscriber, receive: Receive) -> None:
    """Send and receive until either side ends."""
    sending = asyncio.create_task(subscriber.run())
    receiving = asyncio.create_task(until_disconnect(receive))
    try:
        done: set[Any] = set()
        while not done and not subscriber.stuck():
            done, _ = await asyncio.wait(
                {sending, receiving}, timeout=SEND_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
