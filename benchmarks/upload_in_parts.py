"""A large model uploaded in parts by a sender that is killed ten times, then committed and read back.

The sender is a process of its own and dies by SIGKILL at random moments; its successor asks what is missing and goes
on. Right means: the SHA-256 of what comes out of the registry is that of the file, and no process grew much.

    python -m benchmarks.upload_in_parts [--short]
"""

import hashlib
import multiprocessing
import random
import struct
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import orjson

from tests.live import Platform

from .measuring import arguments, platform, report
from .transfer import Memory

KILLS = 10
LIMIT_GROWTH_MB = 100
TENSOR = 64 * 1024 * 1024
NAME = "model.safetensors"


def write_weights(path: Path, megabytes: int) -> str:
    """Random float32 tensors of 64 MB, which do not shrink; the file's SHA-256."""
    count = max(megabytes * 1_000_000 // TENSOR, 1)
    header = orjson.dumps({
        f"layer.{number}": {"dtype": "F32", "shape": [TENSOR // 4096, 1024], "data_offsets": [number * TENSOR, (number + 1) * TENSOR]}
        for number in range(count)
    })  # fmt: skip
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for block in (struct.pack("<Q", len(header)), header, *(random.randbytes(TENSOR) for _ in range(count))):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def send_missing(running: Platform, source: Path, upload: str) -> None:
    """The sender: every part that has not come yet, one after the other, in a random order."""
    with running.client() as client, source.open("rb") as content:
        told = client.get(f"/uploads/{upload}").raise_for_status().json()
        numbers = [
            number for gap in told["missing"] for first, last in gap["parts"] for number in range(first, last + 1)
        ]
        random.shuffle(numbers)
        for number in numbers:
            content.seek(number * told["part_size"])
            part = content.read(told["part_size"])
            client.put(f"/uploads/{upload}/files/0/parts/{number}", content=part, timeout=120).raise_for_status()


def missing_parts(client: httpx.Client, upload: str) -> int:
    told = client.get(f"/uploads/{upload}").raise_for_status().json()["missing"]
    return sum(last - first + 1 for gap in told for first, last in gap["parts"])


def send_and_kill(running: Platform, client: httpx.Client, source: Path, upload: str) -> int:
    """Ten senders die, the eleventh brings the rest; how many parts had to be sent again at most."""
    context = multiprocessing.get_context("fork")
    total = missing_parts(client, upload)
    for kill in range(KILLS):
        sender = context.Process(target=send_missing, args=(running, source, upload))
        sender.start()
        goal = total - total * (kill + 1) // (KILLS + 1)
        while sender.is_alive() and missing_parts(client, upload) > goal:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.2))
        sender.kill()
        sender.join()
    left = missing_parts(client, upload)
    send_missing(running, source, upload)
    return left


def download_hash(client: httpx.Client, version: str) -> str:
    digest = hashlib.sha256()
    with client.stream("GET", f"/model-versions/{version}/files/{NAME}", timeout=600) as answer:
        for chunk in answer.raise_for_status().iter_raw(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def followed(client: httpx.Client, upload: str) -> str:
    """The version, once a worker has made it."""
    while True:
        told = client.get(f"/uploads/{upload}").raise_for_status().json()
        if told["state"] == "succeeded":
            return str(told["output_version"])
        if told["state"] in ("failed", "cancelled"):
            raise RuntimeError(told["error"])
        time.sleep(0.2)


def main() -> None:
    megabytes = 200 if arguments(__doc__).short else 5_000
    with platform() as running, running.client() as client, tempfile.TemporaryDirectory(dir=running.home) as folder:
        source = Path(folder) / NAME
        sha256 = write_weights(source, megabytes)
        model = client.post("/models", json={"name": "large"}).raise_for_status().json()["id"]
        body = {"files": [{"path": NAME, "size": source.stat().st_size}]}
        upload = client.post(f"/models/{model}/uploads", json=body).raise_for_status().json()["id"]
        watched = {"web": running.processes("web"), "worker": running.processes("worker")}
        memory = {
            name: [Memory(process, forks=name == "worker") for process in found] for name, found in watched.items()
        }
        began = time.perf_counter()
        with ExitStack() as stack:
            for one in (each for group in memory.values() for each in group):
                stack.enter_context(one.sampled())
            left = send_and_kill(running, client, source, upload)
            sent = time.perf_counter() - began
            client.post(f"/uploads/{upload}/complete", json={"sha256": {NAME: sha256}}).raise_for_status()
            version = followed(client, upload)
            committed = time.perf_counter() - began - sent
            same = download_hash(client, version) == sha256
        grown = {name: round(max(one.grown for one in group)) for name, group in memory.items()}
        report(
            "upload_in_parts", f"{megabytes} MB, sender killed {KILLS} times", size=source.stat().st_size,
            seconds_sending=round(sent, 1), seconds_committing=round(committed, 1), parts_left_after_last_kill=left,
            right_hash=same, grew_megabytes=grown, limit=f"right hash, growth {LIMIT_GROWTH_MB} MB",
            passes=same and max(grown.values()) < LIMIT_GROWTH_MB,
        )  # fmt: skip


if __name__ == "__main__":
    main()
