"""Every page for everybody: a stranger sees nothing, a viewer reads, a trainer writes, hostile names stay text."""

import re

import pytest
from django.urls import reverse

from dlplatform.accounts.models import ApiKey, AuditEntry, Membership
from tests import factories

pytestmark = pytest.mark.django_db

HOSTILE = '<script>alert("x")</script>"><img src=x onerror=alert(1)>'


@pytest.fixture
def things(organization, trainer):
    """One of each, named by somebody hostile."""
    dataset = factories.DatasetFactory(organization=organization, name=HOSTILE, description=HOSTILE)
    columns = [
        {"name": HOSTILE, "type": "number", "nullable": True},
        {"name": "y", "type": "category", "nullable": False},
    ]
    problems = [{"row": 2, "column": HOSTILE, "code": "bad", "severity": "warning", "detail": HOSTILE}]
    version = factories.DatasetVersionFactory(
        dataset=dataset, number=1, columns=columns, problems=problems, filename=HOSTILE, created_by=trainer
    )
    experiment = factories.ExperimentFactory(organization=organization, name=HOSTILE[:100], description=HOSTILE)
    run = factories.RunFactory(
        experiment=experiment, dataset_version=version, name=HOSTILE[:110], target=HOSTILE, created_by=trainer,
        error={"code": "x", "sentence": HOSTILE, "next_step": HOSTILE}, state="failed",
        warnings=[{"column": HOSTILE, "sentence": HOSTILE}], evaluation=evaluation(),
    )  # fmt: skip
    model = factories.RegisteredModelFactory(organization=organization, name=HOSTILE[:110], description=HOSTILE)
    sweep = factories.SweepFactory(
        experiment=experiment, dataset_version=version, name=HOSTILE[:110], targets=[HOSTILE], reason=HOSTILE, created_by=trainer,
        space=[{"name": "schedule", "kind": "categorical", "choices": [HOSTILE]}], importance={"schedule": 1.0},
    )  # fmt: skip
    factories.TrialFactory(
        sweep=sweep, params={"schedule": HOSTILE}, state="failed", value=0.5, error={"sentence": HOSTILE}
    )
    signature = {
        "inputs": [{"name": HOSTILE, "type": "category", "nullable": True, "categories": [HOSTILE], "example": HOSTILE}]
    }
    made = factories.ModelVersionFactory(
        model=model, dataset_version=version, message=HOSTILE, signature=signature, metrics={HOSTILE: 0.5}
    )
    factories.RefFactory(model=model, version=made)
    upload = factories.UploadFactory(
        model=model, message=HOSTILE, created_by=trainer, files=[{"path": HOSTILE, "size": 10, "sha256": None}]
    )
    code = factories.CodeBundleFactory(
        organization=organization, filename=HOSTILE, tree={HOSTILE: {"sha256": "a" * 64, "size": 1}}, created_by=trainer
    )
    deployment = factories.DeploymentFactory(organization=organization, name="screening", description=HOSTILE)
    factories.VariantFactory(deployment=deployment, version=made)
    then = {"state": "active", "variants": [{"model": HOSTILE, "number": 1, "role": "live", "weight": 1.0}]}
    factories.DeploymentChangeFactory(deployment=deployment, reason=HOSTILE, before=then, after=then)
    factories.DeploymentExperimentFactory(
        deployment=deployment, control=made, challenger=made, number=1, hypothesis=HOSTILE, conclusion=HOSTILE
    )
    factories.RolloutFactory(deployment=deployment, stable=made, number=1, conclusion=HOSTILE)
    asked = factories.PredictionRecordFactory(
        deployment=deployment,
        variant=deployment.variants.get(),
        instances=[{HOSTILE: HOSTILE}],
        key=HOSTILE,
        error=HOSTILE[:60],
    )
    return {
        "asked": asked,
        "deployment": deployment,
        "batch": factories.BatchPredictionFactory(version=made, dataset_version=version, name=HOSTILE),
        "code": code,
        "dataset": dataset,
        "version": version,
        "run": run,
        "model": model,
        "model_version": made,
        "upload": upload,
        "sweep": sweep,
    }


def evaluation():
    return {
        "task": "classification", "rows": 4, "held_out": "one part", "metrics": {"accuracy": 0.5},
        "baseline": {"kind": "majority class", "metrics": {"accuracy": 0.4}},
        "importance": [{"column": HOSTILE, "increase": 0.2}], "labels": [HOSTILE, "b"],
        "confusion_matrix": [[1, 1], [1, 1]],
        "per_class": [{"label": HOSTILE, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}],
        "worst": [{"row": 1, "actual": HOSTILE, "predicted": "b", "probability": 0.9, "values": {HOSTILE: HOSTILE}}],
        "curves": {name: [0.0, 1.0] for name in ("false_positive_rate", "true_positive_rate", "precision", "recall")},
    }  # fmt: skip


def pages_of(things):
    run, dataset, model, version = (
        things["run"].pk,
        things["dataset"].pk,
        things["model"].pk,
        things["model_version"].pk,
    )
    return [
        reverse("run", args=[run]), reverse("run", args=[run]) + "?part=state", reverse("run", args=[run]) + "?part=results",
        reverse("run-log", args=[run]), reverse("dataset", args=[dataset]), reverse("dataset", args=[dataset]) + "?tab=problems",
        reverse("dataset", args=[dataset]) + "?tab=rows", reverse("dataset", args=[dataset]) + "?tab=usage",
        reverse("model", args=[model]), reverse("model-version", args=[version]),
        reverse("upload", args=[things["upload"].pk]),
        reverse("code", args=[things["code"].pk]), reverse("code-lineage", args=[things["code"].pk]),
        reverse("sweep", args=[things["sweep"].pk]), reverse("sweep", args=[things["sweep"].pk]) + "?sort=-schedule",
        reverse("deployment", args=[things["deployment"].pk]), reverse("batch", args=[things["batch"].pk]),
        reverse("deployment-experiment", args=[things["deployment"].pk, 1]),
        reverse("canary", args=[things["deployment"].pk, 1]),
        reverse("deployment-request", args=[things["deployment"].pk, things["asked"].request_id]),
        reverse("dataset-version-lineage", args=[things["version"].pk]), reverse("run-lineage", args=[run]),
        reverse("model-version-lineage", args=[version]),
    ]  # fmt: skip


LISTS = [
    "organization-new",
    "home",
    "datasets",
    "runs",
    "experiments",
    "sweeps",
    "models",
    "deployments",
    "members",
    "api-keys",
    "password-change",
    "compare",
]
WRITING = ["dataset-new", "run-new", "sweep-new", "model-new", "model-import"]
CHANGES = [
    ("run", name) for name in ("run-cancel", "run-pause", "run-resume", "run-archive", "run-restore", "run-rename")
] + [
    ("sweep", name) for name in ("sweep-cancel", "sweep-pause", "sweep-resume", "sweep-rerun", "sweep-promote")
] + [
    ("dataset", name) for name in ("dataset-edit", "dataset-archive", "dataset-restore", "dataset-delete")
] + [("model", name) for name in ("model-edit", "model-archive", "model-restore", "ref-move")] + [
    ("upload", "upload-abort"), ("model", "model-delete"), ("model_version", "version-delete"),
    ("model_version", "version-restore"), ("deployment", "deployment-variants"), ("deployment", "deployment-undo"),
    ("deployment", "deployment-archive"), ("deployment", "deployment-details"), ("deployment", "deployment-restore"), ("batch", "batch-cancel"),
    ("deployment", "deployment-experiment-same"),
]  # fmt: skip


def test_nobody_sees_a_page_without_signing_in(web, things):
    for address in [*map(reverse, LISTS), *map(reverse, WRITING), *pages_of(things)]:
        answer = web(None).get(address)
        assert answer.status_code == 302 and answer.url.startswith("/login"), address


def test_a_stranger_finds_nothing_of_another_organization(web, stranger, things):
    client = web(stranger)
    for address in pages_of(things):
        answer = client.get(address)
        assert answer.status_code == 404, address
    for name in LISTS:
        assert b"alert" not in client.get(reverse(name)).content, name
    for kind, name in CHANGES:
        assert client.post(reverse(name, args=[things[kind].pk])).status_code == 404, name
    assert client.get(f"{reverse('compare')}?run={things['run'].pk}").content.count(b"alert") == 0
    assert client.get(f"{reverse('run-new')}?version={things['version'].pk}").status_code == 404
    assert client.get(f"{reverse('run-new')}?clone={things['run'].pk}").status_code == 404


def test_a_viewer_reads_every_page_and_changes_nothing(web, viewer, things):
    client = web(viewer)
    for address in [*map(reverse, LISTS), *pages_of(things)]:
        assert client.get(address).status_code == 200, address
    for name in WRITING:
        assert client.get(reverse(name)).status_code == 403, name
    for kind, name in CHANGES:
        body = {"name": "new", "kind": "alias", "version": str(things["model_version"].pk)}
        assert client.post(reverse(name, args=[things[kind].pk]), body).status_code == 403, name
    page = client.get(reverse("run", args=[things["run"].pk])).content.decode()
    assert "Resume" not in page and "Archive" not in page


def test_a_trainer_has_the_buttons_of_a_trainer(web, trainer, things):
    client = web(trainer)
    for name in WRITING:
        assert client.get(reverse(name)).status_code == 200, name
    assert "Resume" in client.get(reverse("run", args=[things["run"].pk])).content.decode()
    assert (
        "Make production"
        not in client.get(reverse("model-version", args=[things["model_version"].pk])).content.decode()
    )


def test_names_stay_text_on_every_page(web, maintainer, things):
    client = web(maintainer)
    addresses = [
        *map(reverse, LISTS),
        reverse("run-new"),
        reverse("model-upload", args=[things["model"].pk]),
        *pages_of(things),
        f"{reverse('compare')}?run={things['run'].pk}",
    ]
    for address in addresses:
        answer = client.get(address)
        if answer["Content-Type"].startswith("text/html"):
            assert b"<script>alert" not in answer.content and b"<img src=x" not in answer.content, address


def test_no_page_has_an_inline_script_style_or_handler(web, maintainer, things):
    inline = re.compile(
        rb"<style|\sstyle=|\son[a-z]+=\"|hx-on|javascript:|<script(?![^>]*(src=|application/json))", re.IGNORECASE
    )
    client = web(maintainer)
    for address in [*map(reverse, LISTS), *map(reverse, WRITING), *pages_of(things)]:
        answer = client.get(address)
        if answer["Content-Type"].startswith("text/html"):
            text = answer.content.replace(b" onerror=", b"")
            assert inline.search(text) is None, (address, inline.search(text))
            assert "style-src 'self'" in answer["Content-Security-Policy"]


def test_an_unknown_address_and_an_odd_query_are_answered_calmly(web, trainer, things):
    client = web(trainer)
    assert client.get("/nothing/").status_code == 404
    odd = "?page=-1&sort=%00x&q=%00&state=zz&experiment=1&dataset=x&metric=%00&version=abc&tab=zz&run=zz&task=1"
    for name in ("runs", "datasets", "models", "compare", "experiments"):
        assert client.get(reverse(name) + odd).status_code == 200, name
    for address in pages_of(things)[:1] + pages_of(things)[4:]:
        assert client.get(address.partition("?")[0] + odd).status_code == 200, address
    assert client.get(reverse("dataset", args=[things["dataset"].pk]) + "?version=99").status_code == 404


def test_members_are_added_changed_and_removed_by_an_admin_alone(web, admin_user, viewer, stranger, organization):
    client = web(admin_user)
    assert client.post(reverse("members"), {"user": "stranger", "role": "trainer"}).status_code == 302
    assert Membership.objects.get(user=stranger, organization=organization).role == "trainer"
    client.post(reverse("member", args=["stranger"]), {"role": "viewer"})
    assert Membership.objects.get(user=stranger, organization=organization).role == "viewer"
    client.post(reverse("member-remove", args=["stranger"]))
    assert not Membership.objects.filter(user=stranger, organization=organization).exists()
    assert "no active user" in client.post(reverse("members"), {"user": "nobody", "role": "viewer"}).content.decode()
    kept = client.post(reverse("member", args=["admin"]), {"role": "viewer"}, follow=True).content.decode()
    assert "The last admin must stay" in kept
    assert web(viewer).post(reverse("members"), {"user": "stranger", "role": "admin"}).status_code == 403


def test_an_api_key_is_shown_once_and_can_be_revoked(web, trainer, stranger):
    client = web(trainer)
    made = client.post(reverse("api-keys"), {"name": "nightly", "scopes": ["ingest"], "expires": "30"}).content.decode()
    key = ApiKey.objects.get(name="nightly")
    assert f"dlp_{key.prefix}_" in made and key.expires_at is not None
    assert f"dlp_{key.prefix}_" not in client.get(reverse("api-keys")).content.decode()
    assert web(stranger).post(reverse("api-key-revoke", args=[key.pk])).status_code == 404
    client.post(reverse("api-key-revoke", args=[key.pk]))
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert "Choose at least one scope" in client.post(reverse("api-keys"), {"name": "none"}).content.decode()


def test_a_person_without_an_organization_is_told_so_and_can_make_one(web, db):
    loner = factories.UserFactory(username="loner")
    client = web(loner)
    for name in ("home", "datasets", "runs", "models", "experiments", "members", "dataset-new", "run-new"):
        assert "no organization yet" in client.get(reverse(name)).content.decode(), name
    client.post(reverse("organization-new"), {"name": "Mine"})
    assert Membership.objects.get(user=loner).role == "admin"


def test_a_member_makes_another_organization_is_its_admin_and_works_in_it(web, viewer, trainer, things):
    client = web(viewer)
    assert reverse("organization-new") in client.get(reverse("members")).content.decode()
    made = client.post(reverse("organization-new"), {"name": "Side project"}, follow=True).content.decode()
    assert "<h1>Side project</h1>" in made
    assert Membership.objects.get(user=viewer, organization__slug="side-project").role == "admin"
    assert Membership.objects.get(user=viewer, organization__slug="lab").role == "viewer"
    assert b"alert" not in client.get(reverse("datasets")).content
    assert not Membership.objects.filter(user=trainer, organization__slug="side-project").exists()
    assert AuditEntry.objects.get(action="organization.create").actor == viewer


def test_a_new_organization_is_refused_with_its_reason_on_the_form(web, viewer, stranger):
    client = web(viewer)
    for name, told in (
        ("Elsewhere", "is taken"),
        ("", "required"),
        ("!!", "at least one letter"),
        ("a\0b", "ull character"),
    ):
        answer = client.post(reverse("organization-new"), {"name": name})
        assert answer.status_code == 200 and told in answer.content.decode(), name
    assert not Membership.objects.filter(user=viewer).exclude(organization__slug="lab").exists()
    assert web(None).get(reverse("organization-new")).url.startswith("/login")
    assert web(None).post(reverse("organization-new"), {"name": "Nobody's"}).url.startswith("/login")


def test_switching_leads_to_the_other_organization_and_to_no_foreign_one(web, trainer, stranger, organization):
    second = factories.OrganizationFactory(slug="second", name="Second")
    factories.MembershipFactory(organization=second, user=trainer, role="viewer")
    client = web(trainer)
    client.post(reverse("switch-organization"), {"organization": "second"})
    assert "<h1>Second</h1>" in client.get(reverse("home")).content.decode()
    assert client.post(reverse("switch-organization"), {"organization": "elsewhere"}).status_code == 404


def test_signing_in_and_out(client, trainer):
    answer = client.post(reverse("login"), {"username": "trainer", "password": "wrong"})
    assert "The username or the password is wrong." in answer.content.decode()
    assert client.post(reverse("login"), {"username": "trainer", "password": "password-1234"}).url == "/"
    assert client.get(reverse("home")).status_code == 200
    assert client.post(reverse("logout")).status_code == 302
    assert client.get(reverse("home")).status_code == 302
