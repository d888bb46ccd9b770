"""What a steward adds to an approval makes less of it, never more; what nobody enforces is no condition."""

from __future__ import annotations

import dataclasses

import pytest

import node_world
from flame.model.errors import Invalid, Malformed
from flame.model.manifest import Manifest, Parameter
from flame.node.supervisor.conditions import KNOWN, narrow, parse_conditions
from flame.node.supervisor.verification import resolve_parameters

WIDE = {"rounds_max": 10**9, "max_bytes": 10**11, "runs_max": 10**6, "min_rows": 1, "runtime_minutes": 10**6}
TIGHT = {"rounds_max": 1, "max_bytes": 1, "runs_max": 1, "min_rows": 10**6, "runtime_minutes": 1}


def manifest() -> Manifest:
    return node_world.manifest(runs_max=5)


def test_they_are_read_as_stewards_write_them() -> None:
    assert parse_conditions(["hold", "rounds_max = 3"]) == {"hold": True, "rounds_max": 3}
    assert set(parse_conditions(["hold", *(f"{name}=1" for name in KNOWN if name != "hold")])) == set(KNOWN)


@pytest.mark.parametrize(
    "text", ["only men", "hold=1", "rounds_max", "rounds_max=0", "rounds_max=-1", "rounds_max=x", ""]
)
def test_what_a_node_cannot_enforce_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_conditions([text])
    assert caught.value.next_step


def test_a_wider_condition_changes_nothing() -> None:
    assert dataclasses.replace(narrow(manifest(), WIDE), data=manifest().data) == manifest()
    assert narrow(manifest(), {}) is manifest() or narrow(manifest(), {}) == manifest()


def test_a_tighter_one_holds_in_every_respect() -> None:
    found = narrow(manifest(), TIGHT | {"hold": True})
    assert found.runs_max == 1
    assert {(release.rounds_max, release.max_bytes) for release in found.releases} == {(1, 1)}
    assert {request.min_rows for request in found.data} == {10**6}
    assert found.resources.runtime_seconds == 60
    assert {release.release for release in found.releases if release.kind == "final"} <= {"hold"}


def test_a_range_covers_what_lies_in_it_and_of_its_type() -> None:
    found = node_world.manifest(parameters=(Parameter("age", "integer", 40, (99,), (18, 80)),))
    for value in (18, 80, 40, 99):
        assert resolve_parameters(found, {"age": value}) == {"age": value}
    for value in (17, 81, 40.5, True, "40"):
        with pytest.raises(Exception, match="not approved"):
            resolve_parameters(found, {"age": value})


@pytest.mark.parametrize(
    ("type_", "default", "bounds"),
    [("integer", 5, (6, 9)), ("integer", 5, (5,)), ("text", "b", ("a", "c")), ("number", 1.0, (2, 0)), ("integer", 5, (1, 2.5))],
)  # fmt: skip
def test_a_range_is_two_numbers_around_the_default(type_: str, default: object, bounds: tuple[object, ...]) -> None:
    with pytest.raises(Malformed):
        node_world.manifest(parameters=(Parameter("x", type_, default, (), bounds),))  # type: ignore[arg-type]
