"""Names of deployments: parts of addresses, each once among an organization's active ones."""

import re
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError

from dlplatform.accounts.models import Organization
from dlplatform.api import Conflict

from .models import Deployment

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def check_name(name: str) -> None:
    """A name is a part of addresses, beside ids: it must not look like one of these. Raises ValidationError on `name`."""
    if not NAME.fullmatch(name):
        raise _refused("Use letters, digits, dot, dash and underscore; at most 80.")
    with suppress(ValueError):
        UUID(name)
        raise _refused("Choose a name that does not look like an id.")


def namesakes(organization: Organization, name: str) -> Any:
    return Deployment.objects.filter(organization=organization, name=name, state=Deployment.State.ACTIVE)


def claim_name(deployment: Deployment) -> None:
    """Raises Conflict when another took the name while this one was archived."""
    if namesakes(deployment.organization, deployment.name).exclude(pk=deployment.pk).exists():
        raise Conflict(f"Another deployment is named “{deployment.name}” now.", code="name_taken")


def taken(name: str) -> str:
    return f"There is a deployment “{name}” already."


def _refused(sentence: str) -> ValidationError:
    return ValidationError({"name": ValidationError(sentence, code="invalid")})
