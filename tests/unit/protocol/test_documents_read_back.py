"""Signed documents have one form: written, read, hashed as the same bytes; anything else is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.crypto.canonical import canonical, digest
from flame.model.errors import Malformed
from flame.protocol.documents import Approval, By, Event, Proposal, SignedEvent, StartOrder

T1, T2 = "2026-11-01T10:00:00Z", "2026-12-01T10:00:00Z"
DOCUMENTS: list[Any] = [
    StartOrder("a" * 64, 1, {"alpha": 1.5, "list": [1, True, None]}, ["n1", "n2"], T1, T2),
    Approval("analysis", "a" * 64, "n1", "approved", {}, "b" * 64, T1, T2, [By("steward", "Ada")]),
    Proposal("p", "Name", "Text with ü and \u2028", "u"),
    Event("start", "c" * 64, "run", T1, {"a": 1, "b": [1, 2]}, "d" * 32),
]
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)


@EACH
def test_what_is_written_is_read(document: Any) -> None:
    data = document.encoded()
    assert type(document).decode(data) == document
    assert type(document).decode(data).encoded() == data
    assert document.digest == digest(data)


@EACH
def test_no_field_may_be_missing_added_or_of_another_type(document: Any) -> None:
    whole = json.loads(document.encoded())
    with pytest.raises(Malformed):
        type(document).decode(canonical({**whole, "extra": 1}))
    for name in whole:
        with pytest.raises(Malformed):
            type(document).decode(canonical({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(Malformed):
            type(document).decode(canonical({**whole, name: None}))


@EACH
@pytest.mark.parametrize("version", [0, 2, True, "1", 1.5])
def test_another_version_is_refused(document: Any, version: Any) -> None:
    with pytest.raises(Malformed):
        type(document).decode(canonical({**json.loads(document.encoded()), "version": version}))


@EACH
def test_other_bytes_of_the_same_value_are_refused(document: Any) -> None:
    data = document.encoded()
    for other in (data + b" ", b" " + data, data[:-1] + b',"version":1}', data.replace(b":1", b":1.0", 1)):
        with pytest.raises(Malformed):
            type(document).decode(other)


@EACH
@given(data=st.binary(max_size=80))
def test_noise_is_malformed(document: Any, data: bytes) -> None:
    with pytest.raises(Malformed):
        type(document).decode(data)


def test_one_document_is_not_read_as_another() -> None:
    for document in DOCUMENTS:
        for other in DOCUMENTS:
            if type(other) is not type(document):
                with pytest.raises(Malformed):
                    type(other).decode(document.encoded())


def test_an_approval_says_approved_or_rejected() -> None:
    whole = json.loads(DOCUMENTS[1].encoded())
    for change in ({"decision": "Approved"}, {"subject": "node"}, {"by": [{"kind": "hub", "name": "x"}]}):
        with pytest.raises(Malformed):
            Approval.decode(canonical({**whole, **change}))


def test_a_leaf_holds_event_and_signature() -> None:
    event = DOCUMENTS[3].encoded().decode()
    leaf = json.loads(SignedEvent(event, "ab").leaf())
    assert leaf == {"event": event, "signature": "ab"}
