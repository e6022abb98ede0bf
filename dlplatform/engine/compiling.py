"""A folder of networks that were compiled, or made graphs, for this machine, and the one child process at a time that does it.

The folder is a cache: what is missing is compiled again. A file has its name from all that it depends on (weights, shape, torch,
processor, threads), appears whole, and is removed when newer ones need the space. Who compiles holds a lock, so that of several
processes that want the same network one compiles it and the others find it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import torch

from dlplatform.engine.compiler import MISSING, compiler
from dlplatform.engine.description import read_description
from dlplatform.engine.durable import sync_directory, to_json, write_atomically
from dlplatform.engine.errors import EngineError
from dlplatform.engine.forms import LIBRARY, Form
from dlplatform.engine.network import RowNetwork
from dlplatform.engine.package import weights_file
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import Runner

FOLDER: Final = "compiled"  # in the folder of caches
FORMAT: Final = 1  # of what is compiled: another one when the same weights are compiled otherwise
SECONDS: Final = 1800.0  # that compiling may take: whoever answers has the processor first
LIMIT: Final = 2 << 30  # bytes of all networks of one form
LOOK: Final = 0.2
TOLD, FAILED, WORK, LOCK = ".json", ".failed", "work-", "compiling.lock"
HOUSE: Final = Path(__file__).resolve().parents[2]
# What the child gets of the environment: how to find programs and libraries, and nothing secret.
PASSED: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "CXX", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV",
)  # fmt: skip


class Compiler:
    """Compiles packages into a folder of this user alone, or finds there what was compiled before.

    ``seconds``: after so long the child is ended. ``limit``: bytes, beyond which the oldest files go.
    ``waiting`` is called a few times a second meanwhile; what it raises ends the child too. ``form``: what is made of a network;
    all of it is called compiling here.
    """

    def __init__(
        self, folder: Path, seconds: float = SECONDS, limit: int = LIMIT, waiting: Callable[[], None] = lambda: None,
        form: Form = LIBRARY,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.form = form
        self._waiting = waiting
        self._seconds = seconds
        self._limit = limit
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End what is being compiled; whoever waits for it gets an EngineError."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def predictor(self, package: Path) -> Predictor:
        """What answers from a package: compiled if that is how it is to be run. Raises PackageError, EngineError."""
        predictor = Predictor(package)
        if predictor.compiles:
            predictor.run = self.runner(package, predictor.network)
        return predictor

    def runner(self, package: Path, network: RowNetwork) -> Runner:
        """A verified package's network, compiled now or earlier; ``network`` is what it must answer like.

        Raises EngineError: no_compiler, not_compiled, compiled_differs; of a graph also not_exportable.
        """
        try:
            return self._runner(package, network)
        except OSError as error:  # the disk is full, say
            raise EngineError("not_compiled", f"The folder of compiled networks cannot be used: {error}") from error

    def _runner(self, package: Path, network: RowNetwork) -> Runner:
        found = self.found(package, network)
        if found is not None:
            return found
        path = self._path(package)
        self._make(package, path)
        return self.form.opened(path, network)

    def found(self, package: Path, network: RowNetwork) -> Runner | None:
        """What was compiled earlier, if it is good. Raises EngineError, OSError for a folder that cannot be used."""
        _own_folder(self.folder)
        path = self._path(package)
        if path.is_file():
            with contextlib.suppress(EngineError):  # made by other code than this, or damaged
                os.utime(path)
                return self.form.opened(path, network)
            path.unlink(missing_ok=True)
        return None

    def told(self, package: Path) -> dict[str, Any]:
        """{seconds, bytes}: how long compiling took, where that is known, and how large the result is. Raises OSError where there
        is none."""
        path = self._path(package)
        told: dict[str, Any] = {"bytes": path.stat().st_size}
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            told |= orjson.loads(path.with_suffix(TOLD).read_bytes())
        return told

    def _path(self, package: Path) -> Path:
        return self.folder / (name_of(package, torch.get_num_threads(), self.form) + self.form.suffix)

    def _make(self, package: Path, path: Path) -> None:
        began = time.time()
        with self._alone():
            if path.is_file():
                return
            _raise_failed(path.with_suffix(FAILED), began)  # of another process, while this one waited
            try:
                self._compile(package, path)
            except EngineError as error:
                if not self.stopped:
                    with contextlib.suppress(OSError):  # written or not, the reason itself is told
                        write_atomically(path.with_suffix(FAILED), to_json(error.payload()))
                raise
            _tidy(self.folder, path, self._limit)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One compiles at a time on this machine: it takes a core and hundreds of megabytes."""
        with (self.folder / LOCK).open("ab") as lock:
            while not self.stopped:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                self._waiting()
                self._stopped.wait(LOOK)
            self._check_stopped()
            yield

    def _check_stopped(self) -> None:
        self._waiting()
        if self.stopped:
            raise EngineError("not_compiled", "Compiling was stopped.")

    def _compile(self, package: Path, path: Path) -> None:
        """Into a folder beside, and renamed: there is a whole file or none."""
        if self.form.needs_compiler:
            _check_compiler(self.folder)
        began = time.monotonic()
        for left in self.folder.glob(WORK + "*"):  # by somebody who was killed: the lock is ours now
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=WORK, dir=self.folder) as work:
            made = Path(work) / path.name
            self._run_child(package, made)
            made.chmod(0o600)
            with made.open("rb") as file:
                os.fsync(file.fileno())  # a file with holes, after a power cut, would take down whoever runs it
            write_atomically(path.with_suffix(TOLD), to_json({"seconds": round(time.monotonic() - began, 3)}))
            made.replace(path)
        sync_directory(self.folder)

    def _run_child(self, package: Path, target: Path) -> None:
        command = [sys.executable, "-P", "-s", "-m", "dlplatform.engine.compile_network", str(package), str(target)]
        with (target.parent / "errors.txt").open("w+b") as errors:
            child = subprocess.Popen(
                [*command, str(torch.get_num_threads()), str(os.getpid())], env=_environment(target.parent), cwd=target.parent,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
            try:
                answer = self._answer_of(child)
            finally:
                _end_group(child)
            errors.seek(0)
            _raise_told(child, answer, errors.read().decode(errors="replace"))

    def _answer_of(self, child: subprocess.Popen[bytes]) -> bytes:
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                return child.communicate(timeout=LOOK)[0]
            except subprocess.TimeoutExpired:
                self._check_stopped()
                if time.monotonic() > deadline:
                    sentence = f"Compiling took more than {self._seconds:.0f} s, and was ended."
                    raise EngineError("not_compiled", sentence) from None


def name_of(package: Path, threads: int, form: Form = LIBRARY) -> str:
    """The name of what is compiled of a package here: a digest of all that it depends on."""
    description = read_description(package)
    with (package / weights_file(description)).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    told = [FORMAT, weights, description["architecture"], torch.__version__, _processor(), threads, *form.depends_on]
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _processor() -> list[str]:
    """What it can compute with: a library for another one would crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [torch.backends.cpu.get_cpu_capability(), *sorted(features.split())]


def _own_folder(folder: Path) -> None:
    """What is in it is loaded as code: nobody else may write there. Raises EngineError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise EngineError("not_compiled", f"The folder {folder} belongs to somebody else.")
    folder.chmod(0o700)


def _check_compiler(cache: Path) -> None:
    """There is one, and torch does not quote what it tells it. Raises EngineError."""
    if compiler() is None:
        raise EngineError("no_compiler", MISSING)
    for folder in (Path(torch.__file__).parent, cache):
        if any(character.isspace() for character in str(folder)):
            sentence = f"A network cannot be compiled with, or in, a folder that has a space in its name: {folder}."
            raise EngineError("not_compiled", sentence)


def _environment(work: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    caches = {"TMPDIR": str(work), "TORCHINDUCTOR_CACHE_DIR": str(work / "torch"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return passed | caches | {"PYTHONPATH": str(HOUSE), "PYTHONDONTWRITEBYTECODE": "1"}


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """The child with the compiler that it may have started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def _raise_told(child: subprocess.Popen[bytes], answer: bytes, errors: str) -> None:
    """Raises EngineError for what the child says went wrong, or for how it ended."""
    try:
        told = orjson.loads(answer)
    except orjson.JSONDecodeError:
        told = None
    if told == {} and child.returncode == 0:
        return
    if isinstance(told, dict) and "code" in told:
        raise EngineError(told["code"], told["sentence"], detail=told.get("detail", ""))
    if child.returncode == -signal.SIGKILL:
        sentence = "Compiling was killed: most likely there was too little memory."
    else:
        sentence = "The process that compiles ended before it was done."
    raise EngineError("not_compiled", sentence, detail=errors[-2000:])


def _raise_failed(path: Path, since: float) -> None:
    """What another process met after ``since``: it would be met here too."""
    try:
        if path.stat().st_mtime < since:
            return
        told = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return
    raise EngineError(told["code"], told["sentence"], detail=told["detail"])


def _tidy(folder: Path, newest: Path, limit: int) -> None:
    """Remove the networks that were used the longest time ago until all are within the limit; never the newest."""
    for told in folder.glob("*" + FAILED):  # whoever waited has read it by now, or tries himself
        told.unlink(missing_ok=True)
    found = sorted(((each.stat(), each) for each in folder.glob("*" + newest.suffix)), key=lambda one: one[0].st_mtime)
    total = sum(status.st_size for status, _ in found)
    for status, path in found:
        if total <= limit:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            path.with_suffix(TOLD).unlink(missing_ok=True)
            total -= status.st_size
