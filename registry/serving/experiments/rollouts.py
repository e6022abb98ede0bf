"""Canaries and blue/green: a version takes over step by step while it is watched, and goes back by itself. The only writers.

Every step is one transaction over the deployment's log and the row of the rollout: whoever dies between two steps leaves a
rollout at a step, and the next tick goes on from there.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.serving.models import Deployment
from registry.serving.problems import refuse_problems
from registry.serving.refusing import refused
from registry.serving.services import Wanted, change_variants

from . import guardrails
from .holding import complete_log, refuse_held, release_log
from .measurable import refuse_unmeasured_guardrails
from .models import Rollout
from .readings import Answered, Reading
from .running import carry_on, forget
from .services import answering_most, locked_deployment, refuse_others, servable_version, shadows_beside
from .sums import Window

CANARY = (
    {"share": 0.01, "minutes": 10, "requests": 100}, {"share": 0.05, "minutes": 10, "requests": 100},
    {"share": 0.25, "minutes": 30, "requests": 500}, {"share": 1.0, "minutes": 30, "requests": 500},
)  # fmt: skip
BLUE_GREEN = ({"share": 1.0, "minutes": 10, "requests": 0},)
MOST_STEPS = 20
LONGEST = 60 * 24 * 90  # minutes
MOST_REQUESTS = 10**9
LEAST_SHARE = 0.0001  # a bucket


@transaction.atomic
def start_rollout(
    *, actor: User, deployment: Deployment, candidate: UUID, steps: Sequence[Mapping[str, Any]] | None = None,
    guardrails_wanted: Sequence[Mapping[str, Any]] = (), reason: str = "", revision: int | None = None,
    despite_problems: bool = False,
) -> Rollout:  # fmt: skip
    """Give the candidate its first share. Raises ValidationError, PermissionDenied, Conflict.

    ``despite_problems``: also one that was measured to be slower, bigger or worse than what it was made from; then a reason
    must be given.
    ``steps``: by default those of a canary, 1, 5, 25 and 100 %; one step of share 1 swaps at once (blue/green).
    """
    require(actor, "deploy", deployment)
    locked = locked_deployment(deployment)
    refuse_held(locked)
    wanted = check_steps(steps or CANARY)
    stable = servable_version(actor, locked, "stable", answering_most(locked))
    new = servable_version(actor, locked, "candidate", candidate)
    if new == stable:
        raise refused("candidate", "It answers most already.")
    refuse_problems(locked, {"candidate": new.pk}, despite=despite_problems, reason=reason)
    watched = guardrails.checked(list(guardrails_wanted))
    refuse_unmeasured_guardrails(watched, stable)
    refuse_others(locked, (stable.pk, new.pk))
    number = (locked.rollouts.aggregate(last=Max("number"))["last"] or 0) + 1
    now = timezone.now()
    made: Rollout = Rollout.objects.create(
        deployment=locked, number=number, stable=stable, candidate=new, steps=wanted, step_began_at=now,
        guardrails=watched, sample_rate=complete_log(locked), created_by=actor,
        started_at=now,
    )  # fmt: skip
    made.revision = _split(
        actor,
        made,
        made.share,
        reason or f"Canary {number} begins with {_percent(made.share)}",
        revision,
        despite_problems,
    )
    made.variant_stable = locked.variants.get(version=stable, arm="")
    made.variant_candidate = locked.variants.get(version=new, arm="")
    made.save(update_fields=["variant_stable", "variant_candidate", "revision"])
    audit.record(actor, "canary.start", made, locked.organization, deployment=locked.name, number=number)
    return made


@transaction.atomic
def pause_rollout(*, actor: User, rollout: Rollout) -> Rollout:
    """It stays at its step, watched. Raises Conflict unless it is running."""
    locked = _locked(actor, rollout, Rollout.State.RUNNING)
    locked.state, locked.paused_at = Rollout.State.PAUSED, timezone.now()
    locked.save(update_fields=["state", "paused_at"])
    audit.record(actor, "canary.pause", locked, locked.deployment.organization, number=locked.number)
    return locked


@transaction.atomic
def continue_rollout(*, actor: User, rollout: Rollout) -> Rollout:
    """Its step lasts as long as if it had never been paused. Raises Conflict unless it is paused."""
    locked = _locked(actor, rollout, Rollout.State.PAUSED)
    assert locked.paused_at is not None
    locked.step_paused += (timezone.now() - locked.paused_at).total_seconds()
    locked.state, locked.paused_at = Rollout.State.RUNNING, None
    locked.save(update_fields=["state", "paused_at", "step_paused"])
    audit.record(actor, "canary.continue", locked, locked.deployment.organization, number=locked.number)
    return locked


@transaction.atomic
def abort_rollout(*, actor: User, rollout: Rollout, reason: str = "") -> Rollout:
    """The version that was there before answers alone again. Raises Conflict when it has ended."""
    locked = _locked(actor, rollout, *Rollout.HOLDING)
    return _leave(actor, locked, Rollout.State.ABORTED, reason or "Aborted by a person")


@transaction.atomic
def roll_back(*, rollout: Rollout, reason: str) -> Rollout:
    """What an alarm does: no person, no right, at any step. Raises Conflict when it has ended meanwhile."""
    locked = _locked(None, rollout, *Rollout.HOLDING)
    return _leave(None, locked, Rollout.State.ROLLED_BACK, reason)


@transaction.atomic
def advance(*, rollout: Rollout, requests: int) -> bool:
    """Go to the next step, or end, if this one is over; ``requests``: the candidate's within it. Whether it did."""
    locked = _locked(None, rollout, Rollout.State.RUNNING)
    if locked.step != rollout.step or not over(locked, requests, timezone.now()):
        return False
    if locked.step + 1 == len(locked.steps):
        _finish(locked)
        return True
    locked.step, locked.step_began_at, locked.step_paused = locked.step + 1, timezone.now(), 0.0
    locked.save(update_fields=["step", "step_began_at", "step_paused"])
    _split(None, locked, locked.share, f"Canary {locked.number} goes on to {_percent(locked.share)}")
    return True


def over(rollout: Rollout, requests: int, now: datetime) -> bool:
    step = rollout.steps[rollout.step]
    lasted = now - rollout.step_began_at - timedelta(seconds=rollout.step_paused)
    return lasted >= timedelta(minutes=step["minutes"]) and requests >= step["requests"]


def carried_sums(rollout: Rollout, window: Window) -> dict[str, Any]:
    """{requests, sums}: the candidate's within its step, and what its guardrails read. Raises Conflict when it has ended."""
    return _told(rollout, carry_on(rollout, window, _readings))


def read_sums(rollout: Rollout, window: Window) -> dict[str, Any]:
    """The same from the log itself."""
    return _told(rollout, [one.read(window) for one in _readings(rollout)])


def _readings(rollout: Rollout) -> list[Reading]:
    a, b = rollout.variant_stable_id, rollout.variant_candidate_id
    assert a is not None and b is not None
    within = Answered((b,), by_request=True, since=rollout.step_began_at, part=rollout.step, telling=True)
    return [within, *guardrails.readings(rollout.guardrails, a, b)]


def _told(rollout: Rollout, found: Sequence[Any]) -> dict[str, Any]:
    a, b = rollout.variant_stable_id, rollout.variant_candidate_id
    assert a is not None and b is not None
    within, *guards = found
    return {"requests": within[b].requests, "sums": guardrails.sums_of(guards, a, b)}


def check_steps(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps as they are stored. Raises ValidationError naming `steps.<position>.<field>`."""
    if not 1 <= len(steps) <= MOST_STEPS:
        raise refused("steps", f"Give from 1 to {MOST_STEPS} steps.")
    wanted, before = [], 0.0
    for position, one in enumerate(steps):
        place = f"steps.{position}"
        share, minutes, requests = one.get("share"), one.get("minutes", 0), one.get("requests", 0)
        if not (share is not None and math.isfinite(share) and LEAST_SHARE <= share <= 1 and share > before):
            raise refused(f"{place}.share", "Shares rise from step to step, from 0.0001 up to 1.")
        if not 0 <= minutes <= LONGEST:
            raise refused(f"{place}.minutes", f"Give from 0 to {LONGEST:,} minutes.")
        if not 0 <= requests <= MOST_REQUESTS:
            raise refused(f"{place}.requests", f"Give from 0 to {MOST_REQUESTS:,} requests.")
        wanted.append({"share": float(share), "minutes": float(minutes), "requests": int(requests)})
        before = share
    if before != 1:
        raise refused(f"steps.{len(steps) - 1}.share", "The last step has the share 1: then it has taken over.")
    return wanted


def rollout_numbered(deployment: Deployment, number: int) -> Rollout | None:
    rows = Rollout.objects.filter(deployment=deployment).select_related("deployment__organization", "created_by")
    found: Rollout | None = rows.filter(number=number).first()
    return found


def current_rollout(deployment: Deployment) -> Rollout | None:
    """The newest, which is the one that runs if any does."""
    rows = Rollout.objects.filter(deployment=deployment).select_related("deployment__organization", "created_by")
    found: Rollout | None = rows.first()
    return found


# --- the steps ----------------------------------------------------------------------------------------


def _locked(actor: User | None, rollout: Rollout, *states: str) -> Rollout:
    """Its deployment's row and its own, in the order that experiments lock them in too."""
    if actor is not None:
        require(actor, "deploy", rollout.deployment)
    locked_deployment(rollout.deployment)
    rows = Rollout.objects.select_for_update(of=("self",)).select_related("deployment__organization")
    locked: Rollout = rows.get(pk=rollout.pk)
    if locked.state not in states:
        raise Conflict(f"Canary {locked.number} is {locked.get_state_display().lower()}.", code=f"is_{locked.state}")
    return locked


def _split(
    actor: User | None, rollout: Rollout, share: float, reason: str, revision: int | None = None,
    despite_problems: bool = False,
) -> int:  # fmt: skip
    """The deployment's new revision.

    The stable version keeps its place with the weight 0 until the end: going back is one change, and nothing loads.
    """
    changed = change_variants(
        actor=actor, deployment=rollout.deployment, reason=reason[:2000], revision=revision, holder=rollout,
        variants=[
            Wanted(rollout.stable_id, 1 - share), Wanted(rollout.candidate_id, share), *_shadows(rollout),
        ], despite_problems=despite_problems,
    )  # fmt: skip
    return changed.revision


def _alone(actor: User | None, rollout: Rollout, version: UUID, reason: str) -> None:
    change_variants(
        actor=actor, deployment=rollout.deployment, variants=[Wanted(version), *_shadows(rollout)], reason=reason[:2000],
        holder=rollout,
    )  # fmt: skip


def _shadows(rollout: Rollout) -> list[Wanted]:
    return shadows_beside(rollout.deployment, (rollout.stable_id, rollout.candidate_id))


def _finish(rollout: Rollout) -> None:
    _alone(None, rollout, rollout.candidate_id, f"Canary {rollout.number} has taken over")
    _end(
        None,
        rollout,
        Rollout.State.FINISHED,
        "It has taken over: all its steps are done and no guardrail raised an alarm.",
    )


def _leave(actor: User | None, rollout: Rollout, state: "Rollout.State", reason: str) -> Rollout:
    _alone(actor, rollout, rollout.stable_id, f"Canary {rollout.number} goes back: {reason}")
    return _end(actor, rollout, state, reason)


def _end(actor: User | None, rollout: Rollout, state: "Rollout.State", conclusion: str) -> Rollout:
    release_log(rollout.deployment, rollout.sample_rate)
    rollout.state, rollout.conclusion, rollout.ended_at = state, conclusion, timezone.now()
    rollout.save()
    forget(rollout)
    audit.record(actor, f"canary.{state}", rollout, rollout.deployment.organization, number=rollout.number)
    return rollout


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
