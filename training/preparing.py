"""The job directory of a run: data, base, code and ``spec.json``, as the engine wants them."""

import json
from pathlib import Path
from typing import Any

from datasets.images import records_of
from dlplatform.engine.job import SPEC
from dlplatform.objects.store import ObjectStore

from .job_directories import Beat, fetch_base, fetch_code
from .models import Run


def prepare(run: Run, directory: Path, beat: Beat) -> None:
    """Write it; what an earlier attempt left there is kept. ``beat`` is called between pieces of work, and may raise.

    Raises MissingObject, CorruptObject.
    """
    (directory / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
    store = ObjectStore("datasets", run.dataset_version.dataset.organization_id)
    parts = _fetch_parts(run, directory, store, beat)
    _fetch_images(run, directory / "data" / "images", store, beat)
    fetch_base(run.base_version, directory, beat)
    fetch_code(run.code, directory)
    temporary = directory / f".{SPEC}"
    temporary.write_text(json.dumps(_spec(run, [path.relative_to(directory).as_posix() for path in parts])))
    temporary.replace(directory / SPEC)


def _fetch_parts(run: Run, directory: Path, store: ObjectStore, beat: Beat) -> list[Path]:
    """The version's rows; whole files stay."""
    paths = []
    for index, part in enumerate(run.dataset_version.parts):
        path = directory / "data" / f"part-{index:05d}.parquet"
        if not path.exists() or path.stat().st_size != part["bytes"]:
            store.fetch(part["sha256"], path)
        paths.append(path)
        beat(1)
    return paths


def _fetch_images(run: Run, folder: Path, store: ObjectStore, beat: Beat) -> None:
    """The files of the version's images, if the run learns from a column of them; whole ones stay."""
    version = run.dataset_version
    taken = set(run.target_names)
    features = run.features or [c["name"] for c in version.columns if c["name"] not in taken]
    if not version.images or not set(version.image_columns) & set(features):
        return
    wanted = {}
    for record in records_of(store, version.images):
        path = folder / record.sha256[:2] / record.sha256
        if not path.exists() or path.stat().st_size != record.size:
            wanted[record.sha256] = path
    store.fetch_many(wanted, beat)


def _spec(run: Run, parts: list[str]) -> dict[str, Any]:
    return {
        "format": 1,
        "run": str(run.pk),
        "attempt": run.attempt,
        "told": run.spool_sequence,
        "task": run.task,
        "target": run.targets or run.target,
        "columns": [{"name": column["name"], "type": column["type"]} for column in run.dataset_version.columns],
        "features": run.features,
        "data": parts,
        "config": run.config,
        "lineage": {
            "dataset": run.dataset_version.dataset.name,
            "dataset_version": str(run.dataset_version_id),
            "dataset_version_number": run.dataset_version.number,
            **({"base_version": str(run.base_version_id)} if run.base_version_id else {}),
        },
        **({"finetune": run.finetune} if run.finetune else {}),
        **({"entry": run.entry} if run.code_id else {}),
        **({"stop_after_epoch": run.stop_after_epoch} if run.stop_after_epoch else {}),
    }
