"""``POST /core/analyses/:id/command``: the shell around the life cycle in `flame.model.analysis`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from flame.hub.analyses import image
from flame.hub.analyses.manifest import MAX_AUTHOR_FILE, code_of, freeze_analysis
from flame.hub.analyses.resources import ANALYSIS
from flame.hub.analyses.tables import LIVE, analyses, analysis_nodes, manifests, runs
from flame.hub.authorisation import Action, Actor, analysis_facts, demand
from flame.hub.columns import now
from flame.hub.nodes.tables import nodes
from flame.hub.registry.tables import master_images
from flame.hub.resources import Row, get_row, raw_row
from flame.hub.state import HubState
from flame.hub.telemetry.logs import log_line
from flame.model.analysis import Command, Lifecycle, Status, advance
from flame.model.errors import Conflict
from flame.protocol.freeze import AUTHOR_FILE


@dataclass(frozen=True, slots=True)
class Done:
    """What a command has led to: the analysis as shown, who is told, what goes on behind the answer."""

    row: Row
    participants: tuple[str, ...]
    build: bool = False
    distribute: bool = False
    runs_stopped: tuple[str, ...] = ()


def lifecycle(connection: Connection, row: Row) -> Lifecycle:
    """The state that decides, of an analysis as shown."""
    statement = (
        select(nodes.c.type, func.count())
        .join(analysis_nodes, analysis_nodes.c.node_id == nodes.c.id)
        .where(analysis_nodes.c.analysis_id == row["id"])
        .group_by(nodes.c.type)
    )
    count: dict[str, int] = {row[0]: row[1] for row in connection.execute(statement)}
    return Lifecycle(
        locked=row["configurationLocked"],
        build=_status(row["buildStatus"]),
        distribution=_status(row["distributionStatus"]),
        execution=_status(row["executionStatus"]),
        default_nodes=count.get("default", 0),
        aggregator_nodes=count.get("aggregator", 0),
        approved_nodes=row["nodesApproved"],
        entrypoint=row["configurationEntrypointValid"],
        image=row["configurationImageValid"],
    )


def _status(value: str | None) -> Status | None:
    return Status(value) if value else None


async def author_files(hub: HubState, analysis: str) -> dict[str, bytes]:
    """The content of the program's ``flame.toml``, by its object's key: read before the lock's transaction."""
    files = await hub.database.read(lambda c: code_of(c, analysis))
    found: dict[str, bytes] = {}
    for file in files:
        if file.path == AUTHOR_FILE and file.size <= MAX_AUTHOR_FILE:
            found[file.hash] = b"".join([piece async for piece in hub.objects.stream(f"files/{file.hash}")])
    return found


def execute(
    hub: HubState, connection: Connection, actor: Actor, key: str, command: Command, files: dict[str, bytes]
) -> Done:
    """Carry out a command within a transaction. Raises what forbids it."""
    raw_row(connection, actor, ANALYSIS, key)
    facts = analysis_facts(connection, key)
    demand(actor, Action.COMMAND, facts)
    before = lifecycle(connection, get_row(connection, actor, ANALYSIS, key))
    after = advance(before, command)
    stopped: tuple[str, ...] = ()
    if command is Command.CONFIGURATION_LOCK:
        _lock(hub, connection, key, actor, files)
    elif command is Command.CONFIGURATION_UNLOCK:
        void_lock(hub, connection, key, actor)
    elif command is Command.EXECUTION_STOP:
        stopped = _stop(hub, connection, key, actor)
    values = {
        "build_status": after.build,
        "distribution_status": after.distribution,
        "execution_status": after.execution,
    }
    if command is not Command.CONFIGURATION_UNLOCK:
        connection.execute(update(analyses).where(analyses.c.id == key).values(**values, updated_at=now()))
    if command is Command.BUILD_START:
        log_line(connection, key, "info", "The build has started.")
    row = get_row(connection, actor, ANALYSIS, key)
    return Done(
        row,
        tuple(facts.nodes),
        build=command is Command.BUILD_START,
        distribute=command is Command.DISTRIBUTION_START,
        runs_stopped=stopped,
    )


def _lock(hub: HubState, connection: Connection, key: str, actor: Actor, files: dict[str, bytes]) -> None:
    moment = datetime.now(UTC)
    while True:
        frozen = freeze_analysis(connection, key, files, moment)
        if frozen.digest is None or not _was_frozen(connection, frozen.digest):
            break
        moment += timedelta(seconds=1)  # a new lock is a new document: what was signed before the unlock stays void
    values = {
        "configuration_locked": True,
        "manifest_digest": frozen.digest,
        "manifest_missing": json.dumps(frozen.missing),
    }
    if frozen.digest is not None and frozen.text is not None:
        connection.execute(
            insert(manifests).values(digest=frozen.digest, analysis_id=key, document=frozen.text, created_at=now())
        )
    told = {"manifest": frozen.digest or "", "missing": len(frozen.missing), "by": actor.id}
    hub.log.tell(connection, "submission", key, told)
    connection.execute(update(analyses).where(analyses.c.id == key).values(**values))


def _was_frozen(connection: Connection, digest: str) -> bool:
    return connection.execute(select(manifests.c.digest).where(manifests.c.digest == digest)).first() is not None


def void_lock(hub: HubState, connection: Connection, key: str, actor: Actor) -> None:
    """Open the configuration again: manifest, approvals, build and distribution are void, and the log says so."""
    row = connection.execute(select(analyses).where(analyses.c.id == key)).one()
    values = {
        "configuration_locked": False, "manifest_digest": None, "manifest_missing": None, "build_status": None,
        "build_progress": None, "build_hash": None, "build_size": None, "distribution_status": None,
        "distribution_progress": None, "execution_status": None, "execution_progress": None,
    }  # fmt: skip
    connection.execute(update(analyses).where(analyses.c.id == key).values(**values, updated_at=now()))
    nothing: dict[str, Any] = dict.fromkeys(("approval_status", "approval", "approval_signature", "approval_by"))
    nothing |= {"approval_signed": False} | approved_at_once(hub)
    nothing |= dict.fromkeys(("execution_status", "execution_progress", "execution_run", "execution_reason"))
    connection.execute(
        update(analysis_nodes).where(analysis_nodes.c.analysis_id == key).values(**nothing, updated_at=now())
    )
    connection.execute(update(runs).where(runs.c.analysis_id == key, runs.c.state == "waiting").values(state="ended"))
    hub.log.tell(connection, "unlock", key, {"manifest": row.manifest_digest or "", "by": actor.id})


def take_out(hub: HubState, connection: Connection, actor: Actor, project: str, node: str) -> None:
    """Take a node out of every analysis of a project: what was locked with it is void. Raises Conflict while one runs."""
    part = select(analysis_nodes.c.id, analysis_nodes.c.analysis_id, analyses.c.configuration_locked).join(
        analyses, analyses.c.id == analysis_nodes.c.analysis_id
    )
    for row in connection.execute(part.where(analyses.c.project_id == project, analysis_nodes.c.node_id == node)).all():
        running = select(runs.c.id).where(runs.c.analysis_id == row.analysis_id, runs.c.state.in_(LIVE))
        if connection.execute(running).first():
            raise Conflict("The node takes part in a run of this project.", next_step="Stop the run first.")
        if row.configuration_locked:
            void_lock(hub, connection, row.analysis_id, actor)
        connection.execute(delete(analysis_nodes).where(analysis_nodes.c.id == row.id))


def approved_at_once(hub: HubState) -> dict[str, Any]:
    """What a place in an analysis begins with where approvals are skipped for tests: a decision at the hub, unsigned."""
    return {"approval_status": "approved"} if hub.settings.skip_analysis_approval else {}


def _stop(hub: HubState, connection: Connection, key: str, actor: Actor) -> tuple[str, ...]:
    connection.execute(update(runs).where(runs.c.analysis_id == key, runs.c.state == "waiting").values(state="ended"))
    live = (runs.c.analysis_id == key) & (runs.c.state == "ordered")
    found = tuple(connection.execute(select(runs.c.id).where(live)).scalars())
    connection.execute(update(runs).where(live).values(state="stopping"))
    for run in found:
        hub.log.tell(connection, "stop", run, {"analysis": key, "by": actor.id})
    return found


def delete_analysis(hub: HubState, connection: Connection, actor: Actor, key: str) -> None:
    connection.execute(delete(analyses).where(analyses.c.id == key))
    hub.log.tell(connection, "administration", key, {"deleted": "analysis", "by": actor.id})


# ------------------------------------------------------------------------------------------------ build, distribution


async def build(hub: HubState, key: str, participants: tuple[str, ...]) -> None:
    """The build behind ``buildStart``: the program as one layer, every file of it what was frozen; see `image`."""
    files = await hub.database.read(lambda c: code_of(c, key))
    layer = await image.measure(files, opener(hub))

    def store(connection: Connection) -> None:
        starting = (analyses.c.id == key) & (analyses.c.build_status == Status.STARTING)
        values: dict[str, Any] = {"build_status": Status.FAILED if layer.damaged else Status.EXECUTED}
        if not layer.damaged:
            built = hashlib.sha256(built_manifest(connection, key, layer)).hexdigest()
            values |= {"build_hash": f"sha256:{built}", "build_os": "linux", "build_size": layer.size}
            values |= {"build_progress": 100}
        if connection.execute(update(analyses).where(starting).values(**values, updated_at=now())).rowcount == 0:
            return
        text = f"The build failed: {layer.damaged} is damaged." if layer.damaged else "The build has ended well."
        log_line(connection, key, "error" if layer.damaged else "info", text)
        hub.log.tell(connection, "build", key, {"code": layer.digest, "ok": not layer.damaged})

    await hub.database.write(store)
    hub.channels.changed(participants, "analysis", key)


def opener(hub: HubState) -> image.Opened:
    return lambda name: hub.objects.stream(f"files/{name}")


def built_manifest(connection: Connection, key: str, layer: image.Layer) -> bytes:
    """The image manifest of an analysis as it is locked: its digest is the ``buildHash``."""
    row = connection.execute(select(analyses).where(analyses.c.id == key)).one()
    environment = connection.execute(select(master_images).where(master_images.c.id == row.master_image_id)).first()
    path, digest = (environment.virtual_path, environment.digest or "") if environment else ("", "")
    return image.image_manifest(layer, path, digest, row.manifest_digest or "")


async def distribute(hub: HubState, key: str, participants: tuple[str, ...]) -> None:
    """The distribution behind ``distributionStart``: nodes are told; each fetches the program itself."""

    def store(connection: Connection) -> None:
        starting = (analyses.c.id == key) & (analyses.c.distribution_status == Status.STARTING)
        values = {"distribution_status": Status.EXECUTED, "distribution_progress": 100, "updated_at": now()}
        if connection.execute(update(analyses).where(starting).values(**values)).rowcount:
            waiting = (runs.c.analysis_id == key) & (runs.c.state == "waiting")
            connection.execute(update(runs).where(waiting).values(state="ordered"))
            hub.log.tell(connection, "distribution", key, {"nodes": len(participants)})

    await hub.database.write(store, "runs")
    hub.channels.changed(participants, "analysis", key)


async def go_on(hub: HubState, key: str) -> None:
    """Build and distribute as soon as the last participant has approved, where a signed start order waits for it.

    The same preconditions as for the commands: an analysis that nobody has ordered to run waits for its commands.
    """
    participants = await hub.database.write(lambda c: _begin_build(c, key), "lock")
    if participants is None:
        return
    await build(hub, key, participants)
    if await hub.database.write(lambda c: _begin_distribution(c, key), "lock"):
        await distribute(hub, key, participants)


def _begin_build(connection: Connection, key: str) -> tuple[str, ...] | None:
    """The participants, when an order waits and everybody has approved."""
    waiting = select(runs.c.id).where(runs.c.analysis_id == key, runs.c.state == "waiting")
    row = connection.execute(select(analyses).where(analyses.c.id == key)).first()
    if row is None or not row.configuration_locked or not connection.execute(waiting).first():
        return None
    places = connection.execute(select(analysis_nodes).where(analysis_nodes.c.analysis_id == key)).all()
    if any(place.approval_status != "approved" for place in places):
        return None
    fresh = (analyses.c.id == key) & analyses.c.build_status.is_(None)
    values = {"build_status": Status.STARTING, "updated_at": now()}
    if connection.execute(update(analyses).where(fresh).values(**values)).rowcount:
        log_line(connection, key, "info", "The build has started: every participant has approved, and an order waits.")
    return tuple(place.node_id for place in places)


def _begin_distribution(connection: Connection, key: str) -> bool:
    built = (
        (analyses.c.id == key) & (analyses.c.build_status == Status.EXECUTED) & analyses.c.distribution_status.is_(None)
    )
    values = {"distribution_status": Status.STARTING, "updated_at": now()}
    return connection.execute(update(analyses).where(built).values(**values)).rowcount > 0


async def resume(hub: HubState) -> None:
    """After a restart: finish what was starting."""
    columns = select(analyses.c.id, analyses.c.build_status, analyses.c.distribution_status)
    either = (analyses.c.build_status == Status.STARTING) | (analyses.c.distribution_status == Status.STARTING)
    for row in await hub.database.read(lambda c: c.execute(columns.where(either)).all()):
        if row.build_status == Status.STARTING:
            await build(hub, row.id, ())
        else:
            await distribute(hub, row.id, ())
    for key in await hub.database.read(
        lambda c: c.execute(select(runs.c.analysis_id).where(runs.c.state == "waiting").distinct()).scalars().all()
    ):
        await go_on(hub, key)
