"""Live events of a run, read once per web process and fanned out in memory to its sockets.

The channel layer says only that there is something new. A group with a thousand members would cost a thousand
Redis writes a message; here a process is one member.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer

from dlplatform import events
from dlplatform.accounts.sockets import CLOSE_NOT_FOUND, CLOSE_UNAUTHENTICATED, Credential, Subscriber

from .models import Run
from .records import events_after

POLL_SECONDS = 2.0  # a lost hint costs at most this
RECHECK_SECONDS = 5.0
PAGE = 2000


class RunFeed:
    """All sockets of this process that watch one run."""

    def __init__(self, run: UUID) -> None:
        self.run = run
        self.last = 0
        self.subscribers: set[Subscriber] = set()
        self.tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()

    async def start(self, last: int) -> None:
        self.last = last
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(events.run_group(self.run), channel)
        self.tasks = [
            asyncio.create_task(self._listen(layer, channel)),
            asyncio.create_task(self._deliver()),
            asyncio.create_task(self._recheck()),
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _listen(self, layer: Any, channel: str) -> None:
        try:
            while True:
                await layer.receive(channel)
                self._wake.set()
        finally:
            with contextlib.suppress(OSError):
                await layer.group_discard(events.run_group(self.run), channel)

    async def _deliver(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            await self._send_new()

    async def _send_new(self) -> None:
        while True:
            found = await database_sync_to_async(events_after)(self.run, self.last, PAGE)
            if not found:
                return
            for sequence, text in encoded(found):
                for subscriber in tuple(self.subscribers):
                    subscriber.offer(text, sequence)
            self.last = found[-1]["sequence"]
            await asyncio.sleep(0)

    async def _recheck(self) -> None:
        """Close the sockets of callers who may not see the run any more; one question per credential."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            answers: dict[Credential, int | None] = {}
            for subscriber in tuple(self.subscribers):
                credential = subscriber.credential
                if credential not in answers:
                    answers[credential] = await database_sync_to_async(refusal)(credential, self.run)
                if code := answers[credential]:
                    subscriber.close(code)


def encoded(found: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(event["sequence"], orjson.dumps(event).decode()) for event in found]


def refusal(credential: Credential, run: UUID) -> int | None:
    """The close code for a caller who may not watch (any more); None for one who may."""
    user = credential.user()
    if user is None:
        return CLOSE_UNAUTHENTICATED
    return None if Run.objects.visible_to(user).filter(pk=run).exists() else CLOSE_NOT_FOUND


class Feeds:
    """The feeds of this process: made for the first watcher of a run, ended with the last."""

    def __init__(self, make: Callable[[UUID], RunFeed] = RunFeed) -> None:
        self._make = make
        self._feeds: dict[UUID, RunFeed] = {}
        self._lock = asyncio.Lock()

    async def join(self, run: UUID, subscriber: Subscriber) -> RunFeed:
        async with self._lock:
            feed = self._feeds.get(run)
            if feed is None:
                feed = self._make(run)
                last = await database_sync_to_async(last_sequence)(run)
                await feed.start(last)
                self._feeds[run] = feed
            feed.subscribers.add(subscriber)
            return feed

    async def leave(self, feed: RunFeed, subscriber: Subscriber) -> None:
        async with self._lock:
            feed.subscribers.discard(subscriber)
            if not feed.subscribers and self._feeds.get(feed.run) is feed:
                del self._feeds[feed.run]
                await feed.stop()


def last_sequence(run: UUID) -> int:
    return Run.objects.values_list("last_sequence", flat=True).get(pk=run)
