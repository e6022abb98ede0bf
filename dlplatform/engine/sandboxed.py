"""``python -m dlplatform.engine.sandboxed JOBDIR``: a run with code of a user's own, inside its sandbox.

An architecture trains in the engine's ordinary loop, or is tried out there. A script is the run itself: it gets ``run`` from ``dlp_run``.
"""

from __future__ import annotations

import faulthandler
import io
import runpy
import signal
import sys
import types
from pathlib import Path
from typing import Any, Final

from dlplatform.engine.denials import failure_of
from dlplatform.engine.errors import EngineError
from dlplatform.engine.job import CODE, SPEC, STACKS
from dlplatform.engine.scripting import ScriptRun, read_raw
from dlplatform.engine.wheels import make_importable

ARCHITECTURE: Final = "model.py"
FINISHED, FAILED, INTERRUPTED = 0, 1, 75
LONGEST_LINE: Final = 4_000


def main() -> int:
    """0 when there is a whole output, 1 after a ``failed`` event, 75 when it was asked to stop and can go on later."""
    folder = Path(sys.argv[1])
    spec = read_raw(folder, SPEC)
    if spec.get("trial"):
        from dlplatform.engine.trial import try_out

        return try_out(folder)
    if spec["entry"] == ARCHITECTURE:
        from dlplatform.engine.run import run_job

        return run_job(folder)
    return run_script(folder, spec)


class _Lines(io.TextIOBase):
    """Standard output and errors of a script: whole lines become lines of the log."""

    def __init__(self, run: ScriptRun, level: str) -> None:
        self._run, self._level, self._part = run, level, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            if line.strip():
                self._run.say(line[:LONGEST_LINE], self._level)
        if len(self._part) > LONGEST_LINE:
            self.flush()
        return len(text)

    def flush(self) -> None:
        part, self._part = self._part, ""
        if part.strip():
            self._run.say(part[:LONGEST_LINE], self._level)


def run_script(folder: Path, spec: dict[str, Any]) -> int:
    """Run ``code/<entry>`` as a program."""
    run = ScriptRun(folder, spec)
    signal.signal(signal.SIGTERM, lambda *_: setattr(run, "stop_requested", True))
    module = types.ModuleType("dlp_run")
    module.run = run  # type: ignore[attr-defined]
    sys.modules["dlp_run"] = module
    sys.argv = [str(folder / CODE / spec["entry"])]
    sys.stdout, sys.stderr = _Lines(run, "info"), _Lines(run, "warning")
    try:
        with (folder / STACKS).open("a") as stacks:
            faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
            run.started(_environment())
            return _run_guarded(run, folder / CODE, spec["entry"])
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        run.close()


def _environment() -> dict[str, Any]:
    import platform

    return {"versions": {"python": platform.python_version()}, "platform": sys.platform}


def _run_guarded(run: ScriptRun, code: Path, entry: str) -> int:
    """The boundary: however a script ends, the run says how."""
    try:
        make_importable(code)
        sys.path.insert(0, str(code))
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            error = EngineError("code_error", f"{entry} left with the exit code {str(leaving.code)[:200]}.")
            return _failed(run, error)
    except EngineError as error:
        return _failed(run, error)
    except BaseException as error:
        if run.should_stop and isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        return _failed(run, failure_of(entry, error))
    if run.should_stop and not run.has_output:
        run.say("The run was asked to stop; it can be resumed.", "warning")
        return INTERRUPTED
    if not run.has_output:
        return _failed(run, EngineError(
            "code_error", f"{entry} ended without an output.",
            "Call run.save(module), or write safetensors and JSON files into run.output.",
        ))  # fmt: skip
    run.finished()
    return FINISHED


def _failed(run: ScriptRun, error: EngineError) -> int:
    if error.detail:
        run.say(error.detail, "error")
    run.failed(error.payload())
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
