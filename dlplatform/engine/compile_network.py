"""``python -m dlplatform.engine.compile_network PACKAGE TARGET THREADS PARENT``: compile a package's network for this machine, or
make it a graph, as the name of the target says.

A process of its own and of the lowest priority: compiling takes tens of seconds of a core, in which torch's compiler holds
Python's lock. It says what came of it as a line of JSON: nothing, or the code and the sentence of a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import orjson
import torch

from dlplatform.engine import package
from dlplatform.engine.durable import write_atomically
from dlplatform.engine.errors import EngineError
from dlplatform.engine.forms import GRAPH, LIBRARY
from dlplatform.engine.network import RowNetwork
from dlplatform.engine.optimizing.exporting import Answering, example_of, exported
from dlplatform.engine.programs import program

NICE = 19
PR_SET_PDEATHSIG = 1
# Headers that were compiled before would save time when they are used again, which they are not in a folder that is thrown away.
OPTIONS = {"aot_inductor.precompile_headers": False}


def main() -> int:
    """0 when the target is there, else 1."""
    source, target, threads, parent = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    _give_way(parent)
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            make = export_network if target.suffix == GRAPH.suffix else compile_network
            make(source, target)
    except EngineError as error:
        told = {"code": error.code, "sentence": error.sentence, "detail": error.detail}
    except Exception as error:  # of torch's compiler, or of the C++ compiler, of many classes
        told = {
            "code": "not_compiled", "sentence": "The network could not be compiled.",
            "detail": f"{type(error).__name__}: {error}"[-2000:],
        }  # fmt: skip
    else:
        told = {}
    print(orjson.dumps(told).decode())
    return 1 if told else 0


def _give_way(parent: int) -> None:
    """To whoever answers: of the processor, and of the memory when there is too little of it. It does not outlive who asked."""
    os.nice(NICE)
    for weight, value in (
        ("autogroup", str(NICE)),
        ("oom_score_adj", "1000"),
    ):  # Linux may weigh sessions, and this is one
        with contextlib.suppress(OSError):
            Path("/proc/self", weight).write_text(value)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has gone already
        sys.exit(1)


def compile_network(source: Path, target: Path) -> None:
    """Write the shared library of a package's network, whose answers are those of the network. Raises EngineError, PackageError,
    and whatever torch cannot compile with."""
    network = _network_of(source)
    example = example_of(network)
    with torch.no_grad():
        traced = program(Answering(network).eval(), example)
        made = Path(str(torch._inductor.aot_compile(traced.module(), example, options=OPTIONS)))
    if _calls_back(made):
        raise EngineError("not_compiled", "The network has operations that only Python can compute.")
    shutil.copyfile(made, target)
    LIBRARY.opened(target, network)


def export_network(source: Path, target: Path) -> None:
    """Write a package's network as a graph for onnxruntime, whose answers are those of the network. Raises EngineError,
    PackageError."""
    network = _network_of(source)
    write_atomically(target, exported(network).SerializeToString())
    GRAPH.opened(target, network)


def _network_of(source: Path) -> RowNetwork:
    network = package.load(source).network
    if not isinstance(network, RowNetwork):
        raise EngineError("unfit", "Only networks that answer rows are compiled.")
    return network


def _calls_back(library: Path) -> bool:
    """Whether operations are left to an executor of torch's, which whoever calls the library would have to bring along."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"aoti_torch_proxy_executor_call_function") >= 0


if __name__ == "__main__":
    sys.exit(main())
