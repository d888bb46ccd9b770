"""A signed document has one form; any other spelling of the same value is refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.crypto.canonical import canonical, digest, document_digest, parse_canonical
from flame.model.errors import Malformed

SAFE = 2**53 - 1
floats = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not SAFE < abs(x) < 1e21)
text = st.text(st.characters(codec="utf-8"))
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE, SAFE) | floats | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(documents)
def test_what_is_written_is_read_back(document: object) -> None:
    assert parse_canonical(canonical(document)) == document


@given(documents, st.integers(0, 200), st.sampled_from([b" ", b"\n", b"\t", b"\xef\xbb\xbf"]))
def test_one_more_space_outside_text_is_refused(document: object, place: int, space: bytes) -> None:
    data = canonical(document)
    changed = data[: place % (len(data) + 1)] + space + data[place % (len(data) + 1) :]
    try:
        value = parse_canonical(changed)
    except Malformed:
        return
    assert value != document  # the space fell into a text, and is part of it


def test_the_example_of_rfc_8785() -> None:
    source = (
        '{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        ' "string": "\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/", "literals": [null, true, false]}'
    )
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(json.loads(source)) == expected.encode()


def test_keys_are_sorted_by_utf_16() -> None:
    assert canonical({"\ufb33": 1, "\U0001f600": 2}).decode() == '{"\U0001f600":2,"\ufb33":1}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b'"\\u0041"',
        b'"\\/"',
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e400",
        b"-0",
        b"-0.0",
        b"1.0",
        b"1E2",
        b"1e2",
        b"0.10",
        b"9007199254740992",
        b"-9007199254740992",
        b"100000000000000000000",
        b"9" * 5000,
        b"",
        b"{",
        b"{}{}",
        b"[1,]",
        b"[" * 33 + b"]" * 33,
        b"[" * 100_000,
    ],
)
def test_what_is_not_its_own_canonical_form_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_canonical(data)


def test_a_key_named_twice_is_called_so() -> None:
    with pytest.raises(Malformed, match="twice"):
        parse_canonical(b'{"a":1,"a":2}')


def test_thirty_two_levels_are_read() -> None:
    data = b"[" * 32 + b"]" * 32
    assert canonical(parse_canonical(data)) == data


def test_a_larger_document_is_refused() -> None:
    data = canonical("x" * 98)
    assert parse_canonical(data, max_bytes=100)
    with pytest.raises(Malformed, match="at most 99"):
        parse_canonical(data, max_bytes=99)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, 2.0**60, {1: 2}, b"x", {"a": {1, 2}}, "\ud800"])
def test_values_without_a_canonical_form_are_refused(value: object) -> None:
    with pytest.raises(Malformed):
        canonical(value)


def test_a_digest_is_sha_256_of_the_canonical_form() -> None:
    assert (
        document_digest({"b": 1.0, "a": ()}) == hashlib.sha256(b'{"a":[],"b":1}').digest() == digest(b'{"a":[],"b":1}')
    )
