"""Named groups of runs, and with whom they are shared."""

from django.db import models
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase

from dlplatform.accounts.models import TenantModel


class Experiment(TenantModel):
    """A named group of runs."""

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [models.UniqueConstraint(fields=["organization", "name"], name="experiment_name_once")]

    def __str__(self) -> str:
        return self.name


class ExperimentUserPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="userpermissions")


class ExperimentGroupPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="grouppermissions")
