"""Experiments on a deployment and what was seen of them. A look is never changed once it is written."""

import uuid
from typing import Any

from django.db import models
from django.db.models import Q

from dlplatform.accounts.models import TenantQuerySet, User
from registry.models import ModelVersion

MOST_ARMS = 10  # of a bandit: A to J


class Experiment(models.Model):
    """Version B beside version A on one deployment; of a bandit also C, D, …, which are rows of `FurtherArm`.

    What is measured, and how, is frozen when it starts.
    """

    tenant_parent = "deployment"

    class State(models.TextChoices):
        DRAFT = "draft"
        RUNNING = "running"
        DECIDED = "decided"  # it has its verdict; the traffic is still split
        STOPPED = "stopped"  # ended without one: by a person or a guardrail; A answers alone
        PROMOTED = "promoted"
        KEPT = "kept"

    class Mode(models.TextChoices):
        SPLIT = "split", "fixed shares until there is a verdict"
        BANDIT = "bandit", "the traffic follows what the versions earn"
        PAIRED = "paired", "A answers, B shadows it, labels judge both"

    class Metric(models.TextChoices):
        ACCURACY = "accuracy", "share of labels that were predicted"
        ABSOLUTE_ERROR = "absolute_error", "mean absolute error by the labels"
        NUMBER = "number", "a number sent as feedback"
        LATENCY = "latency", "milliseconds to the answer"
        ERRORS = "errors", "share of requests that failed"

    HOLDING = (State.RUNNING, State.DECIDED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    deployment = models.ForeignKey("serving.Deployment", on_delete=models.CASCADE, related_name="experiments")
    number = models.PositiveIntegerField(help_text="1, 2, … in its deployment")
    state = models.CharField(max_length=10, choices=State.choices, default=State.DRAFT)
    mode = models.CharField(max_length=10, choices=Mode.choices, default=Mode.SPLIT)
    hypothesis = models.TextField(blank=True)
    control = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+", help_text="A")
    challenger = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+", help_text="B")
    share = models.FloatField(
        default=0.5, help_text="B's share of the units, between 0 and 1; of a bandit the first one of each beside A"
    )
    floor = models.FloatField(
        default=0.05, help_text="Of a bandit: each version's share of the traffic is at least this"
    )
    metric = models.CharField(max_length=20, choices=Metric.choices)
    higher_is_better = models.BooleanField()
    minimum_effect = models.FloatField(
        default=0.0,
        help_text="The difference that must not be missed; of shares as 0.01 for a point. A bandit has none",
    )
    alpha = models.FloatField(default=0.05)
    power = models.FloatField(default=0.8)
    looks = models.PositiveSmallIntegerField(default=28)
    cap = models.FloatField(null=True, help_text="A unit's outcome counts at most this much, either way")
    missing_as_zero = models.BooleanField(default=False, help_text="A unit without feedback counts as 0")
    covariate = models.BooleanField(default=False, help_text="Adjust by what the same keys did before the start")
    baseline = models.FloatField(
        default=0.0,
        help_text="A's share, or the standard deviation of a unit, that was planned with; of pairs see `design.make_plan`",
    )
    units_a = models.PositiveIntegerField(default=0, help_text="Planned, at most; 0 of a bandit, which has no plan")
    units_b = models.PositiveIntegerField(default=0)
    guardrails = models.JSONField(default=list, help_text="[{kind, tolerance or limit, milliseconds}]")
    promotes = models.BooleanField(default=False, help_text="Act on the verdict without a person")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    variant_a = models.ForeignKey("serving.Variant", null=True, on_delete=models.CASCADE, related_name="+")
    variant_b = models.ForeignKey("serving.Variant", null=True, on_delete=models.CASCADE, related_name="+")
    sample_rate = models.FloatField(
        null=True, help_text="The deployment's before the start; its log is whole meanwhile"
    )
    revision = models.PositiveIntegerField(default=0, help_text="Of the deployment, from which on requests count")
    started_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=20, blank=True, help_text="Of the verdict, or `harm`")
    conclusion = models.TextField(blank=True, help_text="The verdict, or why it was stopped, in words")
    promoted = models.CharField(max_length=1, blank=True, help_text="The arm that answers alone since: b, c, …")
    watched = models.JSONField(default=dict, help_text="What the last tick saw: {fraction, units, guardrails}")
    watched_at = models.DateTimeField(null=True)
    summed = models.JSONField(null=True, help_text="Up to where its running sums are: {until, last_record}")
    watch_after = models.DateTimeField(
        null=True, help_text="The next tick that sums its log, longer the longer that took"
    )

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "number"], name="ab_number_once"),
            models.UniqueConstraint(
                fields=["deployment"], condition=Q(state__in=["running", "decided"]), name="ab_one_at_a_time"
            ),
            models.CheckConstraint(condition=Q(share__gt=0, share__lt=1), name="ab_share_is_a_share"),
            models.CheckConstraint(condition=Q(floor__gt=0, floor__lte=0.5), name="ab_floor_is_a_share"),
            models.CheckConstraint(
                condition=Q(state="draft") | Q(started_at__isnull=False) | Q(state="stopped"), name="ab_started"
            ),
        ]

    def __str__(self) -> str:
        return f"experiment {self.number} of {self.deployment}"

    @property
    def holds(self) -> bool:
        """Whether the deployment's variants are its own for now."""
        return self.state in self.HOLDING

    @property
    def of_one_version(self) -> bool:
        """An A/A test: whatever it finds is false."""
        return self.control_id == self.challenger_id


class FurtherArm(models.Model):
    """An arm of a bandit beyond A and B, which are columns of its experiment: C, D, …"""

    tenant_parent = "experiment"

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="further")
    position = models.PositiveSmallIntegerField(help_text="2 is C, 3 is D, …")
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    variant = models.ForeignKey("serving.Variant", null=True, on_delete=models.CASCADE, related_name="+")

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["position"]
        constraints = [
            models.UniqueConstraint(fields=["experiment", "position"], name="further_arm_once"),
            models.UniqueConstraint(fields=["experiment", "version"], name="further_arm_version_once"),
            models.CheckConstraint(
                condition=Q(position__gte=2, position__lt=MOST_ARMS), name="further_arm_has_a_letter"
            ),
        ]

    def __str__(self) -> str:
        return f"arm {self.position + 1} of {self.experiment}"


class Look(models.Model):
    """What was seen and said at one moment: everything that it takes to say it again. Written once."""

    tenant_parent = "experiment"

    class Kind(models.TextChoices):
        DUE = "due"
        ASKED = "asked"
        HARM = "harm"  # a guardrail raised its alarm
        MOVE = "move"  # a bandit moved the traffic
        RETURN = "return"  # a person put an arm of a bandit back that a guardrail had taken out

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="taken")
    number = models.PositiveIntegerField(help_text="1, 2, … of its experiment")
    kind = models.CharField(max_length=10, choices=Kind.choices)
    until = models.DateTimeField(help_text="Requests before this moment count, with the labels there were then")
    last_record = models.BigIntegerField(help_text="The greatest id of a record that counts")
    sums = models.JSONField(help_text="Read from the log: {units, outcomes, guardrails} of each arm")
    results = models.JSONField(help_text="Computed from the sums and the looks before: {verdict, balance, guardrails}")
    revision = models.PositiveIntegerField(null=True, help_text="Of the deployment, after a bandit moved its traffic")
    arm = models.CharField(max_length=1, blank=True, help_text="That was put back by it: b, c, …")
    reason = models.TextField(blank=True, help_text="Why it was put back")
    taken_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    taken_at = models.DateTimeField(auto_now_add=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["experiment", "number"], name="look_number_once")]

    def __str__(self) -> str:
        return f"look {self.number} at {self.experiment}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise ValueError("a look is never changed")
        super().save(*args, **kwargs)


class ExactField(models.DecimalField):  # type: ignore[type-arg]
    """PostgreSQL's `numeric` without limits: sums of it are exact. Written and read by SQL alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_digits": 1000, "decimal_places": 500, **kwargs})

    def db_type(self, connection: Any) -> str:
        return "numeric"


class RunningSum(models.Model):
    """What a tick carries on to the next: of a key, or (unit '') of all units that are one request. See `readings`."""

    tenant_parent = "variant"

    holder = models.UUIDField(help_text="The experiment, or the canary, that it is a sum of")
    measure = models.PositiveSmallIntegerField(help_text="Position among its holder's readings")
    variant = models.ForeignKey("serving.Variant", on_delete=models.CASCADE, related_name="+", db_index=False)
    part = models.CharField(max_length=30, help_text="What a reading tells apart, as a bandit's propensities")
    unit = models.CharField(max_length=204)
    count = models.BigIntegerField()
    total = ExactField()
    squares = ExactField()

    objects = TenantQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["holder", "measure", "variant", "part", "unit"], name="running_sum_once")
        ]

    def __str__(self) -> str:
        return f"{self.unit or 'single requests'} of {self.holder}"


class SupersededLabel(models.Model):
    """A label that feedback replaced: with it, what an experiment saw at a time can be computed again."""

    tenant_parent = "deployment"

    deployment = models.ForeignKey("serving.Deployment", on_delete=models.CASCADE, related_name="+")
    request_id = models.UUIDField()
    index = models.PositiveSmallIntegerField()
    label = models.JSONField()
    at = models.DateTimeField(help_text="When it was given")
    replaced_at = models.DateTimeField()

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-replaced_at"]
        indexes = [
            models.Index(fields=["deployment", "replaced_at"], name="superseded_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id}[{self.index}]"


class Rollout(models.Model):
    """A version that takes over step by step (a canary), or at once and watched (blue/green). The row is the truth."""

    tenant_parent = "deployment"

    class State(models.TextChoices):
        RUNNING = "running"
        PAUSED = "paused"  # it does not go on; its guardrails are watched all the same
        FINISHED = "finished"
        ROLLED_BACK = "rolled_back"
        ABORTED = "aborted"

    HOLDING = (State.RUNNING, State.PAUSED)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    deployment = models.ForeignKey("serving.Deployment", on_delete=models.CASCADE, related_name="rollouts")
    number = models.PositiveIntegerField(help_text="1, 2, … in its deployment")
    state = models.CharField(max_length=12, choices=State.choices, default=State.RUNNING)
    stable = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+", help_text="Answers until then")
    candidate = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    variant_stable = models.ForeignKey("serving.Variant", on_delete=models.CASCADE, related_name="+", null=True)
    variant_candidate = models.ForeignKey("serving.Variant", on_delete=models.CASCADE, related_name="+", null=True)
    revision = models.PositiveIntegerField(default=0, help_text="Of the deployment, from which on requests count")
    steps = models.JSONField(help_text="[{share, minutes, requests}]: the last has the share 1")
    step = models.PositiveSmallIntegerField(default=0, help_text="Position of the step it is at")
    step_began_at = models.DateTimeField()
    step_paused = models.FloatField(default=0.0, help_text="Seconds of this step that it was paused for")
    paused_at = models.DateTimeField(null=True)
    guardrails = models.JSONField(default=list, help_text="[{kind, tolerance or limit, milliseconds}]")
    watched = models.JSONField(default=dict, help_text="What the last tick saw: {requests, guardrails}")
    watched_at = models.DateTimeField(null=True)
    summed = models.JSONField(null=True, help_text="Up to where its running sums are: {until, last_record}")
    watch_after = models.DateTimeField(null=True)
    sample_rate = models.FloatField(help_text="The deployment's before the start; its log is whole meanwhile")
    conclusion = models.TextField(blank=True, help_text="Why it ended, in words")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    objects = TenantQuerySet.as_manager()

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["deployment", "number"], name="rollout_number_once"),
            models.UniqueConstraint(
                fields=["deployment"], condition=Q(state__in=["running", "paused"]), name="rollout_one_at_a_time"
            ),
        ]

    def __str__(self) -> str:
        return f"canary {self.number} of {self.deployment}"

    @property
    def holds(self) -> bool:
        return self.state in self.HOLDING

    @property
    def share(self) -> float:
        """Of the traffic, that the candidate has at this step."""
        return float(self.steps[self.step]["share"])

    @property
    def at_once(self) -> bool:
        """Blue/green: one step."""
        return len(self.steps) == 1
