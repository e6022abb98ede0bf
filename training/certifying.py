"""The end of a replay: its weights beside those of the version, and what differs, as a certificate."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import transaction

from dlplatform.engine.errors import PackageError
from registry.services import object_store

from .models import ReplayCertificate, Run
from .records import append_event
from .states import announce

WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "adapter.safetensors")
SHOWN_TENSORS = 20
RENEW_SECONDS = 1.0
# Of a run's environment, what may change its numbers.
JUDGED = ("device", "cpu", "threads", "cores", "platform", "processes")
UNJUDGED_SETTINGS = {"threads"}  # set by the replay itself; the count in use is in the environment


def certify(
    run: Run, package: Path, description: dict[str, Any], metrics: dict[str, Any], evaluation: Any
) -> ReplayCertificate:
    """Compare the package with the version that the run replays, and end the run as succeeded.

    Raises PackageError without weights to compare, LeaseLost when the run is no longer ours.
    """
    details = _details(run, package, description, metrics)
    recorded, replayed = details["sha256"]["recorded"], details["sha256"]["replayed"]
    version = run.replays
    assert version is not None
    with transaction.atomic():
        certificate = ReplayCertificate.objects.create(
            version=version, run=run, equal=recorded == replayed, details=details
        )
        append_event(run, "state", state=Run.State.SUCCEEDED, certificate=str(certificate.pk))
        run.finish(
            Run.State.SUCCEEDED,
            metrics=metrics,
            evaluation=evaluation,
            progress=1.0,
            eta_seconds=0.0,
            phase="",
            error=None,
        )
        announce(run)
    return certificate


def _details(run: Run, package: Path, description: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    version = run.replays
    if version is None:
        raise PackageError("the version that was to be compared with is gone")
    name = next((name for name in WEIGHTS if name in version.tree and (package / name).exists()), None)
    if name is None:
        raise PackageError("the version and its replay have no file of weights in common")
    with (package / name).open("rb") as file:
        replayed = hashlib.file_digest(file, "sha256").hexdigest()
    recorded = version.tree[name]["sha256"]
    settings = description.get("config", {})
    return {
        "file": name,
        "sha256": {"recorded": recorded, "replayed": replayed},
        "metrics": differing(version.metrics, metrics),
        "weights": _weights(run, recorded, package / name) if recorded != replayed else None,
        "environment": differing(_judged(version.lineage.get("environment", {})), _judged(run.environment)),
        "settings": differing(_settings(version.lineage.get("settings", {})), _settings(settings)),
    }


def differing(recorded: dict[str, Any], replayed: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of either that are not the same in both: {name, recorded, replayed}."""
    names = list(dict.fromkeys([*recorded, *replayed]))
    pairs = ((name, recorded.get(name), replayed.get(name)) for name in names)
    return [{"name": name, "recorded": one, "replayed": other} for name, one, other in pairs if one != other]


def _judged(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: environment.get(name) for name in JUDGED} | environment.get("versions", {})


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in settings.items() if name != "params" and name not in UNJUDGED_SETTINGS}
    return plain | {f"params.{name}": value for name, value in (settings.get("params") or {}).items()}


def _weights(run: Run, recorded: str, replayed: Path) -> dict[str, Any]:
    """How far the tensors are apart; the original is fetched beside the replay."""
    from dlplatform.engine.weights import compare_weights

    assert run.replays is not None
    original = replayed.with_name("recorded.safetensors")
    object_store(run.replays.model.organization_id).fetch(recorded, original)
    try:
        rows = compare_weights(original, replayed, beat=_keeping(run))
    finally:
        original.unlink(missing_ok=True)
    changed = sorted(
        (row for row in rows if row["status"] != "same"), key=lambda row: -row.get("largest", float("inf"))
    )
    largest = max((row["largest"] for row in changed if "largest" in row), default=None)
    return {"tensors": len(rows), "changed": len(changed), "largest": largest, "most_changed": changed[:SHOWN_TENSORS]}


def _keeping(run: Run) -> Callable[[float], None]:
    """Prolongs the lease while something long is compared."""
    last = time.monotonic()

    def beat(_done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= RENEW_SECONDS:
            last = time.monotonic()
            run.renew()

    return beat
