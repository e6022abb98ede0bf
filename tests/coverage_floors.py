"""The coverage floors: 80 % overall, 90 % on engine, objects and accounts, 95 % on what moves runs and answers."""

import io
import sys
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "everything": (80.0, ["dlplatform/**", "datasets/**", "registry/**", "training/**"]),
    "the engine": (90.0, ["dlplatform/engine/*"]),
    "the object store": (90.0, ["dlplatform/objects/*"]),
    "accounts": (90.0, ["dlplatform/accounts/*"]),
    "the statistics of A/B tests": (95.0, ["registry/serving/statistics/*"]),
    "connection": (95.0, ["training/connection.py"]),
    "orchestrator": (95.0, ["training/orchestrator.py"]),
    "the API": (
        95.0,
        ["dlplatform/api.py", "dlplatform/accounts/api.py", "datasets/api.py", "registry/api.py", "training/api.py"],
    ),
}


def main() -> int:
    """Print every floor with what was reached; 1 when one was missed."""
    coverage = Coverage(config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    missed = 0
    for name, (floor, patterns) in FLOORS.items():
        include = [str(ROOT / pattern) for pattern in patterns]
        reached = coverage.report(include=include, file=io.StringIO())
        below = reached < floor
        missed += below
        print(f"{'below' if below else 'ok   '}  {name}: {reached:.1f} % (floor {floor:.0f} %)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
