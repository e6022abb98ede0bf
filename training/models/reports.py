"""What a run reports while it goes on: events and metric points."""

from django.db import models

from .runs import Run


class RunEvent(models.Model):
    """What happened, in order. Metric points have a table of their own and share the numbering."""

    tenant_parent = "run"

    pk = models.CompositePrimaryKey("run_id", "sequence")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events", db_index=False)
    sequence = models.BigIntegerField()
    type = models.CharField(max_length=20)
    time = models.DateTimeField()
    payload = models.JSONField(default=dict)

    class Meta:
        ordering = ["sequence"]
        indexes = [models.Index(fields=["run", "type", "sequence"], name="run_event_by_type")]

    def __str__(self) -> str:
        return f"{self.sequence} {self.type}"


class MetricSeries(models.Model):
    """One metric of one run: its name, and a summary kept for sorting lists of runs."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="series")
    key = models.CharField(max_length=120)
    last = models.FloatField(null=True)
    minimum = models.FloatField(null=True)
    maximum = models.FloatField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "key"], name="metric_series_once")]
        indexes = [models.Index(fields=["key", "last"], name="metric_series_by_last")]
        verbose_name_plural = "metric series"

    def __str__(self) -> str:
        return self.key


class MetricPoint(models.Model):
    """One value at one step. A replayed line of the spool meets the primary key and changes nothing."""

    pk = models.CompositePrimaryKey("series_id", "step")
    # Without the database's own check: for every point it would cost 40 % of the ingestion (benchmarks/). Points are
    # written only by training/records.py, under the lock of their run, and runs are archived, not deleted.
    series = models.ForeignKey(
        MetricSeries, on_delete=models.CASCADE, related_name="points", db_index=False, db_constraint=False
    )
    step = models.BigIntegerField()
    value = models.FloatField(null=True, help_text="Null for NaN and infinities")
    sequence = models.BigIntegerField()
    time = models.DateTimeField()

    class Meta:
        ordering = ["step"]
        indexes = [models.Index(fields=["series", "sequence"], name="metric_point_sequence")]

    def __str__(self) -> str:
        return f"{self.step}: {self.value}"


class MetricBucket(models.Model):
    """The extremes of a metric among ``width`` successive steps from ``start`` on; kept up by training/curves.py."""

    pk = models.CompositePrimaryKey("series_id", "width", "start")
    series = models.ForeignKey(MetricSeries, on_delete=models.CASCADE, related_name="buckets", db_index=False)
    width = models.IntegerField()
    start = models.BigIntegerField()
    least = models.FloatField()
    least_step = models.BigIntegerField()
    greatest = models.FloatField()
    greatest_step = models.BigIntegerField()

    class Meta:
        ordering = ["width", "start"]

    def __str__(self) -> str:
        return f"{self.start}: {self.least} to {self.greatest}"
