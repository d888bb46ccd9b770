"""``/core/analyses`` and what belongs to them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as sql_delete
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.hub.analyses import commands
from flame.hub.analyses.resources import ANALYSIS, ANALYSIS_BUCKET, ANALYSIS_BUCKET_FILE, ANALYSIS_NODE
from flame.hub.analyses.runs import LIVE
from flame.hub.analyses.runs import ROUTES as RUN_ROUTES
from flame.hub.analyses.tables import (
    analyses,
    analysis_bucket_files,
    analysis_buckets,
    analysis_logs,
    analysis_nodes,
    runs,
)
from flame.hub.authorisation import Action, Actor, Membership, analysis_facts, demand, project_facts
from flame.hub.columns import fresh, new_id, now
from flame.hub.decisions import DecisionBody, Subject, decide
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.routes import node_key
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.problems import wrong
from flame.hub.projects.resources import PROJECT
from flame.hub.projects.routes import require_people, slug
from flame.hub.projects.tables import project_nodes
from flame.hub.query import Vocabulary, parse
from flame.hub.registry.resources import MASTER_IMAGE
from flame.hub.resources import (
    Body,
    answer,
    camel,
    changing_routes,
    collection,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    text,
)
from flame.hub.state import HubState, hub_of
from flame.model.analysis import Command, Status, has_ended, overall, overall_progress
from flame.model.errors import Conflict, Invalid, NotFound

LEVELS = Literal["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"]


class Argument(msgspec.Struct):
    value: str
    position: Literal["before", "after"] = "after"


class AnalysisBody(Body):
    name: str | UnsetType | None = UNSET
    display_name: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    project_id: str | UnsetType = UNSET
    master_image_id: str | UnsetType | None = UNSET
    image_command_arguments: list[Argument] | UnsetType | None = UNSET


class CommandBody(Body):
    command: str


def _values(body: AnalysisBody) -> dict[str, Any]:
    values = body.given()
    if "image_command_arguments" in values:
        arguments = values["image_command_arguments"] or []
        for i, argument in enumerate(arguments):
            _check_argument(argument.value, f"imageCommandArguments.{i}.value")
        values["image_command_arguments"] = json.dumps(msgspec.to_builtins(arguments))
    return values


def _check_argument(value: str, path: str) -> None:
    text(value, path, least=0, most=1024)
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise wrong(path, "An argument holds no control characters.")


async def create_analysis(request: Request) -> Response:
    actor = await authenticate(request)
    require_people(actor)
    body = await read_body(request, AnalysisBody)
    values = _values(body) | {"name": slug(body.name)}
    project_id = text(body.project_id, "projectId", most=36)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        project = raw_row(connection, actor, PROJECT, project_id)
        demand(actor, Action.CREATE, project_facts(connection, project.id))
        if values.get("master_image_id"):
            raw_row(connection, actor, MASTER_IMAGE, values["master_image_id"])
        elif project.master_image_id:
            values["master_image_id"] = project.master_image_id
        row = fresh(**values, realm_id=project.realm_id, user_id=actor.id, client_id=new_id())
        moment = {"created_at": row["created_at"], "updated_at": row["updated_at"]}
        connection.execute(
            insert(clients).values(
                id=row["client_id"], name=row["id"], display_name=row["id"], realm_id=project.realm_id, **moment
            )
        )
        connection.execute(insert(analyses).values(**row))
        _make_buckets(connection, row)
        asked = (project_nodes.c.project_id == project.id) & (project_nodes.c.approval_status == "approved")
        for place in connection.execute(select(project_nodes).where(asked)).all():
            _add_node(connection, row["id"], project.realm_id, place.node_id, place.node_realm_id)
        return get_row(connection, actor, ANALYSIS, row["id"])

    return record(await hub.database.write(store), ANALYSIS, 201)


def _make_buckets(connection: Connection, analysis: dict[str, Any]) -> None:
    held = select(analysis_buckets.c.type).where(analysis_buckets.c.analysis_id == analysis["id"])
    there = set(connection.execute(held).scalars())
    for kind in ("CODE", "RESULT", "TEMP"):
        if kind in there:
            continue
        realm = analysis["realm_id"]
        row = fresh(
            name=f"{analysis['id']}-{kind.lower()}", actor_id=analysis["user_id"], actor_type="user", realm_id=realm
        )
        connection.execute(insert(buckets).values(**row))
        link = fresh(type=kind, bucket_id=row["id"], analysis_id=analysis["id"], realm_id=realm)
        connection.execute(insert(analysis_buckets).values(**link))


def _add_node(connection: Connection, analysis: str, realm: str, node: str, node_realm: str) -> str:
    there = (analysis_nodes.c.analysis_id == analysis) & (analysis_nodes.c.node_id == node)
    known = connection.execute(select(analysis_nodes.c.id).where(there)).scalar()
    if known is None:
        row = fresh(analysis_id=analysis, node_id=node, analysis_realm_id=realm, node_realm_id=node_realm)
        connection.execute(insert(analysis_nodes).values(**row))
        known = row["id"]
    return str(known)


def require_unlocked(row: Any) -> None:
    if row.configuration_locked:
        raise Conflict("The analysis configuration is locked.", next_step="Unlock it; its approvals are then void.")


async def update_analysis(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    values = _values(await read_body(request, AnalysisBody))
    values.pop("project_id", None)
    if "name" in values:
        values["name"] = slug(values["name"])

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        require_unlocked(row)
        if values.get("master_image_id"):
            raw_row(connection, actor, MASTER_IMAGE, values["master_image_id"])
        connection.execute(update(analyses).where(analyses.c.id == key).values(**values, updated_at=now()))
        return get_row(connection, actor, ANALYSIS, key)

    return record(await hub_of(request).database.write(store), ANALYSIS, 202)


async def delete_analysis(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
        shown = get_row(connection, actor, ANALYSIS, key)
        facts = analysis_facts(connection, key)
        demand(actor, Action.DELETE, facts)
        _require_not_running(connection, key)
        held = select(analysis_buckets.c.bucket_id).where(analysis_buckets.c.analysis_id == key)
        ids = connection.execute(held).scalars().all()
        files = connection.execute(select(bucket_files.c.hash).where(bucket_files.c.bucket_id.in_(ids))).scalars().all()
        client = connection.execute(select(analyses.c.client_id).where(analyses.c.id == key)).scalar()
        commands.delete_analysis(hub, connection, actor, key)
        connection.execute(sql_delete(buckets).where(buckets.c.id.in_(ids)))
        connection.execute(sql_delete(clients).where(clients.c.id == client))
        return shown, list(files), tuple(facts.nodes)

    shown, files, participants = await hub.database.write(store)
    for name in files:
        await hub.objects.remove(f"files/{name}")
    hub.channels.changed(participants, "analysis", key)
    return record(shown, ANALYSIS, 202)


def _require_not_running(connection: Connection, key: str) -> None:
    if connection.execute(select(runs.c.id).where(runs.c.analysis_id == key, runs.c.state.in_(LIVE))).first():
        raise Conflict("A run of this analysis is going on.", next_step="Stop it first.")


async def command(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    body = await read_body(request, CommandBody)
    try:
        wanted = Command(body.command)
    except ValueError:
        raise Invalid("Invalid command.", next_step=f"Known: {', '.join(Command)}.") from None
    hub = hub_of(request)
    files = await commands.author_files(hub, key) if wanted is Command.CONFIGURATION_LOCK else {}

    def store(connection: Connection) -> commands.Done:
        done = commands.execute(hub, connection, actor, key, wanted, files)
        if wanted is Command.STORAGE_CHECK:
            _make_buckets(connection, connection.execute(select(analyses).where(analyses.c.id == key)).mappings().one())  # type: ignore[arg-type]
        return done

    done = await hub.database.write(store, "lock")
    for run in done.runs_stopped:
        hub.runs.forget(bytes.fromhex(run))
    hub.channels.changed(done.participants, "analysis", key)
    if done.build:
        hub.in_background(commands.build(hub, key, done.participants))
    if done.distribute:
        hub.in_background(commands.distribute(hub, key, done.participants))
    return record(done.row, ANALYSIS, 202)


# ------------------------------------------------------------------------------------------------------ analysis nodes


class AnalysisNodeBody(Body):
    analysis_id: str
    node_id: str


class PlaceBody(DecisionBody):
    execution_status: Status | UnsetType | None = UNSET
    execution_progress: int | UnsetType | None = UNSET
    execution_run: str | UnsetType | None = UNSET
    execution_reason: str | UnsetType | None = UNSET
    """Ours: which run is reported of."""
    """Ours: why it ended so, in the node's words."""


async def create_analysis_node(request: Request) -> Response:
    actor = await authenticate(request)
    body = await read_body(request, AnalysisNodeBody)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        analysis = raw_row(connection, actor, ANALYSIS, body.analysis_id)
        facts = analysis_facts(connection, analysis.id)
        demand(actor, Action.UPDATE, facts)
        if body.node_id not in facts.nodes:
            require_unlocked(analysis)
            if body.node_id not in facts.project.asked:
                raise Invalid("The node is not part of the project.", next_step="Ask it for the project first.")
        node = raw_row(connection, actor, NODE, body.node_id)
        place = _add_node(connection, analysis.id, analysis.realm_id, node.id, node.realm_id)
        return get_row(connection, actor, ANALYSIS_NODE, place)

    row = await hub.database.write(store)
    hub.channels.changed([body.node_id], "analysis", body.analysis_id)
    return record(row, ANALYSIS_NODE, 201)


async def update_analysis_node(request: Request) -> Response:
    """``POST /core/analysis-nodes/:id``: a hospital's decision, or a node's report of its run."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_NODE)
    body = await read_body(request, PlaceBody)
    hub = hub_of(request)
    reports = body.execution_status is not UNSET or body.execution_progress is not UNSET
    decides = body.approval_status is not UNSET or bool(body.approval)
    if not reports and not decides and body.comment is UNSET:
        raise Invalid("There is nothing to change: send approvalStatus, comment or executionStatus.")

    def store(connection: Connection) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
        row = raw_row(connection, actor, ANALYSIS_NODE, key)
        facts = analysis_facts(connection, row.analysis_id)
        place = _place(hub, row, facts.creator, facts.project.creator)
        if decides or body.comment is not UNSET:
            _decide(hub, connection, actor, body, row, place)
        ended = _report(hub, connection, actor, body, row, place) if reports else []
        return get_row(connection, actor, ANALYSIS_NODE, key), tuple(facts.nodes), ended

    shown, participants, ended = await hub.database.write(store, "approvals" if decides else "runs")
    if decides:
        hub.channels.changed(participants, "analysis", shown["analysisId"])
    else:  # how far a node is interests those who watch; nodes hear of each other by their sealed messages
        hub.channels.stir(shown["analysisId"])
    for run in ended:
        hub.in_background(_clear_run(hub, bytes.fromhex(run)))
    return record(shown, ANALYSIS_NODE, 202)


def _place(hub: HubState, row: Any, *creators: str | None) -> Membership:
    asked = frozenset(c for c in creators if c is not None)
    return Membership(row.node_id, row.node_realm_id, asked, hub.settings.allow_self_approval)


def _decide(hub: HubState, connection: Connection, actor: Actor, body: PlaceBody, row: Any, place: Membership) -> None:
    analysis = connection.execute(select(analyses).where(analyses.c.id == row.analysis_id)).one()
    if not analysis.configuration_locked:
        raise Conflict(
            "The analysis configuration is not locked: there is nothing yet that could be approved.",
            next_step="Wait until the researcher has locked it.",
        )
    public = node_key(connection, actor) if body.approval and actor.node else None
    subject = Subject("analysis", analysis.manifest_digest or _unfrozen(body), row.node_id, place)
    if body.approval_status is UNSET and not body.approval:
        raise Invalid("A comment comes with a decision.", next_step="Send approvalStatus as well.")
    changed = decide(actor, body, row, subject, public)
    connection.execute(update(analysis_nodes).where(analysis_nodes.c.id == row.id).values(**changed, updated_at=now()))
    facts = {
        "subject": "analysis", "digest": analysis.manifest_digest or "", "node": row.node_id, "by": actor.id,
        "decision": changed["approval_status"] or "none", "signed": changed["approval_signed"],
    }  # fmt: skip
    hub.log.tell(connection, "approval", row.analysis_id, facts)


def _unfrozen(body: PlaceBody) -> str | None:
    """A decision at the hub counts as clients expect also where keys are missing; a signature needs a manifest."""
    return None if body.approval else ""


def _report(
    hub: HubState, connection: Connection, actor: Actor, body: PlaceBody, row: Any, place: Membership
) -> list[str]:
    """Store what a node says of its run; returns the runs that have ended with it."""
    demand(actor, Action.REPORT, place)
    values: dict[str, Any] = {}
    if body.execution_status is not UNSET:
        values["execution_status"] = body.execution_status
    if body.execution_progress is not UNSET:
        if body.execution_progress is not None and not 0 <= body.execution_progress <= 100:
            raise wrong("executionProgress", "'executionProgress' is a number from 0 to 100.")
        values["execution_progress"] = body.execution_progress
    for name, given, most in (
        ("execution_run", body.execution_run, 64),
        ("execution_reason", body.execution_reason, 2000),
    ):
        if given is not UNSET:
            values[name] = given if given is None else text(given, camel(name), least=0, most=most)
    connection.execute(update(analysis_nodes).where(analysis_nodes.c.id == row.id).values(**values, updated_at=now()))
    places = connection.execute(select(analysis_nodes).where(analysis_nodes.c.analysis_id == row.analysis_id)).all()
    statuses = [Status(p.execution_status) if p.execution_status else None for p in places]
    total = {
        "execution_status": overall(statuses),
        "execution_progress": overall_progress([p.execution_progress for p in places]),
    }
    connection.execute(update(analyses).where(analyses.c.id == row.analysis_id).values(**total, updated_at=now()))
    if not has_ended(statuses):
        return []
    live = (runs.c.analysis_id == row.analysis_id) & runs.c.state.in_(LIVE)
    ended = list(connection.execute(select(runs.c.id).where(live)).scalars())
    connection.execute(update(runs).where(live).values(state="ended"))
    for run in ended:
        hub.log.tell(
            connection, "run-ended", run, {"analysis": row.analysis_id, "status": total["execution_status"] or ""}
        )
    return ended


async def _clear_run(hub: HubState, run: bytes) -> None:
    """All participants have ended: what waits for this run is of no use any more."""
    hub.runs.forget(run)
    for blob in await hub.mailbox.purge(run):
        await hub.objects.remove(blob)


async def delete_analysis_node(request: Request) -> Response:
    """Taking a node out of a locked analysis voids the lock, openly; while a run goes on it is refused."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_NODE)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], tuple[str, ...]]:
        shown = get_row(connection, actor, ANALYSIS_NODE, key)
        facts = analysis_facts(connection, shown["analysisId"])
        demand(actor, Action.UPDATE, facts)
        _require_not_running(connection, facts.id)
        analysis = connection.execute(select(analyses).where(analyses.c.id == facts.id)).one()
        if analysis.configuration_locked:
            commands.void_lock(hub, connection, facts.id, actor)
        connection.execute(sql_delete(analysis_nodes).where(analysis_nodes.c.id == key))
        return shown, tuple(facts.nodes)

    shown, participants = await hub.database.write(store, "lock")
    hub.channels.changed(participants, "analysis", shown["analysisId"])
    return record(shown, ANALYSIS_NODE, 202)


# ----------------------------------------------------------------------------------------------------- files of buckets


class FileBody(Body):
    root: bool | UnsetType = UNSET
    bucket_file_id: str | UnsetType = UNSET
    path: str | UnsetType = UNSET


async def update_file(request: Request) -> Response:
    """``POST /core/analysis-bucket-files/:id {root}``: which file is the entrypoint; one at a time."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET_FILE)
    body = await read_body(request, FileBody)
    return await _set_root(request, actor, ANALYSIS_BUCKET_FILE.table.c.id == key, body.root, 202)


async def create_file(request: Request) -> Response:
    """Uploads register themselves; what clients send after them finds the row that is there."""
    actor = await authenticate(request)
    body = await read_body(request, FileBody)
    wanted = text(body.bucket_file_id, "bucketFileId", most=36)
    return await _set_root(request, actor, analysis_bucket_files.c.bucket_file_id == wanted, body.root, 201)


async def _set_root(request: Request, actor: Actor, which: Any, root: bool | UnsetType, status: int) -> Response:
    def store(connection: Connection) -> dict[str, Any]:
        table = analysis_bucket_files
        key = connection.execute(select(table.c.id).where(which)).scalar()
        if key is None:
            raise NotFound("The analysis-bucket-file was not found.")
        row = raw_row(connection, actor, ANALYSIS_BUCKET_FILE, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, row.analysis_id))
        analysis = connection.execute(select(analyses).where(analyses.c.id == row.analysis_id)).one()
        if root is not UNSET:
            require_unlocked(analysis)
            if root:
                here = table.c.analysis_bucket_id == row.analysis_bucket_id
                connection.execute(update(table).where(here).values(root=False))
            connection.execute(update(table).where(table.c.id == key).values(root=root, updated_at=now()))
        return get_row(connection, actor, ANALYSIS_BUCKET_FILE, key)

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET_FILE, status)


async def delete_file(request: Request) -> Response:
    """Takes a file out of the analysis; the stored file stays in its bucket."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET_FILE)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, ANALYSIS_BUCKET_FILE, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, shown["analysisId"]))
        require_unlocked(connection.execute(select(analyses).where(analyses.c.id == shown["analysisId"])).one())
        connection.execute(sql_delete(analysis_bucket_files).where(analysis_bucket_files.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET_FILE, 202)


# ----------------------------------------------------------------------------------------------------------------- logs


class LogBody(Body):
    analysis_id: str
    node_id: str
    level: LEVELS = "info"
    message: str = ""
    code: str | None = None
    status: str | None = None


async def create_node_log(request: Request) -> Response:
    """``POST /core/analysis-node-logs``: by the node itself."""
    actor = await authenticate(request)
    body = await read_body(request, LogBody)
    text(body.message, "message", most=2048)
    labels = {"refType": "analysisNode", "analysisId": body.analysis_id, "nodeId": body.node_id}
    labels |= {k: v[:64] for k, v in (("code", body.code), ("status", body.status)) if v}

    def store(connection: Connection) -> dict[str, Any]:
        analysis = raw_row(connection, actor, ANALYSIS, body.analysis_id)
        realm = analysis_facts(connection, analysis.id).nodes.get(body.node_id)
        if realm is None:
            raise NotFound("The analysis-node was not found.")
        demand(actor, Action.REPORT, Membership(body.node_id, realm, frozenset()))
        return commands.log_line(connection, analysis.id, body.level, body.message, body.node_id, labels)

    return record(await hub_of(request).database.write(store), status=202)


def _log_routes(path: str, *, of_node: bool) -> list[Route]:
    names = frozenset({"analysisId", "level"} | ({"nodeId"} if of_node else set()))
    known = Vocabulary(frozenset({"time"}), names, frozenset({"time"}), limit=100)

    async def many(request: Request) -> Response:
        actor = await authenticate(request)
        query = parse(request.query_params.multi_items(), known)
        analysis = query.value("analysisId")
        node = query.value("nodeId") if of_node else None
        if analysis is None or (of_node and node is None):
            raise wrong("filter.analysisId", "Logs are read for one analysis: filter[analysisId] (and filter[nodeId]).")

        def load(connection: Connection) -> tuple[list[dict[str, Any]], int]:
            raw_row(connection, actor, ANALYSIS, analysis)
            wanted = (analysis_logs.c.analysis_id == analysis) & (
                analysis_logs.c.node_id == node if of_node else analysis_logs.c.node_id.is_(None)
            )
            if level := query.value("level"):
                wanted &= analysis_logs.c.level == level
            rows = connection.execute(
                select(analysis_logs).where(wanted).order_by(analysis_logs.c.time.desc())
            ).mappings()
            shown = [commands.shown_line(row) for row in rows]
            return shown[query.offset : query.offset + query.limit], len(shown)

        rows, total = await hub_of(request).database.read(load)
        return collection(rows, total, query)

    return [Route(path, many, methods=["GET"])]


async def watch(request: Request) -> Response:
    """``GET /core/analyses/:id/watch?seen=&wait=``: the analysis and its nodes, as soon as they differ from ``seen``.

    ``seen``: the ``meta.seen`` of the last answer; ``wait``: seconds, at most 30. Instead of asking again and again.
    """
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    hub = hub_of(request)
    seen, seconds = request.query_params.get("seen", ""), _seconds(request.query_params.get("wait", "25"))

    def load(connection: Connection) -> dict[str, Any]:
        analysis = get_row(connection, actor, ANALYSIS, key)
        places = connection.execute(select(*_WATCHED).where(analysis_nodes.c.analysis_id == key)).mappings().all()
        return {"analysis": analysis, "nodes": [{camel(name): value for name, value in row.items()} for row in places]}

    with hub.channels.watching(key) as stirred:
        shown = await hub.database.read(load)
        stamp = _stamp(shown)
        if stamp == seen and await stirred.within(seconds):
            shown = await hub.database.read(load)
            stamp = _stamp(shown)
    return answer({"data": shown, "meta": {"seen": stamp}})


_WATCHED = (
    analysis_nodes.c.node_id,
    analysis_nodes.c.approval_status,
    analysis_nodes.c.approval_signed,
    analysis_nodes.c.execution_status,
    analysis_nodes.c.execution_progress,
    analysis_nodes.c.execution_run,
    analysis_nodes.c.execution_reason,
    analysis_nodes.c.updated_at,
)


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= 30:
        raise wrong("wait", "'wait' is a number of seconds from 0 to 30.")
    return seconds


def _stamp(shown: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()[:32]


ROUTES = [
    *readable_routes("/core/analyses", ANALYSIS),
    *changing_routes("/core/analyses", create=create_analysis, update=update_analysis, remove=delete_analysis),
    Route("/core/analyses/{id}/command", command, methods=["POST"]),
    *RUN_ROUTES,
    Route("/core/analyses/{id}/watch", watch, methods=["GET"]),
    *readable_routes("/core/analysis-nodes", ANALYSIS_NODE),
    *changing_routes(
        "/core/analysis-nodes", create=create_analysis_node, update=update_analysis_node, remove=delete_analysis_node
    ),
    *readable_routes("/core/analysis-buckets", ANALYSIS_BUCKET),
    *readable_routes("/core/analysis-bucket-files", ANALYSIS_BUCKET_FILE),
    *changing_routes("/core/analysis-bucket-files", create=create_file, update=update_file, remove=delete_file),
    *_log_routes("/core/analysis-logs", of_node=False),
    *_log_routes("/core/analysis-node-logs", of_node=True),
    Route("/core/analysis-node-logs", create_node_log, methods=["POST"]),
]
