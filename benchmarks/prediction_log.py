"""The prediction log under load: a million records by the writer that serves, kills, and what it costs an answer.

First records go through the buffer of the inference server into PostgreSQL, as fast as it takes them. Then programs ask over
HTTP while the inference server, and after it PostgreSQL, is killed (SIGKILL): of the answers that were given, which are in the
log? At last rounds with the log and without it (`sample_rate` 0) take turns.

    python -m benchmarks.prediction_log [--short]
"""

import threading
import time
import uuid
from typing import Any

import httpx

from .measuring import arguments, median, platform, quantile, report, spread
from .serve import BODY, Server, deployed, measured, wait_for

LIMIT_COST = 0.03  # of the 99th percentile
ON_THE_WAY = 0.25  # seconds that an answer which was given before a kill may take to its reader
LEAST_LOSS_SECONDS = 1.5  # the buffer's second, and the writing


def writer(count: int) -> None:
    """Records a second; none may be missing."""
    from django.utils import timezone

    from registry.serving import prediction_log
    from registry.serving.models import Deployment, PredictionRecord, Variant

    deployment = Deployment.objects.get(name="mlp")
    variant = Variant.objects.get(deployment=deployment, removed_at=None)
    before = PredictionRecord.objects.count()
    answer = [{"label": "yes", "probabilities": {"yes": 0.75, "no": 0.25}}]
    row = [{"a": 0.5, "b": 0.7, "c": 3, "d": 4}]
    buffer, began = prediction_log.RecordBuffer(), time.perf_counter()
    for number in range(count):
        while buffer.waiting >= prediction_log.MOST - 1:
            time.sleep(0.002)
        buffer.add(
            prediction_log.Entry(
                uuid.uuid4(), deployment.pk, variant.pk, "live", 1, 1.0, f"k{number % 1000}", row, answer, 1.5, "",
                timezone.now(),
            )
        )  # fmt: skip
    buffer.flush()
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
        except DatabaseError:
            connection.close()
        if len(missing) != before:
            before, since = len(missing), time.monotonic()
        elif time.monotonic() - since > 5:
            break
        time.sleep(0.2)
    return missing


def cost(server: Server, rounds: int, seconds: float, connections: int) -> None:
    """p99 with the log and without, in turns."""
    from registry.serving.models import Deployment

    told: dict[float, list[float]] = {0.0: [], 1.0: []}
    rates: dict[float, list[float]] = {0.0: [], 1.0: []}
    for number in range(2 * rounds):
        for rate in (0.0, 1.0) if number % 2 else (1.0, 0.0):
            Deployment.objects.filter(name="mlp").update(sample_rate=rate)
            time.sleep(1.0)  # until the inference server has seen it
            per_second, times = measured((server, connections, seconds))
            told[rate].append(quantile(times, 0.99) * 1000)
            rates[rate].append(per_second)
    without, with_log = median(told[0.0]), median(told[1.0])
    ratios = [one / other for one, other in zip(told[1.0], told[0.0], strict=True)]
    report(
        "prediction_log", f"p99 at {connections} connections", rounds=2 * rounds, p99_ms=with_log,
        p99_ms_without_log=without, cost=round(median(ratios) - 1, 3), spread=spread(ratios),
        per_second=median(rates[1.0], 0), per_second_without_log=median(rates[0.0], 0), limit=f"{LIMIT_COST:.0%}",
        passes=median(ratios) - 1 <= LIMIT_COST,
    )  # fmt: skip


def main() -> None:
    short = arguments(__doc__).short
    with platform(DLP_SAMPLES="0") as running:
        server = deployed(running)
        cost(server, 4 if short else 12, 2.0 if short else 5.0, 8)
        killed(
            "the inference server",
            server,
            lambda: [one.kill() for one in running.processes("serve")],
            3.0,
            LEAST_LOSS_SECONDS,
        )
        killed("PostgreSQL", server, lambda: running.processes("postgres"), 3.0, 0.0)
        writer(100_000 if short else 1_000_000)


if __name__ == "__main__":
    main()
