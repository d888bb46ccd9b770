"""A sum in clear is exact where it says so, in the order given, and names who does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flame.model.errors import Invalid, ReleaseRefused
from flame.privacy.sums import ClearSum


def summed(*summaries):
    total = ClearSum()
    for number, summary in enumerate(summaries):
        total.add(f"hospital {number}", summary)
    return total.result()


@settings(deadline=None)
@given(st.lists(hnp.arrays("i8", 4, elements=st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=6))
def test_integers_are_exact_or_refused(arrays):
    partial, fits = np.zeros(4, dtype=object), True
    for array in arrays:
        partial = partial + array.astype(object)
        fits = fits and all(-(2**63) <= value < 2**63 for value in partial)
    if fits:
        assert summed(*({"x": array} for array in arrays))["x"].astype(object).tolist() == partial.tolist()
    else:
        with pytest.raises(ReleaseRefused, match="does not fit"):
            summed(*({"x": array} for array in arrays))


@settings(deadline=None)
@given(st.lists(hnp.arrays("u8", 3, elements=st.integers(0, 2**64 - 1)), min_size=1, max_size=4))
def test_unsigned_integers_are_exact_or_refused(arrays):
    expected = sum(array.astype(object) for array in arrays)
    if max(expected) < 2**64:
        assert summed(*({"x": array} for array in arrays))["x"].astype(object).tolist() == list(expected)
    else:
        with pytest.raises(ReleaseRefused):
            summed(*({"x": array} for array in arrays))


@settings(deadline=None)
@given(st.lists(hnp.arrays("f8", (2, 3), elements=st.floats(-1e100, 1e100)), min_size=1, max_size=6))
def test_floats_are_added_one_after_the_other_in_the_order_given(arrays):
    expected = arrays[0].copy()
    for array in arrays[1:]:
        expected = expected + array
    assert summed(*({"x": array} for array in arrays))["x"].tobytes() == expected.tobytes()


def test_small_integers_do_not_wrap():
    full = np.full(3, 255, dtype="u1")
    assert summed({"x": full}, {"x": full})["x"].tolist() == [510, 510, 510]


def test_float32_stays_float32_and_numbers_stay_without_axes():
    total = summed({"w": np.ones(4, "f4"), "n": np.array(3)}, {"w": np.ones(4, "f4"), "n": np.array(4)})
    assert total["w"].dtype == np.float32
    assert total["n"].shape == ()
    assert total["n"] == 7


def test_what_was_given_is_not_changed():
    first = np.ones(3)
    first.flags.writeable = False
    summed({"x": first}, {"x": np.ones(3)})
    assert first.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"y": np.ones(2)}, "x"),
        ({"x": np.ones(2), "y": np.ones(2)}, "y"),
        ({"x": np.ones(3)}, "x"),
        ({"x": np.ones((2, 1))}, "x"),
        ({"x": np.ones(2, dtype="f4")}, "x"),
        ({"x": np.ones(2, dtype="i8")}, "x"),
    ],
)
def test_what_does_not_fit_names_the_contributor_and_the_entry(second, named):
    total = ClearSum()
    total.add("A", {"x": np.ones(2)})
    with pytest.raises(Invalid, match="B") as wrong:
        total.add("B", second)
    assert (wrong.value.fields["contributor"], wrong.value.fields["entry"]) == ("B", named)
    assert total.contributors == ("A",)
    assert total.result()["x"].tolist() == [1, 1]


def test_not_finite_names_the_contributor():
    with pytest.raises(ReleaseRefused, match=r"A: .*'x'"):
        ClearSum().add("A", {"x": np.array([np.nan])})


def test_an_overflow_of_one_entry_leaves_all_entries_as_they_were():
    total = ClearSum()
    total.add("A", {"a": np.array([1]), "b": np.array([2**62]), "c": np.array([1.0])})
    with pytest.raises(ReleaseRefused, match="B"):
        total.add("B", {"a": np.array([1]), "b": np.array([2**62]), "c": np.array([1.0])})
    assert {name: array.tolist() for name, array in total.result().items()} == {"a": [1], "b": [2**62], "c": [1.0]}


def test_a_float_sum_that_overflows_is_refused():
    big = {"x": np.array([3e38], dtype="f4")}
    with pytest.raises(ReleaseRefused, match="'x'"):
        summed(big, big)


def test_nobody_contributes_twice_and_nobody_is_no_sum():
    total = ClearSum()
    with pytest.raises(Invalid):
        total.result()
    total.add("A", {"x": np.ones(1)})
    with pytest.raises(Invalid, match="A"):
        total.add("A", {"x": np.ones(1)})
