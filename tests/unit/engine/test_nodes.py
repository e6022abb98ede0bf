"""Several machines on one model: each is an engine of its own with a job directory of its own, met over the network."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlplatform.engine.errors import EngineError
from dlplatform.engine.launch import CRASHED
from dlplatform.engine.nodes import Group, free_port, interface_of, read_group
from tests.unit.engine.conftest import TOGETHER, mixed_columns, read_spool, start_engine
from tests.unit.engine.test_distributed import losses, members_of, until
from tests.unit.engine.warm_engines import Engine

HERE = "127.0.0.1"


def machines(job: Callable[..., Path], name: str, **config: Any) -> list[Path]:
    """Job directories of two machines that know nothing of each other's files."""
    made = [
        job(mixed_columns(120), name=f"{name}-{node}", config={**TOGETHER, "nodes": 2, **config}) for node in range(2)
    ]
    gather(made, name)
    return made


def gather(made: list[Path], name: str) -> None:
    port = free_port(HERE)
    for node, directory in enumerate(made):
        Group(name, len(made), node, HERE, port, HERE).write(directory)


def started(made: list[Path]) -> list[Engine]:
    return [start_engine(directory) for directory in made]


def weights(job_dir: Path) -> str:
    return hashlib.sha256((job_dir / "output" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_end_where_two_processes_of_one_do(
    job: Callable[..., Path], by_two: Callable[..., Path], strategy: str
) -> None:
    one = by_two(strategy)
    made = machines(job, strategy, strategy=strategy)
    assert [process.wait(timeout=240) for process in started(made)] == [0, 0], read_spool(made[0])[-3:]
    assert weights(made[0]) == weights(one) and losses(made[0]) == losses(one)
    assert read_spool(made[0], "started")[0]["environment"]["processes"] == 2
    # One of them speaks and keeps; the other leaves nothing that could be taken for a result.
    assert not (made[1] / "output").exists() and not (made[1] / "events.jsonl").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
def test_after_the_loss_of_a_machine_another_takes_its_place(
    job: Callable[..., Path], by_two: Callable[..., Path]
) -> None:
    """The survivor ends at once; gathered again with a machine that has no files, the result is the same to the bit."""
    broken = machines(job, "broken", epochs=8, strategy="ddp")
    leader, other = started(broken)
    assert until(lambda: (broken[0] / "events.jsonl").exists() and read_spool(broken[0], "checkpoint"))
    members = members_of(broken[1])
    other.kill()
    for member in members:
        member.kill()
    assert leader.wait(timeout=240) == CRASHED
    assert until(lambda: not members_of(broken[0]))
    shutil.rmtree(broken[1])
    fresh = job(mixed_columns(120), name="fresh", config={**TOGETHER, "nodes": 2, "epochs": 8, "strategy": "ddp"})
    gather([broken[0], fresh], "again")
    assert [process.wait(timeout=240) for process in started([broken[0], fresh])] == [0, 0]
    assert read_spool(broken[0], "started")[-1]["resumed_from"] > 0
    assert weights(broken[0]) == weights(by_two("ddp", epochs=8))


@pytest.mark.slow
@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_one_machine_stops_both_after_a_checkpoint(job: Callable[..., Path], asked: int) -> None:
    made = machines(job, f"stop{asked}", epochs=2000)
    both = started(made)
    assert until(lambda: (made[0] / "events.jsonl").exists() and read_spool(made[0], "metric"))
    both[asked].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=240) for process in both] == [75, 0]
    assert read_spool(made[0], "checkpoint")


def test_a_job_for_machines_that_were_not_gathered_is_refused(job: Callable[..., Path]) -> None:
    made = job(mixed_columns(40), config={**TOGETHER, "nodes": 2})
    assert start_engine(made).wait(timeout=60) == 1
    assert read_spool(made, "failed")[0]["code"] == "no_group"


def test_a_group_of_another_size_is_refused(tmp_path: Path) -> None:
    Group("g", 3, 0, HERE, 1, HERE).write(tmp_path)
    assert read_group(tmp_path, 3).address == HERE
    with pytest.raises(EngineError, match="2 machines, and 3"):
        read_group(tmp_path, 2)
    (tmp_path / "group.json").write_text('{"nodes": 2}')
    with pytest.raises(EngineError, match="nobody told"):
        read_group(tmp_path, 2)


def test_the_interface_of_an_address() -> None:
    assert interface_of(HERE) == "lo"
    assert interface_of("203.0.113.7") is None
