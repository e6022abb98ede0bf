"""Deleting a dataset or the rows of a version: what it frees, asked on a page of its own; and undoing it."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from datasets import deletion
from dlplatform.accounts.access import require
from dlplatform.accounts.pages import refusals_as_messages, said
from dlplatform.objects.grace import Preview, grace

from .dataset import dataset_or_404, version_or_404

STAYS = "What is known of the versions stays: columns, profile, the runs and models that used them."


@require_http_methods(["GET", "HEAD", "POST"])
def dataset_delete(request: HttpRequest, dataset: UUID) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    require(request.user, "dataset.delete", found)
    back = reverse("dataset", args=[found.pk])
    if request.method != "POST":
        return _asked(request, f"Delete {found.name}?", found.name, deletion.preview_of_dataset(found), back)
    with refusals_as_messages(request):
        deletion.delete_dataset(actor=request.user, dataset=found)
        said(request, f"“{found.name}” is deleted.", reverse("dataset-restore", args=[found.pk]))
        return redirect("datasets")
    return redirect(back)


@require_http_methods(["GET", "HEAD", "POST"])
def version_delete(request: HttpRequest, dataset: UUID, number: int) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    require(request.user, "dataset.delete", found)
    version = version_or_404(found, number)
    back = f"{reverse('dataset', args=[found.pk])}?version={number}"
    if request.method != "POST":
        preview = deletion.preview_of_version(version)
        return _asked(request, f"Delete the rows of v{number}?", f"{found.name} v{number}", preview, back)
    with refusals_as_messages(request):
        deletion.delete_version(actor=request.user, version=version)
        undo = reverse("dataset-version-restore", args=[found.pk, number])
        said(request, f"The rows of v{number} are deleted.", undo)
    return redirect(back)


@require_POST
def version_restore(request: HttpRequest, dataset: UUID, number: int) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    version = version_or_404(found, number)
    with refusals_as_messages(request):
        deletion.restore_version(actor=request.user, version=version)
        said(request, f"The rows of v{number} are back.")
    return redirect(f"{reverse('dataset', args=[found.pk])}?version={number}")


def _asked(request: HttpRequest, question: str, name: str, preview: Preview, back: str) -> HttpResponse:
    context = {"section": "datasets", "question": question, "name": name, "preview": preview, "back": back}
    return render(request, "deletion.html", {**context, "days": grace().days, "stays": STAYS})
