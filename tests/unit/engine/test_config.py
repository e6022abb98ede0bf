from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dlplatform.engine.config import (
    ARCHITECTURES,
    FIELDS,
    PARAMS,
    ConfigError,
    TrainingConfig,
    describe_fields,
    parse_config,
)
from dlplatform.engine.defaults import Size, resolve
from tests.unit.engine.conftest import ROOT


def problems(raw: Any, task: str = "classification") -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, task)
    return {name: code for name, code, _ in caught.value.problems}


def test_everything_is_optional() -> None:
    assert parse_config({}, "regression") == TrainingConfig()


def test_a_config_survives_its_json_form() -> None:
    config = parse_config({"epochs": 5, "early_stopping": False, "params": {"width": 32}}, "classification")
    assert parse_config(config.to_dict(), "classification") == config


def test_all_problems_are_named_at_once() -> None:
    found = problems(
        {
            "epochs": 0,
            "batch_size": "many",
            "learning_rate": 0,
            "seed": True,
            "colour": "red",
            "schedule": "zigzag",
            "importance": 1,
            "weight_decay": float("nan"),
            "params": {"width": 1.5, "depth": 3},
            "devices": 65,
        }
    )
    assert found == {
        "epochs": "out_of_range",
        "batch_size": "wrong_type",
        "learning_rate": "out_of_range",
        "seed": "wrong_type",
        "colour": "unknown_field",
        "schedule": "unknown_choice",
        "importance": "wrong_type",
        "weight_decay": "out_of_range",
        "params.width": "wrong_type",
        "params.depth": "unknown_field",
        "devices": "out_of_range",
    }


def test_a_message_names_the_field_and_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"epochs must be a whole number from 1 to 10000, or auto\."):
        parse_config({"epochs": -1}, "classification")


def test_false_is_not_zero_and_true_is_not_one() -> None:
    assert problems({"early_stopping": True}) == {"early_stopping": "wrong_type"}
    assert problems({"epochs": False}) == {"epochs": "wrong_type"}
    assert problems({"early_stopping": 0}) == {"early_stopping": "out_of_range"}


def test_params_belong_to_the_architecture() -> None:
    assert problems({"architecture": "linear", "params": {"width": 8}}) == {"params.width": "unknown_field"}
    assert problems({"params": [1]}) == {"params": "wrong_type"}


def test_settings_of_the_other_task_are_refused() -> None:
    raw = {"class_weights": "balanced", "label_smoothing": 0.1}
    assert problems(raw, "regression") == {"class_weights": "not_for_task", "label_smoothing": "not_for_task"}
    assert problems({}, "dreaming") == {"task": "unknown_choice"}
    assert problems(["epochs"]) == {"config": "wrong_type"}


def test_unhashable_and_long_values_are_refused_quietly() -> None:
    assert problems({"architecture": ["tabm"], "x" * 500: 1}) == {
        "architecture": "unknown_choice",
        "x" * 80: "unknown_field",
    }


def test_every_field_is_described_for_forms() -> None:
    described = {entry["name"]: entry for entry in describe_fields()}
    assert set(described) == {each.name for each in FIELDS}
    assert set(described["params"]["architectures"]) == set(ARCHITECTURES)
    for each in [*FIELDS, *(entry for params in PARAMS.values() for entry in params)]:
        assert each.help.endswith(".")
        if each.type in ("integer", "number"):
            assert each.minimum is not None
            assert each.maximum is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", [8, 100, 2000, 50_000, 5_000_000])
def test_defaults_leave_nothing_open(architecture: str, rows: int) -> None:
    config = resolve(TrainingConfig(architecture), "classification", Size(rows, 2, 10))
    assert "auto" not in [value for name, value in config.to_dict().items() if name in RESOLVED]
    assert "auto" not in config.params.values()
    assert config.params.get("members", config.folds) % int(config.folds) == 0


RESOLVED = {
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "validation_fraction",
    "folds",
    "early_stopping",
    "label_smoothing",
}


def test_what_was_set_stays_set() -> None:
    raw = {"epochs": 7, "folds": 1, "validation_fraction": 0.3, "params": {"members": 5, "width": "auto"}}
    config = resolve(parse_config(raw, "classification"), "classification", Size(500, 50, 4))
    assert (config.epochs, config.folds, config.validation_fraction) == (7, 1, 0.3)
    assert config.params["members"] == 5
    fraction = resolve(TrainingConfig(validation_fraction=0.2), "classification", Size(500, 50, 4))
    assert fraction.folds == 5


def test_the_web_side_never_imports_torch() -> None:
    modules = ("config", "defaults", "description", "durable", "errors", "events", "job", "schema")
    code = "import sys\n" + "".join(f"import dlplatform.engine.{name}\n" for name in modules)
    code += "assert not {'torch', 'numpy', 'django'} & set(sys.modules), 'heavy import'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
