"""Named failures of the engine. Torch-free: the web process imports this module.

Every failure a user can meet carries a stable code (for programs), a sentence (what happened) and a
next step (what to do about it).
"""

from __future__ import annotations

from typing import Final

# The stable codes, each with the advice given when the place that raises has nothing more specific.
CODES: Final[dict[str, str]] = {
    "out_of_memory": "Lower the batch size or the model's width, or use a machine with more memory.",
    "nan_loss": "Lower the learning rate, or look for extreme values in the target column.",
    "bad_config": "Correct the named settings and start the run again.",
    "bad_data": "Correct the named column or file and start the run again.",
    "target_missing": "Choose a target column that exists and holds values.",
    "single_class": "Choose a target with at least two different values, or add rows of another class.",
    "too_few_rows": "Add rows that have a value in the target column.",
    "checkpoint_corrupt": "Start the run again from the beginning.",
    "code_error": "Correct the code at the line that the log names, upload it again and start a new run.",
    "code_missing": "Upload code that holds the file and the function that the run starts with.",
    "memory_limit": "Use less memory: smaller batches, fewer copies of the data, or a smaller model.",
    "process_limit": "Start fewer processes and threads, and let no process start others without end.",
    "disk_limit": "Write less to the folder of the run: fewer checkpoints, smaller outputs.",
    "not_permitted": "Leave out what the sandbox forbids; the data of the run are in run.data.",
    "interrupted": "Start the engine on the same job directory to go on from the last checkpoint.",
    "unfit": "Choose another pass, or another version.",
    "nothing_to_cut": "Leave fewer units, or choose another pass.",
    "not_exportable": "Choose a pass that keeps the network in PyTorch.",
    "no_compiler": "Install g++ (on Debian: apt-get install g++), or name a C++ compiler in CXX.",
    "not_compiled": "The log names what went wrong; the version answers without.",
    "compiled_differs": "Nothing was kept. Choose another pass.",
    "diverged": "Cut less, or learn on for fewer epochs.",
    "no_group": "Start the run again; its machines are gathered anew.",
    "internal": "Report this failure with the run's log.",
}


class EngineError(Exception):
    """A failure with a stable ``code``, a ``sentence`` for people and the ``next_step`` to take."""

    def __init__(self, code: str, sentence: str, next_step: str = "", detail: str = "") -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.next_step = next_step or CODES[code]
        self.detail = detail

    def payload(self) -> dict[str, str]:
        """The body of a ``failed`` event."""
        return {
            "code": self.code,
            "sentence": self.sentence,
            "next_step": self.next_step,
            "detail": self.detail,
        }


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM); it can be resumed."""


class PackageError(Exception):
    """A model package is damaged, unsafe or of an unknown format. ``str()`` is a sentence."""


class PredictionInputError(Exception):
    """A value sent for prediction does not fit the model's input schema.

    Attributes: ``row`` (0-based position in the request), ``column`` (name, or None when the whole row
    is wrong), ``code`` (stable) and ``message`` (with the fix).
    """

    def __init__(self, row: int, column: str | None, code: str, message: str) -> None:
        super().__init__(message)
        self.row = row
        self.column = column
        self.code = code
        self.message = message
