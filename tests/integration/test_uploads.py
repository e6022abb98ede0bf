"""Uploads: the streaming endpoint in front of Django, its refusals, and the ingestion of what it stored."""

import asyncio
import hashlib
import threading

import httpx
import pytest
from django.db import connection

from datasets.jobs import ingest
from datasets.models import Dataset, DatasetVersion
from datasets.services import cancel_version, give_up, object_store
from datasets.uploads import UploadEndpoint
from dlplatform import jobs
from dlplatform.accounts.authentication import tokens_for
from dlplatform.api import Conflict
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)
CSV = b"a,b\n1,x\n2,y\n3,x\n"


async def unreached(scope, receive, send):
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def post(user, dataset, *, path=None, cookies=None, headers=None, **body):
    headers = dict(headers or {})
    if user is not None:
        headers["Authorization"] = f"Bearer {tokens_for(user)['access']}"

    async def send():
        transport = httpx.ASGITransport(app=UploadEndpoint(unreached), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", cookies=cookies) as client:
            url = path or f"/api/v1/datasets/{getattr(dataset, 'pk', dataset)}/versions"
            return await client.post(url, headers=headers, **body)

    return asyncio.run(send())


@pytest.fixture
def dataset(organization):
    return factories.DatasetFactory(organization=organization)


def test_a_multipart_file_is_stored_queued_and_ingested(dataset, trainer):
    answer = post(trainer, dataset, files={"note": ("", "x"), "file": ("../../etc/a b.csv", CSV, "text/csv")})
    assert answer.status_code == 202, answer.text
    version = DatasetVersion.objects.get()
    assert answer.json()["number"] == 1 and answer.json()["state"] == "queued"
    assert version.filename == "a b.csv" and version.source_sha256 == hashlib.sha256(CSV).hexdigest()
    assert jobs.queue("datasets").get_job_ids() == [str(version.pk)]
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "ready", version.problems
    assert version.rows == 3 and [column["name"] for column in version.columns] == ["a", "b"]
    assert object_store(dataset.organization_id).read(version.parts[0]["sha256"])[:4] == b"PAR1"


def test_a_raw_body_is_stored_with_its_label_and_a_trailing_slash_does_not_matter(dataset, trainer):
    path = f"/api/v1/datasets/{dataset.pk}/versions/?filename=d.csv"
    answer = post(trainer, dataset, path=path, content=CSV, headers={"Content-Type": "text/csv"})
    assert answer.status_code == 202
    assert DatasetVersion.objects.get().filename == "d.csv"


def test_a_body_in_many_small_chunks_without_a_length_is_whole(dataset, trainer):
    async def chunks():
        for index in range(len(CSV)):
            yield CSV[index : index + 1]

    assert post(trainer, dataset, content=chunks()).status_code == 202
    assert DatasetVersion.objects.get().source_sha256 == hashlib.sha256(CSV).hexdigest()


def test_a_new_upload_is_a_new_version(dataset, trainer):
    numbers = [post(trainer, dataset, content=CSV).json()["number"] for _ in range(3)]
    assert numbers == [1, 2, 3]


def test_who_may_not_upload_is_refused_before_a_byte_is_kept(dataset, viewer, stranger):
    assert post(None, dataset, content=CSV).status_code == 401
    assert post(viewer, dataset, content=CSV).status_code == 403
    assert post(stranger, dataset, content=CSV).status_code == 404
    assert post(viewer, "00000000-0000-0000-0000-00000000000-", content=CSV).status_code == 404
    assert not DatasetVersion.objects.exists()
    incoming = object_store(dataset.organization_id).incoming_folder()
    assert not incoming.exists() or not list(incoming.iterdir())


def test_a_browser_needs_its_csrf_token(dataset, trainer, web):
    browser = web(trainer)
    cookies = {"sessionid": browser.cookies["sessionid"].value}
    assert post(None, dataset, cookies=cookies, content=CSV).status_code == 403
    token = "a" * 32
    accepted = post(None, dataset, cookies=cookies | {"csrftoken": token}, content=CSV, headers={"X-CSRFToken": token})
    assert accepted.status_code == 202, accepted.text


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        ({"content": b""}, {}, "empty"),
        ({"files": {"other": ("a.csv", CSV)}}, {}, "required"),
        ({"content": b"--x\r\nnonsense"}, {"Content-Type": "multipart/form-data; boundary=x"}, "broken_upload"),
        ({"content": b"abc"}, {"Content-Type": "multipart/form-data"}, "broken_upload"),
        (
            {"content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc'},
            {"Content-Type": "multipart/form-data; boundary=x"},
            "broken_upload",
        ),
        (
            {"content": b"--x\r\nA: " + b"b" * 200_000 + b"\r\n\r\n"},
            {"Content-Type": "multipart/form-data; boundary=x"},
            "broken_upload",
        ),
    ],
)
def test_a_broken_upload_is_a_400_and_leaves_nothing(dataset, trainer, body, headers, code):
    answer = post(trainer, dataset, headers=headers, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["code"] == code
    assert not DatasetVersion.objects.exists()
    assert not list(object_store(dataset.organization_id).incoming_folder().iterdir())


def test_a_file_over_the_limit_is_413_whether_or_not_it_says_so(dataset, trainer, settings):
    settings.UPLOAD_MAX_BYTES = 100

    async def unsaid():
        yield b"x" * 70_000

    assert post(trainer, dataset, content=b"x" * 70_000).status_code == 413
    assert post(trainer, dataset, content=unsaid()).status_code == 413
    assert not list(object_store(dataset.organization_id).incoming_folder().iterdir())


def test_a_client_that_goes_away_leaves_nothing(dataset, trainer):
    sent = []
    messages = [{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": f"/api/v1/datasets/{dataset.pk}/versions", "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + tokens_for(trainer)["access"].encode()), (b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(UploadEndpoint(unreached)(scope, receive, send))
    assert sent[0]["status"] == 400
    assert not list(object_store(dataset.organization_id).incoming_folder().iterdir())


def test_a_repeated_key_gets_the_first_answer_and_makes_no_second_version(dataset, trainer):
    key = {"Idempotency-Key": "monday"}
    answers = [post(trainer, dataset, headers=key, files={"file": ("a.csv", CSV, "text/csv")}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert "Idempotent-Replay" not in answers[0].headers and answers[1].headers["Idempotent-Replay"] == "true"
    version = DatasetVersion.objects.get()
    ingest(str(version.pk))
    later = post(trainer, dataset, headers=key, files={"file": ("a.csv", CSV, "text/csv")})
    assert later.json() == answers[0].json()
    assert jobs.queue("datasets").get_job_ids().count(str(version.pk)) == 1


def test_an_upload_whose_answer_was_lost_is_sent_again_without_harm(dataset, trainer):
    messages = [{"type": "http.request", "body": CSV, "more_body": False}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        raise OSError("the client has gone")

    scope = {
        "type": "http", "method": "POST", "path": f"/api/v1/datasets/{dataset.pk}/versions", "query_string": b"",
        "headers": [
            (b"authorization", b"Bearer " + tokens_for(trainer)["access"].encode()), (b"host", b"localhost"),
            (b"idempotency-key", b"lost"), (b"content-type", b"text/csv"),
        ],
    }  # fmt: skip
    with pytest.raises(OSError):
        asyncio.run(UploadEndpoint(unreached)(scope, receive, send))
    again = post(trainer, dataset, content=CSV, headers={"Idempotency-Key": "lost", "Content-Type": "text/csv"})
    assert again.status_code == 202 and again.json()["number"] == 1
    assert again.json()["id"] == str(DatasetVersion.objects.get().pk)


@pytest.mark.parametrize(
    ("path", "body"), [("", CSV + b"4,z\n"), ("?filename=other.csv", CSV)], ids=["another file", "another label"]
)
def test_a_key_of_another_upload_is_422(dataset, trainer, path, body):
    key = {"Idempotency-Key": "monday"}
    assert post(trainer, dataset, headers=key, content=CSV).status_code == 202
    url = f"/api/v1/datasets/{dataset.pk}/versions{path}"
    other = post(trainer, dataset, path=url, headers=key, content=body)
    assert other.status_code == 422 and other.json()["errors"][0]["code"] == "idempotency_key_reused"
    assert DatasetVersion.objects.count() == 1


def test_a_key_belongs_to_its_caller_and_to_the_dataset(dataset, organization, trainer, maintainer):
    key = {"Idempotency-Key": "monday"}
    assert post(trainer, dataset, headers=key, content=CSV).json()["number"] == 1
    assert post(maintainer, dataset, headers=key, content=CSV).json()["number"] == 2
    other = factories.DatasetFactory(organization=organization)
    assert post(trainer, other, headers=key, content=CSV).status_code == 422


def test_a_refused_upload_does_not_use_up_its_key(dataset, trainer):
    key = {"Idempotency-Key": "monday"}
    assert post(trainer, dataset, headers=key, content=b"").status_code == 400
    assert post(trainer, dataset, headers=key, content=CSV).status_code == 202


def test_two_uploads_with_one_key_at_the_same_moment_make_one_version(dataset, trainer):
    answers = []

    def upload():
        try:
            answers.append(post(trainer, dataset, headers={"Idempotency-Key": "monday"}, content=CSV))
        finally:
            connection.close()

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == DatasetVersion.objects.count() == 1


def test_other_requests_pass_through(dataset, trainer):
    assert post(trainer, dataset, path="/api/v1/datasets").status_code == 299


def test_a_rejected_file_says_where_and_how_to_mend_it(dataset, trainer):
    post(trainer, dataset, content=b"a,b\n1,2\n3\n", headers={"Content-Type": "text/csv"})
    version = DatasetVersion.objects.get()
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "rejected" and version.parts == []
    assert version.errors[0]["row"] == 3 and version.errors[0]["detail"]


def test_a_queued_ingestion_is_cancelled_at_once_and_only_once(dataset, trainer):
    post(trainer, dataset, content=CSV)
    version = cancel_version(actor=trainer, version=DatasetVersion.objects.get())
    assert version.state == "cancelled"
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "cancelled"
    with pytest.raises(Conflict):
        cancel_version(actor=trainer, version=version)


def test_a_running_ingestion_is_cancelled(dataset, trainer):
    post(trainer, dataset, content=b"a,b\n" + b"1,x\n" * 2_000_000)
    version = DatasetVersion.objects.get()
    DatasetVersion.objects.update(cancel_requested_at=version.queued_at)
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "cancelled" and version.parts == []


def test_an_ingestion_whose_workers_keep_dying_is_rejected_in_words(dataset, trainer):
    post(trainer, dataset, content=CSV)
    version = DatasetVersion.objects.get()
    give_up(version)
    version.refresh_from_db()
    assert version.state == "rejected" and version.problems[0]["code"] == "worker_lost"


def test_rows_are_paged_sorted_and_refused_in_words(dataset, trainer, api):
    post(trainer, dataset, content=CSV)
    url = f"/api/v1/datasets/{dataset.pk}/versions/1"
    assert api(trainer).get(f"{url}/rows").status_code == 409
    ingest(str(DatasetVersion.objects.get().pk))
    first = api(trainer).get(f"{url}/rows?limit=2&ordering=-a").json()
    assert [row["a"] for row in first["results"]] == [3, 2]
    second = api(trainer).get(first["next"].replace("http://testserver", "")).json()
    assert [row["a"] for row in second["results"]] == [1] and second["next"] is None and second["previous"]
    for query in ("limit=0", "limit=x", "limit=1000", "offset=-1", "ordering=nothing", "limit=²"):
        assert api(trainer).get(f"{url}/rows?{query}").status_code == 400, query


def test_datasets_are_listed_searched_changed_archived_and_brought_back(dataset, trainer, maintainer, api):
    from datasets.services import set_dataset_archived

    listed = api(trainer).get("/api/v1/datasets?search=" + dataset.name[-3:]).json()["results"]
    assert [row["id"] for row in listed] == [str(dataset.pk)]
    changed = api(trainer).patch(f"/api/v1/datasets/{dataset.pk}", {"description": "good"}, format="json")
    assert changed.json()["description"] == "good"
    assert api(maintainer).post(f"/api/v1/datasets/{dataset.pk}/archive").status_code == 200
    assert api(trainer).get("/api/v1/datasets").json()["results"] == []
    assert len(api(trainer).get("/api/v1/datasets?archived=1").json()["results"]) == 1
    factories.DatasetFactory(organization=dataset.organization, name=dataset.name)
    dataset.refresh_from_db()
    from django.core.exceptions import ValidationError

    with pytest.raises(ValidationError):
        set_dataset_archived(actor=maintainer, dataset=dataset, archived=False)
    Dataset.objects.exclude(pk=dataset.pk).delete()
    assert set_dataset_archived(actor=maintainer, dataset=dataset, archived=False).archived_at is None
