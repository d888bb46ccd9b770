"""Events: what was created, changed and deleted, field by field, written in the transaction that does it.

They are for looking back a while; what must not be rewritten stands in the transparency log. No address and no browser of
anybody is kept.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Connection, delete, insert, select

from flame.hub.authorisation import Actor
from flame.hub.columns import fresh, now
from flame.hub.resources import Resource, Row, camel
from flame.hub.telemetry.tables import analysis_node_events, events

KEPT_DAYS: Final = 90
SCOPE: Final = "model"
_LONGEST: Final = 256
_UNTOLD: Final = frozenset({"id", "createdAt", "updatedAt", "approval", "approvalSignature", "manifestMissing"})


def happened(
    connection: Connection,
    actor: Actor,
    resource: Resource,
    key: str,
    name: Literal["created", "updated", "deleted"],
    before: Any = None,
) -> str | None:
    """Write down what happened to a row (call it before a deletion); the event's id, None where nothing has changed.

    before: the row as it was, for an update.
    """
    table = resource.table
    row = connection.execute(select(table).where(table.c.id == key)).mappings().one()
    told = {c.name for c in table.c} - resource.secret
    told = {n for n in told if camel(n) not in _UNTOLD | resource.extra | set(resource.guarded)}
    if name == "updated":
        changed = {n for n in told if before._mapping[n] != row[n]}
        diff = {n: {"next": _short(row[n]), "previous": _short(before._mapping[n])} for n in changed}
    else:
        side = "next" if name == "created" else "previous"
        diff = {n: {side: _short(row[n])} for n in told if row[n] is not None}
    if not diff:
        return None
    return write_event(
        connection, actor, ref_type=camel(resource.name.replace("-", "_")), ref_id=key, name=name,
        data={"diff": {camel(n): value for n, value in sorted(diff.items())}}, realm_id=_realm(row),
    )  # fmt: skip


def part_changed(connection: Connection, actor: Actor, resource: Resource, before: Any) -> None:
    """`happened` to a node's part in an analysis, listed under ``analysis-node-events`` as well."""
    event = happened(connection, actor, resource, before.id, "updated", before)
    if event is None:
        return
    values = fresh(
        event_id=event, analysis_id=before.analysis_id, analysis_realm_id=before.analysis_realm_id,
        node_id=before.node_id, node_realm_id=before.node_realm_id,
    )  # fmt: skip
    connection.execute(insert(analysis_node_events).values(**values))


def write_event(
    connection: Connection,
    actor: Actor,
    *,
    ref_type: str,
    ref_id: str | None,
    name: str,
    data: Row,
    realm_id: str | None,
    scope: str = SCOPE,
) -> str:
    end = (datetime.now(UTC) + timedelta(days=KEPT_DAYS)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    row = fresh(
        ref_type=ref_type, ref_id=ref_id, scope=scope, name=name, data=json.dumps(data), expiring=True, expires_at=end,
        actor_type=actor.kind, actor_id=actor.id, actor_name=actor.name, realm_id=realm_id,
    )  # fmt: skip
    connection.execute(insert(events).values(**row))
    return str(row["id"])


def forget_events(connection: Connection) -> None:
    """Those whose time is over."""
    connection.execute(delete(events).where(events.c.expiring.is_(True), events.c.expires_at < now()))


def _short(value: object) -> object:
    return f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value


def _realm(row: Any) -> str | None:
    return next((row[n] for n in ("realm_id", "analysis_realm_id", "project_realm_id") if n in row), None)
