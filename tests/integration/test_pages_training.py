"""The training pages: lists at a constant cost, filters, forms with errors beside their fields, comparing."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from tests import factories
from training.estimate import estimate
from training.models import MetricSeries, Run, RunEvent

pytestmark = pytest.mark.django_db


def queries(client, address):
    with CaptureQueriesContext(connection) as captured:
        assert client.get(address).status_code == 200
    return len(captured)


@pytest.fixture
def runs(organization, trainer):
    dataset = factories.DatasetFactory(organization=organization, name="iris")
    version = factories.DatasetVersionFactory(dataset=dataset, number=1)
    experiment = factories.ExperimentFactory(organization=organization, name="first")

    def make(count, **more):
        wanted = {"experiment": experiment, "dataset_version": version, "created_by": trainer} | more
        return factories.RunFactory.create_batch(count, **wanted)

    return make


def with_accuracy(run, value):
    MetricSeries.objects.create(run=run, key="accuracy", last=value, minimum=value, maximum=value)
    return run


def names(answer):
    return [run.name for run in answer.context["page"].object_list]


@pytest.mark.parametrize("name", ["runs", "home", "datasets", "models", "experiments"])
def test_a_list_of_many_costs_as_many_queries_as_a_list_of_few(name, web, trainer, runs, organization):
    client = web(trainer)
    for run in runs(3):
        with_accuracy(run, 0.5)
        version = factories.ModelVersionFactory(model__organization=organization)
        factories.RefFactory(version=version)
    few = queries(client, reverse(name))
    for run in runs(30):
        with_accuracy(run, 0.5)
        factories.DatasetVersionFactory(dataset__organization=organization)
        version = factories.ModelVersionFactory(model__organization=organization)
        factories.RefFactory(version=version)
    assert queries(client, reverse(name)) <= few
    assert few <= 25


def test_runs_are_filtered(web, trainer, runs, organization):
    runs(1, name="done", state="succeeded")
    runs(1, name="going", state="running", task="regression")
    runs(1, name="gone", state="failed", archived_at=timezone.now())
    other = factories.ExperimentFactory(organization=organization, name="second")
    runs(1, name="elsewhere", experiment=other)
    client, address = web(trainer), reverse("runs")
    assert names(client.get(address + "?state=active&sort=name")) == ["elsewhere", "going"]
    assert names(client.get(address + "?task=regression")) == ["going"]
    assert names(client.get(address + f"?experiment={other.pk}")) == ["elsewhere"]
    assert names(client.get(address + "?q=DON")) == ["done"]
    assert names(client.get(address + "?archived=on")) == ["gone"]


def test_runs_are_sorted_by_a_metric_with_those_without_it_last(web, trainer, runs):
    for name, value in (("low", 0.1), ("high", 0.9)):
        with_accuracy(runs(1, name=name)[0], value)
    runs(1, name="none")
    client, address = web(trainer), reverse("runs")
    assert names(client.get(address + "?sort=-metric:accuracy")) == ["high", "low", "none"]
    assert names(client.get(address + "?sort=metric:accuracy")) == ["low", "high", "none"]
    shown = client.get(address + "?metric=accuracy&sort=-metric:accuracy")
    assert [run.values for run in shown.context["page"].object_list] == [[0.9], [0.1], [None]]


def test_the_table_alone_is_sent_to_htmx(web, trainer, runs):
    runs(1)
    part = web(trainer).get(reverse("runs"), headers={"HX-Request": "true"}).content.decode()
    assert part.lstrip().startswith("<form") and "<html" not in part


def test_a_run_page_shows_settings_log_and_error(web, trainer, runs):
    run = runs(1, state="failed", config={"epochs": 5, "params": {"width": 8}},
               error={"code": "stalled", "sentence": "It stood still.", "next_step": "Resume it."})[0]  # fmt: skip
    RunEvent.objects.create(
        run=run, sequence=1, type="log", time=timezone.now(), payload={"level": "info", "message": "hello"}
    )
    RunEvent.objects.create(
        run=run,
        sequence=2,
        type="started",
        time=timezone.now(),
        payload={"config": {"epochs": 5, "params": {"width": 8}}},
    )
    page = web(trainer).get(reverse("run", args=[run.pk])).content.decode()
    for words in ("It stood still.", "Resume it.", "hello", "params.width", "Resume", "Clone and edit"):
        assert words in page, words
    log = b"".join(web(trainer).get(reverse("run-log", args=[run.pk])))
    assert b"info hello" in log


def test_what_the_state_forbids_is_said_and_not_an_error_page(web, trainer, runs):
    run = runs(1, state="succeeded")[0]
    answer = web(trainer).post(reverse("run-cancel", args=[run.pk]))
    assert [str(one) for one in get_messages(answer.wsgi_request)] == ["This run is succeeded already."]
    going = runs(1, state="running")[0]
    answer = web(trainer).post(reverse("run-archive", args=[going.pk]))
    assert "Cancel the run before archiving it." in [str(one) for one in get_messages(answer.wsgi_request)]


def test_archiving_offers_to_take_it_back(web, trainer, runs):
    run = runs(1, state="succeeded")[0]
    client = web(trainer)
    page = client.post(reverse("run-archive", args=[run.pk]), follow=True).content.decode()
    restore = reverse("run-restore", args=[run.pk])
    assert f'action="{restore}"' in page and "Undo" in page
    client.post(restore)
    run.refresh_from_db()
    assert run.archived_at is None


def test_a_run_is_renamed_and_a_blank_name_changes_nothing(web, trainer, runs):
    run = runs(1, name="before")[0]
    web(trainer).post(reverse("run-rename", args=[run.pk]), {"name": "after"})
    web(trainer).post(reverse("run-rename", args=[run.pk]), {"name": ""})
    run.refresh_from_db()
    assert run.name == "after"


# --- a new run ----------------------------------------------------------------------------------------


def form_of(version, **more):
    return {"dataset_version": str(version.pk), "target": "kind", "task": "classification",
            "features": ["length", "width", "colour"]} | more  # fmt: skip


def test_the_form_suggests_target_task_and_features_and_estimates(web, trainer, flowers):
    page = web(trainer).get(f"{reverse('run-new')}?version={flowers.pk}")
    form = page.context["form"]
    assert form["target"].value() == "kind" and form["task"].value() == "classification"
    assert form.chosen_features() == ["length", "width", "colour"]
    assert "240 rows × 3 features" in page.context["estimate"]


def test_a_run_is_queued_by_a_plain_form(web, trainer, flowers):
    sent = form_of(
        flowers, **{"config.epochs": "3", "config.params.width": "16", "name": "mine", "new_experiment": "new"}
    )
    answer = web(trainer).post(reverse("run-new"), sent)
    run = Run.objects.get(name="mine")
    assert answer.url == reverse("run", args=[run.pk])
    assert run.config["epochs"] == 3 and run.config["params"] == {"width": 16}
    assert run.features is None and run.experiment.name == "new"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("config.epochs", "0", "must be a whole number from 1"),
        ("config.epochs", "many", "must be a whole number from 1"),
        ("config.learning_rate", "7", "must be a number above 0"),
        ("config.params.width", "-2", "must be a whole number from 1"),
        ("task", "regression", "cannot predict"),
        ("features", [], "Choose at least one column"),
        ("features", ["no such"], "Select a valid choice"),
    ],
)
def test_an_error_stands_beside_its_field(field, value, words, web, trainer, flowers):
    answer = web(trainer).post(reverse("run-new"), form_of(flowers, **{field: value}))
    errors = answer.context["form"].errors
    assert any(words in one for some in errors.values() for one in some)
    assert set(errors) <= {field, "target"}
    assert not Run.objects.exists()


def test_changing_the_target_frees_the_old_one_and_suggests_a_task(web, trainer, flowers):
    query = {"dataset_version": str(flowers.pk), "shown_version": str(flowers.pk), "shown_target": "kind",
             "target": "length", "task": "classification", "features": ["length", "width"]}  # fmt: skip
    answer = web(trainer).get(reverse("run-new"), query, headers={"HX-Request": "true"})
    form = answer.context["form"]
    assert form["task"].value() == "regression"
    assert form.chosen_features() == ["width", "kind"]


def test_a_clone_starts_with_the_choices_of_the_run(web, trainer, flowers, queue_run):
    run = queue_run(features=["length"])
    form = web(trainer).get(f"{reverse('run-new')}?clone={run.pk}").context["form"]
    assert form["features"].value() == ["length"]
    assert form["config.epochs"].value() == "3" and form["config.importance"].value() == "false"
    assert form["config.schedule"].value() is None


# --- comparing and experiments ------------------------------------------------------------------------


def test_runs_are_compared_with_the_best_marked_and_only_differences_shown(web, trainer, runs):
    first = with_accuracy(runs(1, name="a", config={"epochs": 1, "seed": 0})[0], 0.7)
    second = with_accuracy(runs(1, name="b", config={"epochs": 2, "seed": 0})[0], 0.9)
    address = f"{reverse('compare')}?run={first.pk}&run={second.pk}"
    answer = web(trainer).get(address)
    assert [cell["best"] for cell in answer.context["metrics"][0]["cells"]] == [False, True]
    assert [row["name"] for row in answer.context["settings"]] == ["epochs"]
    every = web(trainer).get(address + "&settings=all").context["settings"]
    assert {"seed", "dataset", "target"} <= {row["name"] for row in every}


def test_an_experiment_is_made_once(web, trainer):
    client = web(trainer)
    assert client.post(reverse("experiments"), {"name": "one"}).status_code == 302
    assert "There is an experiment" in client.post(reverse("experiments"), {"name": "one"}).content.decode()


def ended(run, seconds, epochs):
    finished = timezone.now()
    Run.objects.filter(pk=run.pk).update(
        state="succeeded",
        attempt=1,
        epoch=epochs,
        started_at=finished - timedelta(seconds=seconds),
        finished_at=finished,
    )


def test_an_estimate_goes_by_runs_of_the_same_kind_alone(web, trainer, flowers):
    """A language model that took an hour says nothing about a table."""
    web(trainer).post(reverse("run-new"), form_of(flowers, **{"config.epochs": "10", "name": "table"}))
    ended(Run.objects.get(name="table"), seconds=10, epochs=10)
    other = Run.objects.get(name="table")
    other.pk, other.name, other.task = uuid4(), "texts", "language-model"
    other.save(force_insert=True)
    ended(other, seconds=36_000, epochs=1)
    found = estimate(flowers, "classification", "kind", ["length", "width", "colour"], {"epochs": 20})
    assert found.measured and found.seconds == pytest.approx(20, rel=0.01)


def test_an_estimate_of_images_counts_them_and_claims_no_parameters(flowers):
    flowers.columns = [{"name": "photo", "type": "image"}, {"name": "kind", "type": "category"}]
    found = estimate(flowers, "classification", "kind", ["photo"], {})
    assert found.parameters is None and not found.measured and found.seconds > 1
    assert "parameters" not in found.words
