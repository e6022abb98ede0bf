"""How often a key may ask: counted over all inference processes, without a request that waits for any of them.

This is the generic cell rate algorithm: a bucket of tokens told by one number, a key's *arrival*, the time at which all that it was
granted would have come, had it come at the rate. Each process decides by the arrivals that it knows. Ten times a second, beside the
requests, it tells Valkey for how many seconds of the rate it has granted requests since; these are added to the key's arrival there,
which is that of all processes, and from which it goes on. What they granted too much meanwhile is in the sum, and missing later.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import redis
from rest_framework.exceptions import Throttled

from dlplatform.accounts.keys import digest
from dlplatform.valkey import impatient_connection

EXCHANGE_SECONDS = 0.1
BURST_SECONDS = 2.0  # of the rate, that may come at once
MOST_AHEAD = 60.0  # seconds: a clock of Valkey's machine that is set back stops nobody for longer
AT_ONCE = 500  # keys, that Valkey looks at without doing anything else
MOST = 20_000
NAME = "{inference}:rate:"
# KEYS: names. ARGV: seconds since the sender's last exchange, MOST_AHEAD, and of each name the seconds that were granted since.
# Answers for each name by how many seconds the arrival is ahead. By the clock of Valkey alone: machines differ.
ADD = """
    local told, clock = {}, redis.call('TIME')
    local now = clock[1] + clock[2] / 1000000
    for place, name in ipairs(KEYS) do
        local before = tonumber(redis.call('GET', name) or 0)
        local arrival = math.min(math.max(before, now - ARGV[1]) + ARGV[place + 2], now + ARGV[2])
        local ahead = math.max(0, arrival - now)
        redis.call('SET', name, string.format('%.6f', arrival), 'PX', math.ceil(ahead * 1000) + 1000)
        told[place] = string.format('%.6f', ahead)
    end
    return told
"""

logger = logging.getLogger(__name__)


class RateLimit:
    """``rate`` requests a second of every credential, and twice that many at once. No limit when 0.

    To be used by one event loop. Without `follow`, and while Valkey is away, it counts what this process was asked.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cost = 1 / rate if rate > 0 else 0.0  # seconds of the rate that a request takes
        # Less a request, as that is added afterwards; and a thousandth of it more, which rounding takes.
        self._slack = max(self._cost, BURST_SECONDS) - 0.999 * self._cost
        self._most_ahead = max(MOST_AHEAD, 2 * self._cost)
        self._arrivals: OrderedDict[str, float] = OrderedDict()
        self._granted: dict[str, int] = {}  # requests since the last exchange
        self._untold: dict[str, float] = {}  # seconds from before it, that Valkey does not know
        self._exchanged_at = clock()
        self._away = False

    def take(self, bearer: str) -> None:
        """Grant a request. Raises Throttled, with the seconds to wait."""
        if not self._cost:
            return
        now = self._clock()
        arrival = self._arrivals.get(bearer, now)
        if arrival < now:
            arrival = now
        elif arrival - now > self._slack:
            raise Throttled(wait=arrival - now - self._slack)
        self._arrivals[bearer] = arrival + self._cost
        self._granted[bearer] = self._granted.get(bearer, 0) + 1
        self._arrivals.move_to_end(bearer)
        while len(self._arrivals) > MOST:
            self._arrivals.popitem(last=False)

    async def follow(self) -> None:
        """Exchange with the other processes until it is cancelled."""
        while self._cost:
            await asyncio.sleep(EXCHANGE_SECONDS)
            try:
                await self.exchange()
            except Exception:  # whatever it is, the next exchange may go well, and requests are answered meanwhile
                logger.exception("what a key was granted could not be exchanged with the other inference processes")

    async def exchange(self) -> None:
        """Tell what was granted since the last time, and hear what all have granted to the same keys."""
        now = self._clock()
        passed, self._exchanged_at = now - self._exchanged_at, now
        seconds, self._granted, self._untold = self._to_tell(), {}, {}
        bearers = list(seconds)
        for start in range(0, len(bearers), AT_ONCE):
            some = {one: seconds[one] for one in bearers[start : start + AT_ONCE]}
            try:
                ahead = await asyncio.to_thread(_added, some, passed, self._most_ahead)
            except redis.TimeoutError as error:
                self._note_away(error)  # it may have been added: nobody is counted twice
            except (redis.RedisError, OSError) as error:
                self._note_away(error)
                self._tell_later(some)
            else:
                self._go_on(now, ahead)

    def _to_tell(self) -> dict[str, float]:
        told = dict(self._untold)
        for bearer, count in self._granted.items():
            told[bearer] = told.get(bearer, 0.0) + count * self._cost
        return told

    def _go_on(self, sent: float, ahead: Mapping[str, float]) -> None:
        """From the arrivals of all; what this process has granted since it asked comes on top."""
        if self._away:
            logger.warning("Valkey answers again: a key's limit counts over all inference processes")
        self._away = False
        for bearer, seconds in ahead.items():
            if bearer in self._arrivals:
                of_all = sent + seconds + self._granted.get(bearer, 0) * self._cost
                self._arrivals[bearer] = max(self._arrivals[bearer], of_all)

    def _note_away(self, error: Exception) -> None:
        if not self._away:
            logger.warning("Valkey does not answer, each inference process counts a key's limit by itself: %s", error)
        self._away = True

    def _tell_later(self, seconds: Mapping[str, float]) -> None:
        """As far as it is not worked off by now: an outage must not be held against anybody after it."""
        now = self._clock()
        for bearer, granted in seconds.items():
            if (left := min(granted, self._arrivals.get(bearer, now) - now)) > 0:
                self._untold[bearer] = left


def _added(seconds: Mapping[str, float], passed: float, most_ahead: float) -> dict[str, float]:
    """By how many seconds the arrival of each key is ahead, with these added. Raises redis.RedisError, OSError."""
    add = impatient_connection().register_script(ADD)
    names, given = [NAME + digest(one) for one in seconds], [f"{one:.9f}" for one in seconds.values()]
    ahead: list[bytes] = add(keys=names, args=[f"{passed:.6f}", most_ahead, *given])
    return dict(zip(seconds, map(float, ahead), strict=True))
