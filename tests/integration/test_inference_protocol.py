"""The Open Inference Protocol V2 with the stock Triton client: binary, JSON, texts, compression, versions, errors."""

import json
import struct
from base64 import b64encode
from hashlib import sha256

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from registry.serving import prediction_log, services
from registry.serving.models import PredictionRecord
from registry.serving.server import tensors
from registry.serving.server.http import BODY_LIMIT
from registry.serving.services import Wanted
from tests import factories
from tests.fixtures.inference import eventually
from tests.integration.answering import TREE, key_of

pytestmark = pytest.mark.django_db(transaction=True)
SIGNATURE = {
    "inputs": [
        {"name": "length", "type": "number", "nullable": True},
        {"name": "count", "type": "integer", "nullable": True},
        {"name": "wet", "type": "boolean", "nullable": True},
        {"name": "colour", "type": "category", "nullable": True},
        {"name": "picture", "type": "image", "nullable": True},
    ],
    "output": {"kind": "class", "classes": ["a", "b"]},
}


DTYPES = {"FP16": np.float16, "FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_}


def classes(rows):
    """Answers that tell what the model got."""
    shares = [0.25 if row.get("length") is None else 0.75 for row in rows]
    return [{"label": "ab"[one > 0.5], "probabilities": {"a": 1 - one, "b": one}} for one in shares]


@pytest.fixture
def versions(organization, stubs):
    model = factories.RegisteredModelFactory(organization=organization, name="flowers")
    made = [
        factories.ModelVersionFactory(model=model, number=number, tree=TREE, signature=SIGNATURE) for number in (1, 2)
    ]
    stubs.answers |= {version.pk: classes for version in made}
    return made


@pytest.fixture
def deployment(maintainer, organization, versions):
    wanted = [Wanted(versions[0].pk, 1.0), Wanted(versions[1].pk, 0.0)]
    return services.create_deployment(actor=maintainer, organization=organization, name="screening", variants=wanted)


@pytest.fixture
def client(inference, deployment):
    made = triton.InferenceServerClient(inference.address.removeprefix("http://"))
    yield made
    made.close()


@pytest.fixture
def auth(viewer):
    return {"Authorization": f"Bearer {key_of(viewer)}"}


def tensor(name, values, kind, binary=True):
    array = np.array(values, dtype=object if kind == "BYTES" else None)
    array = array if kind == "BYTES" else array.astype(DTYPES[kind])
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_the_stock_client_asks_by_columns(client, auth, deployment, versions, stubs, binary):
    assert client.is_server_live() and eventually(client.is_server_ready)
    told = client.get_server_metadata()["extensions"]
    assert told == ["binary_tensor_data", "parameters", "model_repository", "statistics"]
    eventually(lambda: client.is_model_ready("screening", headers=dict(auth)))
    eventually(lambda: client.is_model_ready("screening", "2", headers=dict(auth)))
    assert not client.is_model_ready("other", headers=dict(auth))
    told = client.get_model_metadata("screening", headers=dict(auth))
    assert told["versions"] == ["1", "2"] and [one["datatype"] for one in told["inputs"]] == [
        "FP64", "INT64", "BOOL", "BYTES", "BYTES",
    ]  # fmt: skip
    assert [one["name"] for one in told["outputs"]] == ["label", "probabilities"]
    inputs = [
        tensor("length", [[1.5], [float("nan")]], "FP32", binary),
        tensor("count", [2**53 + 1, 7], "INT64", binary),
        tensor("wet", [True, False], "BOOL", binary),
        tensor("colour", ["grün", ""], "BYTES", binary),
    ]
    outputs = None if binary else [triton.InferRequestedOutput("label", binary_data=False)]
    answer = client.infer(
        "screening", inputs, outputs=outputs, headers=dict(auth), request_id="7", parameters={"key": "p 1"}
    )
    assert [one.decode() if binary else one for one in answer.as_numpy("label").tolist()] == ["b", "a"]
    assert stubs.asked[-1][1] == [
        {"length": 1.5, "count": 2**53 + 1, "wet": True, "colour": "grün"},
        {"length": None, "count": 7, "wet": False, "colour": ""},
    ]
    head = answer.get_response()
    assert head["id"] == "7" and head["model_version"] == "1"
    if binary:
        np.testing.assert_allclose(answer.as_numpy("probabilities"), [[0.25, 0.75], [0.75, 0.25]])
    else:
        assert answer.as_numpy("probabilities") is None, "it was not asked for"
    prediction_log.buffer.flush()
    record = PredictionRecord.objects.get()
    assert str(record.request_id) == head["parameters"]["request_id"] and record.key == "p 1" and record.propensity == 1


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_a_version_compression_images_and_basic_credentials(inference, client, viewer, versions, stubs, how):
    basic = {"Authorization": "Basic " + b64encode(f"me:{key_of(viewer)}".encode()).decode()}
    answer = client.infer(
        "screening", [tensor("picture", [b"\x89PNG"], "BYTES"), tensor("length", [1.0], "FP16")], model_version="2",
        headers=dict(basic), request_compression_algorithm=how, response_compression_algorithm=how,
    )  # fmt: skip
    assert answer.get_response()["model_version"] == "2" and answer.as_numpy("label").tolist() == [b"b"]
    assert stubs.asked[-1] == (versions[1].pk, [{"picture": b64encode(b"\x89PNG").decode(), "length": 1.0}])
    prediction_log.buffer.flush()
    record = PredictionRecord.objects.get()
    assert record.propensity is None, "it was named, not chosen"
    assert record.instances[0]["picture"] == "object:" + sha256(b"\x89PNG").hexdigest()
    prefixed = triton.InferenceServerClient(inference.address.removeprefix("http://") + "/lab")
    assert prefixed.is_model_ready("screening", headers=dict(basic))
    prefixed.close()


def test_refusals_are_in_the_protocols_words(inference, client, auth, deployment, stranger):
    length = tensor("length", [1.0], "FP32")
    for inputs, name, more, status in (
        ([length], "other", {}, "404"),
        ([length], "screening", {"model_version": "9"}, "404"),
        ([tensor("nothing", [1.0], "FP32")], "screening", {}, "400"),
        ([length, length], "screening", {}, "400"),
        ([length, tensor("wet", [True, False], "BOOL")], "screening", {}, "400"),
        ([tensor("length", [[1.0, 2.0]], "FP32")], "screening", {}, "400"),
        ([tensor("length", ["x"], "BYTES")], "screening", {}, "400"),
        ([tensor("colour", [b"\xff"], "BYTES")], "screening", {}, "400"),
        ([length], "screening", {"outputs": [triton.InferRequestedOutput("nothing")]}, "400"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            client.infer(name, inputs, headers=dict(auth), **more)
        assert refused.value.status() == status, refused.value
    with pytest.raises(InferenceServerException) as refused:
        client.infer("screening", [length])
    assert refused.value.status() == "401"
    foreign = {"Authorization": f"Bearer {key_of(stranger)}"}
    with pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata("screening", headers=dict(foreign))
    assert refused.value.status() == "404"
    for path, body, headers in (
        ("screening/infer", b"{", {}),
        ("screening/infer", b"[]", {}),
        ("screening/infer", b"{}", {"Inference-Header-Content-Length": "9"}),
        ("screening/infer", b"{}", {"Inference-Header-Content-Length": "-1"}),
        ("screening/infer", b"no gzip", {"Content-Encoding": "gzip"}),
        ("screening/infer", b"{}", {"Content-Encoding": "br"}),
    ):
        answer = inference.client.post(f"/v2/models/{path}", content=body, headers=dict(auth) | headers)
        assert answer.status_code == 400 and list(answer.json()) == ["error"], answer.text
    half = {"name": "colour", "shape": [1], "datatype": "BYTES", "data": ["\ud800"]}
    answer = inference.client.post(
        "/v2/models/screening/infer", content=json.dumps({"inputs": [half]}), headers=dict(auth)
    )
    assert answer.status_code == 400 and "colour" in answer.json()["error"], answer.text
    assert inference.client.get("/v2/models/screening/infer", headers=dict(auth)).status_code == 405
    assert inference.client.get("/v2/else", headers=dict(auth)).json() == {"error": "Not found."}


def test_the_repository_and_its_statistics_are_told_to_who_may_ask(
    inference, client, auth, deployment, stranger, stubs
):
    stubs.answers |= {row.version_id: classes for row in deployment.variants.all()}
    told = eventually(
        lambda: [
            found
            for found in [client.get_model_repository_index(headers=dict(auth))]
            if [one["state"] for one in found] == ["READY", "READY"]
        ]
    )[0]
    assert [(one["name"], one["version"]) for one in told] == [("screening", "1"), ("screening", "2")]
    length = tensor("length", [1.0], "FP32")
    for _ in range(3):
        client.infer("screening", [length], headers=dict(auth))
    client.infer("screening", [length], model_version="2", headers=dict(auth))
    with pytest.raises(InferenceServerException):
        client.infer("screening", [tensor("colour", [b"\xff"], "BYTES")], headers=dict(auth))
    for stats in (
        client.get_inference_statistics(headers=dict(auth)),
        client.get_inference_statistics("screening", headers=dict(auth)),
    ):
        counts = {one["version"]: one["inference_stats"]["success"]["count"] for one in stats["model_stats"]}
        assert counts == {"1": 3, "2": 1}
        assert all(one["inference_stats"]["success"]["ns"] > 0 for one in stats["model_stats"])
    only = client.get_inference_statistics("screening", "2", headers=dict(auth))["model_stats"]
    assert [one["version"] for one in only] == ["2"]
    for path, ask in (
        ("repository/index", inference.client.post),
        ("models/stats", inference.client.get),
        ("models/screening/stats", inference.client.get),
        ("models/a%00b/stats", inference.client.get),
    ):
        for slug, statuses in (("a%00b", {400}), ("nowhere", {400}), ("lab", {200, 404})):
            answer = ask(f"/v2/{path}?organization={slug}", headers=dict(auth))
            assert answer.status_code in statuses or ("%00" in path and answer.status_code == 404), answer.text
    big = inference.client.post("/v2/repository/index", content=b"x" * (BODY_LIMIT + 1), headers=dict(auth))
    assert big.status_code == 413
    assert inference.client.post("/v2/repository/index", content=b"{", headers=dict(auth)).status_code == 400
    foreign = {"Authorization": f"Bearer {key_of(stranger)}"}
    assert client.get_model_repository_index(headers=dict(foreign)) == []
    assert client.get_inference_statistics(headers=dict(foreign)) == {"model_stats": []}
    for asked, status in (
        (lambda: client.get_inference_statistics("screening", headers=dict(foreign)), "404"),
        (lambda: client.get_model_repository_index(), "401"),
        (lambda: client.load_model("screening", headers=dict(auth)), "400"),
        (lambda: client.unload_model("screening", headers=dict(auth)), "400"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            asked()
        assert refused.value.status() == status, refused.value


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": "a", "shape": [1], "datatype": "FP9", "data": [1]},
        {"name": "a", "shape": [-1], "datatype": "FP32", "data": [1]},
        {"name": "a", "shape": "x", "datatype": "FP32", "data": [1]},
        {"name": "a", "shape": [2], "datatype": "FP32", "data": [1]},
        {"name": "a", "shape": [1], "datatype": "FP32", "data": ["1"]},
        {"name": "a", "shape": [1], "datatype": "FP32", "data": [True]},
        {"name": "a", "shape": [1], "datatype": "INT64", "data": [1.5]},
        {"name": "a", "shape": [1], "datatype": "BOOL", "data": [2]},
        {"name": "a", "shape": [1], "datatype": "BF16", "data": [1]},
        {"name": "a", "shape": [1], "datatype": "FP32"},
        {"name": "a", "shape": [2], "datatype": "FP32", "data": [[1], 2]},
        {"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 9}},
        {"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 3}},
        {"name": "a", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 3}},
        {"name": "a", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}},
    ],
)
def test_tensors_that_are_none_are_refused(wrong):
    with pytest.raises(tensors.TensorError):
        tensors.values_of(wrong, tensors.BinaryTail(struct.pack("<I", 99) + b"abcd"))


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        ("INT8", [1, 300], "300"),
        ("INT8", [-129, 1], "-129"),
        ("UINT8", [0, -1], "-1"),
        ("UINT64", [2**64], str(2**64)),
        ("INT64", [2**63], str(2**63)),
        ("INT32", [1, 1.5], "1.5"),
        ("INT32", [1, True], "true"),
        ("INT32", [1, None], "null"),
        ("UINT16", ["x" * 50], '"' + "x" * 39 + "…"),
        ("BOOL", [True, 2], "2"),
        ("BOOL", [True, 1.0], "1.0"),
        ("BOOL", [True, "true"], '"true"'),
        ("FP32", [1.5, False], "false"),
        ("BYTES", ["a", 1], "1"),
    ],
)
def test_a_value_that_a_datatype_does_not_have_is_refused_by_name(kind, data, value):
    sent = {"name": "age", "shape": [len(data)], "datatype": kind, "data": data}
    with pytest.raises(tensors.TensorError) as refused:
        tensors.values_of(sent, tensors.BinaryTail(b""))
    assert str(refused.value).startswith(f"The tensor 'age' holds {value}, which is no {kind}")


@pytest.mark.parametrize(
    ("kind", "data", "values"),
    [
        ("INT8", [-128, 127], [-128, 127]),
        ("UINT64", [0, 2**64 - 1], [0, 2**64 - 1]),
        ("BOOL", [True, 0, 1, False], [True, False, True, False]),
        ("FP32", [1, 1.5], [1, 1.5]),
        ("INT8", [], []),
        ("BOOL", [], []),
    ],
)
def test_the_last_values_of_a_datatype_are_taken(kind, data, values):
    sent = {"name": "age", "shape": [len(data)], "datatype": kind, "data": data}
    taken = tensors.values_of(sent, tensors.BinaryTail(b""))[3]
    assert taken == values and [type(one) for one in taken] == [type(one) for one in values]


def test_bytes_of_a_tensor_are_whatever_they_say():
    sent = {"name": "a", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    assert tensors.values_of(sent, tensors.BinaryTail(b"\1\0"))[3] == [True, False]


def test_a_number_beyond_its_datatype_is_answered_by_400(inference, auth, deployment):
    tensor = {"name": "age", "shape": [1, 1], "datatype": "INT8", "data": [300]}
    address = f"{inference.address}/v2/models/screening/infer"
    answer = httpx.post(address, json={"inputs": [tensor]}, headers=auth, trust_env=False)
    assert answer.status_code == 400, answer.text
    assert answer.json() == {"error": "The tensor 'age' holds 300, which is no INT8: -128 to 127."}


def test_numbers_of_all_kinds_and_outputs_come_through_exactly():
    half = np.array([1.5, -2.0], "<f4").view("<u4") >> 16
    sent = {"name": "a", "shape": [2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
    assert tensors.values_of(sent, tensors.BinaryTail(half.astype("<u2").tobytes()))[3] == [1.5, -2.0]
    told, content = tensors.output_of("t", np.array(["ü", ""], object), binary=True)
    assert content == struct.pack("<I", 2) + "ü".encode() + struct.pack("<I", 0)
    assert told["parameters"] == {"binary_data_size": len(content)} and told["shape"] == [2]
    told, _ = tensors.output_of("n", np.array([[1.0, float("nan")]]), binary=False)
    assert json.loads(tensors.encoded(told))["data"][0] == 1.0 and b"NaN" in tensors.encoded(told)
    with pytest.raises(tensors.TensorError):
        tensors.unpacked(tensors.packed(b"\0" * (tensors.MOST_UNPACKED + 1), "gzip")[0], "gzip")
    with pytest.raises(tensors.TensorError):
        tail = tensors.BinaryTail(b"left")
        tail.end()
