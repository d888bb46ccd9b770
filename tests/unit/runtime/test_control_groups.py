"""What the two versions of control groups are told, and what is noticed when it does not stand there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flame.runtime import Limits
from flame.runtime.cgroups import Cgroups, RunGroup, _version_2, _wanted, find_cgroups

LIMITS = Limits(memory_bytes=(100 << 20) + 1, cpus=1.5, processes=10)


@pytest.fixture
def cgroups() -> Cgroups:
    found = find_cgroups()
    if isinstance(found, str):
        pytest.skip(f"no control groups: {found}")
    return found


def test_groups_are_made_with_their_limits_and_removed(cgroups: Cgroups) -> None:
    group = cgroups.create("unit-test", LIMITS)
    try:
        assert all(place.is_dir() for place in group.places.values())
        assert {file.read_text().strip() for file in group.wanted} >= {str(100 << 20), "12"}
        assert set(group.wrong(os.getpid())) == {
            f"the process is not in the run's {name} group" for name in ("memory", "pids", "cpu")
        }
        assert not group.killed_by_memory()
        assert group.members() == set()
    finally:
        group.remove()
    assert not any(place.exists() for place in group.places.values())
    group.remove()


def test_a_limit_that_was_changed_is_noticed(cgroups: Cgroups) -> None:
    group = cgroups.create("unit-test", LIMITS)
    try:
        (group.places["pids"] / "pids.max").write_text("max")
        assert "pids.max is max instead of 12" in set(group.wrong(os.getpid()))
    finally:
        group.remove()


def test_groups_of_a_dead_node_are_swept_and_others_are_not(cgroups: Cgroups) -> None:
    mine = cgroups.create("unit-test", LIMITS)
    dead = cgroups.parents["pids"] / "flame-999999999-run"
    dead.mkdir()
    try:
        cgroups.sweep()
        assert not dead.exists()
        assert all(place.is_dir() for place in mine.places.values())
    finally:
        mine.remove()


def test_version_2_says_what_is_not_delegated(tmp_path: Path) -> None:
    """On a tree of plain files: this machine's kernel has its controllers in version 1."""
    own = tmp_path / Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
    own.mkdir(parents=True, exist_ok=True)
    (own / "cgroup.controllers").write_text("cpuset hugetlb")
    assert _version_2(tmp_path) == "the control group of this process is not given cpu, memory, pids"


def test_version_2_counts_in_one_place(tmp_path: Path) -> None:
    places = dict.fromkeys(("memory", "pids", "cpu"), tmp_path)
    wanted = _wanted(2, places, LIMITS)
    assert {file.name: value for file, value in wanted.items()} == {
        "memory.max": str(100 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "12",
        "cpu.max": "150000 100000",
    }
    group = RunGroup(2, places, dict.fromkeys(places, "/x"), wanted)
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\n")
    assert not group.killed_by_memory()
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n")
    assert group.killed_by_memory()
