"""WebSocket endpoints of training: `/ws/runs/{id}?after={sequence}` and `/ws/organizations/{slug}`."""

import asyncio
import json
from typing import Any
from uuid import UUID

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer

from dlplatform import events
from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.sockets import (
    CLOSE_NOT_FOUND,
    CLOSE_POLICY,
    Credential,
    Receive,
    Scope,
    Send,
    Subscriber,
    enter,
    query_of,
    serve,
)

from .feeds import PAGE, Feeds, encoded
from .models import Run
from .records import events_after

RECHECK_SECONDS = 5.0
HISTORY_AHEAD = 1000

feeds = Feeds()


async def run_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """First what the database holds after the given sequence, then live events; none lost, none twice."""
    entered = await enter(scope, receive, send)
    if entered is None:
        return
    user, credential = entered
    run = UUID(str(scope["url_route"]["kwargs"]["run"]))
    after = _after(scope)
    if after is None:
        await send({"type": "websocket.close", "code": CLOSE_POLICY})
        return
    if not await database_sync_to_async(_may_watch)(user, run):
        await send({"type": "websocket.close", "code": CLOSE_NOT_FOUND})
        return
    last = await _send_history(run, after, send)
    subscriber = Subscriber(send, credential, last)
    feed = await feeds.join(run, subscriber)
    try:
        # What was written between the end of the history and joining the feed; the rest the feed brings.
        for sequence, text in encoded(await database_sync_to_async(events_after)(run, last, PAGE)):
            subscriber.offer(text, sequence)
        await serve(subscriber, receive)
    finally:
        await feeds.leave(feed, subscriber)


def _after(scope: Scope) -> int | None:
    value = query_of(scope).get("after", "0")
    return int(value) if value.isdigit() and len(value) < 19 else None


def _may_watch(user: User, run: UUID) -> bool:
    return Run.objects.visible_to(user).filter(pk=run).exists()


async def _send_history(run: UUID, after: int, send: Send) -> int:
    """Page by page, waiting for the client: history may be long, and nobody else waits for this."""
    while True:
        found = await database_sync_to_async(events_after)(run, after, PAGE)
        for _, text in encoded(found):
            await send({"type": "websocket.send", "text": text})
        if found:
            after = found[-1]["sequence"]
        if len(found) < HISTORY_AHEAD:
            return after


async def organization_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Changes of state of the organization's runs, datasets and models: {"type": "state", "kind", "id", …}."""
    entered = await enter(scope, receive, send)
    if entered is None:
        return
    _, credential = entered
    slug = str(scope["url_route"]["kwargs"]["slug"])
    organization = await database_sync_to_async(_organization)(credential, slug)
    if organization is None:
        await send({"type": "websocket.close", "code": CLOSE_NOT_FOUND})
        return
    subscriber = Subscriber(send, credential)
    layer = get_channel_layer()
    channel = await layer.new_channel()
    group = events.organization_group(organization.pk)
    await layer.group_add(group, channel)
    tasks = [
        asyncio.create_task(_forward(layer, channel, subscriber)),
        asyncio.create_task(_recheck(subscriber, slug)),
    ]
    try:
        await serve(subscriber, receive)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await layer.group_discard(group, channel)


async def unknown_socket(_scope: Scope, receive: Receive, send: Send) -> None:
    """An address that no socket has: closed like one that the caller may not see."""
    await receive()
    await send({"type": "websocket.close", "code": CLOSE_NOT_FOUND})


def _organization(credential: Credential, slug: str) -> Organization | None:
    user = credential.user()
    return Organization.objects.visible_to(user).filter(slug=slug).first() if user else None


async def _forward(layer: Any, channel: str, subscriber: Subscriber) -> None:
    while True:
        hint = await layer.receive(channel)
        subscriber.offer(json.dumps({**hint, "type": "state"}))


async def _recheck(subscriber: Subscriber, slug: str) -> None:
    while True:
        await asyncio.sleep(RECHECK_SECONDS)
        if await database_sync_to_async(_organization)(subscriber.credential, slug) is None:
            subscriber.close(CLOSE_NOT_FOUND)
