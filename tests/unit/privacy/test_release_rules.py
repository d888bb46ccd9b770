"""What is not declared does not leave, and nothing leaves more often or larger than declared."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.errors import Invalid, Malformed, ReleaseRefused
from flame.model.manifest import Release
from flame.privacy.release import Caps, ReleaseBook, check_summary

SUM = Release("beta", "sum", 100, 3, "clear", "auto")
ANY_OBJECT = Release("*", "object", 50, 2, "clear", "auto")
LOG = Release("*", "log", 1000, 1000, "clear", "auto")


def test_what_is_not_declared_is_refused_and_says_how_to_declare_it():
    with pytest.raises(ReleaseRefused) as refused:
        ReleaseBook([SUM]).charge("sum", "gamma", 1, 0)
    assert refused.value.fields["rule"] == "declared"
    assert "flame.toml" in refused.value.next_step
    assert "gamma" in str(refused.value)


def test_a_kind_does_not_stand_in_for_another():
    with pytest.raises(ReleaseRefused):
        ReleaseBook([ANY_OBJECT]).charge("sum", "beta", 1, 0)
    with pytest.raises(ReleaseRefused):
        ReleaseBook([ANY_OBJECT]).charge("final", "result.json", 1)


def test_a_release_above_its_bytes_is_refused_and_not_counted():
    book = ReleaseBook([SUM])
    with pytest.raises(ReleaseRefused) as refused:
        book.charge("sum", "beta", 101, 0)
    assert (refused.value.fields["rule"], refused.value.fields["limit"]) == ("max_bytes", 100)
    assert book.counts == {}
    assert book.charge("sum", "beta", 100, 0) is SUM


def test_rounds_are_counted_and_end():
    book = ReleaseBook([SUM])
    for round in range(3):
        book.charge("sum", "beta", 10, round)
    with pytest.raises(ReleaseRefused) as refused:
        book.charge("sum", "beta", 10, 3)
    assert refused.value.fields["rule"] == "rounds_max"
    assert book.counts == {"sum/beta": {"releases": 3, "bytes": 30, "rounds": {"beta": 2}}}


def test_a_round_is_released_once_and_never_backwards():
    book = ReleaseBook([SUM])
    book.charge("sum", "beta", 10, 1)
    for round in (1, 0, -1, 2**31):
        with pytest.raises(ReleaseRefused) as refused:
            book.charge("sum", "beta", 10, round)
        assert refused.value.fields["rule"] == "round"
    book.charge("sum", "beta", 10, 2)


def test_all_names_of_a_wildcard_share_one_budget():
    book = ReleaseBook([ANY_OBJECT])
    book.charge("object", "a", 1)
    book.charge("object", "b", 1)
    with pytest.raises(ReleaseRefused):
        book.charge("object", "c", 1)


def test_the_hospitals_caps_hold_where_they_are_stricter():
    book = ReleaseBook([SUM], caps=Caps(max_bytes=20, max_rounds=1))
    with pytest.raises(ReleaseRefused, match="policy"):
        book.charge("sum", "beta", 21, 0)
    book.charge("sum", "beta", 20, 0)
    with pytest.raises(ReleaseRefused, match="policy"):
        book.charge("sum", "beta", 1, 1)
    assert book.max_body == 20


def test_a_restored_book_goes_on_where_it_ended():
    book = ReleaseBook([SUM, LOG])
    book.charge("sum", "beta", 10, 0)
    book.charge_line(5)
    again = ReleaseBook([SUM, LOG], json.loads(json.dumps(book.counts)))
    assert again.counts == book.counts
    with pytest.raises(ReleaseRefused, match="released before"):
        again.charge("sum", "beta", 10, 0)


@pytest.mark.parametrize(
    "broken",
    [
        {"x": {}},
        {"x": {"releases": -1, "bytes": 0, "rounds": {}}},
        {"x": {"releases": 1.5, "bytes": 0, "rounds": {}}},
        {"x": None},
    ],
)
def test_broken_counters_are_not_taken_for_none(broken):
    with pytest.raises(Malformed):
        ReleaseBook([SUM], broken)


def test_lines_and_errors_have_an_end():
    book = ReleaseBook([LOG], caps=Caps(max_lines=2, max_errors=1))
    book.charge_line(10)
    book.charge_line(10)
    with pytest.raises(ReleaseRefused, match="lines"):
        book.charge_line(10)
    book.charge_error(10)
    with pytest.raises(ReleaseRefused, match="errors"):
        book.charge_error(10)


def test_two_hundred_lines_and_twenty_errors_are_the_default():
    book = ReleaseBook([LOG])
    for _ in range(200):
        book.charge_line(1)
    with pytest.raises(ReleaseRefused):
        book.charge_line(1)
    for _ in range(20):
        book.charge_error(1)
    with pytest.raises(ReleaseRefused):
        book.charge_error(1)


def test_no_line_leaves_where_logs_are_not_declared():
    with pytest.raises(ReleaseRefused):
        ReleaseBook([SUM]).charge_line(1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 120), st.integers(-1, 6)), max_size=30))
def test_whatever_is_asked_the_counts_never_exceed_the_declaration(asked):
    book = ReleaseBook([SUM])
    passed = []
    for size, round in asked:
        try:
            book.charge("sum", "beta", size, round)
            passed.append((size, round))
        except ReleaseRefused:
            continue
    assert len(passed) <= SUM.rounds_max
    assert all(size <= SUM.max_bytes for size, _ in passed)
    assert [r for _, r in passed] == sorted({r for _, r in passed})
    if passed:
        assert book.counts["sum/beta"]["bytes"] == sum(size for size, _ in passed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_number_that_is_not_finite_is_named_and_refused(value, dtype):
    with pytest.raises(ReleaseRefused, match="'information'") as refused:
        check_summary({"n": np.array(3), "information": np.array([[1.0, value]], dtype=dtype)})
    assert refused.value.fields["entry"] == "information"


@pytest.mark.parametrize("array", [np.array([True]), np.array(["a"]), np.array([1j]), np.array([object()])])
def test_only_numbers_can_be_summed(array):
    with pytest.raises(Invalid, match="'x'"):
        check_summary({"x": array})


def test_an_empty_summary_and_one_of_too_many_entries_are_refused():
    with pytest.raises(Invalid):
        check_summary({})
    with pytest.raises(Invalid):
        check_summary({str(i): np.array(1) for i in range(5000)})
    with pytest.raises(Invalid):
        check_summary({"x" * 1000: np.array(1)})
