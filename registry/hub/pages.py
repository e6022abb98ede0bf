"""The address that clients print after a commit leads people to the page of the version."""

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from . import revisions
from .errors import HubError


def commit_page(request: HttpRequest, namespace: str, name: str, revision: str) -> HttpResponse:
    try:
        version = revisions.version_of(revisions.model_of(request.user, namespace, name), revision)
    except HubError:
        raise Http404 from None
    return redirect("model-version", version.pk)
