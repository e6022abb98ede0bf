"""Deleting models and versions: what it frees, what stands against it, undoing it, and that the bytes really go."""

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from dlplatform.api import Conflict
from dlplatform.objects.collection import collect
from dlplatform.objects.errors import MissingObject
from dlplatform.objects.models import StoredObject
from registry import comparisons, deletion, merges, services
from registry.models import ModelVersion, RegisteredModel
from registry.reachability import reachable_objects
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)
WEEK = timedelta(days=7)


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization, name="kept")


def commit(actor, model, **files):
    """A version whose files are these bytes."""
    store = services.object_store(model.organization_id)
    tree = {}
    for path, data in files.items():
        stored = store.put_bytes(data)
        tree[path] = {"sha256": stored.sha256, "size": stored.size}
    return services.commit_version(
        actor=actor, model=model, tree=tree, task="classification", signature={}, metrics={"accuracy": 0.9},
        lineage={}, message="A version",
    )  # fmt: skip


def noise(seed, size=300_000):
    import random

    return random.Random(seed).randbytes(size)


@pytest.fixture
def two(maintainer, model):
    """v1 has weights of its own and shares a file with v2, which main points to."""
    shared = noise(0)
    return commit(maintainer, model, weights=noise(1), shared=shared), commit(
        maintainer, model, weights=noise(2), shared=shared
    )


def collected(organization, at):
    return collect("models", organization.pk, reachable_objects(organization.pk), grace=WEEK, now=at)


def readable(version):
    store = services.object_store(version.model.organization_id)
    try:
        return [len(store.read(entry["sha256"])) for entry in version.tree.values()]
    except MissingObject:
        return None


def test_a_version_s_own_bytes_are_told_freed_after_the_grace_and_nothing_else(maintainer, organization, two):
    first, second = two
    told = deletion.preview_of_version(first)
    own = StoredObject.objects.get(sha256=first.tree["weights"]["sha256"]).stored_size
    assert told.bytes == own and not told.obstacles
    deletion.delete_version(actor=maintainer, version=first)
    now = timezone.now()
    assert collected(organization, now + timedelta(days=8)).condemned == 1
    assert readable(first), "undoable until it is swept"
    swept = collected(organization, now + timedelta(days=16))
    assert swept.swept == 1 and swept.bytes == own
    assert readable(first) is None and readable(second)
    first.refresh_from_db()
    assert first.metrics == {"accuracy": 0.9} and set(first.tree) == {"weights", "shared"}, "what is known of it stays"


def test_undo_within_the_grace_keeps_every_byte(maintainer, organization, two):
    first, _ = two
    deletion.delete_version(actor=maintainer, version=first)
    now = timezone.now()
    assert collected(organization, now + timedelta(days=8)).condemned == 1
    deletion.restore_version(actor=maintainer, version=first)
    assert not StoredObject.objects.filter(condemned_at__isnull=False).exists()
    assert collected(organization, now + timedelta(days=30)).swept == 0
    assert readable(first)
    deletion.restore_version(actor=maintainer, version=first)


def test_undo_after_the_grace_is_a_conflict(maintainer, two):
    first, _ = two
    deletion.delete_version(actor=maintainer, version=first)
    ModelVersion.objects.filter(pk=first.pk).update(deleted_at=timezone.now() - timedelta(days=8))
    with pytest.raises(Conflict, match="gone"):
        deletion.restore_version(actor=maintainer, version=first)
    assert ModelVersion.objects.get(pk=first.pk).deleted_at


def test_undo_of_what_was_swept_all_the_same_is_a_conflict(maintainer, two):
    first, _ = two
    deletion.delete_version(actor=maintainer, version=first)
    StoredObject.objects.filter(sha256=first.tree["weights"]["sha256"]).delete()
    with pytest.raises(Conflict, match="gone"):
        deletion.restore_version(actor=maintainer, version=first)


def test_what_a_name_stands_for_stays(maintainer, model, two):
    first, second = two
    with pytest.raises(Conflict, match="main"):
        deletion.delete_version(actor=maintainer, version=second)
    services.move_ref(actor=maintainer, model=model, kind="alias", name="production", version=first)
    services.release_version(actor=maintainer, version=first)
    told = deletion.preview_of_version(ModelVersion.objects.get(pk=first.pk)).obstacles
    assert len(told) == 3 and "production" in told[0] and "1.0.0" in told[2]
    with pytest.raises(Conflict, match="production"):
        deletion.delete_version(actor=maintainer, version=first)


def test_nothing_is_done_with_deleted_files(maintainer, model, two, api):
    first, second = two
    deletion.delete_version(actor=maintainer, version=first)
    refused = [
        lambda: services.move_ref(actor=maintainer, model=model, kind="alias", name="production", version=first),
        lambda: services.release_version(actor=maintainer, version=first),
        lambda: services.roll_back(actor=maintainer, model=model, kind="branch", name="main", to=first),
        lambda: comparisons.request_comparison(actor=maintainer, base=first, head=second),
        lambda: merges.request_merge(actor=maintainer, model=model, theirs=first),
        lambda: deletion.delete_version(actor=maintainer, version=first),
    ]
    for act in refused:
        with pytest.raises(Conflict) as caught:
            act()
        assert caught.value.get_codes() == "files_deleted"
    root = f"/api/v1/model-versions/{first.pk}"
    client = api(maintainer)
    for answer in (
        client.get(f"{root}/files/weights"), client.get(f"{root}/archive"), client.post(f"{root}/link", {}, format="json"),
        client.post(f"{root}/predict", {"instances": [{"a": 1}]}, format="json"),
    ):  # fmt: skip
        assert answer.status_code == 409 and answer.json()["errors"][0]["code"] == "files_deleted"


def test_a_deleted_model_comes_back_whole_but_for_what_was_deleted_before(maintainer, organization, model, two):
    first, second = two
    deletion.delete_version(actor=maintainer, version=first)
    told = deletion.preview_of_model(model)
    assert told.versions == 1
    deletion.delete_model(actor=maintainer, model=model)
    with pytest.raises(Conflict):
        deletion.delete_model(actor=maintainer, model=model)
    with pytest.raises(Conflict):
        commit(maintainer, model, weights=noise(3))
    with pytest.raises(Conflict):
        deletion.restore_version(actor=maintainer, version=ModelVersion.objects.get(pk=first.pk))
    services.create_model(actor=maintainer, organization=organization, name="kept")
    with pytest.raises(Conflict, match="kept"):
        deletion.restore_model(actor=maintainer, model=model)
    assert RegisteredModel.objects.get(pk=model.pk).deleted_at, "both or neither"
    RegisteredModel.objects.exclude(pk=model.pk).update(name="another")
    deletion.restore_model(actor=maintainer, model=model)
    first.refresh_from_db()
    second.refresh_from_db()
    assert first.deleted_at and second.deleted_at is None


def test_a_deleted_model_s_bytes_go(maintainer, organization, model, two):
    told = deletion.preview_of_model(model).bytes
    assert told == sum(StoredObject.objects.values_list("stored_size", flat=True))
    deletion.delete_model(actor=maintainer, model=model)
    now = timezone.now()
    collected(organization, now + timedelta(days=8))
    assert collected(organization, now + timedelta(days=16)).bytes == told
    assert not StoredObject.objects.exists()


def test_by_the_api(api, maintainer, trainer, model, two):
    first, second = two
    root = f"/api/v1/model-versions/{first.pk}"
    assert api(trainer).delete(root).status_code == 403
    client = api(maintainer)
    assert client.get(f"{root}/deletion").json()["versions"] == 1
    assert client.delete(root).json()["deleted_at"]
    assert client.post(f"{root}/restore").json()["deleted_at"] is None
    assert client.delete(f"/api/v1/model-versions/{second.pk}").json()["errors"][0]["code"] == "in_use"
    root = f"/api/v1/models/{model.pk}"
    assert client.get(f"{root}/deletion").json()["bytes"] > 0
    assert client.post(f"{root}/archive").json()["archived_at"]
    assert client.delete(root).json()["deleted_at"]
    assert [row["id"] for row in client.get("/api/v1/models").json()["results"]] == []
    assert client.post(f"{root}/restore").json()["archived_at"] is None


def test_by_the_pages(web, maintainer, model, two):
    first, second = two
    client = web(maintainer)
    assert "nothing else needs" in client.get(reverse("version-delete", args=[first.pk])).content.decode()
    assert "main" in client.get(reverse("version-delete", args=[second.pk])).content.decode()
    shown = client.post(reverse("version-delete", args=[first.pk]), follow=True).content.decode()
    assert "are deleted" in shown and "Bring back" in shown and "Try v1" not in shown
    assert "files deleted" in client.get(reverse("model", args=[model.pk])).content.decode()
    assert "are back" in client.post(reverse("version-restore", args=[first.pk]), follow=True).content.decode()
    client.post(reverse("model-delete", args=[model.pk]))
    shown = client.get(reverse("model", args=[model.pk])).content.decode()
    assert "can be brought back until" in shown
    client.post(reverse("model-restore", args=[model.pk]))
    assert RegisteredModel.objects.get(pk=model.pk).archived_at is None
