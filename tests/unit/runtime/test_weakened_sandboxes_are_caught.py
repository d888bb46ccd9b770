"""For every promise: a sandbox with the one thing removed that the promise rests on is seen from outside, and not released."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flame.runtime import Promise
from flame.runtime.verify import Expected, broken_promises
from unit.runtime.worlds import Run, runner

BY_FLAG = sorted(frozenset(Promise) - {Promise.NO_NEW_PRIVILEGES})


@pytest.fixture(scope="module", params=["process", "process-as-user"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(str(request.param), tmp_path_factory)


@pytest.mark.parametrize("promise", BY_FLAG)
def test_a_missing_flag_is_seen_and_the_program_never_runs(run: Run, promise: Promise) -> None:
    done = run("print('it ran')", weaken=[promise])
    if promise not in done["promises"]:
        assert promise in (Promise.OTHER_USER, Promise.LIMITS), "an ordinary user cannot promise these two"
        return
    if promise is Promise.NO_CAPABILITIES and os.geteuid() == 0 and not done["broken"]:
        assert Promise.OTHER_USER not in done["promises"], "bubblewrap gives an ordinary user's run none in any case"
        return
    assert promise in {name for name, _ in done["broken"]}
    assert done["refused"] == "isolation_too_low"
    assert "out" not in done


def test_a_whole_sandbox_is_not_accused(run: Run) -> None:
    done = run("print('it ran')")
    assert done["broken"] == []
    assert done["out"] == "it ran\n"


def test_a_plain_process_breaks_what_no_flag_can() -> None:
    """bubblewrap always sets no_new_privs, so this promise is tried on a process that has none of them."""
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE) as process:
        expected = Expected(
            promises=frozenset(Promise),
            monitor=process.pid,
            init=process.pid,
            user=200_001,
            user_namespace=False,
            mounts={},
            rlimits={"open_files": 7},
            group=None,
        )
        found = {broken.promise for broken in broken_promises(process.pid, expected)}
        process.communicate(b"")
    assert Promise.NO_NEW_PRIVILEGES in found
    in_vain = {Promise.NO_CAPABILITIES} if os.geteuid() != 0 else set()
    assert found >= frozenset(Promise) - in_vain
