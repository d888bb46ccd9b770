"""Looking at a run from outside: what the kernel says about its processes, compared with what was meant.

Nothing here asks the program. Everything is read from /proc/<pid> of the host's own /proc while the run's first process
waits at the gate (`gate.py`): it already has its final user, capabilities, filter, namespaces and mounts, and only
executes the program afterwards. Executing changes none of these, because no_new_privs is set. The sandbox's init gets
there on its own, earlier or later than the program gets to the gate: the start waits for both (`starting.await_init`).

A process that ends gives up its memory, namespaces and control groups one after the other, and can be seen with some
of them gone. That is no broken promise, but neither is it a kept one: it is an end.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flame.runtime.cgroups import RunGroup
from flame.runtime.sandbox import Broken, Promise

__all__ = ["Expected", "Mount", "broken_promises", "children", "has_ended", "status_of"]

# namespace -> the promise that rests on it
_NAMESPACES: Final = {
    "net": Promise.NO_NETWORK,
    "mnt": Promise.OWN_FILES,
    "pid": Promise.NO_OTHER_PROCESSES,
    "ipc": Promise.NO_OTHER_PROCESSES,
    "uts": Promise.NO_OTHER_PROCESSES,
    "cgroup": Promise.NO_OTHER_PROCESSES,
}
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_COVERED_PROC: Final = re.compile(r"/proc/(sys|sysrq-trigger|irq|bus)")
_PF_EXITING: Final = 0x4  # linux/sched.h; set before anything of the process is given up
_SETS_IN_USE: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_LIMIT_NAMES: Final = {
    "open_files": "Max open files",
    "file_bytes": "Max file size",
    "core_bytes": "Max core file size",
    "processes": "Max processes",
    "data_bytes": "Max data size",
    "address_bytes": "Max address space",
}


@dataclass(frozen=True)
class Mount:
    """One entry of the mount table as meant. source: what is shown there; None for a file system of its own."""

    kind: str
    writable: bool
    source: Path | None = None


@dataclass(frozen=True)
class Expected:
    """What the backend set up for one run, and which promises it set out to keep."""

    promises: frozenset[Promise]
    monitor: int
    init: int
    user: int
    user_namespace: bool
    mounts: Mapping[str, Mount]
    rlimits: Mapping[str, int]
    group: RunGroup | None


def broken_promises(pid: int, expected: Expected) -> list[Broken]:
    """All promises of `expected` that do not hold for process `pid` and for the sandbox's init.

    Raises ProcessLookupError when the run is ending or gone, so that something was not seen as it had been; what cannot
    be read of a run that goes on is broken.
    """
    found: list[Broken] = []
    for who, about in ((pid, "program"), (expected.init, "init")):
        try:
            found += _of_process(who, about, expected)
        except (OSError, ValueError, KeyError, IndexError) as wrong:
            found += [Broken(promise, f"cannot be seen from outside: {wrong}") for promise in sorted(expected.promises)]
    found = [broken for broken in found if broken.promise in expected.promises]
    # asked after the look: who has not begun to end by now was whole all the time
    if found and any(has_ended(who) for who in (pid, expected.init, expected.monitor)):
        raise ProcessLookupError(pid)
    return found


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or each of its threads is on its way out and can do nothing any more."""
    try:
        return all(map(_is_ending, Path(f"/proc/{pid}/task").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return True


def _is_ending(task: Path) -> bool:
    try:
        # behind the name, which the program chooses and which may hold anything
        fields = (task / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return int(fields[6]) & _PF_EXITING != 0


def _of_process(pid: int, about: str, expected: Expected) -> Iterator[Broken]:
    status = status_of(pid)
    program = about == "program"
    yield from _privileges(status, about, program)
    yield from _namespaces(pid, about, expected)
    if not program:
        yield from _end(status, expected)
        return
    yield from _user(pid, status, expected)
    yield from _network(pid)
    yield from _files(pid, expected)
    yield from _limits(pid, expected)


def status_of(pid: int) -> dict[str, str]:
    """/proc/<pid>/status by field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def children(pid: int) -> list[int]:
    """Direct children of a process, of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def _privileges(status: Mapping[str, str], about: str, program: bool) -> Iterator[Broken]:
    if status["NoNewPrivs"] != "1":
        yield Broken(Promise.NO_NEW_PRIVILEGES, f"the {about} could gain privileges")
    if status["Seccomp"] != "2":
        yield Broken(Promise.SECCOMP, f"no system call filter is in force for the {about}")
    # The init keeps its bounding set; with no_new_privs and nothing inheritable it can draw nothing from it.
    for name in (*_SETS_IN_USE, "CapBnd") if program else _SETS_IN_USE:
        if int(status[name], 16) != 0:
            yield Broken(Promise.NO_CAPABILITIES, f"{name} of the {about} is {status[name]}")


def _namespaces(pid: int, about: str, expected: Expected) -> Iterator[Broken]:
    for name, promise in _NAMESPACES.items():
        if _namespace(pid, name) == _namespace("self", name):
            yield Broken(promise, f"the {about} shares the node's {name} namespace")
    if expected.user_namespace and _namespace(pid, "user") == _namespace("self", "user"):
        yield Broken(Promise.NO_CAPABILITIES, f"the {about} shares the node's user namespace")


def _namespace(pid: int | str, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


def _end(status: Mapping[str, str], expected: Expected) -> Iterator[Broken]:
    """The init is number 1 of its own process namespace, below a monitor that dies with this process."""
    if status["NSpid"].split()[-1] != "1":
        yield Broken(Promise.ENDS_WITH_RUN, "the run has no process namespace that would end with its first process")
    monitor = status_of(expected.monitor)
    if int(status["PPid"]) != expected.monitor or int(monitor["PPid"]) != os.getpid():
        yield Broken(Promise.ENDS_WITH_RUN, "the run is not below this node")
    started_with = Path(f"/proc/{expected.monitor}/cmdline").read_bytes().split(b"\0")
    if b"--die-with-parent" not in started_with:
        yield Broken(Promise.ENDS_WITH_RUN, "the run would outlive a node that is killed")


def _user(pid: int, status: Mapping[str, str], expected: Expected) -> Iterator[Broken]:
    users = {int(number) for number in status["Uid"].split()}
    groups = {int(number) for number in status["Gid"].split()} | {int(number) for number in status["Groups"].split()}
    if users != {expected.user} or os.getuid() in users:
        yield Broken(Promise.OTHER_USER, f"the program runs as user {sorted(users)}")
    if groups != {expected.user}:
        yield Broken(Promise.OTHER_USER, f"the program is in the groups {sorted(groups)}")


def _network(pid: int) -> Iterator[Broken]:
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    interfaces = {line.partition(":")[0].strip() for line in lines}
    if interfaces - {"lo"}:
        yield Broken(Promise.NO_NETWORK, f"the program sees the interfaces {', '.join(sorted(interfaces))}")


def _files(pid: int, expected: Expected) -> Iterator[Broken]:
    seen: set[str] = set()
    for target, kind, options in _mount_table(pid):
        writable = "ro" not in options
        wanted = expected.mounts.get(target)
        if wanted is None:
            if not _is_device(target) and not (_COVERED_PROC.fullmatch(target) and not writable):
                yield Broken(Promise.OWN_FILES, f"{target} is mounted and should not be")
            continue
        if target in seen:
            yield Broken(Promise.OWN_FILES, f"{target} is mounted twice")
        seen.add(target)
        if writable and not wanted.writable:
            yield Broken(Promise.OWN_FILES, f"{target} is writable")
        if "nosuid" not in options:
            yield Broken(Promise.OWN_FILES, f"{target} honours setuid files")
        if wanted.source is None and kind != wanted.kind:
            yield Broken(Promise.OWN_FILES, f"{target} is a {kind} instead of a {wanted.kind}")
        if wanted.source is not None and not _same(pid, target, wanted.source):
            yield Broken(Promise.OWN_FILES, f"{target} does not show what it should")
    for target in sorted(expected.mounts.keys() - seen):
        yield Broken(Promise.OWN_FILES, f"{target} is not mounted")


def _is_device(target: str) -> bool:
    return target in {f"/dev/{name}" for name in _DEVICES} or target in ("/dev/pts", "/dev/console")


def _same(pid: int, target: str, source: Path) -> bool:
    inside, outside = Path(f"/proc/{pid}/root{target}").lstat(), source.stat()
    return (inside.st_dev, inside.st_ino, stat.S_IFMT(inside.st_mode)) == (
        outside.st_dev,
        outside.st_ino,
        stat.S_IFMT(outside.st_mode),
    )


def _mount_table(pid: int) -> Iterator[tuple[str, str, set[str]]]:
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        yield _unescape(fields[4]), after.split(" ", 1)[0], set(fields[5].split(","))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _limits(pid: int, expected: Expected) -> Iterator[Broken]:
    stands = dict(_rlimits(pid))
    for name, value in expected.rlimits.items():
        hard = stands[_LIMIT_NAMES[name]]
        if hard == "unlimited" or int(hard) > value:  # less is the program's own choice
            yield Broken(Promise.LIMITS, f"{_LIMIT_NAMES[name].lower()} is {hard} instead of {value}")
    if expected.group is None:
        yield Broken(Promise.LIMITS, "the run is in no control group: its limits hold for each process alone")
    else:
        yield from (Broken(Promise.LIMITS, wrong) for wrong in expected.group.wrong(pid))


def _rlimits(pid: int) -> Iterator[tuple[str, str]]:
    """Name and hard limit."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        match = re.match(r"(Max .+?)\s{2,}(\S+)\s+(\S+)", line)
        if match:
            yield match[1], match[3]
