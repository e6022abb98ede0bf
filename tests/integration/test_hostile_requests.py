"""Requests that no honest client sends: odd JSON, numbers and parameters on every route, and many at once."""

import threading

import pytest
from channels.testing import WebsocketCommunicator
from django.core.exceptions import ValidationError
from django.db import connection

from datasets import services as datasets
from dlplatform.accounts.models import Organization
from dlplatform.accounts.names import unique_name
from dlplatform.api import UNAUTHENTICATED
from registry import services as registry
from registry.forms import TryForm
from registry.models import RegisteredModel
from tests import factories
from tests.integration.test_access_matrix import operations, rows, url_of  # noqa: F401 - a fixture
from training import experiments

NESTED = b'{"a":' * 5000
ODD = {
    "nested": NESTED,
    "nested lists": b"[" * 100_000,
    "huge float": b'{"name": 1e400, "instances": [{"a": -1e400}]}',
    "huge integer": b'{"name": ' + b"9" * 400 + b"}",
    "endless integer": b'{"name": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"name": NaN, "instances": [{"a": Infinity}]}',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "half a surrogate": b'{"name": "\\ud800", "\\udfff": 1}',
}


@pytest.mark.django_db
@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_odd_json_is_refused_on_every_route_that_reads_any(api, admin_user, rows, body):  # noqa: F811
    client = api(admin_user)
    for operation in operations():
        path, method, _ = operation.values
        if method in ("POST", "PUT", "PATCH"):
            answer = client.generic(method, url_of(path, rows), body, content_type="application/json")
            assert answer.status_code < 500, (path, answer.content)
    answer = client.post("/api/v1/models", body, content_type="application/json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["detail"]


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=abc", "limit=-1", "limit=", "archived=maybe"])
@pytest.mark.parametrize("path", ["datasets", "models", "runs"])
def test_parameters_of_lists_are_checked(api, viewer, path, query):
    answer = api(viewer).get(f"/api/v1/{path}?{query}")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == query.partition("=")[0]


@pytest.mark.django_db
def test_every_refused_credential_has_the_same_answer(api, client, trainer):
    expected = {
        "type": "client_error",
        "errors": [{"code": "not_authenticated", "detail": UNAUTHENTICATED, "attr": None}],
    }
    for header in ("Bearer x", "Bearer dlp_abc_def", "Basic eDp5", "Bearer"):
        answer = client.get("/api/v1/models", headers={"Authorization": header})
        assert answer.status_code == 401 and answer.json() == expected, header
        assert answer["WWW-Authenticate"].startswith("Bearer")
    wrong = {"username": trainer.username, "password": "wrong password"}
    for body in (wrong, {**wrong, "username": "nobody"}):
        answer = client.post("/api/v1/auth/token", body, content_type="application/json")
        assert answer.status_code == 401 and answer.json() == expected


@pytest.mark.django_db
def test_head_is_answered_like_get_without_the_body(api, viewer, organization):
    model = factories.RegisteredModelFactory(organization=organization)
    stored = registry.object_store(organization.pk).put_bytes(b"hello")
    version = factories.ModelVersionFactory(model=model, tree={"a.txt": {"sha256": stored.sha256, "size": 5}})
    assert api(viewer).head("/api/v1/models").status_code == 200
    answer = api(viewer).head(f"/api/v1/model-versions/{version.pk}/files/a.txt")
    assert answer.status_code == 200 and answer["Content-Length"] == "5" and answer["ETag"] and not answer.content


@pytest.mark.django_db
def test_a_key_of_idempotency_has_a_length_and_knows_no_slash(api, trainer):
    client = api(trainer)
    long = client.post("/api/v1/models", {"name": "a"}, format="json", headers={"Idempotency-Key": "k" * 201})
    assert long.status_code == 400 and long.json()["errors"][0]["attr"] == "Idempotency-Key"
    first = client.post("/api/v1/models", {"name": "a"}, format="json", headers={"Idempotency-Key": "k"})
    again = client.post("/api/v1/models/", {"name": "a"}, format="json", headers={"Idempotency-Key": "k"})
    assert first.status_code == again.status_code == 201 and first.json() == again.json()


@pytest.mark.parametrize("text", ["inf", "-Infinity", "nan", "1e400"])
def test_what_no_number_can_be_goes_on_as_text(text):
    form = TryForm({"column-0": text}, inputs=[{"name": "a", "type": "number", "nullable": True}])
    name = next(iter(form.fields))
    form = TryForm({name: text}, inputs=form.inputs)
    assert form.is_valid() and form.instance() == {"a": text}


async def test_a_socket_that_does_not_exist_is_closed():
    from dlplatform.asgi import sockets

    socket = WebsocketCommunicator(sockets, "/ws/nope")
    assert await socket.connect() == (False, 4404)


# --- many at once -------------------------------------------------------------------------------------


def at_once(count, act):
    """What ``act`` returned or raised in each of so many threads that begin together."""
    gate, outcomes = threading.Barrier(count), []

    def one():
        gate.wait()
        try:
            outcomes.append(act())
        except Exception as error:
            outcomes.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


CREATE = {
    "dataset": datasets.create_dataset,
    "model": registry.create_model,
    "experiment": experiments.create_experiment,
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("create", CREATE.values(), ids=CREATE)
def test_of_many_who_take_a_name_at_once_one_gets_it_and_the_others_are_told(trainer, organization, create):
    for round_ in range(5):
        outcomes = at_once(6, lambda name=f"race {round_}": create(actor=trainer, organization=organization, name=name))
        refused = [one for one in outcomes if isinstance(one, Exception)]
        assert len(refused) == 5 and all(isinstance(one, ValidationError) for one in refused), refused
        assert all("already" in one.messages[0] for one in refused)


@pytest.mark.django_db(transaction=True)
def test_two_runs_that_end_together_register_under_one_new_model(trainer, organization):
    for round_ in range(5):
        named = f"new {round_}"
        outcomes = at_once(
            4, lambda name=named: registry.model_named(actor=trainer, organization=organization, name=name).pk
        )
        assert len(set(outcomes)) == 1, outcomes
    assert RegisteredModel.objects.count() == 5


@pytest.mark.django_db
def test_another_broken_constraint_is_no_taken_name(organization):
    from django.db import IntegrityError

    with pytest.raises(IntegrityError), unique_name("taken"):
        Organization.objects.create(slug=organization.slug, name="again")
