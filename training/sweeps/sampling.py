"""The settings of the next trial, from those before it: the same trials always lead to the same proposal.

Nothing is kept between two proposals but the trials themselves: Optuna's study is made anew from them each time, and
CMA-ES is replayed. Of a trial TPE is told what counted in it, and nothing of what was drawn besides. Optuna is imported only where it is used, for it takes most of a second.
"""

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from .space import DECISIVE, Dimension, Value, grid_order, grid_size

STREAM = 1_000_003  # keeps the streams of (seed, number) apart
SIGMA = 0.3  # of CMA-ES at its start, of ranges from 0 to 1


@dataclass(frozen=True)
class Past:
    """A trial as a sampler sees it. ``state``: succeeded, pruned, failed, or anything else while it is under way.

    ``value``: the metric, lower is better. ``rungs``: {epoch: the metric there}.
    """

    params: dict[str, Any]
    state: str
    value: float | None = None
    rungs: dict[int, float] = field(default_factory=dict)


# What of a point, or of the part of one that is known, does anything in its trial.
Counting = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def propose(
    sampler: str, dimensions: Sequence[Dimension], seed: int, past: Sequence[Past], counting: Counting = dict
) -> dict[str, Value] | None:
    """Settings for one more trial, the metric being minimized; all of them, those that do nothing by chance.

    None when there is none now: a grid is through, or CMA-ES waits for the rest of a generation.
    """
    if sampler == "grid":
        return _of_grid(dimensions, seed, len(past))
    if sampler == "cmaes":
        return _by_cmaes(dimensions, seed, past)
    if sampler == "tpe" and any(one.name in DECISIVE for one in dimensions):
        return _by_conditions(dimensions, seed, past, counting)
    return _by_optuna(sampler, dimensions, seed, past)


def _of_grid(dimensions: Sequence[Dimension], seed: int, number: int) -> dict[str, Value] | None:
    if number >= grid_size(dimensions):
        return None
    return next(islice(grid_order(dimensions, seed), number, None))


# --- TPE and random -----------------------------------------------------------------------------------


def _by_optuna(sampler: str, dimensions: Sequence[Dimension], seed: int, past: Sequence[Past]) -> dict[str, Value]:
    """TPE (Bergstra et al., 2011; Watanabe, 2023, arXiv 2304.11127), or uniform chance."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = _stream(seed, past)
    chosen = optuna.samplers.RandomSampler(drawn) if sampler == "random" else optuna.samplers.TPESampler(seed=drawn)
    study = optuna.create_study(direction="minimize", sampler=chosen)
    for one in past:
        study.add_trial(frozen_trial(one, dimensions))
    return dict(study.ask({one.name: _distribution(one) for one in dimensions}).params)


def _by_conditions(
    dimensions: Sequence[Dimension], seed: int, past: Sequence[Past], counting: Counting
) -> dict[str, Value]:
    """TPE where some settings decide whether others count: those first, then what counts beside them. Settings that always
    go together are modelled together, each group by the trials that had it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        chosen = optuna.samplers.TPESampler(seed=_stream(seed, past), multivariate=True, group=True)
    study = optuna.create_study(direction="minimize", sampler=chosen)
    for one in past:
        study.add_trial(frozen_trial(replace(one, params=dict(counting(one.params))), dimensions))
    trial, point = study.ask(), dict[str, Value]()
    for each in sorted(dimensions, key=_decides):
        if each.name in counting({**point, each.name: each.grid()[0]}):
            point[each.name] = _suggested(trial, each)
    chance = random.Random(_stream(seed, past))  # noqa: S311 - no secret
    return {each.name: point[each.name] if each.name in point else _by_chance(each, chance) for each in dimensions}


def _decides(one: Dimension) -> int:
    """Its place among what decides whether others count; those come first."""
    return DECISIVE.index(one.name) if one.name in DECISIVE else len(DECISIVE)


def _suggested(trial: Any, one: Dimension) -> Value:
    if one.kind == "categorical":
        value: Value = trial.suggest_categorical(one.name, one.choices)
    elif one.kind == "integer":
        value = trial.suggest_int(one.name, int(one.low), int(one.high), log=one.log)
    else:
        value = trial.suggest_float(one.name, one.low, one.high, log=one.log)
    return value


def _by_chance(one: Dimension, chance: random.Random) -> Value:
    return chance.choice(one.choices) if one.kind == "categorical" else one.at(chance.random())


def _stream(seed: int, past: Sequence[Past]) -> int:
    return (seed * STREAM + len(past)) % 2**32


def _distribution(one: Dimension) -> Any:
    from optuna import distributions

    if one.kind == "categorical":
        return distributions.CategoricalDistribution(one.choices)
    if one.kind == "integer":
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return distributions.FloatDistribution(one.low, one.high, log=one.log)


def frozen_trial(one: Past, dimensions: Sequence[Dimension]) -> Any:
    """A trial as Optuna keeps it, with those of the dimensions that its params have."""
    from optuna.trial import TrialState, create_trial

    states = {"succeeded": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    state = states.get(one.state, TrialState.RUNNING)
    if state == TrialState.COMPLETE and (one.value is None or not math.isfinite(one.value)):
        state = TrialState.FAIL
    return create_trial(
        state=state, value=one.value if state == TrialState.COMPLETE else None, params=one.params,
        distributions={each.name: _distribution(each) for each in dimensions if each.name in one.params},
        intermediate_values=one.rungs,
    )  # fmt: skip


# --- CMA-ES -------------------------------------------------------------------------------------------


def _by_cmaes(dimensions: Sequence[Dimension], seed: int, past: Sequence[Past]) -> dict[str, Value] | None:
    """CMA-ES (Hansen, 2016, arXiv 1604.00772) over the numbers, replayed generation by generation.

    Settings without an order are drawn by chance. A generation begins when the one before it is through.
    """
    numbers = [one for one in dimensions if one.kind != "categorical"]
    chance = random.Random(seed * STREAM + len(past))  # noqa: S311 - no secret
    drawn = {one.name: chance.choice(one.choices) for one in dimensions if one.kind == "categorical"}
    if len(numbers) < 2:  # which CMA-ES is not made for
        return drawn | {one.name: one.at(chance.random()) for one in numbers}
    optimizer = _optimizer(len(numbers), seed)
    size = optimizer.population_size
    for start in range(0, len(past) - len(past) % size, size):
        generation = past[start : start + size]
        if any(not _ended(one) for one in generation):
            return None
        worst = max((one.value for one in generation if one.value is not None), default=0.0)
        optimizer.tell([(_point(one, numbers), _judged(one, worst)) for one in generation])
    for _ in range(len(past) % size):
        optimizer.ask()
    point = optimizer.ask()
    return drawn | {one.name: one.at(float(share)) for one, share in zip(numbers, point, strict=True)}


def _optimizer(count: int, seed: int) -> Any:
    import numpy as np
    from cmaes import CMA

    bounds = np.array([[0.0, 1.0]] * count)
    return CMA(mean=np.full(count, 0.5), sigma=SIGMA, bounds=bounds, seed=seed % 2**32)


def _point(one: Past, numbers: Sequence[Dimension]) -> Any:
    import numpy as np

    return np.array([dimension.share(one.params[dimension.name]) for dimension in numbers])


def _ended(one: Past) -> bool:
    """Or waits at a rung, where it may stay for good."""
    return one.state in ("succeeded", "pruned", "failed", "cancelled", "paused")


def _judged(one: Past, worst: float) -> float:
    """A trial without a value counts like the worst of its generation."""
    return worst if one.value is None else one.value
