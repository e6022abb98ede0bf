"""Users, organizations (tenants), memberships, API keys, the audit log and remembered answers."""

import uuid
from datetime import datetime
from typing import Any, Self

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import Q
from django.utils import timezone

from .roles import Role, Scope


class User(AbstractUser):
    """A person. ``scopes`` is set for the length of one request when an API key speaks for the person, ``speaks_until``
    when the credential that speaks for them ends by itself."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    default_organization = models.ForeignKey(
        "accounts.Organization", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    scopes: frozenset[str] | None = None
    speaks_until: datetime | None = None

    class Meta:
        ordering = ["username"]


class OrganizationQuerySet(models.QuerySet["Organization"]):
    def visible_to(self, user: User) -> Self:
        return self.filter(memberships__user=user)


class Organization(models.Model):
    """A tenant: everything that is stored belongs to exactly one."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.SlugField(max_length=60, unique=True)
    name = models.CharField(max_length=120)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = OrganizationQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=20, choices=Role.choices, default=Role.VIEWER)
    may_run_code = models.BooleanField(
        default=False, help_text="May run code of their own here; no role, not even admin, implies it"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["user__username"]
        constraints = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_once"),
            models.CheckConstraint(condition=Q(role__in=Role.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} is {self.role} of {self.organization}"


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def live(self) -> Self:
        return self.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now()),
            revoked_at__isnull=True,
            user__is_active=True,
        )


class ApiKey(models.Model):
    """A secret that speaks for a person within some scopes. Only a peppered digest of it is stored."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=120)
    prefix = models.CharField(max_length=16, unique=True, help_text="The visible part, which finds the row")
    digest = models.CharField(max_length=64, editable=False)
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} (dlp_{self.prefix}…)"

    @property
    def state(self) -> str:
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "active"

    @property
    def scope_labels(self) -> list[str]:
        return [scope for scope in Scope.values if scope in self.scopes]


class AuditEntry(models.Model):
    """Who changed what. Rows are only ever added."""

    organization = models.ForeignKey(Organization, null=True, on_delete=models.SET_NULL, related_name="audit_entries")
    actor = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="audit_entries")
    action = models.CharField(max_length=60)
    object_type = models.CharField(max_length=60)
    object_id = models.CharField(max_length=64)
    detail = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["organization", "-id"], name="audit_by_organization"),
            models.Index(fields=["object_type", "object_id"], name="audit_by_object"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.object_type} {self.object_id}"


class RememberedAnswer(models.Model):
    """The first answer to a request that carried an Idempotency-Key, given again for 24 hours."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=200)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of method, path and body")
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="idempotency_key_once")]

    def __str__(self) -> str:
        return f"{self.key}: {self.status}"


class TenantQuerySet(models.QuerySet[Any]):
    """The one scoping gate: rows of the caller's organizations, and rows shared with the caller.

    A model whose rows belong to another row (a version to its dataset) names that foreign key in
    ``tenant_parent``; a model that owns its organization has django-guardian tables of its own.
    """

    def visible_to(self, user: User) -> Self:
        if not user.is_active or (user.scopes is not None and not user.scopes & {Scope.READ, Scope.PREDICT}):
            return self.none()
        parent = getattr(self.model, "tenant_parent", None)
        if parent is not None:
            parents = self.model._meta.get_field(parent).related_model
            return self.filter(**{f"{parent}__in": parents._default_manager.visible_to(user).values("pk")})
        organizations = Membership.objects.filter(user=user).values("organization_id")
        condition = Q(organization_id__in=organizations)
        for table, holder in (("userpermissions", {"user": user}), ("grouppermissions", {"group__user": user})):
            shared = self.model._meta.get_field(table).related_model
            condition |= Q(pk__in=shared._default_manager.filter(**holder).values("content_object_id"))
        return self.filter(condition)


class TenantModel(models.Model):
    """A row that belongs to one organization and can be shared singly."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="%(class)ss")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        abstract = True
