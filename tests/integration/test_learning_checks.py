"""What a run cannot learn is refused before it is queued, by what the profile of the data says."""

import pytest

from tests import factories
from training import learning_checks

pytestmark = pytest.mark.django_db


@pytest.fixture
def asked(organization, tmp_path, api, trainer):
    """Ask for a run on rows; (status, {field: code and detail})."""

    def ask(rows, task="classification", target="y", **more):
        version = factories.ready_version(factories.DatasetFactory(organization=organization), rows, tmp_path)
        wanted = {"dataset_version": str(version.pk), "task": task, "target": target, **more}
        answer = api(trainer).post("/api/v1/runs", wanted, format="json")
        errors = answer.json().get("errors", [])
        return answer.status_code, {one["attr"]: (one["code"], one["detail"]) for one in errors}

    return ask


def rows_of(*values, rows=60):
    """Rows with x, and y, z, … taken in turn from the values."""
    names = ("y", "z", "w")
    return [
        {"x": number, **{name: each[number % len(each)] for name, each in zip(names, values, strict=False)}}
        for number in range(rows)
    ]


def test_a_target_of_which_exactly_half_is_missing_can_be_learnt(asked):
    assert asked(rows_of(("", "a", "", "b")))[0] == 201


def test_a_target_without_any_value_is_refused(asked):
    status, errors = asked(rows_of(("",)))
    assert (status, errors["target"][0]) == (400, "all_missing")


@pytest.mark.parametrize(("task", "known", "status"), [("classification", 7, 400), ("classification", 8, 201)])
def test_rows_with_a_target_are_counted(asked, task, known, status):
    rows = [{"x": number, "y": "ab"[number % 2] if number < known else ""} for number in range(60)]
    found, errors = asked(rows, task)
    assert found == status
    if status == 400:
        assert errors["target"] == (
            "too_few_rows", "“y” has a value in 7 of the rows only; at least 8 are needed. Add such rows.",
        )  # fmt: skip


def test_the_engine_counts_alike():
    from dlplatform.engine.dataset import MINIMUM_ROWS
    from dlplatform.engine.language_learner import LEAST_DOCUMENTS

    assert (learning_checks.LEAST_KNOWN, learning_checks.LEAST_TEXTS) == (MINIMUM_ROWS, LEAST_DOCUMENTS)


@pytest.mark.parametrize(
    ("values", "target", "status"),
    [
        (((0, 1), (0, 1, 2)), ["y", "z"], 400),
        (((0, 1), (-1, 1)), ["y", "z"], 400),
        (((0, 1), (0.5, 1)), ["y", "z"], 400),
        (((0, 1), (1,)), ["y", "z"], 201),
        (((0, 1), (1, 0, 0)), ["y", "z"], 201),
        (((3, 4),), "y", 400),
    ],
)
def test_labels_are_columns_of_yes_and_no(asked, values, target, status):
    found, errors = asked(rows_of(*values), "multilabel", target)
    assert found == status
    if status == 400:
        assert errors["target"][0] == "not_yes_and_no" and "red|round" in errors["target"][1]


def test_a_table_of_nothing_but_targets_has_nothing_to_learn_from(asked):
    status, errors = asked([{"y": number / 7} for number in range(40)], "regression")
    assert (status, errors["features"][0]) == (400, "required")


def test_a_date_is_no_target_of_anything(asked):
    status, errors = asked(rows_of(("2026-01-01", "2026-01-02", "2026-01-03")), "regression")
    assert status == 400 and errors["target"][1].endswith("choose another column as target.")


def test_a_text_is_one_of_classification(asked):
    _, errors = asked(rows_of(("a", "b")), "regression")
    assert errors["target"][1].endswith("choose classification.")


def test_one_row_is_told_in_the_singular(asked):
    _, errors = asked(rows_of(("a", "b"), rows=1))
    assert errors["dataset_version"][1].startswith("1 row is too few")


def test_completions_of_digits_are_learnt_as_texts(asked):
    rows = [{"prompt": f"{number} + 1", "completion": number + 1} for number in range(20)]
    assert asked(rows, "language-model", "completion")[0] == 201


def test_numbers_are_no_texts_and_how_they_become_some_is_told(asked):
    _, errors = asked(rows_of((1, 2, 3)), "language-model")
    assert errors["target"][0] == "wrong_type" and "prompt and completion" in errors["target"][1]
    assert "as CSV or JSON" in errors["target"][1] and "choose the type text" in errors["target"][1]


UNREAD = [
    {"architecture": "mlp"}, {"text_encoder": "hashed"}, {"image_encoder": "resnet"}, {"image_size": 64}, {"folds": 4},
    {"augmentation": "natural"}, {"params": {"members": 4}}, {"params": {"image_width": 16}},
]  # fmt: skip


@pytest.fixture
def texts(organization, tmp_path):
    rows = [{"y": f"so many words, {number}", "prompt": ""} for number in range(40)]
    return factories.ready_version(factories.DatasetFactory(organization=organization), rows, tmp_path)


@pytest.fixture
def told(texts, api, trainer):
    def ask(path="/api/v1/runs", **more):
        wanted = {"dataset_version": str(texts.pk), "task": "language-model", "target": "y", **more}
        answer = api(trainer).post(path, wanted, format="json")
        return answer.status_code, [(one["attr"], one["code"]) for one in answer.json().get("errors", [])]

    return ask


@pytest.mark.parametrize("config", UNREAD)
def test_settings_that_a_language_model_does_not_know_are_refused(told, config):
    name, value = next(iter(config.items()))
    field = f"config.params.{next(iter(value))}" if name == "params" else f"config.{name}"
    for path in ("/api/v1/runs", "/api/v1/preflights"):
        assert told(path, config=config) == (400, [(field, "not_for_task")])


def test_those_that_it_knows_are_taken(told):
    config = {
        "text_encoder": "transformer",
        "folds": 1,
        "params": {"dropout": 0.2, "text_width": 32, "members": "auto"},
    }
    assert told(config=config)[0] == 201


def test_no_search_goes_over_them(told):
    space = [{"name": "params.members", "kind": "integer", "low": 1, "high": 4}]
    status, errors = told("/api/v1/sweeps", name="s", space=space)
    assert status == 400 and errors[0][1] == "not_for_task"


def test_a_run_that_has_them_from_before_is_cloned(texts, told, api, trainer):
    from training.models import Run

    assert told()[0] == 201
    run = Run.objects.get()
    run.config |= {"architecture": "mlp"}
    run.state = "succeeded"
    run.save(update_fields=["config", "state"])
    answer = api(trainer).post(f"/api/v1/runs/{run.pk}/clone", {"config": {"epochs": 2}}, format="json")
    assert answer.status_code == 201, answer.json()
    answer = api(trainer).post(f"/api/v1/runs/{run.pk}/clone", {"config": {"folds": 3}}, format="json")
    assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, "config.folds")
