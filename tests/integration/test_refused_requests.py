"""What every live variant refuses is its sender's fault: no guardrail counts it, and no caller has a version taken back by it."""

from types import SimpleNamespace

import pytest

from dlplatform.engine.errors import PredictionInputError
from registry.models import ModelVersion
from registry.serving import prediction_log
from registry.serving.cache import PredictorCache
from registry.serving.experiments import rollouts
from registry.serving.models import Deployment, PredictionRecord, Rollout, Variant
from registry.serving.server.refusals import _refuses
from tests.integration.answering import change, code_of, deployed, key_of, three_versions, writing_version
from tests.integration.conftest import QUICK
from tests.integration.experimenting import later, shares_of, write
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)
ERRORS = [{"kind": "errors", "limit": 0.02}, {"kind": "slow", "milliseconds": 60_000, "limit": 0.02}]


def taking(*columns, needs=()):
    """A model that takes these columns alone, and needs some."""

    def answer(rows):
        for position, row in enumerate(rows):
            for name in row.keys() - {*columns}:
                raise PredictionInputError(position, name, "unknown_column", f"{name} is not known.")
            for name in {*needs} - row.keys():
                raise PredictionInputError(position, name, "missing_column", f"{name} is missing.")
        return [{"value": 1.0} for _ in rows]

    return answer


@pytest.fixture
def versions(organization, stubs):
    made = three_versions(organization)
    for version in made:
        stubs.answers[version.pk] = taking("x", "y")
    return made


@pytest.fixture
def deployment(maintainer, organization, versions):
    return deployed(maintainer, organization, versions[0])


@pytest.fixture
def split(maintainer, deployment, versions, inference):
    change(maintainer, deployment, *versions[:2])
    inference.wait_for(deployment.pk, 2)
    return {row.version_id: row for row in Variant.objects.all()}


@pytest.fixture
def asked_of(viewer, deployment, inference):
    """Have both variants asked; by the number of their version the codes of the records that came of it."""
    key = key_of(viewer)

    def ask(rows, statuses=(200, 400)):
        PredictionRecord.objects.all().delete()
        answers = [inference.ask("screening", key, rows, key=f"k{number}") for number in range(24)]
        assert {answer.status_code for answer in answers} <= {*statuses}
        prediction_log.buffer.flush()
        rows = PredictionRecord.objects.select_related("variant__version")
        return {(row.variant.version.number, row.error) for row in rows}

    return ask


def test_what_all_refuse_is_told_from_what_one_refuses(split, asked_of, versions, stubs, inference):
    assert asked_of([{"x": 1.0}]) == {(1, ""), (2, "")}
    assert asked_of([{"x": 1.0}, {"z": 1.0}]) == {(1, "bad_request"), (2, "bad_request")}
    stubs.answers[versions[1].pk] = taking("x", "y", needs=["y"])
    assert asked_of([{"x": 1.0}]) == {(1, ""), (2, "invalid")}
    assert asked_of([{"x": 1.0, "y": 1.0}]) == {(1, ""), (2, "")}
    assert asked_of([{"x": 1.0, "y": 1.0}, {"z": 1.0}]) == {(1, "bad_request"), (2, "bad_request")}
    assert 'error="bad_request"' in inference.client.get("/metrics").text


def test_the_row_that_was_refused_is_what_the_others_are_asked_for(split, asked_of, versions, stubs):
    stubs.answers[versions[1].pk] = taking("x", "y", needs=["y"])
    assert asked_of([{"x": 1.0}, {"z": 1.0}]) == {(1, "bad_request"), (2, "invalid")}


def test_the_sender_reads_what_he_always_read(viewer, deployment, inference):
    refused = inference.ask("screening", key_of(viewer), [{"x": 1.0}, {"z": 1.0}])
    assert (refused.status_code, code_of(refused)) == (400, "unknown_column")
    assert refused.json()["errors"][0]["attr"] == "instances.1.z"
    prediction_log.buffer.flush()
    assert PredictionRecord.objects.get().error == "bad_request", "alone it is all"


@pytest.mark.parametrize("why", ["it breaks", "it is not in memory", "it has code of its own"])
def test_where_nobody_knows_it_counts_as_it_did(split, asked_of, versions, stubs, inference, monkeypatch, why):
    def breaks(rows):
        raise ZeroDivisionError

    first = versions[0].pk
    if why == "it breaks":
        stubs.answers[first] = breaks
        assert asked_of([{"z": 1.0}], statuses=(400, 500)) == {(1, "error"), (2, "invalid")}
        return
    instead = None if why == "it is not in memory" else object()
    ready = inference.server.models.ready
    seen = SimpleNamespace(ready=lambda version: instead if version == first else ready(version))
    monkeypatch.setattr(inference.server.answering._refusals, "_models", seen)
    assert asked_of([{"z": 1.0}]) == {(1, "invalid"), (2, "invalid")}


def test_a_prompt_that_no_language_model_takes(viewer, maintainer, organization, stubs, inference):
    def refuse(instance):
        if "bad" in instance["prompt"]:
            raise PredictionInputError(0, "prompt", "wrong_type", "no")
        return ["Good"]

    version = writing_version(organization, stubs, ["Good"], [])
    stubs.writers[version.pk] = refuse
    made = deployed(maintainer, organization, version, name="stories")
    inference.wait_for(made.pk, 1)
    body = {"model": "stories", "prompt": "bad", "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key_of(viewer)}"}
    assert inference.client.post("/v1/completions", json=body, headers=headers).status_code == 400
    assert inference.client.post("/v1/completions", json=body | {"prompt": "good"}, headers=headers).status_code == 200
    prediction_log.buffer.flush()
    assert set(PredictionRecord.objects.values_list("error", flat=True)) == {"bad_request", ""}


def test_a_trained_model_is_asked_by_its_reading_alone(queue_run, monkeypatch):
    train(str(queue_run(QUICK).pk))
    predictor = PredictorCache(1 << 30).get(ModelVersion.objects.get().pk)
    monkeypatch.setattr(predictor, "run", None)
    good = {"length": 5.0, "width": 3.0, "colour": "red"}
    asked = [good, good | {"nonsense": 1}, good | {"width": "wide"}, {}]
    assert [_refuses(predictor, row) for row in asked] == [False, True, True, True]


# --- canaries ----------------------------------------------------------------------------------------


@pytest.fixture
def canary(maintainer, deployment, versions, inference):
    steps = [{"share": share, "minutes": 1, "requests": 30} for share in (0.01, 0.05, 0.25, 1)]
    made = rollouts.start_rollout(
        actor=maintainer, deployment=deployment, candidate=versions[1].pk, steps=steps, guardrails_wanted=ERRORS
    )
    inference.wait_for(deployment.pk, made.revision)
    return made


@pytest.fixture
def ask_the_candidate(inference, viewer, deployment):
    """Ask it 40 times, by keys that are its own."""
    bearer = key_of(viewer)

    def ask(row):
        found = Deployment.objects.get(pk=deployment.pk)
        inference.wait_for(found.pk, found.revision)
        served, candidate = inference.server.watcher.served[found.pk], str(Rollout.objects.get().variant_candidate_id)
        keys = [key for key in map(str, range(20_000)) if served.choose(key).name == candidate][:40]
        assert len(keys) == 40
        for key in keys:
            inference.ask("screening", bearer, [row], key=key)
        prediction_log.buffer.flush()

    return ask


def test_who_sends_rubbish_neither_takes_a_canary_back_nor_moves_it_on(canary, ask_the_candidate, deployment):
    for share in (0.01, 0.05, 0.25, 1.0):
        assert shares_of(deployment)["2"] == pytest.approx(share)
        ask_the_candidate({"drop table": 1.0})
        assert later(2) == 0, "it says nothing: neither harm nor that it has answered enough"
        assert Rollout.objects.get().state == "running"
        ask_the_candidate({"x": 1.0})
        assert later(2) == 1
    assert Rollout.objects.get().state == "finished" and shares_of(deployment) == {"2": 1.0}
    assert PredictionRecord.objects.filter(error="bad_request").count() == 160


@pytest.mark.parametrize("step", [0, 1, 3])
def test_what_only_the_canary_refuses_takes_it_back(canary, ask_the_candidate, deployment, versions, stubs, step):
    for _ in range(step):
        ask_the_candidate({"x": 1.0})
        assert later(2) == 1
    stubs.answers[versions[1].pk] = taking("x", "y", needs=["y"])
    ask_the_candidate({"x": 1.0})
    assert later(0.5) == 1
    ended = Rollout.objects.get()
    assert ended.state == "rolled_back" and "Failed requests" in ended.conclusion
    assert shares_of(deployment) == {"1": 1.0}
    assert set(PredictionRecord.objects.exclude(error="").values_list("error", flat=True)) == {"invalid"}


def test_what_was_recorded_before_counts_as_it_did(canary, deployment, versions):
    write(Variant.objects.get(version=versions[1]), [None] * 40, errors=["invalid"] * 40, ago=0)
    assert later(0.5) == 1 and Rollout.objects.get().state == "rolled_back"


def test_readers_who_stop_a_text_take_no_canary_back_and_callers_who_give_up_do(canary, deployment, versions):
    candidate = Variant.objects.get(version=versions[1])
    write(candidate, [None] * 40, errors=["reader_left"] * 40, ago=0)
    assert later(2) == 0 and Rollout.objects.get().state == "running", "nor do they move it on"
    write(candidate, [None] * 40, errors=["client_gone"] * 40, ago=0)
    assert later(0.5) == 1 and Rollout.objects.get().state == "rolled_back"
