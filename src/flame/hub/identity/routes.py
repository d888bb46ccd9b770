"""``/auth``: tokens, and the people, realms, roles and clients behind them; ``/core/user-keys``."""

from __future__ import annotations

import base64
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.keys import HybridPublicKey, PublicKey
from flame.hub.columns import fresh, now
from flame.hub.identity import resources as known
from flame.hub.identity.clients import ROUTES as CLIENTS
from flame.hub.identity.grants import ROUTES as GRANTS
from flame.hub.identity.oauth import ROUTES as OAUTH
from flame.hub.identity.pages import ROUTES as PAGES
from flame.hub.identity.people import ROUTES as PEOPLE
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import user_keys
from flame.hub.members.routes import register_member
from flame.hub.resources import (
    Body,
    changing_routes,
    get_row,
    read_body,
    readable_routes,
    record,
    text,
)
from flame.hub.state import hub_of
from flame.model.errors import Malformed, NotAllowed
from flame.protocol.documents import MemberKind


class KeyBody(Body):
    kind: Literal["sign", "result"]
    public_key: str


async def create_key(request: Request) -> Response:
    """``POST /core/user-keys``: register one's own public key; it replaces the one before."""
    actor = await authenticate(request)
    if actor.kind != "user":
        raise NotAllowed("Keys of people are registered by people.")
    body = await read_body(request, KeyBody)
    public, fingerprint = _read_key(body)
    hub = hub_of(request)
    row = fresh(user_id=actor.id, kind=body.kind, public_key=public, fingerprint=fingerprint, revoked_at=None)

    def store(connection: Connection) -> dict[str, Any]:
        mine = (user_keys.c.user_id == actor.id) & (user_keys.c.kind == body.kind) & user_keys.c.revoked_at.is_(None)
        same = connection.execute(select(user_keys.c.id).where(mine, user_keys.c.fingerprint == fingerprint)).scalar()
        if same:
            return get_row(connection, actor, known.USER_KEY, same)
        connection.execute(update(user_keys).where(mine).values(revoked_at=now(), updated_at=now()))
        kind: MemberKind = "researcher" if body.kind == "sign" else "result"
        member = register_member(connection, kind, public, user=actor.id)
        connection.execute(insert(user_keys).values(**row, member=member))
        facts = {"kind": body.kind, "fingerprint": fingerprint, "publicKey": public}
        hub.log.tell(connection, "key", actor.id, facts)
        return get_row(connection, actor, known.USER_KEY, row["id"])

    return record(await hub.database.write(store, "audit"), known.USER_KEY, 201)


def _read_key(body: KeyBody) -> tuple[str, str]:
    if body.kind == "sign":
        key = PublicKey.from_hex_pem(text(body.public_key, "publicKey", most=8192))
        return key.hex_pem, key.fingerprint.hex()
    try:
        raw = base64.b64decode(text(body.public_key, "publicKey", most=4096), validate=True)
    except ValueError:
        raise Malformed("A result key is base64 of its 1216 bytes.") from None
    return base64.b64encode(raw).decode(), HybridPublicKey(raw).key_id.hex()


def active_key(connection: Connection, user: str | None, kind: str) -> Any:
    """The active key of a person, as a row; None without one."""
    condition = (user_keys.c.user_id == user) & (user_keys.c.kind == kind) & user_keys.c.revoked_at.is_(None)
    return connection.execute(select(user_keys).where(condition)).first()


ROUTES = [
    *OAUTH,
    *PAGES,
    *PEOPLE,
    *CLIENTS,
    *GRANTS,
    *readable_routes("/core/user-keys", known.USER_KEY),
    *changing_routes("/core/user-keys", create=create_key, resource=known.USER_KEY, body=KeyBody),
]
