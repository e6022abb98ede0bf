"""Small models in the event loop: together what came together, each its own answer, nobody held up for long."""

import asyncio
import time
from uuid import uuid4

import pytest

from dlplatform.engine.errors import PackageError, PredictionInputError
from registry.serving import cache
from registry.serving.server.quick import LONELY_TURNS, Quick

ONE, OTHER = uuid4(), uuid4()


class Echo:
    """Answers each row with itself, and notes what came at once."""

    writer = None
    steady = True

    def __init__(self, seconds_of_row=0.0):
        self.calls = []
        self.seconds = seconds_of_row

    def example(self, told):
        return told

    def predict(self, instances):
        self.calls.append([row.get("x") for row in instances])
        until = time.thread_time() + self.seconds * len(instances)
        while time.thread_time() < until:
            pass
        for position, row in enumerate(instances):
            if row.get("x") == "bad":
                raise PredictionInputError(position, "x", "bad_value", "no")
            if row.get("x") == "crash":
                raise RuntimeError("crash")
        return [{"value": row.get("x")} for row in instances]


def asked(*requests, at_once=100, leaving=()):
    """(what each request heard, the model, rows of what was run) of requests that arrive together."""
    model, ran = Echo(), []

    async def run():
        quick = Quick(lambda rows, waited: ran.append(rows))
        answers = [
            asyncio.ensure_future(quick.ask(ONE, model, [{"x": value} for value in rows], at_once)) for rows in requests
        ]
        await asyncio.sleep(0)
        for position in leaving:
            answers[position].cancel()
        return await asyncio.gather(*answers, return_exceptions=True)

    return asyncio.run(run()), model, ran


def test_what_arrives_together_is_run_together_and_each_gets_its_own():
    heard, model, ran = asked([1], [2, 3], [4])
    assert heard == [[{"value": 1}], [{"value": 2}, {"value": 3}], [{"value": 4}]]
    assert model.calls == [[1, 2, 3, 4]] and ran == [4]


def test_only_the_sender_of_a_refused_row_hears_of_it_by_its_own_number():
    heard, model, _ = asked([1], [2, "bad"], [3])
    assert (heard[0], heard[2]) == ([{"value": 1}], [{"value": 3}])
    assert isinstance(heard[1], PredictionInputError) and heard[1].row == 1
    assert model.calls[1:] == [[1], [2, "bad"], [3]]


def test_a_crash_is_told_to_all_of_the_batch_and_the_next_goes_on():
    heard, _, _ = asked([1], ["crash"], [2], [3], at_once=2)
    assert [type(one) for one in heard[:2]] == [RuntimeError, RuntimeError]
    assert heard[2:] == [[{"value": 2}], [{"value": 3}]]


def test_no_more_rows_at_once_than_may_hold_up_the_loop_and_none_of_who_left():
    heard, model, ran = asked([1, 2], [3], [4], [5, 6, 7, 8], [9], at_once=3, leaving=[2])
    assert isinstance(heard[2], asyncio.CancelledError)
    assert model.calls == [[1, 2, 3], [5, 6, 7, 8], [9]] and ran == [3, 4, 1]


def test_between_two_batches_the_loop_does_other_things():
    order = []

    async def run():
        quick = Quick(lambda rows, waited: order.append(rows))
        answers = [asyncio.ensure_future(quick.ask(ONE, Echo(), [{"x": 1}], 1)) for _ in range(2)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(order.append, "other")
        await asyncio.gather(*answers)

    asyncio.run(run())
    assert order == [1, "other", 1]


def test_who_comes_alone_again_and_again_is_answered_in_the_same_turn_until_somebody_comes_too():
    model, waits = Echo(), []

    async def turns_of(quick, value):
        """How many turns of the loop an answer took."""
        turns = []

        async def count():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await quick.ask(ONE, model, [{"x": value}], 9)
        counting.cancel()
        await asyncio.sleep(0)
        return len(turns)

    async def run():
        quick = Quick(lambda rows, waited: waits.append(rows))
        alone = [await turns_of(quick, 1) for _ in range(LONELY_TURNS + 2)]
        together = await asyncio.gather(*(quick.ask(ONE, model, [{"x": value}], 9) for value in (1, 2, 3)))
        await asyncio.sleep(0)
        return alone, together, await turns_of(quick, 4)

    alone, together, after = asyncio.run(run())
    assert alone[0] > 0 and alone[-1] == 0 and sorted(alone, reverse=True) == alone
    assert together == [[{"value": 1}], [{"value": 2}], [{"value": 3}]]
    assert model.calls[len(alone) :] == [[1], [2, 3], [4]] and after > 0
    assert sum(waits) == len(alone) + 4


def test_who_comes_alone_hears_what_is_wrong():
    async def run():
        quick = Quick(lambda rows, waited: None)
        for _ in range(LONELY_TURNS):
            await quick.ask(ONE, Echo(), [{"x": 1}], 9)
            await asyncio.sleep(0)
        for wrong, error in (("bad", PredictionInputError), ("crash", RuntimeError)):
            with pytest.raises(error):
                await quick.ask(ONE, Echo(), [{"x": wrong}], 9)
            await asyncio.sleep(0)

    asyncio.run(run())


def test_versions_are_not_mixed():
    one, other = Echo(), Echo()

    async def run():
        quick = Quick(lambda rows, waited: None)
        return await asyncio.gather(quick.ask(ONE, one, [{"x": 1}], 9), quick.ask(OTHER, other, [{"x": 2}], 9))

    assert asyncio.run(run()) == [[{"value": 1}], [{"value": 2}]]
    assert (one.calls, other.calls) == ([[1]], [[2]])


def test_nobody_is_alone_while_a_thread_has_a_request():
    async def run():
        quick, told = Quick(lambda rows, waited: None), []

        async def turns(count):
            for _ in range(count):
                told.append(quick.alone())
                await asyncio.sleep(0)

        await turns(LONELY_TURNS + 1)
        with quick.elsewhere():
            await turns(2)
        await turns(LONELY_TURNS + 1)
        with pytest.raises(RuntimeError), quick.elsewhere():
            raise RuntimeError
        await turns(1)
        return told

    expected = [*[False] * LONELY_TURNS, True, False, False, *[False] * LONELY_TURNS, True, True]
    assert asyncio.run(run()) == expected


def test_a_model_is_quick_by_its_measured_time_if_that_does_not_depend_on_the_values():
    signature = {"inputs": [{"name": "x", "example": 1}]}
    assert cache.warm(Echo(), signature) >= cache.QUICK_ROWS
    assert cache.warm(Echo(seconds_of_row=0.002), signature) == 0
    unsteady = Echo()
    unsteady.steady = False
    assert cache.warm(unsteady, signature) == 0
    refusing = {"inputs": [{"name": "x", "example": "bad"}]}
    assert cache.warm(Echo(), refusing) == 0
    with pytest.raises(PackageError, match="crash"):
        cache.warm(Echo(), {"inputs": [{"name": "x", "example": "crash"}]})
