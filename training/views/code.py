"""Code of one's own on pages: uploading it, and what a bundle holds."""

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods
from rest_framework.exceptions import APIException

from dlplatform.accounts.access import may_run_code, require_code, visible_or_404
from dlplatform.accounts.pages import no_organization, organization_of
from dlplatform.objects.errors import CorruptObject, MissingObject
from dlplatform.web import add_errors
from training import code
from training.models import CodeBundle, Run

MOST_SHOWN = 64 * 1024
MOST_FILES_SHOWN = 20
MOST_RUNS = 50


class CodeForm(forms.Form):
    file = forms.FileField(
        label="A .py file, or a zip", allow_empty_file=True,
        help_text="model.py with build(schema, **params) is an architecture; main.py is a training script.",
    )  # fmt: skip


@require_http_methods(["GET", "POST"])
def code_new(request: HttpRequest) -> HttpResponse:
    """Upload code, then launch a run with it."""
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require_code(request.user, organization)
    form = CodeForm(request.POST or None, request.FILES or None)
    if request.method == "POST" and form.is_valid():
        file = form.cleaned_data["file"]
        try:
            bundle = code.add_code(
                actor=request.user, organization=organization, filename=file.name, content=file.read()
            )
            return redirect(f"{reverse('run-new')}?code={bundle.pk}")
        except ValidationError as error:
            add_errors(form, error)
        except APIException as refusal:
            form.add_error("file", str(refusal.detail))
    rows = CodeBundle.objects.filter(organization=organization).select_related("created_by")[:MOST_RUNS]
    return render(request, "training/code_new.html", {"section": "runs", "form": form, "bundles": rows})


def code_page(request: HttpRequest, code: UUID) -> HttpResponse:
    rows = CodeBundle.objects.select_related("organization", "created_by")
    found: CodeBundle = visible_or_404(rows, request.user, pk=code)
    context = {
        "section": "runs",
        "code": found,
        "files": _files(found),
        "runs": Run.objects.visible_to(request.user).filter(code=found)[:MOST_RUNS],
        "can_launch": may_run_code(request.user, found.organization),
    }
    return render(request, "training/code.html", context)


def _files(bundle: CodeBundle) -> list[dict[str, Any]]:
    """The files, the first few of them with their text."""
    store = code.object_store(bundle.organization)
    shown = [{"path": path, **entry, "text": None} for path, entry in sorted(bundle.tree.items())]
    texts = [
        one for one in shown if one["size"] <= MOST_SHOWN and one["path"].endswith((".py", ".txt", ".md", ".json"))
    ]
    for one in texts[:MOST_FILES_SHOWN]:
        try:
            one["text"] = store.read(one["sha256"]).decode("utf-8", "replace")
        except (MissingObject, CorruptObject):
            continue
    return shown
