"""What has to be here before a program may start: the environment, the code, the data. Each checked against the manifest."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flame.model.errors import (
    DoesNotMatchApproval,
    FlameError,
    IsolationTooLow,
    Refused,
    RunFailed,
    Unavailable,
)
from flame.node.context import Context, log
from flame.node.supervisor.program import fetch_program
from flame.node.supervisor.side import Snapshot

if TYPE_CHECKING:
    from flame.model.manifest import DataRequest, Manifest
    from flame.node.data.folder import FolderSnapshot
    from flame.node.data.sources import Source
    from flame.runtime.environments import HostEnvironment


@dataclass(frozen=True)
class Prepared:
    environment: HostEnvironment
    code: Path
    snapshots: Mapping[str, Snapshot]
    folders: Mapping[str, FolderSnapshot]
    facts: Mapping[str, Any]
    """Digests for the start leaf."""


@dataclass(frozen=True)
class RunFolder:
    """A run's own directory at the node. The parent is 0700; the sandbox sees only what is mounted."""

    root: Path

    @property
    def code(self) -> Path:
        return self.root / "code"

    @property
    def gateway(self) -> Path:
        return self.root / "gateway"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def output(self) -> Path:
        """Text of the program that stays at the node."""
        return self.root / "output.txt"

    def fresh(self) -> None:
        """Empty, but for what a restart must find again (the frozen data)."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for folder in (self.code, self.gateway, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        self.code.mkdir()
        self.gateway.mkdir()
        self.data.mkdir(exist_ok=True)

    def remove(self) -> None:
        """All but the text that the steward may read. What cannot be removed is named in the node's log."""
        for folder in (self.code, self.gateway, self.work, self.data):
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                log.error("run %s: %s could not be removed; remove it by hand", self.root.name[:12], folder)


async def prepare(context: Context, manifest: Manifest, folder: RunFolder) -> Prepared:
    """Raises the refusal that names what is wrong, where, and what to do."""
    check_isolation(context, manifest)
    await asyncio.to_thread(folder.fresh)
    parts = (_environment(context, manifest), _code(context, manifest, folder), _data(context, manifest, folder))
    # all are waited for, also when one fails: nothing may still write when the folder is emptied for another attempt
    environment, none, snapshots = await asyncio.gather(*parts, return_exceptions=True)
    for part in (environment, none, snapshots):
        if isinstance(part, BaseException):
            raise part
    assert not isinstance(environment, BaseException) and not isinstance(snapshots, BaseException)
    facts = {"environment": environment.digest, "data": {name: facts for name, (_, facts) in snapshots.items()}}
    tables = {name: snapshot for name, (snapshot, _) in snapshots.items() if isinstance(snapshot, Snapshot)}
    folders = {name: snapshot for name, (snapshot, _) in snapshots.items() if not isinstance(snapshot, Snapshot)}
    return Prepared(environment, folder.code, tables, folders, facts)


def check_isolation(context: Context, manifest: Manifest) -> None:
    """Real data are not shown to a run that this machine cannot hold."""
    isolation = context.isolation
    policy = context.policy
    if isolation is None:
        raise Unavailable(  # an order that comes while the node starts waits; it is not refused
            "The node has not tried its sandbox yet.", next_step="Wait a moment, or see `flame node status`."
        )
    if policy.public_data:
        return
    order = ["none", "no-network-own-files", "full"]
    if order.index(isolation.name) < order.index(policy.require_isolation):
        raise IsolationTooLow(
            f"This node's sandbox reaches the level '{isolation.name}' ({isolation.detail}); its policy requires '{policy.require_isolation}'.",
            next_step="Install bubblewrap, or let the data owner change require_isolation in policy.toml.",
        )
    if not policy.host_environments and manifest.sources_of(context.node):
        raise Refused(
            "The environment is this host's own Python, which this node's policy does not allow for real data.",
            next_step="Use an image, or set host_environments = true in policy.toml.",
        )


async def _environment(context: Context, manifest: Manifest) -> HostEnvironment:
    from flame.runtime.environments import load_host_environment

    wanted = manifest.environment
    environment = await asyncio.to_thread(load_host_environment, wanted.reference, context.layout.environments)
    if environment.digest != wanted.digest:
        raise DoesNotMatchApproval(
            f"The environment '{wanted.reference}' here is {environment.digest[:19]}…; the approved manifest names {wanted.digest[:19]}….",
            next_step="Register the approved environment at this node, or submit the analysis again with the present one.",
        )
    await context.sandbox.prepare(environment)
    return environment


async def _code(context: Context, manifest: Manifest, folder: RunFolder) -> None:
    async for file, content in fetch_program(context.link, manifest):
        await asyncio.to_thread(_write, folder.code / file.path, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)


_Frozen = tuple["Snapshot | FolderSnapshot", dict[str, Any]]


async def _data(context: Context, manifest: Manifest, folder: RunFolder) -> dict[str, _Frozen]:
    from flame.node.contract.local import SOURCE
    from flame.node.data.sources import read_sources

    found: dict[str, _Frozen] = {}
    wanted = [request for request in manifest.sources_of(context.node) if request.source != SOURCE]
    if not wanted:
        return found
    sources = read_sources(context.layout.sources)
    for request in wanted:
        source = sources.granted(request.source, manifest.project)
        if context.policy.public_data and not source.public:
            raise Refused(
                f"The source '{source.name}' is not marked public, but this node's policy says that it holds public data only.",
                next_step="Mark the source public in sources.toml, or take public_data out of policy.toml.",
            )
        try:
            found[request.source] = await asyncio.to_thread(_freeze, source, request, folder)
        except FlameError as error:
            raise await asyncio.to_thread(_without_content, error, request, folder) from None
    return found


def _without_content(error: FlameError, request: DataRequest, folder: RunFolder) -> FlameError:
    """What may leave when data cannot be read: a reader's words may quote a header, which may be a patient's row."""
    with folder.output.open("a", encoding="utf-8") as file:
        file.write(f"[data] {error}\n")
    log.warning("run %s: source '%s': %s", folder.root.name[:12], request.source, error.code)
    if isinstance(
        error, Refused | RunFailed | Unavailable
    ):  # a rule about numbers and places; it quotes nothing of the data
        return error
    for name in request.columns:  # the manifest's own word: it says nothing that was not asked
        if f"has no column '{name[:64]}'" in error.message:
            return Refused(
                f"The source '{request.source}' of this hospital has no column '{name[:64]}'.",
                next_step="Ask for columns that every hospital has, or ask this hospital's steward to add it.",
            )
    return Refused(
        f"The source '{request.source}' of this hospital cannot be used for this run ({error.code}).",
        next_step="The hospital's steward reads why in the run's output and corrects the source or sources.toml.",
    )


def _freeze(source: Source, request: DataRequest, folder: RunFolder) -> _Frozen:
    """Read once. A restarted run finds what was frozen at its start, and nothing newer."""
    from flame.node.data import snapshot as data

    if source.kind == "folder":
        return _freeze_folder(source, request, folder)
    path, facts_path = folder.data / f"{source.name}.value", folder.data / f"{source.name}.json"
    if facts_path.exists():
        frozen = msgspec.json.decode(facts_path.read_bytes(), type=data.Snapshot)
        if hashlib.sha256(path.read_bytes()).hexdigest() != frozen.snapshot_sha256:
            raise DoesNotMatchApproval(
                "The data that were frozen for this run have been changed.", next_step="Start the analysis again."
            )
    else:
        frozen = data.take_snapshot(source, request, path)
        temporary = facts_path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(frozen))
        temporary.replace(facts_path)
    facts = {
        "file": frozen.file_sha256,
        "snapshot": frozen.snapshot_sha256,
    }  # how many patients is not the hub's to know
    return Snapshot(frozen.rows, tuple(frozen.columns), path.read_bytes), facts


def _freeze_folder(source: Source, request: DataRequest, folder: RunFolder) -> _Frozen:
    from flame.node.data.folder import FolderSnapshot, freeze_folder

    if request.columns:
        raise Refused(
            f"The source '{request.source}' of this hospital is a folder of files, which has no columns.",
            next_step="Leave 'columns' out of [[data]] in flame.toml.",
        )
    path = folder.data / f"{source.name}.folder.json"
    if path.exists():
        frozen = msgspec.json.decode(path.read_bytes(), type=FolderSnapshot)
    else:
        frozen = freeze_folder(source.path, request.min_rows)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(frozen))
        temporary.replace(path)
    return frozen, {"snapshot": frozen.sha256}


def explain_failure(error: BaseException) -> tuple[str, str]:
    """Reason and code for a run that could not be prepared."""
    if isinstance(error, FlameError):
        return str(error), error.code
    return (
        f"An unexpected {type(error).__name__} while the run was prepared; the node's log says more.",
        "internal_error",
    )
