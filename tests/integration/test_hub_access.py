"""Every route of the hub façade × everybody: generated from its URLs, so a forgotten route fails here."""

import json
import re

import pytest
from rest_framework.test import APIClient

from dlplatform.accounts.models import User
from dlplatform.accounts.roles import ACTIONS, Role, Scope
from registry import services
from registry.hub.objects import grant
from registry.hub.pages import commit_page
from registry.hub.urls import urlpatterns
from registry.models import Ref
from tests import factories

pytestmark = pytest.mark.django_db
PEOPLE = {"viewer": Role.VIEWER, "trainer": Role.TRAINER, "maintainer": Role.MAINTAINER}
BODIES = {
    "branch": {"startingPoint": "main"},
    "tag": {"tag": "new"},
    "preupload": {"files": [{"path": "a.txt", "size": 1, "sample": "YQ=="}]},
    "batch": {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]},
    "create": {"name": "new", "organization": "lab"},
    "delete": {"name": "known", "organization": "lab"},
}


@pytest.fixture
def model(organization, maintainer):
    model = factories.RegisteredModelFactory(organization=organization, name="known")
    stored = services.object_store(organization.pk).put_bytes(b"a")
    tree = {"folder/a.txt": {"sha256": stored.sha256, "size": 1}}
    version = services.commit_files(actor=maintainer, model=model, message="First", added=tree)
    for kind, name in ((Ref.Kind.BRANCH, "gone"), (Ref.Kind.TAG, "1.0.0")):
        services.move_ref(actor=maintainer, model=model, kind=kind, name=name, version=version)
    return model


def routes(wanted=lambda path, action: True):
    return list(_routes(wanted))


def _routes(wanted):
    for route in urlpatterns:
        path = str(route.pattern)
        if route.callback is commit_page:
            continue
        for method, action in route.callback.cls.policy.items():
            if wanted(path, action):
                yield pytest.param(path, method, action, id=f"{method} {path}")


def of_a_repository(path, action):
    return "<" in path and action != "public"


def needs_a_scope(path, action):
    return action in ACTIONS


def call(client, path, method, repo="known"):
    revision = {"POST": "new", "DELETE": "gone"}.get(method) if "/branch/" in path else "main"
    if "/tag/" in path and method == "DELETE":
        revision = "1.0.0"
    names = {
        "namespace": "lab", "name": repo, "revision": revision, "branch": revision, "action": "write", "oid": "0" * 64,
        "path": "folder/a.txt" if "resolve" in path else "folder",
    }  # fmt: skip
    path = re.sub(r"<(?:str|path):(\w+)>", lambda matched: names[matched[1]], path)
    words = path.split("/")
    body = next((sent for word, sent in BODIES.items() if word in words), {})
    if "paths-info" in words:
        return client.generic(method, f"/{path}", "paths=folder", content_type="application/x-www-form-urlencoded")
    body = body | ({"name": repo} if repo != "known" and "delete" in words else {})
    return client.generic(method, f"/{path}", json.dumps(body), content_type="application/json")


def client_of(user, scopes=None):
    user = User.objects.get(pk=user.pk)
    user.scopes = frozenset(scopes) if scopes else None
    client = APIClient(raise_request_exception=False)
    client.force_authenticate(user)
    return client


@pytest.mark.parametrize(("path", "method", "action"), routes())
def test_nobody_is_let_in_without_a_credential(api, model, path, method, action):
    answer = call(api(None), path, method)
    if action == "public":
        assert answer.status_code in (200, 501)
        return
    assert answer.status_code == 401
    assert answer.headers["X-Error-Code"] == "RepoNotFound"


@pytest.mark.parametrize(("path", "method", "action"), routes())
def test_a_session_is_no_credential_here(web, model, trainer, path, method, action):
    answer = call(web(trainer), path, method)
    assert answer.status_code == (call(web(None), path, method).status_code if action == "public" else 401)


@pytest.mark.parametrize(("path", "method", "action"), routes(of_a_repository))
def test_a_stranger_meets_the_same_404_as_for_what_never_existed(api, model, stranger, path, method, action):
    answer, nothing = (call(api(stranger), path, method, repo) for repo in ("known", "never"))
    if "/commit/" in path:
        assert answer.status_code == nothing.status_code == 501  # answered in front, see test_hub_uploads
        return
    assert answer.status_code == nothing.status_code == 404, answer.content
    assert answer.headers["X-Error-Code"] == "RepoNotFound" or "xet" in path
    assert answer.content == nothing.content


@pytest.mark.parametrize("place", ["create", "delete"])
def test_a_stranger_finds_no_organization(api, model, stranger, place):
    method = {"create": "POST", "delete": "DELETE"}[place]
    answer = call(api(stranger), f"api/repos/{place}", method)
    assert answer.status_code == 404 and answer.headers["X-Error-Code"] == "RepoNotFound"


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize(("path", "method", "action"), routes())
def test_a_role_is_refused_exactly_where_its_rank_is_too_low(request, api, model, person, path, method, action):
    answer = call(api(request.getfixturevalue(person)), path, method)
    if "/commit/" in path or action not in ACTIONS:
        return
    needed = ACTIONS["model.write"].role if "<str:action>" in path else ACTIONS[action].role
    allowed = PEOPLE[person].rank >= needed.rank
    assert (answer.status_code == 403) == (not allowed), answer.content
    if allowed and method in ("GET", "HEAD"):
        assert answer.status_code == (404 if "xet" in path else 200)


@pytest.mark.parametrize("scope", Scope.values)
@pytest.mark.parametrize(("path", "method", "action"), routes(needs_a_scope))
def test_a_key_is_refused_outside_its_scope(model, maintainer, scope, path, method, action):
    answer = call(client_of(maintainer, [scope]), path, method)
    assert answer.status_code < 500 or answer.status_code == 501
    if ACTIONS[action].scope != scope:
        assert answer.status_code == 403
        assert ACTIONS[action].scope in answer.headers["X-Error-Message"]


def test_the_address_of_a_commit_leads_people_to_its_page(web, model, viewer, stranger):
    version = model.versions.get()
    address = f"/lab/known/commit/{version.digest[:40]}"
    assert web(viewer).get(address).headers["Location"] == f"/model-versions/{version.pk}/"
    assert web(viewer).get("/lab/known/commit/0000000").status_code == 404
    assert web(stranger).get(address).status_code == 404
    assert "login" in web(None).get(address).headers["Location"]
    assert web(viewer).get(f"/model-versions/{version.pk}/").status_code == 200
    assert web(viewer).get(f"/models/{model.pk}/").status_code == 200


def test_a_version_without_a_package_is_not_even_fetched_to_predict_with(model):
    from dlplatform.engine.errors import PackageError
    from registry.serving.cache import package_directory

    with pytest.raises(PackageError, match=r"no model\.json"):
        package_directory(model.versions.get())


def test_a_grant_ends_with_the_right_to_write(organization, model, trainer):
    from registry.hub.errors import HubError
    from registry.hub.objects import granted

    oid = "a" * 64
    text = grant(model, trainer, oid, 5)
    assert granted(text, oid) == (model, trainer, 5)
    for wrong, name in ((text, "b" * 64), (text + "x", oid), ("", oid)):
        with pytest.raises(HubError):
            granted(wrong, name)
    trainer.memberships.all().delete()
    with pytest.raises(HubError):
        granted(text, oid)
