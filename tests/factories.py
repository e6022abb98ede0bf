"""Builders of rows. Each makes a valid row; a test names only what it is about."""

import uuid
from pathlib import Path
from typing import Any

import factory
from django.utils import timezone

from datasets import services as dataset_services
from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.models import ApiKey, Membership, Organization, User
from dlplatform.accounts.roles import Role
from registry.commits import digest_of, identifier_of
from registry.models import Comparison, Merge, ModelVersion, Optimization, Ref, RegisteredModel, Upload
from registry.serving.models import BatchPrediction, Deployment, DeploymentChange, PredictionRecord, Rollout, Variant
from registry.serving.models import Experiment as DeploymentExperiment
from training.models import CodeBundle, Experiment, Preflight, Run, Sweep, Trial

PASSWORD = "password-1234"


class UserFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda number: f"person-{number}")
    password = factory.django.Password(PASSWORD)


class OrganizationFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Organization

    name = factory.Sequence(lambda number: f"Organization {number}")
    slug = factory.Sequence(lambda number: f"organization-{number}")


class MembershipFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Membership

    organization = factory.SubFactory(OrganizationFactory)
    user = factory.SubFactory(UserFactory)
    role = Role.TRAINER


class ApiKeyFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ApiKey

    user = factory.SubFactory(UserFactory)
    name = "a key"
    prefix = factory.Sequence(lambda number: f"{number:012x}")
    digest = "0" * 64
    scopes = ["read"]


class DatasetFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Dataset

    organization = factory.SubFactory(OrganizationFactory)
    name = factory.Sequence(lambda number: f"dataset {number}")


class DatasetVersionFactory(factory.django.DjangoModelFactory):
    """Ready, with two columns in its description and no stored parts; see `ready_version` for real data."""

    class Meta:
        model = DatasetVersion

    dataset = factory.SubFactory(DatasetFactory)
    number = factory.Sequence(lambda number: number + 1)
    state = DatasetVersion.State.READY
    rows = 100
    bytes = 1000
    source_sha256 = "a" * 64
    source_bytes = 1000
    columns = [
        {"name": "x", "type": "number", "nullable": False},
        {"name": "y", "type": "category", "nullable": False},
    ]
    profile = {"y": {"count": 100, "missing": 0, "distinct": 2}}


class ExperimentFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Experiment

    organization = factory.SubFactory(OrganizationFactory)
    name = factory.Sequence(lambda number: f"experiment {number}")


class CodeBundleFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = CodeBundle

    organization = factory.SubFactory(OrganizationFactory)
    filename = "train.zip"
    digest = factory.Sequence(lambda number: f"{number:064x}")
    tree = {"main.py": {"sha256": "a" * 64, "size": 10}}


class RunFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Run

    experiment = factory.SubFactory(ExperimentFactory)
    dataset_version = factory.SubFactory(
        DatasetVersionFactory, dataset__organization=factory.SelfAttribute("...experiment.organization")
    )
    name = factory.Sequence(lambda number: f"run {number}")
    task = Run.Task.CLASSIFICATION
    target = "y"
    register_as = "a model"


class SweepFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Sweep

    experiment = factory.SubFactory(ExperimentFactory)
    dataset_version = factory.SubFactory(
        DatasetVersionFactory, dataset__organization=factory.SelfAttribute("...experiment.organization")
    )
    name = factory.Sequence(lambda number: f"sweep {number}")
    task = Run.Task.CLASSIFICATION
    targets = ["y"]
    space = [{"name": "learning_rate", "kind": "float", "low": 0.001, "high": 0.1, "log": True, "points": 5}]
    metric = "validation/loss"
    direction = Sweep.Direction.MINIMIZE
    trial_count = 4
    register_as = "a model"


class TrialFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Trial

    sweep = factory.SubFactory(SweepFactory)
    number = factory.Sequence(lambda number: number)
    params = {"learning_rate": 0.01}


class PreflightFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Preflight

    dataset_version = factory.SubFactory(DatasetVersionFactory)
    task = "classification"
    targets = ["y"]


class RegisteredModelFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = RegisteredModel

    organization = factory.SubFactory(OrganizationFactory)
    name = factory.Sequence(lambda number: f"model {number}")


class ModelVersionFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ModelVersion

    model = factory.SubFactory(RegisteredModelFactory)
    number = factory.Sequence(lambda number: number + 1)
    digest = factory.LazyAttribute(lambda row: digest_of({"model": str(row.model.pk), "number": row.number}))
    id = factory.LazyAttribute(lambda row: identifier_of(row.digest))
    tree = {}
    task = "classification"
    created_at = factory.LazyFunction(timezone.now)


class RefFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Ref

    kind = Ref.Kind.ALIAS
    name = "production"
    version = factory.SubFactory(ModelVersionFactory)
    model = factory.SelfAttribute("version.model")


class ComparisonFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Comparison

    base = factory.SubFactory(ModelVersionFactory)
    head = factory.SelfAttribute("base")
    model = factory.SelfAttribute("base.model")


class MergeFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Merge

    ours = factory.SubFactory(ModelVersionFactory)
    theirs = factory.SelfAttribute("ours")
    model = factory.SelfAttribute("ours.model")
    branch = "main"
    recipe = {"method": "average"}
    dataset_version = factory.SubFactory(DatasetVersionFactory)


class OptimizationFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Optimization

    version = factory.SubFactory(ModelVersionFactory)
    model = factory.SelfAttribute("version.model")
    dataset_version = factory.SubFactory(DatasetVersionFactory)
    tolerance = 0.5


class UploadFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Upload

    model = factory.SubFactory(RegisteredModelFactory)
    state = Upload.RECEIVING
    files = [{"path": "model.safetensors", "size": 10, "sha256": None}]
    part_size = 1024 * 1024


class DeploymentFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Deployment

    organization = factory.SubFactory(OrganizationFactory)
    name = factory.Sequence(lambda number: f"deployment-{number}")
    salt = "salt"


class VariantFactory(factory.django.DjangoModelFactory):
    """Alone in its deployment: it has every bucket."""

    class Meta:
        model = Variant

    deployment = factory.SubFactory(DeploymentFactory)
    version = factory.SubFactory(
        ModelVersionFactory, model__organization=factory.SelfAttribute("...deployment.organization")
    )
    weight = 1.0

    @classmethod
    def _create(cls, model_class: Any, *args: Any, **kwargs: Any) -> Variant:
        made: Variant = super()._create(model_class, *args, **kwargs)
        Deployment.objects.filter(pk=made.deployment_id).update(allocation=[[10_000, str(made.pk)]])
        made.deployment.refresh_from_db()
        return made


class DeploymentChangeFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = DeploymentChange

    deployment = factory.SubFactory(DeploymentFactory)
    revision = factory.Sequence(lambda number: number + 1)
    before = {"state": "active", "variants": [], "allocation": []}
    after = {"state": "active", "variants": [], "allocation": []}


class PredictionRecordFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = PredictionRecord

    request_id = factory.LazyFunction(uuid.uuid4)
    variant = factory.SubFactory(VariantFactory)
    deployment = factory.SelfAttribute("variant.deployment")
    instances = [{"x": 1.0}]
    predictions = [{"value": 1.0}]
    milliseconds = 1.0
    at = factory.LazyFunction(timezone.now)


class DeploymentExperimentFactory(factory.django.DjangoModelFactory):
    """A draft on accuracy, of which B is another version of A's model."""

    class Meta:
        model = DeploymentExperiment

    deployment = factory.SubFactory(DeploymentFactory)
    number = factory.Sequence(lambda number: number + 1)
    control = factory.SubFactory(ModelVersionFactory)
    challenger = factory.SubFactory(ModelVersionFactory, model=factory.SelfAttribute("..control.model"))
    metric = DeploymentExperiment.Metric.ACCURACY
    higher_is_better = True
    minimum_effect = 0.05
    baseline = 0.8
    units_a = 1000
    units_b = 1000


class RolloutFactory(factory.django.DjangoModelFactory):
    """Over: it holds nothing."""

    class Meta:
        model = Rollout

    deployment = factory.SubFactory(DeploymentFactory)
    number = factory.Sequence(lambda number: number + 1)
    state = Rollout.State.ABORTED
    stable = factory.SubFactory(ModelVersionFactory)
    candidate = factory.SelfAttribute("stable")
    steps = [{"share": 1.0, "minutes": 10.0, "requests": 0}]
    step_began_at = factory.LazyFunction(timezone.now)
    started_at = factory.LazyFunction(timezone.now)
    sample_rate = 1.0


def ready_version(dataset: Dataset, rows: list[dict[str, Any]], folder: Path, **more: Any) -> DatasetVersion:
    """A version with real stored parts, ingested in this process from the rows."""
    import csv

    source = folder / "rows.csv"
    with source.open("w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "parts").mkdir()
    result = ingest(source, folder / "parts", filename="rows.csv", content_type="text/csv", limits=Limits())
    assert result.state == "ready", result.problems
    store = dataset_services.object_store(dataset.organization_id)
    parts = []
    for part in result.parts:
        stored = store.put_file(folder / "parts" / part.path)
        parts.append({"sha256": stored.sha256, "rows": part.rows, "bytes": stored.size})
    answer = result.to_dict()
    original = store.put_file(source)
    return DatasetVersionFactory(
        dataset=dataset, source_sha256=original.sha256, source_bytes=original.size, rows=result.rows, columns=answer["columns"], profile=answer["profile"], parts=parts,
        problems=answer["problems"], detected=answer["detected"], **more,
    )  # fmt: skip


class BatchPredictionFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = BatchPrediction

    version = factory.SubFactory(ModelVersionFactory)
    dataset_version = factory.SubFactory(DatasetVersionFactory)
    name = factory.Sequence(lambda number: f"predictions {number}")
