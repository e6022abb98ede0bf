"""Two real steps of fine-tunes, of runs by several processes and of architectures of one's own, before they are queued."""

import pytest

from dlplatform.accounts.models import Membership
from tests import factories
from tests.fixtures import own_code
from tests.integration.test_preflights import WHAT, form_of, tried
from tests.integration.test_transformers_bases import reviews, version_of
from tests.unit.engine.transformers_bases import tiny_bert, tiny_gpt
from training import code
from training.accelerators import leases
from training.accelerators.devices import Device
from training.jobs import preflight as work
from training.jobs import train
from training.models import Preflight, Run

pytestmark = pytest.mark.django_db(transaction=True)
QUICK = {"epochs": 2, "threads": 1, "importance": False}


@pytest.fixture
def base(queue_run):
    run = queue_run({"epochs": 2, "threads": 1, "folds": 1, "architecture": "mlp", "params": {"width": 16}})
    train(str(run.pk))
    run.refresh_from_db()
    assert run.output_version is not None, run.error
    return run.output_version


@pytest.fixture
def texts(organization, tmp_path):
    (tmp_path / "texts").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="reviews")
    return factories.ready_version(dataset, reviews(), tmp_path / "texts")


def ask(api, actor, version, data, **more):
    body = {"dataset_version": str(data.pk), "config": QUICK, **more}
    return api(actor).post(f"/api/v1/model-versions/{version.pk}/finetune-preflight", body, format="json")


def found(api, actor, version, data, **more):
    answer = ask(api, actor, version, data, **more)
    assert answer.status_code == 202, answer.content
    work(answer.json()["id"])
    return api(actor).get(f"/api/v1/preflights/{answer.json()['id']}").json()


@pytest.mark.parametrize("mode", ["full", "head", "lora"])
def test_a_fine_tune_of_an_own_base_is_tried_out(base, flowers, trainer, api, mode, settings):
    told = found(api, trainer, base, flowers, mode=mode)
    assert told["state"] == "succeeded", told["error"]
    result = told["result"]
    assert told["base_version"] == str(base.pk) and result["epochs"] == 2
    assert (result["trainable"] == result["parameters"]) == (mode == "full")
    assert result["trainable"] > 0 and result["peak_bytes"] > 0 and result["seconds"] > 0
    assert not Run.objects.exclude(output_version=base).exists()
    assert not [path for path in settings.JOB_PATH.iterdir() if path.name.startswith("preflight")]


@pytest.mark.parametrize(("mode", "make", "more"), [
    ("lora", tiny_bert, {"target": "kind", "features": ["note"]}),
    ("full", tiny_bert, {"target": "kind", "features": ["note", "stars"]}),
    ("lora", tiny_gpt, {"target": "note"}),
])  # fmt: skip
def test_a_fine_tune_of_a_transformers_base_is_tried_out(organization, texts, trainer, api, tmp_path, mode, make, more):
    version = version_of(organization, trainer, make(tmp_path / "base"), "base")
    told = found(api, trainer, version, texts, mode=mode, **more)
    assert told["state"] == "succeeded", told["error"]
    assert told["task"] == ("language-model" if make is tiny_gpt else "classification")
    assert 0 < told["result"]["trainable"] <= told["result"]["parameters"]


def test_the_steps_are_those_that_the_fine_tune_takes(base, flowers, trainer, api):
    told = found(api, trainer, base, flowers, mode="head")
    answer = api(trainer).post(
        f"/api/v1/models/{base.model_id}/finetune",
        {"dataset_version": str(flowers.pk), "mode": "head", "config": QUICK | {"early_stopping": False}},
        format="json",
    )
    train(answer.json()["id"])
    assert told["result"]["total_steps"] == Run.objects.get(pk=answer.json()["id"]).total_steps


def test_several_processes_are_tried_out_together(flowers, trainer, api):
    told = tried(api, trainer, flowers, config=WHAT["config"] | {"devices": 2, "folds": 1})
    assert told["state"] == "succeeded", told["error"]
    result = told["result"]
    assert (result["processes"], result["strategy"]) == (2, "ddp") and result["peak_bytes"] > 0
    sharded = tried(api, trainer, flowers, config=WHAT["config"] | {"devices": 2, "folds": 1, "strategy": "fsdp"})
    assert sharded["result"]["strategy"] == "fsdp", sharded["error"]
    assert sharded["result"]["parameters"] == result["parameters"] == sharded["result"]["trainable"]


def test_a_fine_tune_by_several_processes(base, flowers, trainer, api):
    told = found(api, trainer, base, flowers, mode="lora", config=QUICK | {"devices": 2})
    assert told["state"] == "succeeded", told["error"]
    assert told["result"]["processes"] == 2 and told["result"]["trainable"] < told["result"]["parameters"]


def test_what_several_processes_refuse_is_told_by_name(flowers, trainer, api):
    text = {"text_model": {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}}
    row = factories.PreflightFactory(
        dataset_version=flowers, task="classification", targets=["kind"], features=["length", "width"], created_by=trainer,
        config=WHAT["config"] | {"devices": 2, "folds": 1} | text,
    )  # fmt: skip
    work(str(row.pk))
    row.refresh_from_db()
    assert (row.state, row.error["code"]) == ("failed", "bad_config"), row.error
    assert "none of the features is a text" in row.error["sentence"]


def test_gpus_that_are_not_idle_are_told(flowers, trainer, api, monkeypatch):
    there = [Device("GPU-0", "a", 1 << 30, busy=True), Device("GPU-1", "a", 1 << 30, busy=False)]
    monkeypatch.setattr(leases, "devices", lambda: there)
    told = tried(api, trainer, flowers, config=WHAT["config"] | {"devices": 2})
    assert told["error"]["code"] == "too_few_accelerators" and "2 GPUs, and 1" in told["error"]["sentence"]


@pytest.mark.parametrize(("more", "field"), [
    ({"mode": "sideways"}, "mode"), ({"mode": "head", "blocks": ["nowhere"]}, "blocks"), ({"target": "nothing"}, "dataset_version"),
    ({"config": {"epochs": 0}}, "config.epochs"),
])  # fmt: skip
def test_wrong_choices_are_refused_before_anything_is_tried(base, flowers, trainer, api, more, field):
    answer = ask(api, trainer, base, flowers, **more)
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == field, answer.content
    assert not Preflight.objects.exists()


def test_who_may(base, flowers, viewer, stranger, api, web):
    assert ask(api, viewer, base, flowers).status_code == 403
    assert ask(api, stranger, base, flowers).status_code == 404
    address = f"/model-versions/{base.pk}/finetune-preflight"
    assert web(viewer).post(address, {}).status_code == 403
    assert web(stranger).post(address, {}).status_code == 404


def test_the_page_asks_and_shows(base, flowers, trainer, web):
    address = f"/model-versions/{base.pk}/finetune"
    assert "Check first" in web(trainer).get(address).content.decode()
    form = {"dataset_version": str(flowers.pk), "finetune.mode": "lora", "config.epochs": "2", "config.threads": "1"}
    part = web(trainer).post(f"{address}-preflight", form).content.decode()
    row = Preflight.objects.get()
    assert f"/preflights/{row.pk}" in part and row.finetune["mode"] == "lora"
    work(str(row.pk))
    assert "Parameters that train" in web(trainer).get(f"/preflights/{row.pk}").content.decode()
    wrong = web(trainer).post(f"{address}-preflight", form | {"config.epochs": "none"}).content.decode()
    assert "epochs" in wrong and Preflight.objects.count() == 1
    strange = factories.ModelVersionFactory(model__organization=base.model.organization)
    part = web(trainer).post(f"/model-versions/{strange.pk}/finetune-preflight", form).content.decode()
    assert "No run can start" in part


# --- code of one's own ---------------------------------------------------------------------------------


@pytest.fixture
def bundle(coder, organization):
    def make(source, name="model.py"):
        return code.add_code(actor=coder, organization=organization, filename=name, content=source.encode())

    return make


def test_an_own_architecture_is_tried_out_in_its_sandbox(flowers, coder, api, bundle):
    told = tried(
        api, coder, flowers, code=str(bundle(own_code.ARCHITECTURE).pk), config=QUICK | {"params": {"width": 8}}
    )
    assert told["state"] == "succeeded", told["error"]
    assert told["result"]["trainable"] > 0 and told["result"]["processes"] == 1 and told["result"]["peak_bytes"] > 0


@pytest.mark.parametrize(("source", "named"), [
    ("def build(schema): return 3", "code_error"), ("x = 1", "code_missing"),
    ("import os\nos._exit(3)", "died"), ("print(open('/proc/1/environ').read())", "not_permitted"),
])  # fmt: skip
def test_bad_code_is_told_by_name(flowers, coder, api, bundle, source, named):
    told = tried(api, coder, flowers, code=str(bundle(source).pk), config=QUICK)
    assert (told["state"], told["error"]["code"]) == ("failed", named), told


def test_lies_of_a_trial_are_not_believed(flowers, coder, api, bundle):
    lie = (
        "import os, json\n"
        "def build(schema):\n"
        "    json.dump({'peak_bytes': 'many', 'epochs': float('inf')}, open('/job/trial.json', 'w'))\n"
        "    os._exit(0)\n"
    )
    told = tried(api, coder, flowers, code=str(bundle(lie).pk), config=QUICK)
    assert told["error"]["code"] == "died" and told["result"] is None


def test_a_script_cannot_be_tried_out_and_code_needs_its_permission(flowers, coder, trainer, api, bundle, organization):
    script = bundle(own_code.SCRIPT, "main.py")
    body = {"dataset_version": str(flowers.pk), **WHAT, "config": QUICK, "code": str(script.pk)}
    answer = api(coder).post("/api/v1/preflights", body, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "entry"
    told = api(coder).post(
        "/api/v1/preflights", body | {"code": str(bundle(own_code.ARCHITECTURE).pk), "entry": "model.py"}, format="json"
    )
    Membership.objects.filter(user=coder).update(may_run_code=False)
    assert api(coder).post("/api/v1/preflights", body | {"entry": "model.py"}, format="json").status_code == 403
    work(told.json()["id"])
    assert Preflight.objects.get(pk=told.json()["id"]).error["code"] == "code_not_permitted"


def test_the_form_of_own_code_offers_it(flowers, coder, web, bundle):
    made = bundle(own_code.ARCHITECTURE)
    page = web(coder).get(f"/runs/new?version={flowers.pk}&code={made.pk}").content.decode()
    assert "Check first" in page
    form = form_of(flowers) | {"code": str(made.pk), "entry": "model.py", "code_params": "{}"}
    part = web(coder).post("/preflights", form).content.decode()
    assert Preflight.objects.get().code == made and "every 1s" in part
