"""Which organization a caller works in."""

from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpRequest

from .models import Membership, Organization, User
from .roles import Role


def default_for(user: User) -> Organization | None:
    """The chosen default while the person is still a member of it, else their first organization."""
    chosen = _chosen(user, memberships_of(user))
    return chosen.organization if chosen else None


def memberships_of(user: User) -> list[Membership]:
    """The person's memberships with their organizations, the oldest first."""
    return list(user.memberships.select_related("organization").order_by("created_at"))


def _chosen(user: User, mine: list[Membership]) -> Membership | None:
    by_choice = (one for one in mine if one.organization_id == user.default_organization_id)
    return next(by_choice, mine[0] if mine else None)


def resolve(user: User, slug: str | None) -> Organization:
    """The organization named by a request, or the caller's default one; ValidationError on `organization`."""
    if slug:
        mine = Organization.objects.visible_to(user)
        found = None if "\0" in slug else mine.filter(slug=slug).first()  # PostgreSQL takes no NUL
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
        mine = memberships_of(user)
        chosen = _chosen(user, mine)
        role = Role(chosen.role) if chosen else None
        request.platform_context = {  # type: ignore[attr-defined]
            "organization": chosen.organization if chosen else None,
            "organizations": sorted((one.organization for one in mine), key=lambda one: one.name),
            "role": role,
            "can_train": role is not None and role.rank >= Role.TRAINER.rank,
            "can_maintain": role is not None and role.rank >= Role.MAINTAINER.rank,
            "can_administer": role is Role.ADMIN,
        }
    return request.platform_context  # type: ignore[attr-defined]
