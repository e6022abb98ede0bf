"""What a worker makes of uploaded files: packages, directories, weights, zips; and what it refuses."""

import io
import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save

from registry import services, uploads
from registry.models import ModelVersion
from tests import factories
from tests.integration.conftest import QUICK
from tests.integration.sending import (
    DIRECTORY,
    MB,
    complete,
    content,
    left_behind,
    send_all,
    version_of,
    weights,
    worked_on,
    zipped,
)
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def model(organization):
    return factories.RegisteredModelFactory(organization=organization, name="sent")


def test_a_package_that_was_trained_here_comes_back_with_all_that_is_known(api, trainer, queue_run, model):
    """Down as files, up again: the same tree, the same signature, and it predicts."""
    from dlplatform.engine.predict import Predictor

    train(str(queue_run(QUICK).pk))
    trained = ModelVersion.objects.get()
    store = services.object_store(trained.model.organization_id)
    files = {path: store.read(entry["sha256"]) for path, entry in trained.tree.items()}
    version = version_of(api, trainer, model, files)
    assert version.tree == trained.tree and version.signature == trained.signature and version.task == trained.task
    assert version.metrics and version.lineage["format"] == "package"
    folder = uploads.incoming_folder(store.storage) / "out"
    for path, entry in version.tree.items():
        store.fetch(entry["sha256"], folder / path)
    answer = Predictor(folder).predict([{"length": 5.0, "width": 3.0, "colour": "red"}])
    assert answer[0]["label"] in "abc"


def test_a_package_with_odd_words_in_it_breaks_no_page(api, web, trainer, queue_run, model):
    train(str(queue_run(QUICK).pk))
    trained = ModelVersion.objects.get()
    store = services.object_store(trained.model.organization_id)
    files = {path: store.read(entry["sha256"]) for path, entry in trained.tree.items()}
    described = json.loads(files.pop("model.json"))
    files.pop("manifest.json", None)
    described |= {"config": [1], "metrics": {"accuracy": "high", "f1": None, "loss": 0.5}, "target": {"a": 1}}
    for column in described["inputs"]:
        column |= {"categories": 5, "example": {"a": [1]}, "minimum": [], "maximum": {}, "nullable": "maybe"}
    described["output"]["odd"] = {"odd": []}
    files["model.json"] = json.dumps(described).encode()
    version = version_of(api, trainer, model, files)
    assert version.metrics == {"loss": 0.5} and version.signature["target"] == ""
    for address in (f"/models/{model.pk}/", f"/model-versions/{version.pk}/", f"/models/{model.pk}/history"):
        assert web(trainer).get(address).status_code == 200, address


def test_a_hugging_face_directory_is_recognised(api, trainer, model):
    version = version_of(api, trainer, model, DIRECTORY)
    assert set(version.tree) == set(DIRECTORY)
    assert version.lineage["format"] == "transformers" and version.lineage["architectures"] == ["TinyForCausalLM"]


@pytest.mark.parametrize("outer", ["", "tiny/"])
def test_a_zip_is_unpacked_with_or_without_a_folder_around_it(api, trainer, model, outer):
    archive = zipped({outer + path: data for path, data in DIRECTORY.items()})
    version = version_of(api, trainer, model, {"tiny.zip": archive})
    assert {path: content(version, path) for path in version.tree} == DIRECTORY


def sharded(tensor="layer.bias", file="b.safetensors"):
    index = {"weight_map": {"layer.weight": "a.safetensors", tensor: file}}
    bias = save({"layer.bias": torch.zeros(8)})
    matrix = save({"layer.weight": torch.ones(2, 2)})
    return {
        "config.json": b"{}", "a.safetensors": matrix, "b.safetensors": bias,
        "model.safetensors.index.json": json.dumps(index).encode(),
    }  # fmt: skip


def test_shards_come_with_their_index(api, trainer, model):
    assert set(version_of(api, trainer, model, sharded()).tree) == set(sharded())


def bomb():
    return zipped({"model.safetensors": bytes(500 * MB)})


def linked():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        member = zipfile.ZipInfo("model.safetensors")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    return out.getvalue()


def pickled_zip():
    return zipped({"config.json": b"{}", "weights.dat": b"\x80\x04\x95" + bytes(range(1, 60))})


HOSTILE = {
    "no weights": ({"README.md": b"hello"}, "no weights"),
    "truncated weights": ({"w.safetensors": weights()[:5000]}, "damaged"),
    "not safetensors": ({"w.safetensors": b"hello there, this is text"}, "not a whole safetensors"),
    "a header beyond the file": ({"w.safetensors": struct.pack("<Q", 10**12) + b"{}"}, "not a whole safetensors"),
    "a pickle under another name": ({"w.safetensors": b"\x80\x04\x95" + bytes(range(1, 60))}, "pickle"),
    "a pickled checkpoint in zip form": ({"w.safetensors": zipped({"archive/data.pkl": b"x"})}, "pickle"),
    "config that is no JSON": ({**DIRECTORY, "config.json": b"{"}, "config.json"),
    "config that is a list": ({**DIRECTORY, "config.json": b"[]"}, "config.json"),
    "a shard that is not there": (sharded(file="c.safetensors"), "c.safetensors"),
    "a tensor that is not there": (sharded(tensor="ghost"), "ghost"),
    "a package without weights": ({"model.json": b"{}"}, "model.safetensors"),
    "a zip of a pickle": ({"a.zip": zipped({"pytorch_model.bin": b"x"})}, "pickle"),
    "a zip with a pickle in disguise": ({"a.zip": pickled_zip()}, "pickle"),
    "a zip that leaves its folder": ({"a.zip": zipped({"../../evil.safetensors": weights(rows=2)})}, "path"),
    "a zip bomb": ({"a.zip": bomb()}, "unpacks"),
    "a zip with a link": ({"a.zip": linked()}, "link"),
    "a truncated zip": ({"a.zip": zipped(DIRECTORY)[:-40]}, "zip"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_model_is_refused_in_words(api, trainer, model, name):
    files, words = HOSTILE[name]
    upload = send_all(api, trainer, model, files)
    complete(api, trainer, upload)
    done = worked_on(upload)
    assert done.state == "failed" and words in done.error["sentence"], done.error
    assert done.error["next_step"]
    assert not ModelVersion.objects.exists() and left_behind() == []
