"""``/telemetry``: events and logs."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import Connection, delete
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.authorisation import Action, Hub, demand
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.resources import Body, changing_routes, get_row, path_id, read_body, readable_routes, record
from flame.hub.state import hub_of
from flame.hub.telemetry.events import write_event
from flame.hub.telemetry.logs import ROUTES as LOGS
from flame.hub.telemetry.resources import EVENT
from flame.hub.telemetry.tables import events

MAX_DATA = 16 << 10
Word = Annotated[str, Meta(min_length=1, max_length=64)]


class EventBody(Body):
    ref_type: Word
    name: Word
    ref_id: Word | None = None
    scope: Word = "model"
    data: dict[str, Any] = msgspec.field(default_factory=dict)


async def create_event(request: Request) -> Response:
    """Write down an event; for administrators."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub())
    body = await read_body(request, EventBody)
    if len(msgspec.json.encode(body.data)) > MAX_DATA:
        raise wrong("data", f"'data' has at most {MAX_DATA} bytes.")

    def store(connection: Connection) -> dict[str, Any]:
        key = write_event(
            connection, actor, ref_type=body.ref_type, ref_id=body.ref_id, scope=body.scope, name=body.name,
            data=body.data, realm_id=actor.realm,
        )  # fmt: skip
        return get_row(connection, actor, EVENT, key)

    return record(await hub_of(request).database.write(store), EVENT, 201)


async def delete_event(request: Request) -> Response:
    """Forget an event; for administrators. The transparency log forgets nothing."""
    actor = await authenticate(request)
    demand(actor, Action.DELETE, Hub())
    key = path_id(request, EVENT)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, EVENT, key)
        connection.execute(delete(events).where(events.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), EVENT, 202)


ROUTES = [
    *readable_routes("/telemetry/events", EVENT),
    *changing_routes("/telemetry/events", create=create_event, remove=delete_event, resource=EVENT, body=EventBody),
    *LOGS,
]
