"""The process sandbox: bubblewrap, setpriv, a system call filter and control groups; no engine, no daemon.

Started by root, each run gets a user of its own (200000 + slot), a control group and no capabilities. Started by an
ordinary user, a run is in a user namespace and stays that user: OTHER_USER is not kept, LIMITS only where a control
group is delegated; `probe` says so.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import resource
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from flame.model.errors import Conflict, Invalid, Unavailable
from flame.runtime import gate, seccomp
from flame.runtime.canary import try_to_get_out
from flame.runtime.cgroups import Cgroups, RunGroup, find_cgroups
from flame.runtime.environments import SITE, HostEnvironment, check
from flame.runtime.running import STDERR, STDOUT, Handles, ProcessRun, started
from flame.runtime.sandbox import CODE, GATEWAY, Broken, Isolation, Limits, Promise, Running, RunSpec
from flame.runtime.spawner import Order, spawn
from flame.runtime.starting import Descriptors, await_gate, await_init, child_of, first_process, put_down
from flame.runtime.verify import Expected, Mount, broken_promises

__all__ = ["FIRST_USER", "ProcessSandbox", "base_variables", "bubblewrap"]

FIRST_USER: Final = 200_000
_SLOTS: Final = 1000
_OLDEST: Final = (0, 6)  # --perms and --size
_DISABLES_NAMESPACES: Final = (0, 8)
_PROGRAMS: Final = "/usr/bin:/bin:/usr/local/bin:/usr/sbin:/sbin"
_MIB: Final = 1 << 20


def bubblewrap() -> tuple[Path, tuple[int, ...]]:
    """The bubblewrap of this machine and its version. Raises Unavailable with what to install."""
    found = shutil.which("bwrap", path=_PROGRAMS)
    if found is None:
        raise Unavailable(
            "bubblewrap (bwrap) is not installed, so runs cannot be isolated in processes.",
            next_step="Install the package bubblewrap.",
        )
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False, env={}).stdout
    match = re.search(r"(\d+)\.(\d+)", told)
    version = tuple(map(int, match.groups())) if match else (0, 0)
    if version < _OLDEST:
        raise Unavailable(f"bubblewrap {told.strip()!r} is too old.", next_step="Install bubblewrap 0.6 or newer.")
    return Path(found), version


def base_variables(environment: HostEnvironment) -> dict[str, str]:
    """What every program finds in its environment, before its own variables."""
    return {
        "HOME": "/tmp",  # noqa: S108 - the run's own, in a file system of its own
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": f"{Path(environment.command).parent}:/usr/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": SITE,
        "TMPDIR": "/tmp",  # noqa: S108
    }


@dataclass
class _Kept:
    """What a run holds outside its processes, to be given back by `cleanup`."""

    run: ProcessRun | None
    work: Path
    group: RunGroup | None
    slot: int | None  # descriptor of the lock


class ProcessSandbox:
    """The backend `process`. See `sandbox.Sandbox`.

    slots: a directory (of root) whose locks give each run on this machine a user of its own.
    weaken: for tests only: leaves out the one thing that a promise rests on, so that `verify` can be seen to notice
    (NO_NEW_PRIVILEGES cannot be weakened: bubblewrap itself always sets it).
    """

    def __init__(self, *, slots: Path = Path("/run/flame/users"), weaken: frozenset[Promise] = frozenset()) -> None:
        self._bwrap, self._version = bubblewrap()
        self._root = os.geteuid() == 0
        self._weaken = weaken
        self._slots = slots
        found = find_cgroups()
        self._cgroups: Cgroups | None = found if isinstance(found, Cgroups) else None
        self._no_cgroups = found if isinstance(found, str) else ""
        if self._cgroups is not None:
            self._cgroups.sweep()
        self._filter = seccomp.assemble(seccomp.this_machine())
        self._runs: dict[str, _Kept] = {}

    @property
    def name(self) -> str:
        return "process"

    @property
    def promises(self) -> frozenset[Promise]:
        """What this backend sets out to keep for this user on this machine; `verify` reports against it."""
        without = set()
        if not self._root:
            without.add(Promise.OTHER_USER)
        if self._cgroups is None:
            without.add(Promise.LIMITS)
        return frozenset(Promise) - without

    async def probe(self, environment: HostEnvironment) -> Isolation:
        broken = await try_to_get_out(self, environment)
        if Promise.OTHER_USER not in self.promises:
            broken.append(Broken(Promise.OTHER_USER, "the node is not root, so its runs are the same user"))
        if Promise.LIMITS not in self.promises:
            broken.append(Broken(Promise.LIMITS, f"limits hold for each process alone: {self._no_cgroups}"))
        kept = frozenset(Promise) - {found.promise for found in broken}
        return Isolation(self.name, kept, tuple(broken))

    async def prepare(self, environment: HostEnvironment) -> None:
        await asyncio.to_thread(check, environment)

    async def start(self, spec: RunSpec) -> Running:
        if spec.run in self._runs:
            raise Conflict(f"The run {spec.run} was started already.", next_step="Clean it up first.")
        kept = self._runs[spec.run] = _Kept(None, spec.work, None, None)
        return await started(self._begin(spec, kept), self.cleanup)

    async def _begin(self, spec: RunSpec, kept: _Kept) -> Running:
        begin = gate.message(
            (spec.environment.command, *spec.command), {**base_variables(spec.environment), **spec.variables}
        )
        try:
            handles = await asyncio.to_thread(self._launch, spec, kept)
            kept.run = ProcessRun(spec.run, spec.work, spec.limits, begin, handles)
        except OSError as wrong:
            await self._give_back(spec.run)
            raise Unavailable(f"The run {spec.run} cannot be started: {wrong}.") from wrong
        except BaseException:
            await self._give_back(spec.run)
            raise
        kept.run.attach()
        return kept.run

    async def cleanup(self, run: str) -> None:
        kept = self._runs.get(run)
        if kept is None:
            return
        if kept.run is not None:
            await kept.run.stop(0)
        await self._give_back(run)

    async def _give_back(self, run: str) -> None:
        await asyncio.to_thread(_give_back, self._runs[run])
        del self._runs[run]

    # -- in a thread: everything that waits for the kernel ---------------------------------------------------------

    def _launch(self, spec: RunSpec, kept: _Kept) -> Handles:
        check(spec.environment)
        _fit_to_mount(spec.code, readable_by_all=self._root)
        _fit_for_gateway(spec.gateway, reachable_by_all=self._root)
        spec.work.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = os.getuid()
        if self._root and Promise.OTHER_USER not in self._weaken:
            kept.slot, user = _free_user(self._slots)
        if self._cgroups is not None and Promise.LIMITS not in self._weaken:
            kept.group = self._cgroups.create(f"{spec.run[:64]}-{secrets.token_hex(4)}", spec.limits)
        with ExitStack() as undo:
            return self._start(spec, kept.group, user, undo)

    def _start(self, spec: RunSpec, group: RunGroup | None, user: int, undo: ExitStack) -> Handles:
        """Start bubblewrap, stop it twice (before and after it has set itself up), and return what holds the run.

        Descriptors registered in `undo` are closed whatever happens; those handed over are duplicates.
        """
        pipes = Descriptors(undo)
        arguments = self._arguments(spec, user)
        inherited = {
            "args": pipes.memory("args", b"\0".join(part.encode() for part in arguments)),
            "filter": pipes.memory("filter", self._filter),
        }
        status, inherited["status"] = pipes.pipe()
        inherited["block"], unblock = pipes.pipe()
        ready, inherited["ready"] = pipes.pipe()
        inherited["gate"], opener = pipes.pipe()
        output, output_end = pipes.pipe()
        error, error_end = pipes.pipe()
        nothing = pipes.own(os.open(os.devnull, os.O_RDONLY))
        command = self._command(spec.environment, inherited, user)
        order = Order(command, (nothing, output_end, error_end), tuple(inherited.values()), {})
        monitor = spawn(order)
        undo.push(partial(put_down, monitor))
        for fd in (*inherited.values(), nothing, output_end, error_end):
            pipes.close(fd)
        init = child_of(status, error)
        init_fd = pipes.own(os.pidfd_open(init))
        if group is not None:
            group.add(init)
        rlimits = {} if Promise.LIMITS in self._weaken else _rlimits(spec.limits, whole=group is not None)
        for number, value in rlimits.items():
            resource.prlimit(init, number, (value, value))
        with suppress(BrokenPipeError):  # it has ended: the next line says why
            os.write(unblock, b".")
        await_gate(ready, error)
        if Promise.SECCOMP not in self._weaken:
            await_init(init, error)
        program = first_process(init, error)
        expected = Expected(
            promises=self.promises,
            monitor=monitor.pid,
            init=init,
            user=user,
            user_namespace=not self._root,
            mounts=_expected_mounts(spec),
            rlimits=_named(_rlimits(spec.limits, whole=group is not None)),
            group=group,
        )
        return Handles(
            monitor=monitor,
            monitor_fd=os.pidfd_open(monitor.pid),
            last_fd=os.dup(init_fd),
            program_fd=os.pidfd_open(program),
            program=program,
            gate_fd=os.dup(opener),
            output_fd=os.dup(output),
            error_fd=os.dup(error),
            look=partial(broken_promises, program, expected),
            out_of_memory=group.killed_by_memory if group is not None else lambda: False,
            sweep=lambda: None,
        )

    def _command(self, environment: HostEnvironment, fds: Mapping[str, int], user: int) -> list[str]:
        """What the kernel shows as bubblewrap's command line. Paths of the host stay out of it: a run may see it."""
        command = [str(self._bwrap)]
        if Promise.ENDS_WITH_RUN not in self._weaken:
            command.append("--die-with-parent")
        command += ["--new-session", "--info-fd", str(fds["status"]), "--block-fd", str(fds["block"])]
        if Promise.SECCOMP not in self._weaken:
            command += ["--seccomp", str(fds["filter"])]
        command += ["--args", str(fds["args"]), "--"]
        if self._root:
            command += self._setpriv(user)
        return [*command, environment.command, "-I", "-S", "-c", gate.SOURCE, str(fds["ready"]), str(fds["gate"])]

    def _setpriv(self, user: int) -> list[str]:
        command = ["/usr/bin/setpriv"]
        if Promise.OTHER_USER not in self._weaken:
            command += ["--reuid", str(user), "--regid", str(user), "--clear-groups"]
        if Promise.NO_CAPABILITIES not in self._weaken:
            command += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
        return [*command, "--no-new-privs"]

    def _arguments(self, spec: RunSpec, user: int) -> list[str]:
        limits = spec.limits
        arguments = [*self._namespaces(), "--cap-drop", "ALL"]
        if self._root:
            for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
                arguments += ["--cap-add", capability]
        # implied parents of mount points would be 0700
        for folder in ("/opt", "/run"):
            arguments += ["--perms", "0755", "--dir", folder]
        for target, place in spec.environment.mounts.items():
            arguments += ["--ro-bind", str(place), target]
        for link, target in spec.environment.links.items():
            arguments += ["--symlink", target, link]
        arguments += ["--bind" if Promise.OWN_FILES in self._weaken else "--ro-bind", str(spec.code.resolve()), CODE]
        arguments += ["--ro-bind", str(spec.gateway.resolve()), GATEWAY, "--proc", "/proc", "--dev", "/dev"]
        arguments += _sized_tmpfs("/dev/shm", limits.disk_bytes // 4)  # noqa: S108 - inside the sandbox
        arguments += _sized_tmpfs("/tmp", limits.disk_bytes)  # noqa: S108
        arguments += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]  # noqa: S108
        return arguments

    def _namespaces(self) -> Iterator[str]:
        if not self._root:
            yield "--unshare-user"
            if self._version >= _DISABLES_NAMESPACES:
                yield "--disable-userns"
        if Promise.NO_NETWORK not in self._weaken:
            yield "--unshare-net"
        if Promise.NO_OTHER_PROCESSES not in self._weaken:
            yield "--unshare-pid"
        yield from ("--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--hostname", "run")


# -- parts ----------------------------------------------------------------------------------------------------------


def _sized_tmpfs(target: str, size: int) -> list[str]:
    return ["--perms", "1777", "--size", str(max(size, _MIB)), "--tmpfs", target]


def _expected_mounts(spec: RunSpec) -> dict[str, Mount]:
    mounts = {target: Mount("bind", False, place) for target, place in spec.environment.mounts.items()}
    return {
        **mounts,
        CODE: Mount("bind", False, spec.code),
        GATEWAY: Mount("bind", False, spec.gateway),
        "/": Mount("tmpfs", False),
        "/dev": Mount("tmpfs", False),
        "/dev/shm": Mount("tmpfs", True),  # noqa: S108
        "/tmp": Mount("tmpfs", True),  # noqa: S108
        "/proc": Mount("proc", True),
    }


def _rlimits(limits: Limits, *, whole: bool) -> dict[int, int]:
    """Limits per process. whole: a control group limits the run as a whole, and memory is left to it."""
    per_process = {
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: limits.processes + 2,
    }
    if not whole:
        per_process[resource.RLIMIT_DATA] = limits.memory_bytes
        # shared memory is no "data": a wider bound that leaves room for mapped libraries
        per_process[resource.RLIMIT_AS] = 2 * limits.memory_bytes + (1 << 30)
    return per_process


def _named(rlimits: Mapping[int, int]) -> dict[str, int]:
    names = {
        resource.RLIMIT_NOFILE: "open_files",
        resource.RLIMIT_FSIZE: "file_bytes",
        resource.RLIMIT_CORE: "core_bytes",
        resource.RLIMIT_NPROC: "processes",
        resource.RLIMIT_DATA: "data_bytes",
        resource.RLIMIT_AS: "address_bytes",
    }
    return {names[number]: value for number, value in rlimits.items()}


def _fit_to_mount(tree: Path, *, readable_by_all: bool) -> None:
    """Refuse code that holds anything but plain files, folders and links, or that the run's user could not read."""
    if tree.is_symlink() or not tree.is_dir():
        raise Invalid(f"The code of a run must be a directory: {tree}.", field="code")
    for folder, names, files in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in (*names, *files))):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                continue  # resolved inside the sandbox, where nothing of the host is
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise Invalid(f"{path} is a socket, a pipe or a device; code holds files only.", field="code")
            needed = 0o005 if stat.S_ISDIR(status.st_mode) else 0o004
            if readable_by_all and status.st_mode & needed != needed:
                raise Invalid(
                    f"{path} cannot be read by the user that the run gets.",
                    next_step="Store code with mode 0644 (folders 0755) below a directory with mode 0700.",
                    field="code",
                )


def _fit_for_gateway(folder: Path, *, reachable_by_all: bool) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise Invalid(f"There is no gateway directory at {folder}.", field="gateway")
    if reachable_by_all and folder.stat().st_mode & 0o005 != 0o005:
        raise Invalid(
            f"{folder} cannot be entered by the user that the run gets.",
            next_step="Give the gateway directory mode 0755 and its socket 0666, below a directory with mode 0700.",
            field="gateway",
        )


def _free_user(slots: Path) -> tuple[int, int]:
    """A user that no other run on this machine has: the lock (which ends with this process) and the user's number."""
    slots.mkdir(mode=0o700, parents=True, exist_ok=True)
    for slot in range(1, _SLOTS + 1):
        fd = os.open(slots / str(FIRST_USER + slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        return fd, FIRST_USER + slot
    raise Unavailable(f"All {_SLOTS} users for runs are in use.", next_step="Wait until runs have ended.")


def _give_back(kept: _Kept) -> None:
    if kept.group is not None:
        kept.group.remove()
    if kept.slot is not None:
        os.close(kept.slot)
        kept.slot = None
    for name in (STDOUT, STDERR):
        (kept.work / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty: what else is there is not ours to remove
        kept.work.rmdir()
