"""Networks that were compiled for this machine: called through the C interface that AOTInductor gives to what it compiles.

torch's own binding for Python keeps Python's lock for as long as the network computes: measured, nobody else in the process
moved during the two seconds of 4,096 images. Called from here, the lock is free meanwhile. The functions are those of
torch/csrc/inductor/aoti_runtime/interface.h and aoti_torch/c/shim.h, which torch keeps stable for such callers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch

from dlplatform.engine.graphs import input_types
from dlplatform.engine.network import NetworkShape
from dlplatform.engine.objective import DEEP_EVALUATION_ROWS, EVALUATION_ROWS
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runners import Array

CALLERS: Final = 3  # threads that may compute at the same time: the event loop, the queue of answers, that of shadows
AXES: Final = 3  # of answers: groups, rows, outputs
_INTEGERS: Final = {axes: c_int64 * axes for axes in range(1, 9)}
_HELD, _FREE = ctypes.PyDLL, ctypes.CDLL  # calls that keep Python's lock, for they are over at once; calls that free it


@cache
def _torch() -> Any:
    library: Any = _HELD(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    library.aoti_torch_create_tensor_from_blob.argtypes = [
        c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32, c_int32, c_int32, c_void_p,
    ]  # fmt: skip
    for name in ("aoti_torch_get_data_ptr", "aoti_torch_get_sizes", "aoti_torch_get_strides"):
        getattr(library, name).argtypes = [c_void_p, c_void_p]
    library.aoti_torch_delete_tensor_object.argtypes = [c_void_p]
    library.types = {
        np.dtype(np.float32): library.aoti_torch_dtype_float32(),
        np.dtype(np.int32): library.aoti_torch_dtype_int32(),
        np.dtype(np.uint8): library.aoti_torch_dtype_uint8(),
    }
    library.cpu = library.aoti_torch_device_type_cpu()
    return library


def _checked(status: int) -> None:
    """torch has written to the log what went wrong; there is only a number here."""
    if status:
        raise RuntimeError("the compiled network failed")


class CompiledNetwork:
    """A shared library on disk, opened. Safe to share between threads; at most ``CALLERS`` compute at once, others wait."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, RuntimeError for what cannot be opened."""
        self._library = _loaded(path)
        self._run = self._library.AOTInductorModelContainerRun
        self._run.argtypes = [c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p]
        self._delete = self._library.AOTInductorModelContainerDelete
        self._delete.argtypes = [c_void_p]
        make = self._library.AOTInductorModelContainerCreateWithDevice
        make.argtypes = [c_void_p, c_size_t, c_char_p, c_char_p]
        self._handle = c_void_p()
        _checked(make(byref(self._handle), CALLERS, b"cpu", None))

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """The one output, float64, of arrays that lie in memory row after row."""
        given = (c_void_p * len(inputs))()
        for place, array in enumerate(inputs):
            given[place] = _tensor(array)
        answer = (c_void_p * 1)()
        _checked(self._run(self._handle, given, len(inputs), answer, 1, None, None))  # it takes what is given
        try:
            return _copied(answer[0])
        finally:
            _torch().aoti_torch_delete_tensor_object(answer[0])

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._delete(self._handle)


def _loaded(path: Path) -> Any:
    """By a name of its own: for a name that was opened before, the system gives what the file was then."""
    once = path.with_suffix(f".{uuid4().hex}.opening")
    os.link(path, once)
    try:
        return _FREE(str(once))
    finally:
        once.unlink()


def _tensor(array: Array) -> int | None:
    """A tensor over the memory of an array that lies row after row, and outlives it."""
    axes, library, made = array.ndim, _torch(), c_void_p()
    sizes, strides = _INTEGERS[axes](*array.shape), _INTEGERS[axes](*(each // array.itemsize for each in array.strides))
    _checked(
        library.aoti_torch_create_tensor_from_blob(
            array.__array_interface__["data"][0], axes, byref(sizes), byref(strides), 0, library.types[array.dtype],
            library.cpu, 0, byref(made),
        )
    )  # fmt: skip
    return made.value


def _copied(tensor: int | None) -> Array:
    """float64 of a tensor (G, n, K) of float32, however it lies in memory."""
    library, data, sizes, strides = _torch(), c_void_p(), c_void_p(), c_void_p()
    _checked(
        library.aoti_torch_get_data_ptr(tensor, byref(data))
        or library.aoti_torch_get_sizes(tensor, byref(sizes))
        or library.aoti_torch_get_strides(tensor, byref(strides))
    )
    shape = tuple(_INTEGERS[AXES].from_address(sizes.value or 0))
    steps = tuple(_INTEGERS[AXES].from_address(strides.value or 0))
    if 0 in shape:
        return np.zeros(shape)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    flat = np.empty(span, np.float32)
    ctypes.memmove(flat.__array_interface__["data"][0], data.value or 0, 4 * span)
    return np.ndarray(shape, np.float32, flat, strides=[4 * step for step in steps]).astype(np.float64)


class CompiledRunner:
    """A compiled network whose inputs are those of `graphs.input_types`."""

    def __init__(self, network: CompiledNetwork, shape: NetworkShape) -> None:
        self.network = network
        self.shape = shape
        self.names = list(input_types(shape.inputs))
        self.most = DEEP_EVALUATION_ROWS if {"images", "sequences"} & set(self.names) else EVALUATION_ROWS

    def __call__(self, inputs: Inputs) -> Array:
        given = [np.ascontiguousarray(getattr(inputs, name)) for name in self.names]
        rows = len(inputs.numbers)
        if not rows:
            return np.zeros((self.shape.groups, 0, self.shape.outputs))
        if rows <= self.most:
            return self.network(given)
        parts = [
            self.network([np.ascontiguousarray(each[first : first + self.most]) for each in given])
            for first in range(0, rows, self.most)
        ]
        return np.concatenate(parts, axis=1)
