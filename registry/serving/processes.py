"""What each inference process says of the versions that it holds: written to Valkey, read by the pages. Imports no torch.

A process writes every second, for some seconds: one that died is not heard of any more.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis

from dlplatform.valkey import impatient_connection

TELL_SECONDS = 1.0
KEPT_SECONDS = 5
NAMES = "inference:processes"  # of all that have written something
STATE = "inference:process:"


@dataclass(frozen=True)
class Said:
    """By one process, of versions by their ids: how those answer that are to be compiled, and which shadows rest, for how long."""

    runtimes: dict[str, str]
    resting: dict[str, str]


def tell(process: str, said: Said) -> None:
    """Write it down, in the place of what this process said before. Raises redis.RedisError."""
    with impatient_connection().pipeline() as both:
        both.set(STATE + process, json.dumps(asdict(said)), ex=KEPT_SECONDS)
        both.sadd(NAMES, process)
        both.execute()


def withdraw(process: str) -> None:
    """It says nothing any more. Raises redis.RedisError."""
    impatient_connection().delete(STATE + process)
    impatient_connection().srem(NAMES, process)


def told() -> list[Said]:
    """By every process there is; by none where Valkey does not answer."""
    try:
        return _told(impatient_connection())
    except (redis.RedisError, OSError):
        return []


def _told(valkey: redis.Redis) -> list[Said]:
    names: list[Any] = sorted(valkey.smembers(NAMES))
    states = valkey.mget([STATE.encode() + name for name in names]) if names else []
    if gone := [name for name, state in zip(names, states, strict=True) if state is None]:
        valkey.srem(NAMES, *gone)  # one that lives adds itself again
    return [_said(json.loads(state)) for state in states if state is not None]


def _said(state: Mapping[str, dict[str, str]]) -> Said:
    """Also of a process of an older or newer release."""
    return Said(state.get("runtimes", {}), state.get("resting", {}))


def together(said: Sequence[Mapping[str, str]], version: str, without: str = "") -> str:
    """What the processes say of a version: “2 of 2 compiled”, “1 of 2 being compiled; 1 of 2 compiled”; of one alone as it is said.

    ``without``: what those do that say nothing of it, where others do; else they are left out.
    """
    counts = Counter(one[version] for one in said if version in one)
    if not counts or len(said) == 1:
        return next(iter(counts), "")
    groups = [
        f"{count} of {len(said)} {words}" for words, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    ]
    if without and (left := len(said) - counts.total()):
        groups.append(f"{left} of {len(said)} {without}")
    return "; ".join(groups)
