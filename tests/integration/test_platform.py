"""Health, metrics, API documents, admin, headers, static files: what belongs to no app."""

import re

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from dlplatform.accounts.models import AuditEntry, User
from dlplatform.cron import TICKS
from tests import factories
from training.models import Run

pytestmark = pytest.mark.django_db


def test_health_readiness_and_metrics_need_no_login():
    assert Client().get("/healthz").json() == {"status": "ok"}
    assert Client().get("/readyz").json() == {"status": "ok", "database": True, "redis": True}
    factories.RunFactory()
    assert 'dlplatform_runs{state="queued"} 1.0' in Client().get("/metrics").content.decode()


def test_readiness_names_the_part_that_does_not_answer(settings):
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    answer = Client().get("/readyz")
    assert answer.status_code == 503 and answer.json() == {"status": "waiting", "database": True, "redis": False}
    assert Client().get("/metrics").status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_the_api_documents_open(path):
    assert Client().get(path).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_of_the_api_run_scripts_of_ours_alone(path):
    answer = Client().get(path)
    assert "script-src 'self';" in answer["Content-Security-Policy"] + ";"
    assert "unsafe-eval" not in answer["Content-Security-Policy"]
    assert re.search(rb"<style|\sstyle=|<script(?! src=\"/static/)|https?://", answer.content) is None
    assert Client().post(path).status_code in (403, 405)


@pytest.mark.parametrize("path", ["/", "/login", "/nothing-here"])
def test_every_page_carries_the_strict_policy(path):
    policy = Client().get(path)["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "object-src 'none'" in policy


@pytest.fixture
def superuser(db):
    return User.objects.create_superuser("root-admin", password="password-1234")


@pytest.mark.parametrize(
    "model", [model for model in admin.site._registry if model._meta.app_label != "token_blacklist"]
)
def test_every_admin_list_opens_and_is_searchable(superuser, web, model):
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    assert web(superuser).get(url).status_code == 200
    assert web(superuser).get(url, {"q": "x"}).status_code == 200


def test_the_admin_is_closed_to_everybody_else(web, admin_user):
    assert web(admin_user).get("/admin/").status_code == 302


def test_admin_actions_call_the_services(web, superuser, organization):
    run = factories.RunFactory(experiment=factories.ExperimentFactory(organization=organization))
    url = reverse("admin:training_run_changelist")

    def act(action):
        return web(superuser).post(url, {"action": action, "_selected_action": [str(run.pk)]})

    act("cancel")
    assert Run.objects.get().state == "cancelled"
    act("cancel")
    act("retry")
    assert Run.objects.get().state == "queued"
    act("cancel")
    act("archive")
    assert Run.objects.get().archived_at
    assert set(AuditEntry.objects.values_list("action", flat=True)) == {"run.cancel", "run.resume", "run.archive"}
    dataset = factories.DatasetFactory(organization=organization)
    web(superuser).post(
        reverse("admin:datasets_dataset_changelist"), {"action": "archive", "_selected_action": [str(dataset.pk)]}
    )
    dataset.refresh_from_db()
    assert dataset.archived_at


def test_an_admin_action_tells_how_many_rows_it_changed_and_why_not_the_others(web, superuser, organization):
    experiment = factories.ExperimentFactory(organization=organization)
    runs = factories.RunFactory.create_batch(2, experiment=experiment)
    ended = factories.RunFactory(experiment=experiment, name="ended", state="succeeded")
    told = acted(web(superuser), "training_run", "cancel", *runs, ended)
    assert "2 runs cancelled." in told and any(text.startswith("ended: ") for text in told)
    assert "No runs cancelled." in acted(web(superuser), "training_run", "cancel", ended)
    assert "1 run archived." in acted(web(superuser), "training_run", "archive", ended)
    upload = factories.UploadFactory(model__organization=organization)
    assert "1 upload aborted." in acted(web(superuser), "registry_upload", "abort", upload)
    assert "1 model archived." in acted(web(superuser), "registry_registeredmodel", "archive", upload.model)


def test_a_key_revoked_in_the_admin_leaves_an_audit_entry(web, superuser):
    key = factories.ApiKeyFactory()
    assert acted(web(superuser), "accounts_apikey", "revoke", key) == ["1 api key revoked."]
    key.refresh_from_db()
    assert key.revoked_at and AuditEntry.objects.get().action == "key.revoke"


def acted(client, name, action, *rows):
    """The messages after an action on these rows."""
    body = {"action": action, "_selected_action": [str(row.pk) for row in rows]}
    answer = client.post(reverse(f"admin:{name}_changelist"), body, follow=True)
    return [str(message) for message in answer.context["messages"]]


@pytest.mark.parametrize(
    ("factory", "name", "action"),
    [
        (factories.DatasetFactory, "datasets_dataset", "dataset.change"),
        (factories.RegisteredModelFactory, "registry_registeredmodel", "model.change"),
        (factories.ExperimentFactory, "training_experiment", "experiment.change"),
    ],
)
def test_the_admin_renames_through_the_services(web, superuser, organization, factory, name, action):
    taken, row = factory(organization=organization, name="taken"), factory(organization=organization, name="row")
    url = reverse(f"admin:{name}_change", args=[row.pk])
    refused = web(superuser).post(url, {"name": taken.name, "description": ""})
    assert refused.status_code == 200 and "taken” already" in refused.content.decode()
    assert not AuditEntry.objects.exists()
    assert web(superuser).post(url, {"name": "free", "description": "told"}).status_code == 302
    row.refresh_from_db()
    assert (row.name, row.description) == ("free", "told")
    assert AuditEntry.objects.get().action == action and AuditEntry.objects.get().actor == superuser


def test_a_nul_in_an_admin_query_is_refused_and_breaks_nothing(web, superuser):
    client = web(superuser)
    assert client.get("/admin/training/run/?state__exact=%00").status_code == 400
    assert client.get("/admin/training/run/?q=a%00b").status_code == 400
    assert client.get("/admin/training/run/?q=%2500").status_code == 200


def test_the_admin_has_a_policy_that_only_its_theme_loosens(web, superuser):
    for client in (web(None), web(superuser)):
        policy = dict(
            part.split(" ", 1) for part in client.get("/admin/", follow=True)["Content-Security-Policy"].split("; ")
        )
        assert policy["script-src"] in ("'self' 'unsafe-eval'", "'self'")
        assert policy["default-src"] == policy["form-action"] == policy["connect-src"] == "'self'"
        assert policy["object-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"


def test_the_icon_is_where_browsers_look_for_it():
    answer = Client().get("/favicon.ico")
    assert answer.status_code == 302 and answer.url == "/static/icon.svg"


def test_history_cannot_be_changed_in_the_admin(web, superuser):
    version = factories.ModelVersionFactory()
    url = reverse("admin:registry_modelversion_change", args=[version.pk])
    assert web(superuser).get(url).status_code == 200
    assert web(superuser).post(url, {"message": "rewritten"}).status_code == 403


def test_every_tick_runs():
    factories.RunFactory()
    for tick in TICKS:
        tick.work()
    assert {tick.name for tick in TICKS} >= {"reconcile runs", "reconcile datasets"}


def test_the_first_admin_is_made_once(db, settings):
    from dlplatform.accounts.bootstrap import first_admin

    settings.DLP_ADMIN_PASSWORD = ""
    name, told = first_admin()
    password = told.split()[0]
    assert User.objects.get(username=name).check_password(password)
    assert first_admin() is None


def test_samples_are_loaded_once_and_one_run_is_launched(db, settings):
    from dlplatform.accounts.bootstrap import first_admin
    from dlplatform.accounts.organizations import default_for
    from training import samples

    settings.DLP_ADMIN_PASSWORD = "password-1234"
    first_admin()
    actor = User.objects.get()
    organization = default_for(actor)
    created = samples.load_samples(actor, organization)
    assert [version.dataset.name for version in created] == [*samples.SAMPLES, samples.IMAGES]
    assert samples.load_samples(actor, organization) == []
    digits = next(version for version in created if version.dataset.name == "digits")
    type(digits).objects.filter(pk=digits.pk).update(
        state="ready", rows=1797, columns=[{"name": "x", "type": "number"}, {"name": "digit", "type": "integer"}]
    )
    assert samples.launch_sample_run(actor, organization).target == "digit"


def test_a_method_that_a_route_lacks_is_405_and_a_foreign_cursor_404(trainer, api):
    client = api(trainer)
    assert client.post("/api/v1/runs/00000000-0000-0000-0000-000000000000/metrics").status_code == 405
    for cursor in ("abc", "cD0lMDA=", "cD1ub3QrYStkYXRl"):  # nonsense; a position of NUL; "not a date"
        answer = client.get(f"/api/v1/datasets?cursor={cursor}")
        assert answer.status_code == 404 and "cursor" in answer.json()["errors"][0]["detail"]
