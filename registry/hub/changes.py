"""What Hugging Face clients change, but for the bodies of files (`uploads`): repositories, refs, what to upload."""

import base64
import binascii
from typing import Any

from django.core.exceptions import ValidationError as DjangoValidationError
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.organizations import resolve
from dlplatform.api import SafeCharField
from registry import deletion, pickles, services, trees
from registry.models import ModelVersion, Ref, RegisteredModel

from . import entries, objects, revisions
from .errors import HubError, RepoNotFound, RevisionNotFound
from .names import IDENTIFIER, model_name, repo_id
from .views import HubView, RepoView, origin

# Below this a file comes inside the commit, which clients that prefer Xet can send too.
REGULAR_BYTES = 8 * 1024 * 1024
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
FIRST_MESSAGE = "initial commit"
NOT_HERE = "This server takes no uploads; run the ASGI application of the platform."


class RepoIn(serializers.Serializer):
    name = SafeCharField(max_length=200)
    organization = SafeCharField(max_length=60, required=False, allow_null=True)
    type = serializers.CharField(required=False, allow_null=True, default="model")

    def validate_type(self, value: str | None) -> str:
        if value not in ("model", None):
            raise serializers.ValidationError("Only model repositories are kept here; datasets come by pages and API.")
        return "model"

    def validate(self, data: dict[str, Any]) -> dict[str, Any]:
        """Older clients send `organization/name` as the name."""
        namespace, slash, name = data["name"].rpartition("/")
        return data | ({"name": name, "organization": namespace} if slash else {})


class SampledFile(serializers.Serializer):
    path = serializers.CharField(trim_whitespace=False)
    size = serializers.IntegerField(min_value=0)
    sample = serializers.CharField(allow_blank=True, required=False, default="")


class PreuploadIn(serializers.Serializer):
    files = SampledFile(many=True)


class LargeObject(serializers.Serializer):
    oid = serializers.RegexField(objects.OBJECT_ID)
    size = serializers.IntegerField(min_value=0)


class BatchIn(serializers.Serializer):
    operation = serializers.ChoiceField(["upload"])
    objects = LargeObject(many=True)


class BranchIn(serializers.Serializer):
    startingPoint = serializers.CharField(required=False, allow_null=True)


class TagIn(serializers.Serializer):
    tag = serializers.CharField()
    message = SafeCharField(required=False, allow_null=True, allow_blank=True)


class CreateRepoView(HubView):
    policy = {"POST": "model.write"}

    def post(self, request: Request) -> Response:
        wanted = given(RepoIn, request)
        organization = organization_of(request.user, wanted.get("organization"))
        name = model_name(wanted["name"])
        if name is None or IDENTIFIER.fullmatch(wanted["name"]):
            raise HubError("Choose another name for the repository: this one cannot be kept.")
        found = revisions.visible_models(request.user).filter(organization=organization, name=name).first()
        model = found or services.create_model(actor=request.user, organization=organization, name=name)
        make_first_commit(request.user, model)
        answer = {"url": f"{origin(request)}/{repo_id(model)}", "name": repo_id(model), "id": str(model.pk)}
        if found:
            return Response(answer | {"error": "There is a repository of this name already."}, status=409)
        return Response(answer)


class DeleteRepoView(HubView):
    policy = {"DELETE": "model.delete"}

    def delete(self, request: Request) -> Response:
        wanted = given(RepoIn, request)
        organization = organization_of(request.user, wanted.get("organization"))
        model = revisions.model_of(request.user, organization.slug, wanted["name"])
        deletion.delete_model(actor=request.user, model=model)
        return Response({})


class PreuploadView(RepoView):
    policy = {"POST": "model.write"}

    def post(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        require(request.user, "model.write", self.model)
        head = branch_head(self.model, revision)
        tree = head.tree if head else {}
        files = given(PreuploadIn, request)["files"]
        return Response({"files": [self._answer(file, tree.get(file["path"])) for file in files]})

    def _answer(self, file: dict[str, Any], there: dict[str, Any] | None) -> dict[str, Any]:
        trees.check_path(file["path"])
        pickles.check_name(file["path"])
        pickles.check_content(_bytes_of(file["sample"]), repr(file["path"][:100]))
        regular = file["size"] <= REGULAR_BYTES
        mode = "regular" if regular else "lfs"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": self._id(file, there, regular)}

    def _id(self, file: dict[str, Any], there: dict[str, Any] | None, regular: bool) -> str | None:
        """What the client compares with its own file, to leave out what is here already."""
        if there is None or there["size"] != file["size"]:
            return None
        if not regular:
            return str(there["sha256"])
        return entries.git_blob_id(services.object_store(self.model.organization_id).read(there["sha256"]))


class BatchView(RepoView):
    policy = {"POST": "model.write"}

    def post(self, request: Request, namespace: str, name: str) -> Response:
        require(request.user, "model.write", self.model)
        wanted = given(BatchIn, request)["objects"]
        known = objects.known_sizes(self.model, request.user, [one["oid"] for one in wanted])
        folder = f"{origin(request)}/{repo_id(self.model)}.git/info/lfs/objects"
        answers = [objects.answer_to(self.model, request.user, **one, known=known, folder=folder) for one in wanted]
        return Response({"transfer": "basic", "objects": answers})


class CommitView(HubView):
    """`uploads` answers this before Django sees it."""

    policy = {"POST": "model.write"}

    def post(self, request: Request, **names: str) -> Response:
        raise HubError(NOT_HERE, status=501)


class ObjectView(HubView):
    """`uploads` answers this too; what lets a caller in is the grant in the address."""

    policy = {"PUT": "public"}

    def put(self, request: Request, **names: str) -> Response:
        raise HubError(NOT_HERE, status=501)


class BranchView(RepoView):
    policy = {"POST": "model.write", "DELETE": "ref.move"}

    def post(self, request: Request, namespace: str, name: str, branch: str) -> Response:
        require(request.user, "model.write", self.model)
        start = given(BranchIn, request).get("startingPoint") or revisions.MAIN
        version = self.version(start)
        if revisions.head_of(self.model, branch):
            raise HubError(f"There is a branch {branch!r} already.", status=409)
        point(request.user, self.model, Ref.Kind.BRANCH, branch, version, f"Branch from {start[:80]}")
        return Response({})

    def delete(self, request: Request, namespace: str, name: str, branch: str) -> Response:
        require(request.user, "ref.move", self.model)
        if branch == revisions.MAIN:
            raise HubError("The branch main stays.", status=403)
        if not revisions.head_of(self.model, branch):
            raise RevisionNotFound(branch)
        services.delete_ref(actor=request.user, model=self.model, kind=Ref.Kind.BRANCH, name=branch)
        return Response({})


class TagView(RepoView):
    policy = {"POST": "ref.move", "DELETE": "ref.move"}

    def post(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        require(request.user, "ref.move", self.model)
        wanted = given(TagIn, request)
        version = self.version(revision)
        if tag_named(self.model, wanted["tag"]):
            raise HubError(f"There is a tag {wanted['tag'][:80]!r} already, and tags never move.", status=409)
        point(request.user, self.model, Ref.Kind.TAG, wanted["tag"], version, wanted.get("message") or "Tagged")
        return Response({})

    def delete(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        require(request.user, "ref.move", self.model)
        tag = tag_named(self.model, revision)
        if tag is None:
            raise RevisionNotFound(revision)
        services.delete_ref(actor=request.user, model=self.model, kind=Ref.Kind.TAG, name=tag.name)
        return Response({})


def given(serializer: type[serializers.Serializer], request: Request) -> dict[str, Any]:
    """The body, checked; what we do not know of it is passed over, since clients send more from version to version."""
    sent = serializer(data=request.data)
    sent.is_valid(raise_exception=True)
    return dict(sent.validated_data)


def organization_of(user: User, slug: str | None) -> Organization:
    try:
        return resolve(user, slug)
    except DjangoValidationError:
        raise RepoNotFound from None


def make_first_commit(user: User, model: RegisteredModel) -> None:
    """Clients take a new repository to have a branch `main` with something on it."""
    if not model.versions.exists():
        stored = services.object_store(model.organization_id).put_bytes(ATTRIBUTES)
        added = {".gitattributes": {"sha256": stored.sha256, "size": stored.size}}
        services.commit_files(actor=user, model=model, message=FIRST_MESSAGE, added=added, lineage={"source": "hub"})


def branch_head(model: RegisteredModel, branch: str) -> ModelVersion | None:
    """The head to commit onto; None for `main` of a model without versions. Raises RevisionNotFound."""
    head = revisions.head_of(model, branch)
    if head is None and (branch != revisions.MAIN or model.versions.exists()):
        raise RevisionNotFound(branch)
    return head


def tag_named(model: RegisteredModel, name: str) -> Ref | None:
    names = [name.replace("\0", ""), name.replace("\0", "").removeprefix("v")]
    return Ref.objects.filter(model=model, kind=Ref.Kind.TAG, name__in=names).order_by("-name").first()


def point(user: User, model: RegisteredModel, kind: str, name: str, version: ModelVersion, reason: str) -> None:
    """Make a ref that does not exist yet; a second one who makes it at the same time is told so."""
    services.move_ref(
        actor=user, model=model, kind=kind, name=name, version=version, reason=reason, expected=None, check_expected=True
    )  # fmt: skip


def _bytes_of(sample: str) -> bytes:
    try:
        return base64.b64decode(sample)
    except (binascii.Error, ValueError):
        return b""
