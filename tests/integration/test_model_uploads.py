"""Models uploaded in parts and whole: any order, repeated, damaged, aborted, refused."""

import asyncio
import hashlib
from datetime import timedelta

import pytest
from django.utils import timezone

from dlplatform import jobs
from dlplatform.accounts.authentication import tokens_for
from dlplatform.cron import reconcile_uploads
from registry import deletion, services, uploads
from registry.models import ModelVersion, Upload, UploadPart
from registry.upload_endpoint import ModelUploads
from tests import factories
from tests.integration.sending import (
    DIRECTORY,
    MB,
    begin,
    complete,
    content,
    described,
    digest,
    left_behind,
    part,
    parts_of,
    send,
    send_all,
    version_of,
    weights,
    worked_on,
    zipped,
)
from tests.integration.test_uploads import unreached

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization, name="sent")


# --- parts --------------------------------------------------------------------------------------------


def test_parts_in_any_order_become_a_version_byte_for_byte(api, trainer, model):
    data = weights()
    version = version_of(api, trainer, model, {"some weights.safetensors": data}, message="From elsewhere")
    assert content(version, "model.safetensors") == data
    assert version.message == "From elsewhere" and version.author == trainer and version.number == 1
    assert version.lineage["format"] == "weights" and version.lineage["file"] == "some weights.safetensors"
    assert version.lineage["parameters"] == 700 * 1024 + 8
    assert model.refs.get(kind="branch", name="main").version == version
    assert left_behind() == []


def test_repeated_parts_are_harmless_and_others_for_the_same_place_a_conflict(api, trainer, model):
    data = weights()
    upload = begin(api, trainer, model, [described("w.safetensors", data)]).json()["id"]
    first, *others = parts_of(data)
    for _ in range(3):
        assert part(trainer, upload, 0, 0, first).json()["sha256"] == hashlib.sha256(first).hexdigest()
    assert UploadPart.objects.count() == 1
    assert part(trainer, upload, 0, 0, bytes(MB)).json()["errors"][0]["code"] == "part_differs"
    for number, one in enumerate(others, 1):
        part(trainer, upload, 0, number, one)
    assert complete(api, trainer, upload).status_code == 202
    assert content(worked_on(upload).output_version, "model.safetensors") == data, "the refused bytes changed nothing"


def test_what_is_missing_is_told_and_completing_too_early_refused(api, trainer, model):
    data = weights(rows=1500)
    made = begin(api, trainer, model, [described("w.safetensors", data), described("README.md", b"card")])
    upload, count = made.json()["id"], len(parts_of(data))
    assert made.json()["missing"] == [
        {"file": 0, "path": "w.safetensors", "parts": [[0, count - 1]]},
        {"file": 1, "path": "README.md", "parts": [[0, 0]]},
    ]
    part(trainer, upload, 0, 2, parts_of(data)[2])
    part(trainer, upload, 1, 0, b"card")
    told = api(trainer).get(f"/api/v1/uploads/{upload}").json()
    assert told["missing"] == [{"file": 0, "path": "w.safetensors", "parts": [[0, 1], [3, count - 1]]}]
    refused = complete(api, trainer, upload)
    assert refused.status_code == 409 and refused.json()["errors"][0]["code"] == "incomplete"
    assert "w.safetensors" in refused.json()["errors"][0]["detail"]


def test_damage_on_the_way_is_noticed_and_the_part_can_be_sent_again(api, trainer, model):
    data = weights()
    upload = begin(api, trainer, model, [described("w.safetensors", data)]).json()["id"]
    first = parts_of(data)[0]
    damaged = bytes([first[0] ^ 1]) + first[1:]
    answer = part(trainer, upload, 0, 0, damaged, headers={"Content-Digest": digest(first)})
    assert answer.status_code == 400 and "Content-Digest" in answer.json()["errors"][0]["detail"]
    assert not UploadPart.objects.exists()
    for number, one in enumerate(parts_of(data)):
        assert part(trainer, upload, 0, number, one, headers={"Content-Digest": digest(one)}).status_code == 200
    complete(api, trainer, upload, sha256={"w.safetensors": hashlib.sha256(data).hexdigest()})
    assert content(worked_on(upload).output_version, "model.safetensors") == data


@pytest.mark.parametrize("size", [0, 5, MB - 1, MB + 1])
def test_a_part_has_its_length_and_no_other(api, trainer, model, size):
    data = weights()
    upload = begin(api, trainer, model, [described("w.safetensors", data)]).json()["id"]
    answer = part(trainer, upload, 0, 0, bytes(size))
    assert answer.status_code == 400 and f"{MB:,}" in answer.json()["errors"][0]["detail"]
    assert not UploadPart.objects.exists()


def test_a_connection_that_breaks_keeps_nothing_of_the_part(api, trainer, model):
    data = weights()
    upload = begin(api, trainer, model, [described("w.safetensors", data)]).json()["id"]
    messages = [{"type": "http.request", "body": data[:5000], "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    bearer = f"Bearer {tokens_for(trainer)['access']}".encode()
    scope = {
        "type": "http", "method": "PUT", "path": f"/api/v1/uploads/{upload}/files/0/parts/0", "query_string": b"",
        "headers": [(b"authorization", bearer)],
    }  # fmt: skip

    async def receive():
        return messages.pop(0)

    async def collect(message):
        sent.append(message)

    asyncio.run(ModelUploads(unreached)(scope, receive, collect))
    assert sent[0]["status"] == 400 and not UploadPart.objects.exists()
    assert part(trainer, upload, 0, 0, parts_of(data)[0]).status_code == 200


@pytest.mark.parametrize("place", ["0/parts/1", "0/parts/99999", "1/parts/0", "99999/parts/0"])
def test_a_part_that_the_upload_does_not_have_is_not_found(api, trainer, model, place):
    upload = begin(api, trainer, model, [described("w.safetensors", b"12345")]).json()["id"]
    assert send(trainer, "PUT", f"/uploads/{upload}/files/{place}", content=b"12345").status_code == 404


def test_a_final_hash_that_is_not_that_of_the_file_ends_the_upload(api, trainer, model):
    data = weights()
    wrong = hashlib.sha256(b"another file").hexdigest()
    made = begin(api, trainer, model, [described("w.safetensors", data, sha256=wrong)])
    for number, one in enumerate(parts_of(data)):
        part(trainer, made.json()["id"], 0, number, one)
    complete(api, trainer, made.json()["id"])
    done = worked_on(made.json()["id"])
    assert done.state == "failed" and done.error["code"] == "damaged" and "SHA-256" in done.error["sentence"]
    assert not ModelVersion.objects.exists() and left_behind() == []


def test_bytes_that_changed_on_the_disk_end_the_upload(api, trainer, model):
    upload = send_all(api, trainer, model, {"w.safetensors": weights()})
    complete(api, trainer, upload)
    path = uploads.staged(Upload.objects.get()).folder / "0"
    with path.open("r+b") as file:
        file.seek(MB + 7)
        file.write(b"\xff")
    done = worked_on(upload)
    assert done.state == "failed" and "Part 1" in done.error["sentence"]


def test_announced_hashes_hold_and_unknown_files_have_none(api, trainer, model):
    data = b"a card"
    announced = described("README.md", data, sha256=hashlib.sha256(data).hexdigest())
    upload = begin(api, trainer, model, [announced]).json()["id"]
    part(trainer, upload, 0, 0, data)
    assert complete(api, trainer, upload, sha256={"README.md": "0" * 64}).json()["errors"][0]["code"] == "differs"
    assert complete(api, trainer, upload, sha256={"no": "0" * 64}).json()["errors"][0]["code"] == "does_not_exist"
    assert complete(api, trainer, upload, sha256={"README.md": "short"}).status_code == 400


def test_completing_twice_is_one_version_and_ends_the_parts(api, trainer, model):
    data = weights()
    upload = send_all(api, trainer, model, {"w.safetensors": data})
    assert complete(api, trainer, upload).json()["state"] == "queued"
    assert complete(api, trainer, upload).json()["state"] == "queued"
    assert jobs.queue("registry").get_job_ids() == [upload]
    assert part(trainer, upload, 0, 0, parts_of(data)[0]).json()["errors"][0]["code"] == "not_open"
    worked_on(upload)
    worked_on(upload)
    assert complete(api, trainer, upload).json()["output_version"] == str(ModelVersion.objects.get().pk)


# --- the end of an upload -----------------------------------------------------------------------------


def test_an_aborted_upload_leaves_nothing(api, trainer, viewer, model):
    upload = send_all(api, trainer, model, {"w.safetensors": weights()})
    assert left_behind() == [upload]
    assert api(viewer).delete(f"/api/v1/uploads/{upload}").status_code == 403
    assert api(trainer).delete(f"/api/v1/uploads/{upload}").json()["state"] == "cancelled"
    assert left_behind() == []
    assert complete(api, trainer, upload).json()["errors"][0]["code"] == "not_open"
    assert api(trainer).delete(f"/api/v1/uploads/{upload}").status_code == 409


def test_a_worker_that_dies_is_followed_by_another(api, trainer, model, monkeypatch):
    data = weights()
    upload = send_all(api, trainer, model, {"w.safetensors": data})
    complete(api, trainer, upload)
    claimed = Upload.claim(upload)
    (uploads.staged(claimed).folder / "work").mkdir()
    (uploads.staged(claimed).folder / "work" / "half a file").write_bytes(b"x")
    Upload.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert reconcile_uploads()["taken_back"] == 1
    done = worked_on(upload)
    assert done.state == "succeeded" and done.attempt == 2
    assert set(done.output_version.tree) == {"model.safetensors"}


def test_uploads_that_nobody_goes_on_with_expire(api, trainer, model):
    upload = send_all(api, trainer, model, {"w.safetensors": weights()})
    assert uploads.expire() == 0 and left_behind() == [upload]
    Upload.objects.update(touched_at=timezone.now() - timedelta(days=8))
    assert uploads.expire() == 1
    assert Upload.objects.get().state == "failed" and Upload.objects.get().error["code"] == "expired"
    assert left_behind() == []


def test_files_of_a_request_that_died_are_removed_after_a_while(model):
    files = uploads.StagedFiles(uploads.storages["models"], "11111111-1111-4111-8111-111111111111")
    files.part(0, 0).write(b"x")
    uploads.expire()
    assert len(left_behind()) == 1, "it may still be under way"
    uploads.expire(timezone.now() + timedelta(days=8))
    assert left_behind() == []


def test_a_full_disk_is_said_in_words(api, trainer, model, monkeypatch):
    upload = send_all(api, trainer, model, {"w.safetensors": weights()})
    complete(api, trainer, upload)

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(services, "store_directory", full)
    done = worked_on(upload)
    assert done.state == "failed" and done.error["code"] == "disk_full"


# --- what is refused at the start ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "code", "status"),
    [
        ([], "required", 400),
        ([{"path": "a", "size": 1}, {"path": "a", "size": 2}], "unique", 400),
        ([{"path": "../a", "size": 1}], "bad_path", 400),
        ([{"path": "/etc/passwd", "size": 1}], "bad_path", 400),
        ([{"path": "a\0", "size": 1}], "null_characters_not_allowed", 400),
        ([{"path": "a", "size": -1}], "min_value", 400),
        ([{"path": "a", "size": 10**18}], "too_small", 400),
        ([{"path": "a", "size": 9 * 10**9}, {"path": "b", "size": 9 * 10**9}], "too_large", 400),
        ([{"path": "a", "size": 1, "sha256": "zz"}], "invalid", 400),
        ([{"path": "a", "size": 1, "more": 1}], "unknown_field", 400),
        ([{"path": "pytorch_model.bin", "size": 1}], "pickle", 422),
        ([{"path": "a", "size": 1}, {"path": "a/b", "size": 1}], "file_and_folder", 400),
    ],
)
def test_names_and_sizes_are_checked_before_a_byte_is_sent(api, trainer, model, settings, files, code, status):
    settings.MODEL_UPLOAD_MAX_BYTES = 10**10
    answer = begin(api, trainer, model, files)
    assert answer.status_code == status and answer.json()["errors"][0]["code"] == code, answer.content
    assert not Upload.objects.exists()


def test_a_branch_must_exist_and_the_number_of_open_uploads_ends(api, trainer, model):
    assert begin(api, trainer, model, [described("a", b"1")], branch="no").json()["errors"][0]["attr"] == "branch"
    factories.UploadFactory.create_batch(uploads.MOST_OPEN, model=model, created_by=trainer)
    assert begin(api, trainer, model, [described("a", b"1")]).json()["errors"][0]["code"] == "too_many_uploads"


def test_a_deleted_model_takes_no_uploads(api, trainer, maintainer, model):
    deletion.delete_model(actor=maintainer, model=model)
    assert begin(api, trainer, model, [described("a", b"1")]).json()["errors"][0]["code"] == "deleted"
    answer = send(trainer, "POST", f"/models/{model.pk}/versions?filename=a", content=b"x")
    assert answer.status_code == 409 and left_behind() == []


def test_more_than_the_disk_holds_is_refused(api, trainer, model, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: free)
    answer = begin(api, trainer, model, [described("a", b"123456")])
    assert answer.json()["errors"][0]["code"] == "no_space" and "12" in answer.json()["errors"][0]["detail"]


@pytest.mark.parametrize("person", ["viewer", "stranger", None])
def test_who_may_not_write_sends_no_byte(request, api, trainer, model, person):
    user = request.getfixturevalue(person) if person else None
    upload = begin(api, trainer, model, [described("w.safetensors", b"12345")]).json()["id"]
    expected = {"viewer": 403, "stranger": 404, None: 401}[person]
    assert part(user, upload, 0, 0, b"12345").status_code == expected
    assert send(user, "POST", f"/models/{model.pk}/versions?filename=w", content=b"x").status_code == expected
    assert not UploadPart.objects.exists() and left_behind() == []


# --- in one request -----------------------------------------------------------------------------------


def test_a_model_in_one_request(api, trainer, model):
    data = weights()
    path = f"/models/{model.pk}/versions/?filename=w.safetensors&message=Whole"
    answer = send(trainer, "POST", path, content=data)
    assert answer.status_code == 202, answer.text
    assert jobs.queue("registry").get_job_ids() == [answer.json()["id"]]
    done = worked_on(answer.json()["id"])
    assert done.state == "succeeded", done.error
    assert content(done.output_version, "model.safetensors") == data and done.output_version.message == "Whole"


def test_a_zip_as_a_multipart_field(api, trainer, model):
    files = {"file": ("../x/tiny.zip", zipped(DIRECTORY), "application/zip")}
    answer = send(trainer, "POST", f"/models/{model.pk}/versions", files=files)
    assert answer.status_code == 202, answer.text
    assert set(worked_on(answer.json()["id"]).output_version.tree) == set(DIRECTORY)


def test_an_idempotency_key_makes_one_upload(api, trainer, model):
    path, headers = f"/models/{model.pk}/versions?filename=w.safetensors", {"Idempotency-Key": "k"}
    first = send(trainer, "POST", path, content=weights(), headers=headers)
    again = send(trainer, "POST", path, content=weights(), headers=headers)
    assert first.json() == again.json() and again.headers["Idempotent-Replay"] == "true"
    assert Upload.objects.count() == 1 and left_behind() == [first.json()["id"]]
    assert send(trainer, "POST", path, content=weights(1), headers=headers).status_code == 422


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("filename=a.safetensors", b"", 400),
        ("filename=a.pt", b"x", 422),
        ("filename=..", b"x", 400),
        ("filename=a%00b", b"x", 400),
        ("filename=a&branch=no", b"x", 400),
        ("filename=a&branch=%00", b"x", 400),
    ],
)
def test_one_request_is_refused_and_leaves_nothing(trainer, model, query, body, status):
    answer = send(trainer, "POST", f"/models/{model.pk}/versions?{query}", content=body)
    assert answer.status_code == status and answer.json()["errors"][0]["detail"]
    assert not Upload.objects.exists() and left_behind() == []


def test_a_body_over_the_limit_is_refused(trainer, model, settings):
    settings.UPLOAD_MAX_BYTES = 1000
    answer = send(trainer, "POST", f"/models/{model.pk}/versions?filename=a", content=bytes(200_000))
    assert answer.status_code == 413 and left_behind() == []
