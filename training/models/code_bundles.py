"""Code that users uploaded."""

import uuid
from typing import Any, Self

from django.db import models

from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.roles import Scope


class CodeQuerySet(models.QuerySet[Any]):
    def visible_to(self, user: User) -> Self:
        """Members of the organization; code is shared with nobody else."""
        if not user.is_active or (user.scopes is not None and Scope.READ not in user.scopes):
            return self.none()
        return self.filter(organization__memberships__user=user)


class CodeBundle(models.Model):
    """Files of code that somebody uploaded, named by their content; never changed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="code_bundles")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    digest = models.CharField(max_length=64, help_text="SHA-256 over the names and hashes of the files")
    filename = models.CharField(max_length=200, blank=True, help_text="As it was uploaded, for people")
    tree = models.JSONField(help_text="{path: {sha256, size}}")

    objects = CodeQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["organization", "digest"], name="code_bundle_once")]

    def __str__(self) -> str:
        return f"{self.filename or 'code'} ({self.digest[:8]})"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry["size"] for entry in self.tree.values())
