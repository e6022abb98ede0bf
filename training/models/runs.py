"""Training jobs, and what proves that one can be repeated."""

import uuid
from typing import ClassVar

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet
from registry.models import ModelVersion

from .code_bundles import CodeBundle
from .experiments import Experiment
from .sweeps import Trial


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
    kept_checkpoint = models.JSONField(
        null=True, editable=False, help_text="{step, folder} of the checkpoint that every machine finds"
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
