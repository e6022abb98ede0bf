"""Deleting datasets and versions: what it frees, undoing it, what shared rows keep, and that the bytes really go."""

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils import timezone

from datasets import additions, deletion, services
from datasets.jobs import ingest
from datasets.models import Dataset, DatasetVersion
from datasets.reachability import reachable_objects
from dlplatform.api import Conflict
from dlplatform.objects.collection import collect
from dlplatform.objects.models import StoredObject
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from training.services import create_run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def second(flowers, tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    return factories.ready_version(flowers.dataset, flower_rows(90), folder, number=2)


def collected(organization, days):
    grace, now = timedelta(days=7), timezone.now() + timedelta(days=days)
    return collect("datasets", organization.pk, reachable_objects(organization.pk), grace=grace, now=now)


def test_rows_go_after_the_grace_and_the_version_stays(maintainer, organization, flowers, second):
    told = deletion.preview_of_version(flowers)
    deletion.delete_version(actor=maintainer, version=flowers)
    flowers.refresh_from_db()
    assert flowers.state == "deleted" and flowers.columns and flowers.profile is not None
    collected(organization, 8)
    assert collected(organization, 16).bytes == told.bytes > 0
    store = services.object_store(organization.pk)
    assert not any(store.exists(part["sha256"]) for part in flowers.parts)
    assert all(store.exists(part["sha256"]) for part in second.parts)
    with pytest.raises(Conflict, match="gone"):
        deletion.restore_version(actor=maintainer, version=flowers)


def test_undo_within_the_grace(maintainer, organization, flowers):
    deletion.delete_version(actor=maintainer, version=flowers)
    collected(organization, 6.9)
    assert deletion.restore_version(actor=maintainer, version=flowers).state == "ready"
    assert collected(organization, 30).swept == 0
    assert StoredObject.objects.filter(condemned_at__isnull=False).count() == 0


@pytest.mark.parametrize("state", ["rejected", "cancelled"])
def test_what_was_no_data_comes_back_as_it_was(maintainer, flowers, state):
    problems = [{"row": 1, "column": None, "code": "x", "severity": "error", "detail": "x"}]
    DatasetVersion.objects.filter(pk=flowers.pk).update(
        state=state, rows=None, problems=problems if state == "rejected" else []
    )
    deletion.delete_version(actor=maintainer, version=flowers)
    assert deletion.restore_version(actor=maintainer, version=flowers).state == state


def test_rows_that_a_later_version_shares_stay(maintainer, trainer, organization, flowers):
    added = additions.add_rows(actor=trainer, dataset=flowers.dataset, rows=flower_rows(3))
    ingest(str(added.pk))
    added.refresh_from_db()
    assert added.state == "ready"
    deletion.delete_version(actor=maintainer, version=flowers)
    collected(organization, 8)
    collected(organization, 16)
    store = services.object_store(organization.pk)
    assert all(store.exists(part["sha256"]) for part in added.parts)


def test_no_run_starts_on_deleted_rows_and_no_rows_join_them(maintainer, trainer, flowers):
    deletion.delete_version(actor=maintainer, version=flowers)
    flowers.refresh_from_db()
    with pytest.raises(ValidationError, match="deleted"):
        create_run(actor=trainer, dataset_version=flowers, task="classification", target="kind", config=QUICK)
    added = additions.add_rows(actor=trainer, dataset=flowers.dataset, rows=[{"a": 1}])
    assert additions.base_of(added) is None


def test_what_is_being_read_is_cancelled_first(maintainer, flowers):
    DatasetVersion.objects.filter(pk=flowers.pk).update(state="running")
    flowers.refresh_from_db()
    assert deletion.preview_of_version(flowers).obstacles and deletion.preview_of_dataset(flowers.dataset).obstacles
    with pytest.raises(Conflict, match="running"):
        deletion.delete_version(actor=maintainer, version=flowers)
    with pytest.raises(Conflict, match="being read"):
        deletion.delete_dataset(actor=maintainer, dataset=flowers.dataset)


def test_a_deleted_dataset_comes_back_whole_but_for_what_was_deleted_before(maintainer, organization, flowers, second):
    dataset = flowers.dataset
    deletion.delete_version(actor=maintainer, version=flowers)
    deletion.delete_dataset(actor=maintainer, dataset=dataset)
    for again in (
        lambda: deletion.delete_dataset(actor=maintainer, dataset=dataset),
        lambda: deletion.restore_version(actor=maintainer, version=flowers),
        lambda: services.set_dataset_archived(actor=maintainer, dataset=Dataset.objects.get(), archived=False),
        lambda: additions.add_rows(actor=maintainer, dataset=dataset, rows=[{"a": 1}]),
    ):
        with pytest.raises(Conflict):
            again()
    deletion.restore_dataset(actor=maintainer, dataset=dataset)
    states = list(dataset.versions.order_by("number").values_list("state", flat=True))
    assert states == ["deleted", "ready"] and Dataset.objects.get().archived_at is None


def test_by_the_api(api, maintainer, trainer, flowers):
    root = f"/api/v1/datasets/{flowers.dataset_id}"
    assert api(trainer).delete(f"{root}/versions/1").status_code == 403
    client = api(maintainer)
    assert client.get(f"{root}/versions/1/deletion").json()["bytes"] > 0
    assert client.delete(f"{root}/versions/1").json()["state"] == "deleted"
    assert client.delete(f"{root}/versions/1").status_code == 409
    assert client.get(f"{root}/versions/1/rows").status_code == 409
    assert client.post(f"{root}/versions/1/restore").json()["state"] == "ready"
    assert client.post(f"{root}/versions/1/cancel").json()["errors"][0]["code"] == "ended"
    assert client.post(f"{root}/archive").json()["archived_at"]
    assert client.get(f"{root}/deletion").json()["versions"] == 1
    assert client.delete(root).json()["deleted_at"]
    assert client.get("/api/v1/datasets").json()["results"] == []
    assert client.post(f"{root}/restore").json()["deleted_at"] is None


def test_by_the_pages(web, maintainer, flowers):
    client, dataset = web(maintainer), flowers.dataset_id
    asked = client.get(reverse("dataset-version-delete", args=[dataset, 1])).content.decode()
    assert "nothing else needs" in asked
    shown = client.post(reverse("dataset-version-delete", args=[dataset, 1]), follow=True).content.decode()
    assert "are deleted" in shown and "Bring back" in shown and "Train on this version" not in shown
    assert client.get(reverse("dataset", args=[dataset]) + "?tab=rows").status_code == 200
    assert (
        "are back" in client.post(reverse("dataset-version-restore", args=[dataset, 1]), follow=True).content.decode()
    )
    assert "is deleted" in client.post(reverse("dataset-delete", args=[dataset]), follow=True).content.decode()
    client.post(reverse("dataset-restore", args=[dataset]))
    assert Dataset.objects.get().deleted_at is None and DatasetVersion.objects.get().state == "ready"
