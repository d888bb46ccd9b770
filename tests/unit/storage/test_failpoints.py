"""A fail point kills where it says, once, and only where test hooks are on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flame.model.errors import Conflict
from flame.storage import failpoints

PROGRAM = (
    "from flame.storage.failpoints import declare, reached; p = declare('t.here', 'nothing'); reached(p); print('past')"
)


THRICE = (
    "from flame.storage.failpoints import declare, reached; p = declare('t.here', 'nothing');"
    "[(reached(p), print(i)) for i in range(3)]"
)


def run(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **env}, capture_output=True, text=True)


def test_it_kills_without_clean_up() -> None:
    assert run(FLAME_TEST_HOOKS="1", FLAME_FAILPOINT="t.here").returncode == -signal.SIGKILL


def test_it_kills_the_time_that_is_asked_for() -> None:
    env = {"FLAME_TEST_HOOKS": "1", "FLAME_FAILPOINT": "t.here", "FLAME_FAILPOINT_HIT": "3", "PYTHONUNBUFFERED": "1"}
    ended = subprocess.run([sys.executable, "-c", THRICE], env={**os.environ, **env}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "0\n1\n")


def test_it_kills_once_when_a_marker_is_given(tmp_path: Path) -> None:
    env = {"FLAME_TEST_HOOKS": "1", "FLAME_FAILPOINT": "t.here", "FLAME_FAILPOINT_ONCE": str(tmp_path / "mark")}
    assert run(**env).returncode == -signal.SIGKILL
    assert run(**env).stdout == "past\n"


@pytest.mark.parametrize(
    "env", [{"FLAME_FAILPOINT": "t.here"}, {"FLAME_TEST_HOOKS": "1", "FLAME_FAILPOINT": "t.other"}]
)
def test_it_does_nothing_in_production_or_elsewhere(env: dict[str, str]) -> None:
    assert run(**env).stdout == "past\n"


def test_a_name_means_one_thing_and_is_declared() -> None:
    failpoints.declare("t.unit", "a")
    failpoints.declare("t.unit", "a")
    with pytest.raises(Conflict):
        failpoints.declare("t.unit", "b")
    with pytest.raises(Conflict):
        failpoints.reached("t.undeclared")
