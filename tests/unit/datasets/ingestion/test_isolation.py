"""The child may crash, hang or starve: the parent answers a rejected result, and nothing survives."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from datasets.ingestion import isolation
from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits
from datasets.ingestion.memory import lacks_memory
from datasets.ingestion.result import IngestResult
from datasets.ingestion.rows import read_rows
from tests.fixtures.messy_files import MESSY_FILES

CSV = b"a,b\n" + b"".join(b"%d,word %d\n" % (number, number % 5) for number in range(1000))

HANGS = 600  # seconds of an impostor that nobody stops


def _run(tmp_path: Path, content: bytes = CSV, **options: object) -> IngestResult:
    source = tmp_path / "upload"
    source.write_bytes(content)
    settings: dict[str, object] = {"filename": "d.csv", "content_type": "text/csv", "limits": Limits()}
    return ingest_in_child(source, tmp_path / "parts", **(settings | options))  # type: ignore[arg-type]


def _big(tmp_path: Path, megabytes: int = 60) -> Path:
    source = tmp_path / "big"
    line = b",".join(b"%d.%d" % (number, number * 7919) for number in range(20)) + b"\n"
    header = b",".join(b"c%d" % number for number in range(20)) + b"\n"
    source.write_bytes(header + line * ((megabytes << 20) // len(line)))
    return source


def _impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Put another program where the child's package is looked for."""
    package = tmp_path / "impostor" / "datasets" / "ingestion"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"import json, os, resource, signal, sys, time\nsys.stdin.read()\n{body}\n")
    monkeypatch.setattr(isolation, "PROJECT_ROOT", tmp_path / "impostor")


def _code(result: IngestResult) -> str:
    assert result.state == "rejected" and not result.parts
    assert len(result.problems[0].detail) > 30
    return result.problems[0].code


def test_a_good_file_comes_back_with_progress_and_parts(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    result = _run(tmp_path, on_progress=lambda fraction, phase: heard.append((fraction, phase)))
    assert result.state == "ready" and result.rows == 1000 and result.bytes == len(CSV)
    assert [fraction for fraction, _ in heard] == sorted(fraction for fraction, _ in heard)
    assert heard[-1] == (1.0, "done")
    assert read_rows([tmp_path / "parts" / part.path for part in result.parts], 999, 5) == [{"a": 999, "b": "word 4"}]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [part.path for part in result.parts]


def test_a_rejected_file_leaves_nothing_behind(tmp_path: Path) -> None:
    assert _code(_run(tmp_path, b"a,b\n1,2\n3\n")) == "ragged_row"
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "decoder_crashed"),
        ("os.abort()", "decoder_crashed"),
        ("sys.exit(3)", "decoder_crashed"),
        ("sys.exit(0)", "decoder_crashed"),
        ("print('no json', flush=True)", "decoder_crashed"),
        ("print('{\"result\": {}}', flush=True)", "decoder_crashed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory_limit"),
        ("sys.stderr.write('terminate called: std::bad_alloc\\n'); os.abort()", "memory_limit"),
        ("sys.stderr.write('Bad status: Out of memory: malloc of size 9 failed\\n'); os.abort()", "memory_limit"),
        ("sys.stderr.write('ImportError: libx.so: failed to map segment\\n'); sys.exit(1)", "memory_limit"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "time_limit"),
        (
            "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGXFSZ)",
            "output_limit",
        ),
    ],
)
def test_a_dying_child_is_a_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, code: str) -> None:
    _impostor(monkeypatch, tmp_path, body)
    assert _code(_run(tmp_path)) == code


def test_a_part_outside_the_destination_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = IngestResult(state="ready", rows=1).to_dict()
    good["parts"] = [{"path": "../upload", "rows": 1, "bytes": len(CSV), "sha256": ""}]
    _impostor(monkeypatch, tmp_path, f"print(json.dumps({{'result': {good!r}}}), flush=True)")
    assert _code(_run(tmp_path)) == "decoder_crashed"
    assert (tmp_path / "upload").exists()


def test_a_hanging_child_and_its_children_are_killed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"child = os.fork()\nopen(f'pid-{{os.getpid()}}', 'w').close()\ntime.sleep({HANGS})"
    _impostor(monkeypatch, tmp_path, body)
    begun = time.monotonic()
    assert _code(_run(tmp_path, limits=Limits(wall_seconds=1))) == "time_limit"
    assert time.monotonic() - begun < HANGS / 2
    pids = [int(path.name.removeprefix("pid-")) for path in (tmp_path / "parts").glob("pid-*")]
    assert len(pids) == 2
    assert _all_end(pids)


def _all_end(pids: list[int]) -> bool:
    """The kill is sent when the ingestion answers; a busy kernel takes a moment to carry it out."""
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stop_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _impostor(monkeypatch, tmp_path, f"time.sleep({HANGS})")
    begun = time.monotonic()
    assert _code(_run(tmp_path, should_stop=lambda: time.monotonic() > begun + 0.3)) == "stopped"
    assert time.monotonic() - begun < HANGS / 2


@pytest.mark.parametrize("megabytes", [330, 450, 520])
def test_memory_is_limited(tmp_path: Path, megabytes: int) -> None:
    """Wherever the limit strikes: while libraries load, while rows are parsed, while columns are made."""
    result = ingest_in_child(
        _big(tmp_path),
        tmp_path / "parts",
        filename="d.csv",
        content_type="text/csv",
        limits=Limits(memory_bytes=megabytes << 20),
    )
    assert _code(result) == "memory_limit"
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much address space a process had")
@pytest.mark.parametrize(("share", "code"), [(0.9, "memory_limit"), (0.3, "decoder_crashed")])
def test_a_crash_close_to_the_limit_is_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, code: str
) -> None:
    """A refused allocation that a library overlooks is a segmentation fault without a word."""
    limits = Limits()
    taken = int(share * limits.memory_bytes)
    body = f"import mmap\nheld = mmap.mmap(-1, {taken})\ntime.sleep(1.5)\nos.kill(os.getpid(), signal.SIGSEGV)"
    _impostor(monkeypatch, tmp_path, body)
    assert _code(_run(tmp_path, limits=limits)) == code


def test_what_an_exception_quotes_from_the_file_is_no_lack_of_memory() -> None:
    assert not lacks_memory(ValueError("row 3: “out of memory”"))
    assert lacks_memory(RuntimeError("can't start new thread"))
    assert lacks_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    wrapped = ValueError("the file could not be read")
    wrapped.__cause__ = MemoryError()
    assert lacks_memory(wrapped)


def test_processor_time_is_limited(tmp_path: Path) -> None:
    result = ingest_in_child(
        _big(tmp_path, 150),
        tmp_path / "parts",
        filename="d.csv",
        content_type="",
        limits=Limits(cpu_seconds=1),
    )
    assert _code(result) == "time_limit"
    assert list((tmp_path / "parts").iterdir()) == []


def test_the_child_gets_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "do not pass on")
    _impostor(monkeypatch, tmp_path, "open('environment', 'w').write(json.dumps(dict(os.environ)))")
    _run(tmp_path)
    assert "do not pass on" not in (tmp_path / "parts" / "environment").read_text()


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A worker that is killed leaves no decoder behind."""
    parent = os.fork()
    if parent == 0:
        os.setsid()
        ingest_in_child(_big(tmp_path, 150), tmp_path / "parts", filename="d.csv", content_type="", limits=Limits())
        os._exit(0)
    children = _wait_for_children(parent)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone and not alive


def _wait_for_children(parent: int) -> list[psutil.Process]:
    for _ in range(5000):
        found = psutil.Process(parent).children()
        if found and found[0].cpu_times().user > 0.3:
            return found
        time.sleep(0.02)
    raise AssertionError("the child did not start")


@pytest.mark.slow
@pytest.mark.parametrize("messy", MESSY_FILES, ids=[messy.name for messy in MESSY_FILES])
def test_every_messy_file_ends_alike_in_the_child(messy: object, tmp_path: Path) -> None:
    result = _run(tmp_path, messy.content(), filename=messy.filename)  # type: ignore[attr-defined]
    assert result.state == messy.state  # type: ignore[attr-defined]
    assert set(messy.codes) <= {problem.code for problem in result.problems}  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_in_parquet_never_raise(seed: int, tmp_path: Path) -> None:
    import random

    good = bytearray(next(messy for messy in MESSY_FILES if messy.name == "parquet NaN and infinity").content())
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 30)):
        good[chance.randrange(4, len(good) - 8)] = chance.randrange(256)
    result = _run(tmp_path, bytes(good), filename="d.parquet")
    assert result.state == "ready" or len(result.problems[0].detail) > 30
