"""Commits and large files as bytes on the wire: what the stock client never sends, and others may."""

import base64
import hashlib
import json

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.cache import cache
from django.db import connections

from dlplatform.accounts import keys
from dlplatform.accounts.models import ApiKey
from dlplatform.accounts.roles import Scope
from registry import services
from registry.hub import objects
from registry.hub.uploads import HubUploads
from tests import factories

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.asyncio]


@pytest.fixture(autouse=True)
async def _thread_lets_go(db):
    yield
    await sync_to_async(connections.close_all)()


@pytest.fixture
def model(organization):
    cache.clear()
    return factories.RegisteredModelFactory(organization=organization, name="m")


@pytest.fixture
def key_of(viewer, trainer, stranger):
    """{name: key}: of three people, and one of the trainer that only reads."""
    people = {"viewer": viewer, "trainer": trainer, "stranger": stranger, "reader": trainer}
    made = {}
    for name, user in people.items():
        prefix, made[name], digest = keys.new_secret()
        scopes = ["read"] if name == "reader" else Scope.values
        ApiKey.objects.create(user=user, name="hub", prefix=prefix, digest=digest, scopes=list(scopes))
    return made


async def send(method, path, *chunks, key=None, query="", headers=()):
    """One request straight to the endpoint; (status, body, headers)."""
    all_headers = [(b"host", b"localhost"), *headers]
    if key:
        all_headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {
        "type": "http", "method": method, "path": path, "headers": all_headers, "query_string": query.encode(),
        "server": ("localhost", 80), "scheme": "http",
    }  # fmt: skip
    talk = ApplicationCommunicator(HubUploads(_not_mine), scope)
    for place, chunk in enumerate(chunks or [b""]):
        await talk.send_input({"type": "http.request", "body": chunk, "more_body": place < len(chunks) - 1})
    start = await talk.receive_output(10)
    body = await talk.receive_output(10)
    told = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], json.loads(body["body"] or b"null"), told


async def _not_mine(scope, receive, send):
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b"null"})


def lines(*operations, **header):
    items = [{"key": "header", "value": {"summary": "A commit"} | header}]
    items += [{"key": key, "value": value} for key, value in operations]
    return b"\n".join(json.dumps(item).encode() for item in items)


def file(path, content=b"x"):
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


COMMIT = "/api/models/lab/m/commit/main"


@pytest.fixture
def commit(model, key_of):
    key = key_of["trainer"]

    async def act(*operations, path=COMMIT, **header):
        return await send("POST", path, lines(*operations, **header), key=key)

    return act


async def test_a_commit_is_one_version_with_what_it_says(commit, model):
    status, told, _ = await commit(file("a.txt"), file("f/b.txt", b"bb"), description="Why")
    assert status == 200
    version = await model.versions.aget()
    assert told["commitOid"] == version.digest[:40] and told["commitUrl"].startswith("http://localhost/lab/m/commit/")
    assert version.message == "A commit\n\nWhy" and version.lineage == {"source": "hub"} and version.task == ""
    assert {path: entry["size"] for path, entry in version.tree.items()} == {"a.txt": 1, "f/b.txt": 2}
    status, _, _ = await commit(("deletedFolder", {"path": "f/"}), file("c.txt"), parentCommit=told["commitOid"])
    assert status == 200 and set((await model.versions.afirst()).tree) == {"a.txt", "c.txt"}
    same, _, _ = await commit(file("c.txt"))
    assert same == 200 and await model.versions.acount() == 2, "nothing changed, nothing is added"


async def test_a_body_in_many_pieces_is_the_same_body(model, key_of):
    body = lines(file("a.txt", b"y" * 5000), file("b.txt", b"z"))
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    status, _, _ = await send("POST", COMMIT, *pieces, key=key_of["trainer"])
    assert status == 200 and set((await model.versions.aget()).tree) == {"a.txt", "b.txt"}


PATHS = [
    "../a",
    "/a",
    "a//b",
    "a/../b",
    "a\\b",
    "a\0b",
    "",
    ".",
    "a/",
    ".git/config",
    "a\nb",
    "x" * 300,
    "y/" * 600 + "z",
]


@pytest.mark.parametrize("path", PATHS)
async def test_no_file_leaves_the_tree(commit, model, path):
    status, told, _ = await commit(file(path))
    assert status == 400 and told["error"]
    assert not await model.versions.aexists()


@pytest.mark.parametrize(
    "operations",
    [
        [file("a"), file("a/b")],
        [("file", {"path": "a", "content": "%%%", "encoding": "base64"})],
        [("file", {"path": 5})],
        [("lfsFile", {"path": "a", "oid": "xyz"})],
        [("lfsFile", {"path": "a", "oid": "0" * 64, "size": 1})],
        [("unknown", {"path": "a"})],
        [("header", {"summary": "twice"})],
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(commit, model, operations):
    status, told, _ = await commit(*operations)
    assert status == 400 and told["error"]
    assert not await model.versions.aexists()


@pytest.mark.parametrize(
    "pickled",
    [
        file("model.bin"),
        file("a.dat", b"\x80\x04\x95" + b"x" * 100),
        file("a.dat", b"PK\x03\x04" + b"0" * 26 + b"archive/data.pkl"),
    ],
)
async def test_a_pickle_is_refused_with_the_way_to_convert_it(commit, model, pickled):
    status, told, _ = await commit(pickled)
    assert status == 400 and "save_file" in told["error"]
    assert not await model.versions.aexists()


@pytest.mark.parametrize(
    "body", [b"", b"\n\n", b"not json", b'{"key":"file","value":{}}', b'{"key":"header","value":5}', b"[]"]
)
async def test_a_body_that_is_no_commit(model, key_of, body):
    status, told, _ = await send("POST", COMMIT, body, key=key_of["trainer"])
    assert status == 400 and told["error"]


async def test_a_stale_parent_an_unknown_branch_and_a_missing_file(commit):
    _, first, _ = await commit(file("a"))
    await commit(file("b"))
    assert (await commit(file("c"), parentCommit=first["commitOid"]))[0] == 412
    status, _, headers = await commit(file("c"), path="/api/models/lab/m/commit/never")
    assert status == 404 and headers["x-error-code"] == "RevisionNotFound"
    status, told, headers = await commit(("deletedFile", {"path": "never"}))
    assert status == 404 and headers["x-error-code"] == "EntryNotFound" and "doesn't exist" in told["error"]


async def test_who_may_not_commit(model, key_of):
    body = lines(file("a"))
    assert (await send("POST", COMMIT, body))[0] == 401
    status, _, headers = await send("POST", COMMIT, body, key="dlp_000000000000_no")
    assert status == 401 and headers["x-error-message"] == "Invalid credentials in Authorization header"
    status, _, headers = await send("POST", COMMIT, body, key=key_of["stranger"])
    assert status == 404 and headers["x-error-code"] == "RepoNotFound"
    assert (await send("POST", COMMIT, body, key=key_of["viewer"]))[0] == 403
    assert (await send("POST", COMMIT, body, key=key_of["reader"]))[0] == 403
    assert (await send("POST", COMMIT, body, key=key_of["trainer"], query="create_pr=1"))[0] == 400
    assert (await send("GET", COMMIT))[0] == (await send("PUT", "/elsewhere"))[0] == 418


def large(model, user, content, size=None):
    oid = hashlib.sha256(content).hexdigest()
    text = objects.grant(model, user, oid, len(content) if size is None else size)
    return f"/lab/m.git/info/lfs/objects/{oid}", f"grant={text}", oid


async def test_a_large_file_is_kept_and_may_then_be_committed(commit, model, trainer, organization):
    content = b"large" * 1000
    path, query, oid = large(model, trainer, content)
    assert (await send("PUT", path, content[:99], content[99:], query=query))[0] == 200
    status, _, _ = await commit(("lfsFile", {"path": "w", "algo": "sha256", "oid": oid, "size": 1}))
    assert status == 200
    version = await model.versions.aget()
    assert version.tree["w"] == {"sha256": oid, "size": len(content)}, "the size is ours, not what a client says"
    copied, _, _ = await commit(("lfsFile", {"path": "copy", "oid": oid}))
    assert copied == 200


async def test_knowing_an_id_gives_nobody_the_object(commit, model, organization):
    """An object of another model of the same organization, by its id alone."""

    stored = await sync_to_async(services.object_store(organization.pk).put_bytes)(b"secret of another model")
    status, told, _ = await commit(("lfsFile", {"path": "mine", "oid": stored.sha256, "size": stored.size}))
    assert status == 400 and "upload it again" in told["error"]


async def test_a_large_file_must_be_the_announced_one(model, trainer, tmp_path):
    path, query, _ = large(model, trainer, b"announced")
    assert (await send("PUT", path, b"different", query=query))[0] == 400
    assert (await send("PUT", path, b"announced and more", query=query))[0] == 400
    assert (await send("PUT", path, b"announced", query="grant=no"))[0] == 403
    assert (await send("PUT", path, b"announced"))[0] == 403
    pickled = b"\x80\x04\x95" + b"x" * 20
    path, query, _ = large(model, trainer, pickled)
    status, told, _ = await send("PUT", path, pickled, query=query)
    assert status == 400 and "safetensors" in told["error"]
    incoming = services.object_store(model.organization_id).incoming_folder()
    assert not list(incoming.iterdir()), "nothing stays behind"


async def test_weights_are_kept_tensor_by_tensor(commit, model, trainer):
    import numpy
    from safetensors.numpy import save

    from dlplatform.objects.models import StoredObject

    content = save({"a": numpy.arange(1000.0), "b": numpy.ones(1000)})
    path, query, oid = large(model, trainer, content)
    assert (await send("PUT", path, content, query=query))[0] == 200
    assert (await StoredObject.objects.aget(sha256=oid)).codec == "composite"
    assert await sync_to_async(services.object_store(model.organization_id).read)(oid) == content
    assert (await commit(("lfsFile", {"path": "model.safetensors", "oid": oid, "size": len(content)})))[0] == 200


async def test_a_new_card_keeps_what_is_known_of_the_model(commit, model, trainer):

    store = services.object_store(model.organization_id)
    stored = await sync_to_async(store.put_bytes)(b"{}")
    await sync_to_async(services.commit_version)(
        actor=trainer, model=model, tree={"model.json": {"sha256": stored.sha256, "size": 2}}, task="regression",
        signature={"inputs": []}, metrics={"rmse": 1.0}, lineage={"run": "r"}, message="Trained",
    )  # fmt: skip
    await commit(file("README.md", b"# Card"))
    newest = await model.versions.afirst()
    assert newest.task == "regression" and newest.metrics == {"rmse": 1.0}
    assert newest.lineage == {"run": "r", "source": "hub"}
    await commit(file("model.json", b"[]"))
    assert (await model.versions.afirst()).task == ""
