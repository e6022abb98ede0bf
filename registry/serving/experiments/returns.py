"""An arm of a bandit that a guardrail took out comes back, because a person says so.

It is a look as any move is: who is put back is stored with it, and the rest comes out of its sums and of the look before. The arm's
guardrails begin anew: what they counted until then stays in the sums, and is subtracted from then on. What the arm has earned counts
as before, for it is what is known of the version.
"""

from datetime import datetime, timedelta

from django.db import transaction

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict

from .arms import arms_of, refused
from .bandits import require_out
from .looks import read_sums, record_look, window_of
from .models import Experiment, Look
from .sums import Window

# Between the alarm and the return, by the log: what servers had in hand when it was taken out is written by then, so that nothing
# from before the alarm is counted as from after the return.
LEAST_OUT = timedelta(minutes=1)


def put_back(*, actor: User, experiment: Experiment, arm: str, reason: str) -> Look:
    """Let an arm that a guardrail took out have its part of the traffic again; the move with it.

    Raises ValidationError on `arm` and `reason`, PermissionDenied, and Conflict where it has ended, is no bandit, or the arm is
    not out or not for long enough.
    """
    require(actor, "deploy", experiment.deployment)
    _check_runs(experiment)
    letter = _letter_of(experiment, arm)
    if not reason.strip():
        raise refused("reason", f"Say why {letter.upper()} may answer again: what was the cause, and what has changed.")
    window = window_of(experiment)
    _check_out(experiment, letter, window)
    sums, said = read_sums(experiment, window), reason.strip()
    organization = experiment.deployment.organization
    with transaction.atomic():
        look = record_look(experiment, window, sums, Look.Kind.RETURN, actor, back=letter, reason=said)
        audit.record(
            actor, "ab_test.put_back", experiment, organization, number=experiment.number, arm=letter, reason=said
        )
    return look


def _check_runs(experiment: Experiment) -> None:
    if experiment.mode != Experiment.Mode.BANDIT:
        raise Conflict("Only a bandit goes on without a version, and takes it back.", code="not_a_bandit")
    if experiment.state != Experiment.State.RUNNING:
        word = f"Experiment {experiment.number} is {experiment.state}"
        raise Conflict(f"{word}: only into one that runs is a version put back.", code=f"is_{experiment.state}")


def _letter_of(experiment: Experiment, given: str) -> str:
    letters = [one.letter for one in arms_of(experiment)]
    if given.lower() not in letters:
        raise refused("arm", f"Say which version shall answer again: {', '.join(letters[1:])}.")
    return given.lower()


def _check_out(experiment: Experiment, letter: str, window: Window) -> None:
    require_out(experiment.taken.last(), letter)
    since = window.until - _out_since(experiment, letter)
    if since < LEAST_OUT:
        wait = (LEAST_OUT - since).total_seconds()
        raise Conflict(
            f"{letter.upper()} was taken out less than a minute ago, and not all that it answered is written down: try "
            f"again in {wait:.0f} seconds.", code="too_soon",
        )  # fmt: skip


def _out_since(experiment: Experiment, letter: str) -> datetime:
    """The moment of the look that took it out, the last time."""
    since = window_of(experiment).until
    for until, out in experiment.taken.order_by("-number").values_list("until", "results__bandit__out").iterator():
        if letter not in (out or ()):
            break
        since = until
    return since
