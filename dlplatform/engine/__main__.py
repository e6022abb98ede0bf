"""``python -m dlplatform.engine JOBDIR``: train what the job directory asks for."""

import sys
from pathlib import Path

from dlplatform.engine.run import run_job

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dlplatform.engine JOBDIR")
    sys.exit(run_job(Path(sys.argv[1])))
