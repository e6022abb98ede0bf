"""Ingestion of a generated 100 MB CSV against Arrow's plain read and write, as one JSON line.

python benchmarks/ingestion.py [megabytes]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits

BLOCK_ROWS = 50_000
PLAIN = """
import sys, pyarrow.csv as c, pyarrow.parquet as p
p.write_table(c.read_csv(sys.argv[1]), sys.argv[2], compression="zstd", compression_level=1)
"""


def generate(path: Path, size: int) -> int:
    """Write about `size` bytes of mixed columns; returns the rows."""
    chance = np.random.default_rng(0)
    rows = 0
    with path.open("w") as out:
        out.write("id,measure,price,count,city,member,bought_at,comment,label\n")
        while out.tell() < size:
            out.write(_block(chance, rows))
            rows += BLOCK_ROWS
    return rows


def _block(chance: np.random.Generator, first: int) -> str:
    measure, price = chance.normal(size=BLOCK_ROWS), chance.exponential(100, BLOCK_ROWS)
    count = chance.integers(0, 1000, BLOCK_ROWS)
    city = np.array(["Oslo", "Rome", "Paris", "Berlin", ""])[chance.integers(0, 5, BLOCK_ROWS)]
    flags = np.array(["true", "false"])[chance.integers(0, 2, BLOCK_ROWS)]
    times = (np.datetime64("2023-01-01T00:00:00") + chance.integers(0, 10**8, BLOCK_ROWS)).astype(str)
    return "".join(
        f"{first + i},{measure[i]:.6f},{price[i]:.2f},{count[i]},{city[i]},{flags[i]},{times[i]},"
        f'"order {first + i}, {count[i]} pieces",{count[i] % 3}\n'
        for i in range(BLOCK_ROWS)
    )


def main() -> None:
    """Print rows/s, MB/s, the share of Arrow's bare speed and the child's peak memory."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "table.csv"
        rows = generate(source, megabytes << 20)
        begun = time.perf_counter()
        result = ingest_in_child(
            source, folder / "parts", filename="table.csv", content_type="text/csv", limits=Limits()
        )
        seconds = time.perf_counter() - begun
        # Peak of the children so far: the plain reader, which holds the whole table, has not run yet.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", PLAIN, source, folder / "plain.parquet"], check=True)
        plain = time.perf_counter() - begun
        size = source.stat().st_size / 1e6
        print(
            json.dumps(
                {
                    "state": result.state,
                    "rows": rows,
                    "mb": round(size, 1),
                    "seconds": round(seconds, 2),
                    "rows_per_second": round(rows / seconds),
                    "mb_per_second": round(size / seconds, 1),
                    "arrow_seconds": round(plain, 2),
                    "times_arrow": round(seconds / plain, 2),
                    "peak_rss_mb": peak,
                }
            )
        )


if __name__ == "__main__":
    main()
