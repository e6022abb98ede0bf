"""Networks as torch.export traced them: written, and opened again. Run only where they were made.

The file is an archive of JSON and raw weights that torch turns into a program: whoever opens one trusts who wrote it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.errors import PackageError
from dlplatform.engine.runtime import PROGRAM, Runtime

MAXIMUM_BYTES: Final = 16 << 30
MOST_ROWS: Final = 1 << 20


def traced(network: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The file of a network's `program`. Raises what that does."""
    content = io.BytesIO()
    torch.export.save(program(network, example), content)
    return content.getvalue()


def program(network: nn.Module, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """A network whose inputs all begin with the rows, traced for any number of them. Raises whatever torch cannot trace with."""
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    with torch.no_grad():
        return torch.export.export(network, example, dynamic_shapes=(tuple({0: rows} for _ in example),))


def check(path: Path, runtime: Runtime) -> None:
    """Raises PackageError for a file that is not the one that was checked when the package was made."""
    if path.stat().st_size > MAXIMUM_BYTES:
        raise PackageError(f"{PROGRAM} is larger than {MAXIMUM_BYTES >> 30} GB.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != runtime.sha256:
        raise PackageError(f"{PROGRAM} is not the file that was checked when the package was made.")


def opened(path: Path) -> Any:
    """The module of a checked program. Raises PackageError."""
    try:
        return torch.export.load(path).module()
    except Exception as error:  # of many classes, from archives to operators
        raise PackageError(f"torch cannot open {PROGRAM}: {error}"[:500]) from error
