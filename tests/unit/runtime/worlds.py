"""Who runs the node in these tests, and one way to run a program under each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flame
from flame.lab.environment import ensure_environment
from flame.runtime import HostEnvironment
from unit.runtime import driver

NOBODY = 65534
SOURCES = Path(flame.__file__).parents[1]
TESTS = Path(driver.__file__).parents[2]

Run = Callable[..., dict[str, Any]]


def missing(backend: str, reason: str) -> None:
    """Skip, saying why; fail where REQUIRE_BACKENDS says that this backend has to be tested."""
    if backend in os.environ.get("REQUIRE_BACKENDS", "").split(","):
        pytest.fail(f"{backend} is required and cannot be tested: {reason}")
    pytest.skip(f"{backend}: {reason}")


def need_bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        missing("process", "bubblewrap is not installed")


def shared_environment(factory: pytest.TempPathFactory) -> HostEnvironment:
    """python/base, kept between test sessions of this user; checked and brought up to date by `ensure_environment`."""
    return ensure_environment(factory.getbasetemp().parent / "flame-environments")


def runner(world: str, factory: pytest.TempPathFactory) -> Run:
    """A function that runs a program: runner("process", ...)("print(1)", args=[...]) -> what happened."""
    need_bubblewrap()
    if world == "process-as-user":
        return _as_user(factory)
    environment = shared_environment(factory)

    def run(program: str, **request: Any) -> dict[str, Any]:
        return driver.drive({"program": program, "backend": world, **request}, environment)

    return run


def _as_user(factory: pytest.TempPathFactory) -> Run:
    if os.geteuid() != 0:
        pytest.skip("process-as-user: the tests run as an ordinary user already, see process")
    home = factory.getbasetemp().parent / "flame-of-nobody"
    home = Path("/tmp") / f"{home.parent.name}-{home.name}"
    home.mkdir(mode=0o700, exist_ok=True)
    os.chown(home, NOBODY, NOBODY)
    user = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    user += ["--inh-caps=-all", "--bounding-set=-all"]
    python = [*user, "/usr/bin/python3", "-B"]
    variables = {"PYTHONPATH": f"{SOURCES}:{TESTS}", "PATH": "/usr/bin:/bin", "HOME": str(home)}
    for command in (
        [*user, "bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"],
        [*python, "-c", "import sys, flame.runtime; assert sys.version_info >= (3, 11)"],
    ):
        tried = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            missing("process-as-user", tried.stderr.strip()[-200:])

    def run(program: str, **request: Any) -> dict[str, Any]:
        asked = json.dumps({"program": program, **request})
        command = [*python, str(Path(driver.__file__)), str(home / "registry")]
        done = subprocess.run(command, env=variables, cwd="/", input=asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return run
