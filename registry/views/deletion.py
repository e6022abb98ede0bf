"""Deleting a model or the files of a version: what it frees, asked on a page of its own; and undoing it."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from dlplatform.accounts.access import require
from dlplatform.accounts.pages import refusals_as_messages, said
from dlplatform.objects.grace import Preview, grace
from registry import deletion

from .model import model_or_404
from .version import version_or_404

STAYS = "What is known of the versions stays: metrics, lineage, the log of refs."


@require_http_methods(["GET", "HEAD", "POST"])
def model_delete(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    require(request.user, "model.delete", found)
    if request.method != "POST":
        preview = deletion.preview_of_model(found)
        return _asked(request, f"Delete {found.name}?", found.name, preview, reverse("model", args=[found.pk]))
    with refusals_as_messages(request):
        deletion.delete_model(actor=request.user, model=found)
        said(request, f"“{found.name}” is deleted.", reverse("model-restore", args=[found.pk]))
    return redirect("models")


@require_http_methods(["GET", "HEAD", "POST"])
def version_delete(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    require(request.user, "model.delete", found)
    back = reverse("model-version", args=[found.pk])
    if request.method != "POST":
        preview = deletion.preview_of_version(found)
        return _asked(request, f"Delete the files of v{found.number}?", str(found), preview, back)
    with refusals_as_messages(request):
        deletion.delete_version(actor=request.user, version=found)
        said(request, f"The files of v{found.number} are deleted.", reverse("version-restore", args=[found.pk]))
    return redirect(back)


@require_POST
def version_restore(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    with refusals_as_messages(request):
        deletion.restore_version(actor=request.user, version=found)
        said(request, f"The files of v{found.number} are back.")
    return redirect("model-version", found.pk)


def _asked(request: HttpRequest, question: str, name: str, preview: Preview, back: str) -> HttpResponse:
    context = {"section": "models", "question": question, "name": name, "preview": preview, "back": back}
    return render(request, "deletion.html", {**context, "days": grace().days, "stays": STAYS})
