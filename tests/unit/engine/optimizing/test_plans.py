"""What a plan may say, and which models it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlplatform.engine.errors import EngineError
from dlplatform.engine.optimizing.plan import PASSES, Plan, PlanError, parse_plan, unfit
from dlplatform.engine.optimizing.work import make_variant
from tests.unit.engine.optimizing.conftest import Trained


def test_plans_are_read_and_written() -> None:
    plan = parse_plan({"passes": ["structured", "onnx-int8-static"], "keep": 0.25, "epochs": 3})
    assert plan.name == "structured 25% + onnx-int8-static"
    assert parse_plan(plan.to_dict()) == plan
    assert parse_plan({"passes": ["onnx"]}).to_dict() == {"passes": ["onnx"]}
    assert all(len(text) > 30 for text in PASSES.values())


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({}, "passes"), ({"passes": []}, "passes"), ({"passes": "onnx"}, "passes"), ({"passes": ["faster"]}, "passes"),
        ({"passes": ["onnx", "structured"]}, "passes"), ({"passes": ["sparse", "distil"]}, "passes"),
        ({"passes": ["sparse", "onnx"]}, "passes"), ({"passes": [["onnx"]]}, "passes"),
        ({"passes": ["structured"], "keep": 2}, "keep"), ({"passes": ["structured"], "keep": True}, "keep"),
        ({"passes": ["structured"], "epochs": 1.5}, "epochs"), ({"passes": ["onnx"], "keep": 0.5}, "keep"),
        ({"passes": ["structured"], "keep": float("nan")}, "keep"),
    ],
)  # fmt: skip
def test_plans_that_make_no_sense_are_refused_by_field(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse_plan(raw)
    assert refused.value.field == field


def test_models_that_no_plan_fits_say_why() -> None:
    assert "Language" in (unfit("language-model", {}, Plan(("onnx",))) or "")
    assert "sandbox" in (unfit("classification", {"architecture": "code"}, Plan(("onnx",))) or "")
    assert unfit("classification", {"architecture": "linear", "layers": 0}, Plan(("structured",)))
    assert unfit("classification", {"architecture": "mlp", "layers": 2}, Plan(("structured",))) is None


def test_a_narrow_network_is_not_cut_for_nothing(perceptron: Trained, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cut nothing"):
        make_variant(
            perceptron.package, perceptron.loaded, Plan(("structured",), keep=1.0), perceptron.rows, tmp_path / "made"
        )
