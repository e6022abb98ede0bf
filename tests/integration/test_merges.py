"""Merges of real packages: taken, merged, evaluated, committed with two parents; conflicts named; its page."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from datasets.models import DatasetVersion
from dlplatform.api import Conflict
from dlplatform.cron import reconcile_merges
from dlplatform.engine.merging import METHODS
from registry import merges, services
from registry.jobs import merge as work
from registry.models import Merge, ModelVersion, Ref
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from tests.integration.test_registry import commit
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)


def tuned(actor, version, folder, branch, change):
    """A version on a branch whose tensors were changed, as a fine-tune would."""
    store = services.object_store(version.model.organization_id)
    for path, entry in version.tree.items():
        store.fetch(entry["sha256"], folder / path)
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "manifest.json").unlink(missing_ok=True)
    return services.commit_version(
        actor=actor, model=version.model, tree=services.store_directory(version.model.organization_id, folder),
        task=version.task, signature=version.signature, metrics={"accuracy": 0.5}, lineage=version.lineage,
        message=f"Tune {branch}", dataset_version=version.dataset_version, parents=[version], branch=branch,
    )  # fmt: skip


def shifted(*names, by=0.05):
    def change(weights):
        for name in names:
            weights[name] += by

    return change


@pytest.fixture
def base(queue_run):
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model", "dataset_version__dataset").get()


@pytest.fixture
def pair(base, trainer, tmp_path):
    """(head of main, head of side): both changed head.weight, one also head.bias, the other hidden.0.weight."""
    ours = tuned(trainer, base, tmp_path / "ours", "main", shifted("head.weight", "head.bias"))
    theirs = tuned(trainer, base, tmp_path / "theirs", "side", shifted("head.weight", "hidden.0.weight", by=-0.05))
    return ours, theirs


def done(asked):
    work(str(asked.pk))
    asked.refresh_from_db()
    return asked


def weights_of(version, folder):
    folder.mkdir()
    store = services.object_store(version.model.organization_id)
    store.fetch(version.tree["model.safetensors"]["sha256"], folder / "w")
    return load_file(folder / "w")


def test_a_merge_takes_what_one_side_changed_averages_the_rest_and_has_two_parents(pair, base, trainer, api, tmp_path):
    ours, theirs = pair
    address = f"/api/v1/models/{base.model_id}/merge"
    answer = api(trainer).post(address, {"theirs": str(theirs.pk)}, format="json")
    assert answer.status_code == 202 and answer.json()["ours"] == str(ours.pk), answer.content
    found = done(Merge.objects.get())
    assert found.state == "succeeded", found.error
    merged = found.output_version
    assert list(merged.parents.order_by("child_edges__position")) == [ours, theirs] and merged.number == 4
    assert Ref.objects.get(model=base.model, kind="branch", name="main").version == merged
    assert found.result["tensors"]["merged"] == 1 and found.result["tensors"]["taken"] == 2
    old, left, right, new = (
        weights_of(each, tmp_path / f"w{number}") for number, each in enumerate((base, ours, theirs, merged))
    )
    assert torch.equal(new["head.bias"], left["head.bias"])
    assert torch.equal(new["hidden.0.weight"], right["hidden.0.weight"])
    assert torch.allclose(new["head.weight"], old["head.weight"], atol=1e-6)
    assert set(found.result["metrics"]) == {"ours", "theirs", "merged"}
    assert merged.metrics == found.result["metrics"]["merged"] and 0 <= merged.metrics["accuracy"] <= 1
    detail = api(trainer).get(f"/api/v1/merges/{found.pk}").json()
    assert detail["output_version"] == str(merged.pk) and detail["state"] == "succeeded"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_version_that_predicts(pair, trainer, method):
    ours, theirs = pair
    asked = merges.request_merge(actor=trainer, model=ours.model, theirs=theirs, recipe={"method": method})
    found = done(asked)
    assert found.state == "succeeded", found.error
    assert found.result["metrics"]["merged"]["accuracy"] > 0.3


def test_regmean_weighs_each_parent_by_the_data_that_it_learned_from(pair, base, trainer, tmp_path):
    """Other rows behind one parent make another merge; rows that are gone are replaced by the merge's own."""
    ours, theirs = pair
    folder = tmp_path / "narrow"
    folder.mkdir()
    rows = [{**row, "length": 5.0 + index / 1000} for index, row in enumerate(flower_rows(90))]
    narrow = factories.ready_version(base.dataset_version.dataset, rows, folder, number=2)

    def merged(data, name):
        ModelVersion.objects.filter(pk=theirs.pk).update(dataset_version=data)
        services.move_ref(actor=trainer, model=base.model, kind="branch", name="main", version=ours)
        found = done(merges.request_merge(actor=trainer, model=base.model, theirs=theirs, recipe={"method": "regmean"}))
        assert found.state == "succeeded", found.error
        return weights_of(found.output_version, tmp_path / name)["head.weight"]

    same, other = merged(base.dataset_version, "same"), merged(narrow, "other")
    assert not torch.allclose(same, other)
    DatasetVersion.objects.filter(pk=narrow.pk).update(state="deleted")
    assert torch.equal(merged(narrow, "gone"), same)


def test_task_arithmetic_of_one_branch_with_factor_one_is_that_branch(pair, base, trainer):
    _, theirs = pair
    services.move_ref(actor=trainer, model=base.model, kind="branch", name="main", version=base)
    recipe = {"method": "task-arithmetic", "shares": [1.0, 1.0]}
    found = done(merges.request_merge(actor=trainer, model=base.model, theirs=theirs, recipe=recipe))
    assert found.state == "succeeded", found.error
    assert found.output_version.tree["model.safetensors"] == theirs.tree["model.safetensors"]


def test_conflicts_are_named_before_any_work(pair, base, trainer, api):
    _, theirs = pair
    odd = commit(trainer, base.model, task="regression", parents=[base], branch="odd", signature={
        "inputs": [{"name": "length", "type": "text"}], "output": {"classes": ["a"]}, "target": "width",
    })  # fmt: skip
    address = f"/api/v1/models/{base.model_id}/merge"
    answer = api(trainer).post(address, {"theirs": str(odd.pk)}, format="json")
    assert answer.status_code == 400
    told = " ".join(error["detail"] for error in answer.json()["errors"])
    assert "tasks differ" in told and "targets differ" in told and "inputs differ: colour, length" in told
    assert "classes differ" in told
    for wrong in ({"theirs": str(theirs.pk), "branch": "none"}, {"theirs": str(theirs.pk), "method": "magic"}, {}):
        assert api(trainer).post(address, wrong, format="json").status_code == 400
    with pytest.raises(Conflict, match="part of “main” already"):
        merges.request_merge(actor=trainer, model=base.model, theirs=base)


def test_a_branch_that_moved_on_meanwhile_is_not_overwritten(pair, base, trainer):
    ours, theirs = pair
    asked = merges.request_merge(actor=trainer, model=base.model, theirs=theirs)
    later = commit(trainer, base.model, parents=[ours])
    found = done(asked)
    assert found.state == "failed" and "moved on meanwhile" in found.error["sentence"]
    assert Ref.objects.get(model=base.model, kind="branch", name="main").version == later


def test_other_preprocessing_is_a_conflict_of_the_job(base, queue_run, trainer, organization):
    train(str(queue_run(QUICK | {"seed": 8, "params": {"width": 32}}).pk))
    theirs = ModelVersion.objects.select_related("model").latest("number")
    services.move_ref(actor=trainer, model=base.model, kind="branch", name="main", version=base)
    other = commit(trainer, base.model, parents=[base], branch="other", tree=theirs.tree, signature=theirs.signature)
    found = done(merges.request_merge(actor=trainer, model=base.model, theirs=other))
    assert found.state == "failed" and found.error["code"] == "conflict"
    assert "architecture differs" in found.error["sentence"]


def test_the_page_asks_watches_cancels_and_shows_the_outcome(pair, base, trainer, viewer, stranger, web):
    _, theirs = pair
    page = web(trainer)
    assert "merge-dialog" in page.get(f"/models/{base.model_id}/diff?head={theirs.number}").content.decode()
    wanted = {"theirs": str(theirs.pk), "branch": "main", "method": "slerp"}
    assert web(viewer).post(f"/models/{base.model_id}/merge", wanted).status_code == 403
    answer = page.post(f"/models/{base.model_id}/merge", wanted)
    asked = Merge.objects.get()
    assert answer.url == f"/merges/{asked.pk}/"
    assert "waiting for a worker" in page.get(answer.url).content.decode()
    assert web(stranger).get(answer.url).status_code == 404
    page.post(f"/merges/{asked.pk}/cancel")
    asked.refresh_from_db()
    assert asked.state == "cancelled"
    page.post(f"/models/{base.model_id}/merge", wanted)
    found = done(Merge.objects.get(state="queued"))
    text = web(viewer).get(f"/merges/{found.pk}/").content.decode()
    assert f"v{found.output_version.number}</a>" in text and "accuracy" in text and "taken from it" in text
    refused = page.post(f"/models/{base.model_id}/merge", wanted, follow=True).content.decode()
    assert "part of “main” already" in refused


def test_a_merge_that_lost_its_worker_is_taken_back_and_given_up_in_the_end(organization):
    data = factories.DatasetVersionFactory(dataset__organization=organization, number=1)
    lost = factories.MergeFactory(dataset_version=data)
    past = {"state": "running", "lease_epoch": 1, "lease_expires_at": "2020-01-01T00:00Z"}
    Merge.objects.filter(pk=lost.pk).update(**past)
    assert reconcile_merges()["taken_back"] == 1
    Merge.objects.filter(pk=lost.pk).update(**past, failures=9)
    assert reconcile_merges()["ended"] == 1
    lost.refresh_from_db()
    assert lost.state == "failed" and lost.error["code"] == "worker_lost"
