"""What a run will roughly take, said before it is queued. From the size of the data and of past runs."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from datasets.models import DatasetVersion
from dlplatform.accounts.models import Organization
from dlplatform.accounts.templatetags.platform import duration, number
from dlplatform.engine.config import ConfigError, TrainingConfig, parse_config
from dlplatform.engine.defaults import Size, resolve

from .models import Run

# Rows a second on one CPU core or two, used until the organization has runs of its own to judge by.
ASSUMED_SPEED = {"tabm": 6_000.0, "mlp": 80_000.0, "linear": 200_000.0}
CATEGORY_WIDTH = 8
JUDGED_RUNS = 5


@dataclass(frozen=True)
class Estimate:
    rows: int
    features: int
    parameters: int
    seconds: float
    measured: bool

    @property
    def words(self) -> str:
        """Honest about its precision: an upper bound that early stopping usually undercuts."""
        ground = "from recent runs here" if self.measured else "a first guess, without runs to go by"
        return (
            f"{number(self.rows)} rows × {number(self.features)} features, about {_round(self.parameters)} parameters, "
            f"at most about {_time(self.seconds)} of training ({ground}; early stopping usually ends sooner)."
        )


def estimate(
    version: DatasetVersion, task: str, target: str, features: list[str], config: dict[str, Any]
) -> Estimate | None:
    """None when the choices do not make a run yet."""
    try:
        parsed = parse_config(config, task)
    except ConfigError:
        return None
    rows = version.rows or 0
    if not rows or not features:
        return None
    resolved = resolve(parsed, task, Size(rows=rows, smallest_class=rows, inputs=len(features)))
    epochs = resolved.epochs if isinstance(resolved.epochs, int) else 0
    speed, measured = _speed(version.dataset.organization, resolved.architecture)
    outputs = _outputs(version, task, target)
    return Estimate(
        rows=rows,
        features=len(features),
        parameters=_parameters(resolved, _inputs(version, features, resolved), outputs),
        seconds=epochs * rows / speed,
        measured=measured,
    )


def _outputs(version: DatasetVersion, task: str, target: str) -> int:
    return max(int(version.profile.get(target, {}).get("distinct") or 2), 2) if task == "classification" else 1


def _inputs(version: DatasetVersion, features: list[str], config: TrainingConfig) -> int:
    """Width of the first layer: an embedding for each column, or the number itself in a linear model."""
    size = int(config.params.get("embedding_size") or 1)
    types = {column["name"]: column["type"] for column in version.columns}
    return sum(size if types.get(name) in ("number", "integer", "datetime") else CATEGORY_WIDTH for name in features)


def _parameters(config: TrainingConfig, inputs: int, outputs: int) -> int:
    if config.architecture == "linear":
        return (inputs + 1) * outputs
    width, layers = int(config.params["width"]), int(config.params["layers"])
    body = inputs * width + (layers - 1) * width * width
    members = int(config.params.get("members", 1))
    return body + members * (inputs + layers * 2 * width + width * outputs)


def _speed(organization: Organization, architecture: str) -> tuple[float, bool]:
    past = Run.objects.filter(
        experiment__organization=organization,
        state=Run.State.SUCCEEDED,
        config__architecture=architecture,
        rows_per_second__gt=0,
    ).order_by("-finished_at")
    speeds = list(past.values_list("rows_per_second", flat=True)[:JUDGED_RUNS])
    return (median(speeds), True) if speeds else (ASSUMED_SPEED[architecture], False)


def _round(value: int) -> str:
    """Two digits: more would claim a precision that this does not have."""
    for unit, name in ((10**9, " billion"), (10**6, " million"), (10**3, ",000")):
        if value >= unit:
            return f"{value / unit:.1f}{name}" if name != ",000" and value < 10 * unit else f"{value // unit}{name}"
    return str(value)


def _time(seconds: float) -> str:
    if seconds < 5:
        return "5 seconds"
    if seconds < 55:
        return f"{max(1, round(seconds / 10)) * 10} seconds"
    if seconds < 3600:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return duration(seconds)
