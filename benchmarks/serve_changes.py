"""What requests notice while versions and processes change: 64 connections ask a deployment of the inference server with two
processes, and each answer is checked against what the version that it names is known to answer.

Meanwhile a version is promoted, rolled back, shares the traffic, is loaded for the first time, the processes are replaced
(SIGHUP), and at last one of them is killed. Nothing may fail but what the killed process had begun.

    python -m benchmarks.serve_changes [--short]
"""

import asyncio
import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from tests.live import Platform

from .measuring import arguments, platform, report
from .serve import BODY, Server, wait_for

CONNECTIONS = 64
CLOSE = 1e-6  # rows of one batch are summed in another order than a row alone


@dataclass
class Told:
    """What one client saw. ``failures``: (seconds since 1970, what happened); ``again``: when a kept connection was found
    closed before a byte of the answer, whereupon every client asks again by a new one."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def table(sign: int, rows: int = 300) -> bytes:
    """The same columns with labels of their own for each version, so that none can answer for another."""
    lines = ["a,b,c,d,label"]
    for row in range(rows):
        a, b = row * 37 % 101 / 101, row * 53 % 97 / 97
        lines.append(f"{a:.4f},{b:.4f},{row % 7},{row % 11},{'yes' if (a + b > 1) == (sign > 0) else 'no'}{sign}")
    return "\n".join(lines).encode()


def trained(running: Platform, client: httpx.Client, sign: int) -> str:
    """A version of the one model."""
    data = running.upload(client, f"table {sign}", table(sign))
    config = {"architecture": "mlp", "epochs": 2, "threads": 1, "folds": 1}
    wanted = {"task": "classification", "target": "label", "config": config, "register_as": "changing"}
    run = running.train(client, data["id"], **wanted)
    return str(running.finished(client, run["id"])["output_version"])


async def ask(server: Server, known: dict[str, Any], until: float, told: Told) -> None:
    """One connection that asks again as soon as it is answered, and connects anew where it was closed."""
    streams = None
    while time.time() < until:
        fresh = streams is None
        try:
            streams = streams or await asyncio.open_connection("127.0.0.1", server.port)
            began = time.perf_counter()
            streams[1].write(server.request)
            answer = await _answer(streams[0])
        except (OSError, asyncio.IncompleteReadError) as error:
            if not fresh and isinstance(error, asyncio.IncompleteReadError) and not error.partial:
                told.again.append(time.time())
            else:
                told.failures.append((time.time(), type(error).__name__))
            streams = None
            continue
        told.times.append(time.perf_counter() - began)
        if _check(answer, known, told):
            streams[1].close()
            streams = None


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head, await reader.readexactly(int(length.partition(b":")[2]))


def _check(answer: tuple[bytes, bytes], known: dict[str, Any], told: Told) -> bool:
    """Note what came; whether the connection ends."""
    head, body = answer
    if not head.startswith(b"HTTP/1.1 200"):
        told.failures.append((time.time(), f"{head[:12]!r} {body[:200]!r}"))
    else:
        found = orjson.loads(body)
        told.answers[found["version"]] += 1
        expected = known[found["version"]]["probabilities"]
        shares = found["predictions"][0]["probabilities"]
        if shares.keys() != expected.keys() or not all(
            math.isclose(shares[name], expected[name], abs_tol=CLOSE) for name in shares
        ):
            told.wrong.append(body.decode()[:300])
    return b"connection: close" in head.lower()


def asked(given: tuple[Server, dict[str, Any], float]) -> Told:
    server, known, until = given
    told = Told()

    async def run() -> None:
        await asyncio.gather(*(ask(server, known, until, told) for _ in range(CONNECTIONS)))

    asyncio.run(run())
    return told


def changes(
    running: Platform, client: httpx.Client, url: str, versions: list[str]
) -> list[tuple[str, Callable[[], Any]]]:
    """What happens meanwhile, by name, in order; the last is the kill."""
    first, second, third = versions

    def patched(**shares: float) -> Any:
        wanted = [{"version": version, "weight": weight} for version, weight in shares.items()]
        return client.patch(url, json={"variants": wanted, "reason": "benchmark"}).raise_for_status()

    def promote() -> None:
        client.patch(url, json={"variants": [{"version": second}]}).raise_for_status()

    return [
        ("promote", promote),
        ("roll back", lambda: client.post(f"{url}/undo", json={}).raise_for_status()),
        ("weights", lambda: patched(**{first: 70, second: 30})),
        ("weights again", lambda: patched(**{first: 20, second: 80})),
        ("load a third", lambda: patched(**{first: 1, second: 1, third: 2})),
        ("replace processes", lambda: running.processes("serve")[0].send_signal(signal.SIGHUP)),
        ("kill one", lambda: _workers(running)[0].kill()),
    ]


def _workers(running: Platform) -> list[Any]:
    """The processes that answer: children of the one that starts them again."""
    children = running.processes("serve")[0].children()
    return [one for one in children if "spawn_main" in " ".join(one.cmdline())]


def main() -> None:
    seconds = 30.0 if arguments(__doc__).short else 60.0
    with platform(SERVE_PROCESSES="2", MAX_WORKERS="1") as running, running.client() as client:
        versions = [trained(running, client, sign) for sign in (1, -1, 2)]
        known = {version: _known(client, version) for version in versions}
        made = client.post("/deployments", json={"name": "changing", "variants": [{"version": versions[0]}]})
        url = f"/deployments/{made.raise_for_status().json()['id']}"
        key = client.post("/api-keys", json={"name": "benchmark", "scopes": ["predict"]}).raise_for_status().json()
        server = Server("ours", running.serve_port, "/api/v1/deployments/changing/predict", key["key"])
        wait_for(server)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            until = time.time() + seconds
            asking = pool.apply_async(asked, [(server, known, until)])
            moments = carry_out(changes(running, client, url, versions), until - 2)
            told = asking.get(seconds + 60)
        tell(told, moments, seconds)


def _known(client: httpx.Client, version: str) -> dict[str, Any]:
    answer = client.post(
        f"/model-versions/{version}/predict", content=BODY, headers={"Content-Type": "application/json"}
    )
    found: dict[str, Any] = answer.raise_for_status().json()["predictions"][0]
    return found


def carry_out(steps: list[tuple[str, Callable[[], Any]]], until: float) -> list[tuple[str, float]]:
    """One after the other, evenly over the time; when each began."""
    pause = (until - time.time()) / (len(steps) + 1)
    moments = []
    for name, act in steps:
        time.sleep(pause)
        moments.append((name, time.time()))
        act()
    return moments


def tell(told: Told, moments: list[tuple[str, float]], seconds: float) -> None:
    killed = moments[-1][1]
    before = [what for at, what in told.failures if at < killed]
    after = [what for at, what in told.failures if at >= killed]
    report(
        "serve_changes", f"{CONNECTIONS} connections for {seconds:.0f} s", answers=sum(told.answers.values()),
        by_version=sorted(told.answers.values()), longest_ms=round(max(told.times) * 1000), wrong=told.wrong[:3],
        failed_before_the_kill=before[:5], failed_by_the_kill=len(after), kinds=dict(Counter(after)),
        asked_again_before_the_kill=sum(at < killed for at in told.again),
        asked_again_by_the_kill=sum(at >= killed for at in told.again),
        changes=[name for name, _ in moments], limit=f"0 wrong, 0 failed; by the kill at most {CONNECTIONS} in flight",
        passes=not told.wrong and not before and len(after) <= CONNECTIONS and len(told.answers) == 3,
    )  # fmt: skip


if __name__ == "__main__":
    main()
