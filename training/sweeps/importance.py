"""Which settings matter: functional ANOVA (Hutter, Hoos, Leyton-Brown, 2014) over the trials that ended."""

import math
from typing import Any

from training.models import Sweep, Trial

from .sampling import Past, frozen_trial
from .space import dimensions_of

FEWEST = 4  # below, any share would be made up
ENOUGH = 10
EVERY = 5


def store_importance(sweep: Sweep) -> None:
    """Compute the shares anew at the end, and now and then before."""
    measured = comparable(sweep)
    if len(measured) >= FEWEST and (sweep.ended or len(measured) % EVERY == 0):
        Sweep.objects.filter(pk=sweep.pk).update(importance=importance(sweep.space, measured))


def comparable(sweep: Sweep) -> list[tuple[dict[str, Any], float]]:
    """(settings, metric) of trials that were measured after the same epochs.

    Those that trained to the end when they are many, else those at the last rung that many reached.
    """
    trials = list(sweep.trials.all())
    ended = [(one.params, one.value) for one in trials if one.state == Trial.State.SUCCEEDED and one.value is not None]
    if len(ended) >= ENOUGH:
        return ended
    for rung in reversed(range(len(sweep.rungs))):
        reached = [(one.params, one.rung_values[rung]) for one in trials if len(one.rung_values) > rung]
        if len(reached) >= ENOUGH:
            return reached
    return ended


def importance(space: list[dict[str, Any]], ended: list[tuple[dict[str, Any], float]]) -> dict[str, float] | None:
    """{setting: share of the variance of the metric}; None where nothing varies."""
    import optuna

    dimensions = dimensions_of(space)
    varied = [one for one in dimensions if len({params[one.name] for params, _ in ended}) > 1]
    if not varied or len({value for _, value in ended}) < 2:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    for params, value in ended:
        study.add_trial(frozen_trial(Past(params, "succeeded", value), dimensions))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=[one.name for one in varied])
    return {name: share for name, share in shares.items() if math.isfinite(share)}
