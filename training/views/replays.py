"""Replays on the page of a version: the button, what is under way, and the certificates in words."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages, said
from dlplatform.accounts.templatetags.platform import number
from registry.models import ModelVersion
from training.models import ReplayCertificate
from training.replay import certificates, made_by, replay, unfinished


def _version_or_404(request: HttpRequest, identifier: UUID) -> ModelVersion:
    rows = ModelVersion.objects.select_related("model__organization")
    found: ModelVersion = visible_or_404(rows, request.user, pk=identifier)
    return found


def version_replays(request: HttpRequest, version: UUID) -> HttpResponse:
    """The part of the version's page that it fetches."""
    found = _version_or_404(request, version)
    can_train = may(request.user, "run.write", found.model.organization)
    context = {
        "version": found,
        "certificates": [{"row": one, "words": in_words(one)} for one in certificates(found)],
        "under_way": unfinished(found),
        "can_replay": can_train and found.deleted_at is None and made_by(found) is not None,
    }
    return render(request, "training/_replays.html", context)


@require_POST
def version_replay(request: HttpRequest, version: UUID) -> HttpResponse:
    found = _version_or_404(request, version)
    with refusals_as_messages(request):
        run = replay(actor=request.user, version=found)
        said(request, "Queued. When it ends, the page of the version says whether the same weights came out.")
        return redirect("run", run.pk)
    return redirect("model-version", found.pk)


def in_words(certificate: ReplayCertificate) -> list[str]:
    """What differs, a line each; nothing for equal weights in an equal environment."""
    details: dict[str, Any] = certificate.details
    lines = []
    if weights := details.get("weights"):
        largest = "" if weights["largest"] is None else f", by {number(weights['largest'])} at most"
        lines.append(f"{weights['changed']} of {weights['tensors']} tensors differ{largest}.")
    for title in ("metrics", "settings", "environment"):
        entries = details.get(title) or []
        told = "; ".join(f"{one['name']} {_shown(one['recorded'])} → {_shown(one['replayed'])}" for one in entries[:12])
        if told:
            lines.append(f"{title.capitalize()}: {told}.")
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return number(value) if isinstance(value, float) else str(value)
