"""Predictions from a package: load once, answer batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlplatform.engine import package
from dlplatform.engine.errors import EngineError
from dlplatform.engine.image_arrays import Source, source_in
from dlplatform.engine.language import LanguageNetwork
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.request_rows import RequestRows
from dlplatform.engine.runners import Runner, torch_runner, whole_runner
from dlplatform.engine.runtime import COMPILED, runtime_of
from dlplatform.engine.table import Table
from dlplatform.engine.writer import Writer


class Predictor:
    """A loaded model package. Safe to share between threads that only predict.

    ``compiles``: whether the package wants its network compiled for this machine. Until somebody puts what was compiled in the
    place of ``run``, which is one assignment and so disturbs nobody who asks, the network answers as it is.
    """

    compiles = False

    def __init__(self, directory: Path, images: Path | None = None, *, sandboxed: bool = False) -> None:
        """Verify and load a package. ``images``: where tables' images lie, as in a job directory. ``sandboxed``: this
        process is a sandbox, in which code that came with the package may be run.

        Raises PackageError.
        """
        self._source: Source = source_in(images) if images else bytes
        self.directory = Path(directory)
        self.writer: Writer | None = None
        self.network: Any = None
        loaded = self._loaded(Path(directory), sandboxed)
        self.description = loaded.description
        self._preprocessor = loaded.preprocessor
        targets = {self.description.get("target"), *self.description.get("targets", ())}
        self._rows = RequestRows(loaded.preprocessor, targets)

    @property
    def whole(self) -> bool:
        """Whether the package has all weights of a network of rows that this platform builds."""
        return package.is_whole(self.description)

    @property
    def steady(self) -> bool:
        """Whether it is known how long a `light` row takes: of texts nobody knows."""
        return self.writer is None and self._rows.steady

    @property
    def plain(self) -> bool:
        """Of a `steady` one: whether every row is `light`."""
        return self._rows.plain

    def light(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """Of a `steady` one: the rows as `predict` takes them, if none takes longer than `example`; else None."""
        return self._rows.light(instances)

    def example(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Of a `steady` one: a row by which its pace can be measured. ``told``: an example of each column, of images None."""
        return self._rows.example(told)

    def _loaded(self, directory: Path, sandboxed: bool) -> package.Package | package.GraphPackage:
        """The package; sets what answers: ``run``, or ``writer`` for texts."""
        if package.is_graph(directory):
            graph = package.load_graph(directory)
            self.run: Runner = whole_runner(graph.session, graph.description)
            return graph
        loaded = package.load(directory, sandboxed=sandboxed)
        self.network = loaded.network
        if isinstance(loaded.network, LanguageNetwork):
            assert loaded.preprocessor.tokenizer is not None
            self.writer = Writer(loaded.network, loaded.preprocessor.tokenizer)
        else:
            self.compiles = runtime_of(loaded.description).kind == COMPILED
            self.run = torch_runner(loaded.network, loaded.description)
        return loaded

    def read(self, instances: Sequence[Mapping[str, Any]]) -> Inputs:
        """Rows of a request as the network takes them. Raises PredictionInputError."""
        return self._rows.inputs(instances)

    def encode(self, table: Table) -> Inputs:
        """The rows of a typed table as the network takes them. Raises EngineError for images that cannot be read."""
        return self._preprocessor.transform(table, source=self._source)

    def predict(self, instances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One answer for each row: {"label", "probabilities": {label: p}}, {"labels", "probabilities"}, {"value"}
        or {"values": {target: number}}.

        An image is its file's content in base64, or a data URL. A value of None is missing and filled as fitted; a column may be left out when the training data
        had missing values in it. The target column is accepted and ignored. Raises PredictionInputError.
        """
        if not instances:
            return []
        if self.writer is not None:
            return [{"text": "".join(self.writer.stream(row, each))} for row, each in enumerate(instances)]
        return self._answers(self._predicted(self.read(instances)))

    def predict_table(self, table: Table) -> np.ndarray[Any, Any]:
        """(n, K) probabilities, or values in the targets' units, for a typed table. Raises EngineError for images
        that cannot be read, and for models that answer no tables."""
        if self.writer is not None:
            raise EngineError("bad_data", "A language model does not answer tables of rows.")
        return self._predicted(self.encode(table))

    def _predicted(self, inputs: Inputs) -> np.ndarray[Any, Any]:
        groups = self.run(inputs)
        predicted: np.ndarray[Any, Any] = groups[0] if len(groups) == 1 else groups.mean(0)
        output = self.description["output"]
        if output["kind"] in ("number", "numbers"):
            predicted = predicted * np.array(output["unit"]) + np.array(output["offset"])
        return predicted

    def _answers(self, predicted: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        output = self.description["output"]
        if output["kind"] == "number":
            return [{"value": float(value)} for value in predicted[:, 0]]
        classes = output["classes"]
        if output["kind"] == "numbers":
            return [{"values": dict(zip(classes, row.tolist(), strict=True))} for row in predicted]
        if output["kind"] == "labels":
            return [
                {
                    "labels": [name for name, share in zip(classes, row, strict=True) if share >= 0.5],
                    "probabilities": dict(zip(classes, row.tolist(), strict=True)),
                }
                for row in predicted
            ]
        return [
            {
                "label": classes[int(row.argmax())],
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for row in predicted
        ]
