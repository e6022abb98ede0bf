"""RQ entry point of datasets: ingest one version."""

import logging
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from dlplatform.jobs import LeaseLost

from . import additions, services
from .images import NotWhatWasSaid, store_images
from .ingestion.isolation import CRASHED, ingest_in_child
from .ingestion.limits import Limits
from .ingestion.result import Base, Column, IngestResult, rejected
from .models import DatasetVersion

logger = logging.getLogger(__name__)

RENEW_SECONDS = 1.0
STORING = 0.99  # the progress at which the child is done


class Stopped(Exception):
    """A cancel was asked for, or the worker is to end, while the result was being stored."""


def ingest(version: str) -> None:
    """Work on a version, unless it is gone, held, ended or not yet due."""
    if additions.waits(UUID(version)):
        return  # the version before it wakes it when it has ended
    claimed = DatasetVersion.claim(UUID(version))
    if claimed is not None:
        Ingestion(claimed).work()


class Ingestion:
    """One claimed version: the file comes out of the store, a child reads it, its parts go into the store."""

    def __init__(self, version: DatasetVersion) -> None:
        self.version = version
        self.store = services.object_store(version.dataset.organization_id)
        self.base = additions.base_of(version) if version.extends_id else None
        self.cancelled = False
        self.draining = False
        self._renewed = 0.0
        self._progress: tuple[float, str] = (0.0, "reading")

    def work(self) -> None:
        signal.signal(signal.SIGTERM, self._drain)
        services.announce(self.version)
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=settings.JOB_PATH))
        try:
            self._conclude(self._ingest(folder), folder / "parts")
            additions.wake_following(self.version)
        except LeaseLost:
            return
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _drain(self, _signal: int, _frame: Any) -> None:
        self.draining = True

    def _ingest(self, folder: Path) -> IngestResult:
        if self.version.extends_id and self.base is None:
            return rejected(additions.NOTHING_LEFT)
        source = folder / "source"
        self.store.fetch(self.version.source_sha256, source)
        return ingest_in_child(
            source,
            folder / "parts",
            filename=self.version.filename,
            content_type=self.version.content_type,
            limits=Limits(bytes=settings.UPLOAD_MAX_BYTES),
            base=self._fetched(folder) if self.base else None,
            on_progress=self._note,
            should_stop=self._stop,
        )

    def _fetched(self, folder: Path) -> Base:
        """The version that the rows join; its parts are copies, since the child reaches no store."""
        assert self.base is not None
        parts = []
        for index, part in enumerate(self.base.parts):
            parts.append(folder / f"base-{index:05d}.parquet")
            self.store.fetch(part["sha256"], parts[-1])
            self._stop()
        return Base(parts, [Column.from_dict(column) for column in self.base.columns])

    def _note(self, fraction: float, phase: str) -> None:
        self._progress = (min(max(fraction, 0.0), 1.0), phase[:60])

    def _stop(self) -> bool:
        """Asked ten times a second while the child works; once a second it keeps the lease."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._renewed = time.monotonic()
            self.cancelled = self.version.renew() or self.cancelled
            fraction, phase = self._progress
            self.version.write(progress=fraction, phase=phase)
            services.announce(self.version)
        return self.cancelled or self.draining

    def _conclude(self, result: IngestResult, parts: Path) -> None:
        version = self.version
        if not (self.cancelled or self.draining):
            self._store(result, parts)
        if self.cancelled:
            version.finish(DatasetVersion.State.CANCELLED, phase="")
        elif self.draining and not version.ended:
            version.release(charge=False, progress=0.0, phase="")
        services.announce(version)

    def _store(self, result: IngestResult, parts: Path) -> None:
        try:
            self._finish(result, parts)
        except Stopped:
            return
        except NotWhatWasSaid as error:
            logger.warning("version %s: %s", self.version.pk, error)
            self._finish(rejected(CRASHED), parts)

    def _finish(self, result: IngestResult, parts: Path) -> None:
        images, image_bytes = self._stored_images(result, parts)
        stored = []
        for part in result.parts:
            kept = self.store.put_file(parts / part.path)
            stored.append({"sha256": kept.sha256, "rows": part.rows, "bytes": kept.size})
            self.version.renew()
        joined = {"extends": self.base} if self.base else {}
        parts_of_all = [*(self.base.parts[: result.kept] if self.base else []), *stored]
        answer = result.to_dict()
        self.version.finish(
            result.state,
            progress=1.0,
            phase="",
            rows=result.rows,
            bytes=sum(part["bytes"] for part in parts_of_all) + image_bytes,
            images=images,
            columns=answer["columns"],
            parts=parts_of_all,
            profile=answer["profile"],
            problems=answer["problems"],
            detected={**answer["detected"], "problem_count": result.problem_count},
            **joined,
        )

    def _stored_images(self, result: IngestResult, folder: Path) -> tuple[dict[str, Any], int]:
        """Before the parts, which name them."""
        if result.images is None:
            return {}, 0
        everything, done = max(result.images.bytes, 1), 0

        def beat(count: int) -> None:
            nonlocal done
            done += count
            self._note(STORING, f"storing the images, {min(done / everything, 1):.0%}")
            if self._stop():
                raise Stopped

        return store_images(self.store, folder, result.images, beat)
