"""What was measured against versions before they answer somewhere: nobody deploys by mistake what is slower, bigger or worse."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from registry.optimizations import problems_of

from .models import Deployment, Variant
from .refusing import refused


def refuse_problems(deployment: Deployment, versions: Mapping[str, UUID], *, despite: bool, reason: str) -> None:
    """Raises ValidationError on the field that names a version with measured problems, and on `reason` where that is missing.

    ``versions`` by the field that names them. What is in the deployment already was let in.
    """
    for field, told in measured_problems(deployment, versions).items():
        if not despite:
            raise refused(field, f"{told} Say that you want it nevertheless, and why.", "has_problems")
        if not reason.strip():
            raise refused("reason", "Say why it shall answer despite what was measured.", "required")


def measured_problems(deployment: Deployment, versions: Mapping[str, UUID]) -> dict[str, str]:
    """In words, by the field, what was measured against versions that are not in the deployment yet."""
    rows = Variant.objects.filter(deployment=deployment, removed_at=None)
    present = set(rows.values_list("version_id", flat=True))
    new = {field: version for field, version in versions.items() if version not in present}
    found = {field: problems_of(deployment.organization_id, version) for field, version in new.items()}
    return {field: in_sentences(told) for field, told in found.items() if told}


def in_sentences(problems: list[dict[str, Any]]) -> str:
    return " ".join(one["sentence"] for one in problems)
