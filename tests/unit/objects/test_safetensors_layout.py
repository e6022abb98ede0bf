"""The layout of safetensors files: right for real ones, None for whatever deviates, never an exception."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from dlplatform.objects.safetensors_layout import (
    MOST_HEADER,
    MOST_TENSORS,
    PREFIX,
    SLICE,
    fixed_slices,
    header_length,
    regions,
)


def laid_out(content: bytes):
    length = header_length(content[:PREFIX], len(content))
    return None if length is None else regions(content[PREFIX : PREFIX + length], len(content))


def file_of(header, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, **changes):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} | changes


def assert_covers(found, size: int):
    end = 0
    for region in found:
        assert region.start == end and region.size > 0
        end += region.size
    assert end == size
    assert len({region.key for region in found}) == len(found)


def test_a_real_file_is_its_header_and_its_tensors():
    content = save(
        {
            "weight": np.zeros((3, 5), np.float32),
            "bias": np.zeros(3, np.float16),
            "scalar": np.array(2.0),
            "empty": np.zeros((0, 4), np.int64),
        },
        metadata={"format": "pt"},
    )
    found = laid_out(content)
    assert_covers(found, len(content))
    named = {region.key[0]: (region.size, region.width) for region in found}
    length = int.from_bytes(content[:8], "little")
    assert named == {"": (8 + length, 1), "weight": (60, 4), "bias": (6, 2), "scalar": (8, 8)}


def test_a_large_tensor_is_cut_between_rows():
    rows, columns = 5000, 1000
    content = save({"table": np.zeros((rows, columns), np.float32), "flat": np.zeros(3 * SLICE // 4, np.float32)})
    found = laid_out(content)
    assert_covers(found, len(content))
    table = [region for region in found if region.key[0] == "table"]
    assert len(table) == 3 and {region.size % (columns * 4) for region in table} == {0}
    assert [region.size for region in found if region.key[0] == "flat"] == [SLICE] * 3


def test_rows_larger_than_a_slice_are_cut_between_items():
    found = laid_out(save({"wide": np.zeros((2, SLICE // 4 + 1), np.float64)}))
    assert [region.size for region in found[1:-1]] == [SLICE] * (len(found) - 2)


def test_a_grown_table_keeps_the_slices_of_its_old_rows():
    small = laid_out(save({"table": np.zeros((3000, 1000), np.float32)}))
    grown = laid_out(save({"table": np.zeros((9000, 1000), np.float32)}))
    assert [(r.key, r.size) for r in small[1:-1]] == [(r.key, r.size) for r in grown[1 : len(small) - 1]]


STRANGE = {
    "a gap": file_of({"a": entry(0, 4), "b": entry(5, 8)}, b"x" * 8),
    "an overlap": file_of({"a": entry(0, 5), "b": entry(4, 8)}, b"x" * 8),
    "tied tensors": file_of({"a": entry(0, 8), "b": entry(0, 8)}, b"x" * 8),
    "bytes after the end": file_of({"a": entry(0, 7)}, b"x" * 8),
    "bytes missing": file_of({"a": entry(0, 9)}, b"x" * 8),
    "a negative offset": file_of({"a": entry(-1, 7)}, b"x" * 8),
    "offsets in the wrong order": file_of({"a": entry(8, 0)}, b"x" * 8),
    "an unknown dtype": file_of({"a": entry(0, 8, dtype="F4")}, b"x" * 8),
    "a dtype that is no text": file_of({"a": entry(0, 8, dtype=["U8"])}, b"x" * 8),
    "a shape that does not fit": file_of({"a": entry(0, 8, shape=[9])}, b"x" * 8),
    "a negative shape": file_of({"a": entry(0, 8, shape=[-2, -4])}, b"x" * 8),
    "a shape of truths": file_of({"a": entry(0, 1, shape=[True])}, b"x"),
    "floats as offsets": file_of({"a": entry(0, 8, data_offsets=[0.0, 8.0])}, b"x" * 8),
    "three offsets": file_of({"a": entry(0, 8, data_offsets=[0, 4, 8])}, b"x" * 8),
    "offsets beyond 64 bits": file_of({"a": entry(0, 2**80)}, b"x" * 8),
    "a very deep shape": file_of({"a": entry(0, 1, shape=[1] * 65)}, b"x"),
    "another key": file_of({"a": entry(0, 8, more=1)}, b"x" * 8),
    "a list": file_of([entry(0, 8)], b"x" * 8),
    "an entry that is a number": file_of({"a": 1}, b"x" * 8),
    "a name twice": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8)).encode(),) * 2), b"x" * 8),
    "no JSON": file_of(b"{nothing}", b"x" * 8),
    "no UTF-8": file_of(b'{"\xff\xfe": 1}', b"x" * 8),
    "nesting without end": file_of(b"[" * 100_000, b"x" * 8),
    "a number without end": file_of(b"9" * 100_000, b"x" * 8),
    "too many tensors": file_of({str(number): entry(0, 0) for number in range(MOST_TENSORS + 1)}),
    "a huge header length": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header over the limit": struct.pack("<Q", MOST_HEADER) + b"{" + b" " * MOST_HEADER + b"}",
    "shorter than its prefix": b"abc",
    "nothing": b"",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_deviates_has_no_layout(name):
    assert laid_out(STRANGE[name]) is None


def test_a_name_may_be_anything():
    content = file_of(b'{"\\ud800\\u0000": %s}' % json.dumps(entry(0, 8)).encode(), b"x" * 8)
    assert_covers(laid_out(content), len(content))


offset = st.one_of(st.integers(-5, 40), st.integers(), st.none(), st.floats(), st.text(max_size=3))
tensor_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F64", "F4", "", 3, None]),
        "shape": st.lists(st.one_of(st.integers(-2, 6), offset), max_size=3),
        "data_offsets": st.lists(offset, min_size=1, max_size=3),
    }
)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=400)
@given(
    header=st.one_of(
        st.dictionaries(st.text(max_size=4), st.one_of(tensor_entry, json_value), max_size=4).map(json.dumps),
        json_value.map(json.dumps),
        st.text(max_size=60),
    ),
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    data=st.binary(max_size=40),
)
def test_hostile_headers_give_a_layout_that_covers_the_file_or_none(header, length, data):
    text = header.encode("utf-8", "surrogatepass")
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    found = laid_out(content)
    if found is not None:
        assert_covers(found, len(content))


@given(cuts=st.lists(st.integers(1, 30), max_size=6), seed=st.randoms())
def test_valid_files_always_have_a_layout(cuts, seed):
    entries, end = {}, 0
    for number, size in enumerate(cuts):
        entries[f"t{number}"] = entry(end, end + size)
        end += size
    names = list(entries)
    seed.shuffle(names)
    content = file_of({name: entries[name] for name in names}, b"x" * end)
    assert_covers(laid_out(content), len(content))


def test_other_files_are_cut_into_slices():
    assert_covers(fixed_slices(2 * SLICE + 5), 2 * SLICE + 5)
    assert fixed_slices(0) == []
