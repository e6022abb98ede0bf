"""What a base fixes is refused in a fine-tuning by name, unless it is what the base has; what was recorded goes on."""

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from registry import deletion
from registry.models import ModelVersion
from tests.integration.conftest import QUICK
from tests.integration.test_deletion import collected
from tests.integration.test_transformers_bases import bert, texts, version_of  # noqa: F401 - fixtures
from tests.integration.training_by_api import trained_version
from tests.unit.engine.transformers_bases import tiny_gpt, tiny_images
from training import doctor, finetuning, fixed_settings
from training.jobs import train
from training.models import Run
from training.records import append_event
from training.replay import replay

pytestmark = pytest.mark.django_db(transaction=True)
FEW = {"epochs": 1, "threads": 1}
OTHER = {
    "architecture": "linear", "folds": 2, "text_encoder": "transformer", "image_encoder": "convnext", "image_size": 32, "text_length": 8,
    "tokenizer": "byte", "vocabulary": 400, "validation_fraction": 0.3,
}  # fmt: skip


@pytest.fixture
def base(queue_run):
    train(str(queue_run(QUICK | {"params": {"width": 24}}).pk))
    return ModelVersion.objects.select_related("model__organization", "dataset_version__dataset").get()


def asked(api, actor, base, config, address="finetune"):
    where = f"models/{base.model_id}/finetune" if address == "finetune" else f"model-versions/{base.pk}/{address}"
    return api(actor).post(
        f"/api/v1/{where}", {"dataset_version": str(base.dataset_version_id), "config": FEW | config}, format="json"
    )


def test_every_setting_that_a_package_fixes_is_refused_by_name(base, api, trainer):
    assert base.lineage["settings"]["folds"] > 1, "or its validation rows are not those of its groups"
    for name, value in [*OTHER.items(), ("params", {"dropout": 0.5}), ("params", {"text_width": 64})]:
        field = f"config.{name}" + (f".{next(iter(value))}" if name == "params" else "")
        for address in ("finetune", "finetune-preflight"):
            answer = asked(
                api, trainer, base, {name: value, **({"architecture": "mlp"} if name == "params" else {})}, address
            )
            assert answer.status_code == 400, (name, answer.content)
            error = answer.json()["errors"][0]
            assert (error["attr"], error["code"]) == (field, "not_for_base") and "leave it out" in error["detail"]
    assert Run.objects.exclude(base_version=None).count() == 0


def test_what_the_base_has_can_be_sent_back(base, api, trainer):
    run = api(trainer).get(f"/api/v1/runs/{base.lineage['run']}").json()
    shown = api(trainer).get(f"/api/v1/model-versions/{base.pk}").json()["lineage"]
    for config in (run["config"], shown["config"], shown["settings"]):
        answer = asked(api, trainer, base, config | FEW)
        assert answer.status_code == 201, answer.content
    tuned = trained_version(answer)
    # A fine-tune records params that its rows suggest; what its network has counts as well.
    ModelVersion.objects.filter(pk=tuned.pk).update(
        lineage=tuned.lineage | {"settings": tuned.lineage["settings"] | {"params": {"width": 999}}, "config": {}}
    )
    tuned.refresh_from_db()
    told = {
        width: fixed_settings.faults(tuned, "classification", {"params": {"width": width}}, {})
        for width in (24, 999, 32)
    }
    assert (told[24], told[999], list(told[32])) == ({}, {}, ["config.params.width"])


def test_an_architecture_of_the_library_is_said_once(base, api, trainer):
    """What a package was made with can be sent back, and is not put beside it; another one is refused."""
    made = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    refused = asked(api, trainer, base, {"text_model": made})
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "config.text_model", refused.content
    ModelVersion.objects.filter(pk=base.pk).update(
        lineage=base.lineage | {"config": base.lineage["config"] | {"text_model": made}}
    )
    base.refresh_from_db()
    assert fixed_settings.faults(base, "classification", {"text_model": made}, {}) == {}
    assert [*fixed_settings.faults(base, "classification", {"text_model": made | {"hidden_size": 32}}, {})] == [
        "config.text_model"
    ]
    assert fixed_settings.said_once(base, {"text_model": made, "epochs": 1}) == {
        "text_model": None,
        "image_model": None,
        "epochs": 1,
    }


def test_a_run_from_before_is_cloned_and_replayed_with_what_did_nothing(base, api, web, trainer):
    made = trained_version(asked(api, trainer, base, {}))
    run = Run.objects.get(output_version=made)
    recorded = run.config | {"architecture": "tabm", "params": {"dropout": 0.7}, "text_encoder": "transformer"}
    Run.objects.filter(pk=run.pk).update(config=recorded)
    run.refresh_from_db()
    clone = f"/api/v1/runs/{run.pk}/clone"
    again = api(trainer).post(clone, {"config": {"epochs": 2}}, format="json")
    assert again.status_code == 201 and again.json()["config"] == recorded | {"epochs": 2}, again.content
    other = api(trainer).post(clone, {"config": {"architecture": "linear", "params": {}}}, format="json")
    assert other.status_code == 400 and other.json()["errors"][0]["attr"] == "config.architecture"
    assert replay(actor=trainer, version=made).config["architecture"] == "tabm"
    page = f"/model-versions/{base.pk}/finetune"
    form = {"dataset_version": str(base.dataset_version_id), "config.epochs": "2"}
    assert "config.validation_fraction" not in web(trainer).get(page).context["form"].fields
    queued = web(trainer).post(page, form | {"clone": str(run.pk)})
    assert queued.status_code == 302, queued.context["form"].errors
    assert Run.objects.filter(cloned_from=run).latest("created_at").config["architecture"] == "tabm"
    tried = web(trainer).post(f"{page}-preflight", form | {"clone": str(run.pk)})
    assert tried.status_code == 200 and tried.context["preflight"].config["architecture"] == "tabm"


def test_a_search_asks_the_same_list(base, api, trainer):
    body = {"dataset_version": str(base.dataset_version_id), "base_version": str(base.pk), "trials": 1}
    rate = {"name": "learning_rate", "kind": "float", "low": 0.001, "high": 0.1}
    for name, value in OTHER.items():
        space = [{"name": name, "kind": "categorical", "choices": [value]}]
        searched = api(trainer).post("/api/v1/sweeps", body | {"space": space}, format="json")
        assert searched.status_code == 400 and searched.json()["errors"][0]["attr"] == "space.0.name", name
        shared = api(trainer).post("/api/v1/sweeps", body | {"space": [rate], "config": {name: value}}, format="json")
        assert shared.status_code == 400 and shared.json()["errors"][0]["attr"] == f"config.{name}", shared.content


def test_the_doctor_suggests_nothing_that_the_base_fixes(base, api, trainer):
    run = Run.objects.get(output_version=trained_version(asked(api, trainer, base, {})))
    told = {"severity": "warning", "sentence": "It overfits.", "next_step": "Add rows."}
    append_event(run, "finding", code="overfitting", change={"weight_decay": 0.1, "params": {"dropout": 0.3}}, **told)
    append_event(run, "finding", code="odd", change={"params": {"dropout": 0.3}}, **told)
    assert [one["change"] for one in doctor.findings_of(run)] == [{"weight_decay": 0.1}, None]
    assert doctor.relaunch(actor=trainer, run=run, code="overfitting").config["weight_decay"] == 0.1
    whole = Run.objects.get(output_version=base)
    append_event(whole, "finding", code="overfitting", change={"params": {"dropout": 0.3}}, **told)
    assert doctor.findings_of(whole)[0]["change"] == {"params": {"dropout": 0.3}}


def test_a_directory_fixes_what_it_is_the_network_of(bert, texts, organization, trainer, tmp_path):  # noqa: F811
    writer = version_of(organization, trainer, tiny_gpt(tmp_path / "gpt"), "gpt")
    looker = version_of(organization, trainer, tiny_images(tmp_path / "resnet"), "resnet")
    fixed = {
        name: {one for one in (*OTHER, "params.width", "params.text_width", "params.image_width") if of(one)}
        for name, of in {
            "reads": fixed_settings.fixed_by(bert, "classification"),
            "writes": fixed_settings.fixed_by(writer, "language-model"),
            "writer that reads": fixed_settings.fixed_by(writer, "regression"),
            "looks": fixed_settings.fixed_by(looker, "classification"),
        }.items()
    }
    assert (
        fixed["reads"] == fixed["writer that reads"] == {"text_encoder", "tokenizer", "vocabulary", "params.text_width"}
    )
    assert fixed["looks"] == {"image_encoder", "params.image_width"}
    assert {*OTHER, "params.width", "params.text_width", "params.image_width"} - fixed["writes"] == {
        "text_length", "validation_fraction",
    }  # fmt: skip

    def tuned(config):
        return finetuning.finetune(
            actor=trainer, version=bert, dataset_version=texts, config=FEW | config, target="kind", features=["note"]
        )

    # The network over all inputs is new, and so are the encoders of other columns.
    assert (
        tuned(
            {"architecture": "mlp", "params": {"width": 8}, "image_size": 16, "text_encoder": "pretrained"}
        ).base_version
        == bert
    )
    refusals = [
        ({"vocabulary": 400}, "vocabulary"),
        ({"params": {"text_layers": 3}}, "params.text_layers"),
        ({"text_encoder": "transformer"}, "text_encoder"),
    ]
    for config, field in refusals:
        with pytest.raises(ValidationError) as refused:
            tuned(config)
        assert [*refused.value.error_dict] == [f"config.{field}"]
    named = {"text_encoder": "transformer"}  # what one that writes records
    assert fixed_settings.faults(writer, "language-model", named, {}) == {}
    assert [*fixed_settings.faults(writer, "regression", named, {})] == ["config.text_encoder"]


@pytest.fixture
def without_files(bert, texts, trainer, maintainer):  # noqa: F811
    """A run over a directory whose files were deleted and collected since."""
    run = finetuning.finetune(
        actor=trainer, version=bert, dataset_version=texts, config=FEW, target="kind", features=["note"]
    )
    bert.refs.all().delete()
    deletion.delete_version(actor=maintainer, version=bert)
    for days in (8, 16):  # condemned, then gone
        collected(bert.model.organization, timezone.now() + timedelta(days=days))
    return Run.objects.select_related("base_version").get(pk=run.pk)


def test_a_run_whose_base_is_gone_is_shown_with_its_findings(without_files, api, web, viewer, stranger):
    run, change = without_files, {"weight_decay": 0.1, "params": {"text_dropout": 0.3}}
    told = {"severity": "warning", "sentence": "It overfits.", "next_step": "Add rows."}
    append_event(run, "finding", code="overfitting", change=change, **told)
    assert [one["change"] for one in doctor.findings_of(run)] == [change]
    address = f"/api/v1/runs/{run.pk}"
    assert api(viewer).get(address).status_code == 200
    found = api(viewer).get(f"{address}/findings")
    assert found.status_code == 200 and found.json()["results"][0]["change"] == change, found.content
    assert web(viewer).get(f"/runs/{run.pk}/").status_code == 200
    assert api(stranger).get(f"{address}/findings").status_code == 404


def test_a_clone_asks_the_files_of_its_base_only_where_they_decide(without_files, api, trainer, viewer):
    clone = f"/api/v1/runs/{without_files.pk}/clone"
    assert api(viewer).post(clone, {}, format="json").status_code == 403
    for change in ({}, {"config": {"epochs": 2}}):
        assert api(trainer).post(clone, change, format="json").status_code == 201, "as before"
    for change in ({"vocabulary": 400}, {"architecture": "mlp", "params": {"width": 8}}, {"text_length": 9}):
        refused = api(trainer).post(clone, {"config": change}, format="json")
        error = refused.json()["errors"][0]
        assert (refused.status_code, error["code"]) == (409, "files_deleted"), refused.content
        assert "were deleted on" in error["detail"]
    ModelVersion.objects.update(deleted_at=None)
    refused = api(trainer).post(clone, {"config": {"vocabulary": 400}}, format="json")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "not_trainable"), refused.content
    assert "config.json cannot be read" in refused.json()["errors"][0]["detail"]


def test_pixels_are_asked_only_of_a_base_that_heeds_them(base, bert, texts, api, trainer):  # noqa: F811
    def posted(version, data, **settings):
        learnt = {"target": "kind", "features": ["note"]} if version == bert else {}
        body = {"dataset_version": str(data.pk), "config": FEW, **learnt, **settings}
        return [
            api(trainer).post(f"/api/v1/{address}", body, format="json")
            for address in (f"models/{version.model_id}/finetune", f"model-versions/{version.pk}/finetune-preflight")
        ]

    rows = base.dataset_version
    for version, data in ((base, rows), (bert, texts)):
        for answer in posted(version, data, pixels="letterbox"):
            error = answer.json()["errors"][0]
            assert (answer.status_code, error["attr"], error["code"]) == (400, "pixels", "not_for_base"), answer.content
            assert "Leave it out" in error["detail"]
        for settings in ({}, {"pixels": "base"}, {"pixels": None}):
            made, tried = posted(version, data, **settings)
            assert (made.status_code, tried.status_code) == (201, 202), made.content
            assert made.json()["finetune"]["pixels"] is None
        assert posted(version, data, **made.json()["finetune"])[0].status_code == 201, "what was shown can be sent back"
    space = [{"name": "learning_rate", "kind": "float", "low": 0.001, "high": 0.1}]
    body = {"dataset_version": str(rows.pk), "base_version": str(base.pk), "trials": 1, "space": space}
    searched = api(trainer).post("/api/v1/sweeps", body | {"finetune": {"pixels": "letterbox"}}, format="json")
    assert searched.status_code == 400 and searched.json()["errors"][0]["attr"] == "finetune.pixels", searched.content


def test_what_a_run_recorded_of_pixels_that_nobody_asked_for_can_be_sent_back(base, api, trainer, viewer):
    """All runs had the word for a while, and before that none, which stood for a letterbox."""
    run = Run.objects.get(pk=asked(api, trainer, base, {}).json()["id"])
    address = f"/api/v1/runs/{run.pk}"
    unsaid = {name: value for name, value in run.finetune.items() if name not in ("pixels", "format")}
    for recorded, sent in (
        (run.finetune, [{}, {"pixels": "base"}]),
        (run.finetune | {"pixels": "base"}, [{}, {"pixels": "base"}]),
        (unsaid, [{}, {"pixels": "letterbox"}]),
    ):
        Run.objects.filter(pk=run.pk).update(finetune=recorded)
        shown = api(viewer).get(address).json()["finetune"]
        assert shown["pixels"] is None
        for block in (shown | each for each in sent):
            answer = api(trainer).post(f"{address}/clone", {"finetune": block}, format="json")
            assert answer.status_code == 201 and answer.json()["finetune"] == shown, answer.content
    Run.objects.filter(pk=run.pk).update(finetune=run.finetune)
    refused = api(trainer).post(f"{address}/clone", {"finetune": {"pixels": "letterbox"}}, format="json")
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "finetune.pixels", refused.content
