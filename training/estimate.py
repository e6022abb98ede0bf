"""What a run will roughly take, said before it is queued. From the size of the data and of past runs."""

from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from django.db.models import F

from datasets.models import DatasetVersion
from dlplatform.accounts.models import Organization
from dlplatform.accounts.templatetags.platform import counted, duration
from dlplatform.engine.config import ConfigError, TrainingConfig, parse_config
from dlplatform.engine.defaults import Size, resolve
from dlplatform.engine.fields import SEQUENTIAL

from .models import Run

# Values a second on one CPU core, used until the organization has runs of its own to judge by.
ASSUMED_SPEED = {"tabm": 60_000.0, "mlp": 2_000_000.0, "linear": 6_000_000.0}
CATEGORY_WIDTH = 8
# What an image and a text that is read in order cost, in columns of a table.
IMAGE_VALUES = 2000
SEQUENCE_VALUES = 1000
JUDGED_RUNS = 5
LOOKED_AT = 40


@dataclass(frozen=True)
class Estimate:
    rows: int
    features: int
    parameters: int | None  # None where images or texts are read by a network of their own: a pre-flight counts them
    seconds: float
    measured: bool

    @property
    def words(self) -> str:
        """Honest about its precision: an upper bound that early stopping usually undercuts."""
        ground = "from recent runs here" if self.measured else "a first guess, without runs to go by"
        sized = f"about {_round(self.parameters)} parameters, " if self.parameters is not None else ""
        return (
            f"{counted(self.rows, 'row')} × {counted(self.features, 'feature')}, {sized}"
            f"at most about {_time(self.seconds)} of training ({ground}; early stopping usually ends sooner)."
        )


@dataclass(frozen=True)
class _Work:
    """What one pass over one row costs: ``values`` counts columns of a table."""

    config: TrainingConfig
    values: int

    @property
    def deep(self) -> bool:
        """Whether images or texts are read in order; such runs say nothing about tables, nor tables about them."""
        return self.values >= SEQUENCE_VALUES


def estimate(
    version: DatasetVersion, task: str, target: str, features: list[str], config: dict[str, Any]
) -> Estimate | None:
    """None when the choices do not make a run yet."""
    rows = version.rows or 0
    if not rows or not features:
        return None
    try:
        work = _work(rows, version.columns, features, task, config)
    except ConfigError:
        return None
    if work.config.architecture not in ASSUMED_SPEED:
        return None
    epochs = work.config.epochs if isinstance(work.config.epochs, int) else 0
    speed, measured = _speed(version.dataset.organization, work)
    return Estimate(
        rows=rows,
        features=len(features),
        parameters=None if work.deep else _parameters_of(version, task, target, features, work.config),
        seconds=epochs * rows * work.values / speed,
        measured=measured,
    )


def _work(rows: int, columns: list[dict[str, Any]], features: list[str], task: str, config: dict[str, Any]) -> _Work:
    """Raises ConfigError."""
    types = {column["name"]: column["type"] for column in columns}
    kinds = [types.get(name) for name in features]
    size = Size(rows, smallest_class=rows, inputs=len(kinds), images=kinds.count("image"), texts=kinds.count("text"))
    resolved = resolve(parse_config(config, task), task, size)
    sequences = size.texts if resolved.text_encoder in SEQUENTIAL else 0
    return _Work(resolved, max(len(kinds), 1) + size.images * IMAGE_VALUES + sequences * SEQUENCE_VALUES)


def _parameters_of(
    version: DatasetVersion, task: str, target: str, features: list[str], config: TrainingConfig
) -> int | None:
    return _parameters(config, len(features), _inputs(version, features, config), _outputs(version, task, target))


def _outputs(version: DatasetVersion, task: str, target: str) -> int:
    return max(int(version.profile.get(target, {}).get("distinct") or 2), 2) if task == "classification" else 1


def _inputs(version: DatasetVersion, features: list[str], config: TrainingConfig) -> int:
    """Width of the first layer: an embedding for each column, or the number itself in a linear model."""
    size = int(config.params.get("embedding_size") or 1)
    types = {column["name"]: column["type"] for column in version.columns}
    return sum(size if types.get(name) in ("number", "integer", "datetime") else CATEGORY_WIDTH for name in features)


def _parameters(config: TrainingConfig, features: int, inputs: int, outputs: int) -> int:
    """The weights of one fold times the folds, and those of every member of the ensemble."""
    folds = config.folds if isinstance(config.folds, int) else 1
    if config.architecture == "linear" or "width" not in config.params:
        return folds * (inputs + 1) * outputs
    width, layers = int(config.params["width"]), int(config.params["layers"])
    body = inputs * width + (layers - 1) * width * width
    if config.architecture == "mlp":
        return folds * (body + (layers + outputs) * width)
    embedding = features * (int(config.params["bins"]) + 2) * int(config.params["embedding_size"])
    members = int(config.params["members"])
    return folds * (body + embedding) + members * (inputs + layers * 2 * width + width * outputs)


def _speed(organization: Organization, work: _Work) -> tuple[float, bool]:
    """Values a second, loading and evaluating included, and whether that was measured here on runs of this kind."""
    past = (
        Run.objects.filter(
            experiment__organization=organization,
            state=Run.State.SUCCEEDED,
            config__architecture__in=[work.config.architecture, "auto"],
            attempt=1,
            epoch__gt=0,
            base_version=None,
            finished_at__gt=F("started_at"),
        )
        .exclude(task=Run.Task.LANGUAGE_MODEL)
        .select_related("dataset_version")
        .defer("dataset_version__profile")
        .order_by("-finished_at")[:LOOKED_AT]
    )
    speeds = list(islice((speed for run in past if (speed := _speed_of(run, work)) is not None), JUDGED_RUNS))
    return (median(speeds), True) if speeds else (ASSUMED_SPEED[work.config.architecture], False)


def _speed_of(run: Run, like: _Work) -> float | None:
    """Values a second of a run that has ended; None when it did work of another kind."""
    version = run.dataset_version
    assert run.started_at is not None and run.finished_at is not None
    targets = run.targets or [run.target]
    features = run.features or [column["name"] for column in version.columns if column["name"] not in targets]
    try:
        done = _work(version.rows or 1, version.columns, features, run.task, run.config)
    except ConfigError:  # of settings that are no longer known
        return None
    if (done.config.architecture, done.deep) != (like.config.architecture, like.deep):
        return None
    return run.epoch * (version.rows or 1) * done.values / (run.finished_at - run.started_at).total_seconds()


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
