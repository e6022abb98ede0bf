"""Addresses that Hugging Face clients build from HF_ENDPOINT; they stand at the root of the host."""

from django.urls import path

from . import api, changes, pages

REPO = "api/models/<str:namespace>/<str:name>"
FILES = "<str:namespace>/<str:name>"

urlpatterns = [
    path("api/whoami-v2", api.WhoAmIView.as_view()),
    path("api/validate-yaml", api.ValidateCardView.as_view()),
    path("api/repos/create", changes.CreateRepoView.as_view()),
    path("api/repos/delete", changes.DeleteRepoView.as_view()),
    path("api/models", api.ModelsView.as_view()),
    path(REPO, api.ModelView.as_view()),
    path(f"{REPO}/revision/<path:revision>", api.RevisionView.as_view()),
    path(f"{REPO}/tree/<str:revision>", api.TreeView.as_view()),
    path(f"{REPO}/tree/<str:revision>/<path:path>", api.TreeView.as_view()),
    path(f"{REPO}/paths-info/<path:revision>", api.PathsView.as_view()),
    path(f"{REPO}/refs", api.RefsView.as_view()),
    path(f"{REPO}/commits/<path:revision>", api.CommitsView.as_view()),
    path(f"{REPO}/auth-check", api.AccessView.as_view()),
    path(f"{REPO}/auth-check/<str:action>", api.AccessView.as_view()),
    path(f"{REPO}/xet-write-token/<path:revision>", api.XetTokenView.as_view()),
    path(f"{REPO}/preupload/<path:revision>", changes.PreuploadView.as_view()),
    path(f"{REPO}/commit/<path:revision>", changes.CommitView.as_view()),
    path(f"{REPO}/branch/<path:branch>", changes.BranchView.as_view()),
    path(f"{REPO}/tag/<path:revision>", changes.TagView.as_view()),
    path(f"{FILES}.git/info/lfs/objects/batch", changes.BatchView.as_view()),
    path(f"{FILES}.git/info/lfs/objects/<str:oid>", changes.ObjectView.as_view()),
    path(f"{FILES}/commit/<str:revision>", pages.commit_page),
    path(f"{FILES}/resolve/<str:revision>/<path:path>", api.FileView.as_view()),
]
