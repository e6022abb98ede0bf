"""How a package is to be run: by torch, with weights kept in so many bits, compiled, or as a traced program, or as a graph by
onnxruntime.

Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from dlplatform.engine.description import MODEL
from dlplatform.engine.errors import PackageError

GRAPH: Final = "model.onnx"
TORCH: Final = "torch"
ONNX: Final = "onnx"
EXPORTED: Final = "exported"
COMPILED: Final = "compiled"
PROGRAM: Final = "model.pt2"
FILES: Final = {ONNX: GRAPH, EXPORTED: PROGRAM}  # of networks that are written down whole, not as weights
FLOAT32: Final = "float32"
KEPT: Final = (FLOAT32, "bfloat16", "int8")  # what a file of weights may hold its matrices as
PRECISIONS: Final = (FLOAT32, "int8-dynamic", "int8-static")  # what a graph computes in
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Runtime:
    """``kind``: torch, onnx, exported (what torch.export traced), or compiled (for the machine that it runs on; the package holds
    the weights). ``weights``: how a package for torch keeps its matrices. Of a graph: its ``precision``, ``opset``, the SHA-256
    of its file and the version of the ``program`` that it was checked with; of a traced program the last two."""

    kind: str = TORCH
    weights: str = FLOAT32
    precision: str = ""
    opset: int = 0
    sha256: str = ""
    program: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without what says nothing."""
        return {name: value for name, value in asdict(self).items() if value}


def runtime_of(description: dict[str, Any]) -> Runtime:
    """What a package's description says about it; torch where it says nothing. Raises PackageError."""
    raw = description.get("runtime")
    if raw is None:
        return Runtime()
    try:
        runtime = Runtime(**raw)
    except TypeError as error:
        raise PackageError(f"{MODEL} does not say how the network is to be run.") from error
    if not (_is_torch(runtime) or _is_graph(runtime) or _is_program(runtime) or runtime == Runtime(COMPILED)):
        raise PackageError(f"{MODEL} describes a way to run the network that does not exist here.")
    return runtime


def _is_torch(runtime: Runtime) -> bool:
    return runtime.kind == TORCH and runtime.weights in KEPT and not runtime.sha256


def _is_graph(runtime: Runtime) -> bool:
    known = runtime.kind == ONNX and runtime.precision in PRECISIONS and isinstance(runtime.opset, int)
    return known and _is_named(runtime)


def _is_program(runtime: Runtime) -> bool:
    return runtime.kind == EXPORTED and not runtime.precision and runtime.weights == FLOAT32 and _is_named(runtime)


def _is_named(runtime: Runtime) -> bool:
    return isinstance(runtime.sha256, str) and bool(_SHA256.fullmatch(runtime.sha256))
