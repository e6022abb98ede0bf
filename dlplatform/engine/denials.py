"""Exceptions of code that a user wrote, as named failures: its own mistakes, limits it met, what a sandbox denies."""

from __future__ import annotations

import errno
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dlplatform.engine.errors import EngineError

FOLDER: Final = "/job"  # of the run, as its own code sees it
FORBIDDEN: Final = (
    "A sandbox has no network, no files but those of its run and of installed libraries, no other processes, and no "
    "secrets; it writes only to /job and to a /tmp of its own. The data of the run are in run.data."
)
_DENIED: Final = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}
_FULL: Final = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
MOST_DETAIL: Final = 8_000


def guarded(what: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call code of a user's. Raises EngineError for its exceptions, with the line."""
    try:
        return work(*arguments, **named)
    except EngineError:
        raise
    except Exception as error:
        raise failure_of(what, error) from error


def failure_of(what: str, error: BaseException) -> EngineError:
    """An exception of a user's code as a named failure. ``what`` was being done is the subject of a sentence."""
    detail = "".join(traceback.format_exception(error))[-MOST_DETAIL:]
    where = f"{what}{_line(error)}"
    said = f"{type(error).__name__}: {error}"[:400]
    if _lacks_memory(error):
        return EngineError("memory_limit", f"{where} needs more memory than the run may use.", detail=detail)
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL:
        return EngineError("disk_limit", f"{where} writes more than the run may write.", detail=detail)
    if number == errno.EAGAIN or "can't start new thread" in said:
        return EngineError("process_limit", f"{where} starts more processes than the run may have.", detail=detail)
    if _is_denied(error):
        return EngineError("not_permitted", f"{where} met what the sandbox forbids. {said}", FORBIDDEN, detail)
    return EngineError("code_error", f"{where} failed. {said}", detail=detail)


def _line(error: BaseException) -> str:
    """Where in the user's own files."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/code/" in frame.filename]
    return f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}," if frames else ""


def _lacks_memory(error: BaseException) -> bool:
    """Python's, the accelerator's and the CPU allocator's ways of saying so."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error) or getattr(error, "errno", None) == errno.ENOMEM


def _is_denied(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return True
    if not isinstance(error, OSError):
        return False
    return error.errno in _DENIED or (error.errno in (errno.ENOENT, errno.ECONNREFUSED) and _elsewhere(error.filename))


def _elsewhere(path: object) -> bool:
    """Whether a path that is not there lies outside the run; a socket that is not there tells no path."""
    return path is None or (isinstance(path, str) and path.startswith("/") and not path.startswith(f"{FOLDER}/"))
