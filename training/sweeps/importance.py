"""Which settings matter: functional ANOVA (Hutter, Hoos, Leyton-Brown, 2014) over the trials that ended."""

import math
from typing import Any

from training.models import Sweep, Trial

from .sampling import Past, frozen_trial
from .space import dimensions_of

FEWEST = 4  # below, any share would be made up
EVERY = 5


def store_importance(sweep: Sweep) -> None:
    """Compute the shares anew at the end, and now and then before."""
    ended = sweep.trials.filter(state=Trial.State.SUCCEEDED, value__isnull=False)
    count = ended.count()
    if count >= FEWEST and (sweep.ended or count % EVERY == 0):
        shares = importance(sweep.space, [(one.params, one.value) for one in ended if one.value is not None])
        Sweep.objects.filter(pk=sweep.pk).update(importance=shares)


def importance(space: list[dict[str, Any]], ended: list[tuple[dict[str, Any], float]]) -> dict[str, float] | None:
    """{setting: share of the variance of the metric}, greatest first; None where nothing varies."""
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
