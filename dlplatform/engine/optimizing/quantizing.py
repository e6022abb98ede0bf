"""Graphs whose matrices are 8-bit numbers, by onnxruntime's own quantisation.

Only products and convolutions are quantised: what normalises the inputs is a handful of operations whose rounding would
cost more than it saves.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from dlplatform.engine.errors import EngineError
from dlplatform.engine.preprocessing import Inputs

PRODUCTS: Final = ["MatMul", "Gemm"]
CALIBRATION_BATCH: Final = 32


def quantized(model: Any, precision: str, rows: Inputs) -> Any:
    """The graph (onnx's ModelProto) with int8 matrices. ``precision``: int8-dynamic scales what flows through it as it
    comes; int8-static by what flows when it answers the calibration ``rows``. Raises EngineError ``not_exportable``.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, ready, after = (Path(folder) / name for name in ("before.onnx", "ready.onnx", "after.onnx"))
        before.write_bytes(model.SerializeToString())
        try:
            quant_pre_process(before, ready, skip_symbolic_shape=True)
            (_dynamic if precision == "int8-dynamic" else _static)(ready, after, model, rows)
        except Exception as error:  # what the library cannot quantise, it tells by errors of many classes
            raise EngineError(
                "not_exportable", "The graph cannot be quantised by onnxruntime.", "Choose another pass.",
                detail=f"{type(error).__name__}: {error}"[:2000],
            ) from error  # fmt: skip
        return _with_used_sets(onnx.load(str(after)))


def _with_used_sets(model: Any) -> Any:
    """Without the sets of operators that onnxruntime names while the graph uses none of them."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _dynamic(ready: Path, after: Path, model: Any, _rows: Inputs) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        ready, after, per_channel=_all_plain(model), reduce_range=True, weight_type=QuantType.QInt8,
        op_types_to_quantize=PRODUCTS,
    )  # fmt: skip


def _static(ready: Path, after: Path, model: Any, rows: Inputs) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        ready, after, _reader(rows, [each.name for each in model.graph.input]), quant_format=QuantFormat.QDQ,
        per_channel=_all_plain(model), reduce_range=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=[*PRODUCTS, "Conv"],
    )  # fmt: skip


def _reader(rows: Inputs, names: list[str]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            count = len(rows.numbers)
            self.parts = iter(
                {name: np.ascontiguousarray(getattr(rows, name)[first : first + CALIBRATION_BATCH]) for name in names}
                for first in range(0, count, CALIBRATION_BATCH)
            )

        def get_next(self) -> Any:
            return next(self.parts, None)

    return Reader()


def _all_plain(model: Any) -> bool:
    """Whether every matrix has two axes: onnxruntime cannot multiply stacks of matrices with a scale for each channel."""
    sizes = {each.name: len(each.dims) for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    return all(sizes.get(name, 2) == 2 for node in products for name in node.input[1:2])


@contextmanager
def _quiet() -> Iterator[None]:
    """The library gives advice on the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
