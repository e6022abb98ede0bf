"""What Hugging Face clients read: who they are, models, trees, files, refs, commits."""

from typing import Any

from django.http import HttpResponse, HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from dlplatform.accounts.access import in_scope, require
from dlplatform.accounts.organizations import memberships_of
from registry import history, services
from registry.files import file_response
from registry.models import ModelVersion, Ref

from . import entries, revisions
from .errors import EntryNotFound, HubError
from .names import commit_id
from .views import FieldsParser, HubView, RepoView, flag, page_of, paged

FEW = 50
NO_XET = (
    "This server takes large files by LFS, not by Xet: set HF_HUB_DISABLE_XET=1 in the client's environment "
    "(or uninstall hf_xet) and try again."
)


class WhoAmIView(HubView):
    policy = {"GET": "signed-in"}

    def get(self, request: Request) -> Response:
        user = request.user
        role = "write" if in_scope(user, "model.write") else "read"
        return Response(
            {
                "type": "user", "id": str(user.pk), "name": user.username,
                "fullname": user.get_full_name() or user.username, "email": user.email,
                "orgs": [_organization(one) for one in memberships_of(user)],
                "auth": {"type": "access_token", "accessToken": {"displayName": "API key", "role": role}},
            }
        )  # fmt: skip


class ValidateCardView(HubView):
    """Clients ask before every commit that has a README.md, without their credential; any card is fine here."""

    policy = {"POST": "public"}

    def post(self, request: Request) -> Response:
        return Response({"errors": [], "warnings": []})


class ModelsView(HubView):
    policy = {"GET": "read"}

    def get(self, request: Request) -> Response:
        rows = revisions.visible_models(request.user)
        for name, lookup in (("search", "name__icontains"), ("author", "organization__slug")):
            if text := request.query_params.get(name, "").replace("\0", ""):
                rows = rows.filter(**{lookup: text})
        models, headers = page_of(request, rows.order_by("-created_at", "pk"), 100)
        heads = {
            ref.model_id: ref.version
            for ref in Ref.objects.filter(model__in=models, kind=Ref.Kind.BRANCH, name=revisions.MAIN).select_related("version")
        }  # fmt: skip
        return Response([entries.model_info(model, heads.get(model.pk)) for model in models], headers=headers)


class ModelView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str) -> Response:
        head = revisions.head_of(self.model, revisions.MAIN)
        return Response(entries.model_info(self.model, head, blobs=flag(request, "blobs")))


class RevisionView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        version = self.version(revision)
        return Response(entries.model_info(self.model, version, blobs=flag(request, "blobs")))


class TreeView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str, revision: str, path: str = "") -> Response:
        version = self.version(revision)
        found = entries.tree_entries(version.tree, path.strip("/"), recursive=flag(request, "recursive"))
        if path and not found:
            raise EntryNotFound(commit=commit_id(version))
        expand = flag(request, "expand")
        page, headers = page_of(request, found, FEW if expand else 1000)
        return Response(entries.with_last_commits(version, page) if expand else page, headers=headers)


class PathsView(RepoView):
    policy = {"POST": "read"}
    parser_classes = [FieldsParser]

    def post(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        version = self.version(revision)
        found = entries.named_entries(version.tree, request.data.get("paths", []))
        expand = request.data.get("expand", ["false"])[0].lower() == "true"
        return Response(entries.with_last_commits(version, found) if expand else found)


class RefsView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str) -> Response:
        rows = list(self.model.refs.select_related("version").exclude(kind=Ref.Kind.ALIAS))
        branches = [entries.ref_entry(ref) for ref in rows if ref.kind == Ref.Kind.BRANCH]
        tags = [entries.ref_entry(ref) for ref in rows if ref.kind == Ref.Kind.TAG]
        return Response({"branches": branches, "converts": [], "tags": tags, "pullRequests": []})


class CommitsView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str, revision: str) -> Response:
        numbers = history.ancestors_of(self.version(revision))
        rows = ModelVersion.objects.filter(model=self.model, number__in=numbers).select_related("author")
        return paged(request, rows.defer("tree", "lineage", "signature"), entries.commit_entry, most=FEW)


class FileView(RepoView):
    policy = {"GET": "read", "HEAD": "read"}

    def get(self, request: Request, namespace: str, name: str, revision: str, path: str) -> HttpResponseBase:
        version, entry = self._entry(revision, path)
        store = services.object_store(self.model.organization_id)
        label = path.rsplit("/", 1)[-1]
        response = file_response(
            request._request, store, sha256=entry["sha256"], size=entry["size"], label=label
        )  # fmt: skip
        response["X-Repo-Commit"] = commit_id(version)
        return response

    def head(self, request: Request, namespace: str, name: str, revision: str, path: str) -> HttpResponseBase:
        """Clients ask for the headers before every download; nothing is opened for it."""
        version, entry = self._entry(revision, path)
        headers = {
            "Content-Length": str(entry["size"]), "ETag": f'"{entry["sha256"]}"', "Accept-Ranges": "bytes",
            "X-Repo-Commit": commit_id(version),
        }  # fmt: skip
        return HttpResponse(headers=headers, content_type="application/octet-stream")

    def _entry(self, revision: str, path: str) -> tuple[ModelVersion, dict[str, Any]]:
        version = self.version(revision)
        if path not in version.tree:
            raise EntryNotFound(commit=commit_id(version))
        return version, version.tree[path]


class AccessView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, namespace: str, name: str, action: str = "") -> Response:
        if action == "write":
            require(request.user, "model.write", self.model)
        return Response({})


class XetTokenView(RepoView):
    policy = {"GET": "read"}

    def get(self, request: Request, **names: str) -> Response:
        raise HubError(NO_XET, status=404)


def _organization(membership: Any) -> dict[str, Any]:
    row = membership.organization
    return {"type": "org", "id": str(row.pk), "name": row.slug, "fullname": row.name, "roleInOrg": membership.role}
