"""From a bearer token to the actor behind it. Roles and activity are looked up each time: what is withdrawn stops at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from flame.hub.analyses.tables import analyses
from flame.hub.authorisation import Actor
from flame.hub.identity.tables import clients, roles, sessions, user_roles, users
from flame.hub.nodes.tables import nodes
from flame.hub.state import HubState, hub_of
from flame.model.errors import NotAuthenticated

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

_WHO = "Log in first: `flame login`, or POST /auth/token."


async def authenticate(connection: HTTPConnection) -> Actor:
    """Who is asking. Raises NotAuthenticated (401), Invalid (400) for a token that is none."""
    return await actor_of_bearer(hub_of(connection), connection.headers.get("authorization", ""))


async def actor_of_bearer(hub: HubState, authorization: str) -> Actor:
    """The same from the header's value, for ways that are no ASGI request."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("This needs a login.", next_step=_WHO)
    claims = hub.tokens.read(token.strip(), "access")
    return await hub.database.read(lambda c: actor_of(c, claims.kind, claims.subject, claims.session))


def actor_of(connection: Connection, kind: str, subject: str, session: str) -> Actor:
    """The actor of a session. Raises NotAuthenticated when either has been withdrawn."""
    alive = select(sessions.c.id).where(
        sessions.c.id == session, sessions.c.subject == subject, sessions.c.revoked.is_(False)
    )
    if connection.execute(alive).first() is None:
        raise NotAuthenticated("This session has ended.", next_step=_WHO)
    return _user(connection, subject) if kind == "user" else _client(connection, subject)


def _user(connection: Connection, subject: str) -> Actor:
    row = connection.execute(select(users).where(users.c.id == subject, users.c.active.is_(True))).first()
    if row is None:
        raise NotAuthenticated("This account is not active.", next_step="Ask an administrator of your realm.")
    names = select(roles.c.name).join(user_roles, user_roles.c.role_id == roles.c.id)
    held = connection.execute(names.where(user_roles.c.user_id == subject)).scalars()
    return Actor("user", row.id, row.name, row.realm_id, frozenset(held))


def _client(connection: Connection, subject: str) -> Actor:
    row = connection.execute(select(clients).where(clients.c.id == subject, clients.c.active.is_(True))).first()
    if row is None:
        raise NotAuthenticated("This client is not active.", next_step="Ask an administrator of its realm.")
    node = connection.execute(select(nodes.c.id).where(nodes.c.client_id == subject)).scalar()
    analysis = connection.execute(select(analyses.c.id).where(analyses.c.client_id == subject)).scalar()
    return Actor("client", row.id, row.name, row.realm_id, node=node, analysis=analysis)
