"""`python -m benchmarks`: the short form of every benchmark that measures the running product, one after the other.

`quality`, `train` and `ingestion` have sizes of their own; see docs/benchmarks.md.
"""

import subprocess
import sys

from tests.live import ROOT

NAMES = (
    "submit_to_first_step",
    "metric_ingestion",
    "metric_series",
    "sockets",
    "transfer",
    "runs_page",
    "history",
    "store",
    "upload_in_parts",
    "merging",
    "sweeps",
    "serve",
    "at_rest",
    "ab",
    "experiment_watching",
    "prediction_log",
)
OWN_SIZES = (("train", "--short"), ("ingestion", "20"))


def main() -> None:
    """Each in a process of its own: a benchmark takes over the settings of the platform that it started."""
    for name, *more in [*((name, "--short") for name in NAMES), *OWN_SIZES]:
        ended = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *more], cwd=ROOT, check=False)
        if ended.returncode:
            print(f"{name} ended with code {ended.returncode}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
