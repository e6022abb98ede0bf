"""Findings of a run on its page, in the API and as a run with other settings; and who may."""

import pytest

from tests import factories
from tests.integration.conftest import QUICK
from training import doctor
from training.jobs import train
from training.models import Run, RunEvent
from training.records import append_event

pytestmark = pytest.mark.django_db(transaction=True)
WILD = QUICK | {"learning_rate": 1.0, "epochs": 20, "early_stopping": False, "schedule": "constant", "warmup": 0.0}


@pytest.fixture
def wild(queue_run):
    """A run whose steps are far too large."""
    run = queue_run(WILD, task="regression", target="length", features=["width"])
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "succeeded", run.error
    return run


@pytest.fixture
def noticed(organization, trainer):
    """A run with a finding, without any training."""
    experiment = factories.ExperimentFactory(organization=organization)
    run = factories.RunFactory(experiment=experiment, created_by=trainer, config={"params": {"width": 32}, "epochs": 5})
    append_event(run, "finding", code="overfitting", severity="warning", sentence="It <overfits>.", next_step="Add rows.",
                 change={"weight_decay": 0.05, "params": {"dropout": 0.3}})  # fmt: skip
    return run


def test_a_finding_arrives_in_the_events_the_api_and_the_page(wild, api, web, viewer):
    results = api(viewer).get(f"/api/v1/runs/{wild.pk}/findings").json()["results"]
    said = {one["code"]: one for one in results}
    assert said["divergence"]["change"] == {"learning_rate": 0.33} and said["divergence"]["time"]
    assert RunEvent.objects.filter(run=wild, type="finding").count() == len(results)
    page = web(viewer).get(f"/runs/{wild.pk}/").content.decode()
    assert "Training diverges" in page and "Relaunch with" not in page


def test_a_relaunch_is_a_copy_with_the_suggested_settings(noticed, web, trainer):
    page = web(trainer).get(f"/runs/{noticed.pk}/?part=doctor", headers={"HX-Request": "true"}).content.decode()
    assert "It &lt;overfits&gt;." in page and "Relaunch with weight_decay 0.05, dropout 0.3" in page
    answer = web(trainer).post(f"/runs/{noticed.pk}/relaunch", {"code": "overfitting"})
    made = Run.objects.get(cloned_from=noticed)
    assert answer.url == f"/runs/{made.pk}/"
    assert made.config["weight_decay"] == 0.05 and made.config["epochs"] == 5
    assert made.config["params"] == {"width": 32, "dropout": 0.3}


def test_a_finding_that_is_not_there_relaunches_nothing(noticed, web, trainer):
    answer = web(trainer).post(f"/runs/{noticed.pk}/relaunch", {"code": "dead_units"}, follow=True)
    assert "no finding that suggests other settings" in answer.content.decode()
    assert not Run.objects.exclude(pk=noticed.pk).exists()


def test_a_viewer_reads_and_cannot_relaunch_and_a_stranger_sees_nothing(noticed, api, web, viewer, stranger):
    assert web(viewer).post(f"/runs/{noticed.pk}/relaunch", {"code": "overfitting"}).status_code == 403
    assert api(stranger).get(f"/api/v1/runs/{noticed.pk}/findings").status_code == 404
    assert web(stranger).post(f"/runs/{noticed.pk}/relaunch", {"code": "overfitting"}).status_code == 404
    assert not Run.objects.exclude(pk=noticed.pk).exists()


def test_what_is_said_again_after_a_start_from_nothing_is_shown_once(noticed):
    append_event(
        noticed, "finding", code="overfitting", severity="warning", sentence="Again.", next_step="", change=None
    )
    assert [one["sentence"] for one in doctor.findings_of(noticed)] == ["It <overfits>."]


def test_samples_of_a_language_model_stand_newest_first(organization, web, viewer):
    experiment = factories.ExperimentFactory(organization=organization)
    run = factories.RunFactory(experiment=experiment, task="language-model", target="text")
    for step in (10, 20):
        for text in ("Once⟶ upon", "The<b>⟶ end"):
            append_event(run, "sample", step=step, text=f"{text} {step}")
    page = web(viewer).get(f"/runs/{run.pk}/").content.decode()
    assert page.index("Step 20") < page.index("upon 20") < page.index("end 20") < page.index("Step 10")
    assert "The&lt;b&gt;</span> ⟶  end 20" in page
    Run.objects.filter(pk=run.pk).update(
        evaluation={
            "rows": 3,
            "held_out": "x",
            "metrics": {},
            "baseline": {"kind": "y", "metrics": {}},
            "samples": ["A⟶b"],
        }
    )
    part = web(viewer).get(f"/runs/{run.pk}/?part=writings", headers={"HX-Request": "true"}).content.decode()
    assert part.index("The finished model") < part.index("Step 20")


def test_worst_rows_of_images_show_thumbnails_to_those_who_may_see_the_data(organization, web, viewer, stranger):
    from django.contrib.auth.models import Permission

    from training.models import ExperimentUserPermission

    version = factories.DatasetVersionFactory(
        dataset__organization=organization, columns=[{"name": "image", "type": "image"}, {"name": "y", "type": "category"}],
        images={"index": "0" * 64, "packs": []},
    )  # fmt: skip
    experiment = factories.ExperimentFactory(organization=organization)
    worst = [{"row": 1, "actual": "a", "predicted": "b", "probability": 0.9, "values": {"image": "c" * 64}}]
    run = factories.RunFactory(
        experiment=experiment, dataset_version=version, state="succeeded",
        evaluation={"rows": 3, "held_out": "x", "metrics": {}, "baseline": {"kind": "y", "metrics": {}}, "worst": worst},
    )  # fmt: skip
    thumbnail = f"{'c' * 64}?thumbnail=1"
    assert thumbnail in web(viewer).get(f"/runs/{run.pk}/").content.decode()
    view = Permission.objects.get(codename="view_experiment", content_type__app_label="training")
    ExperimentUserPermission.objects.create(user=stranger, permission=view, content_object=experiment)
    shared = web(stranger).get(f"/runs/{run.pk}/").content.decode()
    assert thumbnail not in shared and "c" * 64 in shared
