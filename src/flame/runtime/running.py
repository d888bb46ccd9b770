"""A run as processes of this machine: its gate, its output, its clock and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from flame.model.errors import Conflict, IsolationTooLow
from flame.runtime.sandbox import Broken, Ended, EndReason, Limits, Running

__all__ = ["STDERR", "STDOUT", "Handles", "ProcessRun", "kill", "started"]

STDOUT: Final = "stdout"
STDERR: Final = "stderr"

_CHUNK: Final = 64 << 10
_TAIL: Final = 64 << 10


class _Look(Protocol):
    def __call__(self) -> list[Broken]: ...


@dataclass(frozen=True)
class Handles:
    """Descriptors and processes of one started run; ProcessRun owns and closes them.

    last: a pidfd of the process with which all others end (the init of the run's process namespace).
    sweep: called once after that, for backends whose processes do not all end with `last`.
    """

    monitor: subprocess.Popen[bytes]
    monitor_fd: int
    last_fd: int
    program_fd: int
    program: int
    gate_fd: int
    output_fd: int
    error_fd: int
    look: _Look
    out_of_memory: Callable[[], bool]
    sweep: Callable[[], None]

    def put_down(self) -> None:
        """End what was started and will have no holder, wait for it, and let go of it."""
        kill(self.last_fd)
        self.monitor.kill()
        self.monitor.wait()
        self.sweep()
        self.close()

    def close(self) -> None:
        for fd in (self.monitor_fd, self.last_fd, self.program_fd, self.gate_fd, self.output_fd, self.error_fd):
            os.close(fd)


def kill(pidfd: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process behind a pidfd: never to another that got its number since."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def started(begin: Coroutine[Any, Any, Running], cleanup: Callable[[str], Awaitable[None]]) -> Running:
    """What `begin` has started. Cancelled meanwhile, it is ended here: a thread that starts processes cannot be cancelled."""
    starting = asyncio.create_task(begin)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None:
            await cleanup(starting.result().run)
        raise


class ProcessRun:
    """See `sandbox.Running`. Lives on the event loop it was made on; start it with `attach`.

    Raises OSError when the output cannot be kept in `work`; the processes are ended then.
    """

    def __init__(self, run: str, work: Path, limits: Limits, begin: bytes, handles: Handles) -> None:
        self._run = run
        self._limits = limits
        self._begin = begin
        self._handles = handles
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ended] = self._loop.create_future()
        self._reason: EndReason | None = None
        self._verified = False
        self._released_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._written = 0
        self._tail = bytearray()
        try:
            self._files = {
                handles.output_fd: (work / STDOUT).open("wb", buffering=0),
                handles.error_fd: (work / STDERR).open("wb", buffering=0),
            }
        except OSError:
            handles.put_down()
            raise

    @property
    def run(self) -> str:
        return self._run

    @property
    def pid(self) -> int:
        return self._handles.program

    def attach(self) -> None:
        """Begin to read the output and to wait for the end."""
        for fd in self._files:
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._read, fd)
        self._loop.add_reader(self._handles.monitor_fd, self._monitor_ended)

    async def verify(self) -> list[Broken]:
        if self._ended.done():
            return []
        try:
            broken = await asyncio.to_thread(self._handles.look)
        except ProcessLookupError:
            if self._released_at is None:
                raise Conflict(
                    f"The run {self._run} ended before it was released.", next_step="Start it again."
                ) from None
            return []
        self._verified = not broken
        return broken

    async def release(self) -> None:
        if self._released_at is not None:
            raise Conflict(f"The run {self._run} was released already.")
        if self._ended.done() or self._reason is not None:
            raise Conflict(f"The run {self._run} has ended.", next_step="Start it again.")
        if not self._verified:
            raise IsolationTooLow(
                f"The run {self._run} is not released: no look from outside has found every promise kept.",
                next_step="Call verify() first; end the run when it reports a broken promise.",
                run=self._run,
            )
        self._released_at = time.monotonic()
        self._timer = self._loop.call_later(self._limits.seconds, self._end, EndReason.TIME)
        await asyncio.to_thread(self._open_gate)

    def _open_gate(self) -> None:
        with suppress(BrokenPipeError), os.fdopen(os.dup(self._handles.gate_fd), "wb") as gate:
            gate.write(self._begin)
        self._close_gate()

    def _close_gate(self) -> None:
        # the descriptor's number stays ours (it points to nothing of the run) until the run has ended
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self._handles.gate_fd, inheritable=False)

    async def wait(self) -> Ended:
        return await asyncio.shield(self._ended)

    async def stop(self, grace_seconds: float = 5.0) -> Ended:
        if not self._ended.done() and self._reason is None:
            self._reason = EndReason.STOPPED
            if self._released_at is not None and grace_seconds > 0:
                kill(self._handles.program_fd, signal.SIGTERM)
                with suppress(TimeoutError):
                    return await asyncio.wait_for(self.wait(), grace_seconds)
            kill(self._handles.last_fd)
        return await self.wait()

    def tail(self, size: int = 4096) -> bytes:
        return bytes(self._tail[-size:]) if size > 0 else b""

    def _end(self, reason: EndReason) -> None:
        self._reason = self._reason or reason
        if not self._ended.done():
            kill(self._handles.last_fd)

    def _read(self, fd: int) -> None:
        """Take what is there, once. Beyond the quota nothing is kept and the run ends."""
        try:
            part = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._loop.remove_reader(fd)
            return
        kept = part[: max(0, self._limits.output_bytes - self._written)]
        self._written += len(part)
        self._tail += kept
        del self._tail[:-_TAIL]
        if not self._keep(fd, kept) or self._written > self._limits.output_bytes:
            self._end(EndReason.OUTPUT)

    def _keep(self, fd: int, part: bytes) -> bool:
        """Write to the node's disk; False when that is full: a run whose output is lost does not go on."""
        try:
            return self._files[fd].write(part) == len(part)
        except OSError:
            return False

    def _monitor_ended(self) -> None:
        self._loop.remove_reader(self._handles.monitor_fd)
        kill(self._handles.last_fd)
        # readable once the init is dead, which the kernel lets happen only after all processes of its namespace
        self._loop.add_reader(self._handles.last_fd, self._all_ended)

    def _all_ended(self) -> None:
        ended_at = time.monotonic()
        handles = self._handles
        self._loop.remove_reader(handles.last_fd)
        handles.sweep()
        code = handles.monitor.wait()
        code = 128 - code if code < 0 else code
        self._drain()
        if self._timer is not None:
            self._timer.cancel()
        ended = Ended(
            exit_code=code,
            signal=code - 128 if code > 128 else None,
            reason=self._why(code),
            seconds=ended_at - self._released_at if self._released_at is not None else 0.0,
        )
        self._close()
        self._ended.set_result(ended)

    def _why(self, code: int) -> EndReason:
        if self._reason is not None:
            return self._reason
        if self._released_at is None:
            return EndReason.NOT_RELEASED
        return EndReason.MEMORY if code != 0 and self._handles.out_of_memory() else EndReason.EXITED

    def _drain(self) -> None:
        """What still lies in the pipes: bounded by their size, for nobody writes any more."""
        for fd in self._files:
            before = -1
            while before != self._written and self._written <= self._limits.output_bytes:
                before = self._written
                self._read(fd)
            self._loop.remove_reader(fd)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        self._handles.close()
