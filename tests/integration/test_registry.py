"""The registry: commits, refs and their log, files out, predictions through the separate process."""

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.urls import reverse

from dlplatform.api import Conflict, Unavailable
from dlplatform.objects.models import StoredObject
from registry import services
from registry.commits import canonical, digest_of, identifier_of
from registry.models import ModelVersion, RefMove
from registry.serving import client
from registry.serving.server.http import BODY_LIMIT
from tests import factories
from tests.integration.conftest import QUICK
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)
ROW = {"length": 5.1, "width": 3.0, "colour": "red"}


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization)


def commit(actor, model, **more):
    wanted = {"tree": {}, "task": "classification", "signature": {}, "metrics": {"accuracy": 0.5}, "lineage": {}}
    return services.commit_version(actor=actor, model=model, message="a change", **(wanted | more))


def test_a_commit_is_named_by_the_hash_of_its_content():
    content = {"b": 1, "a": {"ü": [1.5, None]}}
    assert canonical(content) == '{"a":{"ü":[1.5,null]},"b":1}'.encode()
    assert digest_of(content) == hashlib.sha256(canonical(content)).hexdigest()
    identifier = identifier_of(digest_of(content))
    assert identifier.version == 8 and identifier.hex[:12] == digest_of(content)[:12]
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_commits_follow_each_other_on_the_branch(trainer, model):
    first, second = commit(trainer, model), commit(trainer, model)
    side = commit(trainer, model, parents=[first], branch="experiment")
    assert [first.number, second.number, side.number] == [1, 2, 3]
    assert list(second.parents.all()) == [first] and list(side.parents.all()) == [first]
    refs = {ref.name: ref.version for ref in model.refs.filter(kind="branch")}
    assert refs == {"main": second, "experiment": side}


def test_an_alias_moves_with_a_log_of_who_when_from_to_and_why(maintainer, trainer, model):
    first, second = commit(trainer, model), commit(trainer, model)
    for version, reason in ((first, "first"), (second, "better"), (second, "again"), (first, "rollback")):
        services.move_ref(
            actor=maintainer, model=model, kind="alias", name="production", version=version, reason=reason
        )
    moves = RefMove.objects.filter(kind="alias").order_by("id")
    assert [(move.from_version, move.to_version, move.reason) for move in moves] == [
        (None, first, "first"), (first, second, "better"), (second, first, "rollback"),
    ]  # fmt: skip
    assert {move.actor for move in moves} == {maintainer}


def test_a_move_happens_only_from_where_the_caller_expects(maintainer, trainer, model):
    first, second = commit(trainer, model), commit(trainer, model)
    move = {"actor": maintainer, "model": model, "kind": "alias", "name": "staging", "check_expected": True}
    services.move_ref(**move, version=first, expected=None)
    with pytest.raises(Conflict):
        services.move_ref(**move, version=second, expected=None)
    assert services.move_ref(**move, version=second, expected=first.pk).version == second


def test_tags_never_move_nor_go(maintainer, trainer, model):
    first, second = commit(trainer, model), commit(trainer, model)
    tag = {"actor": maintainer, "model": model, "kind": "tag", "name": "1.0.0"}
    services.move_ref(**tag, version=first)
    services.move_ref(**tag, version=first)
    with pytest.raises(Conflict):
        services.move_ref(**tag, version=second)
    with pytest.raises(Conflict):
        services.delete_ref(**tag)


def test_what_a_ref_cannot_be_is_refused_in_words(maintainer, trainer, viewer, model):
    version = commit(trainer, model)
    foreign = commit(trainer, factories.RegisteredModelFactory(organization=model.organization))
    for name in ("", "a/b", "../x", "x" * 81, "-a", "a b"):
        with pytest.raises(ValidationError):
            services.move_ref(actor=maintainer, model=model, kind="alias", name=name, version=version)
    with pytest.raises(ValidationError):
        services.move_ref(actor=maintainer, model=model, kind="alias", name="production", version=foreign)
    with pytest.raises(PermissionDenied):
        services.move_ref(actor=trainer, model=model, kind="alias", name="production", version=version)
    with pytest.raises(PermissionDenied):
        services.move_ref(actor=viewer, model=model, kind="branch", name="x", version=version)


def test_models_are_named_once_archived_and_brought_back(trainer, maintainer, model, api):
    with pytest.raises(ValidationError):
        services.create_model(actor=trainer, organization=model.organization, name=model.name)
    assert api(trainer).delete(f"/api/v1/models/{model.pk}").status_code == 403
    assert api(maintainer).post(f"/api/v1/models/{model.pk}/archive").status_code == 200
    assert api(trainer).get("/api/v1/models").json()["results"] == []
    again = services.create_model(actor=trainer, organization=model.organization, name=model.name)
    model.refresh_from_db()
    with pytest.raises(Conflict):
        services.set_model_archived(actor=maintainer, model=model, archived=False)
    services.update_model(actor=trainer, model=again, name="renamed")
    assert services.set_model_archived(actor=maintainer, model=model, archived=False).archived_at is None
    with pytest.raises(ValidationError):
        services.update_model(actor=trainer, model=again, name=model.name)


def test_refs_through_the_api(api, maintainer, trainer, model):
    version = commit(trainer, model)
    url = f"/api/v1/models/{model.pk}/refs/alias/production"
    moved = api(maintainer).put(url, {"version": str(version.pk), "reason": "good"}, format="json")
    assert moved.status_code == 200 and moved.json()["number"] == 1
    stale = api(maintainer).put(url, {"version": str(version.pk), "expected": None}, format="json")
    assert stale.status_code == 409 and stale.json()["errors"][0]["code"] == "ref_moved"
    unknown = api(maintainer).put(url, {"version": str(uuid4())}, format="json")
    assert unknown.status_code == 400 and unknown.json()["errors"][0]["attr"] == "version"
    assert api(trainer).get(url).json()["version"] == str(version.pk)
    assert len(api(trainer).get(f"/api/v1/models/{model.pk}/refs").json()["results"]) == 2
    assert api(trainer).get(f"/api/v1/models/{model.pk}/refs/log").json()["results"][0]["reason"] == "good"
    assert api(trainer).get(f"/api/v1/models/{model.pk}/refs/nonsense/x").status_code == 404
    assert api(maintainer).delete(url).status_code == 204
    assert api(trainer).get(url).status_code == 404


def test_a_nul_in_a_path_names_nothing(api, trainer, model):
    for path in (f"models/{model.pk}/refs/alias/a%00b", "organizations/lab/members/%00"):
        answer = api(trainer).get(f"/api/v1/{path}")
        assert answer.status_code == 404 and answer["Content-Type"] == "application/json"


def test_models_and_versions_through_the_api(api, trainer, model):
    version = commit(trainer, model)
    created = api(trainer).post("/api/v1/models", {"name": "new"}, format="json")
    assert created.status_code == 201 and created.json()["versions"] == 0
    found = api(trainer).get(f"/api/v1/models?search={model.name}").json()["results"]
    assert found[0]["versions"] == 1 and found[0]["refs"][0]["name"] == "main"
    changed = api(trainer).patch(f"/api/v1/models/{model.pk}", {"description": "words"}, format="json")
    assert changed.json()["description"] == "words"
    listed = api(trainer).get(f"/api/v1/models/{model.pk}/versions").json()["results"]
    assert [row["id"] for row in listed] == [str(version.pk)]
    assert api(trainer).get(f"/api/v1/model-versions/{version.pk}").json()["parents"] == []


@pytest.fixture
def stored(trainer, model):
    """A version with one file of 1,000 bytes."""
    content = bytes(range(250)) * 4
    kept = services.object_store(model.organization_id).put_bytes(content)
    version = commit(trainer, model, tree={"model.bin": {"sha256": kept.sha256, "size": kept.size}})
    return version, content


def body_of(response):
    async def gather():
        return b"".join([chunk async for chunk in response.streaming_content])

    return asyncio.run(gather())


@pytest.mark.parametrize(
    ("wanted", "status", "expected"),
    [
        ("", 200, slice(None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=990-", 206, slice(990, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=0-99999", 206, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
    ],
)
def test_files_come_out_whole_or_in_ranges(api, trainer, stored, wanted, status, expected):
    version, content = stored
    headers = {"HTTP_RANGE": wanted} if wanted else {}
    answer = api(trainer).get(f"/api/v1/model-versions/{version.pk}/files/model.bin", **headers)
    assert answer.status_code == status
    assert body_of(answer) == content[expected]
    assert int(answer["Content-Length"]) == len(content[expected])
    assert answer["Accept-Ranges"] == "bytes"


def test_a_range_outside_and_a_known_etag_send_no_bytes(api, trainer, stored):
    version, _ = stored
    url = f"/api/v1/model-versions/{version.pk}/files/model.bin"
    for wanted in ("bytes=1000-", "bytes=20-10", "bytes=-0"):
        outside = api(trainer).get(url, HTTP_RANGE=wanted)
        assert outside.status_code == 416 and outside["Content-Range"] == "bytes */1000", wanted
    etag = api(trainer).get(url)["ETag"]
    assert api(trainer).get(url, HTTP_IF_NONE_MATCH=etag).status_code == 304
    assert api(trainer).get(f"{url}x").status_code == 404


def test_a_damaged_object_is_never_sent_whole(api, trainer, stored):
    version, _ = stored
    store = services.object_store(version.model.organization_id)
    row = StoredObject.objects.get(sha256=version.tree["model.bin"]["sha256"])
    with open(store.storage.path(row.file), "r+b") as file:
        file.write(b"\xff")
    answer = api(trainer).get(f"/api/v1/model-versions/{version.pk}/files/model.bin")
    with pytest.raises(Exception, match="fails its hash"):
        body_of(answer)


# --- predictions --------------------------------------------------------------------------------------


@pytest.fixture
def trained(queue_run):
    run = queue_run(QUICK)
    train(str(run.pk))
    run.refresh_from_db()
    return run.output_version


def test_predictions_come_by_version_and_by_alias(api, viewer, maintainer, trained, inference):
    services.move_ref(actor=maintainer, model=trained.model, kind="alias", name="production", version=trained)
    body = {"instances": [ROW, ROW | {"length": 7.5, "width": 2.0}]}
    by_version = api(viewer).post(f"/api/v1/model-versions/{trained.pk}/predict", body, format="json")
    assert by_version.status_code == 200, by_version.content
    first = by_version.json()["predictions"][0]
    assert set(first["probabilities"]) == {"a", "b", "c"} and first["label"] in "abc"
    assert sum(first["probabilities"].values()) == pytest.approx(1.0, abs=1e-4)
    url = f"/api/v1/models/{trained.model_id}/refs/alias/production/predict"
    assert api(viewer).post(url, body, format="json").json() == by_version.json()


@pytest.mark.parametrize(
    ("instances", "attr"),
    [
        ([ROW | {"length": "long"}], "instances.0.length"),
        ([ROW, ROW | {"no such": 1}], "instances.1.no such"),
        ([], "instances"),
        ("x", "instances"),
        ([1], "instances.0"),
        ([ROW] * 1001, "instances"),
    ],
)
def test_bad_instances_are_named_by_row_and_column(api, viewer, trained, inference, instances, attr):
    answer = api(viewer).post(f"/api/v1/model-versions/{trained.pk}/predict", {"instances": instances}, format="json")
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["attr"].startswith(attr)


def test_a_full_queue_is_answered_503_with_the_time_to_wait(api, viewer, trained, inference, monkeypatch):
    monkeypatch.setattr("registry.serving.batching.MOST_WAITING", 0)
    monkeypatch.setattr(inference.server.models.cache, "at_once", lambda version: 0)  # small ones wait in no queue
    answer = api(viewer).post(f"/api/v1/model-versions/{trained.pk}/predict", {"instances": [ROW]}, format="json")
    assert answer.status_code == 503 and answer["Retry-After"] == "1", answer.content
    assert answer.json()["errors"][0]["code"] == "overloaded"


def test_requests_that_wait_are_answered_as_each_alone(trained, inference):
    rows = [ROW | {"length": number / 10} for number in range(40, 60)]
    alone = [client.predict(trained.pk, [row]) for row in rows]
    with ThreadPoolExecutor(16) as many:
        together = list(many.map(lambda row: client.predict(trained.pk, [row]), rows))
    for (one,), (other,) in zip(alone, together, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_a_version_without_a_package_is_unusable_not_a_crash(api, trainer, model, inference):
    version = commit(trainer, model)
    answer = api(trainer).post(f"/api/v1/model-versions/{version.pk}/predict", {"instances": [{}]}, format="json")
    assert answer.status_code == 422, answer.content


def test_the_inference_server_refuses_whoever_does_not_know_the_secret(trained, inference):
    def ask(path, **options):
        return inference.client.post(path, **options).status_code

    url = f"/internal/versions/{trained.pk}/predict"
    secret = {client.SECRET_HEADER: client.shared_secret()}
    assert ask(url, json={}) == 401
    assert ask("/internal/else", headers=secret) == 404
    assert ask(f"/internal/deployments/{trained.pk}/explain", headers=secret) == 404
    assert inference.client.get(url, headers=secret).status_code == 405
    assert ask(url, headers=secret, content=b"x" * (BODY_LIMIT + 1)) == 413
    assert inference.client.get("/healthz").status_code == 200


def test_without_the_inference_process_the_answer_is_503(settings, trained, monkeypatch):
    monkeypatch.setattr(client, "_client", lambda: httpx.Client(base_url="http://127.0.0.1:9", trust_env=False))
    with pytest.raises(Unavailable):
        client.predict(trained.pk, [ROW])


def test_a_failure_of_the_inference_server_is_told_as_one_and_not_as_a_start(
    api, web, viewer, trained, inference, monkeypatch
):
    def fails(_self, _instances):
        raise RuntimeError("an operation that does not exist")

    monkeypatch.setattr("dlplatform.engine.predict.Predictor.predict", fails)
    monkeypatch.setattr("registry.serving.cache.warm", lambda *_: 0)
    answer = api(viewer).post(f"/api/v1/model-versions/{trained.pk}/predict", {"instances": [ROW]}, format="json")
    assert answer.status_code == 502 and answer.json()["errors"][0]["code"] == "inference_failed", answer.content
    shown = {f"input-{at}": ROW[one["name"]] for at, one in enumerate(trained.signature["inputs"])}
    page = web(viewer).post(reverse("version-try", args=[trained.pk]), shown)
    assert page.status_code == 200 and "The inference server failed at this request" in page.content.decode()
    assert "operation that does not exist" not in page.content.decode() + answer.content.decode()


def test_predictors_over_the_budget_are_dropped_least_recently_used_first(trained, queue_run):
    from registry.serving.cache import PredictorCache

    other = queue_run(QUICK | {"seed": 9})
    train(str(other.pk))
    other.refresh_from_db()
    small = PredictorCache(budget=1)
    first = small.get(trained.pk)
    assert small.get(trained.pk) is first
    small.get(other.output_version_id)
    assert small.get(trained.pk) is not first
    with pytest.raises(ModelVersion.DoesNotExist):
        small.get(uuid4())


def test_the_model_page_data_is_json(api, trainer, trained):
    detail = api(trainer).get(f"/api/v1/model-versions/{trained.pk}").json()
    assert json.loads(json.dumps(detail))["signature"]["inputs"][0]["name"] == "length"
