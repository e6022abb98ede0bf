"""Pretrained models of images as bases: from a Hugging Face directory to versions that answer, and what is refused."""

import base64
import json
import math

import pytest

from dlplatform.engine.predict import Predictor
from registry.serving import predicting
from registry.serving.batches import request_batch
from registry.serving.cache import PredictorCache
from registry.serving.jobs import predict_dataset
from registry.tensors import tensor_shapes
from tests.fixtures.pictures import class_folders, picture
from tests.integration.test_transformers_bases import texts, version_of  # noqa: F401 - a fixture
from tests.integration.training_by_api import trained_version
from tests.unit.engine.transformers_bases import tiny_images
from training.models import Run

pytestmark = pytest.mark.django_db(transaction=True)
QUICK = {"epochs": 1, "threads": 1, "importance": False, "augmentation": "none"}


@pytest.fixture
def base(organization, trainer, tmp_path):
    """``base("vit")``: a version that is a Hugging Face directory of the kind."""

    def made(kind, change=None):
        folder = tiny_images(tmp_path / kind, kind)
        if change:
            change(folder)
        return version_of(organization, trainer, folder, kind)

    return made


@pytest.fixture
def many(upload):
    return upload(class_folders(12))


def asked(api, actor, version, data, **settings):
    body = {"dataset_version": str(data.pk), "config": QUICK, "target": "label", "features": ["image"], **settings}
    return api(actor).post(f"/api/v1/models/{version.model_id}/finetune", body, format="json")


def answered(version):
    rows = [{"image": base64.b64encode(picture(seed)).decode()} for seed in (0, 1000)]
    return PredictorCache(1 << 30).get(version.pk).predict(rows)


@pytest.mark.parametrize(("kind", "mode"), [("resnet", "full"), ("vit", "head")])
def test_a_model_of_images_becomes_one_that_answers(base, many, trainer, api, kind, mode):
    start = base(kind)
    version = trained_version(asked(api, trainer, start, many, mode=mode))
    assert version.task == "classification" and version.base is None and list(version.parents.all()) == [start]
    assert Run.objects.get(output_version=version).config["image_encoder"] == "pretrained"
    assert all(set(one["probabilities"]) == {"cat", "dog"} for one in answered(version))


def test_a_whole_dataset_of_images_is_read_some_images_at_a_time(base, many, trainer, api, monkeypatch):
    version = trained_version(asked(api, trainer, base("resnet"), many, mode="full"))
    monkeypatch.setattr(predicting, "AT_ONCE_BYTES", 3 * predicting.IMAGE_BYTES)
    at_once, real = [], Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, rows: (at_once.append(len(rows)), real(self, rows))[1])
    batch = request_batch(actor=trainer, version=version, dataset_version=many)
    predict_dataset(str(batch.pk))
    batch.refresh_from_db()
    assert batch.state == "succeeded" and sum(at_once) == many.rows > 6 and max(at_once) <= 3


@pytest.mark.parametrize("kind", ["vit", "convnext", "resnet"])
def test_an_adapter_is_as_large_as_was_told_before(base, many, trainer, viewer, stranger, api, kind):
    start, settings = base(kind), {"mode": "lora", "rank": 2}
    path = f"/api/v1/model-versions/{start.pk}/finetune-outlook"
    told = api(viewer).post(path, settings, format="json").json()
    assert api(stranger).post(path, settings, format="json").status_code == 404
    version = trained_version(asked(api, trainer, start, many, **settings))
    assert version.base == start and "model.safetensors" not in version.tree
    added = [shape for name, shape in tensor_shapes(version).items() if ".lora_" in name]
    assert added and sum(map(math.prod, added)) == sum(block["added"] for block in told["blocks"])
    assert told["blocks"][-1]["name"] == "linear" and told["blocks"][-1]["parameters"] == 17
    assert answered(version)


def test_the_page_asks_what_to_learn_and_names_the_blocks(base, many, trainer, web):
    start = base("vit")
    address = f"/model-versions/{start.pk}/finetune"
    page = web(trainer).get(address).content.decode()
    assert "Columns to predict" in page and "encoder.images.body.model." in page and "pets" in page
    assert '<option value="label" selected>' in page and '<option value="image"' not in page
    sent = {"dataset_version": str(many.pk), "task": "classification", "target": ["label"], "finetune.mode": "head"}
    answer = web(trainer).post(address, sent)
    assert answer.status_code == 302, answer.content.decode()[:3000]
    assert Run.objects.get().config["image_encoder"] == "pretrained"


def test_data_and_settings_that_do_not_go_with_it(base, many, texts, trainer, api):  # noqa: F811 - the fixture
    start = base("resnet")
    faults = [
        ({"dataset_version": str(texts.pk), "target": "kind", "features": None}, "dataset_version"),
        ({"features": ["file"]}, "features"),
        ({"config": {"image_model": {"model_type": "vit"}}}, "config.image_model"),
        ({"task": "language-model"}, "task"),
    ]
    for change, field in faults:
        body = {name: value for name, value in change.items() if value is not None}
        answer = asked(api, trainer, start, many, **body)
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == field, answer.content
    body = {"dataset_version": str(many.pk), "task": "classification", "target": "label",
            "config": {"image_encoder": "pretrained"}}  # fmt: skip
    alone = api(trainer).post("/api/v1/runs", body, format="json")
    assert alone.status_code == 400 and alone.json()["errors"][0]["attr"] == "config.image_encoder"


def test_a_damaged_processor_fails_the_run_with_words(base, many, trainer, api):
    def spoil(folder):
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": [0, 0, 0]}))

    answer = asked(api, trainer, base("resnet", spoil), many, mode="head")
    assert answer.status_code == 201
    with pytest.raises(AssertionError, match="image_std"):
        trained_version(answer)
    assert Run.objects.get().state == "failed"
