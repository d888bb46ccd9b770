"""The same locked state gives the same bytes; a flame.toml that says something impossible is refused by table and key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node_world
from flame.crypto.canonical import canonical, parse_canonical
from flame.model.errors import FlameError, Invalid
from flame.model.manifest import Manifest, Recipient
from flame.protocol.freeze import DEFAULT_RELEASES, LockedState, freeze

BASE = node_world.manifest(code={"main.py": b"print()", "lib/a.py": b""}, entrypoint="main.py")
PEOPLE = {"ada": Recipient(node_world.PERSON, "ada", "a" * 64), "bob": Recipient(node_world.PROJECT, "bob", "c" * 64)}

WHOLE = b"""
recipients = ["bob", "ada", "bob"]
[analysis]
title = "Other"
purpose = "Why"
days = 10
runs_max = 3
[[data]]
source = "patients"
columns = ["age"]
min_rows = 20
[[parameters]]
name = "alpha"
type = "number"
default = 1.5
options = [2, 3.5]
[[releases]]
name = "beta"
kind = "sum"
[[releases]]
kind = "final"
[resources]
cpu = 1.5
memory_mb = 10
"""


def state(author: bytes | None = None, **other: Any) -> LockedState:
    values: dict[str, Any] = {
        "analysis": BASE.analysis, "project": BASE.project, "title": BASE.title, "created": BASE.created,
        "code": BASE.code, "entrypoint": "main.py", "arguments": (), "environment": BASE.environment,
        "participants": BASE.participants, "researcher": BASE.researcher, "people": PEOPLE, "author_file": author,
    }  # fmt: skip
    return LockedState(**{**values, **other})


@pytest.mark.parametrize("author", [None, b"", WHOLE], ids=["none", "empty", "whole"])
def test_the_order_in_which_things_are_found_makes_no_difference(author: bytes | None) -> None:
    first = canonical(freeze(state(author)).document())
    turned = state(
        author,
        code=BASE.code[::-1],
        participants=BASE.participants[::-1],
        people=dict(reversed(PEOPLE.items())),
    )
    assert canonical(freeze(turned).document()) == first


def test_what_is_frozen_is_what_a_node_reads() -> None:
    manifest = freeze(state(WHOLE))
    assert Manifest.from_document(parse_canonical(canonical(manifest.document()))) == manifest


def test_the_author_file_says_what_flame_has_no_field_for() -> None:
    manifest = freeze(state(WHOLE))
    assert (manifest.title, manifest.purpose, manifest.runs_max) == ("Other", "Why", 3)
    assert manifest.expires == "2026-11-11T10:00:00Z"
    assert [(d.node, d.source, d.columns, d.min_rows) for d in manifest.data] == [("*", "patients", ("age",), 20)]
    assert manifest.parameters[0].options == (2, 3.5)
    assert [r.release for r in manifest.releases] == ["auto", "hold"], "what goes to people waits unless it is said"
    assert [r.name for r in manifest.recipients] == ["ada", "bob"]


def test_without_an_author_file_the_defaults_stand() -> None:
    manifest = freeze(state())
    assert manifest.releases == DEFAULT_RELEASES
    assert {r.kind: r.release for r in manifest.releases}["final"] == "hold"
    assert manifest.parameters == ()
    assert [r.name for r in manifest.recipients] == ["ada"]
    assert manifest.expires == "2027-01-30T10:00:00Z"


@pytest.mark.parametrize(
    ("author", "words"),
    [
        ("[analyse]\n", ["analyse"]),
        ("[analysis]\ndayz = 3\n", ["analysis", "dayz"]),
        ("[analysis]\ndays = 0\n", ["analysis.days"]),
        ("[analysis]\ndays = 3651\n", ["analysis.days"]),
        ("[analysis]\ndays = true\n", ["analysis.days"]),
        ('[analysis]\ndays = "3"\n', ["analysis.days"]),
        ("[analysis]\nruns_max = 0\n", ["runs_max"]),
        ("[analysis]\npurpose = 3\n", ["analysis.purpose"]),
        ('[analysis]\npurpose = "a\\u202Eb"\n', ["purpose", "202E"]),
        ("analysis = 3\n", ["analysis"]),
        ("[data]\n", ["[[data]]"]),
        ("data = [3]\n", ["[[data]]"]),
        ("[[data]]\nsource = 3\n", ["data.source"]),
        ('[[data]]\ncolumns = "age"\n', ["data.columns"]),
        ("[[data]]\ncolumns = [1]\n", ["data.columns"]),
        ('[[data]]\nkind = "fhir"\n', ["data", "kind", "fhir"]),
        ('[[data]]\nnode = "somewhere"\n', ["data.node"]),
        ("[[data]]\nmin_rows = -1\n", ["data.min_rows"]),
        ("[[data]]\n[[data]]\n", ["data", "twice"]),
        ("[[parameters]]\ndefault = 1\n", ["parameters.name"]),
        ('[[parameters]]\nname = "x"\n', ["parameters.default", "x"]),
        ('[[parameters]]\nname = "x y"\ndefault = "a"\n', ["x y"]),
        ('[[parameters]]\nname = "x"\ntype = "date"\ndefault = "a"\n', ["'x'", "date"]),
        ('[[parameters]]\nname = "x"\ntype = "number"\ndefault = "a"\n', ["'x'", "number"]),
        ('[[parameters]]\nname = "x"\ntype = "number"\ndefault = nan\n', ["'x'", "number"]),
        ('[[parameters]]\nname = "x"\ntype = "text"\ndefault = 2026-01-01\n', ["'x'", "text"]),
        ('[[parameters]]\nname = "x"\ndefault = "a"\noptions = 3\n', ["parameters.options"]),
        ('[[parameters]]\nname = "x"\ndefault = "a"\noptions = "abc"\n', ["parameters.options"]),
        ('[[parameters]]\nname = "x"\ndefault = "a"\noptions = [3]\n', ["'x'"]),
        ('[[releases]]\nname = "x"\n', ["releases.kind"]),
        ('[[releases]]\nkind = "sums"\n', ["releases", "kind", "sums"]),
        ('[[releases]]\nkind = "sum"\nprotection = "dp"\n', ["releases", "protection", "dp"]),
        ('[[releases]]\nkind = "sum"\nrelease = "never"\n', ["releases", "release", "never"]),
        ('[[releases]]\nkind = "sum"\nmax_bytes = 0\n', ["releases", "max_bytes"]),
        ('[[releases]]\nkind = "sum"\nmax_bytes = 1.5\n', ["releases.max_bytes"]),
        ('[[releases]]\nkind = "sum"\n[[releases]]\nkind = "sum"\n', ["releases", "twice"]),
        ('[resources]\ncpu = "1"\n', ["resources.cpu"]),
        ("[resources]\ncpu = nan\n", ["resources.cpu"]),
        ("[resources]\ncpu = inf\n", ["resources.cpu"]),
        ("[resources]\nmemory_mb = 0\n", ["resources.memory"]),
        (f"[resources]\nmemory_mb = {10**18}\n", ["resources.memory"]),
        (f"[resources]\nruntime_minutes = {10**12}\n", ["resources.runtime"]),
        ('recipients = ["mallory"]\n', ["mallory"]),
        ('recipients = "ada"\n', ["recipients"]),
        ("x = 3 =\n", ["line 1"]),
        ("x = " + "9" * 5000, ["flame.toml"]),
        ("x = " + "[" * 5000, ["flame.toml"]),
        ("#" * (1 << 20) + "#", ["flame.toml"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_an_impossible_author_file_is_refused_by_table_and_key(author: str, words: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        freeze(state(author.encode()))
    for word in words:
        assert word in caught.value.message


def test_a_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(Invalid, match=r"flame\.toml"):
        freeze(state(b"\xff\xfe"))


@pytest.mark.parametrize(
    "change",
    [{"entrypoint": "../x"}, {"entrypoint": "other.py"}, {"participants": BASE.data_nodes}, {"code": ()}, {"title": "\x1b[2J"},
     {"created": "yesterday"}, {"created": "9999-12-31T00:00:00Z"}, {"arguments": ("\x00",)},
     {"participants": (replace(BASE.participants[0], role="leader"), *BASE.participants[1:])}],
    ids=str,
)  # fmt: skip
def test_a_state_that_cannot_be_locked_is_invalid(change: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        freeze(state(**change))


@given(st.binary(max_size=60))
def test_whatever_the_author_writes_is_read_or_refused(content: bytes) -> None:
    try:
        freeze(state(content))
    except FlameError as error:
        assert "flame.toml" in str(error) or "cannot be locked" in str(error)
