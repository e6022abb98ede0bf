"""GPUs of the workers' machines, and which run holds them."""

from django.db import models

from .runs import Run


class Accelerator(models.Model):
    """A GPU of a worker's machine, and the claim of a run that holds it."""

    host = models.CharField(max_length=120)
    uuid = models.CharField(max_length=80)
    name = models.CharField(max_length=120)
    memory_bytes = models.BigIntegerField()
    seen_at = models.DateTimeField()
    run = models.ForeignKey(Run, null=True, on_delete=models.SET_NULL, related_name="accelerators")
    lease_epoch = models.PositiveIntegerField(default=0, help_text="Of the run's lease; another one frees the device")

    class Meta:
        ordering = ["host", "name", "uuid"]
        constraints = [models.UniqueConstraint(fields=["host", "uuid"], name="accelerator_once")]

    def __str__(self) -> str:
        return f"{self.name} of {self.host}"
