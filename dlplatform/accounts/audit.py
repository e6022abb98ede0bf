"""The audit log: one line a change, written in the transaction of the change."""

from typing import Any

from django.db.models import Model

from .models import AuditEntry, Organization, User


def record(actor: User | None, action: str, obj: Model, organization: Organization | None, **detail: Any) -> None:
    AuditEntry.objects.create(
        organization=organization,
        actor=actor,
        action=action,
        object_type=str(obj._meta.model_name),
        object_id=str(obj.pk),
        detail=detail,
    )
