"""Experiments, runs, and what a run reports: events and metric points."""

import uuid
from typing import ClassVar

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantModel, TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet
from registry.models import ModelVersion

from .code_bundles import CodeBundle as CodeBundle


class Experiment(TenantModel):
    """A named group of runs."""

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["organization", "name"], name="experiment_name_once")]

    def __str__(self) -> str:
        return self.name


class ExperimentUserPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="userpermissions")


class ExperimentGroupPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="grouppermissions")


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


class RunQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class Run(Job):
    """One training job, from queued to its end.

    ``last_sequence`` numbers everything that a watcher sees; ``spool_sequence`` is the last line of the
    engine's spool that is in the database. Both move in the transaction that inserts the rows.
    """

    CLAIMED: ClassVar[str] = "preparing"
    HELD: ClassVar[tuple[str, ...]] = ("preparing", "running")
    ENDED: ClassVar[tuple[str, ...]] = ("succeeded", "failed", "cancelled")
    QUEUE: ClassVar[str] = "training"
    ENTRY: ClassVar[str] = "training.jobs.train"
    REQUESTS: ClassVar[tuple[str, ...]] = ("cancel_requested_at", "pause_requested_at")
    tenant_parent = "experiment"

    class State(models.TextChoices):
        QUEUED = "queued"
        PREPARING = "preparing"
        RUNNING = "running"
        PAUSED = "paused"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class Task(models.TextChoices):
        CLASSIFICATION = "classification"
        REGRESSION = "regression"
        MULTILABEL = "multilabel"
        LANGUAGE_MODEL = "language-model"

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="runs")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    name = models.CharField(max_length=120)
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="runs")
    task = models.CharField(max_length=40, choices=Task.choices)
    target = models.CharField(max_length=2000, help_text="Name of the target column, or of several, for people")
    targets = models.JSONField(null=True, help_text="Names of several target columns; null = the one in target")
    features = models.JSONField(null=True, help_text="Input columns; null = all but the target")
    config = models.JSONField(default=dict, help_text="The complete configuration, defaults included")
    register_as = models.CharField(max_length=120, help_text="Name of the model that gets the result")
    output_version = models.OneToOneField(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="run")
    branch = models.CharField(max_length=80, default="main", help_text="Branch of the model that gets the result")
    base_version = models.ForeignKey(
        ModelVersion, null=True, on_delete=models.PROTECT, related_name="finetunes",
        help_text="The version that the run starts from",
    )  # fmt: skip
    finetune = models.JSONField(null=True, help_text="How the base is fine-tuned: mode, adapter, rank, …")
    trial = models.ForeignKey(Trial, null=True, on_delete=models.SET_NULL, related_name="runs")
    replays = models.ForeignKey(
        ModelVersion, null=True, on_delete=models.PROTECT, related_name="replays",
        help_text="The version that is trained once more, to be compared with; such a run commits nothing",
    )  # fmt: skip
    code = models.ForeignKey(
        CodeBundle, null=True, on_delete=models.PROTECT, related_name="runs",
        help_text="Code of a user's own, which runs in a sandbox",
    )  # fmt: skip
    entry = models.CharField(
        max_length=1000, blank=True, help_text="The file of the code to start with: model.py is an architecture"
    )
    cloned_from = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="clones")
    archived_at = models.DateTimeField(null=True, blank=True)
    pause_requested_at = models.DateTimeField(null=True, editable=False)
    stop_after_epoch = models.PositiveIntegerField(
        null=True, help_text="Pause after so many epochs; null = train to the end"
    )
    waits_for = models.PositiveSmallIntegerField(
        null=True, editable=False, help_text="Devices that it waits for; null = for none"
    )

    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    step = models.BigIntegerField(default=0)
    total_steps = models.BigIntegerField(null=True)
    epoch = models.PositiveIntegerField(default=0)
    eta_seconds = models.FloatField(null=True)
    rows_per_second = models.FloatField(null=True)
    heartbeat_at = models.DateTimeField(null=True)
    metrics = models.JSONField(default=dict, help_text="Latest values; at the end the final ones")
    environment = models.JSONField(default=dict)
    evaluation = models.JSONField(null=True)
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")
    reason = models.CharField(
        max_length=200, blank=True, help_text="Why the platform paused or ended it, in a sentence"
    )
    warnings = models.JSONField(default=list, help_text="Doubts about the data, such as a leaking column")
    last_sequence = models.BigIntegerField(default=0)
    spool_sequence = models.BigIntegerField(default=0)

    objects = RunQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["queued", "preparing", "running", "paused", "succeeded", "failed", "cancelled"]),
                name="run_state_known",
            )
        ]
        indexes = [
            models.Index(fields=["experiment", "-created_at"], name="run_newest"),
            models.Index(fields=["-created_at", "id"], name="run_newest_of_all"),
            models.Index(fields=["queued_at"], condition=Q(state="queued"), name="run_waiting"),
            models.Index(
                fields=["lease_expires_at"], condition=Q(state__in=["preparing", "running"]), name="run_leases"
            ),
            GinIndex(fields=["name"], opclasses=["gin_trgm_ops"], name="run_name_search"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def target_names(self) -> list[str]:
        """The target columns."""
        return self.targets or [self.target]


class RunEvent(models.Model):
    """What happened, in order. Metric points have a table of their own and share the numbering."""

    tenant_parent = "run"

    pk = models.CompositePrimaryKey("run_id", "sequence")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events", db_index=False)
    sequence = models.BigIntegerField()
    type = models.CharField(max_length=20)
    time = models.DateTimeField()
    payload = models.JSONField(default=dict)

    class Meta:
        ordering = ["sequence"]
        indexes = [models.Index(fields=["run", "type", "sequence"], name="run_event_by_type")]

    def __str__(self) -> str:
        return f"{self.sequence} {self.type}"


class MetricSeries(models.Model):
    """One metric of one run: its name, and a summary kept for sorting lists of runs."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="series")
    key = models.CharField(max_length=120)
    last = models.FloatField(null=True)
    minimum = models.FloatField(null=True)
    maximum = models.FloatField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="metric_series_once")]
        indexes = [models.Index(fields=["key", "last"], name="metric_series_by_last")]
        verbose_name_plural = "metric series"

    def __str__(self) -> str:
        return self.key


class MetricPoint(models.Model):
    """One value at one step. A replayed line of the spool meets the primary key and changes nothing."""

    pk = models.CompositePrimaryKey("series_id", "step")
    # Without the database's own check: for every point it would cost 40 % of the ingestion (benchmarks/). Points are
    # written only by training/records.py, under the lock of their run, and runs are archived, not deleted.
    series = models.ForeignKey(
        MetricSeries, on_delete=models.CASCADE, related_name="points", db_index=False, db_constraint=False
    )
    step = models.BigIntegerField()
    value = models.FloatField(null=True, help_text="Null for NaN and infinities")
    sequence = models.BigIntegerField()
    time = models.DateTimeField()

    class Meta:
        ordering = ["step"]
        indexes = [models.Index(fields=["series", "sequence"], name="metric_point_sequence")]

    def __str__(self) -> str:
        return f"{self.step}: {self.value}"


class MetricBucket(models.Model):
    """The extremes of a metric among ``width`` successive steps from ``start`` on; kept up by training/curves.py."""

    pk = models.CompositePrimaryKey("series_id", "width", "start")
    series = models.ForeignKey(MetricSeries, on_delete=models.CASCADE, related_name="buckets", db_index=False)
    width = models.IntegerField()
    start = models.BigIntegerField()
    least = models.FloatField()
    least_step = models.BigIntegerField()
    greatest = models.FloatField()
    greatest_step = models.BigIntegerField()

    class Meta:
        ordering = ["width", "start"]

    def __str__(self) -> str:
        return f"{self.start}: {self.least} to {self.greatest}"


class ReplayCertificate(models.Model):
    """Whether training a version once more from its recorded lineage gave the same weights; if not, what differs."""

    tenant_parent = "version"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="certificates")
    run = models.OneToOneField(Run, on_delete=models.CASCADE, related_name="certificate")
    equal = models.BooleanField(help_text="Every byte of the weights is the same")
    details = models.JSONField(help_text="{file, sha256, metrics, weights, environment, settings}: what differs")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.version}: {'equal' if self.equal else 'different'}"


class PreflightQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class Preflight(Job):
    """Two steps of a run that is not queued yet, to tell its time and memory."""

    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "training.jobs.preflight"
    tenant_parent = "dataset_version"

    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.CASCADE, related_name="preflights")
    task = models.CharField(max_length=40)
    targets = models.JSONField(help_text="Names of the target columns")
    features = models.JSONField(null=True, help_text="Input columns; null = all but the target")
    config = models.JSONField(default=dict, help_text="The complete configuration, defaults included")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    result = models.JSONField(null=True, help_text="{seconds_per_step, total_steps, seconds, peak_bytes, …}")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = PreflightQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.task} of {', '.join(self.targets)}"


class Accelerator(models.Model):
    """A GPU of a worker's machine, and the claim of a run that holds it."""

    host = models.CharField(max_length=120)
    uuid = models.CharField(max_length=80)
    name = models.CharField(max_length=120)
    memory_bytes = models.BigIntegerField()
    seen_at = models.DateTimeField()
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="accelerators")
    lease_epoch = models.PositiveIntegerField(default=0, help_text="Of the run's lease; another one frees the device")

    class Meta:
        ordering = ["host", "name", "uuid"]
        constraints = [models.UniqueConstraint(fields=["host", "uuid"], name="accelerator_once")]

    def __str__(self) -> str:
        return f"{self.name} of {self.host}"
