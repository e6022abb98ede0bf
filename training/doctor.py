"""What the engine's doctor noticed in a run, for pages and API, and another try with its remedy."""

from typing import Any

from dlplatform.accounts.models import User
from dlplatform.accounts.templatetags.platform import setting
from dlplatform.api import Conflict
from dlplatform.engine.errors import PackageError

from .fixed_settings import free_of
from .models import Run, RunEvent
from .services import clone_run

MOST_SHOWN = 100


def findings_of(run: Run) -> list[dict[str, Any]]:
    """The findings in the order in which they were made: {sequence, time, code, severity, sentence, next_step, change}.

    A run that began again without its checkpoints may say a thing twice; the first time counts.
    """
    events = RunEvent.objects.filter(run=run, type="finding").order_by("sequence")[:MOST_SHOWN]
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        first.setdefault(event.payload["code"], {"sequence": event.sequence, "time": event.time, **event.payload})
    return [_for_its_base(run, finding) for finding in first.values()]


def _for_its_base(run: Run, finding: dict[str, Any]) -> dict[str, Any]:
    """Without what the run's base fixes: another try with it would be the same. The finding stays as it is where the files of
    the base, which would tell, are gone."""
    if not finding.get("change") or run.base_version is None:
        return finding
    try:
        return {**finding, "change": free_of(run.base_version, run.task, finding["change"]) or None}
    except PackageError:
        return finding


def change_in_words(change: dict[str, Any]) -> str:
    """Such as: learning_rate 0.0003, dropout 0.3."""
    flat = {name: value for name, value in change.items() if name != "params"} | change.get("params", {})
    return ", ".join(f"{name} {setting(value)}" for name, value in flat.items())


def relaunch(*, actor: User, run: Run, code: str) -> Run:
    """Queue a copy of the run with what a finding suggests. Raises Conflict when it suggests nothing."""
    change = next((one["change"] for one in findings_of(run) if one["code"] == code), None)
    if not change:
        raise Conflict("This run has no finding that suggests other settings.", code="nothing_to_change")
    params = {**run.config.get("params", {}), **change.get("params", {})}
    return clone_run(actor=actor, run=run, config={**change, **({"params": params} if params else {})})
