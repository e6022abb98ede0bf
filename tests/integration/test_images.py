"""Image datasets from the upload to the end: stored, shown, fetched for a run, deleted, collected."""

import base64
import hashlib
import io
import re
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from datasets import additions, deletion, services
from datasets import images as stored_images
from datasets.images import image_of, records_of
from datasets.ingestion.images.packs import pack_name
from datasets.jobs import Ingestion, ingest
from datasets.models import DatasetVersion
from datasets.reachability import reachable_objects
from dlplatform import cron
from dlplatform.api import Conflict
from dlplatform.objects.collection import collect
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import MissingObject
from registry.serving import client as inference
from tests import factories
from tests.fixtures.pictures import class_folders, picture, tarred, zipped
from tests.integration.test_uploads import post
from training.models import Run
from training.orchestrator import Orchestrator
from training.run_form import initial_of
from training.services import cancel_run, create_run

pytestmark = pytest.mark.django_db(transaction=True)
FILES = class_folders(6)
KIND = {"task": "classification", "target": "label"}


@pytest.fixture
def dataset(organization):
    return factories.DatasetFactory(organization=organization, name="pets")


@pytest.fixture
def sent(dataset, trainer):
    """``sent(content)``: a queued version of an archive, received by the streaming endpoint."""

    def send(content, name="pets.zip"):
        path = f"/api/v1/datasets/{dataset.pk}/versions?filename={name}"
        answer = post(trainer, dataset, path=path, content=content)
        assert answer.status_code == 202, answer.text
        return DatasetVersion.objects.get(pk=answer.json()["id"])

    return send


@pytest.fixture
def upload(sent):
    """``upload(files)``: sent and ingested."""

    def send(files=None, content=None):
        version = sent(content or zipped(files))
        ingest(str(version.pk))
        version.refresh_from_db()
        return version

    return send


@pytest.fixture
def pets(upload):
    version = upload(FILES)
    assert version.state == "ready", version.problems
    return version


def digest(content):
    return hashlib.sha256(content).hexdigest()


def address(version, content):
    return f"/api/v1/datasets/{version.dataset_id}/versions/{version.number}/images/{digest(content)}"


def collected(organization, days):
    grace, now = timedelta(days=7), timezone.now() + timedelta(days=days)
    return collect("datasets", organization.pk, reachable_objects(organization.pk), grace=grace, now=now)


# --- stored -------------------------------------------------------------------------------------------


def test_an_archive_becomes_rows_objects_and_an_index(pets, organization):
    assert pets.rows == 12 and pets.image_columns == ["image"]
    store = services.object_store(organization.pk)
    listed = {record.sha256: record for record in records_of(store, pets.images)}
    assert set(listed) == {digest(content) for content in FILES.values()}
    for content in FILES.values():
        assert store.read(digest(content)) == content
        assert image_of(store, pets, digest(content)) == listed[digest(content)]
    small = Image.open(io.BytesIO(store.read(listed[digest(content)].thumbnail)))
    assert (small.size, small.format) == ((12, 9), "PNG")
    assert pets.images["count"] == 12 and pets.images["bytes"] == sum(map(len, FILES.values()))
    assert pets.bytes > pets.images["bytes"]
    assert all(image_of(store, pets, text) is None for text in ("0" * 64, "../x", digest(content).upper(), ""))


def test_large_pictures_have_small_thumbnails_and_odd_formats_too(upload, organization):
    files = {"a/1.jpg": picture(1, (400, 200), "JPEG"), "b/2.tif": picture(2, (50, 300), "TIFF"),
             "b/3.webp": picture(3, (120, 120), "WEBP"), "a/4.bmp": picture(4, (10, 10), "BMP")}  # fmt: skip
    version = upload(content=tarred(files))
    store = services.object_store(organization.pk)
    records = {record.sha256: record for record in records_of(store, version.images)}
    for content, size in zip(files.values(), [(96, 48), (16, 96), (96, 96), (10, 10)], strict=True):
        shown = Image.open(io.BytesIO(store.read(records[digest(content)].thumbnail)))
        assert shown.size == size and shown.format == records[digest(content)].thumbnail_format


def test_a_second_version_shares_its_images_with_the_first(upload, pets, organization):
    before = StoredObject.objects.count()
    second = upload({**FILES, "pets/cat/new.png": picture(500)})
    assert second.state == "ready" and second.images["count"] == 13
    # The archive, the new image (so small that its thumbnail is the same file), the index and the part.
    assert StoredObject.objects.count() == before + 4


def test_nothing_usable_is_rejected_and_every_file_is_named(upload, organization):
    version = upload({"cat/1.png": b"x", "dog/2.png": b"y"})
    assert version.state == "rejected" and version.images == {}
    assert [(one["code"], one["file"]) for one in version.problems] == [
        ("no_usable_images", None), ("unknown_format", "cat/1.png"), ("unknown_format", "dog/2.png"),
    ]  # fmt: skip
    assert version.source_sha256 in reachable_objects(organization.pk)


def test_a_child_that_hands_over_something_else_is_not_believed(sent, monkeypatch):
    def forged(store, folder, files, beat):
        pack = folder / pack_name(0)
        content = bytearray(pack.read_bytes())
        content[40] ^= 1
        pack.write_bytes(content)
        return stored_images.store_images(store, folder, files, beat)

    monkeypatch.setattr("datasets.jobs.store_images", forged)
    version = sent(zipped(FILES))
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "rejected" and version.problems[0]["code"] == "decoder_crashed" and version.images == {}


@pytest.mark.parametrize("how", ["cancel", "drain"])
def test_storing_many_images_can_be_stopped(sent, trainer, monkeypatch, how):
    version = sent(zipped(FILES))
    working = Ingestion(DatasetVersion.claim(version.pk))

    def stopped(store, folder, files, beat):
        if how == "cancel":
            services.cancel_version(actor=trainer, version=version)
        else:
            working.draining = True
        working._renewed = 0.0
        return stored_images.store_images(store, folder, files, beat)

    monkeypatch.setattr("datasets.jobs.store_images", stopped)
    working.work()
    version.refresh_from_db()
    assert version.state == ("cancelled" if how == "cancel" else "queued") and version.parts == []


def test_no_rows_are_added_to_images(pets, trainer):
    for row in ({"image": digest(picture()), "label": "cat"}, {"label": "cat"}):
        with pytest.raises(ValidationError, match="Upload an archive"):
            additions.add_rows(actor=trainer, dataset=pets.dataset, rows=[row])


def test_rows_that_waited_for_an_upload_that_turned_out_to_be_images_are_rejected(sent, dataset, trainer):
    first = sent(zipped(FILES))
    added = additions.add_rows(actor=trainer, dataset=dataset, rows=[{"label": "cat"}])
    ingest(str(first.pk))
    ingest(str(added.pk))
    added.refresh_from_db()
    assert added.state == "rejected" and added.problems[0]["code"] == "image_rows"


# --- shown --------------------------------------------------------------------------------------------


def test_an_image_and_its_thumbnail_are_sent_as_what_they_are(api, viewer, upload):
    content = picture(1, (200, 100))
    pets = upload({"cat/1.png": content, "dog/2.png": picture(2)})
    answer = api(viewer).get(address(pets, content))
    assert answer.status_code == 200 and answer.content == content
    assert answer["Content-Type"] == "image/png" and answer["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer["Content-Security-Policy"] and answer["Content-Disposition"].startswith("inline")
    small = api(viewer).get(address(pets, content) + "?thumbnail=1")
    assert small["Content-Type"] == "image/jpeg" and small["ETag"] != answer["ETag"]
    again = api(viewer).get(address(pets, content), headers={"If-None-Match": answer["ETag"]})
    assert again.status_code == 304 and again.content == b"" and "private" in again["Cache-Control"]
    assert api(viewer).head(address(pets, content)).status_code == 200


def test_a_file_is_never_sent_as_anything_but_an_image(api, viewer, upload):
    """A picture with a page behind it, named as a page."""
    polyglot = picture(1) + b"<script>alert(1)</script>"
    tiff = picture(2, kind="TIFF")
    version = upload({"a/1.png": polyglot, "b/2.tif": tiff})
    answer = api(viewer).get(address(version, polyglot))
    assert answer.content == polyglot and answer["Content-Type"] == "image/png"
    other = api(viewer).get(address(version, tiff))
    assert other["Content-Type"] == "image/tiff" and other["Content-Disposition"].startswith("attachment")


def test_only_who_may_see_the_version_sees_its_images(api, pets, stranger, viewer, trainer, upload):
    content = FILES["pets/cat/0.png"]
    assert api(None).get(address(pets, content)).status_code == 401
    refused = api(stranger).get(address(pets, content))
    assert refused.status_code == 404
    assert refused.content == api(stranger).get(address(pets, b"never existed")).content
    second = upload({"cat/1.png": picture(700), "dog/2.png": picture(701)})
    assert api(viewer).get(address(second, picture(700))).status_code == 200
    for other in (content, b"nothing"):
        assert api(viewer).get(address(second, other)).status_code == 404, "an image of another version"
    part = f"/api/v1/datasets/{pets.dataset_id}/versions/1/images/{pets.parts[0]['sha256']}"
    assert api(viewer).get(part).status_code == 404, "an object that is no image"
    assert api(viewer).get(address(pets, content) + "?thumbnail=maybe").status_code == 400


def test_rows_link_their_images_and_the_csv_names_them(api, web, viewer, pets):
    page = api(viewer).get(f"/api/v1/datasets/{pets.dataset_id}/versions/1/rows?limit=3").json()
    assert [row["file"] for row in page["results"]] == [f"pets/cat/{index}.png" for index in range(3)]
    image = page["results"][0]["image"]
    assert image["sha256"] == digest(FILES["pets/cat/0.png"])
    assert api(viewer).get(image["url"]).content == FILES["pets/cat/0.png"]
    assert api(viewer).get(image["thumbnail_url"]).status_code == 200
    lines = b"".join(web(viewer).get(reverse("version-csv", args=[pets.dataset_id, 1]))).decode().splitlines()
    assert len(lines) == 13 and image["sha256"] in lines[1]
    detail = api(viewer).get(f"/api/v1/datasets/{pets.dataset_id}/versions/1").json()
    assert detail["images"]["count"] == 12 and detail["profile"]["image"]["width"]["max"] == 12


def test_the_page_shows_the_pictures_by_class(web, viewer, upload):
    version = upload({**class_folders(40, folder=""), "cat/<b>.png": picture(9), "dog/broken.png": b"x"})
    client, page = web(viewer), reverse("dataset", args=[version.dataset_id])
    first = client.get(page + "?tab=images")
    assert len(first.context["pictures"]) == 60 and first.context["page"].paginator.count == 81
    body = client.get(page + "?tab=images&class=dog&page=1").content.decode()
    assert body.count("?thumbnail=1") == 40 and "dog (40)" in body and "0.png" in body
    assert client.get(page + "?tab=images&class=nothing").context["pictures"] == []
    assert "&lt;b&gt;.png" in client.get(page + "?tab=images&page=1").content.decode()
    rows = client.get(page + "?tab=rows").content.decode()
    assert rows.count("<img") == 50
    columns = client.get(page).content.decode()
    assert "12 × 9" in columns and "PNG" in columns
    assert "dog/broken.png" in client.get(page + "?tab=problems").content.decode()


def test_other_versions_have_no_tab_of_images(web, viewer, flowers):
    page = reverse("dataset", args=[flowers.dataset_id])
    body = web(viewer).get(page + "?tab=images").content.decode()
    assert "tab=images" not in body.partition('<nav class="tabs"')[2].partition("</nav>")[0]


# --- a run --------------------------------------------------------------------------------------------


@pytest.fixture
def queued(pets, trainer):
    def make(**more):
        return create_run(actor=trainer, dataset_version=pets, **KIND, **more)

    return make


def test_names_of_files_are_left_out_of_the_features_unless_they_are_asked_for(queued, pets):
    assert queued().features == ["image"]
    assert queued(features=["file", "image"]).features == ["file", "image"]
    assert initial_of(pets)["features"] == ["image"] and initial_of(pets)["target"] == "label"


def test_a_run_finds_every_image_in_its_directory(queued):
    orchestrator = Orchestrator(Run.claim(queued().pk))
    orchestrator._prepare()
    folder = orchestrator.directory / "data" / "images"
    for content in FILES.values():
        assert (folder / digest(content)[:2] / digest(content)).read_bytes() == content
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 12


def test_images_that_are_there_stay_and_damaged_ones_come_again(queued, monkeypatch):
    run = Run.claim(queued().pk)
    Orchestrator(run)._prepare()
    first, second, *_ = (digest(content) for content in FILES.values())
    again = Orchestrator(run)
    folder = again.directory / "data" / "images"
    (folder / first[:2] / first).unlink()
    (folder / second[:2] / second).write_bytes(b"half")
    fetched = []
    whole = services.ObjectStore.fetch_many
    monkeypatch.setattr(
        services.ObjectStore, "fetch_many", lambda self, files, beat: (fetched.extend(files), whole(self, files, beat))
    )
    again._prepare()
    assert set(fetched) == {first, second}
    assert digest((folder / second[:2] / second).read_bytes()) == second


def test_a_run_without_images_fetches_none(queued):
    orchestrator = Orchestrator(Run.claim(queued(features=["file"]).pk))
    orchestrator._prepare()
    assert not (orchestrator.directory / "data" / "images").exists()


def test_a_run_is_cancelled_while_its_images_are_fetched(queued, trainer):
    run = Run.claim(queued().pk)
    cancel_run(actor=trainer, run=run)
    orchestrator = Orchestrator(run)
    orchestrator._renewed = 0.0
    orchestrator.work()
    run.refresh_from_db()
    assert run.state == "cancelled"


def test_a_run_whose_images_are_lost_fails_with_a_sentence(queued, pets):
    StoredObject.objects.filter(sha256=digest(FILES["pets/cat/0.png"])).delete()
    run = Run.claim(queued().pk)
    Orchestrator(run).work()
    run.refresh_from_db()
    assert run.state == "failed" and run.error["code"] == "data_unavailable"


# --- deleted ------------------------------------------------------------------------------------------


def test_images_go_after_the_grace_with_the_version(maintainer, organization, pets):
    store = services.object_store(organization.pk)
    record = next(iter(records_of(store, pets.images)))
    told = deletion.preview_of_version(pets).bytes
    assert told > pets.images["bytes"]
    deletion.delete_version(actor=maintainer, version=pets)
    collected(organization, 8)
    collected(organization, 16)
    for sha256 in (record.sha256, record.thumbnail, pets.images["index"]):
        assert not store.exists(sha256)
    with pytest.raises(Conflict, match="gone"):
        deletion.restore_version(actor=maintainer, version=pets)


def test_an_undone_deletion_brings_every_image_back(api, maintainer, viewer, organization, pets):
    content = FILES["pets/cat/0.png"]
    deletion.delete_version(actor=maintainer, version=pets)
    assert api(viewer).get(address(pets, content)).status_code == 409
    collected(organization, 6.9)
    deletion.restore_version(actor=maintainer, version=pets)
    collected(organization, 30)
    assert api(viewer).get(address(pets, content)).content == content


def test_what_another_version_shows_too_stays(upload, maintainer, organization, pets):
    second = upload({**FILES, "pets/cat/new.png": picture(500)})
    third = upload({"cat/1.png": picture(800), "dog/2.png": picture(801)})
    assert deletion.preview_of_version(pets).bytes < pets.images["bytes"]
    deletion.delete_version(actor=maintainer, version=pets)
    collected(organization, 8)
    collected(organization, 16)
    store = services.object_store(organization.pk)
    for version in (second, third):
        for record in records_of(store, version.images):
            assert store.read(record.sha256) and store.read(record.thumbnail)


def test_an_archive_is_let_go_once_its_images_are_stored(organization, pets):
    store = services.object_store(organization.pk)
    assert store.exists(pets.source_sha256)
    collected(organization, 8)
    collected(organization, 16)
    assert not store.exists(pets.source_sha256)
    assert store.read(digest(FILES["pets/cat/0.png"])) == FILES["pets/cat/0.png"]


def test_nothing_is_collected_while_a_list_of_images_cannot_be_read(organization, pets, caplog):
    StoredObject.objects.filter(sha256=pets.images["index"]).delete()
    with pytest.raises(MissingObject):
        reachable_objects(organization.pk)
    cron.collect_objects()
    assert "are not collected" in caplog.text
    assert StoredObject.objects.filter(condemned_at__isnull=False).count() == 0
    assert deletion.preview_of_version(pets).bytes > 0


# --- asked --------------------------------------------------------------------------------------------


@pytest.fixture
def model(organization, pets):
    example = digest(FILES["pets/dog/1.png"])
    inputs = [
        {"name": "image", "type": "image", "nullable": False, "example": example},
        {"name": "age", "type": "number", "nullable": True, "example": 2.0},
    ]
    return factories.ModelVersionFactory(
        model__organization=organization, dataset_version=pets, signature={"inputs": inputs}, number=1
    )


@pytest.fixture
def asked(monkeypatch):
    """What the inference process was asked."""
    sent = []

    def predict(version, instances):
        sent.extend(instances)
        return [{"label": "cat", "probabilities": {"cat": 0.9, "dog": 0.1}}]

    monkeypatch.setattr(inference, "predict", predict)
    monkeypatch.setattr("registry.availability.require_files", lambda version: None)
    return sent


def test_the_form_sends_the_chosen_file(web, viewer, model, asked):
    chosen = SimpleUploadedFile("x.png", picture(3), "image/png")
    answer = web(viewer).post(reverse("version-try", args=[model.pk]), {"input-0": chosen, "input-1": "4"})
    assert "cat" in answer.content.decode()
    assert asked == [{"image": base64.b64encode(picture(3)).decode(), "age": 4}]
    assert base64.b64encode(picture(3)).decode() not in answer.content.decode(), "no megabytes in the command"


def test_without_a_file_the_image_of_the_training_data_is_sent_and_shown(web, viewer, model, asked):
    page = web(viewer).get(reverse("model-version", args=[model.pk])).content.decode()
    assert re.search(r'<form[^>]*enctype="multipart/form-data"', page)
    assert f"{digest(FILES['pets/dog/1.png'])}?thumbnail=1" in page and "BASE64_OF_AN_IMAGE_FILE" in page
    web(viewer).post(reverse("version-try", args=[model.pk]), {"input-1": ""})
    assert asked == [{"image": base64.b64encode(FILES["pets/dog/1.png"]).decode(), "age": None}]


def test_without_the_data_there_is_only_a_chooser(web, viewer, maintainer, model, pets, asked):
    deletion.delete_version(actor=maintainer, version=pets)
    page = web(viewer).get(reverse("model-version", args=[model.pk])).content.decode()
    assert "?thumbnail=1" not in page and 'type="file"' in page
    web(viewer).post(reverse("version-try", args=[model.pk]), {"input-1": ""})
    assert asked == [{"image": None, "age": None}]


@pytest.mark.parametrize("content", [b"", b"x" * (5 * 1024 * 1024 + 1)])
def test_an_empty_or_too_large_file_is_refused_beside_its_field(web, viewer, model, asked, content):
    chosen = SimpleUploadedFile("x.png", content, "image/png")
    answer = web(viewer).post(reverse("version-try", args=[model.pk]), {"input-0": chosen})
    assert answer.status_code == 200 and answer.context["try_form"].errors["input-0"] and asked == []
