"""Who may ask which deployment: decided by the same code as in the web process, remembered for a moment."""

import asyncio
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DatabaseError, DataError, close_old_connections
from django.http import Http404
from rest_framework.exceptions import NotAuthenticated
from rest_framework.exceptions import PermissionDenied as ScopeDenied

from dlplatform.accounts.access import in_scope, require
from dlplatform.accounts.authentication import user_of_bearer
from dlplatform.accounts.models import User
from dlplatform.api import Unavailable
from registry.serving.finding import find_deployment

FRESH_SECONDS = 1.0  # a decision is asked for again after this, behind the back of who asks
LAST_SECONDS = 3.0  # and after this before the answer: so long a revoked key can go on
AWAY_SECONDS = 600.0  # how long decisions stay good while the database does not answer
MOST = 20_000

REFUSALS = (NotAuthenticated, PermissionDenied, ScopeDenied, Http404, ValidationError)
Granted = TypeVar("Granted")


@dataclass(frozen=True)
class Target:
    """What a caller asks for: ``name`` or id, and the slug of the organization where one was given."""

    name: str
    organization: str | None = None


@dataclass
class _Decision(Generic[Granted]):
    granted: Granted | None
    refused: Exception | None
    until: float | None  # when the credential ends by itself, seconds since 1970
    at: float

    def result(self) -> Granted:
        if self.refused is not None:
            raise self.refused
        if self.until is not None and time.time() >= self.until:
            raise NotAuthenticated
        assert self.granted is not None
        return self.granted


class Gate(Generic[Granted]):
    """Remembers what ``decide`` said of a credential and a target. ``decide`` runs in ``threads`` and may ask the database."""

    def __init__(self, threads: Executor, decide: "Callable[[User, Target], Granted]") -> None:
        self._threads = threads
        self._decide = decide
        self._known: OrderedDict[tuple[str, Target], _Decision[Granted]] = OrderedDict()
        self._asking: dict[tuple[str, Target], asyncio.Task[_Decision[Granted]]] = {}
        self._away_until = 0.0

    async def admitted(self, bearer: str, target: Target) -> Granted:
        """What the caller was granted. Raises NotAuthenticated, PermissionDenied, Http404, ValidationError, Unavailable."""
        asked = (bearer, target)
        known = self._known.get(asked)
        now = time.monotonic()
        if known is not None:
            age = now - known.at
            if age < FRESH_SECONDS or (now < self._away_until and age < AWAY_SECONDS):
                return known.result()
            if age < LAST_SECONDS and known.refused is None:
                self._ask(asked)
                return known.result()
        return (await asyncio.shield(self._ask(asked))).result()

    def _ask(self, asked: tuple[str, Target]) -> "asyncio.Task[_Decision[Granted]]":
        task = self._asking.get(asked)
        if task is None:
            task = self._asking[asked] = asyncio.ensure_future(self._asked(asked))
            task.add_done_callback(lambda done: self._ended(asked, done))
        return task

    def _ended(self, asked: tuple[str, Target], task: "asyncio.Task[_Decision[Granted]]") -> None:
        self._asking.pop(asked, None)
        if not task.cancelled():
            task.exception()  # it was told to whoever waited; nobody has to have waited

    async def _asked(self, asked: tuple[str, Target]) -> _Decision[Granted]:
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._threads, self._decided, *asked)
        except DatabaseError:
            return self._while_away(asked)
        self._away_until = 0.0
        self._known[asked] = made
        self._known.move_to_end(asked)
        while len(self._known) > MOST:
            self._known.popitem(last=False)
        return made

    def _while_away(self, asked: tuple[str, Target]) -> _Decision[Granted]:
        """The last decision, for a time: nobody can be let in or shut out while the database is away."""
        now = time.monotonic()
        self._away_until = now + FRESH_SECONDS
        known = self._known.get(asked)
        if known is None or now - known.at > AWAY_SECONDS:
            raise Unavailable
        return known

    def _decided(self, bearer: str, target: Target) -> _Decision[Granted]:
        """In a thread. Raises DatabaseError."""
        close_old_connections()
        now = time.monotonic()
        try:
            user = user_of_bearer(bearer)
            if user is None:
                return _Decision(None, NotAuthenticated(), None, now)
            until = user.speaks_until.timestamp() if user.speaks_until else None
            try:
                if not in_scope(user, "predict"):
                    raise ScopeDenied
                return _Decision(self._decide(user, target), None, until, now)
            except REFUSALS as refused:
                return _Decision(None, refused, until, now)
            except DataError:  # a name that PostgreSQL knows no such text for; the database is not away
                return _Decision(None, Http404(), until, now)
        finally:
            close_old_connections()


@dataclass(frozen=True)
class Permit:
    """For a deployment, which was at this revision at the least."""

    deployment: UUID
    revision: int


def may_ask(user: User, target: Target) -> Permit:
    """For the deployment that the target means to a caller who may predict with it."""
    found = find_deployment(user, target.name, target.organization)
    require(user, "predict", found)
    return Permit(found.pk, found.revision)


def bearer_of(headers: dict[bytes, bytes]) -> str:
    """The credential of `Authorization: Bearer …`, or the password of `Basic`. Raises NotAuthenticated."""
    kind, _, presented = headers.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
    presented = presented.strip()
    if kind.lower() == "basic":
        presented = _password(presented)
    elif kind.lower() != "bearer":
        raise NotAuthenticated
    if not presented or " " in presented:
        raise NotAuthenticated
    return presented


def _password(encoded: str) -> str:
    """What clients that know only names and passwords send as the password: a key."""
    try:
        return b64decode(encoded, validate=True).decode("latin-1").partition(":")[2]
    except ValueError:
        raise NotAuthenticated from None
