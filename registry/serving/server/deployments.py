"""What is deployed, as the database says: read in one statement, so that no half of a change is seen."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models.expressions import RawSQL

from registry.serving.assignment import Allocation, assign, shares
from registry.serving.models import Deployment, Variant


@dataclass(frozen=True)
class ServedVariant:
    """``name``: its id as allocations name it."""

    id: UUID
    name: str
    version: UUID
    number: int
    model: str
    task: str
    role: str
    inputs: tuple[dict[str, Any], ...]
    images: tuple[str, ...]
    output: dict[str, Any]  # its kind, and of classes or targets the names


@dataclass(frozen=True)
class Served:
    """A deployment as it is at one revision. ``live`` and ``shadows`` by the variant's id."""

    id: UUID
    name: str
    organization: UUID
    active: bool
    revision: int
    salt: str
    sample_rate: float
    allocation: Allocation
    live: dict[str, ServedVariant]
    shadows: tuple[ServedVariant, ...]
    propensities: dict[str, float]
    telling: ServedVariant

    def choose(self, key: str | None) -> ServedVariant:
        """The variant that answers a request with this key."""
        return self.live[assign(self.allocation, self.salt, key)]

    @property
    def answering(self) -> set[UUID]:
        """Versions that a request may meet."""
        return {self.live[name].version for name in self.propensities} if self.active else set()

    @property
    def versions(self) -> set[UUID]:
        """All versions in it: also shadows, and live ones of weight 0, which can be named."""
        return {one.version for one in (*self.live.values(), *self.shadows)} if self.active else set()


def stamps() -> dict[UUID, str]:
    """By deployment what changes whenever its row is written: the transaction that wrote it."""
    stamp = RawSQL('"serving_deployment"."xmin"::text', [])
    return dict(Deployment.objects.order_by().annotate(stamp=stamp).values_list("pk", "stamp"))


def read(deployments: Collection[UUID]) -> list[Served]:
    """Their present state."""
    rows: Any = Variant.objects.filter(deployment__in=deployments, removed_at=None).values(
        "id", "version_id", "role", "weight", "version__number", "version__signature", "version__task",
        "version__model__name", "deployment_id", "deployment__name", "deployment__organization_id", "deployment__state",
        "deployment__revision", "deployment__salt", "deployment__sample_rate", "deployment__allocation",
    )  # fmt: skip
    by_deployment: dict[UUID, list[dict[str, Any]]] = {}
    for row in rows:
        by_deployment.setdefault(row["deployment_id"], []).append(row)
    return [_served(found) for found in by_deployment.values()]


def _served(rows: list[dict[str, Any]]) -> Served:
    first = rows[0]
    allocation = [(end, variant) for end, variant in first["deployment__allocation"]]
    variants = {str(row["id"]): _variant(row) for row in rows}
    live = {name: one for name, one in variants.items() if one.role == Variant.Role.LIVE}
    heaviest = max((row for row in rows if str(row["id"]) in live), key=lambda row: row["weight"])
    return Served(
        id=first["deployment_id"], name=first["deployment__name"], organization=first["deployment__organization_id"],
        active=first["deployment__state"] == Deployment.State.ACTIVE, revision=first["deployment__revision"],
        salt=first["deployment__salt"], sample_rate=first["deployment__sample_rate"], allocation=allocation, live=live,
        shadows=tuple(one for one in variants.values() if one.role == Variant.Role.SHADOW),
        propensities=shares(allocation), telling=live[str(heaviest["id"])],
    )  # fmt: skip


def _variant(row: dict[str, Any]) -> ServedVariant:
    signature = row["version__signature"] or {}
    inputs = tuple(signature.get("inputs", ()))
    return ServedVariant(
        id=row["id"], name=str(row["id"]), version=row["version_id"], number=row["version__number"], model=row["version__model__name"],
        task=row["version__task"], role=row["role"], inputs=inputs,
        images=tuple(column["name"] for column in inputs if column["type"] == "image"),
        output=signature.get("output") or {},
    )  # fmt: skip
