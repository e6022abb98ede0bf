"""Graphs for onnxruntime in packages: checked as files that anybody may have made, then opened.

A graph is data, but onnxruntime is a large program in C++ that reads it: what a graph of ours never has (weights in
other files, loops, functions, operators of strangers) is refused before it gets there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from dlplatform.engine.errors import PackageError
from dlplatform.engine.network import NetworkShape
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.runtime import GRAPH, Runtime

ANSWERS: Final = "answers"
MAXIMUM_BYTES: Final = (2 << 30) - 1  # a graph with its weights is one protobuf message
MOST_NODES: Final = 50_000
OPSETS: Final = range(17, 27)
DOMAINS: Final = {"", "ai.onnx", "com.microsoft"}  # the last: operators on int8 that onnxruntime's quantisation adds
_FLOAT, _UINT8, _INT32 = 1, 2, 6  # numbers of types in the format


def input_types(sizes: InputSizes) -> dict[str, tuple[int, tuple[int, ...]]]:
    """{input: (element type, its dimensions behind the batch)} of a graph, -1 for any length; as the fields of `Inputs`."""
    side = sizes.image_size
    found = {
        "numbers": (_FLOAT, (sizes.numbers,)),
        "categories": (_INT32, (len(sizes.vocabularies),)),
        "tokens": (_INT32, (sizes.texts, sizes.tokens)),
        "sequences": (_INT32, (sizes.sequences, sizes.sequence_length)),
        "images": (_UINT8, (sizes.images, sizes.image_channels, side, side)),
    }
    return {name: (kind, rest) for name, (kind, rest) in found.items() if rest[0]}


def check(path: Path, runtime: Runtime, shape: NetworkShape) -> None:
    """Raises PackageError for a graph that is not whole, or is not one of this network."""
    model = _read(path, runtime)
    _check_operators(model, runtime)
    if any(tensor.data_location or len(tensor.external_data) for tensor in _tensors(model.graph)):
        raise PackageError(f"{GRAPH} keeps weights in other files, which are not read.")
    expected = input_types(shape.inputs)
    found = {each.name: _type_of(each) for each in model.graph.input}
    if found != expected:
        raise PackageError(f"The inputs of {GRAPH} are not those of the network that the package describes.")
    outputs = [(each.name, *_type_of(each)) for each in model.graph.output]
    if len(outputs) != 1 or outputs[0][:2] != (ANSWERS, _FLOAT) or outputs[0][2][-1:] != (shape.outputs,):
        raise PackageError(f"{GRAPH} does not answer what the package describes.")


def _read(path: Path, runtime: Runtime) -> Any:
    from onnx import ModelProto

    if path.stat().st_size > MAXIMUM_BYTES:
        raise PackageError(f"{GRAPH} is larger than 2 GB.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != runtime.sha256:
        raise PackageError(f"{GRAPH} is not the file that was checked when the package was made.")
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own errors have no common public name
        raise PackageError(f"{GRAPH} cannot be read.") from error
    return model


def _check_operators(model: Any, runtime: Runtime) -> None:
    """Known sets of operators, and none that holds a graph of its own."""
    sets = {each.domain: each.version for each in model.opset_import}
    if sets.get("", sets.get("ai.onnx")) != runtime.opset or runtime.opset not in OPSETS:
        raise PackageError(f"{GRAPH} does not say which set of operators it uses, or another one than the package.")
    nodes = model.graph.node
    if len(model.functions) or not 0 < len(nodes) <= MOST_NODES or not set(sets) <= DOMAINS:
        raise PackageError(f"{GRAPH} holds more than operators of onnx and onnxruntime.")
    for node in nodes:
        nested = any(each.HasField("g") or len(each.graphs) for each in node.attribute)
        if node.domain not in DOMAINS or nested:
            raise PackageError(f"{GRAPH} holds the operator {node.op_type[:40]!r}, which is not run here.")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _type_of(value: Any) -> tuple[int, tuple[int, ...]]:
    """(element type, dimensions behind the batch; -1 where they have a name)."""
    tensor = value.type.tensor_type
    dimensions = [each.dim_value if each.HasField("dim_value") else -1 for each in tensor.shape.dim]
    return tensor.elem_type, tuple(dimensions[1:])


def opened(path: Path) -> Any:
    """A session of onnxruntime on a checked graph, with as many threads as torch takes. Raises PackageError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Threads that wait for work sleep: others compute on the same machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors are those of a C++ library, of many classes
        raise PackageError(f"onnxruntime cannot open {GRAPH}: {error}"[:500]) from error
