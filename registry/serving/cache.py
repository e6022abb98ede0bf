"""Packages of model versions on this machine's disk, and predictors of them in this process's memory."""

import threading
from collections import OrderedDict
from pathlib import Path
from uuid import UUID

from django.conf import settings

from dlplatform.engine.package import MODEL, PackageError
from dlplatform.engine.predict import Predictor
from registry import own_code
from registry.models import ModelVersion
from registry.packages import package_files, safe_target
from registry.services import object_store

from .confined import ConfinedPredictor

PROCESS_BYTES = 300 * 1024**2  # of an interpreter with torch


class PredictorCache:
    """Predictors by version, the least recently used out first once their files exceed ``budget`` bytes."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[UUID, tuple[Predictor | ConfinedPredictor, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version_id: UUID) -> Predictor | ConfinedPredictor:
        """Raises ModelVersion.DoesNotExist, PackageError, MissingObject, CorruptObject."""
        with self._lock:
            if version_id in self._held:
                predictor, _ = self._held[version_id]
                if not isinstance(predictor, ConfinedPredictor) or predictor.alive:
                    self._held.move_to_end(version_id)
                    return predictor
                self._let_go(version_id)
            version = ModelVersion.objects.select_related("model", "base").get(pk=version_id)
            predictor = loaded(version)
            self._held[version_id] = (predictor, version.size + _memory_of(predictor))
            self._evict()
            return predictor

    def _evict(self) -> None:
        while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._budget:
            self._let_go(next(iter(self._held)))

    def _let_go(self, version_id: UUID) -> None:
        predictor, _ = self._held.pop(version_id)
        if isinstance(predictor, ConfinedPredictor):
            predictor.close()


def _memory_of(predictor: Predictor | ConfinedPredictor) -> int:
    """Bytes that a predictor needs besides its weights."""
    return PROCESS_BYTES if isinstance(predictor, ConfinedPredictor) else 0


def loaded(version: ModelVersion) -> Predictor | ConfinedPredictor:
    """A predictor in this process; in a sandbox where the model is built by code of its own. Raises PackageError."""
    folder = package_directory(version)
    if not own_code.brings_code(version):
        return Predictor(folder)
    if not own_code.is_trusted(version):
        raise PackageError("its code is not the code that a run here was launched with, and is not run.")
    return ConfinedPredictor(version.pk, folder)


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
