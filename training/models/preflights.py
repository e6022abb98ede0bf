"""Runs that are tried out before they are queued."""

from typing import ClassVar

from django.db import models

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet
from registry.models import ModelVersion

from .code_bundles import CodeBundle


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
    base_version = models.ForeignKey(
        ModelVersion, null=True, on_delete=models.CASCADE, related_name="+", help_text="What it starts from"
    )
    finetune = models.JSONField(null=True, help_text="How it would be fine-tuned")
    code = models.ForeignKey(CodeBundle, null=True, on_delete=models.CASCADE, related_name="+")
    entry = models.CharField(max_length=1000, blank=True, help_text="File of the code to start with")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    result = models.JSONField(null=True, help_text="{seconds_per_step, total_steps, seconds, peak_bytes, …}")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = PreflightQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.task} of {', '.join(self.targets)}"
