"""Training a version once more from its recorded lineage, to see whether the same weights come out."""

from typing import Any

from django.db import transaction

from dlplatform.accounts import audit
from dlplatform.accounts.access import require, require_code
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry import availability
from registry.models import ModelVersion

from .models import ReplayCertificate, Run
from .services import clone_run


@transaction.atomic
def replay(*, actor: User, version: ModelVersion) -> Run:
    """Queue a run with everything as in the one that made the version. It ends with a certificate and commits nothing.

    One with code of its own runs in its sandbox again, for whom may run code. Raises Conflict for a version without a run, without its files, or whose replay is under way.
    """
    version = (
        ModelVersion.objects.select_for_update(of=("self",)).select_related("model__organization").get(pk=version.pk)
    )
    require(actor, "run.write", version.model.organization)
    availability.require_files(version)
    original = made_by(version)
    if original is None:
        raise Conflict("No run here made this version, so there is nothing to train again.", code="no_run")
    if original.code_id is not None:
        require_code(actor, version.model.organization)
    if unfinished(version) is not None:
        raise Conflict("A replay of this version is under way already.", code="in_progress")
    run = clone_run(
        actor=actor, run=original, config=pinned(original), replays=version,
        name=f"replay of {version.model.name[:90]} v{version.number}",
    )  # fmt: skip
    audit.record(actor, "version.replay", version, version.model.organization, run=str(run.pk))
    return run


def made_by(version: ModelVersion) -> Run | None:
    """The run whose result the version is."""
    return Run.objects.select_related("experiment__organization").filter(output_version=version).first()


def unfinished(version: ModelVersion) -> Run | None:
    """The replay that is waiting or at work."""
    return Run.objects.filter(replays=version).exclude(state__in=Run.ENDED).first()


def certificates(version: ModelVersion) -> list[ReplayCertificate]:
    """What replays of the version found, the newest first."""
    return list(ReplayCertificate.objects.filter(version=version).select_related("run")[:20])


def pinned(original: Run) -> dict[str, Any]:
    """What the first run chose for itself and another could choose otherwise: its threads, a batch size tried out."""
    used = original.environment.get("settings", {})
    change: dict[str, Any] = {}
    if threads := original.environment.get("threads"):
        change["threads"] = threads
    if original.config.get("batch_size") == "fit" and isinstance(used.get("batch_size"), int):
        change["batch_size"] = used["batch_size"]
    return change
