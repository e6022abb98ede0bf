"""What the benchmarks share: a running platform to measure, rows to measure with, and the line they print."""

import argparse
import gc
import json
import mmap
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import django

from tests.live import USERNAME, Platform


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of every benchmark: ``--short`` for fewer repetitions or smaller sizes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="fewer repetitions, smaller sizes")
    return parser.parse_args()


@contextmanager
def platform(**environment: str) -> Iterator[Platform]:
    """A platform started by `manage.py up` in a folder of its own; this process gets its settings as well."""
    with Platform(**environment) as running:
        use_settings_of(running)
        yield running


def use_settings_of(running: Platform) -> None:
    os.environ |= {"DLP_HOME": str(running.home), "DJANGO_SETTINGS_MODULE": "dlplatform.settings"}
    django.setup()


def settle(megabytes: int = 1500) -> None:
    """The same machine before each of the things that are compared: nothing waits to be written, and memory is at hand.

    A virtual machine gives memory that was free for some seconds back to its host, and writing to such memory again
    takes sixteen times as long (0.25 instead of 4 GB/s). A peer that uses the pages that it has just freed would be
    compared with a luckless one.
    """
    os.sync()
    with mmap.mmap(-1, megabytes * 1_000_000) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of memory in this process: a client that stops for it, ten milliseconds where Django is loaded, would
    take the server for slow."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def spread(values: Sequence[float], digits: int = 3) -> list[float]:
    """Between the first and the last tenth."""
    return [round(quantile(values, 0.1), digits), round(quantile(values, 0.9), digits)]


def median(values: Sequence[float], digits: int = 3) -> float:
    return round(statistics.median(values), digits)


def compared(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Ones beside others, round by round: the median of the ratios, and where it lies in 19 of 20 draws of these rounds
    (bootstrap). Few rounds, or a machine that others use, make that wide: then a small difference cannot be told. What is
    to be shown small passes with the upper end."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    chance = random.Random(len(ratios))
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"ratio": median(ratios), "interval": [round(quantile(drawn, 0.025), 3), round(quantile(drawn, 0.975), 3)]}


def report(benchmark: str, case: str, *, limit: str, passes: bool, **figures: Any) -> None:
    """One JSON line."""
    line = {"benchmark": benchmark, "case": case, **figures, "limit": limit, "passes": passes}
    print(json.dumps(line), flush=True)


# --- rows ---------------------------------------------------------------------------------------------


def table(rows: int = 500) -> bytes:
    """A small table to train on: four numbers and a class."""
    lines = ["a,b,c,d,label"]
    for row in range(rows):
        a, b = row * 37 % 101 / 101, row * 53 % 97 / 97
        lines.append(f"{a:.4f},{b:.4f},{row % 7},{row % 11},{'yes' if a + b > 1 else 'no'}")
    return "\n".join(lines).encode()


def held_run(version: str, **columns: Any) -> Any:
    """A run that this process holds, as a worker would; the lease lasts for an hour."""
    from django.utils import timezone

    from datasets.models import DatasetVersion
    from dlplatform.accounts.models import User
    from training.models import Experiment, Run

    row = DatasetVersion.objects.select_related("dataset").get(pk=version)
    actor = User.objects.get(username=USERNAME)
    experiment, _ = Experiment.objects.get_or_create(organization_id=row.dataset.organization_id, name="Benchmarks")
    lease = {"lease_epoch": 1, "lease_expires_at": timezone.now() + timedelta(hours=1)}
    return Run.objects.create(
        experiment=experiment, created_by=actor, dataset_version=row, name="benchmark", task="classification",
        target="label", register_as="benchmark", state=Run.State.RUNNING, **{**lease, **columns},
    )  # fmt: skip
