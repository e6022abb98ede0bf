"""What runs inside the child once its limits hold."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.ingestion.limits import Limits
from datasets.ingestion.memory import lacks_memory
from datasets.ingestion.pipeline import extend, ingest
from datasets.ingestion.result import Base, IngestResult, Problem, rejected

Send = Callable[[dict[str, Any]], None]

MEMORY_PROBLEM = Problem(
    code="memory_limit",
    detail="Reading the file needs more memory than one ingestion may use. Split it, write smaller "
    "Parquet row "
    "groups, or remove very long cells.",
)
UNEXPECTED_PROBLEM = Problem(
    code="decoder_failed",
    detail="The file made the reader fail in a way it does not know. Write it again with another "
    "program, as plain "
    "CSV in UTF-8 or as Parquet, and upload that.",
)
DISK_PROBLEM = Problem(
    code="output_limit",
    detail="The converted data does not fit the space one ingestion may use. Split the file and append the pieces.",
)
THREADS = 2
DISK_ERRORS = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)


def run_job(job: dict[str, Any], send: Send) -> None:
    """Ingest and send progress, then the result."""
    pa.set_cpu_count(THREADS)
    pa.set_io_thread_count(THREADS)
    limits = Limits.from_dict(job["limits"])

    def progress(fraction: float, phase: str) -> None:
        send({"progress": round(fraction, 4), "phase": phase})

    send({"result": _guarded(job, limits, progress).to_dict()})


def _guarded(job: dict[str, Any], limits: Limits, progress: Callable[[float, str], None]) -> IngestResult:
    """The boundary: whatever a hostile file provokes becomes a rejection, and its trace goes to the log."""
    source, destination = Path(job["source"]), Path(job["destination"])
    try:
        if job["base"] is not None:
            base = Base.from_dict(job["base"])
            return extend(source, destination, base=base, limits=limits, on_progress=progress)
        return ingest(
            source,
            destination,
            filename=job["filename"],
            content_type=job["content_type"],
            limits=limits,
            types=job["types"],
            on_progress=progress,
        )
    except Exception as error:
        if lacks_memory(error):
            return rejected(MEMORY_PROBLEM)
        traceback.print_exc(file=sys.stderr)
        return rejected(DISK_PROBLEM if getattr(error, "errno", None) in DISK_ERRORS else UNEXPECTED_PROBLEM)
