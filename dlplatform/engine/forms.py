"""What a network may be made into on this machine, so that it answers the same and faster: a file of its own, kept in a cache.

The child process that makes it (`compile_network`) knows what to make by the name of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from dlplatform.engine import graphs
from dlplatform.engine.compiled import CompiledNetwork, CompiledRunner
from dlplatform.engine.errors import EngineError
from dlplatform.engine.likeness import answers_as
from dlplatform.engine.network import RowNetwork
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import GraphRunner, Runner, TorchRunner
from dlplatform.engine.runtime import Runtime, runtime_of

GRAPH_BYTES: Final = 100 << 20  # of weights; a graph holds them again, and larger networks gain nothing by it


@dataclass(frozen=True)
class Form:
    """``suffix``: of its file. ``loaded`` gives what answers from a file. ``program``: whose version it depends on, besides torch.
    ``needs_compiler``: one for C++."""

    suffix: str
    loaded: Callable[[Path, RowNetwork], Runner]
    program: str = ""
    needs_compiler: bool = False

    @property
    def depends_on(self) -> list[str]:
        """What its file depends on besides what every form does."""
        return [self.program, _version(self.program)] if self.program else []

    def opened(self, path: Path, network: RowNetwork) -> Runner:
        """What answers from a file: warm, and found to answer as the network itself does. Raises EngineError."""
        try:
            runner = self.loaded(path, network)
            same = answers_as(runner, network)
        except Exception as error:  # of the system's loader, torch or onnxruntime, whose errors have no common name
            raise EngineError(
                "not_compiled", "What was compiled cannot be opened.", detail=f"{type(error).__name__}: {error}"[:2000]
            ) from error
        if not same:
            raise EngineError("compiled_differs", "The compiled network does not answer as the network itself does.")
        return runner


@cache
def _version(program: str) -> str:
    return version(program)


LIBRARY: Final = Form(
    ".so", lambda path, network: CompiledRunner(CompiledNetwork(path), network.shape), needs_compiler=True
)
GRAPH: Final = Form(".onnx", lambda path, _network: GraphRunner(graphs.opened(path)), program="onnxruntime")


def gains_by_graph(predictor: Predictor, weights: int) -> bool:
    """Whether it is a network of this platform that torch runs operation by operation in full precision, which takes longer than
    what it computes where it is small. ``weights``: their bytes.

    Adapters share the weights of their base, a perceptron has a shorter way (`runners.PerceptronRunner`), and how a version was
    optimised is somebody's choice.
    """
    network: Any = predictor.network
    return (
        type(network) is RowNetwork
        and type(predictor.run) is TorchRunner
        and predictor.whole
        and runtime_of(predictor.description) == Runtime()
        and not (network.shape.transformer or network.shape.image_transformer)
        and weights <= GRAPH_BYTES
    )
