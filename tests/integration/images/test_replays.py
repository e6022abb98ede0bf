"""Versions that learned from images are trained again from their lineage, from nothing and over a pretrained base."""

import json

import pytest

from registry.services import object_store
from tests.fixtures.pictures import class_folders
from tests.integration.images.test_bases import asked, base  # noqa: F401 - a fixture
from tests.integration.test_replays import asked as replayed
from tests.integration.training_by_api import trained_version
from training.jobs import train
from training.models import ReplayCertificate, Run

pytestmark = pytest.mark.django_db(transaction=True)
QUICK = {"epochs": 2, "threads": 1, "importance": False, "image_size": 16}


def certificate_of(version, api, trainer):
    run = replayed(api, trainer, version)
    train(str(run.pk))
    return ReplayCertificate.objects.get(version=version)


@pytest.fixture
def many(upload):
    return upload(class_folders(12))


def test_a_network_of_images_comes_out_again(many, trainer, api):
    body = {"dataset_version": str(many.pk), "task": "classification", "target": "label", "features": ["image"],
            "config": QUICK}  # fmt: skip
    version = trained_version(api(trainer).post("/api/v1/runs", body, format="json"))
    certificate = certificate_of(version, api, trainer)
    assert certificate.equal, certificate.details


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_base_of_images_tunes_to_the_same_again(base, many, trainer, api, mode):  # noqa: F811 - the fixture
    version = trained_version(asked(api, trainer, base("resnet"), many, mode=mode, config=QUICK))
    certificate = certificate_of(version, api, trainer)
    assert certificate.equal, certificate.details


def test_a_run_from_before_pixels_were_the_bases_own_stays_letterboxed(
    base,  # noqa: F811 - the fixture
    many,
    trainer,
    viewer,
    stranger,
    api,
    web,
):
    start = base("convnext")
    now = trained_version(asked(api, trainer, start, many, mode="head", config=QUICK, register_as="now"))
    before = trained_version(
        asked(api, trainer, start, many, mode="head", config=QUICK, pixels="letterbox", register_as="before")
    )
    assert (framing_of(now), framing_of(before)) == ({"shortest": 18, "resample": 3}, None)
    assert now.lineage["finetune"]["pixels"] == "base"
    run = Run.objects.get(output_version=before)
    Run.objects.filter(pk=run.pk).update(finetune={k: v for k, v in run.finetune.items() if k != "pixels"})
    certificate = certificate_of(before, api, trainer)
    assert certificate.equal, certificate.details
    address = f"/api/v1/runs/{run.pk}"
    assert api(viewer).get(address).json()["finetune"]["pixels"] == "letterbox"
    cloned = api(trainer).post(f"{address}/clone", {"finetune": {"mode": "full"}}, format="json").json()
    assert cloned["finetune"]["pixels"] == "letterbox"
    changed = api(trainer).post(f"{address}/clone", {"finetune": {"pixels": "base"}}, format="json").json()
    assert changed["finetune"]["pixels"] == "base"
    wrong = asked(api, trainer, start, many, pixels="stretched")
    assert wrong.status_code == 400 and wrong.json()["errors"][0]["attr"] == "pixels"
    assert asked(api, stranger, start, many, pixels="base").status_code == 404
    form = web(trainer).get(f"/model-versions/{start.pk}/finetune").context["form"]
    assert "finetune.pixels" in form.fields
    assert "finetune.pixels" not in web(trainer).get(f"/model-versions/{now.pk}/finetune").context["form"].fields


def test_a_letterboxed_run_over_a_file_that_says_no_framing_is_trained_again(
    base,  # noqa: F811 - the fixture
    many,
    trainer,
    api,
):
    """It was made when the file was only asked for a size, and numbers."""

    def spoil(folder):
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": 600, "resample": "bicubic"}))

    version = trained_version(
        asked(api, trainer, base("vit", spoil), many, mode="head", config=QUICK, pixels="letterbox")
    )
    run = Run.objects.get(output_version=version)
    Run.objects.filter(pk=run.pk).update(finetune={k: v for k, v in run.finetune.items() if k != "pixels"})
    assert certificate_of(version, api, trainer).equal
    cloned = api(trainer).post(f"/api/v1/runs/{run.pk}/clone", {}, format="json")
    assert cloned.status_code == 201 and trained_version(cloned).pk


def framing_of(version):
    content = object_store(version.model.organization_id).read(version.tree["model.json"]["sha256"])
    return next(each for each in json.loads(content)["preprocessing"] if each["type"] == "image").get("framing")
