"""``/auth/realms``, ``/auth/users``, ``/auth/user-attributes``: realms and the people in them."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, func, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.hub.analyses.tables import analyses
from flame.hub.authorisation import Action, Actor, Hub, Realm, Rights, demand
from flame.hub.columns import fresh, now
from flame.hub.identity import resources as known
from flame.hub.identity.passwords import hash_in_thread, matches
from flame.hub.identity.permissions import HELD, OF_CLIENTS, ROLES
from flame.hub.identity.rights import demand_gift, demand_over, keep_an_admin
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import realms, roles, sessions, user_attributes, user_roles, users
from flame.hub.nodes.tables import nodes
from flame.hub.problems import wrong
from flame.hub.projects.tables import projects
from flame.hub.resources import (
    Body,
    Id,
    Label,
    LongText,
    Name,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    related_row,
)
from flame.hub.state import hub_of
from flame.model.errors import Conflict, NotAllowed

AccountName = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
GivenName = Annotated[str, msgspec.Meta(max_length=128)]
Password = Annotated[str, msgspec.Meta(min_length=8, max_length=512)]
Email = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[^@\s]+@[^@\s]+$")]

_ONES_OWN: Final = frozenset({"name", "display_name", "first_name", "last_name", "email", "password_hash"})
"""What people change of themselves without being administrators."""


# --------------------------------------------------------------------------------------------------------------- realms


class RealmBody(Body):
    name: Name
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET


class RealmChanges(Body):
    name: Name | UnsetType = UNSET
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET


async def create_realm(request: Request) -> Response:
    """Make a realm: a hospital, a university."""
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub("realm_create"))
    row = fresh(**(await read_body(request, RealmBody)).given(), built_in=False)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        connection.execute(insert(realms).values(**row))
        hub.log.tell(connection, "administration", row["id"], {"created": "realm", "by": actor.id})
        return get_row(connection, actor, known.REALM, row["id"])

    return record(await hub.database.write(store), known.REALM, 201)


async def update_realm(request: Request) -> Response:
    """Change a realm's names."""
    actor = await authenticate(request)
    key = path_id(request, known.REALM)
    values = (await read_body(request, RealmChanges)).given()
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, known.REALM, key)
        demand(actor, Action.UPDATE, Realm(key))
        if row.built_in and values.get("name", row.name) != row.name:
            raise Conflict(f"The realm '{row.name}' keeps its name.")
        connection.execute(update(realms).where(realms.c.id == key).values(**values, updated_at=now()))
        hub.log.tell(connection, "administration", key, {"changed": "realm", "by": actor.id})
        return get_row(connection, actor, known.REALM, key)

    return record(await hub.database.write(store), known.REALM, 202)


async def delete_realm(request: Request) -> Response:
    """Delete a realm with its people, clients and roles. Refused while it has nodes or projects."""
    actor = await authenticate(request)
    key = path_id(request, known.REALM)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, known.REALM, key)
        demand(actor, Action.DELETE, Hub("realm_delete"))
        if shown["builtIn"]:
            raise Conflict(f"The realm '{shown['name']}' is the hub's own.")
        for table, what in ((nodes, "nodes"), (projects, "projects"), (analyses, "analyses")):
            count = connection.execute(select(func.count()).select_from(table).where(table.c.realm_id == key)).scalar()
            if count:
                raise Conflict(f"The realm still has {count} {what}.", next_step="Delete them first.")
        for person in connection.execute(select(users.c.id).where(users.c.realm_id == key)).scalars().all():
            _keep_what_is_theirs(connection, person)
        connection.execute(delete(sessions).where(sessions.c.realm_id == key))
        connection.execute(delete(realms).where(realms.c.id == key))
        hub.log.tell(connection, "administration", key, {"deleted": "realm", "by": actor.id})
        return shown

    return record(await hub.database.write(store), known.REALM, 202)


# --------------------------------------------------------------------------------------------------------------- people


class UserBody(Body):
    name: AccountName
    display_name: Label | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    first_name: GivenName | UnsetType | None = UNSET
    last_name: GivenName | UnsetType | None = UNSET
    active: bool = True
    name_locked: bool = False
    realm_id: Id | UnsetType | None = UNSET
    password: Password | UnsetType | None = UNSET
    roles: list[str] | UnsetType = UNSET
    """Names of default roles (ours): for all at once, instead of ``/auth/user-roles``."""


class UserChanges(Body):
    name: AccountName | UnsetType = UNSET
    display_name: Label | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    first_name: GivenName | UnsetType | None = UNSET
    last_name: GivenName | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    name_locked: bool | UnsetType = UNSET
    realm_id: Id | UnsetType | None = UNSET
    password: Password | UnsetType | None = UNSET
    current_password: str | UnsetType | None = UNSET
    """One's own, to set a new one."""
    roles: list[str] | UnsetType = UNSET


async def create_user(request: Request) -> Response:
    """Make an account. It may do nothing until it is given a role."""
    actor = await authenticate(request)
    body = await read_body(request, UserBody)
    realm = body.realm_id or actor.realm
    demand(actor, Action.CREATE, Realm(realm, "user"))
    values = body.given() | {"realm_id": realm}
    names, password = values.pop("roles", []), values.pop("password", None)
    values["password_hash"] = await hash_in_thread(password) if password else None
    row = fresh(**values)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        related_row(connection, actor, known.REALM, realm, "realmId")
        connection.execute(insert(users).values(**row))
        _give_roles(connection, actor, row, names)
        hub.log.tell(connection, "administration", row["id"], {"created": "user", "realm": realm, "by": actor.id})
        return get_row(connection, actor, known.USER, row["id"])

    return record(await hub.database.write(store), known.USER, 201)


async def update_user(request: Request) -> Response:
    """Change an account: an administrator of its realm, or a few things of one's own (a password with the current one)."""
    actor = await authenticate(request)
    key = path_id(request, known.USER)
    values = (await read_body(request, UserChanges)).given()
    hub = hub_of(request)
    current = await hub.database.read(lambda c: raw_row(c, actor, known.USER, key))
    if values.pop("realm_id", None) not in (None, current.realm_id):
        raise Conflict("An account stays in its realm.", next_step="Make one in the other realm, and close this one.")
    names, password = values.pop("roles", None), values.pop("password", None)
    proof = values.pop("current_password", None)
    if key == actor.id:
        await _check_own(current, values, names, password, proof)
    if password:
        values["password_hash"] = await hash_in_thread(password)

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, known.USER, key)
        _demand_change(connection, actor, row, values)
        if values.get("active") is False:
            keep_an_admin(connection, key)
        connection.execute(update(users).where(users.c.id == key).values(**values, updated_at=now()))
        if names is not None:
            _demand_change(connection, actor, row, {"roles": names})
            _replace_roles(connection, actor, row, names)
        if password or values.get("active") is False:
            connection.execute(update(sessions).where(sessions.c.subject == key).values(revoked=True))
        hub.log.tell(connection, "administration", key, {"changed": "user", "by": actor.id})
        return get_row(connection, actor, known.USER, key)

    return record(await hub.database.write(store), known.USER, 202)


async def _check_own(
    current: Any, values: dict[str, Any], names: list[str] | None, password: str | None, proof: str | None
) -> None:
    """Of oneself: neither roles nor whether one is active; a new password needs the current one."""
    if names is not None or values.get("active", current.active) != current.active:
        raise NotAllowed(
            "Nobody changes their own roles, or closes their own account.", next_step="Ask an administrator."
        )
    if password and not await matches(current.password_hash, proof or ""):
        raise NotAllowed("A new password needs 'currentPassword', the one until now.")


def _demand_change(connection: Connection, actor: Actor, row: Any, values: dict[str, Any]) -> None:
    if row.id == actor.id:
        changed = {name for name, value in values.items() if value != getattr(row, name, UNSET)}
        locked = row.name_locked and "name" in changed
        if changed <= _ONES_OWN and not locked:
            return
    demand(actor, Action.UPDATE, Realm(row.realm_id, "user"))
    demand_over(connection, actor, "user", row)


async def delete_user(request: Request) -> Response:
    """Delete an account; its tokens end at once. Refused for who has projects or analyses: close it instead."""
    actor = await authenticate(request)
    key = path_id(request, known.USER)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, known.USER, key)
        row = raw_row(connection, actor, known.USER, key)
        demand(actor, Action.DELETE, Realm(row.realm_id, "user"))
        demand_over(connection, actor, "user", row)
        if key == actor.id:
            raise Conflict("Nobody deletes their own account.", next_step="Ask another administrator.")
        keep_an_admin(connection, key)
        _keep_what_is_theirs(connection, key)
        connection.execute(delete(sessions).where(sessions.c.subject == key))
        connection.execute(delete(users).where(users.c.id == key))
        hub.log.tell(connection, "administration", key, {"deleted": "user", "by": actor.id})
        return shown

    return record(await hub.database.write(store), known.USER, 202)


def _keep_what_is_theirs(connection: Connection, user: str) -> None:
    for table, what in ((projects, "projects"), (analyses, "analyses")):
        if connection.execute(select(table.c.id).where(table.c.user_id == user).limit(1)).first():
            raise Conflict(
                f"This person has {what}; they must keep a name.", next_step="Set 'active' to false instead."
            )


def _give_roles(connection: Connection, actor: Actor, user: Any, names: list[str]) -> None:
    if not names:
        return
    realm, key = user["realm_id"], user["id"]
    demand(actor, Action.CREATE, Realm(realm, "user_role"))
    for name in dict.fromkeys(names):
        if name not in ROLES or name in OF_CLIENTS:
            people = ", ".join(sorted(set(ROLES) - OF_CLIENTS))
            raise wrong("roles", f"There is no role '{name[:40]}' for people.", f"Known: {people}.")
        demand_gift(connection, actor, realm, Rights(None, HELD[name], frozenset({key}), everything=name == "admin"))
        role = connection.execute(select(roles.c.id).where(roles.c.name == name, roles.c.built_in.is_(True)))
        link = fresh(user_id=key, role_id=role.scalar_one(), user_realm_id=realm)
        connection.execute(insert(user_roles).values(**link))


def _replace_roles(connection: Connection, actor: Actor, row: Any, names: list[str]) -> None:
    demand(actor, Action.DELETE, Realm(row.realm_id, "user_role"))
    if "admin" not in names:
        keep_an_admin(connection, row.id)
    built_in = select(roles.c.id).where(roles.c.built_in.is_(True))
    connection.execute(delete(user_roles).where(user_roles.c.user_id == row.id, user_roles.c.role_id.in_(built_in)))
    _give_roles(connection, actor, row._mapping, names)


# ----------------------------------------------------------------------------------------------------------- attributes


class AttributeBody(Body):
    name: AccountName
    user_id: Id
    value: LongText | None = None


class AttributeChanges(Body):
    value: LongText | UnsetType | None = UNSET


async def create_attribute(request: Request) -> Response:
    """Note something about a person; it confers nothing."""
    actor = await authenticate(request)
    body = await read_body(request, AttributeBody)

    def store(connection: Connection) -> dict[str, Any]:
        user = related_row(connection, actor, known.USER, body.user_id, "userId")
        demand(actor, Action.CREATE, Realm(user.realm_id, "user_attribute"))
        row = fresh(**body.given(), realm_id=user.realm_id)
        connection.execute(insert(user_attributes).values(**row))
        return get_row(connection, actor, known.USER_ATTRIBUTE, row["id"])

    return record(await hub_of(request).database.write(store), known.USER_ATTRIBUTE, 201)


async def update_attribute(request: Request) -> Response:
    """Change what is noted."""
    actor = await authenticate(request)
    key = path_id(request, known.USER_ATTRIBUTE)
    values = (await read_body(request, AttributeChanges)).given()

    def store(connection: Connection) -> dict[str, Any]:
        row = raw_row(connection, actor, known.USER_ATTRIBUTE, key)
        demand(actor, Action.UPDATE, Realm(row.realm_id, "user_attribute"))
        here = user_attributes.c.id == key
        connection.execute(update(user_attributes).where(here).values(**values, updated_at=now()))
        return get_row(connection, actor, known.USER_ATTRIBUTE, key)

    return record(await hub_of(request).database.write(store), known.USER_ATTRIBUTE, 202)


async def delete_attribute(request: Request) -> Response:
    """Delete what is noted."""
    actor = await authenticate(request)
    key = path_id(request, known.USER_ATTRIBUTE)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, known.USER_ATTRIBUTE, key)
        demand(actor, Action.DELETE, Realm(shown["realmId"], "user_attribute"))
        connection.execute(delete(user_attributes).where(user_attributes.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), known.USER_ATTRIBUTE, 202)


ROUTES: Final = [
    *readable_routes("/auth/realms", known.REALM),
    *changing_routes(
        "/auth/realms", create=create_realm, update=update_realm, remove=delete_realm,
        resource=known.REALM, body=RealmBody, changes=RealmChanges,
    ),
    *readable_routes("/auth/users", known.USER),
    *changing_routes(
        "/auth/users", create=create_user, update=update_user, remove=delete_user,
        resource=known.USER, body=UserBody, changes=UserChanges,
    ),
    *readable_routes("/auth/user-attributes", known.USER_ATTRIBUTE),
    *changing_routes(
        "/auth/user-attributes", create=create_attribute, update=update_attribute, remove=delete_attribute,
        resource=known.USER_ATTRIBUTE, body=AttributeBody, changes=AttributeChanges,
    ),
]  # fmt: skip
