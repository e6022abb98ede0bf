"""GPUs of the workers' machines, and which run, or trial of one, holds them."""

from django.db import models
from django.db.models import Q

from .preflights import Preflight
from .runs import Run


class Accelerator(models.Model):
    """A GPU of a worker's machine, and the claim of a run, or of a preflight, that holds it."""

    host = models.CharField(max_length=120)
    uuid = models.CharField(max_length=80)
    name = models.CharField(max_length=120)
    memory_bytes = models.BigIntegerField()
    seen_at = models.DateTimeField()
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="accelerators")
    preflight = models.ForeignKey(Preflight, null=True, on_delete=models.SET_NULL, related_name="accelerators")
    lease_epoch = models.PositiveIntegerField(
        default=0, help_text="Of the holder's lease; another one frees the device"
    )

    class Meta:
        ordering = ["host", "name", "uuid"]
        constraints = [
            models.UniqueConstraint(fields=["host", "uuid"], name="accelerator_once"),
            models.CheckConstraint(condition=Q(run=None) | Q(preflight=None), name="accelerator_has_one_holder"),
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.host}"
