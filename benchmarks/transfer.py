"""A large file in and out over HTTP, beside `cp` and SHA-256 of the same file, interleaved.

In: a raw body to the running web process, which hashes and keeps it. Out: a file of a model version, hashed again
while it is sent. The web process's memory is sampled all the while.

    python -m benchmarks.transfer [--short]
"""

import contextlib
import hashlib
import http.client
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import psutil

from tests.live import USERNAME

from .measuring import arguments, median, platform, report, settle, spread

LIMIT = 0.5
LIMIT_GROWTH_MB = 100
BLOCK = 1 << 20


class Memory:
    """The most that the resident memory of a process, and with ``forks`` of one of its forks, grows meanwhile."""

    def __init__(self, process: psutil.Process, *, forks: bool = False) -> None:
        self.process = process
        self.forks = forks
        self.grown = 0.0

    @contextlib.contextmanager
    def sampled(self) -> Iterator[None]:
        before, done = self.process.memory_info().rss, threading.Event()

        def sample() -> None:
            while not done.wait(0.02):
                self.grown = max(self.grown, (self._resident() - before) / 1e6)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _resident(self) -> int:
        """Of the largest. Looking for forks walks through all processes, which would slow a sender in this one."""
        largest = self.process.memory_info().rss
        for child in self.process.children() if self.forks else ():
            with contextlib.suppress(psutil.Error):
                largest = max(largest, child.memory_info().rss)
        return largest


def write_table(path: Path, megabytes: int) -> None:
    """Lines of numbers; a part of a megabyte repeated, each time under another number."""
    block = b"".join(b"%d,%d.%d,text\n" % (row, row * 37 % 101, row * 53 % 97) for row in range(50_000))
    with path.open("wb") as out:
        out.write(b"a,b,c\n")
        number = 0
        while out.tell() < megabytes * 1_000_000:
            out.write(b"%d,0.0,block\n" % number + block)
            number += 1


def renew(path: Path, number: int) -> None:
    """Another content of the same size: what the store has already is not written again."""
    with path.open("r+b") as file:
        file.seek(len(b"a,b,c\n0,0.0,"))
        file.write(b"%05d" % number)


def copy_and_hash(source: Path, target: Path) -> float:
    settle()
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with source.open("rb") as content:
        hashlib.file_digest(content, "sha256")
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def upload(client: httpx.Client, source: Path, name: str) -> float:
    """A version of a new dataset."""
    dataset = client.post("/datasets", json={"name": name}).raise_for_status().json()["id"]
    began = time.perf_counter()
    upload_body(client, f"/datasets/{dataset}/versions?filename=large.csv", source, "text/csv")
    return time.perf_counter() - began


def upload_body(client: httpx.Client, address: str, source: Path, kind: str) -> dict[str, Any]:
    """What a file is answered that is sent as it is, by a client that takes little of the processors that it shares
    with the server."""
    headers = {"Content-Type": kind, "Content-Length": str(source.stat().st_size)}
    with source.open("rb") as content, _asked(client, "POST", address, content, headers) as answer:
        told: dict[str, Any] = json.load(answer)
    if answer.status >= 300:
        raise RuntimeError(f"{answer.status}: {told}")
    return told


def download(client: httpx.Client, address: str, size: int) -> float:
    """Into one buffer again and again, by a client like that of `upload_body`."""
    buffer, received = bytearray(BLOCK), 0
    began = time.perf_counter()
    with _asked(client, "GET", address) as answer:
        while count := answer.readinto(buffer):
            received += count
    seconds = time.perf_counter() - began
    if (answer.status, received) != (200, size):
        raise RuntimeError(f"{answer.status}: {received} bytes of {size}")
    return seconds


@contextlib.contextmanager
def _asked(
    client: httpx.Client, method: str, address: str, body: BinaryIO | None = None, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    where = client.base_url
    connection = http.client.HTTPConnection(where.host, where.port or 80, timeout=600, blocksize=BLOCK)
    authorization = {"Authorization": client.headers["Authorization"]}
    try:
        connection.request(method, where.path.rstrip("/") + address, body, authorization | (headers or {}))
        yield connection.getresponse()
    finally:
        connection.close()


def model_file(source: Path) -> str:
    """The address of the file in a version of a model, committed as the worker would."""
    from dlplatform.accounts.models import User
    from dlplatform.accounts.organizations import default_for
    from registry import services

    actor = User.objects.get(username=USERNAME)
    organization: Any = default_for(actor)
    model = services.create_model(actor=actor, organization=organization, name="large")
    stored = services.object_store(organization.pk).put_file(source)
    version = services.commit_version(
        actor=actor, model=model, tree={"weights.bin": {"sha256": stored.sha256, "size": stored.size}},
        task="classification", signature={}, metrics={}, lineage={}, message="a large file",
    )  # fmt: skip
    return f"/model-versions/{version.pk}/files/weights.bin"


def main() -> None:
    short = arguments(__doc__).short
    megabytes, repetitions = (100, 3) if short else (500, 5)
    with platform() as running, running.client() as client, tempfile.TemporaryDirectory(dir=running.home) as name:
        source = Path(name) / "large.csv"
        write_table(source, megabytes)
        size = source.stat().st_size
        address = model_file(source)
        web = running.processes("web")[0]
        for worker in running.processes("worker"):
            worker.suspend()  # what was sent stays queued: its ingestion would disturb the next measurement
        memory = {"in": Memory(web), "out": Memory(web)}
        taken: dict[str, list[float]] = {"in": [], "out": [], "bare": []}
        for repetition in range(repetitions + 1):
            renew(source, repetition)
            bare = copy_and_hash(source, Path(name) / "copy")
            settle()
            with memory["in"].sampled():
                inward = upload(client, source, f"large {repetition}")
            settle()
            with memory["out"].sampled():
                outward = download(client, address, size)
            if repetition:
                for kind, seconds in (("bare", bare), ("in", inward), ("out", outward)):
                    taken[kind].append(seconds)
    for kind in ("in", "out"):
        ratios = [one / other for one, other in zip(taken["bare"], taken[kind], strict=True)]
        report(
            "transfer", f"{megabytes} MB {kind}", repetitions=repetitions,
            megabytes_per_second=median([size / 1e6 / seconds for seconds in taken[kind]], 0),
            copy_and_hash_megabytes_per_second=median([size / 1e6 / seconds for seconds in taken["bare"]], 0),
            ratio=median(ratios), spread=spread(ratios), web_grew_megabytes=round(memory[kind].grown),
            limit=f"ratio {LIMIT}, growth {LIMIT_GROWTH_MB} MB",
            passes=median(ratios) >= LIMIT and memory[kind].grown < LIMIT_GROWTH_MB,
        )  # fmt: skip


if __name__ == "__main__":
    main()
