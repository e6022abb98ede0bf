"""The inference server by its own port: who is let in, what answers, changes without a gap, limits, and its end."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.utils import timezone

from dlplatform.accounts.authentication import tokens_for
from dlplatform.accounts.models import ApiKey, Membership, User
from dlplatform.engine.errors import PackageError
from registry.serving import prediction_log, services
from registry.serving.models import PredictionRecord
from registry.serving.server import gate, models, rate_limit, watching
from registry.serving.services import Wanted
from tests import factories
from tests.fixtures.inference import SOON, eventually
from tests.integration.answering import (
    change,
    code_of,
    key_of,
    value_of,
)

pytestmark = pytest.mark.django_db(transaction=True)


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
    for slug, status in (("lab", 200), ("elsewhere", 404), ("nowhere", 400), ("%00", 400)):
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
    assert time.monotonic() - began < gate.LAST_SECONDS + 30, "with room for a busy machine"


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
    monkeypatch.setattr(inference.server, "rate", rate_limit.RateLimit(0.01))
    key = key_of(viewer)
    assert inference.ask("screening", key).status_code == 200
    refused = inference.ask("screening", key)
    assert refused.status_code == 429 and 90 < int(refused.headers["retry-after"]) <= 101, refused.text
    assert inference.ask("screening", key_of(viewer)).status_code == 200, "each key for itself"


def test_what_comes_through_the_web_process_counts_for_the_rate_too(
    client, api, viewer, deployment, versions, inference, monkeypatch
):
    """Otherwise a key would have its rate twice, or any: at the address of the web process."""
    monkeypatch.setattr(inference.server, "rate", rate_limit.RateLimit(0.01))
    key, body = key_of(viewer), {"instances": [{"x": 1.0}]}
    headers = {"Authorization": f"Bearer {key}"}

    def ask_web(path):
        return client.post(f"/api/v1/{path}/predict", body, content_type="application/json", headers=headers)

    assert inference.ask("screening", key).status_code == 200
    for path in ("deployments/screening", f"deployments/{deployment.pk}", f"model-versions/{versions[0].pk}"):
        refused = ask_web(path)
        assert refused.status_code == 429, (path, refused.content)
        assert 90 < int(refused["Retry-After"]) <= 101 and refused.json()["errors"][0]["code"] == "throttled"
    monkeypatch.setattr(inference.server, "rate", rate_limit.RateLimit(0.01))
    assert ask_web("deployments/screening").status_code == 200
    assert inference.ask("screening", key).status_code == 429, "and the other way round"
    signed_in = api(viewer)  # a person at a page has no key
    assert [
        signed_in.post("/api/v1/deployments/screening/predict", body, format="json").status_code for _ in range(3)
    ] == [200] * 3


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
            go_on.wait(SOON)
        advance(watcher, coming)

    monkeypatch.setattr(watching.Watcher, "_advance", held)
    services.create_deployment(
        actor=maintainer, organization=organization, name="fresh", variants=[Wanted(versions[1].pk)]
    )
    assert seen.wait(SOON)
    key = key_of(viewer)
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(inference.ask, "fresh", key)
        time.sleep(0.2)
        go_on.set()
        assert value_of(answer.result(SOON)) == 2.0


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
