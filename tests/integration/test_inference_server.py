"""The inference server by its own port: who is let in, what answers, changes without a gap, limits, and its end."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.utils import timezone

from dlplatform.accounts import keys
from dlplatform.accounts.authentication import tokens_for
from dlplatform.accounts.models import ApiKey, Membership, User
from dlplatform.engine.errors import PackageError, PredictionInputError
from registry.serving import batching, prediction_log, services
from registry.serving.models import PredictionRecord
from registry.serving.server import gate, models, watching
from registry.serving.services import Wanted
from tests import factories
from tests.fixtures.inference import eventually

pytestmark = pytest.mark.django_db(transaction=True)
TREE = {"model.json": {"sha256": "a" * 64, "size": 10}}
INPUTS = {"inputs": [{"name": "x", "type": "number", "nullable": True}]}


def key_of(user, *scopes, **more):
    prefix, presented, digest = keys.new_secret()
    ApiKey.objects.create(user=user, name="k", prefix=prefix, digest=digest, scopes=scopes or ["predict"], **more)
    return presented


def constant(value):
    return lambda rows: [{"value": value} for _ in rows]


@pytest.fixture
def versions(organization, stubs):
    model = factories.RegisteredModelFactory(organization=organization, name="flowers")
    made = [
        factories.ModelVersionFactory(model=model, number=number, tree=TREE, signature=INPUTS) for number in (1, 2, 3)
    ]
    for version in made:
        stubs.answers[version.pk] = constant(float(version.number))
    return made


@pytest.fixture
def deployment(maintainer, organization, versions):
    return services.create_deployment(
        actor=maintainer, organization=organization, name="screening", variants=[Wanted(versions[0].pk)]
    )


def change(actor, deployment, *versions, **more):
    return services.change_variants(
        actor=actor, deployment=deployment, variants=[Wanted(one.pk) for one in versions], **more
    )


def value_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]["value"]


def code_of(answer):
    return answer.json()["errors"][0]["code"]


# --- who is let in ------------------------------------------------------------------------------------


def test_keys_and_tokens_are_let_in_by_id_and_name_and_answered_as_by_the_web_process(
    api, viewer, deployment, inference
):
    key = key_of(viewer)
    by_key = inference.ask("screening", key, key="customer 7")
    assert by_key.status_code == 200, by_key.text
    by_web = api(viewer).post(
        f"/api/v1/deployments/{deployment.pk}/predict", {"instances": [{"x": 1.0}]}, format="json"
    )
    assert by_key.json().keys() == by_web.json().keys() == {"predictions", "version", "variant", "request_id"}
    assert value_of(inference.ask(f"{deployment.pk}", tokens_for(viewer)["access"])) == 1.0
    assert prediction_log.buffer.flush() == 3
    record = PredictionRecord.objects.get(request_id=by_key.json()["request_id"])
    assert (record.key, record.revision, record.propensity, record.role) == ("customer 7", 1, 1.0, "live")
    assert record.instances == [{"x": 1.0}] and record.predictions == [{"value": 1.0}] and record.milliseconds > 0


def test_strangers_wrong_keys_and_missing_scopes_are_refused_as_everywhere(
    api, viewer, stranger, deployment, inference
):
    for bearer, name, status in (
        (None, "screening", 401),
        ("dlp_000000000000_wrong", "screening", 401),
        ("rubbish", "screening", 401),
        (key_of(stranger), "screening", 404),
        (key_of(stranger), str(deployment.pk), 404),
        (key_of(viewer), str(uuid4()), 404),
        (key_of(viewer), "other%00", 404),
        (key_of(viewer, "read"), "screening", 403),
        (key_of(viewer, expires_at=timezone.now() - timedelta(seconds=1)), "screening", 401),
        (tokens_for(viewer)["refresh"], "screening", 401),
    ):
        answer = inference.ask(name, bearer)
        assert answer.status_code == status, (bearer, name, answer.text)
        assert answer.json().keys() == {"type", "errors"}
        assert ("www-authenticate" in answer.headers) == (status == 401)
    both = factories.MembershipFactory(organization=deployment.organization, user=stranger, role="viewer").user
    assert inference.ask("screening", key_of(both)).status_code == 200
    url = "/api/v1/deployments/screening/predict"
    headers = {"Authorization": f"Bearer {key_of(both)}"}
    body = {"instances": [{"x": 1}]}
    for slug, status in (("lab", 200), ("elsewhere", 404), ("nowhere", 400), ("%00", 404)):
        answer = inference.client.post(f"{url}/?organization={slug}", json=body, headers=headers)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("how", ["revoked", "member", "disabled", "scope"])
def test_whoever_loses_the_right_is_refused_within_seconds(viewer, deployment, inference, how):
    key = key_of(viewer)
    assert inference.ask(str(deployment.pk), key).status_code == 200
    if how == "revoked":
        ApiKey.objects.update(revoked_at=timezone.now())
    elif how == "member":
        Membership.objects.filter(user=viewer).delete()
    elif how == "disabled":
        User.objects.filter(pk=viewer.pk).update(is_active=False)
    else:
        ApiKey.objects.update(scopes=["read"])
    expected = {"revoked": 401, "member": 404, "disabled": 401, "scope": 403}[how]
    began = time.monotonic()
    eventually(lambda: inference.ask(str(deployment.pk), key).status_code == expected)
    assert time.monotonic() - began < gate.LAST_SECONDS + 5, "with room for a busy machine"


def test_bad_questions_are_refused_by_their_place_as_by_the_web_process(api, viewer, deployment, inference):
    headers = {"Authorization": f"Bearer {key_of(viewer)}", "Content-Type": "application/json"}
    url = "/api/v1/deployments/screening/predict"
    for body in (
        "{", "[]", "{}", '{"instances": []}', '{"instances": [1]}', '{"instances": [{}], "kei": 1}',
        '{"instances": [{}], "key": 3.5e999}', '{"instances": [{}, {"x": "a\\ud800"}]}',
        json.dumps({"instances": [{}], "key": "k" * 201}), json.dumps({"instances": [{}] * 1001}),
        '{"instances": [{}], "key": "a\\u0001"}', '{"instances": [{}], "key": ""}', '{"instances": [{"x": NaN}]}',
    ):  # fmt: skip
        ours = inference.client.post(url, content=body, headers=headers)
        theirs = api(viewer).post(url, body, content_type="application/json")
        assert ours.status_code == theirs.status_code == 400, (body, ours.text)
        assert ours.json() == theirs.json()
    assert inference.client.post(url, content="x=1", headers={**headers, "Content-Type": "a/b"}).status_code == 415
    assert inference.client.get(url, headers=headers).status_code == 405
    assert inference.client.post("/else", headers=headers).status_code == 404
    blank = '{"instances": [{"x": 1}], "key": " 7 "}'
    assert inference.client.post(url, content=blank, headers=headers).status_code == 200
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.get().key == "7"


def test_a_key_that_asks_too_often_waits(viewer, deployment, inference, monkeypatch):
    monkeypatch.setattr(inference.server, "rate", gate.RateLimit(0.01))
    key = key_of(viewer)
    assert inference.ask("screening", key).status_code == 200
    refused = inference.ask("screening", key)
    assert refused.status_code == 429 and 90 < int(refused.headers["retry-after"]) <= 101, refused.text
    assert inference.ask("screening", key_of(viewer)).status_code == 200, "each key for itself"


# --- changes without a gap ----------------------------------------------------------------------------


def test_a_change_is_live_without_a_restart_and_undone_too(viewer, maintainer, deployment, versions, inference):
    key = key_of(viewer)
    assert value_of(inference.ask("screening", key)) == 1.0
    change(maintainer, deployment, versions[1])
    eventually(lambda: value_of(inference.ask("screening", key)) == 2.0)
    services.undo_change(actor=maintainer, deployment=deployment)
    eventually(lambda: value_of(inference.ask("screening", key)) == 1.0)
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    eventually(lambda: inference.ask(str(deployment.pk), key).status_code == 409)
    services.set_archived(actor=maintainer, deployment=deployment, archived=False)
    eventually(lambda: inference.ask("screening", key).status_code == 200)


def test_a_new_deployment_is_never_missing_while_it_is_being_seen(
    viewer, maintainer, organization, versions, inference, monkeypatch
):
    """Between seeing a deployment and serving it, whoever asks waits for the look to end."""
    seen, go_on = threading.Event(), threading.Event()
    advance = watching.Watcher._advance

    def held(watcher, coming):
        if coming.state.name == "fresh":
            seen.set()
            go_on.wait(5)
        advance(watcher, coming)

    monkeypatch.setattr(watching.Watcher, "_advance", held)
    services.create_deployment(
        actor=maintainer, organization=organization, name="fresh", variants=[Wanted(versions[1].pk)]
    )
    assert seen.wait(20)
    key = key_of(viewer)
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(inference.ask, "fresh", key)
        time.sleep(0.2)
        go_on.set()
        assert value_of(answer.result(20)) == 2.0


def test_no_request_fails_while_versions_are_swapped_and_loaded(
    viewer, maintainer, deployment, versions, stubs, inference
):
    """A new version takes its time to load; the old one answers until then, and never one request fails."""
    key, gates = key_of(viewer), {version.pk: threading.Event() for version in versions[1:]}
    for version in versions[1:]:
        stubs.loads[version.pk] = gates[version.pk].wait
    seen, failed, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            answer = inference.ask("screening", key)
            (seen if answer.status_code == 200 else failed).append(answer)

    with ThreadPoolExecutor(4) as many:
        try:
            for _ in range(4):
                many.submit(ask)
            for version in versions[1:]:
                change(maintainer, deployment, version)
                eventually(lambda version=version: inference.server.watcher.loading == {version.pk})
                before = len(seen)
                eventually(lambda before=before: len(seen) > before + 20)
                assert {value_of(one) for one in seen[before:]} == {version.number - 1.0}
                assert inference.client.get("/readyz").json()["loading"] == [str(version.pk)]
                gates[version.pk].set()
                eventually(lambda version=version: value_of(seen[-1]) == version.number)
        finally:
            stop.set()
            for one in gates.values():
                one.set()
    assert not failed, failed[0].text
    assert inference.client.get("/readyz").status_code == 200


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_named(
    viewer, maintainer, deployment, versions, stubs, inference, caplog, monkeypatch
):
    def broken():
        raise PackageError("no such layer")

    monkeypatch.setattr(models, "RETRY_SECONDS", 1.0)
    stubs.loads[versions[1].pk] = broken
    key = key_of(viewer)
    assert value_of(inference.ask("screening", key)) == 1.0
    change(maintainer, deployment, versions[1])
    eventually(lambda: versions[1].pk in inference.server.watcher.unloadable)
    assert value_of(inference.ask("screening", key)) == 1.0
    ready = inference.client.get("/readyz")
    assert ready.status_code == 200 and ready.json()["unloadable"] == [str(versions[1].pk)]
    assert "dlplatform_inference_unloadable_models 1.0" in inference.client.get("/metrics").text
    assert caplog.text.count("no such layer") == 1 and "what answered before goes on" in caplog.text
    alone = services.create_deployment(
        actor=maintainer, organization=deployment.organization, name="alone", variants=[Wanted(versions[1].pk)]
    )
    answer = inference.ask("alone", key)
    assert answer.status_code == 422 and code_of(answer) == "model_unusable"
    stubs.loads.clear()  # what was missing came back
    eventually(lambda: value_of(inference.ask("screening", key)) == 2.0)
    assert value_of(inference.ask(str(alone.pk), key)) == 2.0
    assert not inference.server.watcher.unloadable


def test_it_goes_on_answering_while_the_database_is_away(viewer, deployment, inference, monkeypatch, caplog):
    key = key_of(viewer)
    assert inference.ask("screening", key).status_code == 200

    def away(*args, **kwargs):
        raise OperationalError("away")

    monkeypatch.setattr(watching, "stamps", away)
    monkeypatch.setattr(gate, "user_of_bearer", away)
    monkeypatch.setattr(gate, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(gate, "LAST_SECONDS", 0.0)
    for _ in range(5):
        assert inference.ask("screening", key).status_code == 200
    assert inference.ask("screening", key_of(viewer)).status_code == 503, "nobody new is let in"
    eventually(lambda: "what was deployed goes on answering" in caplog.text)
    monkeypatch.setattr(gate, "AWAY_SECONDS", 0.0)
    assert inference.ask("screening", key).status_code == 503
    monkeypatch.undo()


def test_deployed_versions_stay_in_memory_and_the_others_make_room(deployment, versions, inference, stubs):
    held = inference.server.models.cache
    held._budget = 1
    eventually(lambda: versions[0].pk in held.sizes)
    for version in versions[1:]:
        inference.server.models.load(version.pk).result(20)
    assert set(held.sizes) == {versions[0].pk, versions[2].pk}
    assert inference.server.models.ready(versions[0].pk) is not None


# --- load and leaving ---------------------------------------------------------------------------------


class Held:
    """A model that answers when it may."""

    def __init__(self):
        self.entered, self.gate, self.rows = threading.Event(), threading.Event(), []

    def __call__(self, rows):
        self.rows += rows
        self.entered.set()
        assert self.gate.wait(20)
        return constant(1.0)(rows)


def test_a_full_queue_is_503_and_who_leaves_is_not_answered(
    viewer, deployment, versions, stubs, inference, monkeypatch
):
    held = stubs.answers[versions[0].pk] = Held()
    key = key_of(viewer)
    with ThreadPoolExecutor(2) as many:
        first = many.submit(inference.ask, "screening", key)
        assert held.entered.wait(20)
        body = b'{"instances": [{"x": 99}]}'
        with socket.create_connection(inference.client.base_url.netloc.decode().split(":")) as leaving:
            request = (
                f"POST /api/v1/deployments/screening/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            )
            request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            leaving.sendall(request.encode() + body)
            eventually(lambda: inference.server.models.live.waiting == 1)
        monkeypatch.setattr(batching, "MOST_WAITING", 1)
        refused = inference.ask("screening", key)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1" and code_of(refused) == "overloaded"
        eventually(lambda: any(one.error == "client_gone" for one in prediction_log.buffer._waiting))
        held.gate.set()
        assert value_of(first.result()) == 1.0
    eventually(lambda: inference.server.models.live.waiting == 0)
    assert held.rows == [{"x": 1.0}], "the row of who left was never run"


def test_a_small_model_is_run_by_the_loop_itself_and_answers_as_any(
    viewer, deployment, maintainer, versions, stubs, inference
):
    def echo(rows):
        if any(row["x"] == -1 for row in rows):
            raise PredictionInputError(0, "x", "bad_value", "no")
        return [{"value": row["x"], "rows": len(rows), "thread": threading.current_thread().name} for row in rows]

    stubs.steady.add(versions[1].pk)
    stubs.answers[versions[1].pk] = echo
    change(maintainer, deployment, versions[1])
    key = key_of(viewer)
    inference.wait_for(deployment.pk, 2)
    with ThreadPoolExecutor(16) as clients:
        told = list(clients.map(lambda x: inference.ask("screening", key, [{"x": x}]), [*range(60), -1]))
    assert [value_of(answer) for answer in told[:-1]] == list(range(60))
    assert (told[-1].status_code, code_of(told[-1])) == (400, "bad_value")
    threads = {answer.json()["predictions"][0]["thread"] for answer in told[:-1]}
    assert len(threads) == 1 and "torch" not in threads.pop()
    many = inference.ask("screening", key, [{"x": 1.0}] * 1000).json()["predictions"]
    assert len(many) == 1000
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.filter(deployment=deployment, error="").count() == 61
    assert PredictionRecord.objects.get(error="invalid").instances == [{"x": -1}]
    seen = inference.client.get("/metrics").text
    assert 'error="invalid"' in seen and "dlplatform_inference_batch_rows_count" in seen


def test_a_slow_model_of_one_deployment_is_no_reason_to_fail_at_the_end(viewer, deployment, versions, stubs, inference):
    """Stopped in good order, what is being answered is answered, and its record is written."""
    held = stubs.answers[versions[0].pk] = Held()
    with ThreadPoolExecutor(1) as many:
        first = many.submit(inference.ask, "screening", key_of(viewer))
        assert held.entered.wait(20)
        inference._uvicorn.should_exit = True
        held.gate.set()
        assert value_of(first.result()) == 1.0
    inference._thread.join(20)
    assert PredictionRecord.objects.get().predictions == [{"value": 1.0}]


def test_prometheus_reads_what_was_answered_and_what_is_held(viewer, deployment, versions, stubs, inference):
    def refuse(rows):
        raise PackageError("no")

    key = key_of(viewer)
    assert inference.ask("screening", key, [{"x": 1}, {"x": 2}]).status_code == 200
    stubs.answers[versions[0].pk] = refuse
    assert inference.ask("screening", key).status_code == 422
    told = inference.client.get("/metrics").text
    labels = f'deployment="{deployment.pk}",variant="{deployment.variants.get().pk}"'
    for line in (
        f"dlplatform_inference_seconds_count{{{labels}}} 1.0",
        f'dlplatform_inference_requests_total{{deployment="{deployment.pk}",error="model_unusable",'
        f'variant="{deployment.variants.get().pk}"}} 1.0',
        'dlplatform_inference_batch_rows_bucket{le="1.0"} 1.0',
        'dlplatform_inference_batch_rows_bucket{le="2.0"} 2.0',
        "dlplatform_inference_queue_seconds_count 2.0",
        'dlplatform_inference_waiting{queue="live"} 0.0',
        "dlplatform_inference_loaded_models 1.0",
        "dlplatform_inference_deployments 1.0",
        "dlplatform_inference_loading_models 0.0",
        "dlplatform_inference_log_backlog 2.0",
        "dlplatform_inference_log_lost_total 0.0",
    ):
        assert line in told.splitlines(), line
    assert "screening" not in told and "lab" not in told.replace("label", ""), "it says nothing about anybody's data"
