"""One reading of a manifest: whatever is changed in the document is refused, or is another digest."""

from __future__ import annotations

import copy
import json
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import node_world
from flame.crypto.canonical import canonical, digest, parse_canonical
from flame.model.errors import FlameError, Malformed
from flame.model.manifest import Manifest, Parameter, Release, check_path, format_time, parse_time

PARAMETERS = (
    Parameter("alpha", "number", 1, (2, 0.5)),
    Parameter("columns", "list", ["age", 1, True], ()),
    Parameter("name", "text", "x", ("y",)),
    Parameter("strict", "flag", True, (False,)),
    Parameter("times", "integer", 3, ()),
)
MANIFEST = node_world.manifest(
    code={"main.py": b"print()", "lib/a.py": b"", "lib/b.py": b"1"}, entrypoint="main.py", arguments=("-v",),
    parameters=PARAMETERS,
)  # fmt: skip
BYTES = canonical(MANIFEST.document())


def document() -> dict[str, Any]:
    return copy.deepcopy(json.loads(BYTES))


def read(value: Any) -> Manifest:
    return Manifest.from_document(parse_canonical(canonical(value)))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, from the outside in."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = [place for place in places(json.loads(BYTES)) if place]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_a_manifest_reads_back_as_itself() -> None:
    assert canonical(read(document()).document()) == BYTES


@given(st.sampled_from(PLACES), st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20), st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
))  # fmt: skip
def test_a_changed_value_is_refused_or_is_another_manifest(place: tuple[Any, ...], value: Any) -> None:
    changed = document()
    at(changed, place[:-1])[place[-1]] = value
    try:
        data = canonical(changed)
    except Malformed:
        return
    assume(data != BYTES)
    try:
        found = read(changed)
    except Malformed:
        return
    assert found != MANIFEST, f"{place} = {value!r} is read as if nothing had been changed"
    assert digest(canonical(found.document())) == digest(data), "what is read is what was signed"


@pytest.mark.parametrize("place", [p for p in PLACES if isinstance(p[-1], str)], ids=lambda p: ".".join(map(str, p)))
def test_no_key_may_be_missing(place: tuple[Any, ...]) -> None:
    changed = document()
    del at(changed, place[:-1])[place[-1]]
    with pytest.raises(Malformed, match=place[-1]):
        read(changed)


OBJECTS = [p for p in [(), *PLACES] if isinstance(at(json.loads(BYTES), p), dict)]


@pytest.mark.parametrize("place", OBJECTS, ids=lambda p: ".".join(map(str, p)) or "top")
def test_no_key_may_be_added(place: tuple[Any, ...]) -> None:
    changed = document()
    at(changed, place)["backdoor"] = 1
    with pytest.raises(Malformed, match="backdoor"):
        read(changed)


@pytest.mark.parametrize(
    "data",
    [
        BYTES.replace(b'"runs_max":1', b'"runs_max":1,"runs_max":2'),
        BYTES.replace(b'"runs_max":1', b'"runs_max":1.0'),
        BYTES.replace(b'"runs_max":1', b'"runs_max":1e0'),
        BYTES.replace(b'"runs_max":1', b'"runs_max": 1'),
        BYTES.replace(b'"title":"Survival"', b'"title":"\\u0053urvival"'),
        b"\xef\xbb\xbf" + BYTES,
        BYTES + b"\n",
        BYTES.replace(b'"runs_max":1', b'"runs_max":9007199254740993'),
        BYTES.replace(b'"runs_max":1', b'"runs_max":NaN'),
    ],
    ids="duplicate float exponent space escape mark newline large nan".split(),  # noqa: SIM905
)
def test_bytes_that_another_reader_could_read_otherwise_are_refused(data: bytes) -> None:
    assert data != BYTES
    with pytest.raises(Malformed):
        Manifest.from_document(parse_canonical(data))


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", ".", "..", "a\\b", "a\nb", "a\x00b", "a\x7fb", "a\x9bb",
        unicodedata.normalize("NFD", "ü.py"), "x" * 513, "é" * 130, "a\u202egpj.py", "a\u200bb", "a\ud800b", "\ufeffa",
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_or_hides_something_is_refused(path: str) -> None:
    with pytest.raises(Malformed):
        check_path(path)


@pytest.mark.parametrize("path", ["a.py", "lib/a.py", "ü.py", "..a", "a b.py", "x" * 255])
def test_a_plain_path_is_a_path(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("main.py", "MAIN.py"), "case"),
        (("main.py", "ſ.py", "s.py"), "case"),
        (("main.py", "lib", "lib/a.py"), "below another file"),
        (("main.py", "Lib", "lib/a.py"), "below another file"),
    ],
)
def test_two_files_that_a_file_system_could_take_for_one_are_refused(files: tuple[str, ...], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        node_world.manifest(code=dict.fromkeys(files, b""), entrypoint="main.py")


@pytest.mark.parametrize(
    "text",
    [
        "2026-1-01T10:00:00Z", "2026-11-1T10:00:00Z", "2026-11-01t10:00:00z", "2026-11-01T10:00:00+00:00", "2026-11-01",
        "٢٠٢٦-11-01T10:00:00Z", "2026-11-01T10:00:00.0Z", " 2026-11-01T10:00:00Z", "2026-02-30T10:00:00Z", "",
        "2026-11- 1T10:00:00Z", "2026-11-01T10:00:00Z\n", "0001-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_a_time_has_one_spelling(text: str) -> None:
    with pytest.raises(Malformed):
        parse_time(text)
    with pytest.raises(Malformed):
        node_world.manifest(created=text)
    with pytest.raises(Malformed):
        node_world.manifest(expires=text)


@given(st.datetimes(min_value=parse_time("1900-01-01T00:00:00Z").replace(tzinfo=None)))
def test_every_time_that_is_written_is_read(moment: Any) -> None:
    from datetime import UTC

    text = format_time(moment.replace(tzinfo=UTC))
    assert format_time(parse_time(text)) == text


def test_a_manifest_does_not_end_before_it_begins() -> None:
    with pytest.raises(Malformed, match="expires"):
        node_world.manifest(created="2026-11-01T10:00:01Z", expires="2026-11-01T10:00:00Z")


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\u202eb", "a\x00b", "a\u2066b", "a\rb", "x" * 4097, "a\u00adb"])
def test_a_text_that_a_screen_would_not_show_as_it_is_is_refused(text: str) -> None:
    for field in ("title", "purpose"):
        with pytest.raises(Malformed, match=field):
            node_world.manifest(**{field: text})
    first, *others = MANIFEST.participants
    for field in ("name", "organisation"):
        with pytest.raises(Malformed, match=field):
            node_world.manifest(participants=(replace(first, **{field: text}), *others))
    with pytest.raises(Malformed, match="arguments"):
        node_world.manifest(arguments=(text,))


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("flag", 1), ("flag", "true"), ("integer", True), ("integer", 1.5), ("number", True), ("number", "1"),
        ("number", float("nan")), ("number", float("inf")), ("text", 1), ("text", None), ("list", "abc"),
        ("list", [None]), ("list", [["a"]]), ("list", {"a": 1}),
    ],
)  # fmt: skip
def test_a_parameter_has_values_of_its_type(type_: Any, value: Any) -> None:
    right = {"flag": True, "integer": 1, "number": 1.5, "text": "a", "list": ["a"]}[type_]
    with pytest.raises(Malformed, match="'x'"):
        node_world.manifest(parameters=(Parameter("x", type_, value, ()),))
    with pytest.raises(Malformed, match="'x'"):
        node_world.manifest(parameters=(Parameter("x", type_, right, (right, value)),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs_max": 0}, "runs_max"), ({"runs_max": 1001}, "runs_max"), ({"code": ()}, "code"), ({"version": 2}, "version"),
        ({"entrypoint": "other.py"}, "entrypoint"), ({"analysis": "ANALYSIS"}, "analysis"),
        ({"analysis": MANIFEST.analysis.upper()[:-1] + "A"}, "analysis"),
        ({"participants": MANIFEST.participants[:1]}, "participants"),
        ({"participants": MANIFEST.participants[::-1]}, "sorted"),
        ({"participants": MANIFEST.data_nodes}, "aggregator"),
        ({"participants": (*MANIFEST.participants, MANIFEST.participants[-1])}, "twice"),
        ({"releases": (Release("a", "sum", 0, 1, "clear", "auto"),)}, "max_bytes"),
        ({"releases": (Release("a", "sum", 1, 0, "clear", "auto"),)}, "rounds_max"),
        ({"releases": (Release("a", "sum", 1, 1, "clear", "auto"),) * 2}, "twice"),
        ({"data": (replace(MANIFEST.data[0], node=node_world.PERSON),)}, "data"),
        ({"data": (MANIFEST.data[0], replace(MANIFEST.data[0], node=node_world.DATA_NODES[0], columns=("all",)))}, "twice"),
        ({"data": (replace(MANIFEST.data[0], min_rows=-1),)}, "min_rows"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_meant_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        replace(MANIFEST, **change)


@pytest.mark.parametrize("name", ["cpu", "memory_bytes", "disk_bytes", "processes", "runtime_seconds"])
@pytest.mark.parametrize("value", [0, -1, 2**53 - 1, float("nan"), float("inf")])
def test_resources_are_positive_and_bounded(name: str, value: float) -> None:
    with pytest.raises(Malformed, match=name):
        node_world.manifest(resources=replace(MANIFEST.resources, **{name: value}))


def test_an_unread_value_of_json_is_no_crash() -> None:
    for value in (None, [], "x", 1, {"version": 1}):
        with pytest.raises(FlameError):
            Manifest.from_document(value)
    for cpu in (float("inf"), float("nan"), True, "1"):
        changed = document()
        changed["resources"]["cpu"] = cpu
        with pytest.raises(Malformed, match="cpu"):
            Manifest.from_document(changed)


def test_an_aggregator_is_asked_for_no_data_unless_it_is_named() -> None:
    assert MANIFEST.sources_of(node_world.AGGREGATOR) == ()
    assert len(MANIFEST.sources_of(node_world.DATA_NODES[0])) == 1
    named = replace(MANIFEST, data=(replace(MANIFEST.data[0], node=node_world.AGGREGATOR),))
    assert len(named.sources_of(node_world.AGGREGATOR)) == 1
    assert named.sources_of(node_world.DATA_NODES[0]) == ()
    assert named.sources_of(node_world.PERSON) == ()
