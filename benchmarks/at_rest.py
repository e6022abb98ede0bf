"""Everything that `make run` starts, doing nothing: its memory, and how long a second start takes.

Memory is PSS summed over the whole tree of processes: shared pages count once. The limits are the reference:
the same measurement of `mlflow server` as it comes gave 15 processes, 2.3 GB and 11 s on such a machine.

    python -m benchmarks.at_rest [--short]
"""

import time
from pathlib import Path

import psutil

from tests.live import Platform

from .measuring import arguments, median, report, spread

LIMIT_MB = 1000
LIMIT_SECONDS = 8.0
SETTLE_SECONDS = 6.0


def pss_of(pid: int) -> float:
    """Proportional set size in megabytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def memory(running: Platform) -> dict[str, float]:
    """Megabytes by kind of process, the whole tree."""
    assert running.process is not None
    root = psutil.Process(running.process.pid)
    found: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            name = _kind(process)
            found[name] = found.get(name, 0.0) + pss_of(process.pid)
        except (psutil.Error, FileNotFoundError, ProcessLookupError):
            continue
    return found


def _kind(process: psutil.Process) -> str:
    command = process.cmdline()
    program = Path(command[0].split(":")[0]).name
    return command[-1] if "manage.py" in " ".join(command) else program


def main() -> None:
    starts = 2 if arguments(__doc__).short else 5
    totals, seconds = [], []
    with Platform(MAX_WORKERS="2") as running:
        for _ in range(starts):
            time.sleep(SETTLE_SECONDS)
            parts = memory(running)
            totals.append(sum(parts.values()))
            running.stop()
            began = time.perf_counter()
            running.start()
            seconds.append(time.perf_counter() - began)
        processes = len(psutil.Process(running.process.pid).children(recursive=True)) + 1
    report(
        "at_rest", "memory, 2 workers", repetitions=len(totals), processes=processes, megabytes=median(totals, 0),
        spread=spread(totals, 0), parts={name: round(size) for name, size in sorted(parts.items())},
        ratio=round(median(totals) / LIMIT_MB, 2), limit=f"{LIMIT_MB} MB", passes=median(totals) <= LIMIT_MB,
    )  # fmt: skip
    report(
        "at_rest", "second start", repetitions=len(seconds), seconds=median(seconds, 2), spread=spread(seconds, 2),
        ratio=round(median(seconds) / LIMIT_SECONDS, 2), limit=f"{LIMIT_SECONDS} s",
        passes=median(seconds) <= LIMIT_SECONDS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
