"""Requests that come by themselves, as those of many callers do: at a rate, at random, whether the last was answered or not.

A caller that asks again when it is answered slows down with the server, and so hides how long others would have waited.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .measuring import uncollected
from .serve import SECONDS_TO_ANSWER, Server, is_whole

CONNECTIONS = 64


class Connection(asyncio.Protocol):
    """Asks once whenever it is told to. ``freed`` is called when it may be told again."""

    def __init__(self, request: bytes, freed: Callable[["Connection", float], None], failed: Any) -> None:
        self._request, self._freed, self._failed = request, freed, failed
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, came: float) -> None:
        self._came = came
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or not is_whole(head, body):
            return
        if not head.startswith(b"HTTP/1.1 200") and not self._failed.done():
            self._failed.set_exception(RuntimeError(self._buffer[:300].decode()))
        self._buffer = b""
        self._freed(self, time.perf_counter() - self._came)


def at_rate(server: Server, per_second: float, duration: float, seed: int) -> list[float]:
    """Seconds from the coming of each request to its answer. The same seed has them come at the same times."""
    with uncollected():
        return asyncio.run(_asked(server, per_second, duration, random.Random(seed)))


async def _asked(server: Server, per_second: float, duration: float, chance: random.Random) -> list[float]:
    loop = asyncio.get_running_loop()
    seconds: list[float] = []
    free: deque[Connection] = deque()
    waiting: deque[float] = deque()
    moments = [chance.expovariate(per_second)]
    while moments[-1] < duration:
        moments.append(moments[-1] + chance.expovariate(per_second))
    ended: asyncio.Future[None] = loop.create_future()

    def freed(connection: Connection, took: float) -> None:
        seconds.append(took)
        if waiting:
            connection.ask(waiting.popleft())
        else:
            free.append(connection)
        if len(seconds) == len(moments) and not ended.done():
            ended.set_result(None)

    def come() -> None:
        if free:
            free.popleft().ask(time.perf_counter())  # in rotation: the server closes those that rest for seconds
        else:
            waiting.append(time.perf_counter())

    for _ in range(CONNECTIONS):
        made = await loop.create_connection(lambda: Connection(server.request, freed, ended), "127.0.0.1", server.port)
        free.append(made[1])
    began = loop.time() + 0.05
    for moment in moments:
        loop.call_at(began + moment, come)
    await asyncio.wait_for(ended, duration + SECONDS_TO_ANSWER)
    for connection in free:
        connection.transport.close()
    return seconds
