"""``/auth/roles``, ``permissions``, ``policies``, ``scopes``, and who holds which of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.hub.authorisation import Action, Actor, Kind, Realm, Rights, demand
from flame.hub.columns import fresh, now
from flame.hub.identity import resources as known
from flame.hub.identity.permissions import KNOWN, ROLES
from flame.hub.identity.rights import demand_gift, demand_over, keep_an_admin, of_permission, of_role
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients, roles, users
from flame.hub.problems import wrong
from flame.hub.resources import (
    Body,
    Id,
    Label,
    LongText,
    Resource,
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
from flame.model.errors import Conflict

Word = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


# --------------------------------------------------------------------------- names: roles, permissions, scopes, policies


class NameBody(Body):
    name: Word
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET
    realm_id: Id | UnsetType | None = UNSET


class NameChanges(Body):
    name: Word | UnsetType = UNSET
    display_name: Label | UnsetType | None = UNSET
    description: LongText | UnsetType | None = UNSET


class PermissionBody(NameBody):
    policy_id: Id | UnsetType | None = UNSET


class PermissionChanges(NameChanges):
    realm_id: Id | UnsetType | None = UNSET
    policy_id: Id | UnsetType | None = UNSET


@dataclass(frozen=True)
class Named:
    """A collection of names that a realm may add to. reserved: names that mean something here already.

    at_home: without a realm in the body it is made in one's own realm, not for the whole hub.
    """

    path: str
    resource: Resource
    kind: Kind
    reserved: frozenset[str]
    body: type[NameBody]
    changes: type[NameChanges]
    at_home: bool = True

    def routes(self) -> list[Route]:
        endpoints = (_create(self), _update(self), _delete(self))
        for endpoint, verb in zip(endpoints, ("Make", "Change", "Delete"), strict=True):
            endpoint.__doc__ = f"{verb} a {self.resource.name} of a realm's own; those of the hub stay as they are."
        create, change, remove = endpoints
        return [
            *readable_routes(self.path, self.resource),
            *changing_routes(
                self.path, create=create, update=change, remove=remove,
                resource=self.resource, body=self.body, changes=self.changes,
            ),
        ]  # fmt: skip

    def check(self, name: object) -> None:
        if name in self.reserved:
            raise Conflict(f"The {self.resource.name} '{name}' is the hub's own.", next_step="Choose another name.")


Answer = Callable[[Request], Any]


def _create(named: Named) -> Answer:
    async def create(request: Request) -> Response:
        actor = await authenticate(request)
        values = (await read_body(request, named.body)).given()
        named.check(values["name"])
        home = actor.realm if named.at_home or not actor.is_admin else None
        values["realm_id"] = values.get("realm_id", home) if actor.is_admin else values.get("realm_id") or home
        demand(actor, Action.CREATE, Realm(values["realm_id"], named.kind))
        row = fresh(**values, built_in=False)

        def store(connection: Connection) -> dict[str, Any]:
            _check_references(connection, actor, values)
            connection.execute(insert(named.resource.table).values(**row))
            facts = {"created": named.kind, "name": str(row["name"]), "by": actor.id}
            hub_of(request).log.tell(connection, "administration", row["id"], facts)
            return get_row(connection, actor, named.resource, row["id"])

        return record(await hub_of(request).database.write(store), named.resource, 201)

    return create


def _update(named: Named) -> Answer:
    async def change(request: Request) -> Response:
        actor = await authenticate(request)
        key = path_id(request, named.resource)
        values = (await read_body(request, named.changes)).given()
        named.check(values.get("name"))
        table = named.resource.table

        def store(connection: Connection) -> dict[str, Any]:
            row = _own_row(connection, actor, named, key, Action.UPDATE)
            if values.pop("realm_id", row.realm_id) != row.realm_id:
                raise Conflict(f"A {named.resource.name} stays in its realm.", next_step="Make one in the other realm.")
            _check_references(connection, actor, values)
            connection.execute(update(table).where(table.c.id == key).values(**values, updated_at=now()))
            return get_row(connection, actor, named.resource, key)

        return record(await hub_of(request).database.write(store), named.resource, 202)

    return change


def _delete(named: Named) -> Answer:
    async def remove(request: Request) -> Response:
        actor = await authenticate(request)
        key = path_id(request, named.resource)
        table = named.resource.table

        def store(connection: Connection) -> dict[str, Any]:
            shown = get_row(connection, actor, named.resource, key)
            _own_row(connection, actor, named, key, Action.DELETE)
            connection.execute(delete(table).where(table.c.id == key))
            facts = {"deleted": named.kind, "name": str(shown["name"]), "by": actor.id}
            hub_of(request).log.tell(connection, "administration", key, facts)
            return shown

        return record(await hub_of(request).database.write(store), named.resource, 202)

    return remove


def _own_row(connection: Connection, actor: Actor, named: Named, key: str, action: Action) -> Any:
    row = raw_row(connection, actor, named.resource, key)
    demand(actor, action, Realm(row.realm_id, named.kind))
    if row.built_in:
        raise Conflict(f"The {named.resource.name} '{row.name}' is the hub's own.", next_step="Make one of your own.")
    return row


def _check_references(connection: Connection, actor: Actor, values: dict[str, Any]) -> None:
    if values.get("realm_id"):
        related_row(connection, actor, known.REALM, values["realm_id"], "realmId")
    if values.get("policy_id"):
        related_row(connection, actor, known.POLICY, values["policy_id"], "policyId")


# ------------------------------------------------------------------------------------------------------ who holds which


@dataclass(frozen=True)
class Link:
    """A collection of pairs: `left` holds `right`."""

    path: str
    resource: Resource
    kind: Kind
    left: Resource
    right: Resource

    @property
    def body(self) -> type[Body]:
        """`leftId` and `rightId`."""
        names = (f"{self.left.name}_id", f"{self.right.name}_id")
        title = "".join(part.capitalize() for part in self.kind.split("_")) + "Body"
        fields = [(name, Id) for name in names]
        made: Any = msgspec.defstruct(title, fields, bases=(Body,), kw_only=True, rename="camel")
        return cast("type[Body]", made)

    def routes(self) -> list[Route]:
        body = self.body
        create, remove = _give(self, body), _take(self)
        create.__doc__ = f"Give a {self.left.name} a {self.right.name}: one that the giver holds or administers."
        remove.__doc__ = f"Take a {self.right.name} from a {self.left.name}."
        changing = changing_routes(self.path, create=create, remove=remove, resource=self.resource, body=body)
        return [*readable_routes(self.path, self.resource), *changing]


def _give(link: Link, body_type: type[Body]) -> Answer:
    left_id, right_id = f"{link.left.name}_id", f"{link.right.name}_id"

    async def create(request: Request) -> Response:
        actor = await authenticate(request)
        given = (await read_body(request, body_type)).given()
        hub = hub_of(request)

        def store(connection: Connection) -> dict[str, Any]:
            left = related_row(connection, actor, link.left, given[left_id], f"{link.left.name}Id")
            right = related_row(connection, actor, link.right, given[right_id], f"{link.right.name}Id")
            demand(actor, Action.CREATE, Realm(left.realm_id, link.kind))
            _check_fit(link, left, right)
            demand_gift(connection, actor, left.realm_id, _conferred(connection, link, left, right))
            row = fresh(**given) | {
                f"{link.left.name}_realm_id": left.realm_id,
                f"{link.right.name}_realm_id": right.realm_id,
            }
            connection.execute(insert(link.resource.table).values(**row))
            facts = {"given": str(right.name), "to": left.id, "by": actor.id}
            hub.log.tell(connection, "administration", left.id, facts)
            return get_row(connection, actor, link.resource, row["id"])

        return record(await hub.database.write(store), link.resource, 201)

    return create


def _take(link: Link) -> Answer:
    async def remove(request: Request) -> Response:
        actor = await authenticate(request)
        key = path_id(request, link.resource)
        hub = hub_of(request)
        table = link.resource.table

        def store(connection: Connection) -> dict[str, Any]:
            shown = get_row(connection, actor, link.resource, key)
            row = raw_row(connection, actor, link.resource, key)
            demand(actor, Action.DELETE, Realm(getattr(row, f"{link.left.name}_realm_id"), link.kind))
            _check_taking(connection, actor, link, row)
            connection.execute(delete(table).where(table.c.id == key))
            holder = getattr(row, f"{link.left.name}_id")
            facts = {"taken": getattr(row, f"{link.right.name}_id"), "from": holder, "by": actor.id}
            hub.log.tell(connection, "administration", holder, facts)
            return shown

        return record(await hub.database.write(store), link.resource, 202)

    return remove


def _check_fit(link: Link, left: Any, right: Any) -> None:
    if link.left is known.ROLE and left.built_in:
        raise Conflict(f"What the role '{left.name}' may do is fixed.", next_step="Make a role of your own.")
    if link.right is known.ROLE and right.target not in (None, link.left.name):
        raise wrong("roleId", f"The role '{right.name}' is for {right.target}s.", "Choose another role.")
    if right.realm_id is not None and right.realm_id != left.realm_id:
        raise Conflict(
            f"The {link.right.name} belongs to another realm than the {link.left.name}.",
            next_step=f"Choose a {link.right.name} of the same realm, or of the hub.",
        )


def _conferred(connection: Connection, link: Link, left: Any, right: Any) -> Rights:
    """What the gift confers, and upon whom."""
    if link.right is known.SCOPE:
        return Rights(left.realm_id, frozenset())
    what = of_role(connection, right) if link.right is known.ROLE else of_permission(right)
    holders = of_role(connection, left).holders if link.left is known.ROLE else frozenset({left.id})
    return Rights(left.realm_id, what.permissions, holders, what.everything)


def _check_taking(connection: Connection, actor: Actor, link: Link, row: Any) -> None:
    """Nobody takes from somebody who holds more than they do; the hub keeps an administrator."""
    if link.left is known.ROLE:
        role = connection.execute(select(roles).where(roles.c.id == row.role_id)).one()
        if role.built_in:
            raise Conflict(f"What the role '{role.name}' may do is fixed.", next_step="Make a role of your own.")
        return
    table = users if link.left is known.USER else clients
    holder = connection.execute(select(table).where(table.c.id == getattr(row, f"{link.left.name}_id"))).one()
    demand_over(connection, actor, "user" if link.left is known.USER else "client", holder)
    if link.resource is known.USER_ROLE:
        role = connection.execute(select(roles).where(roles.c.id == row.role_id)).one()
        if role.built_in and role.name == "admin":
            keep_an_admin(connection, row.user_id)


NAMED: Final = (
    Named("/auth/roles", known.ROLE, "role", frozenset(ROLES), NameBody, NameChanges),
    Named("/auth/permissions", known.PERMISSION, "permission", KNOWN, PermissionBody, PermissionChanges, at_home=False),
    Named("/auth/scopes", known.SCOPE, "scope", frozenset({"global", "openid"}), NameBody, NameChanges),
)
LINKS: Final = (
    Link("/auth/role-permissions", known.ROLE_PERMISSION, "role_permission", known.ROLE, known.PERMISSION),
    Link("/auth/user-permissions", known.USER_PERMISSION, "user_permission", known.USER, known.PERMISSION),
    Link("/auth/client-permissions", known.CLIENT_PERMISSION, "client_permission", known.CLIENT, known.PERMISSION),
    Link("/auth/user-roles", known.USER_ROLE, "user_role", known.USER, known.ROLE),
    Link("/auth/client-roles", known.CLIENT_ROLE, "client_role", known.CLIENT, known.ROLE),
    Link("/auth/client-scopes", known.CLIENT_SCOPE, "client_scope", known.CLIENT, known.SCOPE),
)
ROUTES: Final = [
    *(route for named in NAMED for route in named.routes()),
    *readable_routes("/auth/policies", known.POLICY),
    *(route for link in LINKS for route in link.routes()),
]
