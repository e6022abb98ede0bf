"""Encodings: what goes in comes out to the bit, in no more bytes than it has; damage is noticed or harmless."""

import struct
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dlplatform.objects import bits, deltas
from dlplatform.objects.encodings import DELTA, GROUPED, RAW, ZSTD, decode, encode
from dlplatform.objects.errors import DamagedEncoding
from dlplatform.objects.planes import group
from dlplatform.objects.windows import WINDOW, WINDOWS
from dlplatform.objects.zstd import compress

GENERATOR = np.random.default_rng(3)
SPECIAL = struct.pack("<8I", 0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 1, 0x80000001)


def weights(count: int, dtype: str = "float32") -> bytes:
    return (GENERATOR.standard_normal(count) * 0.02).astype(dtype).tobytes()


def bfloat16(count: int) -> bytes:
    return (np.frombuffer(weights(count), np.uint32) >> 16).astype(np.uint16).tobytes()


def round_trip(data, width=1, base=None):
    encoded = encode(data, width=width, base=base)
    assert bytes(decode(encoded.codec, encoded.payload, size=len(data), base=base)) == bytes(data)
    assert len(encoded.payload) <= len(data)
    return encoded


CASES = {
    "float64": (weights(5000, "float64"), 8),
    "float32": (weights(5000), 4),
    "float16": (weights(5000, "float16"), 2),
    "bfloat16": (bfloat16(5000), 2),
    "int8": (GENERATOR.integers(-3, 3, 5000).astype(np.int8).tobytes(), 1),
    "int64": (np.arange(5000).tobytes(), 8),
    "scalar": (struct.pack("<f", -0.0), 4),
    "empty": (b"", 4),
    "one byte": (b"x", 4),
    "NaN payloads, -0.0, denormals": (SPECIAL * 500, 4),
    "text": (b'{"a": 1, "b": [2, 3]}' * 100, 1),
    "noise": (GENERATOR.bytes(5000), 4),
    "a tail that fills no item": (weights(5000) + b"abc", 4),
    "larger than the windows": (weights(300_000), 4),
    "large and even": (b"\0" * 3_000_000, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    data, width = CASES[name]
    round_trip(data, width)


@pytest.mark.parametrize("name", CASES)
def test_round_trip_of_a_delta(name):
    data, width = CASES[name]
    changed = bytearray(data)
    for index in range(0, len(changed), 997):
        changed[index] ^= 0x81
    codec = round_trip(bytes(changed), width, base=data).codec
    assert codec == DELTA or len(data) < 1000 or name in ("NaN payloads, -0.0, denormals", "large and even", "text")


def test_the_smallest_codec_is_taken():
    assert round_trip(weights(50_000), 4).codec == GROUPED
    assert round_trip(CASES["text"][0]).codec == ZSTD
    assert round_trip(CASES["noise"][0], 4).codec == RAW
    assert len(round_trip(bfloat16(500_000), 2).payload) < 0.7 * 1_000_000


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 50, 1000])
@pytest.mark.parametrize("way", [0, deltas.SUBTRACTED])
def test_few_changes_cost_little_wherever_they_are(width, count, way):
    base = np.frombuffer(weights(100_000), f"u{width}")
    changed = base.copy()
    places = GENERATOR.choice(len(changed), count, replace=False)
    changed[places] ^= GENERATOR.integers(1, 2 ** (8 * width) - 1, count, dtype=f"u{width}")
    payload = deltas._delta_by(way, changed.tobytes(), base.tobytes(), width)
    assert payload[0] & deltas.SPARSE and len(payload) < count * (width + 1.5) + 150
    back = decode(DELTA, payload, size=base.nbytes, base=base.tobytes())
    assert bytes(back) == changed.tobytes()


def pruned(data: bytes, dtype: str, share: float = 0.5) -> bytes:
    """A random share of the items became zero."""
    items = np.frombuffer(data, dtype).copy()
    items[GENERATOR.random(len(items)) < share] = 0
    return items.tobytes()


@pytest.mark.parametrize(
    ("count", "dtype", "width"), [(5000, "u4", 4), (500_000, "u4", 4), (500_001, "u2", 2), (7, "u8", 8)]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_pruning_costs_one_bit_an_item(count, dtype, width, share):
    base = GENERATOR.bytes(count * width)
    data = pruned(base, dtype, share)
    encoded = round_trip(data, width, base=base)
    if count > 1000:
        assert encoded.codec == DELTA and len(encoded.payload) < count / 8 * 1.05 + 200


def test_pruning_and_tuning_at_once_costs_the_tuning_and_one_bit_an_item():
    base = bfloat16(200_000)
    tuned = (np.frombuffer(base, np.uint16) + GENERATOR.integers(0, 3, 200_000)).astype(np.uint16)
    alone = len(encode(tuned.tobytes(), width=2, base=base).payload)
    both = round_trip(pruned(tuned.tobytes(), "u2"), 2, base=base)
    assert both.codec == DELTA and len(both.payload) < alone + 200_000 / 8 * 1.05


def test_minus_zero_is_no_zero():
    base = weights(5000)
    items = np.frombuffer(base, np.uint32).copy()
    items[::3], items[1::3] = 0x80000000, 0
    encoded = round_trip(items.tobytes(), 4, base=base)
    back = np.frombuffer(bytes(decode(encoded.codec, encoded.payload, size=len(base), base=base)), np.float32)
    assert np.signbit(back[::3]).all() and not np.signbit(back[1::3]).any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_what_is_pruned_by_a_product_keeps_its_sign_and_costs_no_more(dtype):
    base = weights(50_000, dtype)
    items = np.frombuffer(base, dtype)
    product = items * (GENERATOR.random(len(items)) < 0.5).astype(dtype)
    assert np.signbit(product[product == 0]).any()
    encoded = round_trip(product.tobytes(), items.itemsize, base=base)
    assert encoded.codec == DELTA and len(encoded.payload) < 50_000 / 8 * 1.05 + 200


def test_a_delta_that_saves_less_than_a_tenth_is_not_kept():
    assert round_trip(weights(50_000), 4, base=weights(50_000)).codec == GROUPED
    assert round_trip(weights(500_000), 4, base=weights(500_000)).codec == GROUPED


def test_a_delta_whose_windows_promised_too_much_is_not_kept():
    base = weights(1_000_000)
    changed = np.frombuffer(base, np.uint8).copy()
    kept = np.zeros(len(changed), bool)
    step = (len(changed) - WINDOW) // (WINDOWS - 1)
    for index in range(WINDOWS):
        kept[index * step - 4 : index * step + WINDOW] = True
    changed[~kept] = np.frombuffer(GENERATOR.bytes(len(changed)), np.uint8)[~kept]
    assert round_trip(changed.tobytes(), 4, base=base).codec != DELTA


def test_a_base_of_another_length_is_refused():
    with pytest.raises(ValueError, match="the base has 3 bytes"):
        encode(b"abcd", base=b"abc")


@given(data=st.binary(max_size=400), width=st.sampled_from([1, 2, 4, 8]), seed=st.binary(max_size=400))
def test_any_bytes_come_back(data, width, seed):
    round_trip(data, width)
    base = (seed * 400 + b"\0" * 400)[: len(data)]
    round_trip(data, width, base=base)


@given(
    payload=st.binary(max_size=200),
    codec=st.sampled_from([ZSTD, GROUPED, DELTA, RAW, "other"]),
    size=st.integers(0, 300),
)
def test_foreign_payloads_are_refused_or_have_the_right_size(payload, codec, size):
    with suppress(DamagedEncoding):
        assert len(decode(codec, payload, size=size, base=b"\0" * size)) == size


@pytest.mark.parametrize("codec", [ZSTD, GROUPED, DELTA, "few", "subtracted", "zeroed"])
def test_a_flipped_bit_or_a_missing_end_does_no_harm(codec):
    data, base = CASES["bfloat16"][0], bfloat16(5000)
    payload = {
        ZSTD: compress(CASES["text"][0]),
        GROUPED: group(data, 2),
        DELTA: deltas._delta_by(0, data, base, 2),
        "subtracted": deltas._delta_by(deltas.SUBTRACTED, data, base, 2),
        "zeroed": deltas._zeroed(0, pruned(base, "u2"), base, 2, len(base)),
        "few": deltas._delta_by(0, data[:2000] + base[2000:], base, 2),
    }[codec]
    codec = DELTA if codec in ("few", "subtracted", "zeroed") else codec
    for position in range(0, len(payload), max(len(payload) // 150, 1)):
        flipped = bytearray(payload)
        flipped[position] ^= 1 << (position % 8)
        for damaged in (flipped, payload[:position]):
            with suppress(DamagedEncoding):
                assert len(decode(codec, bytes(damaged), size=len(data), base=base)) == len(data)


def test_a_frame_that_announces_a_size_is_refused():
    with pytest.raises(DamagedEncoding, match="announces"):
        decode(ZSTD, zstandard.ZstdCompressor().compress(b"x" * 100), size=100)


def test_a_delta_without_its_base_is_refused():
    delta = encode(b"a" * 5000 + b"b", base=b"a" * 5001)
    for base in (None, b"short"):
        with pytest.raises(DamagedEncoding, match="base"):
            decode(DELTA, delta.payload, size=5001, base=base)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=30),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_differences_of_any_integers_are_undone(pairs, width):
    largest = 2 ** (8 * width)
    data, base = (np.array([pair[side] % largest for pair in pairs], f"<u{width}").tobytes() for side in (0, 1))
    for way in (0, deltas.SUBTRACTED):
        payload = deltas._delta_by(way, data, base, width)
        assert bytes(decode(DELTA, payload, size=len(data), base=base)) == data


def test_neighbouring_floats_differ_by_one_where_xor_changes_many_bits():
    base = np.full(5000, 1.0, np.float32)
    data = np.nextafter(base, np.float32(0.0))
    assert not np.frombuffer(deltas._subtracted(data.tobytes(), base.tobytes(), 4), np.uint32).max() > 1
    trained = np.frombuffer(weights(50_000), np.float32)
    moved = (trained + np.frombuffer(weights(50_000), np.float32) * np.float32(1e-3)).tobytes()
    sizes = [len(deltas._delta_by(way, moved, trained.tobytes(), 4)) for way in (0, deltas.SUBTRACTED)]
    assert sizes[1] < sizes[0]


@given(
    width=st.sampled_from([1, 2, 4, 8]),
    numbers=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=200),
)
def test_counted_numbers_come_back(width, numbers):
    given_numbers = np.array([number % 2 ** (8 * width) for number in numbers], bits.UNSIGNED[width])
    assert (bits.uncounted(bits.counted(given_numbers), len(numbers), width) == given_numbers).all()


@given(payload=st.binary(max_size=100), count=st.integers(0, 50), width=st.sampled_from([1, 2, 4, 8]))
def test_numbers_that_nobody_counted_are_refused_or_as_many_as_asked(payload, count, width):
    with suppress(DamagedEncoding):
        assert len(bits.uncounted(payload, count, width)) == count


def test_random_places_and_differences_cost_little_more_than_their_entropy():
    """One item of a hundred moved by noise: 8.1 bits tell where, 22.6 by how much; planes of bytes took 33.0."""
    base = np.frombuffer(weights(250_000), np.float32)
    chosen = np.unique(GENERATOR.integers(len(base), size=len(base) // 100))
    moved = base.copy()
    moved[chosen] += GENERATOR.standard_normal(len(chosen)).astype(np.float32) * np.float32(1e-3)
    payload = deltas.delta(moved.tobytes(), base.tobytes(), 4, most=base.nbytes)
    assert len(payload) * 8 / len(chosen) < 32.3


def test_sparse_deltas_of_the_first_kind_are_still_read():
    """Two changed bytes of 2,000 as they were written before numbers were counted."""
    first = (
        bytes([deltas.SPARSE | 1]) + struct.pack("<I", 2)
        + struct.pack("<I", 29) + group(struct.pack("<II", 8, 1000), 4)
        + group(b"\x05\x06", 1)
    )  # fmt: skip
    changed = bytearray(2000)
    changed[7], changed[1007] = 5, 6
    assert bytes(decode(DELTA, first, size=2000, base=bytes(2000))) == changed


@pytest.mark.parametrize("words", [20, 50, 200])
def test_items_that_repeat_are_not_taken_for_weights(words):
    """Weights from a codebook: their bytes are spread like those of weights, and whole items come again and again."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 2**32, words, dtype=np.uint32)[generator.integers(0, words, 100_000)].tobytes()
    encoded = encode(data, width=4)
    assert encoded.codec == ZSTD and len(encoded.payload) < 0.7 * len(group(data, 4))
    assert bytes(decode(encoded.codec, encoded.payload, size=len(data))) == data


@pytest.mark.parametrize(("kind", "most"), [(np.float32, 0.85), (np.float16, 0.86)])
def test_weights_are_grouped(kind, most):
    data = (np.random.default_rng(0).standard_normal(100_000) * 0.02).astype(kind).tobytes()
    encoded = encode(data, width=np.dtype(kind).itemsize)
    assert encoded.codec == GROUPED and len(encoded.payload) < most * len(data)
