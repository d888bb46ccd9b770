"""A column has one type, the same whichever reader saw it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flame.node.data.table import MISSING, type_name, typed_column

FIELDS = st.one_of(
    st.sampled_from(
        [
            *sorted(MISSING),
            "true",
            "False",
            "TRUE",
            "0",
            "-0",
            "+5",
            "007",
            "1.",
            ".5",
            "1e5",
            "1e400",
            "inf",
            "1,5",
            "-",
            ".",
            "+",
            "é",
        ]
    ),
    st.integers(-(10**19), 10**19).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(alphabet="0123456789+-.eE", max_size=6),
)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (["1", "-2", "+3", "0"], "int64"),
        (["1", "", "3"], "float64"),
        (["1", "2.5"], "float64"),
        (["NA", "NA"], "float64"),
        (["01067", "99999"], "text"),
        (["true", "False"], "bool"),
        (["true", "NA"], "float64"),
        (["1", "true"], "text"),
        (["1e999"], "text"),
        (["1,5"], "text"),
        (["inf"], "text"),
        (["1" * 19], "float64"),
    ],
)
def test_the_type_of_a_column(fields, kind):
    assert type_name(typed_column(fields)) == kind


def test_missing_is_nan_in_numbers_and_none_in_text():
    assert np.isnan(typed_column(["1", "NA"])).tolist() == [False, True]
    assert typed_column(["a", "", "NULL"]) == ["a", None, None]


@settings(deadline=None)
@given(st.lists(FIELDS, min_size=1, max_size=8))
@example(["-0", "1"])
@example(["9" * 18])
@example(["0" * 400])
def test_both_readers_give_the_same_column(fields):
    import pyarrow as pa

    from flame.node.data.reader import _typed_arrow_text

    small, large = typed_column(fields), _typed_arrow_text(pa.chunked_array([pa.array(fields, pa.string())]))
    assert type_name(small) == type_name(large)
    if isinstance(small, list):
        assert small == large
    else:
        assert small.dtype == large.dtype
        assert small.tobytes() == large.tobytes() or np.array_equal(small, large, equal_nan=True)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_floats_come_back_to_the_last_bit(numbers):
    column = typed_column(["" if number is None else repr(number) for number in numbers])
    for number, found in zip(numbers, column, strict=True):
        assert np.isnan(found) if number is None else float(found) == number
