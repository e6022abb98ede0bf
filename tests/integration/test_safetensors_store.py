"""Safetensors in the store: byte for byte out again, what is shared is stored once, what changed as its difference."""

import hashlib
import random
import struct
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from dlplatform.objects.ancestors import MOST_DEPTH
from dlplatform.objects.models import StoredObject
from dlplatform.objects.safetensors_layout import SLICE
from dlplatform.objects.store import CorruptObject, MissingObject, ObjectStore
from registry import services
from tests.unit.objects.test_safetensors_layout import STRANGE, file_of

pytestmark = pytest.mark.django_db(transaction=True)

GENERATOR = np.random.default_rng(11)
NAN_PAYLOADS = np.frombuffer(
    struct.pack("<6I", 0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 1, 0x7F800000), np.float32
)


@pytest.fixture
def store():
    return ObjectStore("models", uuid4())


def weights(*shape, dtype="float32"):
    return (GENERATOR.standard_normal(shape) * 0.02).astype(dtype)


def network():
    return {
        "embedding": weights(2000, 64),
        "layer.weight": weights(300, 300),
        "layer.bias": weights(300),
        "half": weights(200, 200, dtype="float16"),
        "double": weights(50, 50, dtype="float64"),
        "quantized": GENERATOR.integers(-8, 8, (300, 300)).astype(np.int8),
        "special": np.tile(NAN_PAYLOADS, 5000),
        "steps": np.array(7, np.int64),
        "nothing": np.zeros((0, 3), np.float32),
        "zeros": np.zeros((400, 400), np.float32),
    }


def put(store, tmp_path, content, like=None):
    path = tmp_path / f"{uuid4()}.safetensors"
    path.write_bytes(content)
    return store.put_file(path, like=like)


def stored_bytes(store):
    return sum(StoredObject.objects.filter(organization=store.scope.organization).values_list("stored_size", flat=True))


def rows(store, **wanted):
    return StoredObject.objects.filter(organization=store.scope.organization, **wanted)


def assert_comes_back(store, tmp_path, stored, content):
    assert stored.sha256 == hashlib.sha256(content).hexdigest() and stored.size == len(content)
    assert store.read(stored.sha256) == content
    store.fetch(stored.sha256, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_a_file_comes_back_byte_for_byte(store, tmp_path):
    content = save(network(), metadata={"format": "pt"})
    stored = put(store, tmp_path, content)
    assert_comes_back(store, tmp_path, stored, content)
    assert rows(store, codec="composite").get().sha256 == stored.sha256
    assert set(rows(store).values_list("codec", flat=True)) >= {"composite", "grouped", "zstd"}
    assert stored_bytes(store) < 0.9 * len(content)


def test_bfloat16_comes_back(store, tmp_path):
    data = (weights(100_000).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    content = file_of({"w": {"dtype": "BF16", "shape": [1000, 100], "data_offsets": [0, 200_000]}}, data)
    assert_comes_back(store, tmp_path, put(store, tmp_path, content), content)
    assert stored_bytes(store) < 0.75 * len(content)


def test_what_two_files_share_is_stored_once(store, tmp_path):
    first = network()
    put(store, tmp_path, save(first))
    before = stored_bytes(store)
    head = first | {"layer.bias": weights(300)}
    content = save(head)
    stored = put(store, tmp_path, content)
    assert stored_bytes(store) - before < 3000
    assert_comes_back(store, tmp_path, stored, content)


def test_the_same_file_again_costs_nothing(store, tmp_path):
    content = save(network())
    first = put(store, tmp_path, content)
    count, files = rows(store).count(), sorted(Path(store.storage.location).rglob("*"))
    assert put(store, tmp_path, content, like=first.sha256) == first
    assert (rows(store).count(), sorted(Path(store.storage.location).rglob("*"))) == (count, files)


def fine_tuned(tensors, step=1e-5):
    return {
        name: (values + weights(*values.shape) * step / 0.02).astype(values.dtype)
        if values.dtype.kind == "f"
        else values
        for name, values in tensors.items()
    }


def test_what_changed_a_little_is_stored_as_its_difference(store, tmp_path):
    tensors = {"a": weights(500, 500), "b": weights(500, 500), "special": np.tile(NAN_PAYLOADS, 5000)}
    first = put(store, tmp_path, save(tensors))
    before = stored_bytes(store)
    changed = fine_tuned(tensors, 1e-6)
    changed["special"] = tensors["special"].copy()
    changed["special"].view(np.uint32)[::7] ^= 0x80000001
    content = save(changed)
    stored = put(store, tmp_path, content, like=first.sha256)
    assert rows(store, codec="delta").count() >= 2
    assert stored_bytes(store) - before < 0.5 * len(content)
    assert_comes_back(store, tmp_path, stored, content)


def test_a_chain_of_differences_stays_short(store, tmp_path):
    tensors = {"a": weights(300, 300)}
    like, kept = None, {}
    for _ in range(MOST_DEPTH * 2 + 3):
        content = save(tensors)
        like = put(store, tmp_path, content, like=like).sha256
        kept[like] = content
        tensors = fine_tuned(tensors, 1e-6)
    assert max(rows(store).values_list("depth", flat=True)) == MOST_DEPTH
    for sha256, content in kept.items():
        assert store.read(sha256) == content


@pytest.mark.parametrize("like", ["a" * 64, "../x", "opaque", "other"])
def test_a_bad_ancestor_does_no_harm(store, tmp_path, like):
    names = {
        "opaque": put(store, tmp_path, b"text " * 100).sha256,
        "other": put(store, tmp_path, save({"x": weights(3)})).sha256,
    }
    content = save({"a": weights(300, 300)})
    stored = put(store, tmp_path, content, like=names.get(like, like))
    assert_comes_back(store, tmp_path, stored, content)


def test_no_difference_is_made_with_a_damaged_ancestor(store, tmp_path):
    tensors = {"a": weights(500, 500)}
    first = put(store, tmp_path, save(tensors))
    row = rows(store, codec="grouped").get()
    path = Path(store.storage.path(row.file))
    damaged = bytearray(path.read_bytes())
    damaged[row.offset + 1000] ^= 1
    path.write_bytes(damaged)
    content = save(fine_tuned(tensors, 1e-6))
    stored = put(store, tmp_path, content, like=first.sha256)
    assert store.read(stored.sha256) == content and not rows(store, codec="delta")
    with pytest.raises(CorruptObject):
        store.read(first.sha256)
    with pytest.raises(CorruptObject), store.open(first.sha256) as source:
        source.read()


def test_a_large_tensor_costs_only_its_changed_slices(store, tmp_path):
    table = GENERATOR.integers(0, 2**32, (3 * SLICE // 4000, 1000), dtype=np.uint32)  # noise: no codec helps
    put(store, tmp_path, save({"table": table}))
    before = stored_bytes(store)
    table[0] = 5
    content = save({"table": table})
    stored = put(store, tmp_path, content)
    assert SLICE * 0.9 < stored_bytes(store) - before < SLICE * 1.1
    assert_comes_back(store, tmp_path, stored, content)


def test_any_range_is_read(store, tmp_path):
    content = save({"a": weights(500, 500), "b": weights(2 * SLICE // 4)})
    stored = put(store, tmp_path, content)
    generator = random.Random(1)
    with store.open(stored.sha256) as source:
        for _ in range(60):
            start, length = generator.randrange(len(content) + 10), generator.randrange(300_000)
            source.seek(start)
            assert source.read(length) == content[start : start + length]
        assert source.seek(-5, 2) == len(content) - 5 and source.read() == content[-5:]
        assert source.tell() == len(content)


def test_a_file_in_a_file_is_stored_once(store, tmp_path):
    """A tensor whose bytes are a safetensors file that the store has as a whole: parts are leaves all the same."""
    inner = save({"a": weights(100, 100)})
    put(store, tmp_path, inner)
    outer = save({"file": np.frombuffer(inner, np.uint8)})
    stored = put(store, tmp_path, outer)
    assert_comes_back(store, tmp_path, stored, outer)
    parts = {sha256 for row in rows(store, codec="composite") for sha256, _ in row.parts}
    assert not parts & set(rows(store, codec="composite").values_list("sha256", flat=True))


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_is_stored_in_one_piece(store, tmp_path, name):
    content = STRANGE[name]
    assert_comes_back(store, tmp_path, put(store, tmp_path, content), content)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200).map(lambda data: struct.pack("<Q", max(len(data) - 3, 0)) + data))
def test_any_bytes_can_be_put(store, tmp_path, content):
    assert store.read(put(store, tmp_path, content).sha256) == content


def test_small_objects_share_a_pack(store, tmp_path):
    content = save({f"bias.{number}": weights(50) for number in range(100)})
    stored = put(store, tmp_path, content)
    files = [path for path in Path(store.storage.location).rglob("*") if path.is_file()]
    assert len(files) == 1 and rows(store).count() == 102
    assert_comes_back(store, tmp_path, stored, content)


def test_text_is_cut_and_compressed_and_noise_is_not(store, tmp_path):
    text = b"".join(b"line %d of a long text\n" % number for number in range(700_000))
    noise = GENERATOR.bytes(len(text))
    for content, expected in ((text, "composite"), (noise, "raw")):
        stored = put(store, tmp_path, content)
        assert_comes_back(store, tmp_path, stored, content)
        assert rows(store, sha256=stored.sha256).get().codec == expected
    assert store.local_path(stored.sha256).read_bytes() == noise


def test_a_file_that_changes_while_it_is_stored_is_refused(store, tmp_path, monkeypatch):
    path = tmp_path / "changing.safetensors"
    path.write_bytes(save({"a": weights(200, 200)}))
    monkeypatch.setattr(
        "dlplatform.objects.writing.Batch._ancestor",
        lambda *_: path.write_bytes(save({"a": weights(200, 200)})) and None,
    )
    with pytest.raises(OSError, match="while it was being stored"):
        store.put_file(path)
    assert not rows(store)


def test_files_of_the_time_before_the_index_are_read(store):
    content = b"from before"
    sha256 = hashlib.sha256(content).hexdigest()
    path = Path(store.storage.path(f"{store.prefix}/{sha256[:2]}/{sha256}"))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert store.exists(sha256) and store.read(sha256) == content
    assert store.local_path(sha256) == path
    path.write_bytes(b"something else")
    with pytest.raises(CorruptObject):
        store.read(sha256)


def test_a_file_that_vanished_is_missing(store, tmp_path):
    stored = put(store, tmp_path, GENERATOR.bytes(1000))
    Path(store.storage.path(rows(store).get().file)).unlink()
    with pytest.raises(MissingObject):
        store.read(stored.sha256)


# --- in the registry ----------------------------------------------------------------------------------


def test_the_next_version_of_a_model_is_stored_as_its_difference(organization, trainer, tmp_path):
    model = services.create_model(actor=trainer, organization=organization, name="net")
    tensors = {"a": weights(300, 300), "b": weights(300, 300)}
    for step in range(3):
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(save(tensors))
        (folder / "README.md").write_text(f"version {step}")
        like = services.earlier_files(organization=organization, name="net")
        tree = services.store_directory(organization.pk, folder, like=like)
        services.commit_version(
            actor=trainer, model=model, tree=tree, task="classification", signature={}, metrics={}, lineage={},
            message="",
        )  # fmt: skip
        tensors = fine_tuned(tensors, 1e-6)
    store = services.object_store(organization.pk)
    assert rows(store, codec="delta").count() == 4
    for version in model.versions.all():
        folder = tmp_path / str(version.number - 1)
        for path, entry in version.tree.items():
            assert store.read(entry["sha256"]) == (folder / path).read_bytes()


def test_a_path_that_the_head_lacks_is_looked_for_further_back(organization, trainer):
    model = services.create_model(actor=trainer, organization=organization, name="net")
    for tree in ({"model.safetensors": "1", "old": "2"}, {"model.safetensors": "3"}, {"adapter.safetensors": "4"}):
        services.commit_version(
            actor=trainer, model=model, tree={path: {"sha256": value, "size": 1} for path, value in tree.items()},
            task="classification", signature={}, metrics={}, lineage={}, message="",
        )  # fmt: skip
    found = services.earlier_files(organization=organization, name="net")
    assert found == {"model.safetensors": "3", "old": "2", "adapter.safetensors": "4"}
    assert services.earlier_files(organization=organization, name="other") == {}
