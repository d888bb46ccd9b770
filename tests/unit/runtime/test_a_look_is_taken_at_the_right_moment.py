"""A loaded machine is not a broken promise: nothing is judged before it is set up, or while it comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flame.model.errors import Unavailable
from flame.runtime import Promise
from flame.runtime.starting import await_init, first_process
from flame.runtime.verify import Expected, broken_promises, has_ended, status_of

_LATE = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow)))
sys.stdin.readline()
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0
sys.stdin.readline()
"""
_LEADER_LEAVES = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.readline).start()
print(flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit of this thread alone (x86-64)
"""


@contextmanager
def _process(program: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def silent() -> Iterator[int]:
    """What bubblewrap says when it says nothing and has not closed its end."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def _tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def _expected(init: int) -> Expected:
    return Expected(
        promises=frozenset(Promise),
        monitor=os.getpid(),
        init=init,
        user=200_001,
        user_namespace=False,
        mounts={},
        rlimits={},
        group=None,
    )


def test_an_init_that_is_late_with_its_filter_is_waited_for(silent: int) -> None:
    seen: list[str] = []
    with _process(_LATE) as init:

        def wait() -> None:
            await_init(init.pid, silent)
            seen.append(status_of(init.pid)["Seccomp"])

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.1)  # time enough for a wait that is none to give itself away
        assert seen == []
        _tell(init)
        waiting.join()
    assert seen == ["2"]


def test_an_init_that_never_has_a_filter_is_left_to_the_look(silent: int) -> None:
    with _process("input()") as init:
        await_init(init.pid, silent, within=0.01)
        broken = broken_promises(init.pid, _expected(init.pid))
    assert "no system call filter is in force for the init" in [found.detail for found in broken]


def test_an_init_that_ends_is_not_waited_for(silent: int) -> None:
    with _process("") as init:
        os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOWAIT)  # dead and not buried
        with pytest.raises(Unavailable, match="ended without a word"):
            await_init(init.pid, silent)
        init.wait()
        with pytest.raises(Unavailable, match="ended without a word"):
            await_init(init.pid, silent)
        with pytest.raises(Unavailable, match="ended without a word"):
            first_process(init.pid, silent)


def test_a_process_that_ends_breaks_no_promise() -> None:
    with _process("input()") as process:
        expected = _expected(process.pid)
        assert broken_promises(process.pid, expected)
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            broken_promises(process.pid, expected)
        process.wait()
        with pytest.raises(ProcessLookupError):
            broken_promises(process.pid, expected)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of a system call")
def test_a_program_whose_first_thread_has_left_has_not_ended() -> None:
    """A running program cannot make the look believe that there is nothing to look at."""
    with _process(_LEADER_LEAVES) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while status_of(process.pid)["State"][0] != "Z":
            threading.Event().wait(0.001)
        assert not has_ended(process.pid)
        assert broken_promises(process.pid, _expected(process.pid))


def test_the_name_of_a_process_does_not_decide_whether_it_has_ended() -> None:
    name = b") Z 1 4 4 4"
    program = f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}); print(flush=True); input()"
    with _process(program) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not has_ended(process.pid)
