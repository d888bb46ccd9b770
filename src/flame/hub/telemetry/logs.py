"""Lines that the hub and the nodes write about an analysis: one table, read and deleted as the analysis is."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.hub.analyses.resources import ANALYSIS
from flame.hub.analyses.tables import analysis_logs
from flame.hub.authorisation import Action, Actor, Membership, analysis_facts, demand
from flame.hub.columns import new_id, now
from flame.hub.described import About, Described, in_query
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.query import Filter, Query, Vocabulary, parse
from flame.hub.resources import Body, Id, answer, collection, raw_row, read_body, record
from flame.hub.state import HubState, hub_of
from flame.model.errors import NotFound

Level = Literal["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"]
Channel = Literal["http", "websocket", "background", "system"]
Message = Annotated[str, Meta(min_length=1, max_length=2048)]
Mark = Annotated[str, Meta(min_length=1, max_length=64)]

SERVICE = "hub-server-core"
LEVELS: frozenset[str] = frozenset(Level.__args__)  # type: ignore[attr-defined]


class Line(Struct):
    """One line, as FLAME's clients read it."""

    time: str
    message: str
    service: str
    channel: Channel
    level: Level
    labels: dict[str, str | None]


def log_line(
    connection: Connection,
    analysis: str,
    level: str,
    message: str,
    node: str | None = None,
    labels: dict[str, Any] | None = None,
    service: str = SERVICE,
    channel: str = "http",
) -> dict[str, Any]:
    """Write one line of an analysis' log; as shown."""
    labels = labels or {"refType": "analysis", "analysisId": analysis}
    row = {
        "id": new_id(), "analysis_id": analysis, "node_id": node, "time": now(), "level": level, "message": message,
        "service": service, "channel": channel, "labels": json.dumps(labels),
    }  # fmt: skip
    connection.execute(insert(analysis_logs).values(**row))
    return _shown(row)


def _shown(row: Any) -> dict[str, Any]:
    names = ("time", "message", "service", "channel", "level")
    return {name: row[name] for name in names} | {"labels": json.loads(row["labels"])}


# -------------------------------------------------------------------------------------------------------------- writing


class NodeLogBody(Body):
    analysis_id: Id
    node_id: Id
    message: Message
    level: Level = "info"
    code: Mark | None = None
    status: Mark | None = None
    labels: dict[Mark, Annotated[str, Meta(max_length=256)] | None] = msgspec.field(default_factory=dict)


class Labels(Struct, rename="camel"):
    analysis_id: Id
    node_id: Id | UnsetType | None = UNSET


class LogBody(Body):
    message: Message
    labels: Labels
    level: Level = "info"
    service: Mark = "hub-server-telemetry"
    channel: Channel = "system"


async def create_node_log(request: Request) -> Response:
    """A line of a node's own, about its part in an analysis."""
    actor = await authenticate(request)
    body = await read_body(request, NodeLogBody)
    labels: dict[str, Any] = dict(list(body.labels.items())[:16])
    labels |= {"refType": "analysisNode", "analysisId": body.analysis_id, "nodeId": body.node_id}
    labels |= {k: v for k, v in (("code", body.code), ("status", body.status)) if v}
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        _check_part(hub, connection, actor, body.analysis_id, body.node_id)
        return log_line(connection, body.analysis_id, body.level, body.message, body.node_id, labels)

    return record(await hub.database.write(store), status=202)


async def create_log(request: Request) -> Response:
    """A line about an analysis: by a node about its own part, else by who may change the analysis."""
    actor = await authenticate(request)
    body = await read_body(request, LogBody)
    node = body.labels.node_id or None
    labels = {"analysisId": body.labels.analysis_id} | ({"nodeId": node} if node else {})
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        if node is not None:
            _check_part(hub, connection, actor, body.labels.analysis_id, node)
        else:
            raw_row(connection, actor, ANALYSIS, body.labels.analysis_id)
            demand(actor, Action.UPDATE, analysis_facts(connection, body.labels.analysis_id))
        analysis = body.labels.analysis_id
        return log_line(connection, analysis, body.level, body.message, node, labels, body.service, body.channel)

    return record(await hub.database.write(store), status=201)


def _check_part(hub: HubState, connection: Connection, actor: Actor, analysis: str, node: str) -> None:
    """Only a node itself speaks for it. Raises NotFound, NotAllowed."""
    raw_row(connection, actor, ANALYSIS, analysis)
    realm = analysis_facts(connection, analysis).nodes.get(node)
    if realm is None:
        raise NotFound("The analysis-node was not found.")
    rehearsal = hub.settings.skip_analysis_approval
    demand(actor, Action.REPORT, Membership(node, realm, frozenset(), rehearsal=rehearsal))


# ---------------------------------------------------------------------------------------------------- reading, deleting


def _routes(path: str, *, of_node: bool | None) -> list[Route]:
    """``GET`` and ``DELETE``. of_node: of a node (which is then named), of the hub, or (None) both."""
    names = frozenset({"analysisId", "level"} | (set() if of_node is False else {"nodeId"}))
    known = Vocabulary(frozenset({"time"}), names, frozenset({"time"}), limit=100)
    needed = ("analysisId", "nodeId") if of_node else ("analysisId",)

    def asked(request: Request) -> tuple[Query, str]:
        query = parse(request.query_params.multi_items(), known)
        for name in needed:
            if not query.value(name):
                raise wrong(f"filter.{name}", f"Logs are of one analysis: filter[{'] and filter['.join(needed)}].")
        return query, str(query.value("analysisId"))

    def condition(query: Query) -> ColumnElement[bool]:
        found: ColumnElement[bool] = analysis_logs.c.analysis_id == query.value("analysisId")
        if of_node is False:
            found &= analysis_logs.c.node_id.is_(None)
        for wanted in query.filters:
            if wanted.path != "analysisId":
                found &= _matches(wanted)
        return found

    async def many(request: Request) -> Response:
        """The lines of an analysis' log, newest first."""
        actor = await authenticate(request)
        query, analysis = asked(request)

        def load(connection: Connection) -> tuple[list[dict[str, Any]], int]:
            raw_row(connection, actor, ANALYSIS, analysis)
            where = condition(query)
            total = connection.execute(select(func.count()).select_from(analysis_logs).where(where)).scalar_one()
            falling = not query.sort or query.sort[0][1]
            order = [c.desc() if falling else c.asc() for c in (analysis_logs.c.time, analysis_logs.c.id)]
            wanted = select(analysis_logs).where(where).order_by(*order).limit(query.limit).offset(query.offset)
            return [_shown(row) for row in connection.execute(wanted).mappings()], total

        rows, total = await hub_of(request).database.read(load)
        return collection(rows, total, query)

    async def remove(request: Request) -> Response:
        """Delete the lines of an analysis' log."""
        actor = await authenticate(request)
        query, analysis = asked(request)

        def store(connection: Connection) -> None:
            raw_row(connection, actor, ANALYSIS, analysis)
            demand(actor, Action.DELETE, analysis_facts(connection, analysis))
            connection.execute(delete(analysis_logs).where(condition(query)))

        await hub_of(request).database.write(store)
        return answer(None, 202)

    filters = {f"filter[{name}]": in_query() for name in sorted(names)}
    pages = {"page[limit]": in_query("integer", minimum=0), "page[offset]": in_query("integer", minimum=0)}
    about = About(Line, "list", query=filters | pages | {"sort": in_query(enum=["time", "-time"])}, errors=(404,))
    return [
        Described("GET", path, many, about),
        Described("DELETE", path, remove, About(shape="nothing", status=202, query=filters)),
    ]


def _matches(wanted: Filter) -> ColumnElement[bool]:
    column = {"nodeId": analysis_logs.c.node_id, "level": analysis_logs.c.level}[wanted.path]
    if wanted.operator not in ("eq", "in"):
        raise wrong(f"filter.{wanted.path}", f"'{wanted.path}' is compared as a whole.")
    found = column.in_([value for value in wanted.values if value is not None])
    return ~found if wanted.negated else found


ROUTES = [
    *_routes("/core/analysis-logs", of_node=False),
    *_routes("/core/analysis-node-logs", of_node=True),
    Described("POST", "/core/analysis-node-logs", create_node_log, About(Line, status=202, body=NodeLogBody)),
    *_routes("/telemetry/logs", of_node=None),
    Described("POST", "/telemetry/logs", create_log, About(Line, status=201, body=LogBody)),
]
