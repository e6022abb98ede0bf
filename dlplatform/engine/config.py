"""Training settings: their meaning, limits and defaults. Torch-free.

`FIELDS` and `PARAMS` describe every setting for forms and API documents; `parse_config` checks a raw
dict against them and reports all problems at once. A setting left at ``"auto"`` is chosen from the size
of the data by `dlplatform.engine.defaults`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

from dlplatform.engine.schema import TASKS

Auto = Literal["auto"]
Problem = tuple[str, str, str]


class ConfigError(ValueError):
    """Settings that cannot be used. ``problems``: (field, code, message with the fix), all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(message for _, _, message in problems))
        self.problems = problems


@dataclass(frozen=True)
class Field:
    """One setting, described for people and programs.

    ``type``: integer, number, boolean, choice or params. ``words``: values accepted besides those of the
    type (such as "auto"), a blank form field standing for the default. ``exclusive_minimum``: the minimum
    itself is refused.
    """

    name: str
    type: str
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[Any, ...] = ()
    advanced: bool = False
    exclusive_minimum: bool = False


ARCHITECTURES: Final = ("tabm", "mlp", "linear")

FIELDS: Final[tuple[Field, ...]] = (
    Field("architecture", "choice", "tabm",
          "The network: tabm (an efficient ensemble with numeric embeddings, the strongest), "
          "mlp (a plain multilayer perceptron) or linear.", choices=ARCHITECTURES),
    Field("params", "params", {}, "Settings of the architecture itself.", advanced=True),
    Field("epochs", "integer", "auto", "Passes over the training rows, at most; early stopping ends sooner.",
          1, 10_000, words=("auto",)),
    Field("batch_size", "integer", "auto", "Rows in one optimisation step.", 1, 65_536, words=("auto",)),
    Field("learning_rate", "number", "auto", "Peak step size of the optimizer.", 0, 1, words=("auto",),
          exclusive_minimum=True),
    Field("weight_decay", "number", "auto", "Pull of the weights towards zero (AdamW).", 0, 10,
          words=("auto",), advanced=True),
    Field("schedule", "choice", "cosine", "How the learning rate changes over the run.",
          choices=("cosine", "linear", "constant"), advanced=True),
    Field("warmup", "number", 0.05, "Share of the steps in which the learning rate rises from zero.", 0, 0.5,
          advanced=True),
    Field("seed", "integer", 0, "Start of all randomness; the same seed gives the same model.", 0, 2**31 - 1),
    Field("validation_fraction", "number", "auto",
          "Share of the rows held out to measure the model during training.", 0.01, 0.5, words=("auto",)),
    Field("folds", "integer", "auto",
          "1 holds out one validation part. More: the ensemble is divided into that many groups and each "
          "holds out a part of its own, so that small data is used whole.", 1, 16, words=("auto",),
          advanced=True),
    Field("early_stopping", "integer", "auto",
          "Stop after this many epochs without a better validation loss; false never stops.", 1, 10_000,
          words=("auto", False)),
    Field("class_weights", "choice", "auto",
          "Weight of rare classes in the loss: balanced (inverse frequency), none, or auto (square root of "
          "the inverse frequency once the largest class is 4 times the smallest).",
          choices=("auto", "balanced", "none")),
    Field("label_smoothing", "number", "auto", "Share of each label spread over all classes.", 0, 0.5,
          words=("auto",), advanced=True),
    Field("max_grad_norm", "number", 0.0, "Clip the gradient to this norm; 0 does not clip.", 0, 1e6,
          advanced=True),
    Field("precision", "choice", "float32", "Arithmetic of the forward pass.",
          choices=("float32", "bfloat16"), advanced=True),
    Field("devices", "integer", "auto", "Accelerators to train on; auto takes one if there is one.", 1, 1,
          words=("auto",), advanced=True),
    Field("threads", "integer", 0, "CPU threads; 0 chooses from the cores that are free.", 0, 1024,
          advanced=True),
    Field("checkpoint_seconds", "number", 60.0, "Most seconds of work that a crash may cost.", 0.05, 3600,
          advanced=True),
    Field("stall_timeout", "number", 300.0, "Seconds without progress after which the run counts as hung.",
          10, 86_400, advanced=True),
    Field("log_interval", "integer", "auto", "Steps between two points of the training curve; auto: ten "
          "points an epoch on long epochs.", 1, 1_000_000, words=("auto",), advanced=True),
    Field("importance", "boolean", True, "Measure how much each column matters, by permutation.",
          advanced=True),
)  # fmt: skip

_WIDTH = Field("width", "integer", "auto", "Units of a hidden layer.", 1, 4096, words=("auto",))
_LAYERS = Field("layers", "integer", "auto", "Hidden layers.", 1, 16, words=("auto",))
_DROPOUT = Field("dropout", "number", "auto", "Share of units silenced in training.", 0, 0.9, words=("auto",))

PARAMS: Final[dict[str, tuple[Field, ...]]] = {
    "tabm": (
        Field("members", "integer", "auto", "Implicit networks in the ensemble.", 1, 256, words=("auto",)),
        _LAYERS,
        _WIDTH,
        _DROPOUT,
        Field("bins", "integer", "auto", "Pieces of the piecewise-linear encoding of a number.", 2, 128,
              words=("auto",)),
        Field("embedding_size", "integer", "auto", "Numbers that stand for one numeric column.", 1, 128,
              words=("auto",)),
    ),
    "mlp": (_LAYERS, _WIDTH, _DROPOUT),
    "linear": (),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """Checked settings of a run; see `FIELDS` for meaning and limits."""

    architecture: str = "tabm"
    params: dict[str, Any] = field(default_factory=dict)
    epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate: float | Auto = "auto"
    weight_decay: float | Auto = "auto"
    schedule: str = "cosine"
    warmup: float = 0.05
    seed: int = 0
    validation_fraction: float | Auto = "auto"
    folds: int | Auto = "auto"
    early_stopping: int | Auto | Literal[False] = "auto"
    class_weights: str = "auto"
    label_smoothing: float | Auto = "auto"
    max_grad_norm: float = 0.0
    precision: str = "float32"
    devices: int | Auto = "auto"
    threads: int = 0
    checkpoint_seconds: float = 60.0
    stall_timeout: float = 300.0
    log_interval: int | Auto = "auto"
    importance: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `parse_config` reads it back."""
        return asdict(self)


def parse_config(raw: dict[str, Any], task: str) -> TrainingConfig:
    """Check raw settings for a task ("classification" or "regression").

    Raises ConfigError with every problem: unknown key, wrong type, value out of range, or a setting that
    does not go with the task.
    """
    if not isinstance(raw, dict):
        raise ConfigError([("config", "wrong_type", "The settings must be a JSON object.")])
    problems: list[Problem] = []
    if task not in TASKS:
        problems.append(("task", "unknown_choice", f"The task must be one of: {', '.join(TASKS)}."))
    values = _parse_fields(raw, FIELDS, "", problems)
    architecture = values.get("architecture", "tabm")
    if isinstance(params := values.get("params", {}), dict):
        values["params"] = _parse_fields(params, PARAMS[architecture], "params.", problems)
    problems += _task_problems(values, task)
    if problems:
        raise ConfigError(problems)
    return TrainingConfig(**values)


def describe_fields() -> list[dict[str, Any]]:
    """`FIELDS` as JSON, the params of each architecture under ``architectures``."""
    described = [asdict(each) for each in FIELDS]
    by_architecture = {name: [asdict(each) for each in PARAMS[name]] for name in ARCHITECTURES}
    for entry in described:
        if entry["type"] == "params":
            entry["architectures"] = by_architecture
    return described


def _task_problems(values: dict[str, Any], task: str) -> list[Problem]:
    if task != "regression":
        return []
    problems: list[Problem] = []
    if values.get("class_weights", "auto") == "balanced":
        fix = "class_weights is for classification; remove it or set it to auto."
        problems.append(("class_weights", "not_for_task", fix))
    if values.get("label_smoothing", "auto") not in ("auto", 0):
        fix = "label_smoothing is for classification; remove it."
        problems.append(("label_smoothing", "not_for_task", fix))
    return problems


def _parse_fields(
    raw: dict[str, Any], known: tuple[Field, ...], prefix: str, problems: list[Problem]
) -> dict[str, Any]:
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
    if described.type == "params":
        return None if isinstance(value, dict) else ("wrong_type", "must be a JSON object.")
    return _number_problem(described, value)


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
