"""What happens to experiments. The only writers; what they do to the deployment is a change in its log."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.models import ModelVersion
from registry.serving.models import Deployment, Variant
from registry.serving.problems import measured_problems, refuse_problems
from registry.serving.services import (
    MODEL_FILE,
    Wanted,
    change_variants,
    require_active,
)

from . import guardrails
from .arms import FIELDS, arms_of, challenger_named, check_different, check_number, first_shares, opening, refused
from .design import make_plan, version_answering_most
from .design_checks import check_design, check_mode, direction_of
from .holding import complete_log, refuse_held, release_log
from .measurable import refuse_other_tasks, refuse_unmeasured, refuse_unmeasured_guardrails
from .models import Experiment, FurtherArm
from .running import forget

SECOND_ARM = "B"  # of an A/A test: one version, twice
HARM = "harm"


@transaction.atomic
def create_experiment(
    *, actor: User, deployment: Deployment, challenger: UUID, metric: str, minimum_effect: float = 0.0,
    mode: str = Experiment.Mode.SPLIT, control: UUID | None = None, hypothesis: str = "", higher_is_better: bool | None = None,
    guardrails_wanted: list[dict[str, Any]] | None = None, promotes: bool = False, covariate: bool = False,
    further: Sequence[UUID] = (), floor: float | None = None, **design: Any,
) -> Experiment:  # fmt: skip
    """A draft: B beside A, planned from the deployment's own traffic. Nothing changes until it starts.

    ``control`` is by default the version that answers most; ``challenger`` may be the same one (an A/A test). Of a bandit,
    ``further`` are C, D, … and ``floor`` the least share of each. ``design``: share, alpha, power, looks, cap,
    missing_as_zero, baseline. Raises ValidationError, PermissionDenied, Conflict.
    """
    require(actor, "deploy", deployment)
    locked = locked_deployment(deployment)
    require_active(locked)
    check_design(mode=mode, metric=metric, minimum_effect=minimum_effect, **design)
    watched = guardrails.checked(guardrails_wanted or [])
    check_mode(mode, watched, covariate=covariate, promotes=promotes, floor=floor)
    check_number(mode, further)
    a = servable_version(actor, locked, "control", control or answering_most(locked))
    b = servable_version(actor, locked, "challenger", challenger)
    others = [servable_version(actor, locked, field, one) for field, one in zip(FIELDS[2:], further, strict=False)]
    refuse_other_tasks([a, b, *others])
    refuse_unmeasured(metric, a)
    refuse_unmeasured_guardrails(watched, a)
    if a == b and mode != Experiment.Mode.SPLIT:
        raise refused("challenger", "Only a split compares a version with itself (an A/A test).")
    if mode == Experiment.Mode.BANDIT:
        planned = _begins(locked, [a, b, *others], design.pop("share", None), floor)
    else:
        planned = _plan(
            deployment=locked,
            control=a,
            challenger=b,
            mode=mode,
            metric=metric,
            minimum_effect=minimum_effect,
            **design,
        )
    design.pop("baseline", None)
    number = (locked.experiments.aggregate(last=Max("number"))["last"] or 0) + 1
    made: Experiment = Experiment.objects.create(
        deployment=locked, number=number, mode=mode, hypothesis=hypothesis, control=a, challenger=b, metric=metric,
        higher_is_better=direction_of(metric, higher_is_better), minimum_effect=minimum_effect, covariate=covariate,
        guardrails=watched, promotes=promotes, created_by=actor, **planned, **design,
    )  # fmt: skip
    FurtherArm.objects.bulk_create(
        FurtherArm(experiment=made, position=position, version=one) for position, one in enumerate(others, start=2)
    )
    audit.record(actor, "ab_test.create", made, locked.organization, deployment=locked.name, number=number)
    return made


@transaction.atomic
def start_experiment(
    *,
    actor: User,
    experiment: Experiment,
    reason: str = "",
    revision: int | None = None,
    despite_problems: bool = False,
) -> Experiment:
    """Split the traffic, or give A its shadow. With ``revision`` only if the deployment is still at it.

    ``despite_problems``: also with versions that were measured to be slower, bigger or worse than what they were made from;
    then a reason must be given. Raises Conflict, ValidationError.
    """
    require(actor, "deploy", experiment.deployment)
    deployment = locked_deployment(experiment.deployment)
    locked = _locked_experiment(experiment, Experiment.State.DRAFT)
    require_active(deployment)
    refuse_held(deployment)
    refuse_others(deployment, _versions(locked))
    named = dict(zip(FIELDS, _versions(locked), strict=False))
    refuse_problems(deployment, named, despite=despite_problems, reason=reason)
    if locked.mode == Experiment.Mode.BANDIT and (shadow := _shadow_among(deployment, _versions(locked))):
        raise Conflict(f"{shadow} has become a shadow here: take it out, or make it live first.", code="is_a_shadow")
    locked.state, locked.started_at, locked.started_by = Experiment.State.RUNNING, timezone.now(), actor
    locked.sample_rate = complete_log(deployment)
    locked.save()
    changed = change_variants(
        actor=actor, deployment=deployment, variants=[*_opening_arms(locked), *shadows_beside(deployment, _versions(locked))],
        reason=reason or f"Experiment {locked.number} starts", revision=revision, holder=locked,
        despite_problems=despite_problems,
    )  # fmt: skip
    locked.variant_a = deployment.variants.get(version=locked.control, arm="")
    locked.variant_b = deployment.variants.get(version=locked.challenger, arm=_second_arm(locked))
    for row in locked.further.all():
        row.variant = deployment.variants.get(version=row.version_id, arm="")
        row.save(update_fields=["variant"])
    locked.revision = changed.revision
    locked.save(update_fields=["variant_a", "variant_b", "revision"])
    audit.record(actor, "ab_test.start", locked, deployment.organization, number=locked.number)
    return locked


@transaction.atomic
def stop_experiment(*, actor: User | None, experiment: Experiment, reason: str = "", harm: bool = False) -> Experiment:
    """End it without a verdict: A answers alone again. A draft is thrown away. Raises Conflict.

    No ``actor``: a guardrail stops it, with ``harm`` and its sentence as the reason.
    """
    if actor is not None:
        require(actor, "deploy", experiment.deployment)
    deployment = locked_deployment(experiment.deployment)
    locked = _locked_experiment(experiment, Experiment.State.DRAFT, *Experiment.HOLDING)
    said = reason or ("A guardrail stopped it" if harm else "Stopped by a person")
    if locked.state == Experiment.State.DRAFT:
        return _end(actor, deployment, locked, Experiment.State.STOPPED, said)
    _answer_alone(actor, deployment, locked, locked.control_id, f"Experiment {locked.number} is stopped: {said}")
    if harm:
        locked.outcome = HARM
    return _end(actor, deployment, locked, Experiment.State.STOPPED, said)


@transaction.atomic
def promote(
    *, actor: User | None, experiment: Experiment, reason: str = "", revision: int | None = None, arm: str = ""
) -> Experiment:
    """B, or of a bandit that ``arm``, answers alone from now on.

    Raises Conflict unless the experiment has ended, or when others changed things; ValidationError on `arm`.
    """
    return _settle(actor, experiment, reason, revision, challenger=arm)


@transaction.atomic
def keep(*, actor: User | None, experiment: Experiment, reason: str = "", revision: int | None = None) -> Experiment:
    """A answers alone from now on. Raises as `promote`."""
    return _settle(actor, experiment, reason, revision, challenger=None)


def _settle(
    actor: User | None, experiment: Experiment, reason: str, revision: int | None, *, challenger: str | None
) -> Experiment:
    """Have A answer alone, or the ``challenger`` of that letter ('': the only one there is)."""
    if actor is not None:
        require(actor, "deploy", experiment.deployment)
    deployment = locked_deployment(experiment.deployment)
    ends = {Experiment.State.RUNNING} if experiment.mode == Experiment.Mode.BANDIT else set()
    locked = _locked_experiment(experiment, Experiment.State.DECIDED, Experiment.State.STOPPED, *ends)
    if locked.started_at is None:
        raise Conflict("It was thrown away before it started: there is nothing to act upon.", code="not_started")
    refuse_others(deployment, _versions(locked))
    winner = arms_of(locked)[0] if challenger is None else challenger_named(locked, challenger)
    locked.promoted = "" if challenger is None else winner.letter
    word = f"{winner.letter.upper()} is {'kept' if challenger is None else 'promoted'}"
    said = f"Experiment {locked.number}: {word}" + (f": {reason}" if reason else "")
    _answer_alone(actor, deployment, locked, winner.version, said, revision)
    state = Experiment.State.KEPT if challenger is None else Experiment.State.PROMOTED
    return _end(actor, deployment, locked, state, locked.conclusion or str(locked.watched.get("sentence", "")))


@transaction.atomic
def move_traffic(*, experiment: Experiment, shares: Mapping[str, float], reason: str, actor: User | None = None) -> int:
    """Give each arm this share of the traffic, as a bandit has found; the deployment's revision with it. Called by a look.

    ``actor``: who has put an arm back, and is allowed to.
    """
    deployment = locked_deployment(experiment.deployment)
    arms = [Wanted(one.version, shares[one.letter]) for one in arms_of(experiment)]
    changed = change_variants(
        actor=actor, deployment=deployment, variants=[*arms, *shadows_beside(deployment, _versions(experiment))],
        reason=f"Experiment {experiment.number}: {reason}"[:2000], holder=experiment,
    )  # fmt: skip
    return changed.revision


def decide(*, experiment: Experiment, outcome: str, conclusion: str) -> None:
    """Write down the verdict, which is final; the traffic stays as it is until somebody acts. Called by a look."""
    experiment.state, experiment.outcome, experiment.conclusion = Experiment.State.DECIDED, outcome, conclusion
    experiment.ended_at = timezone.now()
    experiment.save(update_fields=["state", "outcome", "conclusion", "ended_at"])
    audit.record(None, "ab_test.decided", experiment, experiment.deployment.organization, outcome=outcome)


def locked_holding(experiment: Experiment, *, decided: bool = False) -> Experiment:
    """Its row, and its deployment's, locked. Raises Conflict when it runs no more (or, ``decided``, is settled)."""
    locked_deployment(experiment.deployment)
    return _locked_experiment(experiment, *(Experiment.HOLDING if decided else [Experiment.State.RUNNING]))


def experiment_numbered(deployment: Deployment, number: int) -> Experiment | None:
    rows = Experiment.objects.filter(deployment=deployment).select_related("deployment__organization")
    found: Experiment | None = rows.filter(number=number).first()
    return found


def current_experiment(deployment: Deployment) -> Experiment | None:
    """The one that holds the deployment, else the newest that was started."""
    started = Experiment.objects.filter(deployment=deployment).exclude(started_at=None)
    rows = started.select_related("deployment__organization")
    found: Experiment | None = rows.filter(state__in=Experiment.HOLDING).first() or rows.first()
    return found


def problems_of_arms(experiment: Experiment) -> list[str]:
    """What a start brings into the deployment although it was measured to be slower, bigger or worse: sentences."""
    named = dict(zip(FIELDS, _versions(experiment), strict=False))
    return list(measured_problems(experiment.deployment, named).values())


def locked_deployment(deployment: Deployment) -> Deployment:
    """Its row first, always: whoever locks an experiment holds its deployment already."""
    rows = Deployment.objects.select_for_update(of=("self",), no_key=True).select_related("organization")
    found: Deployment = rows.get(pk=deployment.pk)
    return found


def answering_most(deployment: Deployment) -> UUID:
    """The version with the greatest weight. Raises Conflict when nobody answers."""
    found = version_answering_most(deployment)
    if found is None:
        raise Conflict("Nobody answers in this deployment.", code="nobody_answers")
    return found.pk


def servable_version(actor: User, deployment: Deployment, field: str, identifier: UUID) -> ModelVersion:
    """A version that can answer here. Raises ValidationError on ``field``."""
    rows = ModelVersion.objects.visible_to(actor).filter(model__organization_id=deployment.organization_id)
    found: ModelVersion | None = rows.select_related("model").filter(pk=identifier).first()
    if found is None:
        raise refused(field, "The organization has no model version with this id.", "does_not_exist")
    if MODEL_FILE not in found.tree:
        raise refused(field, f"v{found.number} has no {MODEL_FILE}: it cannot answer here.", "model_unusable")
    return found


def refuse_others(deployment: Deployment, versions: Collection[UUID]) -> None:
    """A further live variant would lose its traffic without anybody having said so. Raises Conflict."""
    live = deployment.variants.filter(removed_at=None, role=Variant.Role.LIVE, weight__gt=0)
    others = live.exclude(version_id__in=versions).select_related("version__model")
    if names := [str(one) for one in others]:
        raise Conflict(f"It is answered by others too: {', '.join(names)}. Take them out first.", code="others_answer")


def shadows_beside(deployment: Deployment, versions: Collection[UUID]) -> list[Wanted]:
    """The shadows of other versions, which stay as they are."""
    rows = deployment.variants.filter(removed_at=None, role=Variant.Role.SHADOW).exclude(version_id__in=versions)
    return [Wanted(row.version_id, row.weight, row.role, row.arm) for row in rows]


# --- the steps ----------------------------------------------------------------------------------------


def _begins(
    deployment: Deployment, versions: Sequence[ModelVersion], share: float | None, floor: float | None
) -> dict[str, Any]:
    """What a bandit of these has instead of a plan: {share, floor}."""
    check_different([(one.pk, f"v{one.number}") for one in versions])
    _refuse_shadows(deployment, [one.pk for one in versions])
    return opening(len(versions), share, floor)


def _plan(**wanted: Any) -> dict[str, Any]:
    """What is kept of a plan."""
    found = make_plan(**wanted)
    return {"baseline": found.baseline, "units_a": found.plan.units_a, "units_b": found.plan.units_b}


def _locked_experiment(experiment: Experiment, *states: str) -> Experiment:
    locked: Experiment = (
        Experiment.objects.select_for_update(of=("self",))
        .select_related("deployment__organization")
        .get(pk=experiment.pk)
    )
    if locked.state not in states:
        raise Conflict(f"Experiment {locked.number} is {locked.state}.", code=f"is_{locked.state}")
    return locked


def _second_arm(experiment: Experiment) -> str:
    return SECOND_ARM if experiment.of_one_version else ""


def _opening_arms(experiment: Experiment) -> list[Wanted]:
    if experiment.mode == Experiment.Mode.PAIRED:
        return [Wanted(experiment.control_id), Wanted(experiment.challenger_id, role=Variant.Role.SHADOW)]
    arms = arms_of(experiment)
    shares = first_shares([one.letter for one in arms], experiment.share)
    first, *others = (Wanted(one.version, shares[one.letter]) for one in arms)
    return [first, *(replace(one, arm=_second_arm(experiment)) for one in others)]


def _versions(experiment: Experiment) -> list[UUID]:
    return [one.version for one in arms_of(experiment)]


def _refuse_shadows(deployment: Deployment, versions: Sequence[UUID]) -> None:
    """An arm answers, a shadow never does: one would end without anybody having said so. Raises ValidationError."""
    if (shadow := _shadow_among(deployment, versions)) is not None:
        sentence = f"{shadow} is a shadow here, and an arm answers: take the shadow out, or make it live first."
        raise refused(FIELDS[versions.index(shadow.version_id)], sentence, "is_a_shadow")


def _shadow_among(deployment: Deployment, versions: Collection[UUID]) -> Variant | None:
    rows = deployment.variants.filter(removed_at=None, role=Variant.Role.SHADOW, version_id__in=versions)
    found: Variant | None = rows.select_related("version__model").first()
    return found


def _answer_alone(
    actor: User | None, deployment: Deployment, experiment: Experiment, version: UUID, reason: str,
    revision: int | None = None,
) -> None:  # fmt: skip
    change_variants(
        actor=actor, deployment=deployment, variants=[Wanted(version), *shadows_beside(deployment, _versions(experiment))],
        reason=reason[:2000], revision=revision, holder=experiment,
    )  # fmt: skip


def _end(
    actor: User | None, deployment: Deployment, experiment: Experiment, state: "Experiment.State", conclusion: str
) -> Experiment:
    if experiment.holds and experiment.sample_rate is not None:
        release_log(deployment, experiment.sample_rate)
    experiment.state, experiment.conclusion = state, conclusion
    experiment.ended_at = experiment.ended_at or timezone.now()
    experiment.save()
    forget(experiment)
    audit.record(actor, f"ab_test.{state}", experiment, deployment.organization, number=experiment.number)
    return experiment
