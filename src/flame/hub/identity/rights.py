"""What somebody else's rights mean for who wants to change them: the facts behind `flame.hub.authorisation.Rights`."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Connection, select

from flame.hub.authorisation import Action, Actor, Rights, demand
from flame.hub.identity.permissions import HELD
from flame.hub.identity.sessions import rights_of
from flame.hub.identity.tables import client_roles, permissions, realms, role_permissions, roles, user_roles, users
from flame.model.errors import Conflict

Holder = Literal["user", "client"]


def demand_over(connection: Connection, actor: Actor, kind: Holder, row: Any) -> None:
    """Who gives somebody a new password, or closes their account, must hold what they hold. Raises NotAllowed."""
    held, allowed = rights_of(connection, kind, row.id)
    demand(actor, Action.UPDATE, Rights(row.realm_id, allowed, everything="admin" in held))


def demand_gift(connection: Connection, actor: Actor, realm: str | None, what: Rights) -> None:
    demand(actor, Action.CREATE, Rights(realm, what.permissions, what.holders, what.everything))


def of_role(connection: Connection, role: Any) -> Rights:
    """What a role confers, and who holds it."""
    if role.built_in:
        return Rights(role.realm_id, HELD[role.name], everything=role.name == "admin")
    through = select(role_permissions.c.permission_id).where(role_permissions.c.role_id == role.id)
    names = select(permissions.c.name).where(permissions.c.id.in_(through), permissions.c.built_in.is_(True))
    holders = set(connection.execute(select(user_roles.c.user_id).where(user_roles.c.role_id == role.id)).scalars())
    holders |= set(
        connection.execute(select(client_roles.c.client_id).where(client_roles.c.role_id == role.id)).scalars()
    )
    return Rights(role.realm_id, frozenset(connection.execute(names).scalars()), frozenset(holders))


def of_permission(permission: Any) -> Rights:
    """A permission that a realm has made itself is a name, and confers nothing."""
    return Rights(permission.realm_id, frozenset({permission.name}) if permission.built_in else frozenset())


def keep_an_admin(connection: Connection, without: str) -> None:
    """Raises Conflict when nobody could administer the hub without this person. One after the other, in all processes."""
    connection.execute(select(realms.c.id).where(realms.c.built_in.is_(True)).with_for_update())
    admins = (
        select(users.c.id)
        .join(user_roles, user_roles.c.user_id == users.c.id)
        .join(roles, roles.c.id == user_roles.c.role_id)
        .where(roles.c.name == "admin", roles.c.built_in.is_(True), users.c.active.is_(True))
    )
    left = set(connection.execute(admins).scalars())
    if without in left and left == {without}:
        raise Conflict("This is the last administrator of the hub.", next_step="Make another one first.")
