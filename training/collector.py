"""Brings a finished run's package into the registry, with its lineage, and ends the run; both or neither."""

import json
from pathlib import Path
from typing import Any

from django.db import transaction

from dlplatform.engine.description import chat_signature, read_description
from dlplatform.engine.events import SPOOL
from dlplatform.engine.job import CODE, OUTPUT
from registry import services as registry
from registry.models import ModelVersion, Ref, RegisteredModel

from .certifying import certify
from .models import MetricSeries, Run
from .outputs import code_tree, examined
from .records import append_event
from .states import announce

HIDDEN_FILES = {SPOOL, "manifest.json"}


def collect(run: Run, directory: Path, metrics: dict[str, Any]) -> ModelVersion | None:
    """Verify the package, store its files, commit it and end the run as succeeded. A replay ends with a certificate
    instead.

    Raises PackageError when the package is not whole, LeaseLost when the run is no longer ours.
    """
    from dlplatform.engine.package import is_adapter, verify

    package = directory / OUTPUT
    if run.code_id:
        return collect_foreign(run, package, metrics)
    verify(package)
    description = read_description(package)
    evaluation = json.loads((package / "evaluation.json").read_text())
    if run.replays_id:
        certify(run, package, description, metrics, evaluation)
        return None
    organization = run.experiment.organization
    earlier = registry.earlier_files(organization=organization, name=run.register_as)
    tree = registry.store_directory(organization.pk, package, like=earlier)
    with transaction.atomic():
        assert run.created_by is not None
        model = registry.model_named(actor=run.created_by, organization=organization, name=run.register_as)
        version = registry.commit_version(
            actor=run.created_by,
            model=model,
            tree=tree,
            task=run.task,
            signature={
                "inputs": description["inputs"],
                "output": description["output"],
                "target": description["target"],
                **chat_signature(description),
            },
            metrics=metrics,
            lineage=lineage(run, description),
            message=f"Run {run.name}",
            dataset_version=run.dataset_version,
            branch=run.branch,
            parents=_parents(run, model),
            base=run.base_version if is_adapter(description) else None,
        )
        _succeed(run, version, metrics, evaluation)
    return version


def _succeed(run: Run, version: ModelVersion, metrics: dict[str, Any], evaluation: dict[str, Any] | None) -> None:
    _final_series(run, metrics)
    append_event(run, "state", state=Run.State.SUCCEEDED, output_version=str(version.pk))
    run.finish(
        Run.State.SUCCEEDED, output_version=version, metrics=metrics, evaluation=evaluation, progress=1.0,
        eta_seconds=0.0, phase="", error=None,
    )  # fmt: skip
    announce(run)


def collect_foreign(run: Run, package: Path, metrics: dict[str, Any]) -> ModelVersion | None:
    """As `collect`, for a run whose code could write anything. Raises PackageError, LeaseLost."""
    assert run.code is not None
    output = examined(run, package)
    found = output.contents
    if run.replays_id:
        certify(run, package, output.description, metrics, output.evaluation)
        return None
    organization = run.experiment.organization
    earlier = registry.earlier_files(organization=organization, name=run.register_as)
    tree = registry.store_directory(organization.pk, package, like=earlier)
    tree = {path: entry for path, entry in tree.items() if not path.startswith(f"{CODE}/")} | code_tree(run.code)
    with transaction.atomic():
        assert run.created_by is not None
        model = registry.model_named(actor=run.created_by, organization=organization, name=run.register_as)
        version = registry.commit_version(
            actor=run.created_by, model=model, tree=tree, task=found.task, signature=found.signature, metrics=metrics,
            lineage=found.lineage | lineage(run, {"config": run.config}) | {"code": output.lineage},
            message=f"Run {run.name}", dataset_version=run.dataset_version, branch=run.branch,
            parents=_parents(run, model),
        )  # fmt: skip
        _succeed(run, version, metrics, output.evaluation)
    return version


def _parents(run: Run, model: RegisteredModel) -> list[ModelVersion] | None:
    """A fine-tune follows its base where both are versions of one model; trials of a sweep follow the head of main side by
    side; else the branch's head is followed."""
    if run.base_version and run.base_version.model_id == model.pk:
        return [run.base_version]
    if run.trial_id is None:
        return None
    main = Ref.objects.filter(model=model, kind=Ref.Kind.BRANCH, name="main").select_related("version").first()
    return [main.version] if main else []


def lineage(run: Run, description: dict[str, Any]) -> dict[str, Any]:
    """Everything needed to answer "where does this model come from?" and to train it again."""
    version = run.dataset_version
    return {
        "run": str(run.pk),
        "experiment": run.experiment.name,
        "dataset": {"id": str(version.dataset_id), "name": version.dataset.name, "version": version.number,
                    "version_id": str(version.pk), "source_sha256": version.source_sha256},
        "task": run.task,
        "target": run.target,
        "features": run.features,
        "config": run.config,
        "settings": description.get("config", {}),
        "seed": description.get("config", {}).get("seed"),
        "environment": run.environment,
        "versions": description.get("versions", {}),
        "attempts": run.attempt,
        **(
            {
                "base": {
                    "id": str(run.base_version.pk),
                    "name": run.base_version.model.name,
                    "version": run.base_version.number,
                },
                "finetune": run.finetune,
            }
            if run.base_version
            else {}
        ),
    }  # fmt: skip


def _final_series(run: Run, metrics: dict[str, Any]) -> None:
    """Final metrics become series without points, so that lists sort by them like by any other."""
    MetricSeries.objects.bulk_create(
        [MetricSeries(run=run, key=key, last=value, minimum=value, maximum=value) for key, value in metrics.items()],
        update_conflicts=True,
        unique_fields=["run", "key"],
        update_fields=["last", "minimum", "maximum"],
    )
