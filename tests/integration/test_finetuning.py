"""Fine-tuning through the platform: from a version to a run to a version; adapters, their merge, and who may."""

import hashlib
import math
from dataclasses import fields

import pytest
from django.urls import reverse
from guardian.shortcuts import assign_perm

from dlplatform.api import Conflict
from dlplatform.engine.blocks import block_of
from dlplatform.engine.finetune_config import FinetuneConfig
from dlplatform.engine.package import weights_content
from registry import deletion
from registry.jobs import compare as compare_work
from registry.jobs import merge as merge_work
from registry.models import Merge, ModelVersion
from registry.serving.cache import PredictorCache
from registry.tensors import tensor_shapes
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from tests.integration.training_by_api import trained_version
from training.finetuning import fitting_data
from training.jobs import train
from training.models import Run
from training.serializers import SettingsIn

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def base(queue_run):
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model", "dataset_version__dataset").get()


@pytest.fixture
def more_flowers(organization, tmp_path):
    (tmp_path / "more").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="more flowers")
    return factories.ready_version(dataset, flower_rows(120), tmp_path / "more")


def tuned(api, actor, base, data, **settings):
    """The version that a fine-tuning asked for over the API ends in."""
    answer = api(actor).post(
        f"/api/v1/models/{base.model_id}/finetune",
        {"dataset_version": str(data.pk), "config": {"epochs": 2, "threads": 1}, **settings}, format="json",
    )  # fmt: skip
    return trained_version(answer)


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_fine_tune_follows_its_base(base, more_flowers, trainer, api, mode):
    version = tuned(api, trainer, base, more_flowers, mode=mode)
    assert version.model_id == base.model_id and version.base is None
    assert list(version.parents.all()) == [base]
    assert version.lineage["base"]["version"] == base.number and version.lineage["finetune"]["mode"] == mode
    assert PredictorCache(1 << 30).get(version.pk).predict([flower_rows(1)[0]])[0]["label"]


def test_an_adapter_holds_little_needs_its_base_and_becomes_a_full_version(
    base, more_flowers, trainer, api, web, maintainer
):
    version = tuned(api, trainer, base, more_flowers, mode="lora", rank=1)
    assert version.base == base and "model.safetensors" not in version.tree
    assert version.tree["adapter_model.safetensors"]["size"] < base.tree["model.safetensors"]["size"]
    row = flower_rows(1)[0]
    before = PredictorCache(1 << 30).get(version.pk).predict([row])[0]["probabilities"]
    held = PredictorCache(1 << 30)
    alone = held.get(version.pk)
    assert held.sizes == {version.pk: version.size, base.pk: base.size}, "an adapter needs its base"
    shared = held.get(base.pk)
    assert held.sizes == {version.pk: version.size, base.pk: base.size} and len(held) == 2
    again = PredictorCache(1 << 30)
    again.get(base.pk)
    over = again.get(version.pk)
    in_memory = {tensor.data_ptr() for tensor in again.get(base.pk).network.state_dict().values()}
    assert in_memory & {tensor.data_ptr() for tensor in over.network.state_dict().values()}, "the base is there once"
    assert over.predict([row]) == alone.predict([row]) != shared.predict([row])
    page = web(trainer).get(f"/model-versions/{base.pk}/").content.decode()
    assert "Adapters over this version" in page and f"/model-versions/{version.pk}/" in page
    base.refs.all().delete()
    with pytest.raises(Conflict, match="adapter over it"):
        deletion.delete_version(actor=maintainer, version=base)

    answer = api(trainer).post(f"/api/v1/model-versions/{version.pk}/merge-adapter")
    assert answer.status_code == 202, answer.content
    merge_work(answer.json()["id"])
    made = Merge.objects.get()
    assert made.state == "succeeded", made.error
    whole = made.output_version
    assert whole.base is None and [parent.number for parent in whole.parents.order_by("child_edges__position")] == [
        2,
        1,
    ]
    after = PredictorCache(1 << 30).get(whole.pk).predict([row])[0]["probabilities"]
    assert after == pytest.approx(before, abs=1e-6)
    assert made.result["tensors"]["merged"] > 0 and version.lineage["finetune"]["format"] == "peft"
    for of_base in (shared, PredictorCache(1 << 30).get(base.pk)):  # the adapter off again: the base, as it was stored
        content = weights_content(of_base.network.state_dict())
        assert hashlib.sha256(content).hexdigest() == base.tree["model.safetensors"]["sha256"]
    assert api(trainer).post(f"/api/v1/model-versions/{whole.pk}/merge-adapter").status_code == 409


def test_two_fine_tunes_of_one_base_merge(base, more_flowers, flowers, trainer, api):
    ours = tuned(api, trainer, base, more_flowers, config={"epochs": 2, "threads": 1, "seed": 1})
    theirs = tuned(api, trainer, base, flowers, version=str(base.pk))
    assert theirs.refs.get().name == "from-v1"
    answer = api(trainer).post(f"/api/v1/models/{base.model_id}/merge", {"theirs": str(theirs.pk)}, format="json")
    assert answer.status_code == 202, answer.content
    merge_work(answer.json()["id"])
    made = Merge.objects.get()
    assert made.state == "succeeded", made.error
    assert set(made.result["metrics"]) == {"ours", "theirs", "merged"}
    assert {parent.pk for parent in made.output_version.parents.all()} == {ours.pk, theirs.pk}


def test_what_does_not_fit_is_named(base, organization, trainer, api, tmp_path):
    other = factories.ready_version(
        factories.DatasetFactory(organization=organization, name="other"),
        [{"length": float(n), "species": "ab"[n % 2]} for n in range(30)], tmp_path,
    )  # fmt: skip
    address = f"/api/v1/models/{base.model_id}/finetune"
    answer = api(trainer).post(address, {"dataset_version": str(other.pk)}, format="json")
    assert answer.status_code == 400
    assert {error["attr"] for error in answer.json()["errors"]} == {"dataset_version"}
    assert other not in fitting_data(trainer, base)
    data = str(base.dataset_version_id)
    for wrong, attr in (({"mode": "half"}, "mode"), ({"rank": 0}, "rank"), ({"blocks": ["nowhere"], "mode": "head"}, "blocks"),
                        ({"version": "0c1c9a52-0000-0000-0000-000000000000"}, "version")):  # fmt: skip
        answer = api(trainer).post(address, {"dataset_version": data, **wrong}, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, answer.content


def test_what_would_train_is_told_before(base, trainer, viewer, stranger, api):
    address = f"/api/v1/model-versions/{base.pk}/finetune-outlook"
    told = {mode: api(viewer).post(address, {"mode": mode}, format="json").json() for mode in ("full", "head", "lora")}
    assert told["full"]["trainable"] == told["full"]["parameters"] > told["head"]["trainable"] > 0
    assert 0 < told["lora"]["trainable"] < told["full"]["parameters"]
    assert {block["name"] for block in told["head"]["blocks"] if block["trains"]} == {"head"}
    assert block_of("hidden.0.weight") in {block["name"] for block in told["lora"]["blocks"] if block["added"]}
    idle = api(viewer).post(address, {"mode": "full", "pixels": "letterbox"}, format="json")
    assert idle.status_code == 400 and idle.json()["errors"][0]["attr"] == "pixels", "a table has none"
    assert api(stranger).post(address, {}, format="json").status_code == 404
    assert api(viewer).post(f"/api/v1/models/{base.model_id}/finetune", {}, format="json").status_code in (400, 403)


def test_every_setting_of_the_engine_can_be_asked_for():
    assert {field.name for field in fields(FinetuneConfig)} == set(SettingsIn().fields)


@pytest.mark.parametrize("mode", ["full", "head"])
def test_settings_that_would_do_nothing_are_refused(base, flowers, trainer, api, mode):
    client, data = api(trainer), {"dataset_version": str(flowers.pk), "config": {"epochs": 1, "threads": 1}}
    addresses = (f"/api/v1/models/{base.model_id}/finetune", f"/api/v1/model-versions/{base.pk}/finetune-preflight")
    for idle, code in (({"rank": 4}, "not_for_mode"), ({"alpha": 3}, "not_for_mode"), ({"adapter": "ia3"}, "not_for_mode"),
                       ({"chat_template": "{{ messages }}"}, "not_for_base")):  # fmt: skip
        for address in addresses:
            answer = client.post(address, data | {"mode": mode} | idle, format="json")
            assert answer.status_code == 400, answer.content
            assert [(one["attr"], one["code"]) for one in answer.json()["errors"]] == [(*idle, code)]
    assert not Run.objects.exclude(base_version=None).exists()
    both = client.post(addresses[0], data | {"mode": mode, "rank": 4, "alpha": 3}, format="json").json()["errors"]
    assert {one["attr"] for one in both} == {"rank", "alpha"}
    plain = {"rank": 8, "alpha": 16, "adapter": "lora", "head": "whole"}
    for more in (plain | {"chat_template": "base"}, plain | {"chat_template": "usual"}):
        assert client.post(addresses[0], data | {"mode": mode} | more, format="json").status_code == 201

    # A run that recorded such a setting is cloned as it was; what is new in a clone must do something.
    run = Run.objects.filter(base_version=base).first()
    Run.objects.filter(pk=run.pk).update(finetune=run.finetune | {"rank": 4, "chat_template": "{{ messages }}"})
    clone, block = f"/api/v1/runs/{run.pk}/clone", client.get(f"/api/v1/runs/{run.pk}").json()["finetune"]
    assert block["rank"] == 4
    for sent in ({}, {"finetune": block}, {"finetune": {"layer_decay": 0.5}}, {"finetune": {"rank": 8}}):
        assert client.post(clone, sent, format="json").status_code == 201, sent
    refused = client.post(clone, {"finetune": {"rank": 5}}, format="json")
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, "finetune.rank")
    assert client.post(clone, {"finetune": {"rank": 5, "mode": "lora"}}, format="json").status_code == 201


def test_the_form_sends_what_adapters_have_in_no_other_mode(base, flowers, trainer, web):
    address = reverse("finetune", args=[base.pk])
    form = {
        "dataset_version": str(flowers.pk),
        "finetune.mode": "full",
        "finetune.rank": "4",
        "finetune.adapter": "ia3",
    }
    made = web(trainer).post(address, form)
    assert made.status_code == 302, made.context["form"].errors
    assert Run.objects.get(base_version=base).finetune["rank"] == 8


def test_what_the_api_shows_of_a_fine_tuning_can_be_sent_back(base, flowers, trainer, api):
    version = tuned(api, trainer, base, flowers, mode="lora", rank=2, blocks=["hidden.0"])
    client, again = api(trainer), {"dataset_version": str(flowers.pk), "config": {"epochs": 1, "threads": 1}}
    run = client.get(f"/api/v1/runs/{version.lineage['run']}").json()
    made = client.get(f"/api/v1/model-versions/{version.pk}").json()
    shown = [run["finetune"], made["lineage"]["finetune"]]
    assert all(block["format"] == "peft" for block in shown)
    body = again | {
        "space": [{"name": "epochs", "kind": "integer", "low": 1, "high": 2}],
        "trials": 1,
        "base_version": str(base.pk),
    }
    for block in shown:
        for address, sent in ((f"/api/v1/models/{base.model_id}/finetune", again | block | {"version": str(base.pk)}),
                              (f"/api/v1/model-versions/{base.pk}/finetune-preflight", again | block),
                              (f"/api/v1/runs/{run['id']}/clone", {"finetune": block}),
                              ("/api/v1/sweeps", body | {"finetune": block})):  # fmt: skip
            answer = client.post(address, sent, format="json")
            assert answer.status_code in (201, 202), (address, answer.content)
            assert answer.json().get("finetune", block) == block
        assert (
            client.post(f"/api/v1/model-versions/{base.pk}/finetune-outlook", block, format="json").status_code == 200
        )

    # A run from before peft's format is shown as it was meant, and cloned as it was; what is new is peft's.
    old = {name: value for name, value in run["finetune"].items() if name not in ("format", "head")}
    Run.objects.filter(pk=run["id"]).update(finetune=old)
    block = client.get(f"/api/v1/runs/{run['id']}").json()["finetune"]
    assert block == {**old, "format": "first", "head": "adapted"}
    clone = f"/api/v1/runs/{run['id']}/clone"
    assert client.post(clone, {"finetune": block}, format="json").json()["finetune"] == block
    changed = client.post(clone, {"finetune": {**block, "format": "peft", "rank": 3}}, format="json")
    assert (changed.json()["finetune"]["rank"], changed.json()["finetune"]["format"]) == (3, "peft")
    refusals = [
        (f"/api/v1/models/{base.model_id}/finetune", again | block, "format"),
        (clone, {"finetune": block | {"rank": 3}}, "finetune.format"), (clone, {"finetune": {"rank": 0}}, "finetune.rank"),
        (clone, {"finetune": {"odd": 1}}, "finetune.odd"), ("/api/v1/sweeps", body | {"finetune": block}, "finetune.format"),
        (f"/api/v1/runs/{base.lineage['run']}/clone", {"finetune": {"rank": 1}}, "finetune"),
    ]  # fmt: skip
    for address, sent, attr in refusals:
        answer = client.post(address, sent, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, (address, answer.content)


@pytest.mark.parametrize("head", ["whole", "adapted"])
def test_the_outlook_counts_what_the_engine_trains(base, flowers, trainer, api, head):
    settings = {"mode": "lora", "rank": 2, "head": head}
    version = tuned(api, trainer, base, flowers, **settings)
    told = api(trainer).post(f"/api/v1/model-versions/{base.pk}/finetune-outlook", settings, format="json").json()
    trained = {
        name: shape
        for name, shape in tensor_shapes(version).items()
        if ".lora_" in name or name.endswith((".head.weight", ".head.bias"))
    }
    assert any(".lora_" not in name for name in trained) == (head == "whole")
    assert told["trainable"] == sum(math.prod(shape) for shape in trained.values())
    assert [block["name"] for block in told["blocks"] if block["trains"]] == (["head"] if head == "whole" else [])


def test_the_page_queues_a_run(base, flowers, trainer, viewer, stranger, web):
    address = f"/model-versions/{base.pk}/finetune"
    shown = web(trainer).get(address)
    assert shown.status_code == 200 and "hidden.0" in shown.content.decode()
    live = web(trainer).get(address, {"finetune.mode": "lora", "finetune.rank": "2"}, headers={"HX-Request": "true"})
    assert "its adapter" in live.content.decode()
    assert web(viewer).get(address).status_code == 403
    assert web(stranger).get(address).status_code == 404
    wrong = web(trainer).post(
        address, {"dataset_version": str(flowers.pk), "finetune.rank": "0", "finetune.mode": "lora"}
    )
    assert wrong.status_code == 200 and "rank must be" in wrong.content.decode()
    sent = web(trainer).post(address, {"dataset_version": str(flowers.pk), "finetune.mode": "head", "blocks": ["head"]})
    assert sent.status_code == 302, sent.content.decode()[:2000]
    run = Run.objects.exclude(base_version=None).get()
    assert run.finetune["mode"] == "head" and run.finetune["blocks"] == ["head"]
    clone = web(trainer).post(f"/api/v1/runs/{run.pk}/clone", {}, content_type="application/json")
    assert clone.status_code == 201 and clone.json()["finetune"] == run.finetune
    again = web(trainer).get("/runs/new", {"clone": str(run.pk)}, follow=True)
    form = again.context["form"]
    assert again.redirect_chain[0][0].startswith(address) and (
        form["finetune.mode"].value(),
        form["blocks"].value(),
    ) == (
        "head",
        ["head"],
    )


def test_adapters_of_other_models_are_compared_with_their_base_and_each_other(
    base, flowers, trainer, viewer, stranger, api, web
):
    one = tuned(api, trainer, base, flowers, mode="lora", rank=1, register_as="small")
    two = tuned(api, trainer, base, flowers, mode="lora", rank=2, register_as="larger")
    page = web(viewer).get(f"/model-versions/{base.pk}/").content.decode()
    assert all(f'value="{each.pk}"' in page for each in (base, one, two)) and "Compare the ticked" in page
    ticked = {"version": [str(each.pk) for each in (base, one, two)]}
    table = web(viewer).get("/model-versions/compare", ticked).content.decode()
    assert "finetune.rank" in table and "3 versions beside each other" in table
    diff = web(viewer).get("/model-versions/compare", {"version": ticked["version"][:2]}, follow=True)
    text = diff.content.decode()
    assert diff.redirect_chain[0][0] == f"/models/{one.model_id}/diff?base={base.pk}&head=1"
    assert "An adapter and its base" in text and f"{base} → {one}" in text and str(two) in text
    siblings = web(viewer).get(f"/models/{two.model_id}/diff", {"base": str(one.pk), "head": "1"}).content.decode()
    assert "Two adapters over one base" in siblings and "finetune.rank" in siblings

    told = api(viewer).get(f"/api/v1/models/{one.model_id}/diff?base={base.pk}&head=1").json()
    assert (told["base"]["model"], told["common_ancestor"]) == (str(base.model_id), None)
    asked = {"base": str(base.pk), "head": str(one.pk), "dataset_version": str(flowers.pk)}
    made = api(trainer).post(f"/api/v1/models/{one.model_id}/comparisons", asked, format="json")
    assert made.status_code == 202, made.content
    compare_work(made.json()["id"])
    done = api(viewer).get(f"/api/v1/comparisons/{made.json()['id']}").json()
    assert done["state"] == "succeeded" and done["result"]["behaviour"]["rows"] == 240, done["error"]
    shown = web(viewer).get(f"/models/{one.model_id}/diff", {"base": str(base.pk), "head": "1"}).content.decode()
    assert "Flipped to right" in shown
    pressed = web(trainer).post(f"/models/{two.model_id}/compare", {"base": str(one.pk), "head": str(two.pk)})
    assert pressed.url == f"/models/{two.model_id}/diff?base={one.pk}&head=1"

    # Whoever may see one of the models alone learns nothing of the other.
    assert web(stranger).get(f"/models/{one.model_id}/diff", {"base": str(base.pk)}).status_code == 404
    assert "Nothing to compare" in web(stranger).get("/model-versions/compare", ticked).content.decode()
    assign_perm("view_registeredmodel", stranger, one.model)
    alone = web(stranger).get("/model-versions/compare", ticked).content.decode()
    assert "1 version beside each other" in alone and str(two) not in alone
    refused = api(stranger).get(f"/api/v1/models/{one.model_id}/diff?base={base.pk}&head=1")
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "base"
    assert api(stranger).get(f"/api/v1/comparisons/{made.json()['id']}").status_code == 404
    assert api(stranger).get(f"/api/v1/models/{one.model_id}/comparisons").json()["results"] == []
    nothing = {**asked, "base": "0c1c9a52-0000-0000-0000-000000000000"}
    unknown = api(trainer).post(f"/api/v1/models/{one.model_id}/comparisons", nothing, format="json")
    assert unknown.status_code == 400 and unknown.json()["errors"][0]["attr"] == "base"
