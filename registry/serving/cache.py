"""Packages of model versions on this machine's disk, and predictors of them in this process's memory."""

import threading
from collections import OrderedDict
from pathlib import Path
from uuid import UUID

from django.conf import settings

from dlplatform.engine.package import MODEL, PackageError
from dlplatform.engine.predict import Predictor
from registry.models import ModelVersion
from registry.packages import package_files, safe_target
from registry.services import object_store


class PredictorCache:
    """Predictors by version, the least recently used out first once their files exceed ``budget`` bytes."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: OrderedDict[UUID, tuple[Predictor, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version_id: UUID) -> Predictor:
        """Raises ModelVersion.DoesNotExist, PackageError, MissingObject, CorruptObject."""
        with self._lock:
            if version_id in self._held:
                self._held.move_to_end(version_id)
                return self._held[version_id][0]
            version = ModelVersion.objects.select_related("model", "base").get(pk=version_id)
            predictor = Predictor(package_directory(version))
            self._held[version_id] = (predictor, version.size)
            self._evict()
            return predictor

    def _evict(self) -> None:
        while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._budget:
            self._held.popitem(last=False)


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
