"""Any value comes back as it was; anything that encode would not have written is refused."""

from __future__ import annotations

import datetime
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flame.model.errors import Invalid, Malformed
from flame.wire import values

KEYS = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda key: not key.startswith("$"))
NUMBER_TYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
ARRAYS = hnp.arrays(NUMBER_TYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=80),
)
TREES = st.recursive(
    st.one_of(SCALARS, ARRAYS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.shape == b.shape
            and a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
            and a.astype(a.dtype.newbyteorder("<")).tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


@given(TREES)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    assert same(value, values.decode(values.encode_bytes(value)))


@given(TREES)
def test_one_value_has_one_form(value: Any) -> None:
    written = values.encode_bytes(value)
    assert values.encode_bytes(values.decode(written)) == written


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_read_and_nothing_else_happens(data: bytes) -> None:
    try:
        value = values.decode(data)
    except Malformed:
        return
    assert values.encode_bytes(value) == data


@given(TREES, st.data())
def test_a_changed_byte_is_refused_or_another_value(value: Any, draw: st.DataObject) -> None:
    written = bytearray(values.encode_bytes(value))
    place = draw.draw(st.integers(0, len(written) - 1))
    written[place] ^= draw.draw(st.integers(1, 255))
    try:
        other = values.decode(bytes(written))
    except Malformed:
        return
    assert values.encode_bytes(other) == bytes(written)


@given(TREES, st.integers(min_value=1, max_value=200))
def test_a_value_cut_short_or_with_a_tail_is_refused(value: Any, length: int) -> None:
    written = values.encode_bytes(value)
    for wrong in (written[:-length], written + bytes(length)):
        with pytest.raises(Malformed):
            values.decode(wrong)


def test_arrays_are_not_copied_and_cannot_be_written() -> None:
    data = values.encode_bytes({"x": np.arange(1000.0)})
    x = values.decode(data)["x"]
    assert np.shares_memory(x, np.frombuffer(data, "u1"))
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1


def test_encoding_copies_no_contiguous_array() -> None:
    x = np.arange(1000.0)
    assert any(np.shares_memory(x, np.frombuffer(part, "u1")) for part in values.encode(x))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, "value.a[1]"),
        ({"a": {1, 2}}, "value.a"),
        ({1: 2}, "key 1"),
        ({"$array": 0}, "'$array'"),
        (np.array([object()]), "value"),
        (np.array(["text"]), "value"),
        (np.array([1 + 2j]), "value"),
        (np.array(["2026-01-01"], "M8[s]"), "value"),
        (np.datetime64("2026-01-01"), "value"),
        (datetime.date(2026, 1, 1), "value"),
        (np.longdouble(1), "value"),
        (np.complex128(1j), "value"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "value"),
        (2**64, "64 bits"),
        ("\ud800", "surrogate"),
        (b"x" * (values.MAX_HEAD + 1), "np.frombuffer"),
    ],
)
def test_what_cannot_travel_is_refused_by_its_place(value: Any, where: str) -> None:
    with pytest.raises(Invalid) as refused:
        values.encode(value)
    assert where in str(refused.value)


def test_a_value_nested_without_end_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Invalid, match="nested deeper"):
        values.encode(loop)


def test_numpy_scalars_and_text_travel_as_plain_ones() -> None:
    sent = [np.float32(0.5), np.int8(-3), np.bool_(True), np.str_("ä"), np.float64(0.1), (1, 2)]
    assert values.decode(values.encode_bytes(sent)) == [0.5, -3, True, "ä", 0.1, [1, 2]]


def block(tree: Any, arrays: list[list[Any]], body: bytes = b"", *, encoded: bytes | None = None) -> bytes:
    head = encoded if encoded is not None else msgspec.msgpack.encode({"tree": tree, "arrays": arrays})
    return len(head).to_bytes(4, "big") + head + bytes(-(4 + len(head)) % 64) + body


def test_the_hand_made_block_of_these_tests_is_well_formed() -> None:
    made = block({"$array": 0}, [["f8", [2], 0, 16]], np.array([1.0, 2.0]).tobytes() + bytes(48))
    assert values.decode(made).tolist() == [1.0, 2.0]


TWO = bytes(64)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\x00", id="half a length"),
        pytest.param((2**32 - 1).to_bytes(4, "big"), id="a head of 4 GiB"),
        pytest.param(block(None, [["f8", [2], 0, 16]], TWO), id="an array that nobody names"),
        pytest.param(block([{"$array": 0}, {"$array": 0}], [["f8", [2], 0, 16]], TWO), id="an array twice"),
        pytest.param(block({"$array": 1}, [["f8", [2], 0, 16]], TWO), id="an array that is not there"),
        pytest.param(block({"$array": True}, [["f8", [2], 0, 16]], TWO), id="an index of another type"),
        pytest.param(block({"$array": -1}, [["f8", [2], 0, 16]], TWO), id="a negative index"),
        pytest.param(block({"$array": 0, "x": 1}, [["f8", [2], 0, 16]], TWO), id="an array with company"),
        pytest.param(block({"$other": 0}, []), id="a reserved key"),
        pytest.param(block({"$array": 0}, [["O", [2], 0, 16]], TWO), id="objects"),
        pytest.param(block({"$array": 0}, [["<f8", [2], 0, 16]], TWO), id="another spelling of a type"),
        pytest.param(block({"$array": 0}, [["f8", [3], 0, 16]], TWO), id="shape larger than bytes"),
        pytest.param(block({"$array": 0}, [["f8", [-2], 0, -16]], TWO), id="negative shape"),
        pytest.param(block({"$array": 0}, [["f8", [2**40], 0, 2**43]], TWO), id="a huge array"),
        pytest.param(block({"$array": 0}, [["f8", [0, 2**62, 2**62], 0, 0]]), id="empty with impossible sides"),
        pytest.param(block({"$array": 0}, [["f8", [1] * 65, 0, 8]], TWO), id="too many dimensions"),
        pytest.param(block({"$array": 0}, [["f8", [2], 64, 16]], TWO + TWO), id="a gap"),
        pytest.param(
            block([{"$array": 0}, {"$array": 1}], [["f8", [2], 0, 16], ["f8", [2], 0, 16]], TWO), id="overlapping"
        ),
        pytest.param(block({"$array": 0}, [["f8", [2], 0, 16]], bytes(63) + b"x"), id="a message in the padding"),
        pytest.param(block(None, [["f8", [0], 0, 0]] * 5000), id="too many arrays"),
        pytest.param(block(None, [], encoded=b"\x91" * 100_000), id="nested without end"),
        pytest.param(block(None, [], encoded=b"\x82\xa4tree\xc0\xa4tree\xc0\xa6arrays\x90"), id="a key twice"),
        pytest.param(block(None, [], encoded=b"\x82\xa6arrays\x90\xa4tree\xc0"), id="another order"),
        pytest.param(block(None, [], encoded=b"\x82\xa4tree\xcd\x00\x01\xa6arrays\x90"), id="a number in long form"),
        pytest.param(block(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), []), id="a time stamp"),
        pytest.param(block(msgspec.msgpack.Ext(5, b"x"), []), id="an extension type"),
        pytest.param(block({1: 2}, []), id="a number as key"),
    ],
)
def test_hostile_blocks_are_refused(hostile: bytes) -> None:
    with pytest.raises(Malformed):
        values.decode(hostile)


def test_a_summary_is_flat_and_sorted_by_name() -> None:
    summary = {"n": 3, "mean": np.float64(0.5), "count": np.int64(2), "flag": True, "x": np.zeros((2, 2))}
    flat = dict(values.named_arrays(summary))
    assert list(flat) == ["count", "flag", "mean", "n", "x"]
    assert [array.dtype.str for array in flat.values()] == ["<i8", "<i8", "<f8", "<i8", "<f8"]
    assert [array.shape for array in flat.values()] == [(), (), (), (), (2, 2)]


@pytest.mark.parametrize("summary", [[1], {"a": "text"}, {"a": [1, 2]}, {"a": None}, {1: 2}, {"n": 2**63}])
def test_a_summary_of_anything_else_is_refused(summary: Any) -> None:
    with pytest.raises(Invalid):
        list(values.named_arrays(summary))
