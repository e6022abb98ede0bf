"""What changes in accounts: organizations, members, API keys. The only writers."""

from datetime import datetime

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import Http404
from django.utils import timezone
from django.utils.text import slugify

from . import audit, keys
from .access import in_scope, may, require
from .models import ApiKey, Membership, Organization, User
from .roles import Role, Scope


@transaction.atomic
def create_organization(*, actor: User, name: str, slug: str | None = None) -> Organization:
    """Create an organization; its creator becomes its admin."""
    if actor.scopes is not None and Scope.ADMIN not in actor.scopes:
        raise PermissionDenied("This API key lacks the scope “admin”.")
    slug = slugify(slug or name)
    if not slug:
        raise ValidationError({"name": ValidationError("Use at least one letter or digit.", code="invalid")})
    if Organization.objects.filter(slug=slug).exists():
        raise ValidationError({"slug": ValidationError(f"“{slug}” is taken; choose another slug.", code="unique")})
    organization = Organization.objects.create(name=name, slug=slug)
    Membership.objects.create(organization=organization, user=actor, role=Role.ADMIN)
    audit.record(actor, "organization.create", organization, organization, name=name)
    return organization


@transaction.atomic
def set_member(
    *, actor: User, organization: Organization, username: str, role: str, may_run_code: bool | None = None
) -> Membership:
    """Add a person to the organization or change their role; the last admin stays admin.

    ``may_run_code``: whether they may run code of their own; None leaves it as it is, for a new member at no.
    """
    require(actor, "organization.manage", organization)
    user = User.objects.filter(username=username, is_active=True).first()
    if user is None:
        raise ValidationError(
            {"user": ValidationError(f"There is no active user “{username[:150]}”.", code="does_not_exist")}
        )
    list(Membership.objects.select_for_update().filter(organization=organization))
    membership = Membership.objects.filter(organization=organization, user=user).first()
    if membership and membership.role == Role.ADMIN and role != Role.ADMIN:
        _keep_an_admin(organization, user)
    membership, created = Membership.objects.update_or_create(
        organization=organization, user=user,
        defaults={"role": Role(role), **({} if may_run_code is None else {"may_run_code": may_run_code})},
    )  # fmt: skip
    audit.record(
        actor, "member.add" if created else "member.change", membership, organization, user=username, role=role,
        may_run_code=membership.may_run_code,
    )  # fmt: skip
    return membership


@transaction.atomic
def remove_member(*, actor: User, organization: Organization, username: str) -> None:
    if actor.username != username:
        require(actor, "organization.manage", organization)
    list(Membership.objects.select_for_update().filter(organization=organization))
    membership = Membership.objects.filter(organization=organization, user__username=username).first()
    if membership is None:
        raise Http404
    if membership.role == Role.ADMIN:
        _keep_an_admin(organization, membership.user)
    audit.record(actor, "member.remove", membership, organization, user=username)
    membership.delete()


def _keep_an_admin(organization: Organization, leaving: User) -> None:
    others = Membership.objects.filter(organization=organization, role=Role.ADMIN).exclude(user=leaving)
    if not others.exists():
        raise ValidationError(
            {"role": ValidationError("The last admin must stay; make somebody else admin first.", code="last_admin")}
        )


@transaction.atomic
def create_api_key(
    *, actor: User, name: str, scopes: list[str], expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key of the actor's own, and the secret, which is not stored and cannot be shown again."""
    if actor.scopes is not None and not set(scopes) | {Scope.ADMIN} <= actor.scopes:
        raise PermissionDenied("An API key makes only keys with scopes that it has itself.")
    if expires_at and expires_at <= timezone.now():
        raise ValidationError({"expires_at": ValidationError("This moment is past; choose a later one.", code="past")})
    prefix, secret, digest = keys.new_secret()
    key = ApiKey.objects.create(
        user=actor, name=name, prefix=prefix, digest=digest, scopes=sorted(set(scopes)), expires_at=expires_at
    )
    audit.record(actor, "key.create", key, actor.default_organization, name=name, scopes=key.scopes)
    return key, secret


@transaction.atomic
def revoke_api_key(*, actor: User, key: ApiKey) -> ApiKey:
    """Revoke one's own key, or as an admin the key of a member of one's organization; a superuser any key."""
    if not _may_revoke(actor, key):
        raise Http404
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
        audit.record(actor, "key.revoke", key, actor.default_organization, name=key.name)
    return key


def _may_revoke(actor: User, key: ApiKey) -> bool:
    if key.user_id == actor.pk or (actor.is_superuser and in_scope(actor, "organization.manage")):
        return True
    memberships = key.user.memberships.select_related("organization")
    return any(may(actor, "organization.manage", one.organization) for one in memberships)


@transaction.atomic
def switch_organization(*, actor: User, organization: Organization) -> None:
    actor.default_organization = organization
    actor.save(update_fields=["default_organization"])
