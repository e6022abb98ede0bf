"""Lines that code of users may have written: what is no event goes nowhere."""

import json

import pytest

from dlplatform.engine.events import PAYLOADS
from training.vetting import FIELDS, MOST_METRICS, Vetting

GOOD = {
    "started": {"environment": {"cpu": "x", "versions": {"torch": "2"}}, "threads": 1, "device": "cpu", "resumed_from": None,
                "parameters": 3, "rows": {"train": 3}, "config": {"params": {"a": [1]}}},
    "progress": {"phase": "training", "epoch": 1, "step": 2, "total_steps": 3, "fraction": 0.5, "eta_seconds": None,
                 "rows_per_second": 1.5},
    "metric": {"step": 1, "epoch": 0, "values": {"loss": 0.5, "nothing": None}},
    "log": {"level": "info", "message": "hello"},
    "checkpoint": {"step": 1, "path": "checkpoints/step-1", "sha256": "a" * 64, "best": False},
    "sample": {"step": 1, "text": "once"},
    "finding": {"code": "overfitting", "severity": "warning", "sentence": "It overfits.", "next_step": "Stop.",
                "change": {"weight_decay": 0.1}},
    "finished": {"metrics": {"loss": 0.1}, "package": "output"},
    "failed": {"code": "nan_loss", "sentence": "It failed.", "next_step": "Do.", "detail": ""},
}  # fmt: skip


def line(kind, sequence=1, **more):
    return {"sequence": sequence, "time": "2026-01-01T00:00:00.000Z", "type": kind, **GOOD[kind], **more}


def test_every_event_of_the_engine_has_a_check_for_every_field_and_passes():
    assert set(FIELDS) == set(PAYLOADS) == set(GOOD)
    for kind, fields in FIELDS.items():
        assert set(fields) == set(PAYLOADS[kind].__annotations__)
        assert Vetting()([line(kind)]) == [line(kind)]


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    "value", [None, [], {}, "x", -1, 2**70, 1e400, True, {"a": {"b": {"c": 1}}}, "\ud800", [[[[]]]]]
)
def test_a_field_of_another_kind_never_raises_and_what_passes_can_be_stored(kind, value):
    for name in GOOD[kind]:
        passed = Vetting()([line(kind, **{name: value})])
        assert len(passed) <= 1 and all(event["type"] == kind for event in passed)
        assert json.loads(json.dumps(passed, allow_nan=False).encode()) == passed


def test_the_order_is_kept_and_nothing_comes_twice():
    vetting = Vetting()
    assert [one["sequence"] for one in vetting([line("log", 3), line("log", 3), line("log", 2), line("log", 5)])] == [
        3,
        5,
    ]
    assert vetting([line("log", 5), {"type": "log"}, {}, line("log", 6, time="tomorrow")])[0]["time"].startswith("20")
    assert vetting([line("log", 7, level="shout", more=1)]) == [
        {"sequence": 7, "time": "2026-01-01T00:00:00.000Z", "type": "log", "level": "info", "message": "hello"}
    ]


def test_codes_and_names_are_those_that_are_known_and_metrics_are_not_endless():
    assert Vetting()([line("failed", code="made up")])[0]["code"] == "code_error"
    vetting = Vetting()
    for number in range(MOST_METRICS + 10):
        vetting([line("metric", number + 1, values={f"m{number}": 1.0})])
    assert vetting([line("metric", 10**6, values={"m1": 1.0, "new": 2.0})])[0]["values"] == {"m1": 1.0}
