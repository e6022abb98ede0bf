"""Rows of a dataset version through a model, into a dataset version: as online, once, and on after a crash."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from django.urls import reverse

from datasets.jobs import ingest
from datasets.models import Dataset, DatasetVersion
from datasets.services import local_parts
from dlplatform.cron import reconcile_batches
from dlplatform.engine.errors import EngineError
from registry.models import ModelVersion
from registry.serving import batch_runtime, batches, pieces, predicting
from registry.serving.batches import folder_of, sweep_folders
from registry.serving.cache import PredictorCache
from registry.serving.jobs import predict_dataset
from registry.serving.models import BatchPrediction
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def version(queue_run):
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model__organization").get()


@pytest.fixture
def others(organization, tmp_path):
    """Flowers of another dataset, with a column that the model does not know and some values missing."""
    rows = [{**row, "note": f"n{number}"} for number, row in enumerate(flower_rows(100))]
    rows[3]["length"] = rows[4]["colour"] = ""
    (tmp_path / "others").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="others")
    return factories.ready_version(dataset, rows, tmp_path / "others", number=1)


def asked(api, actor, version, data, **more):
    body = {"version": str(version.pk), "dataset_version": str(data.pk), **more}
    return api(actor).post("/api/v1/batch-predictions", body, format="json")


def ended(batch):
    predict_dataset(str(batch.pk))
    batch.refresh_from_db()
    return batch


def table_of(data):
    return pq.read_table(local_parts(data)[0])


def test_every_row_gets_the_answer_that_it_gets_online(version, others, trainer, api):
    answer = asked(api, trainer, version, others)
    assert answer.status_code == 202 and answer.json()["state"] == "queued", answer.content
    batch = ended(BatchPrediction.objects.get())
    assert batch.state == "succeeded", batch.error
    ingest(str(batch.output_version_id))
    made = DatasetVersion.objects.select_related("dataset").get(pk=batch.output_version_id)
    assert made.state == "ready" and made.rows == 100, made.problems
    assert made.dataset.name == f"others, predicted by {version.model.name}" and "others" in made.dataset.description
    table = table_of(made)
    assert table.column_names[:5] == ["length", "width", "colour", "kind", "note"]
    rows = table.to_pylist()
    inputs = [column["name"] for column in version.signature["inputs"]]
    online = PredictorCache(1 << 30).get(version.pk).predict([{name: row[name] for name in inputs} for row in rows])
    assert [row["predicted"] for row in rows] == [one["label"] for one in online]
    assert [row["probability of a"] for row in rows] == pytest.approx([one["probabilities"]["a"] for one in online])
    assert not folder_of(batch.pk).exists()
    shown = api(trainer).get(f"/api/v1/batch-predictions/{batch.pk}").json()
    assert shown["state"] == "succeeded" and shown["output_version"] == str(made.pk) and shown["progress"] == 1.0


def test_a_second_one_of_the_same_name_is_a_further_version(version, others, trainer, api):
    for number in (1, 2):
        batch = batches.request_batch(actor=trainer, version=version, dataset_version=others, name="scores")
        assert ended(batch).output_version.number == number
    assert Dataset.objects.filter(name="scores").count() == 1


class Killed(BaseException):
    """As `kill -9`: nothing of the work's own handles it."""


def test_a_killed_worker_is_followed_by_one_that_goes_on_and_there_is_one_result(version, others, trainer, monkeypatch):
    monkeypatch.setattr(predicting, "ROWS", 10)
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    kept = predicting.Predicting._answer

    def die_in_the_middle(self, predictor, rows, first, path):
        if first == 50:
            raise Killed
        kept(self, predictor, rows, first, path)

    monkeypatch.setattr(predicting.Predicting, "_answer", die_in_the_middle)
    with pytest.raises(Killed):
        predict_dataset(str(batch.pk))
    BatchPrediction.objects.update(lease_expires_at="2000-01-01T00:00Z")
    assert len(list(folder_of(batch.pk).glob("*.parquet"))) == 5
    reconcile_batches()
    batch.refresh_from_db()
    assert batch.state == "queued"
    BatchPrediction.objects.update(not_before=None)
    answered = []
    monkeypatch.setattr(
        predicting.Predicting, "_answer",
        lambda self, predictor, rows, first, path: (answered.append(first), kept(self, predictor, rows, first, path)),
    )  # fmt: skip
    assert ended(batch).state == "succeeded" and answered == [50, 60, 70, 80, 90]
    assert DatasetVersion.objects.filter(dataset__name=batch.name).count() == 1


def test_what_older_code_began_is_gone_on_with_behind_its_last_file(version, others, trainer, monkeypatch):
    """It numbered its files, and took as many rows for each as it liked."""
    whole = batches.request_batch(actor=trainer, version=version, dataset_version=others, name="at once")
    ingest(str(ended(whole).output_version_id))
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others, name="in parts")
    folder_of(batch.pk).mkdir(parents=True)
    kept, answered = predicting.Predicting._answer, []

    def interrupted(self, predictor, rows, first, path):
        if first == 30:
            raise Killed
        kept(self, predictor, rows, first, path)

    monkeypatch.setattr(predicting, "ROWS", 10)
    monkeypatch.setattr(predicting.Predicting, "_answer", interrupted)
    with pytest.raises(Killed):
        predict_dataset(str(batch.pk))
    for number in range(3):
        made = folder_of(batch.pk) / f"from-{10 * number:010d}.parquet"
        made.rename(folder_of(batch.pk) / f"{number:07d}.parquet")
    (folder_of(batch.pk) / "from-0000000030.parquet").write_bytes(b"")  # the machine lost its power
    BatchPrediction.objects.filter(pk=batch.pk).update(lease_expires_at="2000-01-01T00:00Z")
    reconcile_batches()
    BatchPrediction.objects.filter(pk=batch.pk).update(not_before=None)
    monkeypatch.setattr(predicting, "ROWS", 16)
    monkeypatch.setattr(
        predicting.Predicting, "_answer",
        lambda self, predictor, rows, first, path: (answered.append(first), kept(self, predictor, rows, first, path)),
    )  # fmt: skip
    batch.refresh_from_db()
    assert ended(batch).state == "succeeded" and answered == [30, 32, 48, 64, 80, 96]
    ingest(str(batch.output_version_id))
    one, other = (table_of(DatasetVersion.objects.get(pk=each.output_version_id)) for each in (whole, batch))
    assert one.drop_columns(["probability"]).column_names == other.drop_columns(["probability"]).column_names
    for name in ("length", "note", "predicted"):
        assert one.column(name).to_pylist() == other.column(name).to_pylist(), name


def test_the_model_is_asked_for_some_rows_at_a_time(version, others, trainer, monkeypatch):
    sizes = []
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1200)
    monkeypatch.setattr(predicting, "AT_ONCE_BYTES", 12)  # of letters: of some colours

    class Counting:
        def __init__(self, real):
            self.real = real

        def predict(self, rows):
            sizes.append(len(rows))
            return self.real.predict(rows)

    real = predicting.loaded
    monkeypatch.setattr(predicting, "loaded", lambda one: Counting(real(one)))
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    assert ended(batch).state == "succeeded" and sum(sizes) == 100 and {*sizes} <= {1, 2, 3, 4, 5}
    bad = batches.request_batch(actor=trainer, version=version, dataset_version=others, name="bad")
    monkeypatch.setattr(
        predicting, "_as_sent", lambda value: "no number" if value == others_length(others, 50) else value
    )
    assert "Row 51:" in ended(bad).error["sentence"]


@pytest.fixture
def compiling(monkeypatch):
    """The version wants to be compiled; what a compiler would do is told by the test."""

    class Compiled:
        there, makes, asked = None, None, ()

        def __init__(self, folder, waiting):
            Compiled.asked = []

        def found(self, package, network):
            return self._told("found", Compiled.there)

        def runner(self, package, network):
            return self._told("made", Compiled.makes)

        def _told(self, what, runner):
            Compiled.asked.append(what)
            if isinstance(runner, Exception):
                raise runner
            return runner

    def wanting(version):
        predictor = real(version)
        predictor.compiles = True
        return predictor

    real = predicting.loaded
    monkeypatch.setattr(predicting, "loaded", wanting)
    monkeypatch.setattr(batch_runtime, "Compiler", Compiled)
    monkeypatch.setattr(predicting, "ROWS", 40)
    return Compiled


class Answers:
    """In a network's place: for every row the first class."""

    def __init__(self):
        self.rows = 0

    def __call__(self, inputs):
        self.rows += len(inputs.numbers)
        return np.tile(np.array([[[1.0, 0.0, 0.0]]]), (1, len(inputs.numbers), 1))


@pytest.mark.parametrize(
    ("there", "makes", "worth", "asked", "compiled", "said"),
    [
        (Answers(), None, 0.0, ["found"], 100, "answered compiled"),
        (None, None, 1e9, ["found"], 0, "answered not compiled: it was not compiled here before"),
        (None, Answers(), 0.0, ["found", "made"], 60, "answered compiled"),
        (None, EngineError("no_compiler", "No g++."), 0.0, ["found", "made"], 0, "answered not compiled: No g++."),
        (OSError("no room"), Answers(), 0.0, ["found"], 0, "answered not compiled: no room"),
    ],
)
def test_a_version_that_wants_it_is_answered_compiled_where_it_is_there_or_pays(
    version, others, trainer, compiling, monkeypatch, caplog, there, makes, worth, asked, compiled, said
):
    caplog.set_level("INFO", "registry.serving.batch_runtime")
    compiling.there, compiling.makes = there, makes
    monkeypatch.setattr(batch_runtime, "WORTH_SECONDS", worth)
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    assert ended(batch).state == "succeeded" and compiling.asked == asked
    assert sum(one.rows for one in (there, makes) if isinstance(one, Answers)) == compiled
    assert f"batch prediction {batch.pk}: {said}" in caplog.text


def test_others_say_nothing_of_compiling(version, others, trainer, caplog):
    caplog.set_level("INFO", "registry.serving.batch_runtime")
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    assert ended(batch).state == "succeeded" and "compiled" not in caplog.text


def test_it_can_be_cancelled_while_it_waits_and_while_it_works(version, others, trainer, api, monkeypatch):
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    answer = api(trainer).post(f"/api/v1/batch-predictions/{batch.pk}/cancel")
    assert answer.status_code == 200 and answer.json()["state"] == "cancelled"
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    monkeypatch.setattr("registry.workbench.RENEW_SECONDS", 0.0)
    kept = predicting.Predicting._answer

    def cancel_meanwhile(self, *given):
        kept(self, *given)
        batches.cancel_batch(actor=trainer, batch=BatchPrediction.objects.get(pk=batch.pk))

    monkeypatch.setattr(predicting.Predicting, "_answer", cancel_meanwhile)
    assert ended(batch).state == "cancelled" and not folder_of(batch.pk).exists()
    assert not DatasetVersion.objects.filter(dataset__name=batch.name).exists()


def test_data_that_the_model_cannot_read_are_refused_before_anything_is_queued(
    version, organization, trainer, api, tmp_path
):
    (tmp_path / "odd").mkdir()
    dataset = factories.DatasetFactory(organization=organization, name="odd")
    rows = [{"length": row["colour"], "colour": row["colour"]} for row in flower_rows(30)]
    odd = factories.ready_version(dataset, rows, tmp_path / "odd", number=1)
    answer = asked(api, trainer, version, odd)
    told = answer.json()["errors"][0]
    assert answer.status_code == 400 and told["attr"] == "dataset_version" and "width" in told["detail"]
    odd.columns = [*odd.columns, {"name": "width", "type": "number"}]
    odd.save()
    told = asked(api, trainer, version, odd).json()["errors"][0]
    assert told["code"] == "wrong_types" and "length" in told["detail"]
    assert asked(api, trainer, version, version).json()["errors"][0]["attr"] == "dataset_version"
    own = asked(api, trainer, version, version.dataset_version, name=version.dataset_version.dataset.name)
    assert own.status_code == 400 and own.json()["errors"][0]["attr"] == "name"
    assert not BatchPrediction.objects.exists()


def test_a_row_that_is_refused_is_named(version, others, trainer, monkeypatch):
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    monkeypatch.setattr(
        predicting, "_as_sent", lambda value: "no number" if value == others_length(others, 7) else value
    )
    found = ended(batch)
    assert found.state == "failed" and found.error["code"] == "bad_rows", found.error
    assert "Row 8" in found.error["sentence"] and "length" in found.error["sentence"]


def others_length(data, row):
    return table_of(data).column("length")[row].as_py()


def test_who_may(version, others, viewer, stranger, trainer, api, web):
    assert asked(api, viewer, version, others).status_code == 403
    assert asked(api, stranger, version, others).status_code == 400  # nothing that a stranger can name
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    address = f"/api/v1/batch-predictions/{batch.pk}"
    assert api(viewer).get(address).status_code == 200 and api(stranger).get(address).status_code == 404
    assert api(viewer).post(f"{address}/cancel").status_code == 403
    assert api(stranger).get("/api/v1/batch-predictions").json()["results"] == []
    assert web(viewer).get(reverse("batch-new", args=[version.pk])).status_code == 403
    assert web(stranger).get(reverse("batch-new", args=[version.pk])).status_code == 404


def test_the_page_asks_shows_progress_and_leads_to_the_result(version, others, trainer, web):
    client = web(trainer)
    address = reverse("batch-new", args=[version.pk])
    assert address in client.get(reverse("model-version", args=[version.pk])).content.decode()
    assert "others v1" in client.get(address).content.decode()
    refused = client.post(address, {"dataset_version": "", "name": ""})
    assert set(refused.context["form"].errors) == {"dataset_version"}
    sent = client.post(address, {"dataset_version": str(others.pk), "name": "scores"})
    batch = BatchPrediction.objects.get()
    assert sent.url == reverse("batch", args=[batch.pk])
    assert "waiting for a worker" in client.get(sent.url).content.decode()
    ended(batch)
    page = client.get(sent.url).content.decode()
    assert "scores v1" in page and "hx-trigger" not in page.split('id="batch"')[1].split(">")[0]
    assert "others v1 → scores" in client.get(address).content.decode()


def test_folders_of_what_has_ended_are_swept(version, others, trainer):
    batch = batches.request_batch(actor=trainer, version=version, dataset_version=others)
    folder_of(batch.pk).mkdir(parents=True)
    (folder_of(batch.pk).parent / "no id").mkdir()
    assert sweep_folders() == 0
    batches.cancel_batch(actor=trainer, batch=batch)
    assert sweep_folders() == 1 and not folder_of(batch.pk).exists()
