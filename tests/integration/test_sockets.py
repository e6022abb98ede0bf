"""WebSockets: history then live events, none lost and none twice; who may watch; slow clients are dropped."""

import asyncio
import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from channels.testing import ApplicationCommunicator
from django.conf import settings
from django.urls import path

from dlplatform import events
from dlplatform.accounts import sockets
from dlplatform.accounts.authentication import tokens_for
from dlplatform.accounts.models import Membership
from dlplatform.valkey import shared_connection
from tests import factories
from tests.fixtures.inference import SOON
from training.models import Run
from training.records import append_event, append_spool
from training.sockets import organization_socket, run_socket

pytestmark = pytest.mark.django_db(transaction=True)

application = URLRouter(
    [path("ws/runs/<uuid:run>", run_socket), path("ws/organizations/<slug:slug>", organization_socket)]
)


class Socket(ApplicationCommunicator):
    def __init__(self, url, user=None, *, headers=(), query=b"", subprotocols=()):
        sent = [(b"host", b"localhost"), *headers]
        if user is not None:
            sent.append((b"authorization", b"Bearer " + tokens_for(user)["access"].encode()))
        super().__init__(
            application,
            {
                "type": "websocket", "path": url, "query_string": query, "headers": sent,
                "subprotocols": list(subprotocols),
            },
        )  # fmt: skip

    async def open(self):
        await self.send_input({"type": "websocket.connect"})
        return await self.receive_output(SOON)

    async def message(self):
        return await self.receive_output(SOON)

    async def events(self, count):
        return [json.loads((await self.message())["text"]) for _ in range(count)]

    async def close(self):
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(SOON)


async def joined(group):
    """Until somebody listens to the group."""
    name = f"{settings.CHANNEL_PREFIX}__group__{group}"
    look = sync_to_async(lambda: shared_connection().pubsub_numsub(name)[0][1] > 0)
    async with asyncio.timeout(SOON):
        while not await look():
            await asyncio.sleep(0.01)


@pytest.fixture
def run(organization, trainer):
    made = factories.RunFactory(experiment=factories.ExperimentFactory(organization=organization), created_by=trainer)
    for _ in range(3):
        append_event(made, "log", level="info", message="before")
    Run.objects.filter(pk=made.pk).update(state="running", lease_epoch=1)
    made.refresh_from_db()
    return made


def emit(run, number):
    line = {
        "sequence": number, "type": "metric", "time": datetime.now(UTC).isoformat(), "step": number, "epoch": 1,
        "values": {"train/loss": 1 / number, "train/other": float("nan")},
    }  # fmt: skip
    last = append_spool(run, [line])
    events.publish_run(run.pk, last)


async def test_history_comes_first_then_live_events_in_order(run, viewer):
    socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", viewer)
    assert (await socket.open())["type"] == "websocket.accept"
    assert [event["sequence"] for event in await socket.events(3)] == [1, 2, 3]
    for number in range(1, 6):
        await sync_to_async(emit)(run, number)
    live = await socket.events(5)
    assert [event["sequence"] for event in live] == [4, 5, 6, 7, 8]
    assert live[0]["type"] == "metric" and live[0]["values"] == {"train/loss": 1.0, "train/other": None}
    await socket.close()


async def test_a_reconnect_goes_on_after_the_given_sequence(run, viewer):
    socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", viewer, query=b"after=2")
    await socket.open()
    assert [event["sequence"] for event in await socket.events(1)] == [3]
    assert await socket.receive_nothing(0.3)
    await socket.close()


async def test_two_watchers_share_one_feed_and_both_get_everything(run, viewer, trainer):
    first = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", viewer, query=b"after=3")
    second = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", trainer, query=b"after=3")
    await first.open()
    await second.open()
    await joined(events.run_group(run.pk))
    await sync_to_async(emit)(run, 1)
    assert (await first.events(1)) == (await second.events(1))
    await first.close()
    await second.close()


async def test_an_event_whose_hint_was_lost_comes_all_the_same(run, viewer, monkeypatch):
    monkeypatch.setattr("training.feeds.POLL_SECONDS", 0.2)
    socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", viewer, query=b"after=3")
    await socket.open()
    await joined(events.run_group(run.pk))
    monkeypatch.setattr(events, "publish_run", lambda *_: None)
    await sync_to_async(emit)(run, 1)
    assert [event["sequence"] for event in await socket.events(1)] == [4]
    await socket.close()


@pytest.mark.parametrize(
    ("who", "url", "code"),
    [
        ("nobody", "run", sockets.CLOSE_FORBIDDEN_ORIGIN),
        ("stranger", "run", sockets.CLOSE_NOT_FOUND),
        ("viewer", "missing", sockets.CLOSE_NOT_FOUND),
        ("stranger", "organization", sockets.CLOSE_NOT_FOUND),
    ],
)
async def test_who_may_not_watch_is_closed_with_a_code(request, run, viewer, stranger, who, url, code):
    user = {"nobody": None, "stranger": stranger, "viewer": viewer}[who]
    urls = {"run": f"/ws/runs/{run.pk}", "missing": f"/ws/runs/{uuid4()}", "organization": "/ws/organizations/lab"}
    socket = await sync_to_async(Socket)(urls[url], user)
    await socket.open()
    closed = await socket.message()
    assert closed == {"type": "websocket.close", "code": code}


async def test_a_browser_of_another_origin_and_another_host_are_refused(run, trainer):
    for headers in ([(b"origin", b"http://evil.example")], [(b"host", b"evil.example")]):
        socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", trainer, headers=headers)
        await socket.open()
        assert (await socket.message())["code"] == sockets.CLOSE_FORBIDDEN_ORIGIN


async def test_a_bad_token_and_a_bad_sequence_are_refused(run, trainer):
    socket = Socket(f"/ws/runs/{run.pk}", headers=[(b"authorization", b"Bearer nonsense")])
    await socket.open()
    assert (await socket.message())["code"] == sockets.CLOSE_UNAUTHENTICATED
    socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", trainer, query=b"after=-1")
    await socket.open()
    assert (await socket.message())["code"] == sockets.CLOSE_POLICY


async def test_a_browser_session_and_a_subprotocol_are_credentials_too(run, trainer, web):
    browser = await sync_to_async(web)(trainer)
    cookie = f"sessionid={browser.cookies['sessionid'].value}".encode()
    headers = [(b"cookie", cookie), (b"origin", b"http://localhost")]
    socket = Socket(f"/ws/runs/{run.pk}", headers=headers)
    await socket.open()
    assert (await socket.events(1))[0]["sequence"] == 1
    await socket.close()
    token = (await sync_to_async(tokens_for)(trainer))["access"]
    socket = Socket(f"/ws/runs/{run.pk}", subprotocols=["bearer", token])
    assert (await socket.open())["subprotocol"] == "bearer"
    assert (await socket.events(1))[0]["sequence"] == 1
    await socket.close()


async def test_a_watcher_who_loses_the_right_is_closed(run, viewer, monkeypatch):
    monkeypatch.setattr("training.feeds.RECHECK_SECONDS", 0.2)
    socket = await sync_to_async(Socket)(f"/ws/runs/{run.pk}", viewer, query=b"after=3")
    await socket.open()
    await sync_to_async(Membership.objects.filter(user=viewer).delete)()
    assert await socket.message() == {"type": "websocket.close", "code": sockets.CLOSE_NOT_FOUND}


async def test_organization_members_hear_of_changes_of_state(organization, run, viewer):
    socket = await sync_to_async(Socket)("/ws/organizations/lab", viewer)
    await socket.open()
    await joined(events.organization_group(organization.pk))
    await sync_to_async(events.publish_state)(organization.pk, "run", run.pk, "running", "x")
    heard = (await socket.events(1))[0]
    assert heard == {"type": "state", "kind": "run", "id": str(run.pk), "state": "running", "name": "x"}
    await socket.close()


async def test_an_organization_watcher_who_leaves_is_closed(organization, viewer, monkeypatch):
    monkeypatch.setattr("training.sockets.RECHECK_SECONDS", 0.2)
    socket = await sync_to_async(Socket)("/ws/organizations/lab", viewer)
    await socket.open()
    await sync_to_async(Membership.objects.filter(user=viewer).delete)()
    assert (await socket.message())["code"] == sockets.CLOSE_NOT_FOUND


async def test_a_client_that_does_not_read_is_dropped_and_nobody_waits():
    blocked = asyncio.Event()
    sent = []

    async def send(message):
        sent.append(message)
        if message["type"] == "websocket.send":
            await blocked.wait()

    subscriber = sockets.Subscriber(send, sockets.Credential(bearer="x"))
    task = asyncio.create_task(subscriber.run())
    for number in range(sockets.QUEUE_MESSAGES + 10):
        subscriber.offer("x", number + 1)
        if number == 1:
            await asyncio.sleep(0)
    assert subscriber.closing == sockets.CLOSE_TRY_AGAIN
    blocked.set()
    await asyncio.wait_for(task, SOON)
    assert sent[-1] == {"type": "websocket.close", "code": sockets.CLOSE_TRY_AGAIN}


async def test_a_flood_from_the_client_ends_the_socket():
    received = []

    async def receive():
        received.append(1)
        return {"type": "websocket.receive", "text": "x"}

    await asyncio.wait_for(sockets.until_disconnect(receive), SOON)
    assert len(received) == 1001
