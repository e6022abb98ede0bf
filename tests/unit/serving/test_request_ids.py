"""The ids that requests get: in order of time, and not to be guessed."""

import os
import time
from uuid import RFC_4122

from registry.serving.server.answering import DRAWN_AT_ONCE, RequestIds


def test_ids_are_of_version_7_and_all_different():
    ids = RequestIds()
    before = time.time_ns() // 1_000_000
    made = [ids.next() for _ in range(3 * DRAWN_AT_ONCE)]
    after = time.time_ns() // 1_000_000
    assert {(one.version, one.variant) for one in made} == {(7, RFC_4122)}
    moments = [one.int >> 80 for one in made]
    assert before <= moments[0] and moments[-1] <= after and moments == sorted(moments)
    assert len({one.int & (1 << 80) - 1 for one in made}) == len(made), "not by their moment alone"


def test_every_random_bit_is_drawn():
    ids = RequestIds()
    made = [ids.next().int for _ in range(500)]
    fixed = (0xF << 76) | (3 << 62)  # version and variant
    for place in range(80):
        values = {one >> place & 1 for one in made}
        assert len(values) == (1 if fixed >> place & 1 else 2), place


def test_a_forked_process_draws_its_own():
    ids = RequestIds()
    ids.next()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, ids.next().bytes)
        os._exit(0)
    os.waitpid(child, 0)
    low = (1 << 62) - 1
    assert int.from_bytes(os.read(reading, 16), "big") & low != ids.next().int & low
