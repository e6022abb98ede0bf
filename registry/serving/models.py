"""Deployments, the variants that answer in them, and the log of every change."""

import uuid
from typing import ClassVar

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantModel, TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet
from registry.models import ModelVersion


class Deployment(TenantModel):
    """A named address that answers with one or several versions."""

    class State(models.TextChoices):
        ACTIVE = "active"
        ARCHIVED = "archived"

    name = models.CharField(max_length=80)
    description = models.TextField(blank=True)
    state = models.CharField(max_length=10, choices=State.choices, default=State.ACTIVE)
    salt = models.CharField(max_length=32, editable=False, help_text="Hashed with a request's key into its bucket")
    allocation = models.JSONField(
        default=list, editable=False,
        help_text="Which live variant has which buckets: [[end, variant id], …], see registry.serving.assignment",
    )  # fmt: skip
    revision = models.PositiveIntegerField(default=0, editable=False, help_text="Number of the newest change")
    sample_rate = models.FloatField(default=1.0, help_text="The share of requests that the prediction log keeps")

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "name"], condition=Q(state="active"), name="deployment_name_once"
            ),
            models.CheckConstraint(
                condition=Q(sample_rate__gte=0, sample_rate__lte=1), name="deployment_sample_rate_is_a_share"
            ),
        ]
        indexes = [models.Index(fields=["organization", "-created_at"], name="deployment_newest")]

    def __str__(self) -> str:
        return self.name


class DeploymentUserPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="userpermissions")


class DeploymentGroupPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="grouppermissions")


class Variant(models.Model):
    """A version in a deployment. It keeps its row when it is taken out, for the log names it."""

    tenant_parent = "deployment"

    class Role(models.TextChoices):
        LIVE = "live"
        SHADOW = "shadow"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="variants")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.LIVE)
    weight = models.FloatField(help_text="Its part of the traffic, in proportion to the other live variants'")
    arm = models.CharField(
        max_length=10,
        blank=True,
        editable=False,
        help_text="Tells the variants of an A/A test apart: one version, twice",
    )
    alias = models.CharField(
        max_length=80, blank=True, help_text="Of its model: as it moves, so does this variant, see `following`"
    )
    waiting = models.TextField(blank=True, editable=False, help_text="Why it has not followed its alias yet")
    removed_at = models.DateTimeField(null=True, editable=False)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["role", "version__model__name", "version__number"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "version", "arm"], name="variant_version_once_an_arm"),
            models.CheckConstraint(condition=Q(weight__gte=0), name="variant_weight_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.version} ({self.arm})" if self.arm else str(self.version)


class DeploymentChange(models.Model):
    """One change of a deployment. Rows are only ever added; together they tell what answered at any time."""

    tenant_parent = "deployment"

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="changes")
    revision = models.PositiveIntegerField(help_text="1 for the creation, then one more each time")
    before = models.JSONField(
        help_text="{state, variants, allocation, description, sample_rate} before it: the first change, of the creation, "
        "and rows of earlier releases have neither of the last two"
    )
    after = models.JSONField(help_text="The same after it; rows of earlier releases lack the last two")
    undoes = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="+")
    actor = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    reason = models.TextField(blank=True)
    changed_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["deployment", "revision"], name="deployment_revision_once")]

    def __str__(self) -> str:
        return f"{self.deployment} r{self.revision}"


class BatchPredictionQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class BatchPrediction(Job):
    """A version's predictions for all rows of a dataset version, which become a dataset version themselves."""

    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "registry.serving.jobs.predict_dataset"
    tenant_parent = "version"

    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="batch_predictions")
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="+")
    name = models.CharField(max_length=120, help_text="Of the dataset that gets the rows with their predictions")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    output_version = models.OneToOneField(
        DatasetVersion, null=True, on_delete=models.SET_NULL, related_name="batch_prediction"
    )
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = BatchPredictionQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["version", "-created_at"], name="batch_newest")]

    def __str__(self) -> str:
        return f"{self.version} on {self.dataset_version}"


class PredictionRecord(models.Model):
    """What one variant made of one request; kept for a time, see `PREDICTION_LOG_DAYS`.

    Every request has one live record: the answer, or the error that was answered. Shadows that got a copy have one each
    under the same request id.
    """

    tenant_parent = "deployment"
    DROPPED = "dropped"  # the error of a copy that its shadow never got
    # Of a request whose input every live variant refuses, and of a text that its reader did not read to the end.
    REFUSED_BY_ALL, READER_LEFT = "bad_request", "reader_left"
    SAYS_NOTHING = (REFUSED_BY_ALL, READER_LEFT)  # of the variant that answered: no failure of its own, and no success

    request_id = models.UUIDField()
    # No keys of the database: looking both up takes as long as the rest of a record, and their locks let who writes the log and who
    # changes a deployment wait for each other. Records of a deployment that is deleted meanwhile go with `forget_old`.
    deployment = models.ForeignKey(  # `record_newest` begins with it
        Deployment, on_delete=models.CASCADE, related_name="records", db_index=False, db_constraint=False
    )
    variant = models.ForeignKey(Variant, on_delete=models.CASCADE, related_name="+", db_constraint=False)
    role = models.CharField(max_length=10, choices=Variant.Role.choices, default=Variant.Role.LIVE)
    revision = models.PositiveIntegerField(null=True, help_text="Of the deployment, when it chose the variant")
    propensity = models.FloatField(
        null=True,
        help_text="Probability, from 0 to 1, with which that revision chooses this live variant for a new key",
    )
    key = models.CharField(max_length=200, blank=True)
    instances = models.JSONField(
        help_text="The rows as they were sent; an image as its object's id, see `logged_images`"
    )
    predictions = models.JSONField(null=True, help_text="The answer in the order of the rows; null after an error")
    milliseconds = models.FloatField(help_text="From the choice of the variant to its answer")
    error = models.CharField(max_length=60, blank=True, help_text="Code of the error that was answered")
    at = models.DateTimeField()

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["deployment", "role", "-id"], name="record_newest"),
            BrinIndex(fields=["at"], autosummarize=True, name="record_by_its_time"),  # they come in order of time
        ]
        constraints = [models.UniqueConstraint(fields=["request_id", "variant"], name="record_variant_once")]

    def __str__(self) -> str:
        return str(self.request_id)


class LoggedImage(models.Model):
    """An image that records of a deployment name by the id of its object; see `logged_images`."""

    tenant_parent = "deployment"

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="+")
    sha256 = models.CharField(max_length=64)
    size = models.PositiveBigIntegerField(help_text="Bytes")
    at = models.DateTimeField(help_text="Of the newest record that names it")

    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["deployment", "sha256"], name="logged_image_once")]
        indexes = [models.Index(fields=["at"], name="logged_image_by_time")]

    def __str__(self) -> str:
        return self.sha256


class Feedback(models.Model):
    """What turned out to be right for one row of one request. It may come before its record, or without one."""

    tenant_parent = "deployment"

    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="feedback")
    request_id = models.UUIDField()
    index = models.PositiveSmallIntegerField(default=0, help_text="Position of the row in its request")
    label = models.JSONField()
    actor = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    at = models.DateTimeField()

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "feedback"
        constraints = [models.UniqueConstraint(fields=["deployment", "request_id", "index"], name="feedback_last_wins")]
        indexes = [
            models.Index(fields=["deployment", "-at"], name="feedback_newest"),
            models.Index(fields=["at"], name="feedback_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id}[{self.index}]"


from .experiments.models import Experiment, FurtherArm, Look, Rollout, RunningSum, SupersededLabel  # noqa: E402

__all__ = [
    "BatchPrediction", "Deployment", "DeploymentChange", "DeploymentGroupPermission", "DeploymentUserPermission",
    "Experiment", "Feedback", "FurtherArm", "LoggedImage", "Look", "PredictionRecord", "Rollout", "RunningSum", "SupersededLabel", "Variant",
]  # fmt: skip
