"""Optimizations of a version: asked for, cancelled; what speaks against a variant. The work is in `registry.optimizing`."""

import math
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.engine.compiler import MISSING, compiler
from dlplatform.engine.errors import EngineError
from dlplatform.engine.optimizing.plan import COMPILE, Plan, PlanError, parse_plan, unfit

from . import availability, graphs, own_code
from .models import ModelVersion, Optimization, OptimizedVariant
from .packages import MODEL

MOST_VARIANTS = 12
DEFAULT_TOLERANCE = 0.5
MOST_TOLERANCE = 100.0


@transaction.atomic
def request_optimization(
    *,
    actor: User,
    version: ModelVersion,
    plans: Sequence[dict[str, Any]],
    dataset_version: DatasetVersion | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Optimization:
    """Queue variants of a version. What can be seen not to work is refused now, by field.

    ``dataset_version``: the rows to learn from and to be judged by, by default those that the version learned from.
    ``tolerance``: points that the quality may fall by. Raises ValidationError, Conflict.
    """
    require(actor, "model.write", version.model)
    availability.require_files(version)
    _check_version(version)
    parsed = _checked_plans(version, plans)  # before the data: rows cannot help a model that is not optimised
    data = _checked_data(version, dataset_version)
    if not (math.isfinite(tolerance) and 0 <= tolerance <= MOST_TOLERANCE):
        raise _invalid("tolerance", f"Give points from 0 to {MOST_TOLERANCE:g}.", "invalid")
    made: Optimization = Optimization.objects.create(
        model=version.model, version=version, dataset_version=data, tolerance=tolerance, created_by=actor
    )
    OptimizedVariant.objects.bulk_create(
        OptimizedVariant(optimization=made, position=position, plan=plan.to_dict())
        for position, plan in enumerate(parsed)
    )
    audit.record(actor, "version.optimize", version, version.model.organization, plans=[plan.name for plan in parsed])
    jobs.enqueue(made)
    return made


def _check_version(version: ModelVersion) -> None:
    if MODEL not in version.tree:
        raise _invalid("version", "It was not trained here: only the platform's own models are optimised.", "unusable")
    if graphs.brings_graph(version):
        raise _invalid("version", "It is a graph already; optimise the version that it was made from.", "is_graph")


def _checked_data(version: ModelVersion, wanted: DatasetVersion | None) -> DatasetVersion:
    data = wanted or version.dataset_version
    if data is None:
        raise _invalid(
            "dataset_version", "Name the rows to measure on: it is not known what it learned from.", "required"
        )
    if data.dataset.organization_id != version.model.organization_id or data.state != DatasetVersion.State.READY:
        raise _invalid("dataset_version", "Choose a ready dataset version of this organization.", "invalid")
    known = {column["name"] for column in data.columns}
    lacking = sorted(each["name"] for each in version.signature.get("inputs", []) if each["name"] not in known)
    if lacking:
        raise _invalid(
            "dataset_version", f"The data lack inputs of the model: {', '.join(lacking[:10])}.", "missing_columns"
        )
    return data


def _checked_plans(version: ModelVersion, plans: Sequence[dict[str, Any]]) -> list[Plan]:
    if not 1 <= len(plans) <= MOST_VARIANTS:
        raise _invalid("variants", f"Ask for 1 to {MOST_VARIANTS} variants.", "invalid")
    found: list[Plan] = []
    for position, raw in enumerate(plans):
        try:
            plan = parse_plan(raw)
        except PlanError as error:
            raise _invalid(f"variants.{position}.{error.field}", str(error), "invalid") from error
        architecture = {"architecture": "code"} if own_code.brings_code(version) else {"layers": 1}
        if reason := unfit(version.task, architecture, plan):
            raise _invalid(f"variants.{position}.passes", reason, "unfit")
        if plan.keeping == COMPILE and compiler() is None and not jobs.others_work():
            fix = EngineError("no_compiler", MISSING).next_step
            raise _invalid(f"variants.{position}.passes", f"{MISSING} {fix}", "no_compiler")
        if plan in found:
            raise _invalid(f"variants.{position}", "This variant is asked for twice.", "unique")
        found.append(plan)
    return found


def _invalid(field: str, detail: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(detail, code=code)})


def cancel_optimization(*, actor: User, optimization: Optimization) -> Optimization:
    """Stop it: at once while queued, within seconds while it runs. Variants that are there already stay."""
    require(actor, "model.write", optimization.model)
    stopped: Optimization = jobs.cancel(optimization)
    return stopped


def problems_of(organization: UUID, version: UUID) -> list[dict[str, str]]:
    """What was measured to speak against deploying a version: [{code, sentence}]; nothing for what is no variant."""
    found = OptimizedVariant.objects.filter(output_version=version, optimization__model__organization=organization)
    report = found.values_list("report", flat=True).first() or {}
    told: list[dict[str, str]] = report.get("problems", [])
    return told
