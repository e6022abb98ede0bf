"""The model of `benchmarks.serve_peers` as `mlflow models serve` takes it. Apart, as mlflow imports this file by itself."""

from pathlib import Path
from typing import Any

import mlflow.pyfunc

from benchmarks.serve_peers import answer, network, read


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Rows of a data frame → class and probabilities of each."""

    def load_context(self, context: Any) -> None:
        self.network = network()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[dict[str, Any]]:
        return answer(self.network, [read(row) for row in model_input.to_dict("records")])


def save(folder: Path) -> None:
    """Write it down as mlflow's own format."""
    mlflow.pyfunc.save_model(folder, python_model=Model(), pip_requirements=[])
