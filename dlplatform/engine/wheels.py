"""Packages that somebody's code brings along: ``wheels/*.whl`` beside it, made importable. Run only in a sandbox.

A wheel is a zip whose top is what goes onto the path of imports (PyPA, "Binary distribution format"). It is unpacked
because extension modules, and packages that open files of their own, cannot be imported out of a zip.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Final

from dlplatform.engine.errors import EngineError

FOLDER: Final = "wheels"
ENDING: Final = ".whl"
_unpacked: dict[Path, str] = {}


def make_importable(code: Path) -> None:
    """Put the wheels of a folder of code onto the path of imports, before what is installed. Raises EngineError."""
    for wheel in sorted((code / FOLDER).glob(f"*{ENDING}")):
        if wheel not in _unpacked:
            _unpacked[wheel] = _unpack(wheel)
            sys.path.insert(0, _unpacked[wheel])


def _unpack(wheel: Path) -> str:
    target = tempfile.mkdtemp(prefix="wheel-")
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)  # leaves out what leads out of the folder
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        shutil.rmtree(target, ignore_errors=True)
        fix = "Build it again with pip wheel, and send the code once more."
        raise EngineError(
            "code_error", f"{FOLDER}/{wheel.name} is no wheel that can be read: {error}"[:400], fix
        ) from error
    return target
