"""The gate: may this person do this to that object? Pages, API, sockets and services all ask here."""

from collections.abc import Sequence
from typing import Any, TypeVar

from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q
from django.http import Http404
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from .models import Membership, Organization, User
from .roles import ACTIONS, Action, Role, Scope

Row = TypeVar("Row", bound=Model)


def role_in(user: User, organization: Organization) -> Role | None:
    membership = Membership.objects.filter(user=user, organization=organization).first()
    return Role(membership.role) if membership else None


def owner_of(obj: Any) -> Any:
    """The row that carries the organization: a version's dataset, a run's experiment, or the row itself."""
    while parent := getattr(obj, "tenant_parent", None):
        obj = getattr(obj, parent)
    return obj


def in_scope(user: User, action: str) -> bool:
    return user.scopes is None or ACTIONS[action].scope in user.scopes


def may(user: User, action: str, obj: Any) -> bool:
    """Whether the role in the object's organization, or a share of the object, grants the action.

    ``obj`` is an Organization or any row that belongs to one. A key's scopes only ever take away. A superuser,
    who works across organizations in Django admin, may do everything to what they can see.
    """
    if not user.is_active or not in_scope(user, action):
        return False
    if user.is_superuser:
        return True
    rule = ACTIONS[action]
    owner = owner_of(obj)
    organization = owner if isinstance(owner, Organization) else owner.organization
    role = role_in(user, organization)
    if role is not None and role.rank >= rule.role.rank:
        return True
    return not isinstance(owner, Organization) and _shared(user, rule, owner)


def allowed(user: User, action: str, organization: Organization, rows: Sequence[Row]) -> list[Row]:
    """Those of an organization's own rows that `may` allows, asked for in as many queries however many there are."""
    if not rows or may(user, action, organization):
        return list(rows)
    rule = ACTIONS[action]
    if rule.shared is None or not user.is_active or not in_scope(user, action):
        return []
    kind, codenames = type(rows[0]), _codenames(rule, rows[0])
    direct = Q(userpermissions__user=user, userpermissions__permission__codename__in=codenames)
    grouped = Q(grouppermissions__group__user=user, grouppermissions__permission__codename__in=codenames)
    shared = kind._default_manager.filter(direct | grouped, pk__in=[row.pk for row in rows])
    keys = set(shared.values_list("pk", flat=True))
    return [row for row in rows if row.pk in keys]


def _codenames(rule: Action, owner: Any) -> set[str]:
    return {f"{rule.shared}_{owner._meta.model_name}", f"change_{owner._meta.model_name}"}


def _shared(user: User, rule: Action, owner: Any) -> bool:
    if rule.shared is None:
        return False
    codenames = _codenames(rule, owner)
    direct = owner.userpermissions.filter(user=user, permission__codename__in=codenames)
    grouped = owner.grouppermissions.filter(group__user=user, permission__codename__in=codenames)
    return direct.exists() or grouped.exists()


def visible_or_404(queryset: Any, user: User, **lookup: Any) -> Any:
    """The one row that matches and that the caller may see; anything else looks as if it never existed."""
    row = queryset.visible_to(user).filter(**lookup).first()
    if row is None:
        raise Http404
    return row


def require(user: User, action: str, obj: Any) -> None:
    """Raise PermissionDenied unless the user may do the action to a row that they can already see."""
    if not may(user, action, obj):
        rule = ACTIONS[action]
        if not in_scope(user, action):
            raise PermissionDenied(f"This API key lacks the scope “{rule.scope.value}”.")
        raise PermissionDenied(f"This needs the role {rule.role.value} in the organization.")


def may_run_code(user: User, organization: Organization) -> bool:
    """Whether the person may run code of their own there: a flag that no role and no superuser has by itself."""
    flagged = Membership.objects.filter(user=user, organization=organization, may_run_code=True)
    return user.is_active and flagged.exists() and may(user, "run.write", organization)


def require_code(user: User, organization: Organization) -> None:
    """Raise PermissionDenied unless the person may launch runs there, and such that run their own code."""
    require(user, "run.write", organization)
    if not may_run_code(user, organization):
        raise PermissionDenied(
            f"Running your own code is a permission of its own, which you do not have in {organization.name}: an admin "
            "gives it to you on the page of members."
        )


class DeclaredPolicy(BasePermission):
    """Default deny on the API: a view says in ``policy`` which action each method needs.

    "public" lets everyone in, "signed-in" any person; every other word is an action of ``roles.ACTIONS``,
    checked here against the key's scopes and, on an object, by the service that acts on it.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        policy = getattr(view, "policy", {}).get("GET" if request.method == "HEAD" else request.method)
        if policy is None:
            raise MethodNotAllowed(str(request.method))
        if policy == "public":
            return True
        user = request.user
        if not user or not user.is_authenticated:
            return False
        if policy == "signed-in":
            return user.scopes is None or Scope.READ in user.scopes
        return in_scope(user, policy)
