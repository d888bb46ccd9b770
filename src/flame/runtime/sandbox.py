"""The port: what a sandbox promises, and how a run is started in one.

    prepare(environment) -> start(spec) -> verify() -> release() -> wait() / stop() -> cleanup(run)

A started run is blocked: the program has not executed one instruction until `release()`, and `release()` refuses while
`verify()` has not found every promise kept. Nothing falls back silently: a backend that cannot keep a promise says so
in its isolation level, and a node decides by that level what data a run may see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from flame.model.errors import Invalid
from flame.runtime.environments import HostEnvironment

__all__ = [
    "CODE",
    "GATEWAY",
    "ISOLATED",
    "Broken",
    "EndReason",
    "Ended",
    "Isolation",
    "Level",
    "Limits",
    "Promise",
    "RunSpec",
    "Running",
    "Sandbox",
]

CODE: Final = "/code"
GATEWAY: Final = "/run/flame"

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_ARGUMENTS_AT_MOST: Final = 256 << 10


class Promise(StrEnum):
    """What every backend owes a hospital. A value is the word that appears in logs and on pages."""

    NO_NETWORK = "no-network"
    OWN_FILES = "own-files"
    NO_OTHER_PROCESSES = "no-other-processes"
    OTHER_USER = "other-user"
    NO_NEW_PRIVILEGES = "no-new-privileges"
    NO_CAPABILITIES = "no-capabilities"
    SECCOMP = "seccomp"
    LIMITS = "limits"
    ENDS_WITH_RUN = "ends-with-run"


# what "no network and own files only" rests on: without one of these the two cannot be believed either
ISOLATED: Final = frozenset(Promise) - {Promise.OTHER_USER, Promise.LIMITS}


class Level(IntEnum):
    """Isolation levels, ordered: a higher one keeps everything that a lower one keeps."""

    NONE = 0
    ISOLATED = 1
    FULL = 2

    @property
    def title(self) -> str:
        return {Level.NONE: "none", Level.ISOLATED: "no-network-own-files", Level.FULL: "full"}[self]


@dataclass(frozen=True)
class Broken:
    """A promise that does not hold, and what was seen."""

    promise: Promise
    detail: str


@dataclass(frozen=True)
class Isolation:
    """What a backend was seen to keep on this machine."""

    backend: str
    kept: frozenset[Promise]
    broken: tuple[Broken, ...] = ()

    @property
    def level(self) -> Level:
        if self.kept >= frozenset(Promise):
            return Level.FULL
        return Level.ISOLATED if self.kept >= ISOLATED else Level.NONE

    @property
    def name(self) -> str:
        """The level's name as a node publishes it: "full", "no-network-own-files" or "none"."""
        return self.level.title

    @property
    def meets_real_data(self) -> bool:
        """Whether data of patients may be shown to a run without the data owner saying so for this node."""
        return self.level >= Level.ISOLATED

    @property
    def detail(self) -> str:
        return "; ".join(f"{broken.promise}: {broken.detail}" for broken in self.broken)


@dataclass(frozen=True)
class Limits:
    """What a run may use. Bytes, except `cpus` (processors' worth of time), `seconds` (wall clock) and the two counts.

    disk_bytes is the size of /tmp, which lies in memory and counts towards memory_bytes too; output_bytes is what
    stdout and stderr may hold together; file_bytes the largest single file.
    """

    memory_bytes: int = 2 << 30
    cpus: float = 1.0
    processes: int = 64
    disk_bytes: int = 512 << 20
    open_files: int = 1024
    file_bytes: int = 1 << 30
    seconds: float = 3600.0
    output_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise Invalid(f"The limit {name} must be more than zero.", field=name)


@dataclass(frozen=True)
class RunSpec:
    """One run.

    run: an id, letters, digits, '-' and '_'. code: mounted read-only at /code. gateway: the directory with this run's
    gateway socket, mounted read-only at /run/flame (a socket there can be connected to, nothing can be created).
    command: arguments after the interpreter, such as ("-u", "/code/main.py", "x"). variables: what the program finds in
    its environment besides PATH, HOME, LANG, PYTHONPATH and the like. work: a private directory of this run on the
    host; captured output is kept there. It is created if missing and removed by `cleanup`.
    """

    run: str
    environment: HostEnvironment
    code: Path
    gateway: Path
    command: tuple[str, ...]
    work: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise Invalid(f"{self.run!r} is not an id of a run.", field="run")
        for name, value in self.variables.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise Invalid(f"{name!r} cannot be an environment variable of a run.", field="variables")
        if not self.command or any("\0" in part for part in self.command):
            raise Invalid("A run needs a command, without NUL bytes.", field="command")
        size = sum(map(len, self.command)) + sum(len(k) + len(v) for k, v in self.variables.items())
        if size > _ARGUMENTS_AT_MOST:
            raise Invalid("Command and variables of a run are larger than 256 KiB.", field="command")


class EndReason(StrEnum):
    EXITED = "exited"
    STOPPED = "stopped"
    TIME = "time"
    MEMORY = "memory"
    OUTPUT = "output"
    NOT_RELEASED = "not-released"


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    exit_code as a shell gives it (128 + number for a signal); signal: that number, None if the code is not above 128.
    seconds: from release to the end of the last process.
    """

    exit_code: int
    signal: int | None
    reason: EndReason
    seconds: float


@runtime_checkable
class Running(Protocol):
    """A run that was started, at first blocked before its program's first instruction."""

    @property
    def run(self) -> str: ...

    @property
    def pid(self) -> int:
        """The program's process id, as the host counts."""

    async def verify(self) -> list[Broken]:
        """Look from outside whether every promise of this backend holds. Empty when all do, or when the run has ended.

        May be called before `release` (it must) and at any time after.
        """

    async def release(self) -> None:
        """Let the program begin. Raises IsolationTooLow when `verify` has not been called or found a promise broken."""

    async def wait(self) -> Ended:
        """Wait until every process of the run is gone. May be awaited any number of times."""

    async def stop(self, grace_seconds: float = 5.0) -> Ended:
        """Ask the program to end (SIGTERM), kill all of it after the grace, and wait."""

    def tail(self, size: int = 4096) -> bytes:
        """The last bytes of stdout and stderr, in the order in which they were read. At most what the quota kept."""


class Sandbox(Protocol):
    """A backend."""

    @property
    def name(self) -> str: ...

    async def probe(self, environment: HostEnvironment) -> Isolation:
        """Run a canary in `environment` and say what was kept: seen from outside and tried from inside."""

    async def prepare(self, environment: HostEnvironment) -> None:
        """Check that the environment is the one registered. Raises DoesNotMatchApproval."""

    async def start(self, spec: RunSpec) -> Running:
        """Start a run, blocked. Checks the environment, too.

        Raises DoesNotMatchApproval, Invalid (code or gateway not fit to be mounted), Unavailable (no free slot, or the
        sandbox cannot be set up; says why). Nothing is left behind then.
        """

    async def cleanup(self, run: str) -> None:
        """End the run if it has not ended and remove all traces (control groups, work directory). Repeatable."""
