"""Datasets and their immutable versions."""

from typing import ClassVar

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from dlplatform.accounts.models import TenantModel, TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet


class Dataset(TenantModel):
    """A named collection of rows; its content is in its versions."""

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True, help_text="When the rows of all its versions were deleted")

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "name"], condition=Q(archived_at__isnull=True), name="dataset_name_once"
            )
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at"], name="dataset_newest"),
            GinIndex(fields=["name"], opclasses=["gin_trgm_ops"], name="dataset_name_search"),
        ]

    def __str__(self) -> str:
        return self.name

    def latest_version(self) -> "DatasetVersion | None":
        return self.versions.order_by("-number").first()


class DatasetUserPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="userpermissions")


class DatasetGroupPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="grouppermissions")


class DatasetVersionQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class DatasetVersion(Job):
    """One upload, or rows added to an earlier version, ingested. Parts are Parquet objects in row order."""

    QUEUED: ClassVar[str] = "queued"
    CLAIMED: ClassVar[str] = "running"
    HELD: ClassVar[tuple[str, ...]] = ("running",)
    ENDED: ClassVar[tuple[str, ...]] = ("ready", "rejected", "cancelled", "deleted")
    QUEUE: ClassVar[str] = "datasets"
    ENTRY: ClassVar[str] = "datasets.jobs.ingest"
    tenant_parent = "dataset"

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        READY = "ready"
        REJECTED = "rejected"
        CANCELLED = "cancelled"
        DELETED = "deleted"

    dataset = models.ForeignKey(Dataset, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    filename = models.CharField(max_length=255, blank=True, help_text="A label from the uploader, never a path")
    content_type = models.CharField(max_length=120, blank=True)
    extends = models.ForeignKey(
        "self",
        null=True,
        on_delete=models.SET_NULL,
        related_name="extensions",
        help_text="The version whose rows come first; empty when the source is the whole of it",
    )
    source_sha256 = models.CharField(max_length=64)
    source_bytes = models.BigIntegerField()
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    rows = models.BigIntegerField(null=True)
    bytes = models.BigIntegerField(null=True, help_text="Size of the stored parts and images")
    columns = models.JSONField(default=list, help_text="[{name, type, nullable}]")
    parts = models.JSONField(default=list, help_text="[{sha256, rows, bytes}] in row order")
    images = models.JSONField(
        default=dict,
        blank=True,
        help_text="{index: SHA-256 of the list of images, index_bytes, count, bytes, thumbnail_bytes}; empty without images",
    )
    profile = models.JSONField(default=dict, help_text="Statistics by column name")
    problems = models.JSONField(default=list, help_text="[{row, column, file, code, severity, detail}]")
    deleted_at = models.DateTimeField(null=True, editable=False, help_text="When its rows were deleted")
    detected = models.JSONField(default=dict, help_text="Format, delimiter, encoding, header")

    objects = DatasetVersionQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["dataset", "number"], name="dataset_version_number_once"),
            models.CheckConstraint(
                condition=Q(state__in=["queued", "running", "ready", "rejected", "cancelled", "deleted"]),
                name="dataset_version_state_known",
            ),
        ]
        indexes = [
            models.Index(fields=["queued_at"], condition=Q(state="queued"), name="dataset_version_waiting"),
            models.Index(fields=["lease_expires_at"], condition=Q(state="running"), name="dataset_version_leases"),
        ]

    def __str__(self) -> str:
        return f"{self.dataset} v{self.number}"

    @property
    def image_columns(self) -> list[str]:
        return [column["name"] for column in self.columns if column["type"] == "image"]

    @property
    def errors(self) -> list[dict]:
        return [problem for problem in self.problems if problem.get("severity") == "error"]

    @property
    def warnings(self) -> list[dict]:
        return [problem for problem in self.problems if problem.get("severity") != "error"]
