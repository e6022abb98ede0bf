"""What Prometheus reads of an inference server: of models and requests by their ids, nothing of anybody's data."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from registry.serving import prediction_log

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
# (name, what it is, how processes that share the port are put together)
HELD = (
    ("loaded_models", "Models in memory", "livesum"),
    ("loaded_bytes", "Bytes of the models in memory", "livesum"),
    ("deployments", "Deployments that are served", "livemax"),
    ("unloadable_models", "Deployed models that cannot be loaded", "livemax"),
    ("loading_models", "Deployed models that are being loaded", "livesum"),
    ("resting_shadows", "Shadows whose process ended again and again and is not started yet", "livesum"),
    ("log_backlog", "Records that wait for the database", "livesum"),
)
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # the library's: a folder through which processes add up, set before it is imported
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Answered:
    """What a variant has answered: how many requests in how many seconds together, and how many failed."""

    count: int = 0
    seconds: float = 0.0
    failed: int = 0


class Metrics:
    """Counted as it happens; what is held is told by `publish`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["deployment", "variant"]
        self._seconds = Histogram(
            "dlplatform_inference_seconds", "From the choice of the variant to its answer", labels, buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._requests = Counter(
            "dlplatform_inference_requests", "Requests by variant and error, which is empty for an answer",
            [*labels, "error"], registry=self._registry,
        )  # fmt: skip
        self._copies = Counter(
            "dlplatform_inference_shadow_copies", "Copies for shadows by what became of them: error, dropped, or empty",
            [*labels, "error"], registry=self._registry,
        )  # fmt: skip
        self._ends = Counter(
            "dlplatform_inference_process_ends", "How often the process of a model with code of its own ended of itself",
            ["version"], registry=self._registry,
        )  # fmt: skip
        self._rows = Histogram(
            "dlplatform_inference_batch_rows", "Rows that were run together", buckets=ROWS, registry=self._registry
        )
        self._queue = Histogram(
            "dlplatform_inference_queue_seconds", "How long the first request of a batch waited", buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._waiting = self._gauge("waiting", "Requests in queues", "livesum", ["queue"])
        self._held = {name: self._gauge(name, told, mode) for name, told, mode in HELD}
        self._runtimes = self._gauge(
            "compiled",
            "How versions answer that are to be compiled, or that answer as graphs without being asked to: compiled, graph "
            "(for onnxruntime), or eager with the reason", "livesum",
            ["version", "runtime", "reason"],
        )  # fmt: skip
        self._told_runtimes: set[tuple[str, str, str]] = set()
        lost = "Records that the database did not take in time"
        self._lost = Counter("dlplatform_inference_log_lost", lost, registry=self._registry)
        self._told_lost = 0
        self._told: dict[tuple[Any, Any, str], tuple[Any, Any]] = {}
        self._told_copies: dict[tuple[Any, Any, str], Any] = {}

    def _gauge(self, name: str, told: str, mode: Any, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"dlplatform_inference_{name}", told, labels, registry=self._registry, multiprocess_mode=mode)

    def answered(self, deployment: Any, variant: Any, error: str, seconds: float) -> None:
        """A request came to its end."""
        told = self._told.get((deployment, variant, error)) or self._to_tell(deployment, variant, error)
        told[0].inc()
        if not error:
            told[1].observe(seconds)

    def _to_tell(self, deployment: Any, variant: Any, error: str) -> tuple[Any, Any]:
        """The library looks its children up anew each time, which is longer than counting takes."""
        names = (str(deployment), str(variant))
        told = (self._requests.labels(*names, error), self._seconds.labels(*names))
        self._told[deployment, variant, error] = told
        return told

    def copied(self, deployment: Any, variant: Any, error: str) -> None:
        """A copy for a shadow came to its end."""
        told = self._told_copies.get((deployment, variant, error))
        if told is None:
            told = self._told_copies[deployment, variant, error] = self._copies.labels(
                str(deployment), str(variant), error
            )
        told.inc()

    def process_ended(self, version: Any) -> None:
        """A sandbox is no more, and nobody had ended it."""
        self._ends.labels(str(version)).inc()

    def batch(self, rows: int, waited: float) -> None:
        """So many rows were begun together."""
        self._rows.observe(rows)
        self._queue.observe(waited)

    def publish(self, server: Any) -> None:
        """Tell what this inference server holds; called now and then, and before somebody reads."""
        models, watcher = server.models, server.watcher
        self._waiting.labels("live").set(models.live.waiting)
        self._waiting.labels("shadow").set(models.shadow.waiting)
        for name, value in (
            ("loaded_models", len(models.cache)),
            ("loaded_bytes", sum(models.cache.sizes.values())),
            ("deployments", sum(one.active for one in list(watcher.served.values()))),
            ("unloadable_models", len(watcher.unloadable)),
            ("loading_models", len(watcher.loading)),
            ("resting_shadows", len(models.rests.told())),
            ("log_backlog", prediction_log.buffer.waiting),
        ):
            self._held[name].set(value)
        self._publish_runtimes(models)
        lost, self._told_lost = prediction_log.buffer.lost_ever - self._told_lost, prediction_log.buffer.lost_ever
        self._lost.inc(max(0, lost))

    def _publish_runtimes(self, models: Any) -> None:
        """How each version answers is a series of its own; one that held before becomes 0."""
        now = {(str(version), each.runtime, each.reason) for version, each in models.compiling.told.items()}
        for labels in self._told_runtimes - now:
            self._runtimes.labels(*labels).set(0)
        for labels in now:
            self._runtimes.labels(*labels).set(1)
        self._told_runtimes |= now

    def text(self) -> bytes:
        """Of this process; of all of them where several share the port."""
        return generate_latest(self._all())

    def by_variant(self) -> dict[str, Answered]:
        """By the variant's id, as `text` tells it."""
        found: dict[str, Answered] = {}
        for family in self._all().collect():
            for sample in family.samples:
                variant = sample.labels.get("variant", "")
                told = found.setdefault(variant, Answered())
                if sample.name == "dlplatform_inference_seconds_count":
                    told.count += int(sample.value)
                elif sample.name == "dlplatform_inference_seconds_sum":
                    told.seconds += sample.value
                elif sample.name == "dlplatform_inference_requests_total" and sample.labels["error"]:
                    told.failed += int(sample.value)
        return found

    def _all(self) -> CollectorRegistry:
        folder = os.environ.get(SHARED)
        if folder is None:
            return self._registry
        _forget_the_dead(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)
        return registry


def _forget_the_dead(folder: Path) -> None:
    """What a process held that is no more is not added up."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            mark_process_dead(int(pid), str(folder))
