"""The child process: reads one job from standard input, writes JSON lines to standard output.

Limits are set, and network and privileges given up, before any decoder is imported. See `isolation` for the parent's side.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from datasets.ingestion.confinement import confine
from dlplatform.sandbox import kernel


def main() -> int:
    """Run one job; 0 when a result, good or bad, was written."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    job = json.loads(sys.stdin.read())
    _apply_limits(job["limits"])
    _read_from(job, confine(_files(job)))
    _die_with_parent(job["parent"])

    from datasets.ingestion.child import run_job

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    run_job(job, send)
    return 0


def _files(job: dict[str, Any]) -> list[str]:
    """What the job reads: the upload, then the parts that it adds to."""
    return [job["source"], *(job["base"]["parts"] if job["base"] else [])]


def _read_from(job: dict[str, Any], paths: list[str]) -> None:
    job["source"] = paths[0]
    if job["base"]:
        job["base"]["parts"] = paths[1:]


def _die_with_parent(parent: int) -> None:
    """Linux only: elsewhere the parent's kill of the process group has to do."""
    if sys.platform == "linux":
        kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _apply_limits(limits: dict[str, Any]) -> None:
    cpu = int(limits["cpu_seconds"])
    _limit(resource.RLIMIT_CPU, cpu, cpu + 5)
    # Parts may be larger than their text when a file is all short cells; staging adds a copy.
    _limit(resource.RLIMIT_FSIZE, int(limits["bytes"]) * 2 + (64 << 20))
    _limit(resource.RLIMIT_NOFILE, int(limits["open_files"]))
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        # macOS accepts the call and ignores it, or refuses it; the time limits still hold there.
        _limit(resource.RLIMIT_AS, int(limits["memory_bytes"]))


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit; one that is already lower stays."""
    ceiling = resource.getrlimit(kind)[1]
    hard = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    sys.exit(main())
