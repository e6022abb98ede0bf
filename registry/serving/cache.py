"""Packages of model versions on this machine's disk, and predictors of them in this process's memory."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from dlplatform.engine.adapters import share_base
from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.package import MODEL, PackageError
from dlplatform.engine.predict import Predictor
from registry import graphs, own_code
from registry.models import ModelVersion
from registry.packages import package_files, safe_target
from registry.services import object_store

from .confined import ConfinedPredictor

PROCESS_BYTES = 300 * 1024**2  # of an interpreter with torch
QUICK_SECONDS = 0.002  # for so long a model may hold up who answers everybody
QUICK_ROWS = 8  # as many at the least within that, or it is not worth it
PACE_ROWS = 32  # with which it is measured


@dataclass
class Held:
    """A predictor in memory. ``size``: its own bytes. ``at_once``: rows that it answers within QUICK_SECONDS; 0 for all that
    take longer. ``base``: what it is an adapter of, whose bytes all adapters of one base share."""

    predictor: Predictor | ConfinedPredictor
    size: int
    at_once: int
    base: UUID | None = None
    base_size: int = 0


class PredictorCache:
    """Predictors by version; the least recently used that is not pinned goes once all exceed ``budget`` bytes.

    ``added`` is told of each predictor of this process that comes, ``dropped`` of each that goes. One thread loads a version
    while others get further ones. ``yields`` says which versions' processes let all others go first.
    """

    def __init__(
        self, budget: int, dropped: "Callable[[UUID, Predictor | ConfinedPredictor], None] | None" = None,
        yields: Callable[[UUID], bool] = lambda version: False,
        added: Callable[[UUID, Predictor], None] = lambda version, predictor: None,
    ) -> None:  # fmt: skip
        self._budget = budget
        self._yields = yields
        self._dropped = dropped or _close
        self._added = added
        self._held: OrderedDict[UUID, Held] = OrderedDict()
        self._pinned: frozenset[UUID] = frozenset()
        self._lock = threading.Lock()
        self._loading: dict[UUID, threading.Lock] = {}

    def ready(self, version_id: UUID) -> Predictor | ConfinedPredictor | None:
        """The predictor, if it is here and alive."""
        with self._lock:
            held = self._held.get(version_id)
            if held is None:
                return None
            if not isinstance(held.predictor, ConfinedPredictor) or held.predictor.alive:
                self._held.move_to_end(version_id)
                return held.predictor
            self._let_go(version_id)
        return None

    def at_once(self, version_id: UUID) -> int:
        """How many rows of a version that is ready hold nobody up; 0 where even one would."""
        held = self._held.get(version_id)
        return held.at_once if held else 0

    def get(self, version_id: UUID) -> Predictor | ConfinedPredictor:
        """Raises ModelVersion.DoesNotExist, PackageError, MissingObject, CorruptObject."""
        found = self.ready(version_id)
        if found is not None:
            return found
        with self._lock:
            alone = self._loading.setdefault(version_id, threading.Lock())
        with alone:
            return self.ready(version_id) or self._load(version_id)

    def _load(self, version_id: UUID) -> Predictor | ConfinedPredictor:
        version = ModelVersion.objects.select_related("model", "base").get(pk=version_id)
        predictor = loaded(version, yields=self._yields(version_id))
        held = Held(predictor, version.size + _memory_of(predictor), warm(predictor, version.signature))
        if version.base is not None:
            self._over(held, version.base)
        with self._lock:
            self._held[version_id] = held
            self._evict()
            self._loading.pop(version_id, None)
            if isinstance(predictor, Predictor):
                self._added(version_id, predictor)
        return predictor

    def swapped(self, version_id: UUID, predictor: Predictor, more: int) -> None:
        """Its network was put in the place of another, which took so many bytes more and answers at another pace."""
        at_once = warm(predictor, predictor.description)
        with self._lock:
            held = self._held.get(version_id)
            if held is not None and held.predictor is predictor:
                held.at_once = at_once
                held.size += more
                self._evict()

    def _over(self, held: Held, base: ModelVersion) -> None:
        """An adapter takes the weights of its base from whoever has them already."""
        if isinstance(held.predictor, ConfinedPredictor) or held.predictor.network is None:
            held.size += base.size
            return
        held.base, held.base_size = base.pk, base.size
        with self._lock:
            others = [one.predictor for pk, one in self._held.items() if base.pk in (pk, one.base)]
        for other in others:
            if isinstance(other, Predictor) and other.network is not None:
                share_base(held.predictor.network, other.network)
                return

    def pin(self, versions: Collection[UUID]) -> None:
        """These stay, and only these, whatever the budget."""
        with self._lock:
            self._pinned = frozenset(versions)
            self._evict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def sizes(self) -> dict[UUID, int]:
        """Bytes of every version that is held, and of every base that adapters share."""
        with self._lock:
            return self._sizes()

    def _sizes(self) -> dict[UUID, int]:
        shared = {held.base: held.base_size for held in self._held.values() if held.base is not None}
        return shared | {version: held.size for version, held in self._held.items()}

    def drop_yielding(self, but: Collection[UUID]) -> None:
        """Let go of the processes that let others go first, but those of these versions."""
        with self._lock:
            for version, held in list(self._held.items()):
                if isinstance(held.predictor, ConfinedPredictor) and held.predictor.yields and version not in but:
                    self._let_go(version)

    def clear(self) -> None:
        with self._lock:
            for version in list(self._held):
                self._let_go(version)

    def _evict(self) -> None:
        """Never the newest: somebody is about to use it."""
        for version in [one for one in list(self._held)[:-1] if one not in self._pinned]:
            if sum(self._sizes().values()) <= self._budget:
                return
            self._let_go(version)

    def _let_go(self, version_id: UUID) -> None:
        self._dropped(version_id, self._held.pop(version_id).predictor)


def _close(_version: UUID, predictor: Predictor | ConfinedPredictor) -> None:
    if isinstance(predictor, ConfinedPredictor):
        predictor.close()


def warm(predictor: Predictor | ConfinedPredictor, signature: dict[str, Any]) -> int:
    """Answer the example of the inputs: torch does much at its first time. How many rows it answers within QUICK_SECONDS
    then. Raises PackageError for a model that cannot answer."""
    if isinstance(predictor, ConfinedPredictor) or predictor.writer is not None:
        return 0
    example = {column["name"]: column.get("example") for column in signature.get("inputs", ())}
    try:
        if predictor.steady:
            example = predictor.example(example)
        predictor.predict([example])
        return _quick_rows(predictor, example) if predictor.steady else 0
    except PredictionInputError:
        return 0  # an example is for people
    except Exception as error:
        raise PackageError(f"it loads but cannot answer: {type(error).__name__}: {error}") from error


def _quick_rows(predictor: Predictor, example: dict[str, Any]) -> int:
    one, many = (_seconds(predictor, [example] * rows) for rows in (1, PACE_ROWS))
    of_each = max((many - one) / (PACE_ROWS - 1), 1e-6)
    rows = int((QUICK_SECONDS - one) / of_each)
    return rows if rows >= QUICK_ROWS else 0


def _seconds(predictor: Predictor, rows: list[dict[str, Any]]) -> float:
    """Of this thread's own work, the best of some times: that others were busy meanwhile, when a model is loaded beside
    those that answer, says nothing of it."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        predictor.predict(rows)
        times.append(time.thread_time() - began)
    return min(times)


def _memory_of(predictor: Predictor | ConfinedPredictor) -> int:
    """Bytes that a predictor needs besides its weights."""
    return PROCESS_BYTES if isinstance(predictor, ConfinedPredictor) else 0


def loaded(version: ModelVersion, *, yields: bool = False) -> Predictor | ConfinedPredictor:
    """A predictor in this process; in a sandbox where the model is built by code of its own, of low priority if it
    ``yields``. Raises PackageError."""
    graphs.require_ours(version)
    folder = package_directory(version)
    if not own_code.brings_code(version):
        return Predictor(folder)
    if not own_code.is_trusted(version):
        raise PackageError("its code is not the code that a run here was launched with, and is not run.")
    return ConfinedPredictor(version.pk, folder, yields)


def package_directory(version: ModelVersion) -> Path:
    """The version's files in a folder of this machine; each is verified as it comes from the store."""
    if MODEL not in version.tree:
        raise PackageError(f"This version has no {MODEL}: it was not trained here, and other programs load it.")
    folder = settings.CACHE_PATH / "packages" / version.digest
    store = object_store(version.model.organization_id)
    for path, entry in package_files(version):
        target = safe_target(folder, path)
        if not target.exists() or target.stat().st_size != entry["size"]:
            store.fetch(entry["sha256"], target)
    return folder
