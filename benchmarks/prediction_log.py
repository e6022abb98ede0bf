"""The prediction log under load: a million records by the writer that serves, kills, and what it costs an answer.

At last records go through the buffer of the inference server into PostgreSQL, as fast as it takes them. Before, programs ask
over HTTP while the inference server, the process that writes for it, and PostgreSQL are killed (SIGKILL): of the answers that were given, which are in the
log? Rounds with the log and without it (`sample_rate` 0), which comes first, take turns.

    python -m benchmarks.prediction_log [--short]
"""

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import psutil

from tests.live import Platform

from .arrivals import at_rate
from .measuring import arguments, compared, median, platform, quantile, report
from .serve import BODY, Server, deployed, measured, wait_for

LIMIT_COST = 0.03  # of the 99th percentile
ON_THE_WAY = 0.25  # seconds that an answer which was given before a kill may take to its reader
LEAST_LOSS_SECONDS = 1.5  # the buffer's second, and the writing


def writer(count: int) -> None:
    """Records a second; none may be missing."""
    from django.utils import timezone

    from registry.serving import prediction_log
    from registry.serving.log_entries import Entry
    from registry.serving.log_process import WriterProcess
    from registry.serving.models import Deployment, PredictionRecord, Variant

    deployment = Deployment.objects.get(name="mlp")
    variant = Variant.objects.get(deployment=deployment, removed_at=None)
    before = PredictionRecord.objects.count()
    answer = [{"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}}]
    row = [{"a": 0.5, "b": 0.7, "c": 3, "d": 4}]
    buffer, began = prediction_log.RecordBuffer(process=WriterProcess()), time.perf_counter()
    for number in range(count):
        while buffer.waiting >= prediction_log.MOST - 1:
            time.sleep(0.002)
        buffer.add(
            Entry(
                uuid.uuid4(), deployment.pk, variant.pk, "live", 1, 1.0, f"k{number % 1000}", row, answer, 1.5, "",
                timezone.now(),
            )
        )  # fmt: skip
    while buffer.flush() or buffer.waiting:
        pass
    buffer.drain()
    seconds = time.perf_counter() - began
    missing = before + count - PredictionRecord.objects.count()
    report(
        "prediction_log", f"{count:,} records", per_second=round(count / seconds), missing=missing, lost=buffer.lost_ever,
        limit="0 missing", passes=missing == 0 and buffer.lost_ever == 0,
    )  # fmt: skip


class Asking:
    """Asks from threads until told to stop; when each request was answered."""

    def __init__(self, server: Server, threads: int) -> None:
        self.answered: dict[str, float] = {}
        self.failed = 0
        self._server, self._stopped = server, threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._server.bearer}"}
        url = f"http://127.0.0.1:{self._server.port}{self._server.path}"
        with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
            while not self._stopped.is_set():
                try:
                    answer = client.post(url, content=BODY)
                    if answer.status_code == 200:
                        self.answered[answer.json()["request_id"]] = time.time()
                        continue
                except httpx.HTTPError:
                    pass
                self.failed += 1
                self._stopped.wait(0.05)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def killed(name: str, server: Server, find: Any, seconds: float, allowed: float) -> None:
    """Answers given before and after a kill that are not in the log, and how old the oldest of them was at the kill."""
    asking = Asking(server, 8)
    time.sleep(seconds)
    found = find()
    moment = time.time()
    for process in found:
        process.kill()
    over = time.time() + ON_THE_WAY
    wait_for(server)
    time.sleep(seconds)
    asking.stop()
    missing = _missing(set(asking.answered))
    ages = [moment - asking.answered[one] for one in missing]
    oldest = max(ages, default=0.0)
    report(
        "prediction_log", f"kill -9 of {name}", answered=len(asking.answered), refused_meanwhile=asking.failed,
        missing=len(missing), oldest_missing_seconds=round(oldest, 2),
        missing_after_the_kill=sum(asking.answered[one] > over for one in missing), limit=f"only of the last {allowed:g} s before",
        passes=oldest <= allowed and all(asking.answered[one] <= over for one in missing),
    )  # fmt: skip


def writers(running: Platform) -> list[psutil.Process]:
    """The processes that write the log for the inference server."""
    children = [child for one in running.processes("serve") for child in one.children()]
    return [one for one in children if "registry.serving.log_writer" in one.cmdline()]


def _missing(requests: set[str], patience: float = 60.0) -> set[str]:
    """Of these requests the ones without a record, when no more come for some seconds."""
    from django.db import DatabaseError, connection

    from registry.serving.models import PredictionRecord

    deadline, before, since = time.monotonic() + patience, -1, time.monotonic()
    missing = set(requests)
    while time.monotonic() < deadline and missing:
        try:
            found = PredictionRecord.objects.filter(request_id__in=list(missing)).values_list("request_id", flat=True)
            missing -= {str(one) for one in found}
        except DatabaseError:  # it is being started again
            connection.close()
            since = time.monotonic()
        if len(missing) != before:
            before, since = len(missing), time.monotonic()
        elif time.monotonic() - since > 5:
            break
        time.sleep(0.2)
    return missing


def cost(server: Server, case: str, rounds: int, ask: Callable[[int], list[float]], **more: Any) -> None:
    """p99 with the log, and without it twice (which tells what chance makes of nothing), in turns."""
    from registry.serving.models import Deployment

    arms = {"without": 0.0, "without again": 0.0, "with": 1.0}
    p99: dict[str, list[float]] = {arm: [] for arm in arms}
    pooled: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in _turn(list(arms), number):
            Deployment.objects.filter(name="mlp").update(sample_rate=arms[arm])
            time.sleep(1.0)  # until the inference server has seen it
            times = [1000 * one for one in ask(number)]
            p99[arm].append(quantile(times, 0.99))
            pooled[arm] += times
    Deployment.objects.filter(name="mlp").update(sample_rate=1.0)
    time.sleep(1.0)
    found = compared(p99["with"], p99["without"])
    report(
        "prediction_log", case, rounds=rounds, requests=len(pooled["with"]), cost=round(found["ratio"] - 1, 3),
        interval=[round(one - 1, 3) for one in found["interval"]],
        cost_of_nothing=compared(p99["without again"], p99["without"]),
        p99_ms={arm: median(times) for arm, times in p99.items()},
        p50_ms={arm: round(quantile(times, 0.5), 3) for arm, times in pooled.items()},
        **more, limit=f"{LIMIT_COST:.0%}", passes=found["interval"][1] - 1 <= LIMIT_COST,
    )  # fmt: skip


def _turn(arms: list[str], number: int) -> list[str]:
    """Each arm comes first, second and last equally often."""
    at = number % len(arms)
    return arms[at:] + arms[:at]


def costs(server: Server, short: bool) -> None:
    """At a tenth and at half of the rate that the machine sustains with the log, which is what a p99 means for a service; then at
    what eight callers make who ask again as soon as they are answered, where every core is full."""
    most, _ = measured((server, 8, 3.0))
    for part, rounds, seconds in ((10, 12 if short else 60, 6.0), (2, 24 if short else 90, 2.0)):
        ask = partial(at_rate, server, round(most / part), seconds)
        cost(server, f"p99 at {most / part:.0f} requests/s, 1/{part} of the most", rounds, ask)
    cost(
        server, "p99 at 8 connections that never rest (told, not judged)", 6 if short else 12,
        lambda _: measured((server, 8, 2.0 if short else 5.0))[1],
    )  # fmt: skip


def main() -> None:
    short = arguments(__doc__).short
    with platform(DLP_SAMPLES="0") as running:
        server = deployed(running)
        costs(server, short)
        killed("the inference server", server, lambda: running.processes("serve"), 3.0, LEAST_LOSS_SECONDS)
        killed("the process that writes", server, lambda: writers(running), 3.0, 0.0)
        killed("PostgreSQL", server, lambda: running.processes("postgres"), 3.0, 0.0)
        writer(100_000 if short else 1_000_000)


if __name__ == "__main__":
    main()
