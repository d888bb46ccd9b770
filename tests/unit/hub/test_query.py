"""The query language, alone: nothing is dropped, nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.hub.query import Filter, Query, Vocabulary, parse
from flame.model.errors import Invalid

KNOWN = Vocabulary(
    frozenset({"id", "name", "email"}), frozenset({"name", "age"}), frozenset({"name"}), {"project": frozenset({"id"})}
)


def test_everything_at_once() -> None:
    query = parse(
        [
            ("filter[name]", "!~ab~"), ("filter[age]", "<=3"), ("filter[project.id]", "1,null"), ("sort", "-name"),
            ("include", "project"), ("fields", "+email"), ("page[limit]", "10"), ("page[offset]", "20"),
        ],
        KNOWN,
    )  # fmt: skip
    assert query == Query(
        (
            Filter("name", "contains", ("ab",), True),
            Filter("age", "le", ("3",)),
            Filter("project.id", "in", ("1", None)),
        ),
        (("name", True),), ("project",), frozenset({"email"}), None, {}, 10, 20,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "operator", "values"),
    [
        ("a", "eq", ("a",)),
        ("~a", "ends", ("a",)),
        ("a~", "starts", ("a",)),
        (">a", "gt", ("a",)),
        ("null", "eq", (None,)),
    ],
)
def test_operators(value: str, operator: str, values: tuple[str | None, ...]) -> None:
    (found,) = parse([("filter[name]", value)], KNOWN).filters
    assert (found.operator, found.values) == (operator, values)


def test_the_page_has_a_cap() -> None:
    assert parse([("page[limit]", "100000")], KNOWN).limit == 50
    assert parse([("page[limit]", "0")], KNOWN).limit == 50


def test_all_that_is_unknown_is_named() -> None:
    with pytest.raises(Invalid) as refused:
        parse([("filter[x]", "1"), ("sort", "y"), ("z", "1")], KNOWN)
    issues = refused.value.fields["issues"]
    assert [i["path"] for i in issues] == [["filter", "x"], ["sort", "y"], ["z"]]  # type: ignore[index, attr-defined]


@given(
    st.lists(
        st.tuples(st.text(max_size=20) | st.sampled_from(["filter[name]", "sort", "page[limit]"]), st.text(max_size=20))
    )
)
def test_any_text_is_parsed_or_refused(items: list[tuple[str, str]]) -> None:
    try:
        query = parse(items, KNOWN)
    except Invalid as error:
        assert error.fields["issues"]
    else:
        assert all(f.path in ("name", "age", "project.id") for f in query.filters) and 0 < query.limit <= 50
