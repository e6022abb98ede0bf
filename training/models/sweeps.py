"""Searches over settings: many runs, drawn and judged together."""

import uuid

from django.db import models
from django.db.models import Q

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantQuerySet, User
from registry.models import ModelVersion

from .code_bundles import CodeBundle
from .experiments import Experiment


class SweepQuerySet(TenantQuerySet):
    pass


class Sweep(models.Model):
    """A search for the best settings: trials are drawn from a space and trained as runs in the ordinary queue.

    Trials and their runs are all there is to know: what comes next follows from these rows (training/sweeps).
    """

    tenant_parent = "experiment"

    class State(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"
        FINISHED = "finished"
        CANCELLED = "cancelled"

    class Sampler(models.TextChoices):
        TPE = "tpe", "TPE"
        CMAES = "cmaes", "CMA-ES"
        RANDOM = "random"
        GRID = "grid"

    class Pruner(models.TextChoices):
        NONE = "none"
        MEDIAN = "median"
        ASHA = "asha", "ASHA"

    class Direction(models.TextChoices):
        MINIMIZE = "minimize"
        MAXIMIZE = "maximize"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="sweeps")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, editable=False)
    state = models.CharField(max_length=20, choices=State.choices, default=State.RUNNING, editable=False)
    name = models.CharField(max_length=120)
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="sweeps")
    task = models.CharField(max_length=40)
    targets = models.JSONField(help_text="Names of the target columns")
    features = models.JSONField(null=True, help_text="Input columns; null = all but the target")
    config = models.JSONField(default=dict, help_text="Settings that all trials share")
    code = models.ForeignKey(
        CodeBundle, null=True, on_delete=models.PROTECT, related_name="sweeps", help_text="Code of a user's own"
    )
    entry = models.CharField(max_length=1000, blank=True, help_text="File of the code to start with")
    base_version = models.ForeignKey(
        ModelVersion, null=True, on_delete=models.PROTECT, related_name="sweeps",
        help_text="The version that every trial fine-tunes",
    )  # fmt: skip
    finetune = models.JSONField(null=True, help_text="Settings of fine-tuning that all trials share: mode, rank, …")
    space = models.JSONField(help_text="Settings that are searched: [{name, kind, low, high, log, points, choices}]")
    sampler = models.CharField(max_length=10, choices=Sampler.choices, default=Sampler.TPE)
    pruner = models.CharField(max_length=10, choices=Pruner.choices, default=Pruner.NONE)
    rungs = models.JSONField(default=list, help_text="Epochs after which trials are judged")
    eta = models.PositiveSmallIntegerField(default=3, help_text="ASHA: one trial in so many goes on from a rung")
    metric = models.CharField(max_length=120)
    direction = models.CharField(max_length=10, choices=Direction.choices)
    trial_count = models.PositiveIntegerField(help_text="Trials to draw")
    parallel = models.PositiveSmallIntegerField(default=1, help_text="Trials that train at a time")
    seeds = models.PositiveSmallIntegerField(default=1, help_text="Runs of every trial, which differ in their seed")
    seed = models.PositiveIntegerField(default=0, help_text="Of the sampler")
    register_as = models.CharField(max_length=120, help_text="Name of the model that gets the results, on a branch")
    importance = models.JSONField(null=True, help_text="{setting: share of the metric's variance}")
    reason = models.CharField(
        max_length=300, blank=True, help_text="Why the platform paused or ended it, in a sentence"
    )
    advanced_at = models.DateTimeField(null=True, editable=False)

    objects = SweepQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["advanced_at"], condition=Q(state="running"), name="sweep_running")]

    def __str__(self) -> str:
        return self.name

    @property
    def ended(self) -> bool:
        return self.state in (self.State.FINISHED, self.State.CANCELLED)

    @property
    def branch(self) -> str:
        """Of the model that gets the results: they must not move the branch that others build on."""
        return f"sweep-{str(self.pk)[:8]}"


class Trial(models.Model):
    """One drawing of settings; one run for each seed."""

    tenant_parent = "sweep"

    class State(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"
        PRUNED = "pruned"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    sweep = models.ForeignKey(Sweep, on_delete=models.CASCADE, related_name="trials")
    number = models.PositiveIntegerField()
    params = models.JSONField(help_text="{setting: value}")
    state = models.CharField(max_length=20, choices=State.choices, default=State.RUNNING)
    rung_values = models.JSONField(default=list, help_text="The metric at each rung that was reached, best so far")
    value = models.FloatField(null=True, help_text="The metric, mean over the seeds")
    spread = models.FloatField(null=True, help_text="Standard deviation over the seeds")
    pruned_at_epoch = models.PositiveIntegerField(null=True)
    error = models.JSONField(null=True, help_text="{code, sentence, next_step} of settings that no run can have")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = SweepQuerySet.as_manager()

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["sweep", "number"], name="trial_number_once")]

    def __str__(self) -> str:
        return f"{self.sweep} #{self.number}"
