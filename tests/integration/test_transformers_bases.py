"""Hugging Face directories of the registry as bases: over the API and on the page, in every mode, and what is refused."""

import json
import random
from pathlib import Path

import orjson
import pytest
from django.core.exceptions import ValidationError

from registry import services
from registry.jobs import merge as merge_work
from registry.local_imports import import_directory
from registry.models import Merge, ModelVersion
from registry.serving.cache import PredictorCache
from tests import factories
from tests.integration.training_by_api import trained_version
from tests.unit.engine.transformers_bases import tiny_bert, tiny_gpt
from training.models import Run
from training.services import clone_run

pytestmark = pytest.mark.django_db(transaction=True)
QUICK = {"epochs": 1, "threads": 1, "importance": False}


def reviews(rows: int = 60) -> list[dict[str, object]]:
    generator = random.Random(3)
    words = [generator.choice(["good", "bad"]) for _ in range(rows)]
    return [
        {"note": f"the item {number} is very {word} and {'the ' * 5}", "stars": number % 5, "kind": word}
        for number, word in enumerate(words)
    ]


def version_of(organization, actor, folder: Path, name: str = "bert") -> ModelVersion:
    model = services.create_model(actor=actor, organization=organization, name=name)
    tree = services.store_directory(organization.pk, folder)
    return services.commit_version(
        actor=actor, model=model, tree=tree, task="", signature={}, metrics={}, lineage={"format": "transformers"},
        message="Uploaded transformers model",
    )  # fmt: skip


@pytest.fixture
def bert(organization, trainer, tmp_path):
    return version_of(organization, trainer, tiny_bert(tmp_path / "bert"))


@pytest.fixture
def texts(organization, tmp_path):
    (tmp_path / "texts").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="reviews")
    return factories.ready_version(dataset, reviews(), tmp_path / "texts")


def asked(api, actor, base, data, **settings):
    body = {"dataset_version": str(data.pk), "config": QUICK, "target": "kind", "features": ["note"], **settings}
    body = {name: value for name, value in body.items() if value is not None}
    return api(actor).post(f"/api/v1/models/{base.model_id}/finetune", body, format="json")


def tuned(api, actor, base, data, **settings) -> ModelVersion:
    return trained_version(asked(api, actor, base, data, **settings))


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_model_of_the_hub_becomes_one_that_answers(bert, texts, trainer, api, mode):
    version = tuned(api, trainer, bert, texts, mode=mode)
    assert version.task == "classification" and version.base is None
    assert list(version.parents.all()) == [bert] and version.lineage["finetune"]["mode"] == mode
    answer = PredictorCache(1 << 30).get(version.pk).predict([{"note": "the item is good"}])[0]
    assert set(answer["probabilities"]) == {"good", "bad"}


def test_an_adapter_is_committed_alone_and_merges_into_a_whole(bert, texts, trainer, api):
    version = tuned(api, trainer, bert, texts, mode="lora", rank=2, features=["note", "stars"])
    assert version.base == bert and "model.safetensors" not in version.tree
    assert {"adapter_config.json", "adapter_model.safetensors"} <= version.tree.keys()
    row = {"note": "the item is bad", "stars": 3}
    before = PredictorCache(1 << 30).get(version.pk).predict([row])[0]["probabilities"]

    answer = api(trainer).post(f"/api/v1/model-versions/{version.pk}/merge-adapter")
    assert answer.status_code == 202, answer.content
    merge_work(answer.json()["id"])
    made = Merge.objects.get()
    assert made.state == "succeeded", made.error
    assert made.output_version.base is None
    after = PredictorCache(1 << 30).get(made.output_version_id).predict([row])[0]["probabilities"]
    assert after == pytest.approx(before, abs=1e-5)


def test_the_outlook_tells_blocks_numbers_and_memory(bert, trainer, viewer, stranger, api):
    path = f"/api/v1/model-versions/{bert.pk}/finetune-outlook"
    told = api(viewer).post(path, {"mode": "lora", "rank": 2}, format="json").json()
    blocks = {block["name"]: block for block in told["blocks"]}
    layer = blocks["encoder.sequences.model.encoder.layer.0"]
    # Four square matrices of 16 and two of 16 × 32, each with rank 2 on both sides.
    assert layer["added"] == 4 * 2 * 32 + 2 * 2 * 48 and not layer["trains"]
    assert blocks["encoder.sequences.model.embeddings.word_embeddings"]["added"] == 0
    assert blocks["linear"] == {"name": "linear", "parameters": 17, "trains": True, "added": 0}
    assert told["trainable"] == 2 * layer["added"] + 17 and told["memory_bytes"] > 8 * told["parameters"]
    head = api(viewer).post(path, {"mode": "head"}, format="json").json()
    assert [block["name"] for block in head["blocks"] if block["trains"]] == ["linear"]
    assert api(stranger).post(path, {}, format="json").status_code == 404


@pytest.fixture
def gpt(organization, trainer, tmp_path):
    return version_of(organization, trainer, tiny_gpt(tmp_path / "gpt"), "gpt")


def test_a_decoder_goes_on_writing(gpt, texts, trainer, api):
    version = tuned(api, trainer, gpt, texts, target="note", features=None, mode="lora", rank=2)
    assert version.task == "language-model" and version.base == gpt
    answer = PredictorCache(1 << 30).get(version.pk).predict([{"prompt": "the item", "max_tokens": 4}])
    assert isinstance(answer[0]["text"], str)


CHATML = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"


def chatting(folder: Path, template: str) -> Path:
    base = tiny_gpt(folder, marked=True)
    (base / "chat_template.jinja").write_text(template)
    return base


@pytest.fixture
def chats(organization, tmp_path):
    (tmp_path / "chats").mkdir()
    talks = [
        [
            {"role": "user", "content": f"the item {row}?"},
            {"role": "assistant", "content": f"it is very good {row % 7}"},
        ]
        for row in range(60)
    ]
    dataset = factories.DatasetFactory(organization=organization, name="chats")
    return factories.ready_version(
        dataset, [{"messages": orjson.dumps(talk).decode()} for talk in talks], tmp_path / "chats"
    )


def test_a_chat_template_stays_with_the_version_and_its_adapter(organization, chats, trainer, api, tmp_path):
    base = version_of(organization, trainer, chatting(tmp_path / "gpt", CHATML), "chatter")
    version = tuned(api, trainer, base, chats, target="messages", features=None, mode="lora", rank=2)
    assert version.signature["chat"] is True and version.lineage["finetune"]["chat_template"] == "base"
    writer = PredictorCache(1 << 30).get(version.pk).writer
    assert writer.tokenizer.chat.text == CHATML
    merged = api(trainer).post(f"/api/v1/model-versions/{version.pk}/merge-adapter").json()
    merge_work(merged["id"])
    made = Merge.objects.get()
    assert made.state == "succeeded", made.error
    assert PredictorCache(1 << 30).get(made.output_version_id).writer.tokenizer.chat.text == CHATML


def test_a_chat_template_that_cannot_be_used_is_told_and_refused(organization, chats, trainer, api, web, tmp_path):
    folder = chatting(tmp_path / "gpt", "{% include '/etc/passwd' %}")
    base = import_directory(actor=trainer, organization=organization, name="hostile", directory=folder)
    assert "include" in base.lineage["chat_template_problem"]
    assert "Its own chat template cannot be used" in web(trainer).get(f"/model-versions/{base.pk}/").content.decode()
    body = {"target": "messages", "features": None}
    answer = asked(api, trainer, base, chats, **body)
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "chat_template", answer.content
    assert "it uses the statement include" in answer.json()["errors"][0]["detail"]
    for own in ("usual", "{% for m in messages %}{{ m.content }}{% endfor %}"):
        assert asked(api, trainer, base, chats, **body, chat_template=own).status_code == 201
    wrong = asked(api, trainer, base, chats, **body, chat_template="{{ 1")
    assert wrong.status_code == 400 and wrong.json()["errors"][0]["attr"] == "chat_template"
    page = web(trainer).get(f"/model-versions/{base.pk}/finetune").content.decode()
    assert 'name="finetune.chat_template"' in page


def test_chats_that_repeat_are_texts_all_the_same(gpt, organization, trainer, api, web, tmp_path):
    talks = [
        [{"role": "user", "content": f"item {row % 5}"}, {"role": "assistant", "content": "good"}] for row in range(60)
    ]
    (tmp_path / "few").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="few chats")
    data = factories.ready_version(dataset, [{"messages": json.dumps(talk)} for talk in talks], tmp_path / "few")
    assert [column["type"] for column in data.columns] == ["category"]
    assert str(data.pk) in web(trainer).get(f"/model-versions/{gpt.pk}/finetune").content.decode()
    version = tuned(api, trainer, gpt, data, target="messages", features=None, mode="lora", rank=2)
    assert version.task == "language-model" and version.base == gpt


@pytest.mark.parametrize("base", ["bert", "gpt"])
def test_texts_longer_than_the_base_reads_are_refused_before_the_run(base, texts, trainer, api, request):
    version = request.getfixturevalue(base)
    more = {"target": "note", "features": None} if base == "gpt" else {}
    told = asked(api, trainer, version, texts, config=QUICK | {"text_length": 8192}, **more).json()["errors"]
    assert [(one["attr"], one["code"]) for one in told] == [("config.text_length", "out_of_range")]
    most = int(told[0]["detail"].split()[3])
    made = asked(api, trainer, version, texts, config=QUICK | {"text_length": most}, **more)
    assert made.status_code == 201
    clone = f"/api/v1/runs/{made.json()['id']}/clone"
    longer = api(trainer).post(clone, {"config": QUICK | {"text_length": most + 1}}, format="json")
    assert longer.status_code == 400 and longer.json()["errors"][0]["attr"] == "config.text_length", longer.content
    assert api(trainer).post(clone, {"config": QUICK | {"text_length": most}}, format="json").status_code == 201


def test_data_without_texts_are_nothing_to_learn_to_write(gpt, organization, trainer, api, tmp_path):
    (tmp_path / "numbers").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="numbers")
    data = factories.ready_version(dataset, [{"x": row, "y": row / 7} for row in range(40)], tmp_path / "numbers")
    told = asked(api, trainer, gpt, data, target="x", features=None).json()["errors"]
    assert (told[0]["attr"], told[0]["code"]) == ("dataset_version", "does_not_fit") and "write texts" in told[0][
        "detail"
    ]


def test_weights_of_classes_are_refused_where_there_are_none(gpt, texts, trainer, api):
    body = {"target": "note", "features": None, "config": QUICK | {"class_weights": "balanced"}}
    told = asked(api, trainer, gpt, texts, **body).json()["errors"]
    assert [(one["attr"], one["code"]) for one in told] == [("config.class_weights", "not_for_task")]
    run = {"dataset_version": str(texts.pk), "task": "language-model", "target": "note"}
    for path, more in (
        ("/api/v1/runs", {"config": {"class_weights": "balanced"}}),
        ("/api/v1/preflights", {"config": {"class_weights": "balanced"}}),
        ("/api/v1/sweeps", {"config": {"class_weights": "balanced"}, "name": "s",
                            "space": [{"name": "learning_rate", "kind": "float", "low": 0.001, "high": 0.1}]}),
        ("/api/v1/sweeps", {"name": "s", "space": [{"name": "class_weights", "kind": "categorical", "choices": ["auto", "balanced"]}]}),
    ):  # fmt: skip
        answer = api(trainer).post(path, run | more, format="json")
        assert answer.status_code == 400 and "has no classes" in answer.content.decode(), (path, answer.content)
    experiment = factories.ExperimentFactory(organization=gpt.model.organization)
    old = factories.RunFactory(
        experiment=experiment, dataset_version=texts, task="language-model", target="note",
        config={"class_weights": "balanced"},
    )  # fmt: skip
    assert clone_run(actor=trainer, run=old, replays=gpt).config["class_weights"] == "balanced"
    with pytest.raises(ValidationError, match="has no classes"):
        clone_run(actor=trainer, run=old)


def test_a_decoder_may_read_texts_instead(gpt, texts, trainer, api):
    version = tuned(api, trainer, gpt, texts, task="classification", mode="head")
    assert version.task == "classification"
    assert PredictorCache(1 << 30).get(version.pk).predict([{"note": "good"}])[0]["label"] in ("good", "bad")


def test_the_outlook_of_a_decoder_depends_on_what_it_learns(gpt, viewer, api):
    path = f"/api/v1/model-versions/{gpt.pk}/finetune-outlook"
    writing = api(viewer).post(path, {"mode": "head"}, format="json").json()["blocks"]
    assert {block["name"] for block in writing if block["trains"]} == {"model.transformer.h.1"}
    reading = api(viewer).post(path, {"mode": "head", "task": "regression"}, format="json").json()["blocks"]
    assert "encoder.sequences.model.h.1" in {block["name"] for block in reading}
    assert {block["name"] for block in reading if block["trains"]} == {"linear"}


def test_who_may_start_from_it(bert, texts, viewer, stranger, api, web):
    assert asked(api, viewer, bert, texts).status_code == 403
    assert asked(api, stranger, bert, texts).status_code == 404
    assert web(stranger).get(f"/model-versions/{bert.pk}/finetune").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "field"),
    [({}, "target"), ({"target": "nothing"}, "dataset_version"), ({"target": "kind", "task": "language-model"}, "task"),
     ({"target": "kind", "config": {"text_encoder": 3}}, "config.text_encoder")],
)  # fmt: skip
def test_what_is_lacking_is_named(bert, texts, trainer, api, wanted, field):
    body = {"dataset_version": str(texts.pk), **wanted}
    answer = api(trainer).post(f"/api/v1/models/{bert.model_id}/finetune", body, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["attr"] == field, answer.content


def test_features_without_a_text_are_refused(bert, texts, trainer, api):
    answer = asked(api, trainer, bert, texts, features=["stars"])
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "features"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: replaced(folder, '"model_type": "bert"', '"model_type": "unheard-of"'), "unknown"),
        (lambda folder: replaced(folder, '"model_type"', '"auto_map": {}, "model_type"'), "never run here"),
        (
            lambda folder: replaced(folder, '"model_type"', '"vision_config": {}, "model_type"'),
            "sound or of several senses",
        ),
    ],
)
def test_bases_that_no_run_can_start_from(organization, trainer, texts, tmp_path, api, web, change, told):
    folder = tiny_bert(tmp_path / "bert")
    change(folder)
    base = version_of(organization, trainer, folder)
    answer = asked(api, trainer, base, texts)
    assert answer.status_code == 409 and told in answer.json()["errors"][0]["detail"]
    page = web(trainer).get(f"/model-versions/{base.pk}/finetune")
    assert page.status_code == 200 and told in page.content.decode()


def replaced(folder: Path, old: str, new: str) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace(old, new, 1))


def test_the_page_asks_what_to_learn_and_queues_the_run(bert, texts, trainer, web):
    address = f"/model-versions/{bert.pk}/finetune"
    page = web(trainer).get(address).content.decode()
    assert "Columns to predict" in page and "encoder.sequences.model.encoder.layer.1" in page
    assert "Fine-tune" in web(trainer).get(f"/model-versions/{bert.pk}/").content.decode()
    wrong = web(trainer).post(address, {"dataset_version": str(texts.pk)})
    assert wrong.status_code == 200 and not Run.objects.exists()
    sent = {"dataset_version": str(texts.pk), "task": "classification", "target": ["kind"], "finetune.mode": "lora"}
    answer = web(trainer).post(address, sent)
    run = Run.objects.get()
    assert answer.status_code == 302 and str(run.pk) in answer.url
    assert run.task == "classification" and run.config["text_encoder"] == "pretrained"


def test_a_clone_by_the_page_keeps_what_the_page_does_not_show(bert, texts, trainer, stranger, api, web):
    config = QUICK | {"weight_decay": 0.5, "seed": 7}
    first = Run.objects.get(pk=asked(api, trainer, bert, texts, mode="head", config=config).json()["id"])
    address = web(trainer).get(f"/runs/new?clone={first.pk}").url
    page = web(trainer).get(address).content.decode()
    assert f'name="clone" value="{first.pk}"' in page and 'value="7"' in page
    sent = {"dataset_version": str(texts.pk), "task": "classification", "target": ["kind"], "finetune.mode": "lora"}
    answer = web(trainer).post(
        f"/model-versions/{bert.pk}/finetune", sent | {"clone": str(first.pk), "config.seed": "8"}
    )
    assert answer.status_code == 302, answer.content.decode()[:2000]
    run = Run.objects.exclude(pk=first.pk).get()
    assert (run.features, run.cloned_from, run.experiment) == (["note"], first, first.experiment)
    assert (run.config["weight_decay"], run.config["seed"], run.finetune["mode"]) == (0.5, 8, "lora")
    for odd in ("nothing", str(bert.pk)):
        path = f"/model-versions/{bert.pk}/finetune"
        assert web(trainer).post(path, sent | {"clone": odd}).status_code in (200, 404)
    assert Run.objects.count() == 2


def test_encoders_are_for_what_the_base_does_not_take(bert, texts, trainer, api):
    for name, given, code in (
        ("text_encoder", "hashed", "not_for_base"),
        ("image_encoder", "pretrained", "needs_base"),
    ):
        answer = asked(api, trainer, bert, texts, config=QUICK | {name: given})
        error = answer.json()["errors"][0]
        assert (answer.status_code, error["attr"], error["code"]) == (400, f"config.{name}", code)
    assert asked(api, trainer, bert, texts, config=QUICK | {"text_encoder": "pretrained"}).status_code == 201


def test_a_base_of_no_architecture_at_all_is_named(organization, trainer, texts, tmp_path, api):
    folder = tiny_bert(tmp_path / "bert")
    replaced(folder, '"model_type": "bert"', f'"model_type": "{"x" * 300}"')
    answer = asked(api, trainer, version_of(organization, trainer, folder), texts)
    assert answer.status_code == 409 and "unknown" in answer.json()["errors"][0]["detail"]


def test_a_run_without_a_base_cannot_ask_for_a_pretrained_encoder(texts, trainer, api, web):
    body = {"dataset_version": str(texts.pk), "task": "classification", "target": "kind",
            "config": {"text_encoder": "pretrained"}}  # fmt: skip
    answer = api(trainer).post("/api/v1/runs", body, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "config.text_encoder"
    page = web(trainer).get(f"/runs/new?dataset_version={texts.pk}").content.decode()
    assert '<option value="pretrained"' not in page
