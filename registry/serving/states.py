"""States of deployments as their log keeps them: how they differ, and which one an undo goes back to."""

from typing import Any

from registry.models import Ref

from .experiments.holding import own_sample_rate
from .models import Deployment, DeploymentChange, Variant

ANSWERING = ("state", "variants", "allocation")  # of a state in the log: what decides who answers
DETAILS = ("description", "sample_rate")  # and what does not


def state_of(deployment: Deployment) -> dict[str, Any]:
    """What the log keeps: enough to answer what was served, and to go back to it.

    ``sample_rate`` is the deployment's own: that an experiment or a canary needs every request is theirs, and ends with them.
    """
    variants = [
        {
            "id": str(row.pk), "version": str(row.version_id), "model": row.version.model.name,
            "number": row.version.number, "role": row.role, "weight": row.weight, "arm": row.arm, "alias": row.alias,
        }
        for row in present_variants(deployment)
    ]  # fmt: skip
    return {
        "state": str(deployment.state),
        "variants": variants,
        "allocation": [list(part) for part in deployment.allocation],
        **own_details(deployment),
    }


def own_details(deployment: Deployment) -> dict[str, Any]:
    """Its `DETAILS` as they are when nobody holds it."""
    return {"description": deployment.description, "sample_rate": own_sample_rate(deployment)}


def present_variants(deployment: Deployment) -> list[Variant]:
    return list(Variant.objects.filter(deployment=deployment, removed_at=None).select_related("version__model"))


def details_in(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in DETAILS}


def answers_as(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states differ at most in their details."""
    return all(one[name] == other[name] for name in ANSWERING)


def differs_in_description_alone(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in one if name != "description")


def goes_back_while_held(change: DeploymentChange, now: dict[str, Any]) -> bool:
    """Whether a deployment in the state ``now`` may go back to before a change also while somebody holds it."""
    target = details_in(now) | change.before
    return bool(change.before["variants"]) and target != now and differs_in_description_alone(target, now)


def target_of(undone: DeploymentChange, now: dict[str, Any]) -> dict[str, Any]:
    """What to go back to. Rows from before descriptions and rates were kept leave these as they are."""
    target = details_in(now) | undone.before
    return target if answers_as(target, now) else _pinned(target)


def _pinned(target: dict[str, Any]) -> dict[str, Any]:
    """A variant whose alias names another version now follows it no more, or it would go at once."""
    variants = [one | {"alias": _alias_still(one)} for one in target["variants"]]
    return target | {"variants": variants}


def _alias_still(variant: dict[str, Any]) -> str:
    alias: str = variant.get("alias", "")
    named = Ref.objects.filter(kind=Ref.Kind.ALIAS, name=alias, version=variant["version"])
    return alias if alias and named.exists() else ""
