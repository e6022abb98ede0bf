"""The page of one model version: card, origin, files; and trying it with one's own values."""

import json
import shlex
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.api import Conflict, Unavailable
from dlplatform.objects.grace import undoable_until
from dlplatform.web import page
from registry import availability, releases
from registry.cards import card_of
from registry.chat_form import ChatForm, example_of, takes_chats
from registry.examples import example_images
from registry.forms import TryForm
from registry.graphs import brings_graph
from registry.models import ModelVersion, OptimizedVariant, Ref, Release
from registry.serving import client
from registry.transformers_bases import is_transformers

MOST_CLASSES = 12
MOST_ADAPTERS = 100
QUICK_ALIASES = ("production", "staging")


def version_or_404(request: HttpRequest, identifier: UUID) -> ModelVersion:
    rows = ModelVersion.objects.select_related(
        "model__organization", "author", "dataset_version__dataset", "base__model"
    ).defer(
        "dataset_version__profile", "dataset_version__problems", "dataset_version__columns", "dataset_version__parts"
    )
    return visible_or_404(rows, request.user, pk=identifier)


def version_page(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    aliases = found.model.refs.filter(kind=Ref.Kind.ALIAS).select_related("version")
    context = {
        "section": "models",
        "version": found,
        "model": found.model,
        "marks": found.refs.all(),
        "aliases": _quick_aliases({ref.name: ref for ref in aliases}, found),
        "parents": found.parents.only("id", "number", "model_id").order_by("child_edges__position"),
        "settings": _settings(found.lineage),
        "adapters": found.adapters.visible_to(request.user)
        .filter(deleted_at=None)
        .select_related("model")
        .order_by("-created_at")[:MOST_ADAPTERS],
        "can_write": may(request.user, "model.write", found),
        "can_finetune": ("model.json" in found.tree or is_transformers(found))
        and not brings_graph(found)
        and may(request.user, "run.write", found.model.organization),
        "variant": OptimizedVariant.objects.filter(output_version=found)
        .select_related("optimization__version")
        .first(),
        "can_optimize": "model.json" in found.tree
        and not brings_graph(found)
        and found.task != "language-model"
        and found.deleted_at is None
        and may(request.user, "model.write", found),
        "can_move": may(request.user, "ref.move", found) and found.deleted_at is None,
        "can_delete": may(request.user, "model.delete", found),
    }
    if found.deleted_at is None:
        context |= {"card": card_of(found), **_release(found), **try_context(request, found)}
    else:
        context["undoable_until"] = undoable_until(found.deleted_at)
    return page(request, "registry/version.html", context)


def _release(version: ModelVersion) -> dict[str, Any]:
    """What releasing it would mean; nothing for a version that is released."""
    if Release.objects.filter(version=version).exists():
        return {"proposal": None}
    proposed = releases.proposal(version)
    return {"proposal": proposed, "bumps": releases.BUMPS[releases.BUMPS.index(proposed.bump) :]}


def _quick_aliases(current: dict[str, Ref], version: ModelVersion) -> list[dict[str, Any]]:
    """The aliases with a button of their own, with where each points now."""
    return [
        {"name": name, "current": current.get(name), "here": name in current and current[name].version_id == version.pk}
        for name in QUICK_ALIASES
    ]


def _settings(lineage: dict[str, Any]) -> list[tuple[str, Any]]:
    used = lineage.get("settings") or lineage.get("config") or {}
    plain = [(name, value) for name, value in used.items() if name != "params"]
    return plain + [(f"params.{name}", value) for name, value in (used.get("params") or {}).items()]


def try_context(request: HttpRequest, version: ModelVersion) -> dict[str, Any]:
    """What the part that tries a version needs; filled with a real row."""
    inputs = version.signature.get("inputs", [])
    form = TryForm(initial=TryForm.example(inputs), inputs=inputs, examples=example_images(request.user, version))
    return {
        "try_form": form if inputs else None,
        "chat_form": ChatForm() if takes_chats(version) else None,
        "curl": curl(
            request, version, example_of(version, {column["name"]: column.get("example") for column in inputs})
        ),
    }


def curl(request: HttpRequest, version: ModelVersion, instance: dict[str, Any]) -> str:
    """The same question as a command; images as a word that tells what belongs there."""
    images = [column["name"] for column in version.signature.get("inputs", []) if column["type"] == "image"]
    instance = instance | dict.fromkeys(images, "BASE64_OF_AN_IMAGE_FILE")
    address = request.build_absolute_uri(f"/api/v1/model-versions/{version.pk}/predict")
    body = shlex.quote(json.dumps({"instances": [instance]}, ensure_ascii=False))
    return (
        f'curl -X POST {shlex.quote(address)} \\\n  -H "Authorization: Bearer $DLP_API_KEY" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {body}"
    )


@require_http_methods(["GET", "POST"])
def version_try(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    if request.method == "GET":
        return redirect("model-version", found.pk)
    require(request.user, "predict", found)
    inputs, examples = found.signature.get("inputs", []), example_images(request.user, found)
    form = TryForm(request.POST, request.FILES, inputs=inputs, examples=examples)
    instance = form.instance() if form.is_valid() else {}
    prediction = _predicted(found, form, instance) if form.is_valid() else None
    context = {
        "version": found, "try_form": form, "prediction": prediction, "curl": curl(request, found, instance),
        "chat_form": ChatForm() if takes_chats(found) else None,
    }  # fmt: skip
    if request.htmx:
        return render(request, "registry/_try.html", context)
    return render(request, "registry/try.html", {"section": "models", "model": found.model, **context})


@require_http_methods(["GET", "POST"])
def version_chat(request: HttpRequest, version: UUID) -> HttpResponse:
    """What the page does by itself where it may run scripts, whole instead of piece by piece."""
    found = version_or_404(request, version)
    if request.method == "GET" or not takes_chats(found):
        return redirect("model-version", found.pk)
    require(request.user, "predict", found)

    def ask(instance: dict[str, Any]) -> str:
        availability.require_files(found)
        return str(client.predict(found.pk, [instance])[0]["text"])

    form = ChatForm() if "over" in request.POST else ChatForm(request.POST)
    if form.is_bound and form.is_valid():
        form = form.answered(ask)
    context = {**try_context(request, found), "version": found, "chat_form": form}
    return render(request, "registry/try.html", {"section": "models", "model": found.model, **context})


def _predicted(version: ModelVersion, form: TryForm, instance: dict[str, Any]) -> dict[str, Any] | None:
    try:
        availability.require_files(version)
        return shown_prediction(client.predict(version.pk, [instance])[0])
    except ValidationError as error:
        form.add_refusal(error)
    except (Unavailable, Conflict, client.Unusable) as error:
        form.add_error(None, str(error.detail))
    except Http404:
        form.add_error(None, "The inference process does not know this version; it may have been removed.")
    return None


def shown_prediction(prediction: dict[str, Any]) -> dict[str, Any]:
    """Classes or labels by falling probability; numbers as they are."""
    probabilities = prediction.get("probabilities")
    if "text" in prediction:
        return {"text": prediction["text"]}
    if "values" in prediction:
        return {"targets": list(prediction["values"].items())}
    if probabilities is None:
        return {"value": prediction.get("value")}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    label = prediction["label"] if "label" in prediction else ", ".join(prediction["labels"]) or "no label"
    return {"label": label, "classes": ranked[:MOST_CLASSES], "more": max(len(ranked) - MOST_CLASSES, 0)}
