"""Models, their versions (commits), the refs that point at versions, and the log of every move of a ref."""

from typing import ClassVar, Self

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from datasets.models import DatasetVersion
from dlplatform.accounts.models import TenantModel, TenantQuerySet, User
from dlplatform.jobs import Job, JobQuerySet


class RegisteredModel(TenantModel):
    """A named line of versions."""

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(
        null=True, blank=True, help_text="When the files of all its versions were deleted"
    )

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "model"
        constraints = [
            models.UniqueConstraint(
                fields=["organization", "name"], condition=Q(archived_at__isnull=True), name="model_name_once"
            )
        ]
        indexes = [
            models.Index(fields=["organization", "-created_at"], name="model_newest"),
            GinIndex(fields=["name"], opclasses=["gin_trgm_ops"], name="model_name_search"),
        ]

    def __str__(self) -> str:
        return self.name


class RegisteredModelUserPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="userpermissions")


class RegisteredModelGroupPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="grouppermissions")


class ModelVersion(models.Model):
    """A commit: immutable. ``digest`` is the SHA-256 of its canonical JSON (see ``registry.commits``)."""

    tenant_parent = "model"

    id = models.UUIDField(primary_key=True, editable=False)
    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField(help_text="Order of commits within the model, for people")
    digest = models.CharField(max_length=64, editable=False)
    tree = models.JSONField(help_text="{path: {sha256, size}}")
    message = models.TextField(blank=True)
    author = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    task = models.CharField(max_length=40)
    signature = models.JSONField(default=dict, help_text="Input columns and output of the model")
    metrics = models.JSONField(default=dict)
    lineage = models.JSONField(default=dict, help_text="Run, config, seed, code and library versions")
    dataset_version = models.ForeignKey(
        DatasetVersion, null=True, on_delete=models.PROTECT, related_name="model_versions"
    )
    parents = models.ManyToManyField(
        "self", symmetrical=False, through="VersionParent", through_fields=("child", "parent"), related_name="children"
    )
    base = models.ForeignKey(
        "self", null=True, on_delete=models.PROTECT, related_name="adapters",
        help_text="The version whose weights this one, an adapter, is worked into",
    )  # fmt: skip
    created_at = models.DateTimeField(editable=False)
    deleted_at = models.DateTimeField(
        null=True, editable=False, help_text="When its files were deleted; all else that is known of it stays"
    )

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["model", "number"], name="model_version_number_once"),
            models.UniqueConstraint(fields=["model", "digest"], name="model_version_digest_once"),
        ]

    def __str__(self) -> str:
        return f"{self.model} v{self.number}"

    @property
    def size(self) -> int:
        return sum(entry["size"] for entry in self.tree.values())


class VersionParent(models.Model):
    """An edge of the history; position 0 is the line that was continued, 1 and up were merged in."""

    child = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="parent_edges")
    parent = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="child_edges")
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["child", "position"], name="parent_position_once"),
            models.CheckConstraint(condition=~Q(child=F("parent")), name="version_not_its_own_parent"),
        ]

    def __str__(self) -> str:
        return f"{self.parent_id} → {self.child_id}"


class Ref(models.Model):
    """A name that points at a version: a branch moves with commits, an alias by hand, a tag never."""

    tenant_parent = "model"

    class Kind(models.TextChoices):
        BRANCH = "branch"
        TAG = "tag"
        ALIAS = "alias"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="refs")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    name = models.CharField(max_length=80)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="refs")
    updated_at = models.DateTimeField(auto_now=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["kind", "name"]
        constraints = [models.UniqueConstraint(fields=["model", "kind", "name"], name="ref_once")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class RefMove(models.Model):
    """One move of a ref. The rows of a ref answer what it pointed to at any time."""

    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="ref_moves")
    kind = models.CharField(max_length=10, choices=Ref.Kind.choices)
    name = models.CharField(max_length=80)
    from_version = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    to_version = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    actor = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    reason = models.TextField(blank=True)
    moved_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["model", "kind", "name", "-moved_at"], name="ref_history")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.from_version_id} → {self.to_version_id}"


class Release(models.Model):
    """A version with a semantic number, and the line of the changelog that tells what it brings."""

    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="releases")
    version = models.OneToOneField(ModelVersion, on_delete=models.PROTECT, related_name="release")
    number = models.CharField(max_length=24, help_text="Semantic version, which is also the name of its tag")
    bump = models.CharField(max_length=5, help_text="major, minor or patch")
    base = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    changes = models.TextField(help_text="The line of the changelog")
    notes = models.TextField(blank=True)
    released_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    released_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["model", "number"], name="release_number_once")]

    def __str__(self) -> str:
        return f"{self.model} {self.number}"


class ComparisonQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    def visible_to(self, user: User) -> Self:
        """The base may be of another model than the head, to which the comparison belongs."""
        models = RegisteredModel.objects.visible_to(user).values("pk")
        return super().visible_to(user).filter(base__model__in=models)


class Comparison(Job):
    """Weights of two versions, tensor by tensor, and their answers to the rows of a dataset version."""

    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "registry.jobs.compare"
    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="comparisons")
    base = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="+")
    head = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="+")
    dataset_version = models.ForeignKey(DatasetVersion, null=True, on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    result = models.JSONField(null=True, help_text="{weights: [...], behaviour: {...}}")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = ComparisonQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["base", "head", "-created_at"], name="comparison_of_two")]

    def __str__(self) -> str:
        return f"{self.model}: {self.base_id} → {self.head_id}"


class MergeQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class Merge(Job):
    """Two versions becoming one: a new version with both as parents, evaluated on a dataset version."""

    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "registry.jobs.merge"
    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="merges")
    ours = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="+")
    theirs = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="+")
    branch = models.CharField(max_length=80)
    recipe = models.JSONField(help_text="{method, shares, density, shrink}")
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="+")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    output_version = models.OneToOneField(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="merge")
    result = models.JSONField(null=True, help_text="{tensors: {how: count}, metrics: {ours, theirs, merged}}")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = MergeQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.model}: {self.theirs_id} into {self.branch}"


class OptimizationQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    pass


class Optimization(Job):
    """What can be made smaller or faster of a version: variants, each a version of its own, measured beside it."""

    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "registry.jobs.optimize"
    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="optimizations")
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="optimizations")
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="+")
    tolerance = models.FloatField(help_text="Points, of a hundred, by which the quality may fall")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = OptimizationQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["version", "-created_at"], name="optimization_newest")]

    def __str__(self) -> str:
        return f"{self.version} optimised"


class OptimizedVariant(models.Model):
    """One plan of an optimization: waiting, or what came of it."""

    tenant_parent = "optimization__model"

    optimization = models.ForeignKey(Optimization, on_delete=models.CASCADE, related_name="variants")
    position = models.PositiveSmallIntegerField()
    plan = models.JSONField(help_text="See dlplatform.engine.optimizing.plan")
    output_version = models.OneToOneField(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="optimized")
    graph = models.CharField(max_length=64, blank=True, help_text="SHA-256 of its graph for onnxruntime, if it is one")
    report = models.JSONField(null=True, help_text="See dlplatform.engine.optimizing.report")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["position"]
        constraints = [models.UniqueConstraint(fields=["optimization", "position"], name="optimized_position_once")]
        indexes = [models.Index(fields=["graph"], condition=~Q(graph=""), name="optimized_graph")]

    def __str__(self) -> str:
        return f"{self.optimization} {self.position}"


class UploadQuerySet(JobQuerySet, TenantQuerySet):  # type: ignore[override]
    def open(self) -> Self:
        """Those that still wait for parts."""
        return self.filter(state=Upload.RECEIVING)


class Upload(Job):
    """Files on their way to becoming a version: received in parts, then checked and committed by a worker."""

    RECEIVING: ClassVar[str] = "receiving"
    QUEUE: ClassVar[str] = "registry"
    ENTRY: ClassVar[str] = "registry.jobs.import_upload"
    tenant_parent = "model"

    model = models.ForeignKey(RegisteredModel, on_delete=models.CASCADE, related_name="uploads")
    branch = models.CharField(max_length=80, default="main")
    message = models.TextField(blank=True)
    files = models.JSONField(help_text="[{path, size, sha256 or null}] in the order of their parts' file numbers")
    source = models.JSONField(
        null=True, help_text="{repository, revision, commit} where a worker fetches the files from the Hub itself"
    )
    part_size = models.BigIntegerField(help_text="Bytes of every part but the last of a file")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    touched_at = models.DateTimeField(default=timezone.now, help_text="When a part last came")
    progress = models.FloatField(default=0.0)
    phase = models.CharField(max_length=60, blank=True)
    output_version = models.OneToOneField(ModelVersion, null=True, on_delete=models.SET_NULL, related_name="upload")
    error = models.JSONField(null=True, help_text="{code, sentence, next_step}")

    objects = UploadQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["touched_at"], condition=Q(state="receiving"), name="upload_open"),
            models.Index(fields=["model", "-created_at"], name="upload_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.model}: {len(self.files)} files"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["size"] for file in self.files)


class UploadPart(models.Model):
    """A part that is there, durable. It never changes: other bytes for the same place are refused."""

    tenant_parent = "upload__model"

    upload = models.ForeignKey(Upload, on_delete=models.CASCADE, related_name="parts")
    file = models.PositiveIntegerField(help_text="Which of the upload's files")
    number = models.PositiveIntegerField(help_text="Which part of it, from 0")
    size = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)

    class Meta:
        ordering = ["file", "number"]
        constraints = [models.UniqueConstraint(fields=["upload", "file", "number"], name="upload_part_once")]

    def __str__(self) -> str:
        return f"part {self.number} of file {self.file}"
