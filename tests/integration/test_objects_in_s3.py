"""The object store in S3: a real client against moto's server, a real S3 API on this machine."""

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import storages
from django.utils import timezone
from moto.server import ThreadedMotoServer
from safetensors.numpy import save

from datasets import services as datasets
from dlplatform import settings as platform_settings
from dlplatform.objects.collection import collect
from dlplatform.objects.models import StoredObject
from dlplatform.objects.s3 import S3ObjectStorage
from dlplatform.objects.safetensors_layout import SLICE
from dlplatform.objects.store import CorruptObject, MissingObject, ObjectStore
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

GENERATOR = np.random.default_rng(8)


@pytest.fixture(scope="module")
def server():
    running = ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, settings):
    monkeypatch.setenv("AWS_S3_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    name = f"models-{uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    settings.STORAGES = settings.STORAGES | {
        alias: platform_settings._storage("MODEL_STORAGE_PATH", f"s3://{name}/{alias}")
        for alias in ("models", "datasets")
    }
    storages.__init__(settings.STORAGES)
    yield boto3.resource("s3", endpoint_url=server).Bucket(name)


@pytest.fixture
def store(bucket):
    return ObjectStore("models", uuid4())


def weights(*shape):
    return (GENERATOR.standard_normal(shape) * 0.02).astype(np.float32)


def put(store, tmp_path, tensors, like=None):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors))
    return store.put_file(path, like=like).sha256


def test_safetensors_go_in_and_come_out_byte_for_byte(store, bucket, tmp_path):
    base = {"a": weights(600, 600), **{f"bias.{number}": weights(20) for number in range(30)}}
    changed = base | {"a": base["a"] + weights(600, 600) * np.float32(1e-4)}
    first = put(store, tmp_path, base)
    second = put(store, tmp_path, changed, like=first)
    for sha256, tensors in ((first, base), (second, changed)):
        assert store.read(sha256) == save(tensors)
        store.fetch(sha256, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == save(tensors)
    assert StoredObject.objects.filter(codec="delta").count() == 1
    keys = [found.key for found in bucket.objects.all()]
    assert len(keys) == 3 and all(key.startswith(f"models/{store.prefix}/") for key in keys)


def test_large_objects_stream_and_ranges_are_read(store, bucket, tmp_path):
    content = GENERATOR.bytes(SLICE + 1_000_000)
    stored = store.put_stream(iter([content[:5_000_000], content[5_000_000:]]))
    assert store.read(stored.sha256) == content
    with store.open(stored.sha256) as source:
        source.seek(SLICE - 10)
        assert source.read(100) == content[SLICE - 10 : SLICE + 90]
        assert (
            source.seek(-5, 2) == len(content) - 5
            and source.read(100) == content[-5:]
            and source.tell() == len(content)
        )
        assert source.read(1) == b""
    assert store.local_path(stored.sha256) is None


def test_nothing_of_it_is_left_on_this_machine(store, tmp_path):
    def left():
        return set(Path(store.incoming_folder()).glob("tmp*/model*"))

    before = left()
    store.put_bytes(GENERATOR.bytes(100_000))
    assert store.put_bytes(b"") and store.read(store.put_bytes(b"").sha256) == b""
    assert left() <= before


def test_a_damaged_or_missing_file_is_noticed(store, bucket):
    stored = store.put_bytes(GENERATOR.bytes(1000))
    key = f"models/{StoredObject.objects.get().file}"
    bucket.Object(key).put(Body=b"x" * 1000)
    with pytest.raises(CorruptObject):
        store.read(stored.sha256)
    bucket.Object(key).put(Body=b"")
    with pytest.raises(CorruptObject):
        store.read(stored.sha256)
    bucket.Object(key).delete()
    with pytest.raises(MissingObject):
        store.read(stored.sha256)
    with pytest.raises(MissingObject):
        store.read("a" * 64)


def test_an_upload_that_fails_leaves_nothing(store, bucket, tmp_path, monkeypatch):
    saved, original = [], S3ObjectStorage._save

    def failing(self, name, content):
        saved.append(name)
        if len(saved) == 2:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")
        return original(self, name, content)

    monkeypatch.setattr(S3ObjectStorage, "_save", failing)
    with pytest.raises(ClientError):
        put(store, tmp_path, {"a": weights(300, 300), "b": weights(300, 300)})
    assert len(saved) >= 2 and not StoredObject.objects.exists()
    assert list(bucket.objects.all()) == []


def test_garbage_is_collected(store, bucket, tmp_path):
    kept, gone = put(store, tmp_path, {"a": weights(200, 200)}), put(store, tmp_path, {"b": weights(200, 200)})
    for days in (8, 16):
        collect(
            "models", store.scope.organization, [kept], grace=timedelta(days=7),
            now=timezone.now() + timedelta(days=days),
        )  # fmt: skip
    assert store.read(kept) and not store.exists(gone)
    assert {found.key for found in bucket.objects.all()} == {
        f"models/{row.file}" for row in StoredObject.objects.exclude(file="")
    }
    bucket.put_object(Key=f"models/{store.prefix}/ab/stray.0", Body=b"x")
    done = collect("models", store.scope.organization, [kept], grace=timedelta(0))
    assert done.files == 1
    with pytest.raises(FileNotFoundError):
        store.storage.get_modified_time("nothing")


def test_parts_of_datasets_are_fetched_once(bucket, organization, tmp_path):
    dataset = factories.DatasetFactory(organization=organization)
    version = factories.ready_version(dataset, [{"a": number, "b": "x"} for number in range(50)], tmp_path, number=1)
    (path,) = datasets.local_parts(version)
    assert path.exists() and datasets.local_parts(version) == [path]


def test_a_place_without_a_bucket_is_refused():
    with pytest.raises(ImproperlyConfigured, match="names no bucket"):
        platform_settings._storage("MODEL_STORAGE_PATH", "s3:///prefix")
