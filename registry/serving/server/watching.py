"""Keeps what is served as the database says, without a gap: a new version takes traffic when it is loaded."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import DatabaseError, close_old_connections

from .deployments import Served, read, stamps
from .models import Models

LOOK_SECONDS = 0.4
LOADING_SECONDS = 120.0  # of which it is said that they are long

logger = logging.getLogger(__name__)


@dataclass
class Coming:
    """A newer state, whose versions are being loaded while the older state answers."""

    state: Served
    since: float = field(default_factory=time.monotonic)
    told: set[UUID] = field(default_factory=set)


class Watcher:
    """A thread that looks at the database. ``served`` is what answers; while the database is away it stays as it is."""

    def __init__(self, models: Models, looked: Callable[[], None] = lambda: None) -> None:
        """``looked`` is called after every look, also after one that the database did not answer."""
        self.served: dict[UUID, Served] = {}
        self.coming: dict[UUID, Coming] = {}
        self.unloadable: dict[UUID, str] = {}
        self.looked = threading.Event()  # once: what is deployed is known
        self._models = models
        self._tell_looked = looked
        self._stamps: dict[UUID, str] = {}
        self._wake = threading.Event()
        self._looking = threading.Lock()
        self._stopped = False
        self._away = False
        self._thread = threading.Thread(target=self._work, name="deployments", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stopped:
            try:
                self.look()
                self._away = False
            except DatabaseError as error:
                self._tell_away(error)
            self._tell_looked()
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()

    def _tell_away(self, error: DatabaseError) -> None:
        if not self._away:
            logger.warning("the database does not answer; what was deployed goes on answering: %s", error)
        self._away = True

    def look(self) -> None:
        """Follow what has changed since the last look. Raises DatabaseError."""
        with self._looking:
            close_old_connections()
            try:
                self._follow(stamps())
            finally:
                close_old_connections()
            self._models.follow_shadows(self._only_shadows())
            for coming in list(self.coming.values()):
                self._advance(coming)
            self._load_beside()
            self._models.pin(self._needed())
            self.looked.set()

    def knows(self, deployment: UUID, revision: int) -> bool:
        """Whether this revision of the deployment, or a newer one, has been seen, and something answers."""
        served, coming = self.served.get(deployment), self.coming.get(deployment)
        if served is None:  # also in the moment between seeing a new one and serving it
            return False
        return (coming.state if coming else served).revision >= revision

    def _follow(self, seen: dict[UUID, str]) -> None:
        changed = [pk for pk, stamp in seen.items() if self._stamps.get(pk) != stamp]
        for state in read(changed) if changed else ():
            self.coming[state.id] = Coming(state)
        self._stamps = seen
        for gone in (set(self.served) | set(self.coming)) - set(seen):
            self.served.pop(gone, None)
            self.coming.pop(gone, None)

    def _advance(self, coming: Coming) -> None:
        """Let the newer state answer as soon as its versions do; at once where nothing answers yet."""
        state = coming.state
        missing = {version for version in state.answering if self._models.ready(version) is None}
        for version in missing:
            self._await(coming, version)
        before = self.served.get(state.id)
        if not missing or before is None or not before.active:
            self.served[state.id] = state
        if not missing:
            self.coming.pop(state.id, None)
            for version in state.answering:
                self.unloadable.pop(version, None)

    def _await(self, coming: Coming, version: UUID) -> None:
        loading = self._models.load(version)
        if not loading.done():
            loading.add_done_callback(lambda _: self._wake.set())
            self._tell_long(coming, version)
        else:
            self._tell_unloadable(coming.state, version, loading, "what answered before goes on")

    def _tell_unloadable(self, state: Served, version: UUID, loading: "Future[Any]", so: str) -> None:
        error = loading.exception() if loading.done() and not loading.cancelled() else None
        if error is not None and self.unloadable.get(version) != str(error):
            self.unloadable[version] = str(error)
            logger.error(
                "deployment %s, revision %d: version %s cannot be loaded, %s: %s",
                state.name, state.revision, version, so, error,
            )  # fmt: skip

    def _tell_long(self, coming: Coming, version: UUID) -> None:
        if time.monotonic() - coming.since > LOADING_SECONDS and version not in coming.told:
            coming.told.add(version)
            logger.warning(
                "deployment %s, revision %d: version %s has been loading for %.0f s, what answered before goes on",
                coming.state.name, coming.state.revision, version, LOADING_SECONDS,
            )  # fmt: skip

    def _load_beside(self) -> None:
        """No change waits for a version that chance does not choose: a shadow gets no copies until it is loaded."""
        for state in self.served.values():
            for version in state.versions - state.answering:
                if self._models.ready(version) is not None:
                    self.unloadable.pop(version, None)
                else:
                    self._tell_unloadable(state, version, self._models.load(version), "the others answer")

    def _only_shadows(self) -> set[UUID]:
        """Versions that answer nobody, and will not when what is coming is there."""
        states = [*self.served.values(), *(one.state for one in self.coming.values())]
        answering = {one.version for state in states if state.active for one in state.live.values()}
        return set().union(*(state.versions for state in states)) - answering

    def _needed(self) -> set[UUID]:
        states = [*self.served.values(), *(one.state for one in self.coming.values())]
        needed: set[UUID] = set().union(*(state.versions for state in states))
        self.unloadable = {version: why for version, why in self.unloadable.items() if version in needed}
        return needed

    @property
    def loading(self) -> set[UUID]:
        """Versions that are deployed and neither loaded nor known as unloadable."""
        wanted: set[UUID] = set().union(*(one.state.answering for one in list(self.coming.values())))
        return {version for version in wanted - set(self.unloadable) if self._models.ready(version) is None}
