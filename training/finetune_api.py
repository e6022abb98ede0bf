"""REST API of fine-tuning: a run that starts from a version of the registry, and what it would train."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import SafeCharField, documented
from registry import availability
from registry.models import ModelVersion, Ref, RegisteredModel

from . import finetuning
from .api import RUN
from .finding import with_rows
from .finetune_outlook import Outlook, outlook
from .preflight_api import PREFLIGHT, PreflightOut
from .serializers import RunDetail, SettingsIn, TargetField

OUTLOOK = {
    "parameters": 535_818, "trainable": 9_320, "memory_bytes": 4_398_336,
    "blocks": [{"name": "head", "parameters": 1290, "trains": True, "added": 0}],
}  # fmt: skip


class OutlookIn(SettingsIn):
    task = serializers.CharField(
        max_length=40, required=False, allow_blank=True, help_text="For a Hugging Face directory: what it is to learn"
    )


class ChoicesIn(SettingsIn):
    """What is learnt from a base, and how."""

    dataset_version = serializers.UUIDField(help_text="Data with the columns that the model reads")
    task = serializers.CharField(
        max_length=40, required=False, allow_blank=True,
        help_text="For a base that is a Hugging Face directory: classification (default), regression or multilabel, "
                  "and language-model (the default then) for one that writes",
    )  # fmt: skip
    target = TargetField(required=False, help_text="Column or columns to learn; default: those of the base")
    features = serializers.ListField(
        child=serializers.CharField(max_length=200), required=False, max_length=10_000,
        help_text="For a base that is a Hugging Face directory: columns to read; default: all but the target",
    )  # fmt: skip
    config = serializers.DictField(required=False, help_text="Settings of the training; every key has a good default")


class FinetuneIn(ChoicesIn):
    version = serializers.UUIDField(required=False, help_text="Default: production, else the head of main")
    experiment = serializers.UUIDField(required=False, allow_null=True, help_text="Default: one for the model")
    name = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Name of the run")
    register_as = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Default: the base's model")
    branch = SafeCharField(
        max_length=80, required=False, allow_blank=True,
        help_text="Branch that gets the result; default: main if the base is its head, else one of its own",
    )  # fmt: skip


class BlockOut(serializers.Serializer):
    name = serializers.CharField()
    parameters = serializers.IntegerField()
    trains = serializers.BooleanField()
    added = serializers.IntegerField(help_text="Numbers that its adapters hold")


class OutlookOut(serializers.Serializer):
    parameters = serializers.IntegerField()
    trainable = serializers.IntegerField()
    memory_bytes = serializers.IntegerField(help_text="At least: weights, gradients, optimizer and averaged weights")
    blocks = BlockOut(many=True)


class FinetuneView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Fine-tune a model", request=FinetuneIn, answer=RunDetail, status=201, tags=["models"],
        description="Queues a run that starts from the version's weights. `full` trains all of them, `head` chosen "
                    "blocks, `lora` small adapters: the new version then holds the adapters only. A base may be a "
                    "version that is a Hugging Face directory (a text encoder or decoder with safetensors and "
                    "tokenizer.json); then name the `target`.",
        example=({"dataset_version": "77aa…", "mode": "lora", "rank": 8}, {**RUN, "state": "queued"}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=model)
        require(request.user, "run.write", found.organization)
        wanted = _given(request, FinetuneIn)
        version = _version(found, wanted.pop("version", None))
        run = finetuning.finetune(actor=request.user, version=version, **wanted)
        return Response(RunDetail(run).data, status=201)


def _given(request: Request, form: type[ChoicesIn]) -> dict[str, Any]:
    """Arguments of the service: the settings of fine-tuning together, the data as what they are."""
    given = form(data=request.data)
    given.is_valid(raise_exception=True)
    wanted = with_rows(request.user, given.validated_data)
    wanted["settings"] = {name: wanted.pop(name) for name in finetuning.SETTINGS if name in wanted}
    return wanted


class FinetunePreflightView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Try a fine-tuning out", request=ChoicesIn, answer=PreflightOut, status=202, tags=["models"],
        description="Takes two real steps from the version's weights on at most 20,000 rows, on as many devices as the run "
                    "would use, and tells seconds and peak memory of each; `GET /preflights/{id}` has what was found. "
                    "Nothing is queued or committed.",
        example=({"dataset_version": "77aa…", "mode": "lora", "rank": 8}, {**PREFLIGHT, "state": "queued", "result": None}),
    )  # fmt: skip
    def post(self, request: Request, version: UUID) -> Response:
        rows = ModelVersion.objects.select_related("model__organization", "base__model")
        found = visible_or_404(rows, request.user, pk=version)
        require(request.user, "run.write", found.model.organization)
        wanted = _given(request, ChoicesIn)
        preflight = finetuning.request_finetune_preflight(actor=request.user, version=found, **wanted)
        return Response(PreflightOut(preflight).data, status=202)


class OutlookView(APIView):
    policy = {"POST": "read"}

    @documented(
        "What a fine-tuning would train", request=OutlookIn, answer=OutlookOut, tags=["models"],
        description="Blocks of the version's network with their numbers; nothing is queued.",
        example=({"mode": "lora", "rank": 8}, OUTLOOK),
    )  # fmt: skip
    def post(self, request: Request, version: UUID) -> Response:
        rows = ModelVersion.objects.select_related("model__organization", "base__model")
        found = visible_or_404(rows, request.user, pk=version)
        given = OutlookIn(data=request.data)
        given.is_valid(raise_exception=True)
        return Response(OutlookOut(_outlook(found, **given.validated_data)).data)


def _outlook(version: ModelVersion, task: str = "", **settings: Any) -> Outlook:
    availability.require_files(version)
    parsed = finetuning.parsed_settings(settings)
    finetuning.check_base(version, parsed, task)
    return outlook(version, finetuning.with_pixels(version, parsed), task)


def _version(model: RegisteredModel, identifier: UUID | None) -> ModelVersion:
    rows = ModelVersion.objects.select_related("model__organization", "base__model").filter(model=model)
    if identifier:
        version = rows.filter(pk=identifier).first()
    else:
        named = ((Ref.Kind.ALIAS, "production"), (Ref.Kind.BRANCH, "main"))
        found = (rows.filter(refs__kind=kind, refs__name=name).first() for kind, name in named)
        version = next((one for one in found if one), None)
    if version is None:
        message = "The model has no such version." if identifier else "The model has no version yet."
        raise ValidationError({"version": ValidationError(message, code="does_not_exist")})
    return version
