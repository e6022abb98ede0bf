"""The settings that a sweep searches: which values each may take. Pure, and checked against the engine's own limits."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlplatform.engine.config import ConfigError, Problem, idle_settings, parse_config, unread_settings
from dlplatform.engine.defaults import known_params
from dlplatform.engine.fields import ARCHITECTURES
from dlplatform.engine.transformers_settings import SENSES

from . import tuning

KINDS = ("categorical", "integer", "float")
LARGEST = 10**15  # of what is searched as a range
PARAMS = "params."
LANGUAGE = "language-model"
# A seed is no setting to search: every trial has the seeds of the sweep. Nor is a whole architecture, in one value.
FIXED = ("seed", "params", *SENSES)
# What decides which other settings of fine-tuning count.
CONDITIONS = ("finetune.mode", "finetune.adapter")
ARCHITECTURE = "architecture"  # and of the params
SPLITTING = (*CONDITIONS, ARCHITECTURE)
# And which of all others: of a text whose words are only counted, of bytes. In this order each follows from those before.
DECISIVE = (*SPLITTING, "text_encoder", "tokenizer")
OF_TEXTS_IN_ORDER = ("text_length", "tokenizer", "vocabulary")
MOST_DIMENSIONS = 20
MOST_CHOICES = 100
MOST_POINTS = 50
DEFAULT_POINTS = 5

Value = str | int | float | bool


class SpaceError(ValueError):
    """A search space that cannot be used. ``problems``: (field, code, message with the fix), all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(" ".join(message for _, _, message in problems))
        self.problems = problems


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched, `learning_rate` or `params.width`.

    ``choices`` of a categorical one; ``low`` and ``high``, both included, of a number, on a logarithmic scale with
    ``log``. A grid takes ``points`` values of a number, evenly spread.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    points: int = DEFAULT_POINTS
    choices: tuple[Value, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        if self.kind == "categorical":
            return {"name": self.name, "kind": self.kind, "choices": list(self.choices)}
        return {
            "name": self.name, "kind": self.kind, "low": self.low, "high": self.high, "log": self.log,
            "points": self.points,
        }  # fmt: skip

    def at(self, share: float) -> Value:
        """The value of a number at a share of its range, from 0 to 1."""
        share = min(max(share, 0.0), 1.0)
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind == "integer" else value

    def share(self, value: float) -> float:
        """Where in its range a value of a number lies, from 0 to 1."""
        if self.high <= self.low:
            return 0.5
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def grid(self) -> list[Value]:
        """The values that a grid tries, each once."""
        if self.kind == "categorical":
            return list(self.choices)
        count = self.points if self.high > self.low else 1
        return list(dict.fromkeys(self.at(index / max(count - 1, 1)) for index in range(count)))


def parse_space(
    raw: Any, config: dict[str, Any], task: str, finetune: Mapping[str, Any] | None = None
) -> list[Dimension]:
    """The dimensions of a search; ``config`` are the settings that all trials share, ``finetune`` those of fine-tuning in
    a search that starts from a base.

    Raises SpaceError with every problem: a setting that is unknown, searched twice, fixed besides or of no effect in any
    trial, a range that is empty, and ends that the engine refuses.
    """
    if not isinstance(raw, list) or not raw:
        raise SpaceError([("space", "required", "Name at least one setting to search.")])
    if len(raw) > MOST_DIMENSIONS:
        raise SpaceError([("space", "too_many", f"Search at most {MOST_DIMENSIONS} settings at once.")])
    problems: list[Problem] = []
    dimensions: list[Dimension] = []
    for number, entry in enumerate(raw):
        found = _dimension(f"space.{number}", entry, problems)
        if found is None:
            continue
        if found.name in {one.name for one in dimensions}:
            problems.append((f"space.{number}.name", "unique", f"{found.name} is searched twice; name it once."))
        problems += _refused(f"space.{number}", found, config, task, finetune)
        dimensions.append(found)
    if not problems:
        problems = _of_no_architecture(dimensions)
    if not problems and finetune is not None:
        problems = _without_effect(dimensions, finetune)
    if problems:
        raise SpaceError(problems)
    return dimensions


def _dimension(where: str, entry: Any, problems: list[Problem]) -> Dimension | None:
    if not isinstance(entry, dict):
        problems.append((where, "wrong_type", "Describe a setting as {name, kind, …}."))
        return None
    unknown = sorted(set(entry) - {"name", "kind", "low", "high", "log", "points", "choices"}, key=str)
    if unknown:
        text = "There is no such key; known ones: name, kind, low, high, log, points, choices."
        problems.append((f"{where}.{str(unknown[0])[:40]}", "unknown_field", text))
        return None
    name, kind = entry.get("name"), entry.get("kind")
    if not isinstance(name, str) or not name or name in FIXED:
        problems.append(
            (f"{where}.name", "invalid", "Name a setting of one value other than the seed, such as learning_rate.")
        )
        return None
    if kind not in KINDS:
        problems.append((f"{where}.kind", "unknown_choice", f"Choose one of: {', '.join(KINDS)}."))
        return None
    return _categorical(where, name, entry, problems) if kind == KINDS[0] else _range(where, name, entry, problems)


def _categorical(where: str, name: str, entry: dict[str, Any], problems: list[Problem]) -> Dimension | None:
    choices = entry.get("choices")
    if not isinstance(choices, list) or not 1 <= len(choices) <= MOST_CHOICES:
        problems.append((f"{where}.choices", "invalid", f"Give 1 to {MOST_CHOICES} values to choose from."))
        return None
    if not all(isinstance(one, str | int | float | bool) for one in choices):
        problems.append((f"{where}.choices", "wrong_type", "Values are texts, numbers, true or false."))
        return None
    if len({(type(one), one) for one in choices}) < len(choices):
        problems.append((f"{where}.choices", "unique", "A value is there twice; name it once."))
        return None
    return Dimension(name, "categorical", choices=tuple(choices))


def _range(where: str, name: str, entry: dict[str, Any], problems: list[Problem]) -> Dimension | None:
    low, high = entry.get("low"), entry.get("high")
    kind, log, points = entry["kind"], entry.get("log", False), entry.get("points", DEFAULT_POINTS)
    wanted: type | tuple[type, ...] = int if kind == "integer" else (int, float)
    for end, value in (("low", low), ("high", high)):
        plain = isinstance(value, wanted) and not isinstance(value, bool)
        if not plain or not -LARGEST <= value <= LARGEST:  # type: ignore[operator]
            text = "Give a whole number." if kind == "integer" else "Give a number."
            problems.append((f"{where}.{end}", "wrong_type", text))
            return None
    assert low is not None and high is not None
    if low > high:
        problems.append((f"{where}.high", "out_of_range", "The upper end must not lie below the lower one."))
    elif not isinstance(log, bool):
        problems.append((f"{where}.log", "wrong_type", "Give true or false."))
    elif log and low <= 0:
        problems.append((f"{where}.low", "out_of_range", "A logarithmic range begins above 0."))
    elif isinstance(points, bool) or not isinstance(points, int) or not 1 <= points <= MOST_POINTS:
        problems.append((f"{where}.points", "out_of_range", f"Give a whole number from 1 to {MOST_POINTS}."))
    else:
        return Dimension(name, kind, low, high, log, points)
    return None


def _refused(
    where: str, one: Dimension, config: dict[str, Any], task: str, finetune: Mapping[str, Any] | None
) -> list[Problem]:
    """What the engine says to the ends of a range, or to a choice; each complaint once."""
    ends = one.choices if one.kind == "categorical" else (one.at(0.0), one.at(1.0))
    keys = ["choices"] * len(ends) if one.kind == "categorical" else ["low", "high"]
    found: dict[str, Problem] = {}
    for key, value in zip(keys, ends, strict=True):
        for field, code, message in _problems_with(one.name, value, config, task, finetune):
            if field == one.name:
                key = "name" if code == "unknown_field" else key
                found.setdefault(key, (f"{where}.{key}", code, message))
    return list(found.values())


def _problems_with(
    name: str, value: Value, config: dict[str, Any], task: str, finetune: Mapping[str, Any] | None
) -> list[Problem]:
    if name.startswith(tuning.PREFIX):
        return tuning.problems_with(name, value, finetune)
    settings = with_settings(config, {name: value})
    try:
        parse_config(settings, task)
    except ConfigError as error:
        return error.problems
    return idle_settings(settings, task) + (unread_settings(settings, task) if finetune is None else [])


def _without_effect(dimensions: Sequence[Dimension], finetune: Mapping[str, Any]) -> list[Problem]:
    """Settings of fine-tuning that no mode of any trial knows: every trial would be the same."""
    searched = {tuning.bare(one.name): one.grid() for one in dimensions if one.name in CONDITIONS}
    found = tuning.conditions(finetune, searched)
    return [
        (
            f"space.{number}.name", "not_for_mode",
            f"{one.name} counts in {tuning.where_it_counts(tuning.bare(one.name))} only, which no trial has; "
            "search finetune.mode too, or remove this.",
        )
        for number, one in enumerate(dimensions)
        if one.name.startswith(tuning.PREFIX) and not any(tuning.counts(tuning.bare(one.name), each) for each in found)
    ]  # fmt: skip


def _of_no_architecture(dimensions: Sequence[Dimension]) -> list[Problem]:
    """Params that none of the architectures which are searched knows."""
    searched = [value for one in dimensions if one.name == ARCHITECTURE for value in one.choices]
    return [
        (
            f"space.{number}.name", "unknown_field",
            f"{one.name} is no setting of any architecture that is searched; search another one too, or remove this.",
        )
        for number, one in enumerate(dimensions)
        if searched and not any(_knows(each, one.name) for each in searched)
    ]  # fmt: skip


def _knows(architecture: Any, name: str) -> bool:
    """Whether a setting is none of the params, or one of an architecture; those of one's own are for the code to know."""
    of_ours = name.startswith(PARAMS) and architecture in ARCHITECTURES
    return not of_ours or name.removeprefix(PARAMS) in known_params(architecture)


def with_settings(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration with flat settings (`params.width`) put into it; those of fine-tuning are no part of it, nor params
    that an architecture among the settings does not know."""
    settings = {name: value for name, value in settings.items() if not name.startswith(tuning.PREFIX)}
    plain = {name: value for name, value in settings.items() if not name.startswith(PARAMS)}
    params = {name.removeprefix(PARAMS): value for name, value in settings.items() if name.startswith(PARAMS)}
    merged = {**config, **plain}
    if params:
        merged["params"] = {**config.get("params", {}), **params}
    if ARCHITECTURE in plain and "params" in merged:
        given, drawn = merged["params"], plain[ARCHITECTURE]
        merged["params"] = {name: value for name, value in given.items() if _knows(drawn, f"{PARAMS}{name}")}
    return merged


def counting(
    point: Mapping[str, Any], config: Mapping[str, Any], finetune: Mapping[str, Any] | None, task: str
) -> dict[str, Any]:
    """What of a point does anything in its trial, beside what all trials share."""
    kept = tuning.effective(finetune, point)
    chosen = {**config, **kept}
    return {name: value for name, value in kept.items() if not _is_idle(name, chosen, task)}


def _is_idle(name: str, chosen: Mapping[str, Any], task: str) -> bool:
    if name == "vocabulary" and chosen.get("tokenizer") == "byte":
        return True
    if not _knows(chosen.get(ARCHITECTURE), name):
        return True
    of_order = name in OF_TEXTS_IN_ORDER or name.startswith(f"{PARAMS}text_")
    # A language model reads in order whatever is said of encoders.
    return of_order and task != LANGUAGE and chosen.get("text_encoder") == "hashed"


def dimensions_of(space: list[dict[str, Any]]) -> list[Dimension]:
    """The dimensions that `to_dict` wrote."""
    return [Dimension(**{**entry, "choices": tuple(entry.get("choices", ()))}) for entry in space]


def grid_size(dimensions: Sequence[Dimension]) -> int:
    """How many points a grid has that differ in something that counts."""
    rest = [one for one in dimensions if one.name not in SPLITTING]
    kinds = {
        _essence(point): _effective(point) for point in _points([one for one in dimensions if one.name in SPLITTING])
    }
    return sum(math.prod(len(one.grid()) for one in rest if _counts(one.name, kind)) for kind in kinds.values())


def _counts(name: str, kind: Mapping[str, Any]) -> bool:
    """Whether a setting does anything beside a mode, an adapter and an architecture."""
    if not name.startswith(tuning.PREFIX):
        return _knows(kind.get(ARCHITECTURE), name)
    return tuning.counts(tuning.bare(name), tuning.of_finetuning(kind))


def _effective(point: Mapping[str, Any]) -> dict[str, Any]:
    """What of a point of a grid does anything in its mode and its architecture."""
    kept = tuning.effective(None, point)
    return {name: value for name, value in kept.items() if _knows(point.get(ARCHITECTURE), name)}


def grid_order(dimensions: Sequence[Dimension], seed: int) -> Iterator[dict[str, Value]]:
    """Every point of the grid once, in an order of chance that the seed decides. Of points that differ only in what does
    not count in their mode and architecture the first one stands for all."""
    points = _points(dimensions)
    if any(one.name in SPLITTING for one in dimensions):
        points = list({_essence(point): point for point in reversed(points)}.values())[::-1]
    random.Random(seed).shuffle(points)  # noqa: S311 - no secret
    yield from points


def _points(dimensions: Sequence[Dimension]) -> list[dict[str, Value]]:
    names = [one.name for one in dimensions]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(one.grid() for one in dimensions))]


def _essence(point: dict[str, Value]) -> tuple[tuple[str, type, Value], ...]:
    return tuple((name, type(value), value) for name, value in _effective(point).items())
