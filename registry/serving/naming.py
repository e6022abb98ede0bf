"""Names of deployments: parts of addresses, each once among an organization's active ones."""

import re
import unicodedata
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError

from dlplatform.accounts.models import Organization
from dlplatform.api import Conflict

from .models import Deployment
from .refusing import refused

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
LONGEST_BASE = 60  # leaves room for a number


def check_name(name: str) -> None:
    """A name is a part of addresses, beside ids: it must not look like one of these. Raises ValidationError on `name`."""
    if not NAME.fullmatch(name):
        raise refused("name", "Use letters, digits, dot, dash and underscore; at most 80.")
    with suppress(ValueError):
        UUID(name)
        raise refused("name", "Choose a name that does not look like an id.")


def namesakes(organization: Organization, name: str) -> Any:
    return Deployment.objects.filter(organization=organization, name=name, state=Deployment.State.ACTIVE)


def _beginning_with(organization: Organization, beginning: str) -> Any:
    active = Deployment.objects.filter(organization=organization, state=Deployment.State.ACTIVE)
    return active.filter(name__startswith=beginning)


def claim_name(deployment: Deployment) -> None:
    """Raises Conflict when another took the name while this one was archived."""
    if namesakes(deployment.organization, deployment.name).exclude(pk=deployment.pk).exists():
        raise Conflict(f"Another deployment is named “{deployment.name}” now.", code="name_taken")


def taken(name: str) -> str:
    return f"There is a deployment “{name}” already."


def free_name(organization: Organization, model: str) -> str:
    """After a model, as an address; with a number behind it where another deployment has that name: churn, churn-2, …"""
    base = _as_address(model)
    using = set(_beginning_with(organization, base).values_list("name", flat=True))
    tried = (base if number == 1 else f"{base}-{number}" for number in count(1))
    return next(name for name in tried if name not in using)


def _as_address(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    short = UNFIT.sub("-", plain)[:LONGEST_BASE].strip("-._")
    try:
        check_name(short)
    except ValidationError:  # nothing is left of it, or it looks like an id
        return f"model-{short}".rstrip("-")
    return short
