"""What a run will roughly take, said before it is queued. From the size of the data and of past runs."""

from dataclasses import dataclass
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

# Values (rows × features) a second on one CPU core, used until the organization has runs of its own to judge by.
ASSUMED_SPEED = {"tabm": 60_000.0, "mlp": 2_000_000.0, "linear": 6_000_000.0}
CATEGORY_WIDTH = 8
# What an image and a text that is read in order cost, in columns of a table.
IMAGE_VALUES = 2000
SEQUENCE_VALUES = 1000
JUDGED_RUNS = 5


@dataclass(frozen=True)
class Estimate:
    rows: int
    features: int
    parameters: int | None  # None where the transformers library decides: a pre-flight counts them
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
    types = {column["name"]: column["type"] for column in version.columns}
    kinds = [types.get(name) for name in features]
    size = Size(rows, smallest_class=rows, inputs=len(features), images=kinds.count("image"), texts=kinds.count("text"))
    resolved = resolve(parsed, task, size)
    sequences = size.texts if resolved.text_encoder in SEQUENTIAL else 0
    values = len(features) + size.images * IMAGE_VALUES + sequences * SEQUENCE_VALUES
    epochs = resolved.epochs if isinstance(resolved.epochs, int) else 0
    speed, measured = _speed(version.dataset.organization, resolved.architecture)
    outputs = _outputs(version, task, target)
    return Estimate(
        rows=rows,
        features=len(features),
        parameters=None
        if parsed.text_model or parsed.image_model
        else _parameters(resolved, len(features), _inputs(version, features, resolved), outputs),
        seconds=epochs * rows * values / speed,
        measured=measured,
    )


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


def _speed(organization: Organization, architecture: str) -> tuple[float, bool]:
    """Values a second, loading and evaluating included, and whether that was measured here."""
    past = Run.objects.filter(
        experiment__organization=organization,
        state=Run.State.SUCCEEDED,
        config__architecture__in=[architecture, "auto"],
        attempt=1,
        epoch__gt=0,
        finished_at__gt=F("started_at"),
    ).order_by("-finished_at")
    rows = past.values_list(
        "epoch", "dataset_version__rows", "features", "dataset_version__columns", "started_at", "finished_at"
    )[:JUDGED_RUNS]
    speeds = [
        epoch * (count or 0) * (len(features) if features else max(len(columns) - 1, 1)) / (end - start).total_seconds()
        for epoch, count, features, columns, start, end in rows
    ]
    return (median(speeds), True) if speeds and median(speeds) > 0 else (ASSUMED_SPEED[architecture], False)


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
