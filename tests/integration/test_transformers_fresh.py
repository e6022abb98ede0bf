"""Runs whose networks are architectures of the transformers library that start from nothing: over the API and the page."""

import pytest

from registry.serving.cache import PredictorCache
from tests import factories
from tests.integration.test_transformers_bases import reviews
from tests.integration.training_by_api import trained_version
from training.models import Run

pytestmark = pytest.mark.django_db(transaction=True)
BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
QUICK = {"epochs": 1, "threads": 1, "importance": False}


@pytest.fixture
def texts(organization, tmp_path):
    (tmp_path / "texts").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="reviews")
    return factories.ready_version(dataset, reviews(), tmp_path / "texts")


def asked(api, actor, data, **more):
    body = {"dataset_version": str(data.pk), "task": "classification", "target": "kind", "features": ["note"]}
    config = {**QUICK, "text_model": BERT} | more.pop("config", {})
    return api(actor).post("/api/v1/runs", {**body, "config": config, **more}, format="json")


def test_a_run_by_api_ends_as_a_version_that_answers_and_can_be_tuned(texts, trainer, api):
    version = trained_version(asked(api, trainer, texts))
    answer = PredictorCache(1 << 30).get(version.pk).predict([{"note": "the item is good"}])[0]
    assert set(answer["probabilities"]) == {"good", "bad"}
    path = f"/api/v1/model-versions/{version.pk}/finetune-outlook"
    blocks = api(trainer).post(path, {"mode": "lora", "rank": 2}, format="json").json()["blocks"]
    assert "encoder.sequences.model.encoder.layer.0" in {one["name"] for one in blocks if one["added"]}
    wanted = {"dataset_version": str(texts.pk), "mode": "lora", "rank": 2, "config": QUICK}
    tuned = trained_version(api(trainer).post(f"/api/v1/models/{version.model_id}/finetune", wanted, format="json"))
    assert tuned.base == version
    path = f"/api/v1/models/{version.model_id}/finetune"
    for model, code in (
        (BERT, 201),
        ({**BERT, "hidden_size": 64}, 400),
    ):  # its own is said once, another one is refused
        body = {**wanted, "version": str(version.pk), "config": {**QUICK, "text_model": model}}
        refused = api(trainer).post(path, body, format="json")
        assert refused.status_code == code, refused.content
        if code == 201:
            assert trained_version(refused).base == version and refused.json()["config"]["text_model"] is None
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "config.text_model"


@pytest.mark.parametrize(
    ("config", "more", "field"),
    [
        ({"text_model": {**BERT, "hiden_size": 3}}, {}, "config.text_model.hiden_size"),
        ({"text_model": {"model_type": "nobody"}}, {}, "config.text_model"),
        ({"text_model": "bert"}, {}, "config.text_model"),
        ({}, {"features": ["stars"]}, "config.text_model"),
        ({"text_model": None, "image_model": {"model_type": "vit"}}, {}, "config.image_model"),
    ],
)
def test_bad_architectures_are_named_before_anything_is_queued(texts, trainer, api, config, more, field):
    answer = asked(api, trainer, texts, config=config, **more)
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == field, answer.content
    assert not Run.objects.exists()


def test_who_may(texts, viewer, stranger, api):
    assert asked(api, viewer, texts).status_code == 403
    assert asked(api, stranger, texts).status_code == 400  # the data are nothing that a stranger can name


def form_of(texts, **more):
    return {"dataset_version": str(texts.pk), "task": "classification", "target": "kind", "features": ["note"],
            "config.epochs": "1", **more}  # fmt: skip


def test_the_page_takes_json_offers_presets_and_fills_a_clone(texts, trainer, web):
    page = web(trainer).get(f"/runs/new?version={texts.pk}").content.decode()
    assert 'name="config.text_model"' in page and "BERT, small" in page and "data-fills" in page
    text = '{"model_type": "bert", "hidden_size": 16}'
    shown = web(trainer).get("/runs/new", form_of(texts, **{"config.text_model": text})).content.decode()
    assert (
        ", at most about" in shown and "parameters, at most" not in shown
    )  # how many parameters only the library knows
    answer = web(trainer).post("/runs/new", form_of(texts, **{"config.text_model": text}))
    run = Run.objects.get()
    assert answer.status_code == 302 and run.config["text_model"] == {"model_type": "bert", "hidden_size": 16}
    clone = web(trainer).get(f"/runs/new?clone={run.pk}").content.decode()
    assert "&quot;hidden_size&quot;: 16" in clone
    for wrong in ("{bert", '{"model_type": "nobody"}', '{"model_type": "bert", "hiden_size": 3}'):
        answer = web(trainer).post("/runs/new", form_of(texts, **{"config.text_model": wrong}))
        page = answer.content.decode()
        assert set(answer.context["form"].errors) == {"config.text_model"}
        assert "text_model" in page and (
            "must be a JSON object" in page or "nobody" in page or "no setting of bert" in page
        )
    assert Run.objects.count() == 1
