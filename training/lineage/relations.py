"""What stands in a lineage, and how one thing comes of another.

Another kind of thing is one more entry of ``KINDS``, another way to come of something one more entry of ``RELATIONS``;
the walk, the drawing, the page and the API know neither by name.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import Case, Exists, Model, OuterRef, QuerySet, UUIDField, Value, When
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast
from django.urls import reverse

from datasets.models import DatasetVersion
from dlplatform.accounts.models import User
from registry.models import ModelVersion, VersionParent
from training.models import CodeBundle, Run

DATASET_VERSION, RUN, MODEL_VERSION, CODE = "dataset-version", "run", "model-version", "code"
Visible = Mapping[str, QuerySet[Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its rows as a lineage shows them, and the page that each has.

    ``{name}-lineage`` is the name of the route of its lineage, ``section`` the part of the menu that it belongs to.
    """

    name: str
    label: str
    model: type[Model]
    section: str
    parent: str  # the foreign key without which a row cannot be named; empty when there is none
    columns: tuple[str, ...]
    page: Callable[[Any], str]

    def rows(self) -> QuerySet[Any]:
        found = self.model._default_manager.only("created_at", *self.columns)
        return found.select_related(self.parent) if self.parent else found


def visible_to(user: User) -> Visible:
    """What the person may see of every kind: the ids, as queries that others are built on."""
    managers = {name: kind.model._default_manager for name, kind in KINDS.items()}
    return {name: manager.visible_to(user).values("pk") for name, manager in managers.items()}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Relation:
    """A way in which things of the kind ``target`` come of things of the kind ``source``.

    It has a name, or several and an expression that tells by the row which one it is.

    ``rows`` are those in which it is written down; among them it may choose by what the person may see and by the ids
    that are asked about, on whichever side they stand.
    """

    names: tuple[str, ...]
    source: str
    target: str
    rows: Callable[[Visible, Collection[UUID]], QuerySet[Any]]
    source_column: str
    target_column: str
    newest: str
    naming: Any = None


def _dataset_page(version: DatasetVersion) -> str:
    return f"{reverse('dataset', args=[version.dataset_id])}?version={version.number}"


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            DATASET_VERSION, "Dataset version", DatasetVersion, "datasets", "dataset",
            ("number", "state", "dataset__name"), _dataset_page,
        ),
        Kind(RUN, "Run", Run, "runs", "", ("name", "state"), lambda run: reverse("run", args=[run.pk])),
        Kind(
            MODEL_VERSION, "Model version", ModelVersion, "models", "model",
            ("number", "model__name"), lambda version: reverse("model-version", args=[version.pk]),
        ),
        Kind(CODE, "Code", CodeBundle, "runs", "", ("filename", "digest"), lambda code: reverse("code", args=[code.pk])),
    )
}  # fmt: skip


def _without_visible_run(visible: Visible, ids: Collection[UUID]) -> QuerySet[Any]:
    """Where a run stands between the data and the version, the two are joined through it."""
    made_by = visible[RUN].filter(output_version=OuterRef("pk"))
    return ModelVersion.objects.filter(~Exists(made_by))


def _restoring(visible: Visible, ids: Collection[UUID]) -> QuerySet[Any]:
    """Versions that a roll-back made. It stays within a model, so only the models in question are looked through."""
    models = ModelVersion.objects.filter(pk__in=ids).values("model_id")
    rows = ModelVersion.objects.filter(model__in=models, lineage__has_key="restores")
    return rows.annotate(restored_id=Cast(KeyTextTransform("restores", "lineage"), UUIDField()))


RELATIONS = (
    Relation(
        ("adapted",), MODEL_VERSION, MODEL_VERSION,
        lambda visible, ids: ModelVersion.objects.filter(base__isnull=False), "base_id", "id", "-created_at",
    ),
    Relation(
        ("fine-tuned",), MODEL_VERSION, RUN,
        lambda visible, ids: Run.objects.filter(base_version__isnull=False), "base_version_id", "id", "-created_at",
    ),
    Relation(
        ("extended",), DATASET_VERSION, DATASET_VERSION, lambda visible, ids: DatasetVersion.objects.all(),
        "extends_id", "id", "-created_at",
    ),
    Relation(
        ("input",), DATASET_VERSION, RUN, lambda visible, ids: Run.objects.all(), "dataset_version_id", "id", "-created_at"
    ),
    Relation(
        ("code",), CODE, RUN, lambda visible, ids: Run.objects.filter(code__isnull=False), "code_id", "id", "-created_at"
    ),
    Relation(
        ("output",), RUN, MODEL_VERSION, lambda visible, ids: Run.objects.all(), "id", "output_version_id", "-created_at"
    ),
    Relation(
        ("data",), DATASET_VERSION, MODEL_VERSION, _without_visible_run, "dataset_version_id", "id", "-created_at"
    ),
    Relation(
        ("continued", "merged"), MODEL_VERSION, MODEL_VERSION, lambda visible, ids: VersionParent.objects.all(),
        "parent_id", "child_id", "-child__created_at",
        naming=Case(When(position=0, then=Value("continued")), default=Value("merged")),
    ),
    Relation(("restored",), MODEL_VERSION, MODEL_VERSION, _restoring, "restored_id", "id", "-created_at"),
)  # fmt: skip
