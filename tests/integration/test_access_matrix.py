"""Every API route × everybody: generated from the URL resolver, so a forgotten route fails here."""

import uuid

import pytest
from django.contrib.auth.models import Permission

from datasets.models import DatasetUserPermission
from dlplatform.accounts.access import may
from dlplatform.accounts.models import User
from dlplatform.accounts.roles import ACTIONS, Role, Scope
from dlplatform.api import UNAUTHENTICATED
from tests import factories
from tests.unit.test_guards import api_views

pytestmark = pytest.mark.django_db
PEOPLE = ("viewer", "trainer", "maintainer", "admin_user")
ROLES = {"viewer": Role.VIEWER, "trainer": Role.TRAINER, "maintainer": Role.MAINTAINER, "admin_user": Role.ADMIN}
# What a role lets through is refused for another reason (an empty body, a missing precondition), never for the right.
REFUSALS = {401, 403, 404}


@pytest.fixture
def rows(organization, trainer):
    """One of each, all of the organization."""
    dataset = factories.DatasetFactory(organization=organization)
    version = factories.DatasetVersionFactory(dataset=dataset, number=1)
    experiment = factories.ExperimentFactory(organization=organization)
    run = factories.RunFactory(experiment=experiment, dataset_version=version, created_by=trainer)
    model = factories.RegisteredModelFactory(organization=organization)
    model_version = factories.ModelVersionFactory(model=model, number=1)
    factories.RefFactory(version=model_version)
    sweep = factories.SweepFactory(experiment=experiment, dataset_version=version, created_by=trainer)
    factories.TrialFactory(sweep=sweep, number=0)
    code = factories.CodeBundleFactory(organization=organization, created_by=trainer)
    preflight = factories.PreflightFactory(dataset_version=version)
    key = factories.ApiKeyFactory(user=trainer)
    merge = factories.MergeFactory(model=model, ours=model_version, theirs=model_version, dataset_version=version)
    upload = factories.UploadFactory(model=model, created_by=trainer)
    comparison = factories.ComparisonFactory(model=model, base=model_version, head=model_version)
    optimization = factories.OptimizationFactory(version=model_version, dataset_version=version)
    deployment = factories.DeploymentFactory(organization=organization, name="production")
    factories.VariantFactory(deployment=deployment, version=model_version)
    batch = factories.BatchPredictionFactory(version=model_version, dataset_version=version)
    variant = deployment.variants.get()
    factories.DeploymentExperimentFactory(deployment=deployment, control=model_version, number=1)
    factories.RolloutFactory(deployment=deployment, stable=model_version, number=1)
    record = factories.PredictionRecordFactory(deployment=deployment, variant=variant)
    return {
        "<uuid:deployment>": deployment.pk, "<uuid:request_id>": record.request_id, "<uuid:batch>": batch.pk,
        "<uuid:dataset>": dataset.pk, "<int:number>": 1, "<uuid:experiment>": experiment.pk, "<uuid:run>": run.pk,
        "<uuid:model>": model.pk, "<uuid:version>": model_version.pk, "<slug:kind>": "alias", "<str:name>": "production",
        "<uuid:comparison>": comparison.pk, "<uuid:merge>": merge.pk, "<uuid:optimization>": optimization.pk, "<uuid:upload>": upload.pk, "<uuid:preflight>": preflight.pk, "<uuid:code>": code.pk, "<uuid:sweep>": sweep.pk, "<int:file>": 0, "<str:token>": "token", "<path:path>": "model.json", "<str:sha256>": "a" * 64, "<uuid:key>": key.pk, "<str:kind>": "run", "<uuid:id>": run.pk, "<slug:slug>": organization.slug, "<str:username>": "trainer",
    }  # fmt: skip


def operations(wanted=lambda path, action: True):
    for path, view in api_views():
        for method, action in view.policy.items():
            if not wanted(path, action):
                continue
            yield pytest.param(path, method, action, id=f"{method} {path.removeprefix('api/v1/')}")


def needs_a_scope(path, action):
    return action in ACTIONS


def names_an_object(path, action):
    """Of the organization, or a key of one of its members."""
    return "<" in path and action != "public"


def url_of(path, rows):
    for name, value in rows.items():
        path = path.replace(name, str(value))
    assert "<" not in path, f"the matrix has no row for {path}"
    return "/" + path


def call(client, method, url):
    return client.generic(method, url, b"{}", content_type="application/json")


@pytest.mark.parametrize(("path", "method", "action"), operations())
def test_nobody_is_let_in_without_a_credential(api, rows, path, method, action):
    answer = call(api(None), method, url_of(path, rows))
    if action == "public":
        assert answer.status_code in (400, 401)
        return
    assert answer.status_code == 401
    assert answer.json() == {
        "type": "client_error",
        "errors": [{"code": "not_authenticated", "detail": UNAUTHENTICATED, "attr": None}],
    }


@pytest.mark.parametrize(("path", "method", "action"), operations(names_an_object))
def test_a_stranger_meets_the_same_404_as_for_what_never_existed(api, rows, stranger, path, method, action):
    answer = call(api(stranger), method, url_of(path, rows))
    never = {name: uuid.uuid4() if "uuid" in name else value for name, value in rows.items()}
    never["<slug:slug>"] = "never"
    nothing = call(api(stranger), method, url_of(path, never))
    assert answer.status_code == nothing.status_code == 404, answer.content
    assert answer.content == nothing.content


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize(("path", "method", "action"), operations())
def test_a_role_is_refused_exactly_where_its_rank_is_too_low(request, api, rows, person, path, method, action):
    user = request.getfixturevalue(person)
    answer = call(api(user), method, url_of(path, rows))
    assert answer.status_code < 500, answer.content
    wanted = "application/zip" if path.endswith("/archive") and method == "GET" else "application/json"
    assert answer.get("Content-Type", wanted) == wanted
    if action not in ACTIONS:
        return
    needed = ACTIONS["ref.move"] if "refs/<slug:kind>" in path and method in ("PUT", "DELETE") else ACTIONS[action]
    if ROLES[person].rank < needed.role.rank and "<" in path and "key" not in path:
        assert answer.status_code == 403, answer.content
    else:
        assert answer.status_code != 403, answer.content


@pytest.mark.parametrize("scope", Scope.values)
@pytest.mark.parametrize(("path", "method", "action"), operations(needs_a_scope))
def test_a_key_is_refused_outside_its_scope(rows, admin_user, scope, path, method, action):
    from rest_framework.test import APIClient

    user = User.objects.get(pk=admin_user.pk)
    user.scopes = frozenset({scope})
    client = APIClient(raise_request_exception=False)
    client.force_authenticate(user)
    answer = call(client, method, url_of(path, rows))
    assert answer.status_code < 500, answer.content
    if ACTIONS[action].scope != scope:
        assert answer.status_code in (403, 404), answer.content


@pytest.mark.parametrize("action", ACTIONS)
def test_a_share_gives_what_it_names_and_nothing_more(action, stranger, organization):
    dataset = factories.DatasetFactory(organization=organization)
    assert not may(stranger, action, dataset)
    view = Permission.objects.get(codename="view_dataset", content_type__app_label="datasets")
    DatasetUserPermission.objects.create(user=stranger, permission=view, content_object=dataset)
    assert may(stranger, action, dataset) == (ACTIONS[action].shared == "view")
    assert type(dataset).objects.visible_to(stranger).filter(pk=dataset.pk).exists()
    change = Permission.objects.get(codename="change_dataset", content_type__app_label="datasets")
    DatasetUserPermission.objects.create(user=stranger, permission=change, content_object=dataset)
    assert may(stranger, action, dataset) == (ACTIONS[action].shared is not None)


def test_a_deactivated_member_sees_nothing(trainer, organization):
    factories.DatasetFactory(organization=organization)
    trainer.is_active = False
    from datasets.models import Dataset

    assert not Dataset.objects.visible_to(trainer).exists()
    assert not may(trainer, "read", organization)
