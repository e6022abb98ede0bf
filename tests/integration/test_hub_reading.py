"""What Hugging Face clients read, asked for by hand: revisions, trees, paging, errors in the clients' words."""

import hashlib

import pytest

from registry import services
from registry.models import Ref
from tests import factories

pytestmark = pytest.mark.django_db
FILES = {"config.json": b"{}", "nested/deep/a.txt": b"a", "nested/b.txt": b"bb", "model.safetensors": b"weights"}


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization, name="breast cancer")


@pytest.fixture
def commit(model, trainer):
    """``commit(files, branch=…)``: a version with these files."""

    def make(files=FILES, message="Some files\n\nAnd why.", **more):
        store = services.object_store(model.organization_id)
        stored = {path: store.put_bytes(content) for path, content in files.items()}
        tree = {path: {"sha256": one.sha256, "size": one.size} for path, one in stored.items()}
        return services.commit_version(
            actor=trainer, model=model, tree=tree, task="", signature={}, metrics={}, lineage={}, message=message, **more
        )  # fmt: skip

    return make


REPO = "/api/models/lab/breast_u20_cancer"


def test_a_model_is_told_with_its_commit_and_files(api, viewer, model, commit):
    version = commit()
    told = api(viewer).get(f"{REPO}?blobs=true").json()
    assert told["id"] == "lab/breast_u20_cancer" and told["sha"] == version.digest[:40] and told["private"]
    assert [one["rfilename"] for one in told["siblings"]] == sorted(FILES)
    assert told["siblings"][0]["lfs"]["sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert api(viewer).get(f"/api/models/lab/{model.pk}").json()["id"] == told["id"]
    assert [one["id"] for one in api(viewer).get("/api/models?search=cancer").json()] == [told["id"]]


@pytest.mark.parametrize("revision", ["main", "1.0.0", "v1.0.0", "production"])
def test_a_revision_is_a_branch_a_tag_or_an_alias(api, viewer, maintainer, model, commit, revision):
    first = commit()
    services.move_ref(actor=maintainer, model=model, kind=Ref.Kind.TAG, name="1.0.0", version=first)
    services.move_ref(actor=maintainer, model=model, kind=Ref.Kind.ALIAS, name="production", version=first)
    second = commit({"config.json": b"[]"})
    expected = second if revision == "main" else first
    assert api(viewer).get(f"{REPO}/revision/{revision}").json()["sha"] == expected.digest[:40]


def test_a_revision_is_a_commit_or_its_unambiguous_start(api, viewer, model, commit):
    version = commit()
    for digits in (7, 12, 40, 64):
        told = api(viewer).get(f"{REPO}/revision/{version.digest[:digits]}")
        assert told.json()["sha"] == version.digest[:40]
    twin = factories.ModelVersionFactory(model=model, number=9, digest=version.digest[:20] + "0" * 44)
    assert api(viewer).get(f"{REPO}/revision/{version.digest[:12]}").headers["X-Error-Code"] == "RevisionNotFound"
    assert api(viewer).get(f"{REPO}/revision/{twin.digest[:40]}").json()["sha"] == twin.digest[:40]
    for wrong in (version.digest[:6], "0" * 40, "no", "feat%2Fx", "a%00b"):
        answer = api(viewer).get(f"{REPO}/revision/{wrong}")
        assert answer.status_code == 404
        assert "%00" in wrong or answer.headers["X-Error-Code"] == "RevisionNotFound"


def test_the_tree_by_folder_whole_and_with_last_commits(api, viewer, commit):
    first = commit()
    second = commit(FILES | {"nested/b.txt": b"new"}, message="Newer b")
    ask = api(viewer).get
    assert [one["path"] for one in ask(f"{REPO}/tree/main").json()] == ["config.json", "model.safetensors", "nested"]
    assert [one["path"] for one in ask(f"{REPO}/tree/main/nested").json()] == ["nested/b.txt", "nested/deep"]
    whole = ask(f"{REPO}/tree/main?recursive=true&expand=true").json()
    changed = {one["path"]: one["lastCommit"]["id"] for one in whole}
    assert changed["nested"] == changed["nested/b.txt"] == second.digest[:40]
    assert changed["nested/deep"] == changed["config.json"] == first.digest[:40]
    pages = ask(f"{REPO}/tree/main?recursive=true&limit=4")
    assert len(pages.json()) == 4 and 'rel="next"' in pages.headers["Link"]
    rest = ask(pages.headers["Link"].split(">")[0].strip("<"))
    assert [one["path"] for one in pages.json() + rest.json()] == [one["path"] for one in whole]
    assert ask(f"{REPO}/tree/main/nothing").headers["X-Error-Code"] == "EntryNotFound"


def test_paths_refs_and_commits(api, viewer, maintainer, model, commit):
    first, second = commit(), commit({"config.json": b"[]"}, message="Less")
    services.move_ref(actor=maintainer, model=model, kind=Ref.Kind.TAG, name="1.0.0", version=first)
    services.move_ref(actor=maintainer, model=model, kind=Ref.Kind.ALIAS, name="staging", version=first)
    form = {"content_type": "application/x-www-form-urlencoded"}
    paths = api(viewer).post(f"{REPO}/paths-info/1.0.0", "paths=nested&paths=config.json&paths=no&expand=true", **form)
    assert [(one["path"], one["type"]) for one in paths.json()] == [("config.json", "file"), ("nested", "directory")]
    refs = api(viewer).get(f"{REPO}/refs").json()
    assert [(one["name"], one["targetCommit"]) for one in refs["branches"]] == [("main", second.digest[:40])]
    assert [(one["name"], one["ref"]) for one in refs["tags"]] == [("1.0.0", "refs/tags/1.0.0")]
    commits = api(viewer).get(f"{REPO}/commits/main").json()
    assert [(one["title"], one["message"]) for one in commits] == [("Less", ""), ("Some files", "And why.")]
    assert [one["id"] for one in api(viewer).get(f"{REPO}/commits/1.0.0").json()] == [first.digest[:40]]


def test_a_file_by_head_get_and_range(api, viewer, commit):
    version = commit()
    path = "/lab/breast_u20_cancer/resolve/main/model.safetensors"
    head = api(viewer).head(path)
    assert head.headers["Content-Length"] == "7" and head.headers["X-Repo-Commit"] == version.digest[:40]
    assert head.headers["ETag"] == f'"{hashlib.sha256(b"weights").hexdigest()}"' and not head.content
    part = api(viewer).get(path, headers={"Range": "bytes=3-"})
    assert part.status_code == 206 and part.headers["Content-Range"] == "bytes 3-6/7"
    missing = api(viewer).head("/lab/breast_u20_cancer/resolve/main/no.json")
    assert missing.status_code == 404 and missing.headers["X-Error-Code"] == "EntryNotFound"
    assert missing.headers["X-Repo-Commit"] == version.digest[:40]
    unknown = api(viewer).head("/lab/breast_u20_cancer/resolve/no/config.json")
    assert unknown.headers["X-Error-Code"] == "RevisionNotFound"


def test_the_card_and_xet(api, viewer, commit):
    commit()
    validated = api(None).post("/api/validate-yaml", {"content": "", "repoType": "model"}, format="json")
    assert validated.json() == {"errors": [], "warnings": []}
    refused = api(viewer).get(f"{REPO}/xet-write-token/main")
    assert refused.status_code == 404 and "HF_HUB_DISABLE_XET=1" in refused.json()["error"]


def test_who_am_i(api, viewer):
    told = api(viewer).get("/api/whoami-v2").json()
    assert told["name"] == "viewer" and told["orgs"][0]["name"] == "lab" and told["orgs"][0]["roleInOrg"] == "viewer"


def test_a_wrong_key_is_not_taken_for_a_missing_repository(client):
    answer = client.get(REPO, headers={"Authorization": "Bearer dlp_000000000000_wrong"})
    assert answer.status_code == 401
    assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"
