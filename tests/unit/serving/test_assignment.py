"""Who answers: sticky, in proportion, and moved no more than needed."""

import math
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.serving.assignment import BUCKETS, assign, bucket_of, buckets_by_weight, reallocate, shares

UNITS = 1_000_000
names = st.sampled_from("abcdef")
weights = st.dictionaries(names, st.floats(0, 1e6), min_size=1).filter(lambda given: sum(given.values()) > 1e-6)


def owners(allocation):
    starts = [0, *(end for end, _ in allocation)]
    return [name for start, (end, name) in zip(starts, allocation, strict=False) for name in [name] * (end - start)]


def test_a_million_units_come_within_four_sigma_of_the_weights():
    wanted = {"a": 0.7, "b": 0.2, "c": 0.1}
    allocation = reallocate([], wanted)
    counted = Counter(assign(allocation, "salt", f"user-{number}") for number in range(UNITS))
    for name, share in wanted.items():
        assert abs(counted[name] - UNITS * share) < 4 * math.sqrt(UNITS * share * (1 - share)), (name, counted)


def test_without_a_key_chance_follows_the_weights():
    allocation = reallocate([], {"a": 0.7, "b": 0.3})
    counted = Counter(assign(allocation, "salt", None) for _ in range(20_000))
    assert abs(counted["a"] - 14_000) < 5 * math.sqrt(20_000 * 0.21)


def test_a_key_gets_the_same_in_another_process_whatever_its_hash_seed():
    allocation = reallocate([], {"a": 1, "b": 2, "c": 3})
    here = [assign(allocation, "salt", f"é{number}") for number in range(200)]
    program = (
        "from registry.serving.assignment import assign\n"
        f"print([assign({allocation!r}, 'salt', f'é{{number}}') for number in range(200)])"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == repr(here)


def test_salts_are_independent_of_one_another():
    allocation = reallocate([], {"a": 1, "b": 1})
    same = sum(assign(allocation, "one", str(n)) == assign(allocation, "two", str(n)) for n in range(20_000))
    assert abs(same - 10_000) < 5 * math.sqrt(5_000)
    assert [bucket_of("a", f"b{n}") for n in range(50)] != [bucket_of("ab", f"{n}") for n in range(50)]


def test_one_assignment_takes_less_than_fifty_microseconds():
    scattered: list[tuple[int, str]] = [(end, "ab"[end % 2]) for end in range(1, BUCKETS + 1)]
    began = time.process_time()
    for number in range(20_000):
        assign(scattered, "salt", f"user-{number}")
    assert (time.process_time() - began) / 20_000 < 50e-6


@settings(deadline=None, max_examples=50)
@given(weights, weights)
def test_a_change_of_weights_moves_only_what_must_move(before, after):
    first = reallocate([], before)
    second = reallocate(first, after)
    had, has = buckets_by_weight(before), buckets_by_weight(after)
    moved = [(one, other) for one, other in zip(owners(first), owners(second), strict=True) if one != other]
    assert len(moved) == sum(max(count - had.get(name, 0), 0) for name, count in has.items())
    assert all(has.get(one, 0) < had[one] and has[other] > had.get(other, 0) for one, other in moved)
    assert Counter(owners(second)) == Counter({name: count for name, count in has.items() if count})


@settings(deadline=None, max_examples=50)
@given(weights)
def test_every_bucket_has_an_owner_and_shares_follow_the_weights(given_weights):
    allocation = reallocate([], given_weights)
    ends = [end for end, _ in allocation]
    assert ends == sorted(set(ends)) and ends[-1] == BUCKETS
    total = sum(given_weights.values())
    of_keys = shares(allocation)
    assert math.isclose(sum(of_keys.values()), 1)
    for name, weight in given_weights.items():
        assert abs(of_keys.get(name, 0) - weight / total) <= 1.001 / BUCKETS


@settings(deadline=None, max_examples=50)
@given(weights, st.text(max_size=40), st.text(max_size=40))
def test_the_same_weights_again_move_nothing(given_weights, salt, key):
    allocation = reallocate([], given_weights)
    assert reallocate(allocation, given_weights) == allocation
    assert assign(allocation, salt, key) == assign(allocation, salt, key)
    assert given_weights[assign(allocation, salt, key)] > 0


@pytest.mark.parametrize("wrong", [{"a": 0}, {"a": -1, "b": 2}, {"a": math.inf}, {"a": math.nan}])
def test_what_are_no_weights_is_refused(wrong):
    with pytest.raises(ValueError, match="weights"):
        reallocate([], wrong)


def test_nobody_answers_where_nobody_is():
    with pytest.raises(ValueError, match="nobody"):
        assign([], "salt", "key")
