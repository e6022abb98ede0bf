"""What runs report, in and out of the database: exact, replayable, downsampled without losing extremes."""

import random
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
from django.db import OperationalError, connection

from dlplatform.jobs import LeaseLost
from tests import factories
from training import records
from training.curves import curves, downsampled
from training.models import MetricPoint, MetricSeries, Run, RunEvent
from training.records import append_spool, clean_json, events_after

pytestmark = pytest.mark.django_db(transaction=True)
NOW = datetime(2026, 1, 2, tzinfo=UTC).isoformat()


@pytest.fixture
def run(organization):
    made = factories.RunFactory(experiment=factories.ExperimentFactory(organization=organization))
    Run.objects.filter(pk=made.pk).update(state="running", lease_epoch=3)
    made.refresh_from_db()
    return made


def metric(sequence, step, **values):
    return {"sequence": sequence, "type": "metric", "time": NOW, "step": step, "epoch": 1, "values": values}


def log(sequence, message):
    return {"sequence": sequence, "type": "log", "time": NOW, "level": "info", "message": message}


def test_lines_are_numbered_and_come_back_as_they_were(run):
    append_spool(run, [log(1, "first"), metric(2, 10, loss=0.5, other=2.0), log(3, "last")])
    found = events_after(run.pk, 0)
    assert [(event["sequence"], event["type"]) for event in found] == [(1, "log"), (2, "metric"), (3, "log")]
    assert found[1]["values"] == {"loss": 0.5, "other": 2.0} and found[1]["step"] == 10
    assert events_after(run.pk, 2) == found[2:]


def test_a_batch_is_written_once_even_when_it_is_sent_again(run):
    lines = [metric(number, number, loss=1 / number) for number in range(1, 51)]
    append_spool(run, lines)
    stale = Run.objects.get(pk=run.pk)
    stale.spool_sequence = 0
    with pytest.raises(LeaseLost):
        append_spool(stale, lines)
    assert MetricPoint.objects.count() == 50
    assert Run.objects.get(pk=run.pk).last_sequence == 50


def test_a_step_that_a_resumed_engine_reports_again_changes_nothing(run):
    append_spool(run, [metric(1, 10, loss=0.5)])
    append_spool(run, [metric(2, 10, loss=0.5), metric(3, 11, loss=0.4)])
    assert list(MetricPoint.objects.order_by("step").values_list("step", "value")) == [(10, 0.5), (11, 0.4)]


def test_nothing_is_written_under_an_old_epoch_or_after_the_end(run):
    old = Run.objects.get(pk=run.pk)
    old.lease_epoch = 2
    with pytest.raises(LeaseLost):
        append_spool(old, [log(1, "zombie")])
    Run.objects.filter(pk=run.pk).update(state="succeeded")
    with pytest.raises(LeaseLost):
        append_spool(run, [log(1, "late")])
    assert not RunEvent.objects.exists()


@pytest.mark.parametrize("line", [metric(1, 1, loss=0.5), log(1, "cut")], ids=["metric", "log"])
def test_a_connection_cut_in_the_middle_of_a_copy_is_an_error_of_djangos(run, line, monkeypatch):
    """The orchestrator waits for the database on Django's errors; a bare psycopg error would end the attempt."""
    copying = records._copying

    @contextmanager
    def cut(cursor, statement):
        with copying(cursor, statement) as copy:
            terminate(cursor.connection.info.backend_pid)
            yield copy

    monkeypatch.setattr(records, "_copying", cut)
    with pytest.raises(OperationalError):
        append_spool(run, [line])
    connection.close()
    monkeypatch.undo()
    append_spool(run, [line])
    assert [event["sequence"] for event in events_after(run.pk, 0)] == [1]


def terminate(backend: int) -> None:
    """End another connection of the database and wait until it is gone."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": None}, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])


def test_nan_and_infinity_are_gaps_and_summaries_ignore_them(run):
    append_spool(run, [metric(1, 1, loss=3.0), metric(2, 2, loss=float("nan")), metric(3, 3, loss=float("inf"))])
    append_spool(run, [metric(4, 4, loss=1.0)])
    series = MetricSeries.objects.get()
    assert (series.last, series.minimum, series.maximum) == (1.0, 1.0, 3.0)
    assert downsampled(series, 100) == [(1, 3.0), (4, 1.0)]


def test_log_lines_lose_their_control_characters_and_nothing_else(run):
    append_spool(run, [log(1, "a\x00b\x1b[31mred\tend\\u0000 kept")])
    assert events_after(run.pk, 0)[0]["message"] == "ab[31mred\tend\\u0000 kept"
    assert clean_json({"x": ["\x00", {"y": "\x07z"}]}) == '{"x":["",{"y":"z"}]}'


def test_a_long_curve_keeps_every_extreme(run):
    generator = random.Random(1)
    values = [generator.gauss(0, 1) for _ in range(20_000)]
    values[7_777], values[13_131] = 50.0, -50.0
    append_spool(run, [metric(number + 1, number, loss=value) for number, value in enumerate(values)])
    found = curves(run, ["loss"], 200)["loss"]
    assert len(found) <= 200 and found[0] == (0, values[0]) and found[-1] == (19_999, values[-1])
    assert (7_777, 50.0) in found and (13_131, -50.0) in found
    assert [step for step, _ in found] == sorted(step for step, _ in found)
    assert set(found) <= set(enumerate(values))
    assert curves(run, ["nothing"], 200) == {}


@pytest.mark.parametrize("stride", [1, 3, 100, 5000])
def test_a_curve_keeps_extremes_at_every_density_and_however_it_was_written(run, stride):
    """Points, narrow buckets and wide ones are each the source of some of these curves."""
    generator = random.Random(stride)
    values = {number * stride: generator.gauss(0, 1) for number in range(3000)}
    top, bottom = 1234 * stride, 2345 * stride
    values |= {top: 9.0, bottom: -9.0}
    lines = [metric(number, step, loss=value) for number, (step, value) in enumerate(values.items(), 1)]
    for begin in range(0, len(lines), 700):
        append_spool(run, lines[begin : begin + 700])
    for most in (20, 100, 1000):
        found = curves(run, None, most)["loss"]
        assert most / 5 < len(found) <= most
        assert found == sorted(found) and set(found) <= set(values.items())
        assert {(top, 9.0), (bottom, -9.0), (0, values[0]), (2999 * stride, values[2999 * stride])} <= set(found)


def test_a_constant_curve_reaches_its_last_step(run):
    append_spool(run, [metric(number, number, rate=0.001) for number in range(1, 5001)])
    found = curves(run, None, 100)["rate"]
    assert found[0] == (1, 0.001) and found[-1] == (5000, 0.001)


def test_a_step_that_comes_again_stays_as_it_was(run):
    append_spool(run, [metric(1, 1, loss=1.0), metric(2, 2, loss=2.0)])
    append_spool(run, [metric(3, 2, loss=7.0), metric(4, 3, loss=3.0, other=1.0), metric(5, 3, other=2.0)])
    assert curves(run, None, 100) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)], "other": [(3, 1.0)]}


def test_runs_are_listed_filtered_and_ordered_by_a_metric(run, trainer, api):
    experiment = run.experiment
    others = [factories.RunFactory(experiment=experiment, dataset_version=run.dataset_version) for _ in range(3)]
    for value, other in zip((0.2, 0.9, 0.5), others, strict=True):
        MetricSeries.objects.create(run=other, key="accuracy", last=value)
    best_first = api(trainer).get("/api/v1/runs?ordering=-metric:accuracy&limit=2").json()
    assert [row["id"] for row in best_first["results"]] == [str(others[1].pk), str(others[2].pk)]
    rest = api(trainer).get(best_first["next"].replace("http://testserver", "")).json()
    assert [row["id"] for row in rest["results"]] == [str(others[0].pk)]
    assert [row["id"] for row in api(trainer).get("/api/v1/runs?state=running").json()["results"]] == [str(run.pk)]
    assert len(api(trainer).get(f"/api/v1/runs?experiment={experiment.pk}").json()["results"]) == 4
    assert len(api(trainer).get(f"/api/v1/runs?search={run.name}").json()["results"]) >= 1
    for ordering in ("name", "-state", "started_at", "-finished_at"):
        assert api(trainer).get(f"/api/v1/runs?ordering={ordering}").status_code == 200
    for query in ("state=x", "experiment=x", "ordering=experiment__organization__name", "ordering=-metric"):
        assert api(trainer).get(f"/api/v1/runs?{query}").status_code == 400, query


def test_a_list_of_runs_costs_the_same_queries_however_long(run, trainer, api, django_assert_max_num_queries):
    for _ in range(20):
        factories.RunFactory(experiment=run.experiment, dataset_version=run.dataset_version)
    with django_assert_max_num_queries(6):
        assert len(api(trainer).get("/api/v1/runs").json()["results"]) == 21


def test_runs_through_the_api(run, trainer, viewer, api, tmp_path):
    from tests.integration.conftest import flower_rows

    dataset = factories.DatasetFactory(organization=run.experiment.organization, name="flowers")
    version = factories.ready_version(dataset, flower_rows(), tmp_path)
    body = {"dataset_version": str(version.pk), "task": "classification", "target": "kind", "config": {"epochs": 2}}
    made = api(trainer).post("/api/v1/runs", body | {"experiment": str(run.experiment_id)}, format="json")
    assert made.status_code == 201, made.content
    url = f"/api/v1/runs/{made.json()['id']}"
    assert api(viewer).post(f"{url}/cancel").status_code == 403
    assert api(trainer).delete(url).status_code == 409
    assert api(trainer).post(f"{url}/cancel").json()["state"] == "cancelled"
    assert api(trainer).post(f"{url}/cancel").status_code == 409
    assert api(trainer).post(f"{url}/resume").json()["state"] == "queued"
    assert api(trainer).post(f"{url}/resume").status_code == 409
    clone = api(trainer).post(f"{url}/clone", {"config": {"seed": 5}}, format="json").json()
    assert clone["config"]["seed"] == 5 and clone["config"]["epochs"] == 2
    other = {"dataset_version": str(version.pk), "name": "again"}
    assert api(trainer).post(f"{url}/clone", other, format="json").json()["name"] == "again"
    api(trainer).post(f"{url}/cancel")
    assert api(trainer).delete(url).status_code == 204
    assert made.json()["id"] in [row["id"] for row in api(trainer).get("/api/v1/runs?archived=1").json()["results"]]
    for wrong, attr in (
        ({"dataset_version": "00000000-0000-4000-8000-000000000000"}, "dataset_version"),
        ({"experiment": "00000000-0000-4000-8000-000000000000"}, "experiment"),
        ({"config": {"epochs": "many"}}, "config.epochs"),
        ({"task": "poetry"}, "task"),
    ):
        refused = api(trainer).post("/api/v1/runs", body | wrong, format="json")
        assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == attr


def test_metrics_and_logs_of_a_run_through_the_api(run, viewer, api):
    append_spool(run, [log(1, "one"), metric(2, 5, loss=0.25), log(3, "two")])
    url = f"/api/v1/runs/{run.pk}"
    assert api(viewer).get(f"{url}/metrics?keys=loss").json() == {"series": {"loss": [[5, 0.25]]}}
    first = api(viewer).get(f"{url}/logs?limit=1").json()
    assert [line["message"] for line in first["results"]] == ["one"]
    rest = api(viewer).get(f"{url}/logs?after={first['after']}").json()
    assert [line["message"] for line in rest["results"]] == ["two"]
    for query in ("metrics?max_points=1", "logs?after=x", "logs?limit=0"):
        assert api(viewer).get(f"{url}/{query}").status_code == 400


def test_experiments_through_the_api(trainer, organization, api):
    made = api(trainer).post("/api/v1/experiments", {"name": "screening"}, format="json")
    assert made.status_code == 201
    assert api(trainer).post("/api/v1/experiments", {"name": "screening"}, format="json").status_code == 400
    assert api(trainer).get(f"/api/v1/experiments/{made.json()['id']}").json()["name"] == "screening"
    assert [row["name"] for row in api(trainer).get("/api/v1/experiments").json()["results"]] == ["screening"]
