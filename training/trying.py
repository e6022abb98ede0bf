"""The work of a preflight: a small job directory, and the engine on it in a child of its own."""

import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from django.conf import settings

from datasets.images import records_of
from datasets.services import local_parts
from dlplatform.accounts.access import may_run_code
from dlplatform.engine.job import SPEC
from dlplatform.jobs import LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject
from dlplatform.objects.store import ObjectStore
from dlplatform.sandbox.process import WORK, Unconfinable

from . import states
from .accelerators import leases
from .confined import SandboxConnection, allowed_to_code, read_plain
from .connection import Connection, LocalConnection
from .job_directories import fetch_base, fetch_code
from .models import Preflight
from .preflights import outlook
from .vetting import vetted_trial

RESULT = "trial.json"
MOST_TOLD = 1 << 16
MOST_ROWS = 20_000
MOST_IMAGES = 1_000
PATIENCE = 180.0
RENEW_SECONDS = 1.0
POLL_SECONDS = 0.05
FAILURES = {
    "too_slow": ("Two steps took longer than {seconds:.0f} seconds.", "Choose a smaller model or less data."),
    "died": ("The trial ended without a word; memory may have run out.", "Lower the batch size or the model's width."),
    "too_few_accelerators": (
        "The run asks for {asked} GPUs, and {idle} of this machine's are idle now.",
        "Try again later, or lower `devices`.",
    ),
    "data_unavailable": ("The dataset's files could not be read: {reason}", "Upload the data again as a new version."),
}


class Stopped(Exception):
    """The worker is stopping, or somebody asked to cancel."""


def _failure(code: str, **values: Any) -> dict[str, str]:
    sentence, next_step = FAILURES[code]
    return {"code": code, "sentence": sentence.format(**values), "next_step": next_step}


def _connection_for(preflight: Preflight) -> Connection:
    """A sandbox for code of a user's own; else a fork of this process."""
    from dlplatform.engine.trial import try_out

    return SandboxConnection(preflight) if preflight.code_id else LocalConnection(try_out)


class Trying:
    """One claimed preflight."""

    def __init__(self, preflight: Preflight) -> None:
        self.preflight = preflight
        self.connection = _connection_for(preflight)
        self._draining = self._cancelled = False
        self._renewed = time.monotonic()

    def work(self) -> None:
        """From the claim to the end. Never leaves an engine behind."""
        signal.signal(signal.SIGTERM, self._drain)
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="preflight_", dir=settings.JOB_PATH) as folder:
                self._finish(self._ended(Path(folder)))
        except Stopped:
            self.preflight.finish("cancelled") if self._cancelled else self.preflight.release(charge=False)
        except (MissingObject, CorruptObject) as error:
            self.preflight.finish("failed", error=_failure("data_unavailable", reason=error))
        except LeaseLost:
            return

    def _ended(self, folder: Path) -> dict[str, Any]:
        """What the trial told; nothing of it works in the folder, or on a device, any more."""
        try:
            return self._tried(folder)
        finally:
            self.connection.kill()
            leases.give_back(self.preflight)

    def _drain(self, _signal: int, _frame: Any) -> None:
        self._draining = True

    def _finish(self, told: dict[str, Any]) -> None:
        if error := told.get("error"):
            self.preflight.finish("failed", error={name: error[name] for name in ("code", "sentence", "next_step")})
        else:
            self.preflight.finish("succeeded", result=told)

    def _tried(self, folder: Path) -> dict[str, Any]:
        if not self._permitted():
            return {"error": states.failure("code_not_permitted")}
        share = self._prepare(folder)
        try:
            self.connection.start(folder, leases.hold_for_trial(self.preflight))
        except leases.TooFew as few:
            asked, idle = few.args
            return {"error": _failure("too_few_accelerators", asked=asked, idle=idle)}
        except Unconfinable as error:
            return {"error": states.failure("sandbox_unavailable", reason=f" ({error})")}
        began = time.monotonic()
        while self.connection.poll() is None:
            self._beat()
            if time.monotonic() - began > PATIENCE:
                return {"error": _failure("too_slow", seconds=PATIENCE)}
            time.sleep(POLL_SECONDS)
        told = self._told(folder)
        return told if "error" in told else outlook(told, share)

    def _told(self, folder: Path) -> dict[str, Any]:
        """What the engine found; of code of a user's own only what has that shape."""
        code = self.preflight.code_id
        if fault := self.connection.fault():
            return {"error": states.failure(fault, **allowed_to_code())}
        text = read_plain((folder / WORK if code else folder) / RESULT, MOST_TOLD)
        if not text:
            return {"error": _failure("died")}
        try:
            told = json.loads(text)
        except ValueError:
            told = None
        return (vetted_trial(told) if code else told) or {"error": _failure("died")}

    def _permitted(self) -> bool:
        """To run code of one's own; it may have been taken back since this was asked for."""
        row = self.preflight
        organization = row.dataset_version.dataset.organization
        return not row.code_id or (row.created_by is not None and may_run_code(row.created_by, organization))

    def _beat(self, _count: int = 1) -> None:
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._renewed = time.monotonic()
            self._cancelled = self.preflight.renew() or self._cancelled
        if self._cancelled or self._draining:
            raise Stopped

    # --- the job directory --------------------------------------------------------------------------

    def _prepare(self, folder: Path) -> float:
        """Write spec and data; the share of the version's rows that was taken."""
        row = self.preflight
        version = row.dataset_version
        columns = self._columns()
        images = sorted(set(version.image_columns) & set(columns)) if version.images else []
        (folder / "data").mkdir()
        most = MOST_IMAGES if images else MOST_ROWS
        taken, digests = self._write_rows(folder / "data" / "part-00000.parquet", columns, images, most)
        self._fetch_images(folder / "data" / "images", digests)
        spec = {
            "format": 1,
            "run": str(row.pk),
            "attempt": 1,
            "task": row.task,
            "target": row.targets if len(row.targets) > 1 else row.targets[0],
            "columns": [{"name": one["name"], "type": one["type"]} for one in version.columns],
            "features": row.features,
            "data": ["data/part-00000.parquet"],
            "config": row.config,
            "rows": version.rows or taken,
            **({"finetune": row.finetune} if row.finetune else {}),
            **({"entry": row.entry, "trial": True} if row.code_id else {}),
        }
        fetch_base(row.base_version, folder, self._beat)
        fetch_code(row.code, folder)
        (folder / SPEC).write_text(json.dumps(spec))
        return taken / max(1, version.rows or taken)

    def _columns(self) -> list[str]:
        row = self.preflight
        taken = set(row.targets)
        features = row.features or [one["name"] for one in row.dataset_version.columns if one["name"] not in taken]
        return [*row.targets, *features]

    def _write_rows(self, path: Path, columns: list[str], images: list[str], most: int) -> tuple[int, set[str]]:
        """At most so many rows, evenly from all parts; how many, and the images that they name."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        version = self.preflight.dataset_version
        step = max(1.0, (version.rows or 0) / most)
        tables, passed = [], 0
        for part in local_parts(version):
            table = pq.read_table(part, columns=columns)
            wanted = np.arange(np.ceil(passed / step), np.ceil((passed + table.num_rows) / step)) * step - passed
            tables.append(table.take(pa.array(np.minimum(wanted.astype(np.int64), table.num_rows - 1))))
            passed += table.num_rows
            self._beat()
        whole = pa.concat_tables(tables)
        pq.write_table(whole, path)
        return whole.num_rows, {digest for name in images for digest in whole[name].to_pylist() if digest}

    def _fetch_images(self, folder: Path, digests: set[str]) -> None:
        version = self.preflight.dataset_version
        if not digests:
            return
        store = ObjectStore("datasets", version.dataset.organization_id)
        known = (record.sha256 for record in records_of(store, version.images) if record.sha256 in digests)
        store.fetch_many({sha256: folder / sha256[:2] / sha256 for sha256 in known}, self._beat)
