"""One run watched by a thousand sockets while it emits 20 events a second: what arrives, and how late.

The watchers live in a process of their own, on the same machine. Every event carries the time
at which it was handed to PostgreSQL.

    python -m benchmarks.sockets [--short]
"""

import asyncio
import multiprocessing
import resource
import time
from typing import Any

import uvloop

from .measuring import arguments, held_run, median, platform, quantile, report, table

LIMIT_MS = 500
WATCHERS = 1000
PER_SECOND = 20
CONNECTING = 40  # at a time


def raise_open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Watcher(asyncio.Protocol):
    """One socket, with no more of the protocol than it needs: a thousand full clients would be what is measured."""

    def __init__(self, watchers: "Watchers") -> None:
        self.watchers = watchers
        self.buffer = b""
        self.open = False
        self.received = 0

    def connection_made(self, transport: Any) -> None:
        transport.write(self.watchers.handshake)

    def connection_lost(self, error: Exception | None) -> None:
        self.watchers.ended(self.received)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self.buffer += data
        if not self.open:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self.open, self.buffer = b" 101 " in head, rest
            self.watchers.opened(self.open)
        while (frame := self._frame()) is not None:
            if b'"sent ' in frame:
                self.received += 1
                sent = float(frame.partition(b'"sent ')[2].partition(b'"')[0])
                self.watchers.delays.append((now - sent) * 1000)

    def _frame(self) -> bytes | None:
        """The next whole frame; those of a server are not masked, and ours are short."""
        buffer = self.buffer
        if len(buffer) < 4:
            return None
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        if len(buffer) < start + size:
            return None
        self.buffer = buffer[start + size :]
        return buffer[start : start + size]


class Watchers:
    """All sockets of the second process."""

    def __init__(self, port: int, path: str, token: str, events: int) -> None:
        self.port, self.events = port, events
        self.handshake = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Extensions: permessage-deflate\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        self.delays: list[float] = []
        self.ready = self.refused = self.lost = 0

    def opened(self, accepted: bool) -> None:
        self.ready += accepted
        self.refused += not accepted

    def ended(self, received: int) -> None:
        self.lost += received < self.events

    async def all(self, pipe: Any, watchers: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        for number in range(watchers):
            await loop.create_connection(lambda: Watcher(self), "127.0.0.1", self.port)
            while number + 1 - self.ready - self.refused > CONNECTING:
                await asyncio.sleep(0.005)
        while self.ready + self.refused < watchers:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)  # the last ones are still joining the feed
        pipe.send(self.ready)
        deadline = loop.time() + seconds
        while len(self.delays) < watchers * self.events and loop.time() < deadline:
            await asyncio.sleep(0.1)
        pipe.send((self.delays, self.refused, self.lost))


def clients(pipe: Any, port: int, path: str, token: str, watchers: int, events: int, seconds: float) -> None:
    raise_open_files()
    uvloop.run(Watchers(port, path, token, events).all(pipe, watchers, seconds))


def emit(run: Any, events: int) -> float:
    """Seconds that sending them took."""
    from datetime import UTC, datetime

    from dlplatform.events import publish_run
    from training.records import append_spool

    began = time.monotonic()
    for number in range(events):
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
        line = {
            "sequence": number + 1, "time": datetime.now(UTC).isoformat(), "type": "log", "level": "info",
            "message": f"sent {time.time()}",
        }  # fmt: skip
        publish_run(run.pk, append_spool(run, [line]))
    return time.monotonic() - began


def main() -> None:
    seconds = 5 if arguments(__doc__).short else 15
    events = seconds * PER_SECOND
    raise_open_files()
    with platform() as running, running.client() as client:
        run = held_run(running.upload(client, "small", table())["id"])
        token = client.headers["Authorization"].removeprefix("Bearer ")
        path = f"/ws/runs/{run.pk}?after=0"
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=clients, args=(theirs, running.port, path, token, WATCHERS, events, seconds + 60), daemon=True
        )
        process.start()
        try:
            connected = ours.recv() if ours.poll(150) else 0
            took = emit(run, events)
            delays, refused, lost = ours.recv() if ours.poll(90) else ([], 0, 0)
        finally:
            process.kill()
            process.join()
    delivered = len(delays) / (WATCHERS * events)
    late = quantile(delays, 0.99) if delays else float("inf")
    report(
        "sockets", f"{WATCHERS} sockets, {PER_SECOND} events/s", connected=connected, events=events,
        emitted_per_second=round(events / took, 1), delivered_share=round(delivered, 4),
        p50_milliseconds=median(delays or [float("inf")], 1), p99_milliseconds=round(late, 1),
        most_milliseconds=round(max(delays, default=float("inf")), 1), refused=refused, lost=lost,
        ratio=round(late / LIMIT_MS, 2), limit=f"all delivered, p99 {LIMIT_MS} ms",
        passes=delivered == 1 and late <= LIMIT_MS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
