"""Requests that wait are run together, each hears its own, and what waits is bounded."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from dlplatform.engine.errors import PredictionInputError
from registry.serving import batching
from registry.serving.batching import Batches, Deliveries, Overloaded

ONE, OTHER = uuid4(), uuid4()
SOON = 60


class Echo:
    """Answers each row with itself; notes how many rows came at once; waits while the gate is closed."""

    writer = None

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.entered = threading.Event()

    def predict(self, instances):
        self.calls.append(len(instances))
        self.entered.set()
        assert self.gate.wait(SOON)
        for position, row in enumerate(instances):
            if row.get("x") == "bad":
                raise PredictionInputError(position, "x", "bad_value", "no")
            if row.get("x") == "crash":
                raise RuntimeError("crash")
        return [{"value": row["x"]} for row in instances]


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def batches(thread, echo):
    return Batches(thread, lambda version: echo)


def held(batches, echo):
    """A request that keeps the thread busy until the gate opens."""
    first = batches.ask(ONE, [{"x": 0}])
    assert echo.entered.wait(SOON)
    return first


def test_a_lone_request_is_run_at_once(batches, echo):
    echo.gate.set()
    assert batches.ask(ONE, [{"x": 1}, {"x": 2}]).result(SOON) == [{"value": 1}, {"value": 2}]
    assert echo.calls == [2]


def test_what_gathers_while_the_thread_is_busy_is_run_together_and_each_gets_its_own(batches, echo):
    first = held(batches, echo)
    later = [batches.ask(ONE, [{"x": number}] * (number % 3 + 1)) for number in range(20)]
    echo.gate.set()
    assert first.result(SOON) == [{"value": 0}]
    for number, answer in enumerate(later):
        assert answer.result(SOON) == [{"value": number}] * (number % 3 + 1)
    assert echo.calls == [1, sum(number % 3 + 1 for number in range(20))]


def test_versions_are_not_mixed(thread):
    models = {ONE: Echo(), OTHER: Echo()}
    batches = Batches(thread, lambda version: models[version])
    held(batches, models[ONE])
    answers = [batches.ask(version, [{"x": 1}]) for version in (ONE, OTHER, ONE, OTHER)]
    for model in models.values():
        model.gate.set()
    assert [answer.result(SOON) for answer in answers] == [[{"value": 1}]] * 4
    assert models[ONE].calls == [1, 2] and models[OTHER].calls == [2]


def test_a_bad_row_is_told_to_its_own_sender_alone_by_its_own_position(batches, echo):
    held(batches, echo)
    good, bad = batches.ask(ONE, [{"x": 1}]), batches.ask(ONE, [{"x": 2}, {"x": "bad"}])
    echo.gate.set()
    assert good.result(SOON) == [{"value": 1}]
    with pytest.raises(PredictionInputError) as caught:
        bad.result(SOON)
    assert caught.value.row == 1


def test_a_crash_is_told_to_all_and_the_thread_goes_on(batches, echo):
    held(batches, echo)
    both = batches.ask(ONE, [{"x": 1}]), batches.ask(ONE, [{"x": "crash"}])
    echo.gate.set()
    for answer in both:
        with pytest.raises(RuntimeError):
            answer.result(SOON)
    with pytest.raises(RuntimeError):
        batches.ask(ONE, [{"x": "crash"}]).result(SOON)
    assert batches.ask(ONE, [{"x": 3}]).result(SOON) == [{"value": 3}]


def test_a_model_that_cannot_be_loaded_is_told_to_all(thread):
    def refuse(version):
        raise KeyError(version)

    with pytest.raises(KeyError):
        Batches(thread, refuse).ask(ONE, [{}]).result(SOON)


def test_what_may_not_be_joined_is_run_one_by_one(thread, echo):
    echo.writer = object()
    batches = Batches(thread, lambda version: echo)
    held(batches, echo)
    answers = [batches.ask(ONE, [{"x": 1}]) for _ in range(3)]
    echo.gate.set()
    assert [answer.result(SOON) for answer in answers] == [[{"value": 1}]] * 3
    assert echo.calls == [1, 1, 1, 1]


def test_a_batch_has_a_bound_of_rows(batches, echo, monkeypatch):
    monkeypatch.setattr(batching, "MOST_ROWS", 4)
    held(batches, echo)
    answers = [batches.ask(ONE, [{"x": 1}] * count) for count in (3, 2, 2, 9)]
    echo.gate.set()
    assert [len(answer.result(SOON)) for answer in answers] == [3, 2, 2, 9]
    assert echo.calls == [1, 3, 4, 9]


def test_a_full_queue_refuses_and_takes_again_when_it_has_emptied(batches, echo, monkeypatch):
    monkeypatch.setattr(batching, "MOST_WAITING", 2)
    held(batches, echo)
    waiting = [batches.ask(ONE, [{"x": 1}]) for _ in range(2)]
    with pytest.raises(Overloaded):
        batches.ask(ONE, [{"x": 1}])
    echo.gate.set()
    for answer in waiting:
        answer.result(SOON)
    assert batches.ask(ONE, [{"x": 5}]).result(SOON) == [{"value": 5}]


def test_what_waited_too_long_or_was_given_up_is_not_run(batches, echo, monkeypatch):
    held(batches, echo)
    monkeypatch.setattr(batching, "SECONDS", 0.01)
    late = batches.ask(ONE, [{"x": 1}])
    gone = batches.ask(OTHER, [{"x": 1}])
    assert gone.cancel()
    time.sleep(0.05)
    echo.gate.set()
    with pytest.raises(Overloaded):
        late.result(SOON)
    assert batches.ask(ONE, []).result(SOON) == []
    assert echo.calls == [1, 0]


def in_loop(batches, echo, ask):
    """What comes of what ``ask()`` gives, errors too; the gate opens when all is asked."""

    async def run():
        held(batches, echo)
        waiting = ask()
        echo.gate.set()
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SOON)

    return asyncio.run(run())


def test_an_event_loop_hears_all_that_is_run_together(batches, echo):
    answers = in_loop(batches, echo, lambda: [batches.ask_in_loop(ONE, [{"x": number}]) for number in range(50)])
    assert answers == [[{"value": number}] for number in range(50)]
    assert echo.calls == [1, 50]


def test_an_event_loop_is_woken_once_for_all_that_has_come_by_then(monkeypatch):
    woken = []

    async def run():
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: (woken.append(call), wake(*call)))
        deliveries = Deliveries(loop)
        waiting = [loop.create_future() for _ in range(6)]
        for number in range(5):
            deliveries.put(waiting[number], [{"value": number}], None)
        answers = await asyncio.wait_for(asyncio.gather(*waiting[:5]), SOON)
        deliveries.put(waiting[5], None, KeyError("later"))
        with pytest.raises(KeyError):
            await asyncio.wait_for(waiting[5], SOON)
        return answers

    assert asyncio.run(run()) == [[{"value": number}] for number in range(5)]
    assert len(woken) == 2


def test_an_event_loop_hears_errors_and_what_it_gave_up_is_not_run(batches, echo):
    def ask():
        good, bad = batches.ask_in_loop(ONE, [{"x": 1}]), batches.ask_in_loop(ONE, [{"x": "bad"}])
        gone = batches.ask_in_loop(OTHER, [{"x": 9}])
        gone.cancel()
        return [good, bad, gone, batches.ask_in_loop(OTHER, [{"x": "crash"}])]

    good, bad, gone, crash = in_loop(batches, echo, ask)
    assert good == [{"value": 1}] and isinstance(bad, PredictionInputError)
    assert isinstance(gone, asyncio.CancelledError) and isinstance(crash, RuntimeError)
    assert echo.calls == [1, 2, 1, 1, 1], "together, each of them alone, and the other version without who has gone"


def test_what_comes_while_a_batch_runs_stands_behind_other_versions(thread):
    """However many ask for one model, the next model's turn comes."""
    ran, late = [], []

    class Busy(Echo):
        def __init__(self, name):
            super().__init__()
            self.name = name
            self.gate.set()

        def predict(self, instances):
            ran.append(self.name)
            if self.name == "busy" and len(late) < 5:
                late.append(batches.ask(ONE, [{"x": 1}]))
            return super().predict(instances)

    models = {ONE: Busy("busy"), OTHER: Busy("other")}
    gate = threading.Event()
    thread.submit(gate.wait, SOON)
    batches = Batches(thread, lambda version: models[version])
    asked = [batches.ask(ONE, [{"x": 1}]), batches.ask(OTHER, [{"x": 1}])]
    gate.set()
    assert [answer.result(SOON) for answer in asked] == [[{"value": 1}]] * 2
    while len(late) < 5 or not late[-1].done():
        late[-1].result(SOON)
    assert ran == ["busy", "other", *["busy"] * 5]


def test_each_batch_asks_for_its_turn_and_keeps_its_place(thread, monkeypatch):
    """Who gives way is asked before each batch, and what is to be done after what waits comes after all of it."""
    monkeypatch.setattr(batching, "MOST_ROWS", 2)
    echo, done, turns = Echo(), [], []

    class Counted:
        def submit(self, *work):
            turns.append(work)
            return thread.submit(*work)

    batches = Batches(Counted(), lambda version: echo)
    held(batches, echo)
    answers = [batches.ask(ONE, [{"x": number}]) for number in range(5)]
    thread.submit(lambda: done.extend(answer.done() for answer in answers))
    echo.gate.set()
    assert [answer.result(SOON) for answer in answers] == [[{"value": number}] for number in range(5)]
    thread.submit(lambda: None).result(SOON)
    assert done == [True] * 5 and echo.calls == [1, 2, 2, 1] and len(turns) == 4


def test_who_asks_after_the_end_is_refused_and_holds_no_place(echo):
    thread = ThreadPoolExecutor(1)
    thread.shutdown()
    batches = Batches(thread, lambda version: echo)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            batches.ask(ONE, [{"x": 1}])
    assert batches.waiting == 0


def test_an_error_that_nobody_foresaw_costs_no_other_batch(thread, echo, monkeypatch):
    monkeypatch.setattr(batching, "MOST_ROWS", 1)
    seen = []

    def observe(rows, waited):
        seen.append(rows)
        if len(seen) == 2:
            raise RuntimeError("observed badly")

    batches = Batches(thread, lambda version: echo, observe=observe)
    held(batches, echo)
    _, second = [batches.ask(ONE, [{"x": number}]) for number in (1, 2)]
    echo.gate.set()
    assert second.result(SOON) == [{"value": 2}]
    assert batches.waiting == 0
