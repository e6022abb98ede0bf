"""Which organization a caller works in."""

from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpRequest

from .access import role_in
from .models import Organization, User
from .roles import Role


def default_for(user: User) -> Organization | None:
    """The chosen default while the person is still a member of it, else their first organization."""
    mine = Organization.objects.visible_to(user)
    chosen = mine.filter(pk=user.default_organization_id).first() if user.default_organization_id else None
    return chosen or mine.order_by("memberships__created_at").first()


def resolve(user: User, slug: str | None) -> Organization:
    """The organization named by a request, or the caller's default one; ValidationError on `organization`."""
    if slug:
        found = Organization.objects.visible_to(user).filter(slug=slug).first()
        if found is None:
            raise ValidationError(
                {"organization": ValidationError(f"You are in no organization “{slug[:60]}”.", code="does_not_exist")}
            )
        return found
    found = default_for(user)
    if found is None:
        raise ValidationError(
            {
                "organization": ValidationError(
                    "You belong to no organization yet; ask an admin to add you.", code="required"
                )
            }
        )
    return found


def context(request: HttpRequest) -> dict[str, Any]:
    """Template context: the organization in force, the person's role in it, and the others to switch to."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated or request.path.startswith("/admin/"):
        return {}
    if not hasattr(request, "platform_context"):
        organization = default_for(user)
        role = role_in(user, organization) if organization else None
        request.platform_context = {  # type: ignore[attr-defined]
            "organization": organization,
            "organizations": list(Organization.objects.visible_to(user)),
            "role": role,
            "can_train": role is not None and role.rank >= Role.TRAINER.rank,
            "can_maintain": role is not None and role.rank >= Role.MAINTAINER.rank,
            "can_administer": role is Role.ADMIN,
        }
    return request.platform_context  # type: ignore[attr-defined]
