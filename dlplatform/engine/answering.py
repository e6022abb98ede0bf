"""``python -m dlplatform.engine.answering PACKAGE``: predictions of a model with code of its own, inside its sandbox.

A line of JSON in, ``{"instances": [...]}``, a line out: ``{"predictions": [...]}``, ``{"refused": {...}}`` for rows that do
not fit, or ``{"error": "..."}``. The first line out, ``{"ready": true}`` or an error, says whether the model could be
loaded.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

import orjson

from dlplatform.engine.errors import EngineError, PackageError, PredictionInputError
from dlplatform.engine.predict import Predictor


def main() -> int:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the code prints must not mix with the answers
    try:
        predictor = Predictor(Path(sys.argv[1]), sandboxed=True)
    except (PackageError, EngineError) as error:
        _say(answers, {"error": str(error)})
        return 1
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        _say(answers, answer(predictor, line))
    return 0


def answer(predictor: Predictor, line: bytes) -> dict[str, Any]:
    """The answer to one line."""
    try:
        return {"predictions": predictor.predict(orjson.loads(line)["instances"])}
    except PredictionInputError as error:
        return {"refused": {"row": error.row, "column": error.column, "code": error.code, "message": error.message}}
    except EngineError as error:
        return {"error": error.sentence}


def _say(answers: IO[bytes], told: dict[str, Any]) -> None:
    answers.write(orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS) + b"\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
