"""Which deployment a name or an id means to a caller."""

from uuid import UUID

from django.http import Http404

from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.models import User
from dlplatform.accounts.organizations import resolve

from .models import Deployment


def find_deployment(user: User, identifier: str, organization: str | None) -> Deployment:
    """The deployment of that id, or the active one of that name (see `deployment_named`). Raises Http404."""
    try:
        wanted = UUID(identifier)
    except ValueError:
        return deployment_named(user, identifier, organization)
    found: Deployment = visible_or_404(Deployment.objects.select_related("organization"), user, pk=wanted)
    return found


def deployment_named(user: User, name: str, organization: str | None) -> Deployment:
    """The active deployment of that name in the caller's organization, or shared with the caller.

    ``organization`` is the slug that the request gives, where it gives one; without, a name that only one visible
    deployment has needs no organization. Raises Http404, and ValidationError on `organization`.
    """
    rows = Deployment.objects.visible_to(user).select_related("organization")
    found = list(rows.filter(name=name, state=Deployment.State.ACTIVE)[:2])
    if len(found) != 1 or organization is not None:
        meant = resolve(user, organization)
        found = list(rows.filter(name=name, organization=meant, state=Deployment.State.ACTIVE))
    if not found:
        raise Http404
    return found[0]
