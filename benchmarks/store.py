"""The object store: what versions cost on disk, and how fast a package goes in and out.

Space beside file-level and fixed 64 KiB chunk deduplication of the same files; speed beside `cp` and SHA-256 of the
same file, interleaved. Every version is read back and compared byte for byte.

    python -m benchmarks.store [--short]
"""

import hashlib
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import numpy as np
import psutil
import torch

from tests.live import Platform

from .lineage import Version, lineage
from .measuring import arguments, median, platform, report, settle, spread
from .transfer import Memory, copy_and_hash, download, upload_body
from .upload_in_parts import followed

LIMIT_TEN = 1.12
LIMITS_LINEAGE = {torch.float32: 0.45, torch.bfloat16: 0.28}
LIMIT_SPEED = 0.6
LIMIT_GROWTH_MB = 100
CHUNK = 64 * 1024


def stored_bytes(organization: UUID) -> int:
    """What the files of an organization take on disk."""
    from django.core.files.storage import storages

    folder = Path(storages["models"].path(organization.hex))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def forget(organization: UUID) -> None:
    from django.core.files.storage import storages

    from dlplatform.objects.models import StoredObject

    shutil.rmtree(storages["models"].path(organization.hex))
    StoredObject.objects.filter(organization=organization).delete()


def write_model(path: Path, tensors: int, side: int, values: Iterator[np.ndarray]) -> None:
    """A safetensors file of square float32 tensors, written one at a time."""
    size = side * side * 4
    header = {
        f"layer.{number}": {"dtype": "F32", "shape": [side, side], "data_offsets": [number * size, (number + 1) * size]}
        for number in range(tensors)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in values:
            out.write(array.astype(np.float32).tobytes())


def normal(seed: int, number: int, side: int = 500) -> np.ndarray:
    return np.random.default_rng([seed, number]).standard_normal(side * side) * 0.02


# --- ten versions -------------------------------------------------------------------------------------


def ten_versions(folder: Path, case: str, megabytes: int) -> None:
    """Ten versions of a model; from each to the next one percent changes: a tensor of a hundred, or values anywhere."""
    from dlplatform.objects.store import ObjectStore

    organization = uuid4()
    store = ObjectStore("models", organization)
    model = np.stack([normal(0, number) for number in range(megabytes)]).astype(np.float32)
    generator = np.random.default_rng(1)
    like, one, names = None, 0, []
    for version in range(10):
        if version and case == "a tensor":
            for number in range(0, megabytes, 100):
                model[(version + number) % megabytes] = normal(version, number)
        elif version:
            chosen = generator.integers(model.size, size=model.size // 100)
            model.reshape(-1)[chosen] += generator.standard_normal(len(chosen)).astype(np.float32) * 1e-3
        path = folder / f"{version}.safetensors"
        write_model(path, megabytes, 500, iter(model))
        like = store.put_file(path, like=like).sha256
        names.append(like)
        one = one or stored_bytes(organization)
    for version, name in enumerate(names):
        _compare(store, name, folder / f"{version}.safetensors")
    raw = sum((folder / f"{version}.safetensors").stat().st_size for version in range(10))
    ratio = stored_bytes(organization) / one
    report(
        "store", f"10 versions of {megabytes} MB, 1 % changes: {case}", stored_megabytes=round(one * ratio / 1e6),
        raw_megabytes=round(raw / 1e6), times_one_version=round(ratio, 3),
        chunks_of_64_kib=round(_chunked([folder / f"{version}.safetensors" for version in range(10)]) / (raw / 10), 3),
        limit=f"{LIMIT_TEN} × one", passes=ratio <= LIMIT_TEN,
    )  # fmt: skip
    forget(organization)


def _compare(store, sha256: str, path: Path) -> None:  # type: ignore[no-untyped-def]
    digest = hashlib.sha256()
    for chunk in store.chunks(sha256):
        digest.update(chunk)
    with path.open("rb") as source:
        if digest.hexdigest() != hashlib.file_digest(source, "sha256").hexdigest():
            raise RuntimeError(f"{path} came back otherwise")


def _chunked(paths: list[Path]) -> int:
    """Bytes of the distinct chunks of 64 KiB."""
    seen: dict[bytes, int] = {}
    for path in paths:
        with path.open("rb") as source:
            while chunk := source.read(CHUNK):
                seen[hashlib.sha256(chunk).digest()] = len(chunk)
    return sum(seen.values())


# --- eleven commits -----------------------------------------------------------------------------------


def eleven_commits(folder: Path, data: str, versions: list[Version], dtype: torch.dtype) -> None:
    """Raw bytes are those of all files of all commits, as a checkout of each would take."""
    from dlplatform.objects.store import ObjectStore

    organization = uuid4()
    store = ObjectStore("models", organization)
    trees: dict[str, dict[str, str]] = {}
    costs: dict[str, float] = {}
    paths: list[Path] = []
    seconds = 0.0
    for version in versions:
        files = version.write(folder / str(dtype) / version.name, dtype)
        like = trees.get(version.parent or "", {})
        before = stored_bytes(organization) if trees else 0
        began = time.perf_counter()
        stored = store.put_files([(path, like.get(name)) for name, path in files.items()])
        seconds += time.perf_counter() - began
        trees[version.name] = {name: one.sha256 for name, one in zip(files, stored, strict=True)}
        raw = sum(path.stat().st_size for path in files.values())
        costs[version.name] = round((stored_bytes(organization) - before) / raw, 3)
        paths += files.values()
        for name, path in files.items():
            _compare(store, trees[version.name][name], path)
    raw = sum(path.stat().st_size for path in paths)
    ratio, limit = stored_bytes(organization) / raw, LIMITS_LINEAGE[dtype]
    whole = {hashlib.sha256(path.read_bytes()).digest(): path.stat().st_size for path in paths}
    report(
        "store", f"11 commits of a ViT on {data}, {str(dtype).removeprefix('torch.')}", raw_megabytes=round(raw / 1e6, 1),
        ratio=round(ratio, 4), file_level=round(sum(whole.values()) / raw, 3), chunks_of_64_kib=round(_chunked(paths) / raw, 3),
        by_commit=costs, megabytes_per_second_in=round(raw / 1e6 / seconds), limit=f"{limit} of raw", passes=ratio <= limit,
    )  # fmt: skip
    forget(organization)


# --- speed --------------------------------------------------------------------------------------------


def in_and_out(folder: Path, megabytes: int, repetitions: int) -> None:
    """A package that the store has not seen, in and out again; an organization of its own each time."""
    from dlplatform.objects.store import ObjectStore

    source = folder / "model.safetensors"
    tensors = megabytes // 4
    write_model(source, tensors, 1000, (normal(0, number, 1000) for number in range(tensors)))
    size = source.stat().st_size
    this = psutil.Process()
    memory = {"in": Memory(this), "out": Memory(this)}
    taken: dict[str, list[float]] = {"in": [], "out": [], "bare": []}
    for repetition in range(repetitions + 1):
        organization = uuid4()
        store = ObjectStore("models", organization)
        bare = copy_and_hash(source, folder / "copy")
        settle()
        with memory["in"].sampled():
            began = time.perf_counter()
            stored = store.put_file(source)
            inward = time.perf_counter() - began
        settle()
        with memory["out"].sampled():
            began = time.perf_counter()
            store.fetch(stored.sha256, folder / "back")
            outward = time.perf_counter() - began
        (folder / "back").unlink()
        forget(organization)
        if repetition:
            for kind, seconds in (("bare", bare), ("in", inward), ("out", outward)):
                taken[kind].append(seconds)
    for kind in ("in", "out"):
        ratios = [one / other for one, other in zip(taken["bare"], taken[kind], strict=True)]
        report(
            "store", f"{megabytes} MB of new weights {kind}", repetitions=repetitions,
            megabytes_per_second=median([size / 1e6 / seconds for seconds in taken[kind]], 0),
            copy_and_hash_megabytes_per_second=median([size / 1e6 / seconds for seconds in taken["bare"]], 0),
            ratio=median(ratios), spread=spread(ratios), grew_megabytes=round(memory[kind].grown),
            limit=f"ratio {LIMIT_SPEED}, growth {LIMIT_GROWTH_MB} MB",
            passes=median(ratios) >= LIMIT_SPEED and memory[kind].grown < LIMIT_GROWTH_MB,
        )  # fmt: skip


def up_and_down(running: Platform, folder: Path, megabytes: int, repetitions: int) -> None:
    """What a person waits for: weights sent in one request until they are durable, the version that a worker makes of
    them, and its weights fetched again."""
    source = folder / "sent.safetensors"
    taken: dict[str, list[float]] = {"sent": [], "version": [], "fetched": [], "bare": []}
    with running.client() as client:
        web = Memory(running.processes("web")[0])
        for repetition in range(repetitions + 1):
            tensors = megabytes // 4
            write_model(source, tensors, 1000, (normal(repetition, number, 1000) for number in range(tensors)))
            size = source.stat().st_size
            model = client.post("/models", json={"name": f"package {repetition}"}).raise_for_status().json()["id"]
            bare = copy_and_hash(source, folder / "copy")
            settle()
            with web.sampled():
                began = time.perf_counter()
                upload = send_model(client, model, source)
                sent = time.perf_counter() - began
                version = followed(client, upload)
                made = time.perf_counter() - began
            settle()
            with web.sampled():
                fetched = download(client, f"/model-versions/{version}/files/model.safetensors", size)
            if repetition:
                for kind, seconds in (("bare", bare), ("sent", sent), ("version", made), ("fetched", fetched)):
                    taken[kind].append(seconds)
    for kind in ("sent", "version", "fetched"):
        ratios = [one / other for one, other in zip(taken["bare"], taken[kind], strict=True)]
        report(
            "store", f"{megabytes} MB package over HTTP: {kind}", repetitions=repetitions,
            megabytes_per_second=median([size / 1e6 / seconds for seconds in taken[kind]], 0),
            copy_and_hash_megabytes_per_second=median([size / 1e6 / seconds for seconds in taken["bare"]], 0),
            ratio=median(ratios), spread=spread(ratios), web_grew_megabytes=round(web.grown),
            limit="none" if kind == "version" else f"ratio {LIMIT_SPEED}, growth {LIMIT_GROWTH_MB} MB",
            passes=kind == "version" or (median(ratios) >= LIMIT_SPEED and web.grown < LIMIT_GROWTH_MB),
        )  # fmt: skip


def send_model(client: httpx.Client, model: str, source: Path) -> str:
    """The upload that a raw body became."""
    answer = upload_body(
        client, f"/models/{model}/versions?filename=model.safetensors", source, "application/octet-stream"
    )
    return str(answer["id"])


def main() -> None:
    short = arguments(__doc__).short
    with platform() as running, tempfile.TemporaryDirectory(dir=running.home) as name:
        up_and_down(running, Path(name), 100 if short else 500, 3 if short else 5)
        in_and_out(Path(name), 100 if short else 500, 3 if short else 5)
        for case in ("a tensor", "values anywhere"):
            ten_versions(Path(name), case, 100)
        data, versions = lineage(100 if short else 300, 40 if short else 120)
        for dtype in LIMITS_LINEAGE:
            eleven_commits(Path(name) / "lineage", data, versions, dtype)


if __name__ == "__main__":
    main()
