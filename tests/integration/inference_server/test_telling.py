"""What the inference processes say of their versions, put together for the pages."""

import time
from uuid import uuid4

import pytest
from django.db import connection

from dlplatform import embedded
from dlplatform.valkey import shared_connection
from registry.serving import processes
from registry.serving.processes import Said, tell, together, told, withdraw
from registry.serving.server.telling import Telling
from tests.fixtures.inference import Inference, eventually

COMPILED, BEING, NOT = "compiled", "being compiled", "not compiled: There is no C++ compiler."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], ""),
        ([{}], ""),
        ([{}, {}], ""),
        ([{"v": COMPILED}], COMPILED),
        ([{"v": NOT}], NOT),
        ([{"v": COMPILED, "w": BEING}] * 2, "2 of 2 compiled"),
        ([{"v": NOT}] * 3, f"3 of 3 {NOT}"),
        ([{"v": BEING}, {"v": COMPILED}], "1 of 2 being compiled; 1 of 2 compiled"),
        ([{"v": NOT}, {"v": COMPILED}, {"v": COMPILED}], f"2 of 3 compiled; 1 of 3 {NOT}"),
        ([{"w": COMPILED}, {"v": COMPILED}, {}], "1 of 3 compiled; 2 of 3 without it"),
    ],
)
def test_what_all_say_of_a_version_is_told_with_how_many_say_it(said, expected):
    assert together(said, "v", "without it") == expected


def test_those_that_say_nothing_of_a_shadow_do_not_rest():
    assert together([{"v": "ended 2×"}, {}, {}], "v") == "1 of 3 ended 2×"


def test_each_process_replaces_what_it_said_and_the_dead_are_not_heard(monkeypatch):
    assert told() == []
    tell("a", Said({"v": BEING}, {}))
    tell("b", Said({}, {"w": "ended 1×"}))
    tell("a", Said({"v": COMPILED}, {}))
    assert told() == [Said({"v": COMPILED}, {}), Said({}, {"w": "ended 1×"})]
    assert 0 < shared_connection().ttl(processes.STATE + "a") <= processes.KEPT_SECONDS
    withdraw("b")
    assert told() == [Said({"v": COMPILED}, {})]
    monkeypatch.setattr(processes, "KEPT_SECONDS", 1)
    tell("c", Said({}, {}))
    assert len(told()) == 2
    eventually(lambda: len(told()) == 1, 10)
    assert shared_connection().smembers(processes.NAMES) == {b"a"}


@pytest.mark.django_db(transaction=True)
def test_a_process_tells_all_the_time_and_nothing_after_its_end(stubs, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    version = uuid4()
    with Inference() as running:
        models = running.server.models
        monkeypatch.setattr(models, "follow_shadows", lambda versions: None)
        models.rests.follow({version})
        for _ in range(5):
            models.rests.ended(version, 0.0)
        eventually(lambda: (said := told()) and said[0].resting.get(str(version), "").startswith("ended 5×"), 10)
        time.sleep(processes.KEPT_SECONDS + 0.5)
        assert len(told()) == 1, "it goes on telling"
    assert told() == []


def test_without_valkey_nothing_is_told_and_the_log_says_so_once(settings, caplog):
    class Nothing:
        class compiling:
            told = {}

        class rests:
            told = staticmethod(dict)

    settings.REDIS_URL = f"redis://127.0.0.1:{embedded.free_port()}/0"
    telling = Telling(Nothing)
    for _ in range(3):
        telling.tell()
    telling.end()
    assert told() == [] and caplog.text.count("the pages are not told") == 1
