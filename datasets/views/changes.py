"""Making, renaming and archiving datasets, cancelling an ingestion, and the rows as a file."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from datasets import deletion, services
from datasets.forms import DatasetForm
from datasets.ingestion.export import neutralise
from datasets.ingestion.rows import batched_rows
from datasets.models import DatasetVersion
from dlplatform.accounts.access import require
from dlplatform.accounts.pages import no_organization, organization_of, refusals_as_messages, said, submitted

from .dataset import dataset_or_404, version_or_404

CSV_ROWS = 5_000


@require_safe
def dataset_new(request: HttpRequest) -> HttpResponse:
    """The page that uploads: the script makes the dataset and sends the file by the API."""
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "dataset.write", organization)
    context = {"section": "datasets", "form": DatasetForm(), "limit": settings.UPLOAD_MAX_BYTES}
    return render(request, "datasets/upload.html", context)


@require_safe
def dataset_upload(request: HttpRequest, dataset: UUID) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    require(request.user, "dataset.write", found)
    context = {"section": "datasets", "dataset": found, "limit": settings.UPLOAD_MAX_BYTES}
    return render(request, "datasets/upload.html", context)


@require_POST
def dataset_edit(request: HttpRequest, dataset: UUID) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    with refusals_as_messages(request):
        services.update_dataset(actor=request.user, dataset=found, **submitted(DatasetForm(request.POST)))
        said(request, "Saved.")
    return redirect("dataset", found.pk)


@require_POST
def dataset_archive(request: HttpRequest, dataset: UUID) -> HttpResponse:
    return _set_archived(request, dataset, True, "is archived: out of the lists, nothing is lost.", "dataset-restore")


@require_POST
def dataset_restore(request: HttpRequest, dataset: UUID) -> HttpResponse:
    return _set_archived(request, dataset, False, "is back in the lists.")


def _set_archived(request: HttpRequest, dataset: UUID, archived: bool, text: str, undo: str = "") -> HttpResponse:
    found = dataset_or_404(request, dataset)
    with refusals_as_messages(request):
        if archived:
            services.set_dataset_archived(actor=request.user, dataset=found, archived=True)
        else:
            deletion.restore_dataset(actor=request.user, dataset=found)
        said(request, f"“{found.name}” {text}", undo and reverse(undo, args=[found.pk]))
    return redirect("dataset", found.pk)


@require_POST
def version_cancel(request: HttpRequest, dataset: UUID, number: int) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    version = version_or_404(found, number)
    with refusals_as_messages(request):
        services.cancel_version(actor=request.user, version=version)
        said(request, "The reading of the file stops.")
    return redirect(f"{reverse('dataset', args=[found.pk])}?version={number}")


@require_safe
def version_csv(request: HttpRequest, dataset: UUID, number: int) -> StreamingHttpResponse:
    """All rows as CSV; text that a spreadsheet would run as a formula is neutralised."""
    found = dataset_or_404(request, dataset)
    version = version_or_404(found, number)
    if version.state != DatasetVersion.State.READY:
        raise Http404
    chunks = _csv_chunks(services.local_parts(version), [column["name"] for column in version.columns])
    response = StreamingHttpResponse(chunks, content_type="text/csv; charset=utf-8")
    name = quote(f"{found.name}-v{number}.csv", safe="")
    response["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    return response


async def _csv_chunks(parts: list[Path], names: list[str]) -> AsyncIterator[str]:
    """Read and written in a thread, some thousand rows at a time: the memory does not grow with the data."""
    yield _csv_lines([names])
    batches = batched_rows(parts, CSV_ROWS, names)
    while (rows := await asyncio.to_thread(next, batches, None)) is not None:
        yield _csv_lines([row[name] for name in names] for row in rows)


def _csv_lines(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return neutralise(value) if isinstance(value, str) else value
