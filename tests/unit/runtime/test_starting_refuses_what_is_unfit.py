"""The port's own rules: what is not started, not released, and what a failed start leaves (nothing)."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flame.model.errors import Conflict, DoesNotMatchApproval, Invalid, IsolationTooLow, NotFound, Unavailable
from flame.runtime import HostEnvironment, Level, Limits, Promise, RunSpec, choose_backend, register_host_environment
from flame.runtime.process import ProcessSandbox
from flame.runtime.sandbox import ISOLATED, Isolation
from flame.runtime.unsandboxed import Unsandboxed
from flame.runtime.verify import children, status_of
from unit.runtime import driver
from unit.runtime.worlds import SOURCES, need_bubblewrap, shared_environment

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> HostEnvironment:
    need_bubblewrap()
    return shared_environment(tmp_path_factory)


@pytest.fixture
def spec(environment: HostEnvironment, tmp_path: Path) -> RunSpec:
    for name in ("code", "gateway"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "code" / "main.py").write_text("import os; print(os.getuid())")
    limits = Limits(memory_bytes=256 << 20, disk_bytes=8 << 20, seconds=60)
    command = ("/code/main.py",)
    return RunSpec(
        "run-1", environment, tmp_path / "code", tmp_path / "gateway", command, tmp_path / "work", limits=limits
    )


@pytest.fixture
def sandbox(tmp_path: Path) -> ProcessSandbox:
    return ProcessSandbox(slots=tmp_path / "slots")


@pytest.mark.parametrize("backend", ["process", "unsandboxed"])
def test_a_run_whose_output_cannot_be_kept_leaves_no_process(
    spec: RunSpec, sandbox: ProcessSandbox, backend: str
) -> None:
    spec.work.mkdir()
    (spec.work / "stdout").symlink_to(spec.work / "gone" / "stdout")
    chosen = sandbox if backend == "process" else Unsandboxed()

    async def start() -> None:
        with pytest.raises(Unavailable, match="cannot be started"):
            await chosen.start(spec)

    before = set(children(os.getpid()))
    asyncio.run(start())
    assert set(children(os.getpid())) <= before


def _socket_in_code(spec: RunSpec) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(spec.code / "s"))


UNFIT: dict[str, Callable[[RunSpec], object]] = {
    "a socket in the code": _socket_in_code,
    "a pipe in the code": lambda spec: os.mkfifo(spec.code / "p"),
    "no code": lambda spec: spec.code.rename(spec.code.with_name("gone")),
    "no gateway": lambda spec: spec.gateway.rmdir(),
}
if ROOT:
    UNFIT["code that the run's user cannot read"] = lambda spec: (spec.code / "main.py").chmod(0o600)
    UNFIT["a gateway that it cannot enter"] = lambda spec: spec.gateway.chmod(0o700)


@pytest.mark.parametrize("what", UNFIT)
def test_unfit_directories_are_refused_and_nothing_is_left(sandbox: ProcessSandbox, spec: RunSpec, what: str) -> None:
    UNFIT[what](spec)
    with pytest.raises(Invalid):
        asyncio.run(sandbox.start(spec))
    assert not spec.work.exists()
    assert driver._groups_of_this_process() == []


def test_a_changed_environment_is_not_started(sandbox: ProcessSandbox, spec: RunSpec, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    registry = spec.environment.record.parents[2]
    changed = register_host_environment(f"python/test-{os.getpid()}", site, registry=registry)
    (site / "sitecustomize.py").write_text("print('poison')")
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    with pytest.raises(DoesNotMatchApproval):
        asyncio.run(sandbox.start(RunSpec(**{**fields, "environment": changed})))
    with pytest.raises(DoesNotMatchApproval):
        asyncio.run(sandbox.prepare(changed))


def test_a_run_is_released_only_after_a_clean_look_and_once(sandbox: ProcessSandbox, spec: RunSpec) -> None:
    async def scenario() -> None:
        run = await sandbox.start(spec)
        try:
            with pytest.raises(IsolationTooLow):
                await run.release()
            with pytest.raises(Conflict):
                await sandbox.start(spec)
            assert await run.verify() == []
            assert run.tail() == b""
            await run.release()
            with pytest.raises(Conflict):
                await run.release()
            assert (await run.wait()).exit_code == 0
            assert await run.verify() == []
        finally:
            await sandbox.cleanup(spec.run)
            await sandbox.cleanup(spec.run)

    asyncio.run(scenario())


def test_a_run_that_is_never_released_never_ran(sandbox: ProcessSandbox, spec: RunSpec) -> None:
    async def scenario() -> None:
        run = await sandbox.start(spec)
        ended = await run.stop()
        assert ended.reason == "stopped"
        assert run.tail() == b""
        await sandbox.cleanup(spec.run)

    asyncio.run(scenario())
    assert not spec.work.exists()


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03])
def test_a_start_that_is_cancelled_leaves_nothing(sandbox: ProcessSandbox, spec: RunSpec, after: float) -> None:
    async def scenario() -> None:
        starting = asyncio.create_task(sandbox.start(spec))
        await asyncio.sleep(after)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
            await sandbox.cleanup(spec.run)

    asyncio.run(scenario())
    assert not spec.work.exists()
    assert driver._groups_of_this_process() == []
    assert [pid for pid in children(os.getpid()) if status_of(pid)["Name"] == "bwrap"] == []


def test_runs_at_the_same_time_are_different_users(sandbox: ProcessSandbox, spec: RunSpec) -> None:
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}

    async def one(number: int) -> int:
        name = f"run-{number}"
        run = await sandbox.start(RunSpec(**{**fields, "run": name, "work": spec.work.with_name(name)}))
        assert await run.verify() == []
        await together.wait()
        await run.release()
        assert (await run.wait()).exit_code == 0
        user = int(run.tail())
        await sandbox.cleanup(name)
        return user

    async def scenario() -> list[int]:
        global together
        together = asyncio.Barrier(4)
        return list(await asyncio.gather(*(one(number) for number in range(4))))

    users = asyncio.run(scenario())
    if ROOT:
        assert len(set(users)) == 4
        assert min(users) > 200_000
    assert os.getuid() not in users or not ROOT


together: asyncio.Barrier


def test_users_are_not_shared_between_nodes(spec: RunSpec, tmp_path: Path) -> None:
    """Two nodes on one machine, which know nothing of one another but the locks."""
    if not ROOT:
        pytest.skip("only a node that is root gives its runs users of their own")
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}

    async def scenario() -> list[bytes]:
        nodes = [ProcessSandbox(slots=tmp_path / "slots") for _ in range(2)]
        works = [tmp_path / "work-a", tmp_path / "work-b"]
        runs = [await node.start(RunSpec(**{**fields, "work": work})) for node, work in zip(nodes, works, strict=True)]
        for run in runs:
            assert await run.verify() == []
            await run.release()
            await run.wait()
        users = [run.tail() for run in runs]
        for node in nodes:
            await node.cleanup(spec.run)
        return users

    first, second = asyncio.run(scenario())
    assert first != second


def test_the_canary_finds_the_level(sandbox: ProcessSandbox, environment: HostEnvironment) -> None:
    isolation = asyncio.run(sandbox.probe(environment))
    assert isolation.kept == sandbox.promises, isolation.detail
    assert isolation.meets_real_data
    if sandbox.promises == frozenset(Promise):
        assert isolation.name == "full"


@pytest.mark.parametrize("promise", [Promise.NO_NETWORK, Promise.SECCOMP, Promise.NO_OTHER_PROCESSES])
def test_the_canary_finds_a_weaker_level(environment: HostEnvironment, tmp_path: Path, promise: Promise) -> None:
    weak = ProcessSandbox(slots=tmp_path / "slots", weaken=frozenset({promise}))
    isolation = asyncio.run(weak.probe(environment))
    assert promise not in isolation.kept
    assert not isolation.meets_real_data
    assert isolation.name == "none"


def test_levels_are_ordered() -> None:
    full = Isolation("x", frozenset(Promise))
    isolated = Isolation("x", ISOLATED)
    none = Isolation("x", ISOLATED - {Promise.SECCOMP})
    assert full.level > isolated.level > none.level
    assert [level.title for level in sorted(Level)] == ["none", "no-network-own-files", "full"]
    assert (full.meets_real_data, isolated.meets_real_data, none.meets_real_data) == (True, True, False)


def test_no_sandbox_is_chosen_only_by_its_name(environment: HostEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend().name == "process"
    assert isinstance(choose_backend("unsandboxed"), Unsandboxed)
    with pytest.raises(Invalid):
        choose_backend("docker")
    monkeypatch.setattr("flame.runtime.process._PROGRAMS", "/nowhere")
    with pytest.raises(Unavailable, match="bubblewrap"):
        choose_backend()
    isolation = asyncio.run(Unsandboxed().probe(environment))
    assert isolation.name == "none"
    assert not isolation.meets_real_data


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a b", "x" * 200, "-x"])
def test_ids_of_runs_are_safe_names(spec: RunSpec, bad: str) -> None:
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    with pytest.raises(Invalid):
        RunSpec(**{**fields, "run": bad})


@pytest.mark.parametrize("variables", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}])
def test_variables_are_checked(spec: RunSpec, variables: dict[str, str]) -> None:
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    with pytest.raises(Invalid):
        RunSpec(**{**fields, "variables": variables})


@pytest.mark.parametrize("name", ["memory_bytes", "seconds", "processes", "cpus"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(Invalid):
        Limits(**{name: 0})


def test_an_environment_that_is_not_built_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        register_host_environment("python/x", tmp_path / "nothing", registry=tmp_path)


def test_the_room_imports_the_standard_library_only() -> None:
    program = "import sys, flame.runtime; print(sorted({name.split('.')[0] for name in sys.modules}))"
    listed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCES)}
    )
    heavy = {
        "numpy",
        "msgspec",
        "fastapi",
        "aiohttp",
        "sqlalchemy",
        "cryptography",
        "ctypes",
        "email",
        "importlib_metadata",
    }
    assert not heavy & set(eval(listed.stdout))
