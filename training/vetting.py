"""Events that code of a user's own may have written: only what has the shape of an event goes on.

Such code can write into its spool whatever it likes. What it says about itself is its own affair; it must not break the
pages that show it, the database that keeps it, nor the order of events.
"""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dlplatform.engine.errors import CODES

LARGEST = 2**53
MOST_KEYS = 200
MOST_METRICS = 500
MOST_SETTINGS = 20_000  # characters
SEVERITIES = ("info", "warning", "error")

Check = Callable[[Any], Any]


class _Unfit(ValueError):
    """A value that no event of the engine has."""


class Vetting:
    """Of the lines of one run, those that are events, in order, each with the fields of its type and nothing else."""

    def __init__(self) -> None:
        self._last = 0
        self._keys: set[str] = set()

    def __call__(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [event for line in lines if (event := self._vetted(line)) is not None]

    def _vetted(self, line: dict[str, Any]) -> dict[str, Any] | None:
        try:
            event = _event(line, self._last)
        except (_Unfit, KeyError, TypeError, AttributeError, RecursionError):
            return None
        self._last = event["sequence"]
        if event["type"] == "metric":
            event["values"] = {key: value for key, value in event["values"].items() if self._knows(key)}
        return event

    def _knows(self, key: str) -> bool:
        """Whether the metric is one of the first so many."""
        if len(self._keys) < MOST_METRICS:
            self._keys.add(key)
        return key in self._keys


def _event(line: dict[str, Any], last: int) -> dict[str, Any]:
    sequence = _whole(line["sequence"])
    if sequence <= last:
        raise _Unfit("sequence")
    fields = FIELDS[line["type"]]
    payload = {name: check(line[name]) for name, check in fields.items()}
    return {"sequence": sequence, "time": _time(line.get("time")), "type": line["type"], **payload}


def _time(value: Any) -> str:
    """A moment that is not in the future, else now."""
    now = datetime.now(UTC)
    try:
        told = datetime.fromisoformat(value)
        return value if told <= now and told.year > 2000 else now.isoformat()
    except (TypeError, ValueError):
        return now.isoformat()


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise _Unfit("whole number")
    return value


def _real(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e300:
        raise _Unfit("number")
    return float(value)


def _positive(value: Any) -> float:
    """Seconds; a step of none is none that was taken."""
    found = _real(value)
    if found is None or not 0 <= found <= 1e6:
        raise _Unfit("seconds")
    return found


def _share(value: Any) -> float:
    return min(max(_real(value) or 0.0, 0.0), 1.0)


def _text(most: int) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise _Unfit("text")
        return value[:most].encode("utf-8", "replace").decode()

    return check


def _one_of(*known: str) -> Check:
    return lambda value: value if value in known else known[0]


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _mapping(check: Check, most: int = MOST_KEYS) -> Check:
    name = _text(120)

    def checked(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise _Unfit("object")
        return {name(key): check(one) for key, one in value.items() if key}

    return checked


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return _text(500)(value)
    return value if isinstance(value, bool) else _real(value)


def _scalars(value: Any) -> Any:
    """A scalar, or a flat object of them."""
    return _mapping(_scalar)(value) if isinstance(value, dict) else _scalar(value)


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("params", {}), dict):
        raise _Unfit("settings")
    if len(json.dumps(value)) > MOST_SETTINGS:
        return {}
    return value


FIELDS: dict[str, dict[str, Check]] = {
    "started": {
        "environment": _mapping(_scalars), "threads": _whole, "device": _text(120), "resumed_from": _optional(_whole),
        "parameters": _whole, "rows": _mapping(_whole), "config": _settings,
    },
    "progress": {
        "phase": _text(60), "epoch": lambda value: min(_whole(value), 2**31 - 1), "step": _whole, "total_steps": _whole,
        "fraction": _share, "eta_seconds": _real, "rows_per_second": _real,
    },
    "metric": {"step": _whole, "epoch": _whole, "values": _mapping(_real)},
    "log": {"level": _one_of(*SEVERITIES), "message": _text(10_000)},
    "checkpoint": {"step": _whole, "path": _text(200), "sha256": _text(64), "best": bool},
    "sample": {"step": _whole, "text": _text(10_000)},
    "finding": {
        "code": _text(60), "severity": _one_of(*SEVERITIES), "sentence": _text(500), "next_step": _text(500),
        "change": _optional(_mapping(_scalar)),
    },
    "finished": {"metrics": _mapping(_real), "package": _text(60)},
    "failed": {
        "code": _one_of("code_error", *CODES), "sentence": _text(600), "next_step": _text(600), "detail": _text(8_000),
    },
}  # fmt: skip

_TRIAL: dict[str, Check] = {
    **dict.fromkeys(
        ("rows_per_epoch", "batch_size", "epochs", "parameters", "trainable", "peak_bytes", "threads", "processes"), _whole
    ),
    "seconds_per_step": _positive, "validation_seconds": _positive, "device": _text(120),
    "strategy": _one_of("alone", "ddp", "fsdp"),
}  # fmt: skip
_TRIAL_ERROR: dict[str, Check] = {name: FIELDS["failed"][name] for name in ("code", "sentence", "next_step")}


def vetted_trial(told: Any) -> dict[str, Any] | None:
    """What a trial of a user's own code says, if it has the shape of what the engine says; else None."""
    try:
        if "error" in told:
            return {"error": {name: check(told["error"][name]) for name, check in _TRIAL_ERROR.items()}}
        return {name: check(told[name]) for name, check in _TRIAL.items()}
    except (_Unfit, KeyError, TypeError, AttributeError):
        return None
