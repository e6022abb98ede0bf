"""All rows of training."""

from .accelerators import Accelerator
from .code_bundles import CodeBundle
from .experiments import Experiment, ExperimentGroupPermission, ExperimentUserPermission
from .nodes import Node
from .preflights import Preflight, PreflightQuerySet
from .reports import MetricBucket, MetricPoint, MetricSeries, RunEvent
from .runs import ReplayCertificate, Run, RunQuerySet
from .sweeps import Sweep, SweepQuerySet, Trial

__all__ = [
    "Accelerator",
    "CodeBundle",
    "Experiment",
    "ExperimentGroupPermission",
    "ExperimentUserPermission",
    "MetricBucket",
    "MetricPoint",
    "MetricSeries",
    "Node",
    "Preflight",
    "PreflightQuerySet",
    "ReplayCertificate",
    "Run",
    "RunEvent",
    "RunQuerySet",
    "Sweep",
    "SweepQuerySet",
    "Trial",
]
