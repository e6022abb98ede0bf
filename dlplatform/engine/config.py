"""Checked settings of a training run. Torch-free.

`parse_config` checks a raw dict against `dlplatform.engine.fields` and reports all problems at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from dlplatform.engine.chat_template import BASE, USUAL, ChatTemplate, ChatTemplateError
from dlplatform.engine.fields import (
    ARCHITECTURES,
    CODE,
    ENCODER_PARAMS,
    FIELDS,
    PARAMS,
    PRETRAINED,
    TRANSFORMERS,
    Field,
)
from dlplatform.engine.schema import TASKS
from dlplatform.engine.transformers_config import IMAGE, TEXT, longest_text
from dlplatform.engine.transformers_settings import SENSES, faults

Auto = Literal["auto"]
Problem = tuple[str, str, str]


class ConfigError(ValueError):
    """Settings that cannot be used. ``problems``: (field, code, message with the fix), all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(message for _, _, message in problems))
        self.problems = problems


@dataclass(frozen=True)
class TrainingConfig:
    """Checked settings of a run; see `FIELDS` for meaning and limits."""

    architecture: str = "auto"
    params: dict[str, Any] = field(default_factory=dict)
    image_encoder: str = "auto"
    image_model: dict[str, Any] | None = None
    image_size: int | Auto = "auto"
    augmentation: str = "auto"
    text_encoder: str = "auto"
    text_model: dict[str, Any] | None = None
    text_length: int | Auto = "auto"
    tokenizer: str = "bpe"
    vocabulary: int | Auto = "auto"
    epochs: int | Auto = "auto"
    batch_size: int | Literal["auto", "fit"] = "auto"
    accumulation: int = 1
    learning_rate: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    schedule: str = "cosine"
    warmup: float = 0.05
    seed: int = 0
    validation_fraction: float | Auto = "auto"
    folds: int | Auto = "auto"
    early_stopping: int | Auto | Literal[False] = "auto"
    ema: float | Auto = "auto"
    class_weights: str = "auto"
    label_smoothing: float | Auto = "auto"
    max_grad_norm: float = 0.0
    precision: str = "float32"
    devices: int | Auto = "auto"
    nodes: int = 1
    strategy: str = "auto"
    threads: int = 0
    checkpoint_seconds: float = 60.0
    stall_timeout: float = 300.0
    log_interval: int | Auto = "auto"
    importance: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `parse_config` reads it back."""
        return asdict(self)


def parse_config(raw: dict[str, Any], task: str) -> TrainingConfig:
    """Check raw settings for a task (see `dlplatform.engine.schema.TASKS`).

    Raises ConfigError with every problem: unknown key, wrong type, value out of range, or a setting that
    does not go with the task.
    """
    if not isinstance(raw, dict):
        raise ConfigError([("config", "wrong_type", "The settings must be a JSON object.")])
    problems: list[Problem] = []
    if task not in TASKS:
        problems.append(("task", "unknown_choice", f"The task must be one of: {', '.join(TASKS)}."))
    values = parse_fields(raw, FIELDS, "", problems)
    architecture = values.get("architecture", "auto")
    known = (*PARAMS.get(architecture, ()), *ENCODER_PARAMS)
    if isinstance(params := values.get("params", {}), dict) and architecture != CODE:
        values["params"] = parse_fields(params, known, "params.", problems)
    problems += _code_problems(values, task) if architecture == CODE else _task_problems(values, task)
    problems += _model_problems(values, task)
    if problems:
        raise ConfigError(problems)
    return TrainingConfig(**values)


def idle_settings(raw: dict[str, Any], task: str) -> list[Problem]:
    """Settings that would do nothing: refused where somebody chooses them. `parse_config` reads them, so that runs that had
    them are trained again as they were."""
    if task != "language-model" or not isinstance(raw, dict) or raw.get("class_weights", "auto") != "balanced":
        return []
    fix = "class_weights balanced is for classification, and a language model has no classes; remove it or set it to auto."
    return [("class_weights", "not_for_task", fix)]


# Of a language model from nothing, whose architecture is one: values that do not ask for another one.
_OF_WRITING: Final[dict[str, tuple[Any, ...]]] = {
    "architecture": ("auto",),
    "text_encoder": ("auto", "transformer"),
    "image_encoder": ("auto",),
    "image_size": ("auto",),
    "augmentation": ("auto", "none"),
    "folds": ("auto", 1),
}


def unread_settings(raw: dict[str, Any], task: str) -> list[Problem]:
    """Settings that a language model from nothing has no place for: as `idle_settings`."""
    if task != "language-model" or not isinstance(raw, dict):
        return []
    unread = [name for name, fitting in _OF_WRITING.items() if raw.get(name, fitting[0]) not in fitting]
    params = raw.get("params")
    given = params if isinstance(params, dict) else {}
    unread += [
        f"params.{name}" for name, value in given.items()
        if isinstance(name, str) and name != "dropout" and not name.startswith("text_") and value != "auto"
    ]  # fmt: skip
    told = "a language model does not know; it has text_length, params.text_width, params.text_layers and the like"
    return [(name, "not_for_task", f"{name} is a setting that {told}. Remove it.") for name in unread]


def _code_problems(values: dict[str, Any], task: str) -> list[Problem]:
    """What one's own code cannot have. Its params are JSON of any kind."""
    problems: list[Problem] = []
    for name in ("devices", "nodes"):
        if values.get(name, "auto") not in ("auto", 1):
            reason = (
                f"{name} is 1 for your own code: its sandbox has no network over which processes could meet; remove it."
            )
            problems.append((name, "not_for_code", reason))
    if values.get("folds", "auto") not in ("auto", 1):
        problems.append(("folds", "not_for_code", "folds is 1 for your own code; remove it."))
    bad = [name for name in values.get("params", {}) if not isinstance(name, str) or not name.isidentifier()]
    if bad:
        problems.append(("params", "invalid", f"params.{str(bad[0])[:80]} cannot be the name of an argument."))
    return problems


def _model_problems(values: dict[str, Any], task: str) -> list[Problem]:
    """What is wrong with architectures of the transformers library, and settings that do not go with them."""
    problems: list[Problem] = []
    for name in SENSES:
        if values.get(name) is None:
            continue
        problems += faults(name, values[name])
        problems += _beside_model(name, values, task)
    if values.get("image_encoder") == TRANSFORMERS and values.get("image_model") is None:
        fix = "image_encoder transformers needs an image_model; give one or choose another encoder."
        problems.append(("image_encoder", "needs_model", fix))
    return problems


def _beside_model(name: str, values: dict[str, Any], task: str) -> list[Problem]:
    sense = SENSES[name]
    if values.get("architecture") == CODE:
        return [(name, "not_for_code", f"Your own code builds its network itself; remove {name}.")]
    problems: list[Problem] = []
    length = values.get("text_length", "auto")
    if sense == TEXT and isinstance(length, int) and length > (most := longest_text(values[name])):
        problems.append(("text_length", "out_of_range", f"text_model reads {most} tokens at most; lower text_length."))
    if sense == IMAGE and task == "language-model":
        problems.append((name, "not_for_task", "A language model looks at no images; remove image_model."))
    encoder = values.get(f"{sense}_encoder", "auto")
    if encoder not in ("auto", TRANSFORMERS, "transformer"):
        told = " (a base brings its own network)" if encoder == PRETRAINED else ""
        message = f"{sense}_encoder {encoder} does not go with {name}{told}; remove one of them."
        problems.append((f"{sense}_encoder", "not_for_model", message))
    for param in sorted(values.get("params") or {}):
        if param.startswith(f"{sense}_") and values["params"][param] != "auto":
            message = f"params.{param} is for the engine's own encoder; remove it, {name} says its sizes."
            problems.append((f"params.{param}", "not_for_model", message))
    return problems


def describe_fields() -> list[dict[str, Any]]:
    """`FIELDS` as JSON, the params of each architecture under ``architectures``."""
    described = [asdict(each) for each in FIELDS]
    by_architecture = {name: [asdict(each) for each in (*PARAMS[name], *ENCODER_PARAMS)] for name in ARCHITECTURES}
    for entry in described:
        if entry["type"] == "params":
            entry["architectures"] = by_architecture
    return described


def _task_problems(values: dict[str, Any], task: str) -> list[Problem]:
    problems: list[Problem] = []
    if task == "regression" and values.get("class_weights", "auto") == "balanced":
        fix = "class_weights is for classification; remove it or set it to auto."
        problems.append(("class_weights", "not_for_task", fix))
    if task == "regression" and values.get("label_smoothing", "auto") not in ("auto", 0):
        fix = "label_smoothing is for classification; remove it."
        problems.append(("label_smoothing", "not_for_task", fix))
    width, heads = (values.get("params", {}).get(name, "auto") for name in ("text_width", "text_heads"))
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        fix = f"params.text_heads must divide params.text_width ({width})."
        problems.append(("params.text_heads", "out_of_range", fix))
    return problems


def parse_fields(raw: dict[str, Any], known: tuple[Field, ...], prefix: str, problems: list[Problem]) -> dict[str, Any]:
    """The values of ``raw`` that are known settings and in range; what is wrong is added to ``problems``."""
    by_name = {each.name: each for each in known}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        described = by_name.get(key) if isinstance(key, str) else None
        if described is None:
            names = ", ".join(sorted(by_name)) or "none"
            message = f"{prefix}{str(key)[:80]} is not a setting; known ones: {names}."
            problems.append((f"{prefix}{str(key)[:80]}", "unknown_field", message))
            continue
        problem = _problem_with(described, value)
        if problem:
            problems.append((prefix + key, problem[0], f"{prefix}{key} {problem[1]}"))
        else:
            values[key] = float(value) if _is_number_field(described, value) else value
    return values


def _is_number_field(described: Field, value: Any) -> bool:
    return described.type == "number" and not isinstance(value, str | bool)


def _problem_with(described: Field, value: Any) -> tuple[str, str] | None:
    """(code, rest of the sentence) or None."""
    if any(value is word or (isinstance(word, str) and value == word) for word in described.words):
        return None
    if described.type == "choice":
        if value in described.choices:
            return None
        return "unknown_choice", f"must be one of: {', '.join(described.choices)}."
    if described.type == "boolean":
        return None if isinstance(value, bool) else ("wrong_type", "must be true or false.")
    if described.type == "template":
        return _template_problem(value)
    if described.type in ("params", "model"):
        return None if isinstance(value, dict) else ("wrong_type", "must be a JSON object.")
    return _number_problem(described, value)


def _template_problem(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str) or not ("{{" in value or "{%" in value):
        return "wrong_type", f"must be {BASE}, {USUAL}, or a chat template in Jinja."
    try:
        ChatTemplate(value)
    except ChatTemplateError as error:
        return "invalid", f"cannot be used: {str(error).rstrip('.')}."
    return None


def _number_problem(described: Field, value: Any) -> tuple[str, str] | None:
    expected = _expected(described)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "wrong_type", expected
    if described.type == "integer" and not isinstance(value, int):
        return "wrong_type", expected
    if isinstance(value, float) and not math.isfinite(value):
        return "out_of_range", expected
    low, high = described.minimum, described.maximum
    too_low = low is not None and (value < low or (described.exclusive_minimum and value == low))
    too_high = high is not None and value > high
    return ("out_of_range", expected) if too_low or too_high else None


def _expected(described: Field) -> str:
    words = "".join(f", or {str(word).lower()}" for word in described.words)
    if described.minimum == described.maximum:
        return f"must be {_plain(described.minimum)}{words}."
    kind = "a whole number" if described.type == "integer" else "a number"
    low = "above" if described.exclusive_minimum else "from"
    return f"must be {kind} {low} {_plain(described.minimum)} to {_plain(described.maximum)}{words}."


def _plain(bound: float | None) -> str:
    """A limit in full: 2147483647, never 2.14748e+09."""
    assert bound is not None
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


assert [each.name for each in FIELDS] == [each.name for each in fields(TrainingConfig)]
