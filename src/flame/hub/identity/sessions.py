"""From a bearer token to the actor behind it. Roles and activity are looked up each time: what is withdrawn stops at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, literal, select, union_all

from flame.hub.analyses.tables import analyses
from flame.hub.authorisation import Actor
from flame.hub.identity.permissions import OF_NODES
from flame.hub.identity.tables import (
    client_permissions,
    client_roles,
    clients,
    permissions,
    role_permissions,
    roles,
    sessions,
    user_permissions,
    user_roles,
    users,
)
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
    return actor_of_subject(connection, kind, subject)


def actor_of_subject(connection: Connection, kind: str, subject: str) -> Actor:
    """A person or a client as they are now. Raises NotAuthenticated for what is gone or not active."""
    return _user(connection, subject) if kind == "user" else _client(connection, subject)


def _user(connection: Connection, subject: str) -> Actor:
    row = connection.execute(select(users).where(users.c.id == subject, users.c.active.is_(True))).first()
    if row is None:
        raise NotAuthenticated("This account is not active.", next_step="Ask an administrator of your realm.")
    held, allowed = rights_of(connection, "user", subject)
    return Actor("user", row.id, row.name, row.realm_id, held, permissions=allowed)


def _client(connection: Connection, subject: str) -> Actor:
    row = connection.execute(select(clients).where(clients.c.id == subject, clients.c.active.is_(True))).first()
    if row is None:
        raise NotAuthenticated("This client is not active.", next_step="Ask an administrator of its realm.")
    node = connection.execute(select(nodes.c.id).where(nodes.c.client_id == subject)).scalar()
    analysis = connection.execute(select(analyses.c.id).where(analyses.c.client_id == subject)).scalar()
    _, allowed = rights_of(connection, "client", subject)
    allowed |= OF_NODES if node else frozenset()
    return Actor("client", row.id, row.name, row.realm_id, node=node, analysis=analysis, permissions=allowed)


def rights_of(
    connection: Connection, kind: Literal["user", "client"], subject: str
) -> tuple[frozenset[str], frozenset[str]]:
    """The default roles, and the permissions known here, that somebody holds.

    What a realm has made itself carries a name of its own choice, and confers nothing by that name.
    """
    given_roles, given = (user_roles, user_permissions) if kind == "user" else (client_roles, client_permissions)
    mine = select(given_roles.c.role_id).where(given_roles.c[f"{kind}_id"] == subject)
    through = select(role_permissions.c.permission_id).where(role_permissions.c.role_id.in_(mine))
    direct = select(given.c.permission_id).where(given.c[f"{kind}_id"] == subject)
    built_in = permissions.c.built_in.is_(True) & permissions.c.id.in_(union_all(through, direct))
    statement = union_all(
        select(literal("role"), roles.c.name).where(roles.c.id.in_(mine), roles.c.built_in.is_(True)),
        select(literal("permission"), permissions.c.name).where(built_in),
    )
    found: dict[str, set[str]] = {"role": set(), "permission": set()}
    for what, name in connection.execute(statement):
        found[what].add(name)
    return frozenset(found["role"]), frozenset(found["permission"])
