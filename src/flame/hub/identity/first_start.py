"""What stands in an empty hub: realm, roles, permissions, the first admin, the first image."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Table, insert, select

from flame.hub.audit.log import AuditLog
from flame.hub.columns import fresh
from flame.hub.identity.passwords import generated_password, hash_secret
from flame.hub.identity.permissions import HELD, KNOWN, OF_CLIENTS, ROLES
from flame.hub.identity.tables import (
    clients,
    permissions,
    policies,
    realms,
    role_permissions,
    roles,
    scopes,
    user_roles,
    users,
)
from flame.hub.registry.routes import FIRST_IMAGE, add_image

MASTER: Final = "master"
ADMIN: Final = "admin"
COMMAND_LINE: Final = "flame-cli"
WEB: Final = "flame-web"
_CLIENTS: Final = {
    COMMAND_LINE: ("The command line: `flame login`", "urn:ietf:params:oauth:grant-type:device_code refresh_token"),
    WEB: ("The pages of this hub", "authorization_code refresh_token"),
}
_SCOPES: Final = {"global": "everything that one may do", "openid": "who one is, as an id token"}
_POLICY: Final = "What a permission reaches: one's own, one's realm, or as an admin the hub. It is fixed."


def first_start(connection: Connection, log: AuditLog, password: str | None) -> str | None:
    """Fill an empty hub. Returns the admin's password when it was generated here; None when nothing was to do."""
    if connection.execute(select(realms.c.id)).first():
        complete(connection)
        return None
    given = password or generated_password()
    realm = fresh(name=MASTER, display_name="Master", built_in=True)
    connection.execute(insert(realms).values(**realm))
    held = complete(connection)
    user = fresh(name=ADMIN, display_name=ADMIN, realm_id=realm["id"], password_hash=hash_secret(given))
    connection.execute(insert(users).values(**user))
    link = fresh(user_id=user["id"], role_id=held["admin"], user_realm_id=realm["id"])
    connection.execute(insert(user_roles).values(**link))
    add_image(connection, FIRST_IMAGE, None)
    log.tell(connection, "administration", realm["id"], {"created": "hub"})
    return None if password else given


def complete(connection: Connection) -> dict[str, str]:
    """Make sure that the default roles, permissions and clients of this release are there; role -> its id."""
    realm = connection.execute(select(realms.c.id).where(realms.c.built_in.is_(True))).scalar_one()
    policy = {"type": "builtIn", "built_in": True, "description": _POLICY}
    _add(connection, policies, {"system.default": policy})
    names = {name: {"built_in": True, "display_name": name} for name in sorted(KNOWN)}
    known = _add(connection, permissions, names)
    held = _add(connection, roles, {name: _role(name) for name in ROLES})
    _add(connection, scopes, {name: {"built_in": True, "description": text} for name, text in _SCOPES.items()})
    _add(connection, clients, {name: _client(name, realm) for name in _CLIENTS})
    there = {
        tuple(row) for row in connection.execute(select(role_permissions.c.role_id, role_permissions.c.permission_id))
    }
    pairs = {(held[role], known[name]) for role, names in HELD.items() for name in names}
    for role, permission in sorted(pairs - there):
        connection.execute(insert(role_permissions).values(**fresh(role_id=role, permission_id=permission)))
    return held


def _role(name: str) -> dict[str, Any]:
    target = "client" if name in OF_CLIENTS else "user"
    return {"built_in": True, "display_name": name, "description": ROLES[name], "target": target}


def _client(name: str, realm: str) -> dict[str, Any]:
    text, grants = _CLIENTS[name]
    return {
        "built_in": True, "display_name": text, "realm_id": realm, "is_confidential": False, "auth_method": "none",
        "grant_types": grants, "scope": "global openid",
    }  # fmt: skip


def _add(connection: Connection, table: Table, wanted: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Add what is missing of the built-in rows of a table; name -> id of all of them."""
    found = connection.execute(select(table.c.name, table.c.id).where(table.c.built_in.is_(True)))
    known = {row.name: row.id for row in found}
    new = [fresh(name=name, **values) for name, values in wanted.items() if name not in known]
    if new:
        connection.execute(insert(table), new)
    return known | {row["name"]: row["id"] for row in new}
