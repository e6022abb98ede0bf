"""``python -m dlplatform.engine JOBDIR``: train what the job directory asks for."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any


def _stop(_number: int, _frame: Any) -> None:
    """Asked to stop while torch is being imported: nothing was begun, all can be resumed."""
    sys.exit(75)


def die_with_launcher() -> None:
    """Ask the kernel to end this process when its launcher dies: else it would train on as an orphan (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def main() -> int:
    """Returns the exit code; see `dlplatform.engine.run.run_job`."""
    if len(sys.argv) != 2:
        print("usage: python -m dlplatform.engine JOBDIR", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_launcher()
    from dlplatform.engine.processes import in_group, leave
    from dlplatform.engine.run import run_job

    code = run_job(Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if in_group():
        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
