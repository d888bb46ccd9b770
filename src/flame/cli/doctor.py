"""``flame doctor``: what this machine can do for FLAME, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors

app = typer.Typer(add_completion=False)

_MIB: Final = 1 << 20
_ENOUGH_DISK: Final = 500 * _MIB


@dataclass(frozen=True)
class Finding:
    name: str
    state: Literal["good", "warning", "bad"]
    found: str
    next_step: str = ""


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can do for FLAME, and what is missing. Exit code 1 when something is bad."""
    with told_errors(json):
        findings = examine()
        Output(json).rows([asdict(finding) for finding in findings], ("name", "state", "found", "next_step"), "")
        if any(finding.state == "bad" for finding in findings):
            raise typer.Exit(1)


def examine() -> list[Finding]:
    looks: tuple[Callable[[], Finding], ...] = (_python, _system, _extras, _bytecode, _sandbox, _cgroups, _disk)
    return [look() for look in looks]


def _python() -> Finding:
    return Finding("python", "good", f"{platform.python_version()}, {sys.executable}")


def _system() -> Finding:
    if sys.platform != "linux":
        return Finding("system", "bad", sys.platform, "Hub and nodes run on Linux; the SDK runs here.")
    return Finding("system", "good", f"Linux {platform.release()}, {os.cpu_count()} processors")


def _extras() -> Finding:
    """One library that each extra brings, looked for without importing it."""
    marks = {"hub": "starlette", "node": "aiohttp", "lab": "statsmodels"}
    absent = [extra for extra, module in marks.items() if importlib.util.find_spec(module) is None]
    if absent:
        return Finding(
            "parts", "warning", f"not installed: {', '.join(absent)}", f"pip install 'flame-federated[{absent[-1]}]'"
        )
    return Finding("parts", "good", "hub, node and lab are installed")


def _bytecode() -> Finding:
    """Without compiled byte code each process compiles hundreds of modules again, at every start."""
    import flame

    source = Path(flame.__file__)
    files = list(source.parent.rglob("*.py"))
    compiled = sum(Path(importlib.util.cache_from_source(str(file))).exists() for file in files)
    if compiled < 0.8 * len(files):
        return Finding(
            "byte code",
            "warning",
            f"{compiled} of {len(files)} modules are compiled: every start is slow",
            f"{sys.executable} -m compileall -q {source.parent}",
        )
    return Finding("byte code", "good", f"{compiled} of {len(files)} modules are compiled")


def _sandbox() -> Finding:
    import subprocess

    from flame.model.errors import Unavailable
    from flame.runtime.process import bubblewrap

    install = "sudo apt-get install --no-install-recommends bubblewrap"
    try:
        program, _ = bubblewrap()
    except Unavailable as error:
        return Finding("sandbox", "bad", f"{error.message} Analyses of real data are refused.", install)
    trial = [str(program), "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        return Finding(
            "sandbox",
            "bad",
            f"bubblewrap cannot make its namespaces here: {done.stderr.strip()[:200]}",
            "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or an AppArmor rule for bwrap).",
        )
    who = "root: runs get a user of their own" if os.geteuid() == 0 else "an ordinary user: runs share the node's user"
    return Finding("sandbox", "good", f"{program}, as {who}")


def _cgroups() -> Finding:
    root = Path("/sys/fs/cgroup")
    version = "v2" if (root / "cgroup.controllers").exists() else "v1" if (root / "memory").is_dir() else None
    if version is None:
        return Finding("limits", "warning", "no control groups: limits hold for each process, not for a whole run")
    where = root if version == "v2" else root / "memory"
    if not os.access(where, os.W_OK):
        return Finding(
            "limits",
            "warning",
            f"control groups {version}, not writable: limits hold for each process, not for a whole run",
            "Run the node as a systemd service with Delegate=yes.",
        )
    return Finding("limits", "good", f"control groups {version}: memory, processes and CPU of a whole run")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    said = f"{free // _MIB} MB free in {Path.cwd()}"
    if free < _ENOUGH_DISK:
        return Finding("disk", "warning", said, "Results, databases and environments need room: free 500 MB.")
    return Finding("disk", "good", said)
