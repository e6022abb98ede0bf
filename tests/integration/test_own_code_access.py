"""Code of users' own at the doors: who may upload and launch it, what is refused, how pages and API show it."""

import io
import stat
import tarfile
import zipfile
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from dlplatform import cron
from dlplatform.accounts.models import AuditEntry, Membership
from tests import factories
from tests.fixtures import own_code
from training import code, reachability
from training.models import CodeBundle, Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def bundle(coder, organization):
    return code.add_code(
        actor=coder, organization=organization, filename="train.zip",
        content=own_code.zipped({"main.py": "print('<b>')", "lib/part.py": "x = 1"}),
    )  # fmt: skip


def upload(client, content=b"print(1)", name="main.py", **more):
    return client.post("/api/v1/code", {"file": SimpleUploadedFile(name, content), **more}, format="multipart")


def test_an_admin_gives_and_takes_the_permission_by_api_and_page_and_it_is_audited(
    api, web, admin_user, trainer, organization
):
    asked = api(admin_user).post(
        "/api/v1/organizations/lab/members", {"user": "trainer", "role": "trainer", "may_run_code": True}, format="json"
    )
    assert asked.status_code == 200 and asked.json()["may_run_code"] is True
    assert AuditEntry.objects.filter(action="member.change", detail__may_run_code=True).exists()
    api(admin_user).post("/api/v1/organizations/lab/members", {"user": "trainer", "role": "maintainer"}, format="json")
    member = Membership.objects.get(user=trainer, organization=organization)
    assert (member.role, member.may_run_code) == ("maintainer", True)
    web(admin_user).post("/members/trainer", {"role": "trainer"})
    member.refresh_from_db()
    assert (member.role, member.may_run_code) == ("trainer", False)
    web(admin_user).post("/members/trainer", {"role": "trainer", "may_run_code": "on"})
    member.refresh_from_db()
    assert member.may_run_code
    assert "may run own code" in web(admin_user).get("/members").content.decode()
    refused = api(trainer).post(
        "/api/v1/organizations/lab/members", {"user": "trainer", "role": "trainer", "may_run_code": True}, format="json"
    )
    assert refused.status_code == 403


def test_django_admin_sets_it_too_and_leaves_a_trace(web, trainer, organization):
    boss = factories.UserFactory(is_staff=True, is_superuser=True)
    member = Membership.objects.get(user=trainer, organization=organization)
    form = {
        "name": "Lab", "slug": "lab", "memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 1,
        "memberships-0-id": member.pk, "memberships-0-organization": organization.pk, "memberships-0-user": trainer.pk,
        "memberships-0-role": "trainer", "memberships-0-may_run_code": "on",
    }  # fmt: skip
    answer = web(boss).post(f"/admin/accounts/organization/{organization.pk}/change/", form)
    assert answer.status_code == 302, answer.content[:3000]
    member.refresh_from_db()
    assert member.may_run_code
    assert AuditEntry.objects.filter(action="member.change", actor=boss, detail__may_run_code=True).exists()


@pytest.mark.parametrize("person", ["viewer", "trainer", "maintainer", "admin_user"])
def test_without_the_permission_no_role_uploads_or_launches(request, api, web, person, organization):
    user = request.getfixturevalue(person)
    answer = upload(api(user))
    assert answer.status_code == 403 and answer.json()["errors"][0]["detail"]
    if person != "viewer":
        assert "permission of its own" in answer.json()["errors"][0]["detail"]
    assert web(user).get("/code/new").status_code == 403
    assert b"Your own code" not in web(user).get("/runs/new").content
    assert CodeBundle.objects.count() == 0


def test_a_launch_without_the_permission_is_403_and_foreign_code_does_not_exist(
    api, web, bundle, maintainer, stranger, organization
):
    dataset = factories.DatasetFactory(organization=organization)
    version = factories.DatasetVersionFactory(dataset=dataset)
    body = {"dataset_version": str(version.pk), "task": "classification", "target": "y", "code": str(bundle.pk)}
    answer = api(maintainer).post("/api/v1/runs", body, format="json")
    assert answer.status_code == 403 and "permission of its own" in answer.json()["errors"][0]["detail"]
    Membership.objects.filter(user=stranger).update(may_run_code=True)
    theirs = factories.DatasetVersionFactory(dataset__organization=Membership.objects.get(user=stranger).organization)
    answer = api(stranger).post("/api/v1/runs", body | {"dataset_version": str(theirs.pk)}, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "code"
    assert api(stranger).get(f"/api/v1/code/{bundle.pk}").status_code == 404
    assert web(stranger).get(f"/code/{bundle.pk}/").status_code == 404
    assert web(stranger).get(f"/runs/new?code={bundle.pk}&version={theirs.pk}").status_code == 404
    assert api(stranger).get("/api/v1/code").json()["results"] == []


def test_the_same_files_are_the_same_code_however_they_are_sent(api, coder):
    client = api(coder)
    first = upload(client, b"print(1)", "job.py")
    assert first.status_code == 201 and [one["path"] for one in first.json()["files"]] == ["main.py"]
    again = upload(client, own_code.zipped({"folder/main.py": "print(1)"}), "code.zip")
    raw = client.generic("POST", "/api/v1/code?filename=main.py", b"print(1)", content_type="text/x-python")
    zipped = client.generic(
        "POST", "/api/v1/code", own_code.zipped({"main.py": "print(1)"}), content_type="application/zip"
    )
    assert {one.json()["id"] for one in (first, again, raw, zipped)} == {first.json()["id"]}
    assert client.get(f"/api/v1/code/{first.json()['id']}").json()["digest"] == first.json()["digest"]
    assert upload(client, b"x = 1", "model.py").json()["files"][0]["path"] == "model.py"
    body = {
        "dataset_version": str(factories.DatasetVersionFactory().pk),
        "task": "classification",
        "target": "y",
        "entry": "x.py",
    }
    assert client.post("/api/v1/runs", body, format="json").status_code == 400


def _with_link():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("main.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return out.getvalue()


def _tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("main.py"), io.BytesIO())
    return out.getvalue()


HOSTILE = {
    "a path out": own_code.zipped({"../main.py": "x"}),
    "an absolute path": own_code.zipped({"/main.py": "x", "a.py": "x"}),
    "a backslash": own_code.zipped({"a\\..\\main.py": "x", "b.py": ""}),
    "a link": _with_link(),
    "a bomb": own_code.zipped({"main.py": "x" * (300 << 20)}),
    "too much": own_code.zipped({f"{n}.txt": bytes([n]) * (4 << 20) for n in range(10)}),
    "too many": own_code.zipped({f"{n}.py": "" for n in range(1_100)}),
    "a file that is a folder": own_code.zipped({"a": "x", "a/b.py": "x"}),
    "a damaged zip": own_code.zipped({"main.py": "print(1)" * 100})[:-30],
    "no python": own_code.zipped({"readme.md": "x"}),
    "a tar": _tar(),
    "no text": bytes(range(256)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundles_are_refused_by_field_and_leave_nothing(api, coder, name):
    answer = upload(api(coder), HOSTILE[name], "main.py" if name in ("no text", "nothing") else "code.zip")
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["attr"] == "file" and answer.json()["errors"][0]["detail"]
    assert CodeBundle.objects.count() == 0


def test_a_pickle_in_a_bundle_and_a_wrong_type_are_refused(api, coder):
    assert upload(api(coder), own_code.zipped({"main.py": "", "w.pt": "x"}), "code.zip").status_code == 422
    assert api(coder).post("/api/v1/code", {"a": 1}, format="json").status_code == 415
    assert api(coder).post("/api/v1/code", {"a": 1}, format="multipart").status_code == 400


def test_the_page_uploads_and_leads_to_a_form_with_the_code(web, coder, flowers_like):
    client = web(coder)
    assert "Your own code" in client.get(f"/runs/new?version={flowers_like.pk}").content.decode()
    sent = client.post("/code/new", {"file": SimpleUploadedFile("main.py", b"print(1)")})
    found = CodeBundle.objects.get()
    assert sent.status_code == 302 and sent.url == f"/runs/new?code={found.pk}"
    form = client.get(f"{sent.url}&version={flowers_like.pk}").content.decode()
    assert found.digest[:12] in form and "Parameters" in form and "config.architecture" not in form
    assert "Check first" not in form
    body = {
        "dataset_version": str(flowers_like.pk), "target": "y", "task": "classification", "features": ["x"],
        "code": str(found.pk), "entry": "main.py", "code_params": '{"width": 3}',
    }  # fmt: skip
    assert "no JSON" in client.post("/runs/new", body | {"code_params": "{"}).content.decode()
    queued = client.post("/runs/new", body)
    run = Run.objects.get()
    assert queued.url == f"/runs/{run.pk}/" and run.code == found
    assert run.config["params"] == {"width": 3} and run.config["architecture"] == "code"
    page = client.get(queued.url).content.decode()
    assert found.digest in page and "main.py" in page
    assert found.filename in client.get(f"/lineage/runs/{run.pk}/").content.decode()
    clone = client.get(f"/runs/new?clone={run.pk}").content.decode()
    assert "&quot;width&quot;: 3" in clone
    bad = client.post("/code/new", {"file": SimpleUploadedFile("x.bin", b"\\x80\\x02")})
    assert bad.status_code == 200 and "no Python file" in bad.content.decode()


@pytest.fixture
def flowers_like(organization):
    return factories.DatasetVersionFactory(dataset=factories.DatasetFactory(organization=organization))


def test_the_page_of_code_shows_its_text_as_text(web, viewer, bundle):
    page = web(viewer).get(f"/code/{bundle.pk}/").content.decode()
    assert "print(&#x27;&lt;b&gt;&#x27;)" in page and "lib/part.py" in page and "Launch a run" not in page


def test_the_collection_keeps_code_and_forgets_what_no_run_used(bundle, organization):
    kept = cron.models_and_code(organization.pk)
    assert {entry["sha256"] for entry in bundle.tree.values()} <= kept
    CodeBundle.objects.update(created_at=timezone.now() - timedelta(days=40))
    factories.RunFactory(experiment__organization=organization, code=bundle, entry="main.py")
    assert reachability.forget_unused_code() == 0
    Run.objects.all().delete()
    assert reachability.forget_unused_code() == 1
    assert cron.models_and_code(organization.pk) == set()


def test_packages_with_code_cannot_be_uploaded(tmp_path):
    from dlplatform.engine.errors import PackageError
    from registry import contents
    from tests.unit.engine.test_own_architecture import trained

    package = trained(tmp_path) / "output"
    with pytest.raises(PackageError, match="code of its own"):
        contents.recognise(package)
