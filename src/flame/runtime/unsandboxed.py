"""No sandbox: a plain process as the node's own user, for public demonstration data on machines without bubblewrap.

It keeps no promise but no_new_privs, says so in its level ("none"), and is never chosen unless it is asked for by name.
It speaks the same port, so that a demonstration runs the same programs: paths below /code and /run/flame in the command
and in variables are turned into the host's.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

from flame.model.errors import Conflict, Unavailable
from flame.runtime import gate
from flame.runtime.environments import HostEnvironment, check
from flame.runtime.running import STDERR, STDOUT, Handles, ProcessRun, started
from flame.runtime.sandbox import CODE, GATEWAY, Broken, Isolation, Promise, Running, RunSpec
from flame.runtime.spawner import Order, spawn
from flame.runtime.starting import Descriptors, await_gate, put_down
from flame.runtime.verify import status_of

__all__ = ["Unsandboxed"]

_SCRATCH: Final = "tmp"


class Unsandboxed:
    """The backend `unsandboxed`. See `sandbox.Sandbox`."""

    def __init__(self) -> None:
        self._setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
        self._runs: dict[str, tuple[ProcessRun | None, Path]] = {}

    @property
    def name(self) -> str:
        return "unsandboxed"

    @property
    def promises(self) -> frozenset[Promise]:
        return frozenset({Promise.NO_NEW_PRIVILEGES} if self._setpriv else ())

    async def probe(self, environment: HostEnvironment) -> Isolation:
        await self.prepare(environment)
        lost = sorted(frozenset(Promise) - self.promises)
        return Isolation(
            self.name, self.promises, tuple(Broken(promise, "runs are plain processes") for promise in lost)
        )

    async def prepare(self, environment: HostEnvironment) -> None:
        await asyncio.to_thread(check, environment)

    async def start(self, spec: RunSpec) -> Running:
        if spec.run in self._runs:
            raise Conflict(f"The run {spec.run} was started already.", next_step="Clean it up first.")
        self._runs[spec.run] = (None, spec.work)
        return await started(self._begin(spec), self.cleanup)

    async def _begin(self, spec: RunSpec) -> Running:
        try:
            handles = await asyncio.to_thread(self._launch, spec)
            run = ProcessRun(spec.run, spec.work, spec.limits, _begin(spec), handles)
        except OSError as wrong:
            await self._forget(spec.run)
            raise Unavailable(f"The run {spec.run} cannot be started: {wrong}.") from wrong
        except BaseException:
            await self._forget(spec.run)
            raise
        self._runs[spec.run] = (run, spec.work)
        run.attach()
        return run

    async def cleanup(self, run: str) -> None:
        known, _ = self._runs.get(run, (None, None))
        if known is not None:
            await known.stop(0)
        if run in self._runs:
            await self._forget(run)

    async def _forget(self, run: str) -> None:
        await asyncio.to_thread(_remove, self._runs[run][1])
        del self._runs[run]

    def _launch(self, spec: RunSpec) -> Handles:
        check(spec.environment)
        (spec.work / _SCRATCH).mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as undo:
            return self._start(spec, undo)

    def _start(self, spec: RunSpec, undo: ExitStack) -> Handles:
        pipes = Descriptors(undo)
        ready, ready_end = pipes.pipe()
        gate_end, opener = pipes.pipe()
        output, output_end = pipes.pipe()
        error, error_end = pipes.pipe()
        nothing = pipes.own(os.open(os.devnull, os.O_RDONLY))
        command = [
            *self._prefix(),
            str(spec.environment.python),
            "-I",
            "-S",
            "-c",
            gate.SOURCE,
            str(ready_end),
            str(gate_end),
        ]
        order = Order(command, (nothing, output_end, error_end), (ready_end, gate_end), {}, new_session=True)
        process = spawn(order)
        undo.push(partial(put_down, process))
        for fd in (ready_end, gate_end, output_end, error_end, nothing):
            pipes.close(fd)
        await_gate(ready, error)
        for number, value in _rlimits(spec):
            resource.prlimit(process.pid, number, (value, value))
        return Handles(
            monitor=process,
            monitor_fd=os.pidfd_open(process.pid),
            last_fd=os.pidfd_open(process.pid),
            program_fd=os.pidfd_open(process.pid),
            program=process.pid,
            gate_fd=os.dup(opener),
            output_fd=os.dup(output),
            error_fd=os.dup(error),
            look=partial(_look, process.pid, self.promises),
            out_of_memory=lambda: False,
            sweep=partial(_end_session, process.pid),
        )

    def _prefix(self) -> Iterator[str]:
        if self._setpriv:
            yield from (self._setpriv, "--no-new-privs", "--pdeathsig", "KILL")


def _rlimits(spec: RunSpec) -> Iterator[tuple[int, int]]:
    limits = spec.limits
    yield resource.RLIMIT_NOFILE, limits.open_files
    yield resource.RLIMIT_FSIZE, limits.file_bytes
    yield resource.RLIMIT_CORE, 0
    yield resource.RLIMIT_DATA, limits.memory_bytes


def _begin(spec: RunSpec) -> bytes:
    scratch = str(spec.work.resolve() / _SCRATCH)
    variables = {
        "HOME": scratch,
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(spec.environment.site),
        "TMPDIR": scratch,
    }
    given = {name: _on_host(value, spec) for name, value in spec.variables.items()}
    command = (str(spec.environment.python), *(_on_host(part, spec) for part in spec.command))
    return gate.message(command, {**variables, **given})


def _on_host(text: str, spec: RunSpec) -> str:
    for inside, outside in ((CODE, spec.code), (GATEWAY, spec.gateway)):
        if text == inside or text.startswith(inside + "/"):
            return str(outside.resolve()) + text[len(inside) :]
    return text


def _look(pid: int, promises: frozenset[Promise]) -> list[Broken]:
    try:
        status = status_of(pid)
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    if promises and status["NoNewPrivs"] != "1":
        return [Broken(Promise.NO_NEW_PRIVILEGES, "the program could gain privileges")]
    return []


def _end_session(leader: int) -> None:
    """Its process group; what has left the group is beyond the reach of this backend, as its level says."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _remove(work: Path) -> None:
    shutil.rmtree(work / _SCRATCH, ignore_errors=True)
    for name in (STDOUT, STDERR):
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()
