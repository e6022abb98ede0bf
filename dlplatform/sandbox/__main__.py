"""``python -m dlplatform.sandbox PLAN``: run what the plan says, and no more than it may."""

import sys
from pathlib import Path

from dlplatform.sandbox import warden
from dlplatform.sandbox.plan import Plan

if __name__ == "__main__":
    sys.exit(warden.run(Plan.read(Path(sys.argv[1]))))
