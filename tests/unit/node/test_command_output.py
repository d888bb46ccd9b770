"""What commands print is safe to look at and says what to do next."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.cli.output import Output, exit_code, explained, plain, plain_lines, told_errors
from flame.model.errors import FlameError, Invalid, NotFound, Refused, ReleaseRefused, Unavailable


@settings(deadline=None)
@given(st.text())
def test_no_text_of_others_controls_the_terminal(text):
    assert all(c.isprintable() or c.isspace() for c in plain(text))
    assert not set(plain(text)) & set("\x1b\r\n\x9b\u202e")
    assert not set(plain_lines(text)) & set("\x1b\r\x9b\u202e")


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.text(max_size=8),
            st.none(),
            st.integers(),
            st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
        ),
        max_size=4,
    )
)
def test_any_document_prints_and_stays_json(document):
    out = io.StringIO()
    Output(False, out).document(document, "Title")
    assert "\x1b" not in out.getvalue()
    out = io.StringIO()
    Output(True, out).document(document)
    assert json.loads(out.getvalue()) == document


@pytest.mark.parametrize(
    ("error", "code"),
    [(Invalid("x"), 2), (ReleaseRefused("x"), 3), (NotFound("x"), 4), (Unavailable("x"), 6), (FlameError("x"), 1)],
)
def test_exit_codes_tell_kinds_apart(error, code):
    assert exit_code(error) == code
    err = io.StringIO()
    with pytest.raises(SystemExit) as ended, told_errors(err=err):
        raise error
    assert ended.value.code == code
    assert err.getvalue().startswith("Error: x")


def test_an_error_says_what_happened_and_what_to_do():
    assert list(explained(Refused("It is\x1b locked.", next_step="Unlock it."))) == [
        "Error: It is\N{REPLACEMENT CHARACTER} locked.",
        "  What to do: Unlock it.",
        "  (refused)",
    ]


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), told_errors():
        raise ZeroDivisionError
