"""Control groups of runs: version 1 (one tree per controller) and version 2 (one tree).

A run's groups lie below the node's own, so that what limits the node limits its runs too. Their names carry the node's
process id: groups of a node that was killed are found and removed by the next one.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flame.model.errors import Unavailable
from flame.runtime.sandbox import Limits

__all__ = ["Cgroups", "RunGroup", "find_cgroups"]

_CONTROLLERS: Final = ("memory", "pids", "cpu")
_PERIOD_US: Final = 100_000
_OURS: Final = re.compile(r"flame-(\d+)-.+")
_NODE_LEAF: Final = "flame-node"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_REMOVE_WITHIN: Final = 10.0


@dataclass(frozen=True)
class RunGroup:
    """The groups of one run: controller -> directory. In version 2 all three are the same directory."""

    version: int
    places: Mapping[str, Path]
    paths: Mapping[str, str]  # as /proc/<pid>/cgroup names them
    wanted: Mapping[Path, str]  # files that hold a limit, and what must stand in them

    def add(self, pid: int) -> None:
        for place in set(self.places.values()):
            (place / "cgroup.procs").write_text(str(pid))

    def killed_by_memory(self) -> bool:
        """Whether the kernel has killed a process of the run because its memory was used up."""
        file = self.places["memory"] / ("memory.events" if self.version == 2 else "memory.oom_control")
        try:
            lines = dict(line.split() for line in file.read_text().splitlines())
        except OSError:
            return False
        return int(lines.get("oom_kill", "0")) > 0

    def members(self) -> set[int]:
        found: set[int] = set()
        for place in set(self.places.values()):
            try:
                found.update(map(int, (place / "cgroup.procs").read_text().split()))
            except OSError:
                continue
        return found

    def wrong(self, pid: int) -> Iterator[str]:
        """What does not hold for process `pid`: membership or the value of a limit."""
        listed = _memberships(pid)
        for controller, path in self.paths.items():
            if listed.get(controller if self.version == 1 else "") != path:
                yield f"the process is not in the run's {controller} group"
        for file, value in self.wanted.items():
            try:
                stands = file.read_text().strip()
            except OSError as wrong:
                yield f"{file.name} cannot be read ({os.strerror(wrong.errno or 0)})"
                continue
            if stands != value:
                yield f"{file.name} is {stands} instead of {value}"

    def remove(self) -> None:
        """Kill what is left and remove the groups; waits for the kernel to let go of dead processes."""
        for place in set(self.places.values()):
            _remove(place)


@dataclass(frozen=True)
class Cgroups:
    """Where this process may make groups: controller -> directory of its own group."""

    version: int
    parents: Mapping[str, Path]
    paths: Mapping[str, str]

    def create(self, run: str, limits: Limits) -> RunGroup:
        """Make the groups of a run with their limits. Raises Unavailable; nothing is left then."""
        name = f"flame-{os.getpid()}-{run}"
        places = {controller: parent / name for controller, parent in self.parents.items()}
        paths = {controller: f"{path.rstrip('/')}/{name}" for controller, path in self.paths.items()}
        group = RunGroup(self.version, places, paths, _wanted(self.version, places, limits))
        try:
            for place in set(places.values()):
                place.mkdir(mode=0o755, exist_ok=True)
            for file, value in group.wanted.items():
                if file.exists():
                    file.write_text(value)
            if self.version == 1:
                (places["cpu"] / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        except OSError as wrong:
            group.remove()
            raise Unavailable(f"The control groups of run {run} cannot be made: {wrong}.") from wrong
        return RunGroup(
            self.version, places, paths, {file: value for file, value in group.wanted.items() if file.exists()}
        )

    def sweep(self) -> None:
        """Remove groups of nodes that are no more (killed with their runs; the kernel has ended the processes)."""
        for parent in set(self.parents.values()):
            for place in parent.glob("flame-*-*"):
                owner = _OURS.fullmatch(place.name)
                if owner and not Path("/proc", owner[1]).exists():
                    _remove(place)


def _wanted(version: int, places: Mapping[str, Path], limits: Limits) -> dict[Path, str]:
    memory = str(limits.memory_bytes // _PAGE * _PAGE)
    quota = int(limits.cpus * _PERIOD_US)
    # two more than the program may have: bubblewrap's init, and the moment when a process is replaced
    processes = str(limits.processes + 2)
    if version == 1:
        return {
            places["memory"] / "memory.limit_in_bytes": memory,
            places["memory"] / "memory.memsw.limit_in_bytes": memory,
            places["pids"] / "pids.max": processes,
            places["cpu"] / "cpu.cfs_quota_us": str(quota),
        }
    group = places["memory"]
    return {
        group / "memory.max": memory,
        group / "memory.swap.max": "0",
        group / "memory.oom.group": "1",
        group / "pids.max": processes,
        group / "cpu.max": f"{quota} {_PERIOD_US}",
    }


def _memberships(pid: int | str) -> dict[str, str]:
    """Controller -> path; version 2 under the empty name."""
    found: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _remove(place: Path) -> None:
    until = time.monotonic() + _REMOVE_WITHIN
    pause = 0.001
    while True:
        try:
            place.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as wrong:
            if wrong.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > until:
                raise Unavailable(f"The control group {place} cannot be removed: {wrong}.") from wrong
        _kill_members(place)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill_members(place: Path) -> None:
    try:
        members = (place / "cgroup.procs").read_text().split()
    except OSError:
        return
    for member in members:
        try:
            os.kill(int(member), signal.SIGKILL)
        except ProcessLookupError:
            continue


def find_cgroups() -> Cgroups | str:
    """Where groups with all three controllers can be made, or the reason why not, in words for a person."""
    mounted = list(_mounted())
    unified = next((place for kind, place, _ in mounted if kind == "cgroup2"), None)
    second = _version_2(unified) if unified is not None else "no control groups are mounted"
    trees = [(place, options) for kind, place, options in mounted if kind == "cgroup"]
    if isinstance(second, Cgroups) or not trees:
        return second
    return _version_1(trees)


def _mounted() -> Iterator[tuple[str, Path, set[str]]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield kind, Path(before.split(" ")[4]), set(options.split(","))


def _version_1(trees: list[tuple[Path, set[str]]]) -> Cgroups | str:
    own = _memberships("self")
    parents: dict[str, Path] = {}
    paths: dict[str, str] = {}
    for controller in _CONTROLLERS:
        tree = next((place for place, options in trees if controller in options), None)
        if tree is None or controller not in own:
            return f"no {controller} control group is mounted"
        parents[controller] = tree / own[controller].lstrip("/")
        paths[controller] = own[controller]
        if not _writable(parents[controller]):
            return f"the {controller} control group is not writable for this user"
    return Cgroups(1, parents, paths)


def _version_2(tree: Path) -> Cgroups | str:
    """The node's own group, its controllers handed down; the node moves into a leaf, as the kernel's rules demand."""
    path = _memberships("self").get("")
    if path is None:
        return "this process is in no control group of version 2"
    own = tree / path.lstrip("/")
    if own.name == _NODE_LEAF:
        own, path = own.parent, path.rsplit("/", 1)[0] or "/"
    try:
        offered = set((own / "cgroup.controllers").read_text().split())
        missing = set(_CONTROLLERS) - offered
        if missing:
            return f"the control group of this process is not given {', '.join(sorted(missing))}"
        if not _writable(own):
            return "the control group of this process is not delegated to this user"
        handed = set((own / "cgroup.subtree_control").read_text().split())
        if not handed >= set(_CONTROLLERS):
            _become_leaf(own)
            (own / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _CONTROLLERS))
    except OSError as wrong:
        return f"the control group of this process cannot be divided ({wrong})"
    return Cgroups(2, dict.fromkeys(_CONTROLLERS, own), dict.fromkeys(_CONTROLLERS, path))


def _become_leaf(own: Path) -> None:
    """Only if this process is alone there: a group that others share is not ours to rearrange."""
    members = (own / "cgroup.procs").read_text().split()
    if members and members != [str(os.getpid())]:
        raise OSError(errno.EBUSY, "other processes are in the node's control group; give the node a scope of its own")
    (own / _NODE_LEAF).mkdir(exist_ok=True)
    (own / _NODE_LEAF / "cgroup.procs").write_text(str(os.getpid()))


def _writable(place: Path) -> bool:
    return os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK)
