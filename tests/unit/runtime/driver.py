"""Run one program in a sandbox, the way a node does, and tell what happened. Standard library and flame.runtime only.

Called in the tests' own process, or as a program of its own under another user (JSON on stdin and stdout), so that one
suite covers the node that is root and the node that is an ordinary user.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flame.model.errors import FlameError
from flame.runtime import HostEnvironment, Limits, Promise, RunSpec, check, register_host_environment
from flame.runtime.cgroups import Cgroups, find_cgroups
from flame.runtime.process import ProcessSandbox
from flame.runtime.sandbox import Running
from flame.runtime.unsandboxed import Unsandboxed

PATIENT = "1987-03-04;C50.9;patient-canary"
SECRET = "host-variable-canary"
SMALL = {
    "memory_bytes": 256 << 20,
    "cpus": 1.0,
    "processes": 24,
    "disk_bytes": 16 << 20,
    "open_files": 128,
    "file_bytes": 32 << 20,
    "seconds": 60.0,
    "output_bytes": 256 << 10,
}


def drive(request: dict[str, Any], environment: HostEnvironment) -> dict[str, Any]:
    """request: program; optionally args, files, links, variables, limits, weaken, backend, stop_when, grace, run."""
    return asyncio.run(asyncio.wait_for(_drive(request, environment), 240))


async def _drive(request: dict[str, Any], environment: HostEnvironment) -> dict[str, Any]:
    os.environ["FLAME_TEST_SECRET"] = SECRET
    with contextlib.ExitStack() as world:
        place = Path(world.enter_context(tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp")))
        surroundings = _surroundings(place, world)
        _write_code(place / "code", request)
        spec = RunSpec(
            run=request.get("run", "run-1"),
            environment=environment,
            code=place / "code",
            gateway=place / "own",
            command=("-u", "/code/main.py", *request.get("args", []), json.dumps(surroundings)),
            variables=request.get("variables", {}),
            limits=Limits(**{**SMALL, **request.get("limits", {})}),
            work=place / "work",
        )
        return await _run(request, spec, place)


async def _run(request: dict[str, Any], spec: RunSpec, place: Path) -> dict[str, Any]:
    sandbox = _backend(request, place)
    told: dict[str, Any] = {"promises": sorted(sandbox.promises)}
    try:
        running = await sandbox.start(spec)
        namespace = os.readlink(f"/proc/{running.pid}/ns/pid")
        told["broken"] = [dataclasses.astuple(broken) for broken in await running.verify()]
        try:
            await running.release()
        except FlameError as refused:
            return {**told, "refused": refused.code}
        ended = await _until(request, running, told)
        told |= {**dataclasses.asdict(ended), "tail": running.tail().decode(errors="replace")}
        told["out"] = (spec.work / "stdout").read_text(errors="replace")
        told["err"] = (spec.work / "stderr").read_text(errors="replace")
        told["processes_left"] = [] if request.get("backend") == "unsandboxed" else _inside(namespace)
    except FlameError as wrong:
        return {**told, "failed": wrong.code, "message": str(wrong)}
    finally:
        await sandbox.cleanup(spec.run)
    check(spec.environment)
    told["groups_left"] = _groups_of_this_process()
    told["work_left"] = spec.work.exists()
    told["data_intact"] = (place / "data" / "patients.csv").read_text() == PATIENT
    told["gateway_intact"] = sorted(path.name for path in (place / "own").iterdir()) == ["gateway.sock"]
    return told


async def _until(request: dict[str, Any], running: Running, told: dict[str, Any]) -> Any:
    if "stop_when" not in request:
        return await running.wait()
    while request["stop_when"].encode() not in running.tail():
        await asyncio.sleep(0.01)
    told["broken_while_running"] = [dataclasses.astuple(broken) for broken in await running.verify()]
    return await running.stop(request.get("grace", 0.5))


def _backend(request: dict[str, Any], place: Path) -> ProcessSandbox | Unsandboxed:
    if request.get("backend") == "unsandboxed":
        return Unsandboxed()
    weaken = frozenset(Promise(name) for name in request.get("weaken", ()))
    return ProcessSandbox(slots=place / "slots", weaken=weaken)


def _write_code(code: Path, request: dict[str, Any]) -> None:
    code.mkdir(mode=0o755)
    code.chmod(0o755)
    for name, text in {"main.py": request["program"], **request.get("files", {})}.items():
        (code / name).write_text(text)
        (code / name).chmod(0o644)
    for name, target in request.get("links", {}).items():
        (code / name).symlink_to(target)


# -- what lies around the run on the host -------------------------------------------------------------------------


def _surroundings(place: Path, world: contextlib.ExitStack) -> dict[str, Any]:
    """Things that a run must not reach, each shown to be there; their places are told to the program."""
    (place / "data").mkdir(mode=0o700)
    (place / "data" / "patients.csv").write_text(PATIENT)
    for name in ("own", "other"):
        (place / name).mkdir()
        (place / name).chmod(0o755)
        world.enter_context(_serving(str(place / name / "gateway.sock"), f"the gateway of {name}".encode()))
        (place / name / "gateway.sock").chmod(0o666)
    hidden = f"\0flame-test-{os.getpid()}-{place.name}"
    world.enter_context(_serving(hidden, b"abstract"))
    port = world.enter_context(_listening())
    return {
        "place": str(place),
        "patients": str(place / "data" / "patients.csv"),
        "other_socket": str(place / "other" / "gateway.sock"),
        "abstract": hidden[1:],
        "home": str(Path(__file__).parent),
        "node": os.getpid(),
        "addresses": [[address, port] for address in _own_addresses()],
    }


@contextlib.contextmanager
def _serving(address: str, answer: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        threading.Thread(target=_answer, args=(server, answer), daemon=True).start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            assert client.recv(100) == answer, "the control of the test itself"
        yield
        server.shutdown(socket.SHUT_RDWR)


def _answer(server: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(answer)


@contextlib.contextmanager
def _listening() -> Iterator[int]:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        for address in _own_addresses():
            with socket.create_connection((address, port), timeout=10):
                pass
        yield port


def _own_addresses() -> list[str]:
    """Addresses of this host, as its routing table lists them."""
    found, last = {"127.0.0.1"}, ""
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        if "|--" in line:
            last = line.split()[-1]
        elif "/32 host LOCAL" in line:
            found.add(last)
    return sorted(found)


# -- what is left afterwards ----------------------------------------------------------------------------------------


def _inside(namespace: str) -> list[int]:
    """Living processes of the host that are still in this process namespace.

    A dead one without its files and memory (state Z) may wait there for the host's init to read its exit code.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if os.readlink(entry / "ns" / "pid") == namespace and state not in "ZX":
                    found.append(int(entry.name))
    return found


def _groups_of_this_process() -> list[str]:
    cgroups = find_cgroups()
    if not isinstance(cgroups, Cgroups):
        return []
    return [str(place) for parent in cgroups.parents.values() for place in parent.glob(f"flame-{os.getpid()}-*")]


def _environment_of(registry: Path) -> HostEnvironment:
    """An environment of this interpreter with an empty site: all that an ordinary user needs for these programs."""
    site = registry / "site"
    site.mkdir(parents=True, exist_ok=True)
    return register_host_environment("python/bare", site, registry=registry)


if __name__ == "__main__":
    print(json.dumps(drive(json.load(sys.stdin), _environment_of(Path(sys.argv[1])))))
