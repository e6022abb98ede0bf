"""The rate of a key over several inference processes: each decides by itself, and Valkey tells them of one another."""

import asyncio
import random
import time

import pytest
import redis
from rest_framework.exceptions import Throttled

from dlplatform import embedded
from dlplatform.valkey import shared_connection
from registry.serving.server import rate_limit
from registry.serving.server.rate_limit import RateLimit

KEY, OTHER = "dlp_000000000001_secret", "dlp_000000000002_secret"


class Bucket:
    """What it is to do where there is one process: so many tokens a second, twice that many at most."""

    def __init__(self, rate, now):
        self.rate, self.most, self.at = rate, max(1.0, 2 * rate), now
        self.tokens = self.most

    def takes(self, now):
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1 - 1e-3:
            return False
        self.tokens -= 1
        return True

    @property
    def wait(self):
        return (1 - self.tokens) / self.rate


def grants(limit, key=KEY):
    try:
        limit.take(key)
    except Throttled:
        return False
    return True


def granted(limit, tries, key=KEY):
    return sum(grants(limit, key) for _ in range(tries))


def wait_of(limit, key=KEY):
    with pytest.raises(Throttled) as refused:
        for _ in range(1000):  # a machine that is busy elsewhere gives it time to earn some
            limit.take(key)
    return refused.value.wait


class Earned:
    """How many requests a key has earned since, at most: tests take their time on a busy machine."""

    def __init__(self, rate):
        self.rate, self.began = rate, time.monotonic()

    @property
    def now(self):
        return (time.monotonic() - self.began) * self.rate + 1  # and what the rounding takes


@pytest.mark.parametrize("rate", [0.01, 0.7, 3, 250])
def test_one_process_grants_what_a_bucket_of_tokens_does(rate):
    now, chance = [1e6], random.Random(7)
    limit, bucket = RateLimit(rate, lambda: now[0]), Bucket(rate, now[0])
    counts = [0, 0]
    for _ in range(4000):
        now[0] += chance.choice([0, 0, 0, 0.3, 1, 9]) * chance.random() / rate
        expected = bucket.takes(now[0])
        assert grants(limit) == expected
        counts[expected] += 1
        if not expected:
            assert -2e-3 / rate <= wait_of(limit) - bucket.wait <= 1 + 2e-3 / rate, (
                "whole seconds, as Retry-After tells them"
            )
    assert min(counts) > 50
    assert granted(RateLimit(0), 10_000) == 10_000, "no limit"


async def test_what_others_granted_counts_as_well_and_waiting_helps():
    first, second, earned = RateLimit(100), RateLimit(100), Earned(100)
    assert granted(first, 150) == 150
    await first.exchange()
    assert grants(second) and grants(second, OTHER), "nothing was heard yet"
    await second.exchange()
    assert 48 <= granted(second, 200) <= 50 + earned.now, "of two hundred at once, the other has taken three quarters"
    await second.exchange()
    assert 198 <= granted(second, 250, OTHER) <= 199 + earned.now, "each key for itself"
    assert granted(first, 1) == 1, "it does not know"
    await first.exchange()
    assert wait_of(first) == 1
    await asyncio.sleep(1)
    assert granted(first, 50) > 10


async def test_what_was_granted_too_much_is_missing_afterwards():
    """Four that do not know of one another grant a burst each; over a longer time it is the rate and these bursts."""
    loop = asyncio.get_running_loop()
    limits, began = [RateLimit(50) for _ in range(4)], loop.time()
    assert [granted(one, 150) for one in limits] == [100] * 4
    for one in [*limits, *limits]:
        one._granted.setdefault(KEY, 0)
        await one.exchange()
    waits = [wait_of(one) for one in limits]
    expected = 400 / 50 - 2.0 - (loop.time() - began)
    assert all(abs(wait - 0.5 - expected) < 1 for wait in waits), (waits, expected)


async def test_two_that_are_asked_all_the_time_keep_to_the_rate_together():
    limits = [RateLimit(40), RateLimit(40)]
    following = [asyncio.ensure_future(one.follow()) for one in limits]
    loop, count = asyncio.get_running_loop(), 0
    began = loop.time()
    while loop.time() - began < 4:
        count += sum(granted(one, 3) for one in limits)
        await asyncio.sleep(0.005)
    passed = loop.time() - began
    for one in following:
        one.cancel()
    # At most a bucket each at once, which is missing afterwards; apart they would grant 80 a second and 160.
    assert 80 + 30 * passed <= count <= 160 + 40 * passed * 1.1, (count, passed)
    assert count < 0.8 * (160 + 80 * passed)


async def test_who_keeps_to_the_rate_is_never_refused():
    limits = [RateLimit(200) for _ in range(3)]
    following = [asyncio.ensure_future(one.follow()) for one in limits]
    loop, chance, count = asyncio.get_running_loop(), random.Random(3), 0
    began = loop.time()
    while loop.time() - began < 2:
        while count < 180 * (loop.time() - began):
            chance.choice(limits).take(KEY)  # none of them raises
            count += 1
        await asyncio.sleep(0.01)
    for one in following:
        one.cancel()
    assert count > 300


async def test_without_valkey_it_goes_on_by_what_it_knows_and_says_so_once(settings, caplog):
    there = settings.REDIS_URL
    limit, other, earned = RateLimit(100), RateLimit(100), Earned(100)
    settings.REDIS_URL = f"redis://127.0.0.1:{embedded.free_port()}/0"
    for _ in range(4):
        assert granted(limit, 20) == 20
        await limit.exchange()
    assert 118 <= granted(limit, 500) <= 120 + earned.now, "its own bucket"
    assert caplog.text.count("each inference process counts a key's limit by itself") == 1
    settings.REDIS_URL = there
    await limit.exchange()
    assert caplog.text.count("Valkey answers again") == 1
    grants(other)
    await other.exchange()
    assert granted(other, 500) <= 5 + 2 * earned.now, "what was granted meanwhile is told"


async def test_an_outage_is_not_held_against_anybody_after_it(settings):
    now, there = [1e6], settings.REDIS_URL
    limits = [RateLimit(10, lambda: now[0]) for _ in range(2)]
    settings.REDIS_URL = f"redis://127.0.0.1:{embedded.free_port()}/0"
    for _ in range(30):
        now[0] += 1
        for one in limits:
            assert granted(one, 9) == 9
            await one.exchange()
    now[0] += 5
    settings.REDIS_URL = there
    for one in [*limits, *limits]:
        assert granted(one, 2) == 2
        await one.exchange()
    assert all(grants(one) for one in limits)


async def test_valkey_holds_no_credential_and_nothing_for_long():
    limit = RateLimit(1)
    grants(limit)
    await limit.exchange()
    (name,) = shared_connection().keys("*rate*")
    assert KEY not in name.decode() and KEY.split("_")[2] not in name.decode()
    assert 1000 < shared_connection().pttl(name) <= 2100
    shared_connection().set(name, "9e12", px=60_000)  # the clock of its machine was set back
    grants(limit)
    await limit.exchange()
    assert wait_of(limit) <= rate_limit.MOST_AHEAD


async def test_many_keys_are_exchanged_in_parts_and_the_least_recent_forgotten(monkeypatch):
    monkeypatch.setattr(rate_limit, "AT_ONCE", 7)
    monkeypatch.setattr(rate_limit, "MOST", 50)
    first, second = RateLimit(10), RateLimit(10)
    names = [f"key {number}" for number in range(60)]
    for name in names:
        assert granted(first, 30, name) == 20
    await first.exchange()
    for name in names:
        grants(second, name)
    await second.exchange()
    assert not any(granted(second, 3, name) == 3 for name in names[10:])
    assert len(first._arrivals) == len(second._arrivals) == 50


async def test_what_may_have_been_told_is_not_told_again(monkeypatch):
    """Valkey took it, and its answer came too late."""
    added, limit, other, earned = rate_limit._added, RateLimit(10), RateLimit(10), Earned(10)

    def late(*given):
        added(*given)
        raise redis.TimeoutError

    assert granted(limit, 10) == 10
    monkeypatch.setattr(rate_limit, "_added", late)
    for _ in range(5):
        await limit.exchange()
    monkeypatch.setattr(rate_limit, "_added", added)
    await limit.exchange()
    assert granted(other, 1) == 1
    await other.exchange()
    assert 8 <= granted(other, 20) <= 10 + earned.now, "ten of twenty were granted, once"


async def test_parts_that_went_through_are_not_told_again_for_one_that_did_not(monkeypatch):
    monkeypatch.setattr(rate_limit, "AT_ONCE", 1)
    added, limit, other, earned = rate_limit._added, RateLimit(10), RateLimit(10), Earned(10)

    def without_other(seconds, *given):
        if OTHER in seconds:
            raise redis.ConnectionError
        return added(seconds, *given)

    assert granted(limit, 10, KEY) == granted(limit, 10, OTHER) == 10
    monkeypatch.setattr(rate_limit, "_added", without_other)
    for _ in range(3):
        await limit.exchange()
    monkeypatch.setattr(rate_limit, "_added", added)
    await limit.exchange()
    for key in (KEY, OTHER):
        grants(other, key)
    await other.exchange()
    assert all(8 <= granted(other, 20, key) <= 10 + earned.now for key in (KEY, OTHER))


async def test_exchanging_goes_on_whatever_went_wrong_once(monkeypatch, caplog):
    limit, calls = RateLimit(10), []

    async def exchange():
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError

    monkeypatch.setattr(rate_limit, "EXCHANGE_SECONDS", 0.001)
    monkeypatch.setattr(limit, "exchange", exchange)
    following = asyncio.ensure_future(limit.follow())
    while len(calls) < 3:
        await asyncio.sleep(0.001)
    following.cancel()
    assert caplog.text.count("could not be exchanged") == 1
