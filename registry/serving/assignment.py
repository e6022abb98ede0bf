"""Which variant answers a request: pure functions of salt, key and allocation, the same in every process.

A key is hashed into one of BUCKETS buckets, and the allocation says whose each bucket is. The allocation is kept and
moved with the weights, not computed from them anew: so a change of weights moves the least possible share of keys, which
no function of the weights alone can promise for three variants and more.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from hashlib import blake2b

BUCKETS = 10_000

Allocation = Sequence[tuple[int, str]]


def bucket_of(salt: str, key: str) -> int:
    """The bucket of a key: uniform over [0, BUCKETS), independent between salts."""
    # The length in front keeps salt "a" with key "bc" apart from salt "ab" with key "c".
    text = f"{len(salt)}:{salt}{key}".encode("utf-8", "surrogatepass")
    value = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
    return value * BUCKETS >> 64


def assign(allocation: Allocation, salt: str, key: str | None) -> str:
    """The id of the variant that answers: by the key, at random without one. Raises ValueError when nobody does."""
    if not allocation:
        raise ValueError("nobody answers")
    # Chance is no secret, and each request pays for it.
    bucket = random.randrange(BUCKETS) if key is None else bucket_of(salt, key)  # noqa: S311
    return allocation[bisect_right(allocation, bucket, key=lambda segment: segment[0])][1]


def buckets_by_weight(weights: Mapping[str, float]) -> dict[str, int]:
    """How many buckets each gets: in proportion, to one bucket, by the largest remainders. Raises ValueError."""
    total = sum(weights.values())
    if not total > 0 or not math.isfinite(total) or min(weights.values()) < 0:
        raise ValueError("weights are not negative, and one of them is positive")
    exact = {name: BUCKETS * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    left = BUCKETS - sum(counts.values())
    for name in sorted(exact, key=lambda name: (counts[name] - exact[name], name))[:left]:
        counts[name] += 1
    return counts


def reallocate(allocation: Allocation, weights: Mapping[str, float]) -> list[tuple[int, str]]:
    """The allocation for new weights that moves the fewest buckets: only who gains gets any, from who loses.

    Raises ValueError for weights that are no weights.
    """
    wanted = buckets_by_weight(weights)
    kept, free = _kept(allocation, dict(wanted))
    gaining = [(name, wanted[name] - kept.count(name)) for name in wanted]
    gained = iter([name for name, count in gaining for _ in range(count)])
    for bucket in free:
        kept[bucket] = next(gained)
    return _segments(kept)


def _kept(allocation: Allocation, room: dict[str, int]) -> tuple[list[str | None], list[int]]:
    """Bucket by bucket who keeps it, and the buckets that are free: those of the gone, and the last of who loses."""
    owners: list[str | None] = _owners(allocation) if allocation else [None] * BUCKETS
    free = []
    for bucket, owner in enumerate(owners):
        if owner is not None and room.get(owner, 0) > 0:
            room[owner] -= 1
        else:
            owners[bucket] = None
            free.append(bucket)
    return owners, free


def _owners(allocation: Allocation) -> list[str | None]:
    owners: list[str | None] = []
    for end, name in allocation:
        owners.extend([name] * (end - len(owners)))
    return owners


def _segments(owners: Sequence[str | None]) -> list[tuple[int, str]]:
    segments: list[tuple[int, str]] = []
    for bucket, name in enumerate(owners, start=1):
        assert name is not None
        if segments and segments[-1][1] == name:
            segments[-1] = (bucket, name)
        else:
            segments.append((bucket, name))
    return segments


def shares(allocation: Allocation) -> dict[str, float]:
    """The share of keys that each variant has: also the probability with which a new key gets it."""
    buckets: dict[str, int] = {}
    begin = 0
    for end, name in allocation:
        buckets[name] = buckets.get(name, 0) + end - begin
        begin = end
    return {name: count / BUCKETS for name, count in buckets.items()}
