"""Training a version again from its lineage: equal to the bit, or a certificate that says what differs; and who may."""

import pytest

from registry.models import ModelVersion, Ref
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from tests.integration.training_by_api import trained_version
from training.jobs import train
from training.models import ReplayCertificate, Run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def version(queue_run):
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model").get()


def asked(api, actor, version):
    answer = api(actor).post(f"/api/v1/model-versions/{version.pk}/replay")
    assert answer.status_code == 201, answer.content
    assert answer.json()["replays"] == str(version.pk)
    return Run.objects.get(pk=answer.json()["id"])


def test_a_replay_is_equal_to_the_bit_and_commits_nothing(version, api, web, trainer, viewer):
    run = asked(api, trainer, version)
    train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.output_version) == ("succeeded", None), run.error
    assert ModelVersion.objects.count() == 1
    assert Ref.objects.get(model=version.model, kind="branch", name="main").version == version
    (told,) = api(viewer).get(f"/api/v1/model-versions/{version.pk}/replays").json()["results"]
    assert told["equal"] and told["run"] == str(run.pk)
    sha256 = version.tree["model.safetensors"]["sha256"]
    assert told["details"]["sha256"] == {"recorded": sha256, "replayed": sha256}
    assert told["details"]["weights"] is None
    assert told["details"]["metrics"] == told["details"]["environment"] == told["details"]["settings"] == []
    page = web(viewer).get(f"/model-versions/{version.pk}/replays").content.decode()
    assert "Equal to the bit" in page and ">Replay</button>" not in page


def test_a_tampered_setting_makes_a_difference_that_is_told(version, api, web, trainer):
    run = asked(api, trainer, version)
    Run.objects.filter(pk=run.pk).update(config=run.config | {"seed": 4})
    train(str(run.pk))
    certificate = ReplayCertificate.objects.get(run=run)
    assert not certificate.equal
    details = certificate.details
    assert {"name": "seed", "recorded": 3, "replayed": 4} in details["settings"]
    assert details["weights"]["changed"] > 0 and details["weights"]["largest"] > 0
    assert details["environment"] == []
    page = web(trainer).get(f"/model-versions/{version.pk}/replays").content.decode()
    assert "Different" in page and "seed 3 → 4" in page and "tensors differ, by" in page
    assert ModelVersion.objects.count() == 1


def test_other_threads_are_told_of_as_environment(version, api, trainer):
    run = asked(api, trainer, version)
    assert run.config["threads"] == 1
    ModelVersion.objects.filter(pk=version.pk).update(
        lineage=version.lineage
        | {"environment": version.lineage["environment"] | {"threads": 7, "versions": {"torch": "1.0"}}}
    )
    train(str(run.pk))
    certificate = ReplayCertificate.objects.get(run=run)
    assert certificate.equal
    told = {one["name"]: one["recorded"] for one in certificate.details["environment"]}
    assert told["threads"] == 7 and told["torch"] == "1.0"


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_fine_tune_is_replayed_from_its_base(version, organization, tmp_path, api, trainer, mode):
    (tmp_path / "more").mkdir()
    data = factories.ready_version(
        factories.DatasetFactory(organization=organization), flower_rows(120), tmp_path / "more"
    )
    answer = api(trainer).post(
        f"/api/v1/models/{version.model_id}/finetune",
        {"dataset_version": str(data.pk), "mode": mode, "config": {"epochs": 2, "threads": 1}}, format="json",
    )  # fmt: skip
    train(answer.json()["id"])
    tuned = Run.objects.get(pk=answer.json()["id"]).output_version
    run = asked(api, trainer, tuned)
    train(str(run.pk))
    certificate = ReplayCertificate.objects.get(version=tuned)
    assert certificate.equal, certificate.details


TEXTS = {
    "texts": {"task": "classification", "target": "kind", "features": ["note"],
              "config": {"text_encoder": "transformer", "params": {"text_width": 32, "text_layers": 1, "text_heads": 2}}},
    "language": {"task": "language-model", "target": "note",
                 "config": {"text_length": 16, "params": {"text_width": 32, "text_layers": 1, "text_heads": 2}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(TEXTS))
def test_readers_and_writers_of_texts_come_out_again_and_so_do_their_fine_tunes(
    organization, tmp_path, api, trainer, kind
):
    rows = [{"note": f"the item {n} is very {word}", "kind": word} for n in range(30) for word in ("good", "bad")]
    data = factories.ready_version(factories.DatasetFactory(organization=organization), rows, tmp_path)
    quick = {"epochs": 2, "threads": 1, "importance": False}
    body = TEXTS[kind] | {"dataset_version": str(data.pk), "config": quick | TEXTS[kind]["config"]}
    first = trained_version(api(trainer).post("/api/v1/runs", body, format="json"))
    body = {"dataset_version": str(data.pk), "mode": "lora", "rank": 2, "config": quick}
    tuned = trained_version(api(trainer).post(f"/api/v1/models/{first.model_id}/finetune", body, format="json"))
    for version in (first, tuned):
        train(str(asked(api, trainer, version).pk))
        certificate = ReplayCertificate.objects.get(version=version)
        assert certificate.equal, certificate.details


def test_a_second_replay_waits_for_the_first_and_a_version_without_a_run_has_none(version, api, trainer, organization):
    asked(api, trainer, version)
    again = api(trainer).post(f"/api/v1/model-versions/{version.pk}/replay")
    assert (again.status_code, again.json()["errors"][0]["code"]) == (409, "in_progress")
    uploaded = factories.ModelVersionFactory(model__organization=organization)
    alone = api(trainer).post(f"/api/v1/model-versions/{uploaded.pk}/replay")
    assert (alone.status_code, alone.json()["errors"][0]["code"]) == (409, "no_run")


def test_who_may_replay(version, api, web, viewer, stranger, trainer):
    assert api(viewer).post(f"/api/v1/model-versions/{version.pk}/replay").status_code == 403
    assert web(viewer).post(f"/model-versions/{version.pk}/replay").status_code == 403
    for path in ("replay", "replays"):
        assert api(stranger).post(f"/api/v1/model-versions/{version.pk}/{path}").status_code in (404, 405)
    assert web(stranger).get(f"/model-versions/{version.pk}/replays").status_code == 404
    assert web(stranger).post(f"/model-versions/{version.pk}/replay").status_code == 404
    assert not Run.objects.filter(replays=version).exists()
    assert f"/model-versions/{version.pk}/replays" in web(viewer).get(f"/model-versions/{version.pk}/").content.decode()
    assert web(trainer).post(f"/model-versions/{version.pk}/replay").status_code == 302
    part = web(trainer).get(f"/model-versions/{version.pk}/replays").content.decode()
    assert "every 2s" in part and ">Replay</button>" not in part
