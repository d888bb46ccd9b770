"""What every sandbox does alike: run a program as it was asked, say how it ended, and leave nothing behind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unit.runtime.worlds import Run, runner

WORLDS = ("process", "process-as-user", "unsandboxed")


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(world: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(world, tmp_path_factory)


def assert_nothing_left(done: dict[str, Any]) -> None:
    assert done["processes_left"] == []
    assert done["groups_left"] == []
    assert not done["work_left"]


def test_a_program_runs_and_nothing_is_left(run: Run) -> None:
    done = run("print('hello'); import sys; print('trouble', file=sys.stderr)")
    assert done["broken"] == []
    assert (done["exit_code"], done["signal"], done["reason"]) == (0, None, "exited")
    assert (done["out"], done["err"]) == ("hello\n", "trouble\n")
    assert "hello" in done["tail"]
    assert_nothing_left(done)


def test_arguments_pass_without_a_shell(run: Run) -> None:
    arguments = ["a b", "$HOME", "; echo x", "`id`", "*", "", "ü\n'\""]
    done = run("import sys, json; print(json.dumps(sys.argv[1:-1]))", args=arguments)
    assert json.loads(done["out"]) == arguments


def test_the_environment_holds_what_was_given_and_nothing_of_the_node(run: Run) -> None:
    done = run("import os, json; print(json.dumps(dict(os.environ)))", variables={"GIVEN": "a=b\nc"})
    seen = json.loads(done["out"])
    assert seen.pop("GIVEN") == "a=b\nc"
    fixed = {"HOME", "LANG", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "TMPDIR"}
    assert seen.keys() - {"LC_CTYPE"} == fixed


def test_the_gateway_answers(run: Run, world: str) -> None:
    program = """
import os, socket
with socket.socket(socket.AF_UNIX) as s:
    s.connect(os.environ["GATEWAY"])
    print(s.recv(100).decode())
"""
    done = run(program, variables={"GATEWAY": "/run/flame/gateway.sock"})
    assert done["out"] == "the gateway of own\n", done["err"]


def test_modules_beside_the_program_are_found(run: Run) -> None:
    done = run("import other; print(other.VALUE)", files={"other.py": "VALUE = 42"})
    assert done["out"] == "42\n", done["err"]


@pytest.mark.parametrize("code", [0, 1, 7, 125])
def test_the_exit_code_is_the_programs(run: Run, code: int) -> None:
    done = run(f"raise SystemExit({code})")
    assert (done["exit_code"], done["reason"]) == (code, "exited")


def test_a_crash_names_its_signal(run: Run) -> None:
    done = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (done["exit_code"], done["signal"]) == (139, 11)


def test_the_time_limit_ends_a_run(run: Run) -> None:
    done = run("while True: pass", limits={"seconds": 0.5})
    assert done["reason"] == "time"
    assert done["signal"] == 9
    assert_nothing_left(done)


def test_stop_lets_a_program_end_itself(run: Run) -> None:
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(3)))
print("ready")
while True:
    time.sleep(0.05)
"""
    done = run(program, stop_when="ready", grace=60)
    assert done["broken_while_running"] == []
    assert (done["reason"], done["exit_code"]) == ("stopped", 3)
    assert "saved" in done["out"]


def test_stop_ends_a_program_that_ignores_it(run: Run) -> None:
    program = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
print("ready")
while True:
    time.sleep(0.05)
"""
    done = run(program, stop_when="ready", grace=0.3)
    assert (done["reason"], done["signal"]) == ("stopped", 9)
    assert_nothing_left(done)


def test_output_beyond_the_quota_ends_a_run(run: Run) -> None:
    done = run("import sys\nwhile True: sys.stdout.write('x' * 65536)", limits={"output_bytes": 100_000})
    assert done["reason"] == "output"
    assert len(done["out"]) == 100_000
    assert_nothing_left(done)


def test_output_up_to_the_quota_is_whole(run: Run) -> None:
    done = run("import sys; sys.stdout.write('x' * 200_000)", limits={"output_bytes": 200_000})
    assert (done["reason"], len(done["out"])) == ("exited", 200_000)


def test_a_program_that_is_not_there_is_said_so(run: Run) -> None:
    done = run("", args=[], files={})
    assert done["exit_code"] == 0
    done = run("import subprocess; subprocess.run(['/nowhere'])")
    assert done["exit_code"] == 1
    assert "FileNotFoundError" in done["err"]
