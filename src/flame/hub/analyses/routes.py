"""``/core/analyses`` and what belongs to them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, insert, select, update
from sqlalchemy import delete as sql_delete
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flame.hub.analyses import commands, image
from flame.hub.analyses.manifest import code_of
from flame.hub.analyses.resources import (
    ANALYSIS,
    ANALYSIS_BUCKET,
    ANALYSIS_BUCKET_FILE,
    ANALYSIS_NODE,
    ANALYSIS_NODE_EVENT,
)
from flame.hub.analyses.runs import ROUTES as RUN_ROUTES
from flame.hub.analyses.tables import (
    LIVE,
    analyses,
    analysis_bucket_files,
    analysis_buckets,
    analysis_nodes,
    runs,
)
from flame.hub.authorisation import (
    Action,
    Actor,
    Membership,
    analysis_facts,
    bucket_facts,
    demand,
    project_facts,
)
from flame.hub.columns import check_id, fresh, new_id, now
from flame.hub.credentials import Credentials, CredentialsBody, read_credentials, shown_client
from flame.hub.decisions import DecisionBody, Subject, decide
from flame.hub.described import About, Described, in_query
from flame.hub.identity.permissions import OF_ANALYSES
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import client_permissions, clients, permissions
from flame.hub.nodes.resources import NODE
from flame.hub.nodes.routes import node_key
from flame.hub.objects.files import FilePath, register_file
from flame.hub.objects.resources import BUCKET, BUCKET_FILE
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.objects.upkeep import collect
from flame.hub.problems import wrong
from flame.hub.projects.resources import PROJECT
from flame.hub.projects.routes import Slug, require_people, slug
from flame.hub.projects.tables import project_nodes
from flame.hub.query import Query
from flame.hub.registry.resources import MASTER_IMAGE, REGISTRY
from flame.hub.resources import (
    Body,
    Id,
    Label,
    LongText,
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
    related_row,
    text,
)
from flame.hub.state import HubState, hub_of
from flame.hub.telemetry.events import happened, part_changed
from flame.model.analysis import Command, Status, has_ended, overall, overall_progress
from flame.model.errors import Conflict, Invalid, NotAllowed, NotFound


class Argument(msgspec.Struct, omit_defaults=True):
    value: Annotated[str, msgspec.Meta(max_length=1024)]
    position: Literal["before", "after"] | None = None


Arguments = Annotated[list[Argument], msgspec.Meta(max_length=64)]


class AnalysisBody(Body):
    name: Slug | UnsetType | None = UNSET
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET
    master_image_id: Id | UnsetType | None = UNSET
    image_command_arguments: Arguments | UnsetType | None = UNSET


class NewAnalysisBody(AnalysisBody, kw_only=True):
    project_id: Id
    registry_id: Id | UnsetType | None = UNSET


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
    if any(unicodedata.category(c) in _UNSEEN for c in value):
        raise wrong(
            path, "An argument holds nothing that a screen does not show: no line breaks, no control characters."
        )


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


async def create_analysis(request: Request) -> Response:
    """An analysis within a project, with its buckets, its client, and the nodes that have approved the project."""
    actor = await authenticate(request)
    require_people(actor)
    body = await read_body(request, NewAnalysisBody)
    values = _values(body) | {"name": slug(body.name)}
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        project = related_row(connection, actor, PROJECT, body.project_id, "projectId")
        demand(actor, Action.CREATE, project_facts(connection, project.id))
        _check_relations(connection, actor, values)
        if not values.get("master_image_id"):
            values["master_image_id"] = project.master_image_id
        row = fresh(**values, realm_id=project.realm_id, user_id=actor.id, client_id=new_id())
        moment = {"created_at": row["created_at"], "updated_at": row["updated_at"]}
        connection.execute(
            insert(clients).values(
                id=row["client_id"], name=row["id"], display_name=row["id"], realm_id=project.realm_id, **moment
            )
        )
        connection.execute(insert(analyses).values(**row))
        _let_client_work(connection, row)
        _make_buckets(connection, row)
        asked = (project_nodes.c.project_id == project.id) & (project_nodes.c.approval_status == "approved")
        for place in connection.execute(select(project_nodes).where(asked)).all():
            _add_node(hub, connection, row["id"], project.realm_id, place.node_id, place.node_realm_id)
        happened(connection, actor, ANALYSIS, row["id"], "created")
        return get_row(connection, actor, ANALYSIS, row["id"])

    return record(await hub.database.write(store), ANALYSIS, 201)


def _check_relations(connection: Connection, actor: Actor, values: dict[str, Any]) -> None:
    if values.get("master_image_id"):
        related_row(connection, actor, MASTER_IMAGE, values["master_image_id"], "masterImageId")
    if values.get("registry_id"):
        related_row(connection, actor, REGISTRY, values["registry_id"], "registryId")


def _let_client_work(connection: Connection, analysis: dict[str, Any]) -> None:
    """The permissions that the client of every analysis holds."""
    wanted = select(permissions).where(permissions.c.name.in_(sorted(OF_ANALYSES)), permissions.c.built_in.is_(True))
    for row in connection.execute(wanted).all():
        hold_permission(connection, analysis["client_id"], analysis["realm_id"], row)


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


def _add_node(hub: HubState, connection: Connection, analysis: str, realm: str, node: str, node_realm: str) -> str:
    there = (analysis_nodes.c.analysis_id == analysis) & (analysis_nodes.c.node_id == node)
    known = connection.execute(select(analysis_nodes.c.id).where(there)).scalar()
    if known is None:
        row = fresh(
            analysis_id=analysis, node_id=node, analysis_realm_id=realm, node_realm_id=node_realm,
            **commands.approved_at_once(hub),
        )  # fmt: skip
        connection.execute(insert(analysis_nodes).values(**row))
        known = row["id"]
    return str(known)


def require_unlocked(row: Any) -> None:
    if row.configuration_locked:
        raise Conflict("The analysis configuration is locked.", next_step="Unlock it; its approvals are then void.")


async def update_analysis(request: Request) -> Response:
    """Change an analysis that is not locked."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    values = _values(await read_body(request, AnalysisBody))
    if "name" in values:
        values["name"] = slug(values["name"])

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        require_unlocked(row)
        _check_relations(connection, actor, values)
        connection.execute(update(analyses).where(analyses.c.id == key).values(**values, updated_at=now()))
        happened(connection, actor, ANALYSIS, key, "updated", row)
        return get_row(connection, actor, ANALYSIS, key)

    return record(await hub_of(request).database.write(store), ANALYSIS, 202)


async def delete_analysis(request: Request) -> Response:
    """Delete an analysis that does not run, with its files."""
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
        happened(connection, actor, ANALYSIS, key, "deleted")
        commands.delete_analysis(hub, connection, actor, key)
        connection.execute(sql_delete(buckets).where(buckets.c.id.in_(ids)))
        connection.execute(sql_delete(clients).where(clients.c.id == client))
        return shown, list(files), tuple(facts.nodes)

    shown, files, participants = await hub.database.write(store)
    await collect(hub, files)
    hub.channels.changed(participants, "analysis", key)
    return record(shown, ANALYSIS, 202)


def _require_not_running(connection: Connection, key: str) -> None:
    if connection.execute(select(runs.c.id).where(runs.c.analysis_id == key, runs.c.state.in_(LIVE))).first():
        raise Conflict("A run of this analysis is going on.", next_step="Stop it first.")


async def command(request: Request) -> Response:
    """Lock, unlock, build, distribute, stop, or make buckets that are missing."""
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
        before = raw_row(connection, actor, ANALYSIS, key)
        done = commands.execute(hub, connection, actor, key, wanted, files)
        if wanted is Command.STORAGE_CHECK:
            _make_buckets(connection, connection.execute(select(analyses).where(analyses.c.id == key)).mappings().one())  # type: ignore[arg-type]
        happened(connection, actor, ANALYSIS, key, "updated", before)
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


# --------------------------------------------------------------------------------------------------- an analysis' client


async def get_credentials(request: Request) -> Response:
    """An analysis' client. Its secret is not shown again: the hub keeps a hash."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)

    def load(connection: Connection) -> Credentials:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        return shown_client(connection, row.client_id)

    return answer(await hub_of(request).database.read(load))


async def set_credentials(request: Request) -> Response:
    """A new secret for an analysis' client, shown once."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    given = await read_credentials(request)
    hub = hub_of(request)

    def store(connection: Connection) -> Credentials:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        hub.log.tell(connection, "administration", key, {"changed": "client secret", "by": actor.id})
        return given.store(connection, row.client_id)

    return answer(await hub.database.write(store))


class PermissionBody(Body):
    permission_id: Id


async def client_permissions_of(request: Request) -> Response:
    """What an analysis' client may do."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)

    def load(connection: Connection) -> list[dict[str, Any]]:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        return held_permissions(connection, row.client_id)

    held = await hub_of(request).database.read(load)
    return collection(held, len(held), Query())


async def give_permission(request: Request) -> Response:
    """Let an analysis' client do one of the things that clients of analyses may do."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    body = await read_body(request, PermissionBody)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        wanted = connection.execute(select(permissions).where(permissions.c.id == body.permission_id)).first()
        if wanted is None:
            raise wrong("permissionId", "There is no such permission.")
        if wanted.name not in OF_ANALYSES or not wanted.built_in:
            raise NotAllowed("The client of an analysis may not be given this permission.")
        return hold_permission(connection, row.client_id, row.realm_id, wanted)

    return record(await hub_of(request).database.write(store), status=202)


async def take_permission(request: Request) -> Response:
    """Take a permission from an analysis' client."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    permission = check_id(request.path_params["permission"], "permission")

    def store(connection: Connection) -> None:
        row = raw_row(connection, actor, ANALYSIS, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, key))
        held = (client_permissions.c.client_id == row.client_id) & (client_permissions.c.permission_id == permission)
        if connection.execute(sql_delete(client_permissions).where(held)).rowcount == 0:
            raise NotFound("The client does not hold this permission.")

    await hub_of(request).database.write(store)
    return answer(None, 202)


def hold_permission(connection: Connection, client: str, realm: str, permission: Any) -> dict[str, Any]:
    """Let a client hold a permission, once; what clients read of it."""
    held = client_permissions.c.client_id == client
    known = select(client_permissions.c.id).where(held, client_permissions.c.permission_id == permission.id)
    if connection.execute(known).first() is None:
        realms = {"client_realm_id": realm, "permission_realm_id": permission.realm_id}
        row = fresh(client_id=client, permission_id=permission.id, **realms)
        connection.execute(insert(client_permissions).values(**row))
    return next(p for p in held_permissions(connection, client) if p["permissionId"] == permission.id)


def held_permissions(connection: Connection, client: str | None) -> list[dict[str, Any]]:
    joined = client_permissions.join(permissions, permissions.c.id == client_permissions.c.permission_id)
    wanted = select(client_permissions, permissions.c.name).select_from(joined).order_by(permissions.c.name)
    rows = connection.execute(wanted.where(client_permissions.c.client_id == client)).all()
    return [
        {"id": r.id, "clientId": r.client_id, "permissionId": r.permission_id, "permission": {"name": r.name}}
        for r in rows
    ]


# ------------------------------------------------------------------------------------------------------ analysis nodes


class AnalysisNodeBody(Body):
    analysis_id: Id
    node_id: Id


class PlaceBody(DecisionBody):
    execution_status: Status | UnsetType | None = UNSET
    execution_progress: int | UnsetType | None = UNSET
    execution_run: str | UnsetType | None = UNSET
    execution_reason: str | UnsetType | None = UNSET
    """Ours: which run is reported of."""
    """Ours: why it ended so, in the node's words."""


async def create_analysis_node(request: Request) -> Response:
    """Let a node of the project take part; asking again finds what is there."""
    actor = await authenticate(request)
    body = await read_body(request, AnalysisNodeBody)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        analysis = related_row(connection, actor, ANALYSIS, body.analysis_id, "analysisId")
        facts = analysis_facts(connection, analysis.id)
        demand(actor, Action.UPDATE, facts)
        node = related_row(connection, actor, NODE, body.node_id, "nodeId")
        if body.node_id not in facts.nodes:
            require_unlocked(analysis)
            if body.node_id not in facts.project.asked:
                raise Invalid("The node is not part of the project.", next_step="Ask it for the project first.")
        place = _add_node(hub, connection, analysis.id, analysis.realm_id, node.id, node.realm_id)
        if body.node_id not in facts.nodes:
            hub.log.tell(connection, "administration", facts.id, {"added": node.id, "by": actor.id})
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
        if decides:
            _decide(hub, connection, actor, body, row, place)
        elif body.comment is not UNSET:
            _comment(connection, actor, body.comment, row, place)
        ended = _report(hub, connection, actor, body, row, place) if reports else []
        part_changed(connection, actor, ANALYSIS_NODE, row)
        return get_row(connection, actor, ANALYSIS_NODE, key), tuple(facts.nodes), ended

    shown, participants, ended = await hub.database.write(store, "approvals" if decides else "runs")
    if decides:
        hub.channels.changed(participants, "analysis", shown["analysisId"])
        hub.in_background(commands.go_on(hub, shown["analysisId"]))
    else:  # how far a node is interests those who watch; nodes hear of each other by their sealed messages
        hub.channels.stir(shown["analysisId"])
    for run in ended:
        hub.in_background(_clear_run(hub, bytes.fromhex(run)))
    return record(shown, ANALYSIS_NODE, 202)


def _place(hub: HubState, row: Any, *creators: str | None) -> Membership:
    asked = frozenset(c for c in creators if c is not None)
    settings = hub.settings
    return Membership(
        row.node_id, row.node_realm_id, asked, settings.self_approval, rehearsal=settings.skip_analysis_approval
    )


def _comment(connection: Connection, actor: Actor, comment: str | None, row: Any, place: Membership) -> None:
    """A remark without a decision; the comment that a node has signed stays as it is."""
    demand(actor, Action.DECIDE, place)
    if row.approval_signed:
        raise Conflict("The comment belongs to a signed decision.", next_step="Decide anew, with another comment.")
    connection.execute(
        update(analysis_nodes).where(analysis_nodes.c.id == row.id).values(comment=comment, updated_at=now())
    )


def _decide(hub: HubState, connection: Connection, actor: Actor, body: PlaceBody, row: Any, place: Membership) -> None:
    analysis = connection.execute(select(analyses).where(analyses.c.id == row.analysis_id)).one()
    if not analysis.configuration_locked and (body.approval or not place.rehearsal):
        raise Conflict(
            "The analysis configuration is not locked: there is nothing yet that could be approved.",
            next_step="Wait until the researcher has locked it.",
        )
    public = node_key(connection, actor) if body.approval and actor.node else None
    subject = Subject("analysis", analysis.manifest_digest or _unfrozen(body), row.node_id, place)
    changed = decide(actor, body, row, subject, public)
    connection.execute(update(analysis_nodes).where(analysis_nodes.c.id == row.id).values(**changed, updated_at=now()))
    facts = {
        "subject": "analysis", "digest": analysis.manifest_digest or "", "node": row.node_id, "by": actor.id,
        "decision": changed["approval_status"] or "none", "signed": changed["approval_signed"],
    }  # fmt: skip
    if body.approval:
        facts["approval"] = hashlib.sha256(body.approval.document.encode()).hexdigest()
    if not body.approval or body.approval.document != row.approval:  # a node says it again after a broken line
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
        hub.log.tell(connection, "administration", facts.id, {"removed": shown["nodeId"], "by": actor.id})
        return shown, tuple(facts.nodes)

    shown, participants = await hub.database.write(store, "lock")
    hub.channels.changed(participants, "analysis", shown["analysisId"])
    return record(shown, ANALYSIS_NODE, 202)


# ---------------------------------------------------------------------------------------------------- buckets and files


class BucketBody(Body):
    type: Literal["CODE", "RESULT", "TEMP"]
    bucket_id: Id
    analysis_id: Id


async def create_bucket(request: Request) -> Response:
    """Give an analysis a bucket of one's own, as a further one of this type."""
    actor = await authenticate(request)
    body = await read_body(request, BucketBody)

    def store(connection: Connection) -> dict[str, Any]:
        analysis = related_row(connection, actor, ANALYSIS, body.analysis_id, "analysisId")
        demand(actor, Action.UPDATE, analysis_facts(connection, analysis.id))
        bucket = related_row(connection, actor, BUCKET, body.bucket_id, "bucketId")
        facts = bucket_facts(connection, bucket.id)
        if facts.analysis is not None:
            raise Conflict("The bucket belongs to an analysis already.", next_step="Make a bucket for each analysis.")
        demand(actor, Action.UPDATE, facts)
        if body.type == "CODE":
            require_unlocked(analysis)
        row = fresh(type=body.type, bucket_id=bucket.id, analysis_id=analysis.id, realm_id=analysis.realm_id)
        connection.execute(insert(analysis_buckets).values(**row))
        return get_row(connection, actor, ANALYSIS_BUCKET, row["id"])

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET, 201)


async def update_bucket(request: Request) -> Response:
    """FLAME's clients may send this; nothing of an analysis' bucket changes."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET)

    def load(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, ANALYSIS_BUCKET, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, row.analysis_id))
        return get_row(connection, actor, ANALYSIS_BUCKET, key)

    return record(await hub_of(request).database.read(load), ANALYSIS_BUCKET, 202)


async def delete_bucket(request: Request) -> Response:
    """Take a bucket out of an analysis; what it stores stays. On a locked analysis a program's bucket voids the lock."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], tuple[str, ...]]:
        shown = get_row(connection, actor, ANALYSIS_BUCKET, key)
        facts = analysis_facts(connection, shown["analysisId"])
        demand(actor, Action.UPDATE, facts)
        _require_not_running(connection, facts.id)
        analysis = connection.execute(select(analyses).where(analyses.c.id == facts.id)).one()
        if analysis.configuration_locked and shown["type"] == "CODE":
            commands.void_lock(hub, connection, facts.id, actor)
        connection.execute(sql_delete(analysis_buckets).where(analysis_buckets.c.id == key))
        return shown, tuple(facts.nodes)

    shown, participants = await hub.database.write(store, "lock")
    hub.channels.changed(participants, "analysis", shown["analysisId"])
    return record(shown, ANALYSIS_BUCKET, 202)


class FileBody(Body):
    root: bool | UnsetType = UNSET


class NewFileBody(FileBody, kw_only=True):
    bucket_file_id: Id
    bucket_id: Id | UnsetType | None = UNSET
    analysis_bucket_id: Id | UnsetType | None = UNSET
    path: FilePath | UnsetType | None = UNSET


async def update_file(request: Request) -> Response:
    """Which file is the entrypoint; one at a time."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET_FILE)
    body = await read_body(request, FileBody)

    def store(connection: Connection) -> dict[str, Any]:
        raw_row(connection, actor, ANALYSIS_BUCKET_FILE, key)
        if body.root is not UNSET:
            _set_root(connection, actor, key, body.root)
        return get_row(connection, actor, ANALYSIS_BUCKET_FILE, key)

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET_FILE, 202)


async def create_file(request: Request) -> Response:
    """Make a stored file part of an analysis. Uploads do so by themselves: then what is there is found."""
    actor = await authenticate(request)
    body = await read_body(request, NewFileBody)

    def store(connection: Connection) -> dict[str, Any]:
        file = related_row(connection, actor, BUCKET_FILE, body.bucket_file_id, "bucketFileId")
        link = connection.execute(
            select(analysis_buckets).where(analysis_buckets.c.bucket_id == file.bucket_id)
        ).first()
        if link is None or body.analysis_bucket_id not in (UNSET, None, link.id):
            raise wrong("analysisBucketId", "The file is in no bucket of this analysis.")
        if body.path not in (UNSET, None, file.path):
            raise wrong("path", f"The stored file's path is '{file.path}'.")
        demand(actor, Action.UPDATE, analysis_facts(connection, link.analysis_id))
        table = analysis_bucket_files
        known = connection.execute(select(table.c.id).where(table.c.bucket_file_id == file.id)).scalar()
        if known is None:
            if link.type == "CODE":
                _require_open(connection, link.analysis_id)
            known = register_file(connection, actor, file._mapping, link)
        if body.root is not UNSET and body.root:
            _set_root(connection, actor, known, True)
        return get_row(connection, actor, ANALYSIS_BUCKET_FILE, known)

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET_FILE, 201)


def _set_root(connection: Connection, actor: Actor, key: str, root: bool) -> None:
    table = analysis_bucket_files
    row = connection.execute(select(table).where(table.c.id == key)).one()
    demand(actor, Action.UPDATE, analysis_facts(connection, row.analysis_id))
    _require_open(connection, row.analysis_id)
    if root:
        connection.execute(update(table).where(table.c.analysis_id == row.analysis_id).values(root=False))
    connection.execute(update(table).where(table.c.id == key).values(root=root, updated_at=now()))


def _require_open(connection: Connection, analysis: str) -> None:
    require_unlocked(connection.execute(select(analyses).where(analyses.c.id == analysis)).one())


async def delete_file(request: Request) -> Response:
    """Takes a file out of the analysis; the stored file stays in its bucket."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS_BUCKET_FILE)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, ANALYSIS_BUCKET_FILE, key)
        demand(actor, Action.UPDATE, analysis_facts(connection, shown["analysisId"]))
        bucket = select(analysis_buckets.c.type).where(analysis_buckets.c.id == shown["analysisBucketId"])
        if connection.execute(bucket).scalar() == "CODE":
            _require_open(connection, shown["analysisId"])
        connection.execute(sql_delete(analysis_bucket_files).where(analysis_bucket_files.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), ANALYSIS_BUCKET_FILE, 202)


# ------------------------------------------------------------------------------------------------------------- watching


async def get_image(request: Request) -> Response:
    """What was built, as an OCI image layout in a tar archive: the program's layer, paired with its environment."""
    actor = await authenticate(request)
    key = path_id(request, ANALYSIS)
    hub = hub_of(request)

    def load(connection: Connection) -> tuple[Any, list[Any]]:
        row = raw_row(connection, actor, ANALYSIS, key)
        if row.build_status != Status.EXECUTED:
            raise Conflict("The analysis is not built yet.", next_step="Wait for the approvals, then buildStart.")
        return row, code_of(connection, key)

    row, files = await hub.database.read(load)
    opened = commands.opener(hub)
    layer = await image.measure(files, opened)
    manifest = await hub.database.read(lambda c: commands.built_manifest(c, key, layer))
    if row.build_hash != f"sha256:{hashlib.sha256(manifest).hexdigest()}":
        raise Conflict("What is stored now is not what was built.", next_step="Ask the hub's operator what happened.")
    headers = {"content-disposition": f'attachment; filename="{key}.oci.tar"'}
    pieces = image.layout(manifest, layer, files, opened)
    return StreamingResponse(pieces, headers=headers, media_type="application/x-tar")


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


_ONE = "/core/analyses/{id}"

ROUTES = [
    *readable_routes("/core/analyses", ANALYSIS),
    *changing_routes(
        "/core/analyses", create=create_analysis, update=update_analysis, remove=delete_analysis, resource=ANALYSIS,
        body=NewAnalysisBody, changes=AnalysisBody,
    ),
    Described("POST", f"{_ONE}/command", command, About(ANALYSIS, status=202, body=CommandBody)),
    Described("GET", f"{_ONE}/client/credentials", get_credentials, About(Credentials, "flat")),
    Described(
        "POST", f"{_ONE}/client/credentials", set_credentials, About(Credentials, "flat", body=CredentialsBody)
    ),
    Described("GET", f"{_ONE}/client/permissions", client_permissions_of, About(shape="list")),
    Described("POST", f"{_ONE}/client/permissions", give_permission, About(status=202, body=PermissionBody)),
    Described(
        "DELETE", f"{_ONE}/client/permissions/{{permission}}", take_permission, About(shape="nothing", status=202)
    ),
    *RUN_ROUTES,
    Described("GET", f"{_ONE}/image", get_image, About(shape="bytes", media=("application/x-tar",), errors=(409,))),
    Described(
        "GET", f"{_ONE}/watch", watch,
        About(query={"seen": in_query(), "wait": in_query("number", minimum=0, maximum=30)}),
    ),
    *readable_routes("/core/analysis-nodes", ANALYSIS_NODE),
    *changing_routes(
        "/core/analysis-nodes", create=create_analysis_node, update=update_analysis_node, remove=delete_analysis_node,
        resource=ANALYSIS_NODE, body=AnalysisNodeBody, changes=PlaceBody,
    ),
    *readable_routes("/core/analysis-node-events", ANALYSIS_NODE_EVENT),
    *readable_routes("/core/analysis-buckets", ANALYSIS_BUCKET),
    *changing_routes(
        "/core/analysis-buckets", create=create_bucket, update=update_bucket, remove=delete_bucket,
        resource=ANALYSIS_BUCKET, body=BucketBody, changes=Body,
    ),
    *readable_routes("/core/analysis-bucket-files", ANALYSIS_BUCKET_FILE),
    *changing_routes(
        "/core/analysis-bucket-files", create=create_file, update=update_file, remove=delete_file,
        resource=ANALYSIS_BUCKET_FILE, body=NewFileBody, changes=FileBody,
    ),
]  # fmt: skip
