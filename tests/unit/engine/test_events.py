from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlplatform.engine.events import EventWriter, read_events


def test_a_line_is_readable_at_once(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.log("info", "one\nline")
    events, offset = read_events(tmp_path / "events.jsonl")
    assert [(event["sequence"], event["type"], event["message"]) for event in events] == [(1, "log", "one\nline")]
    assert events[0]["time"].endswith("Z")
    writer.log("info", "two")
    assert [event["sequence"] for event in read_events(tmp_path / "events.jsonl", offset)[0]] == [2]
    writer.close()


def test_a_missing_spool_is_an_empty_one(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none", 7) == ([], 7)


def test_a_torn_line_waits_and_is_cut_on_restart(tmp_path: Path) -> None:
    spool = tmp_path / "events.jsonl"
    writer = EventWriter(spool)
    writer.metric(5, 0, {"train/loss": 1.0})
    writer.close()
    whole = spool.stat().st_size
    with spool.open("ab") as file:
        file.write(b'{"sequence":2,"type":"metr')
    assert read_events(spool)[1] == whole

    again = EventWriter(spool)
    assert spool.stat().st_size == whole
    assert again.last_metric_step == 5
    again.log("info", "after")
    again.close()
    assert [event["sequence"] for event in read_events(spool)[0]] == [1, 2]


def test_a_step_is_reported_once(tmp_path: Path) -> None:
    spool = tmp_path / "events.jsonl"
    for _ in range(2):
        writer = EventWriter(spool)
        for step in (1, 2):
            writer.metric(step, 0, {"train/loss": step / 1})
        writer.close()
    assert [event["step"] for event in read_events(spool)[0]] == [1, 2]


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.metric(1, 0, {"train/loss": float("nan")})
    writer.close()
    assert json.loads((tmp_path / "events.jsonl").read_text())["values"] == {"train/loss": None}


def test_a_payload_of_another_type_is_a_mistake(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="payload"):
        writer.emit("log", message="no level")
    writer.close()


def test_foreign_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'nonsense\n[1]\n{"sequence":4,"type":"log"}\n')
    events, offset = read_events(tmp_path / "events.jsonl")
    assert [event["sequence"] for event in events] == [4]
    assert offset == (tmp_path / "events.jsonl").stat().st_size
    writer = EventWriter(tmp_path / "events.jsonl")
    assert writer.sequence == 4
    writer.close()


def test_a_long_spool_is_read_in_pieces(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    for number in range(50):
        writer.log("info", "x" * 100 + str(number))
    writer.close()
    seen, offset = [], 0
    while True:
        events, following = read_events(tmp_path / "events.jsonl", offset, limit=64)
        if following == offset:
            break
        seen += [event["sequence"] for event in events]
        offset = following
    assert seen == list(range(1, 51))


def test_a_spool_on_another_machine_goes_on_with_the_numbers_that_are_known(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events.jsonl", told=7)
    writer.log("info", "eight")
    writer.close()
    again = EventWriter(tmp_path / "events.jsonl", told=3)
    again.log("info", "nine")
    again.close()
    assert [event["sequence"] for event in read_events(tmp_path / "events.jsonl")[0]] == [8, 9]
