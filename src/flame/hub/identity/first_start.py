"""What stands in an empty hub: realm, roles, the first admin, the first image."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from flame.hub.audit.log import AuditLog
from flame.hub.authorisation import ROLES
from flame.hub.columns import fresh
from flame.hub.identity.passwords import hash_secret
from flame.hub.identity.routes import generated_password
from flame.hub.identity.tables import realms, roles, user_roles, users
from flame.hub.registry.routes import FIRST_IMAGE, add_image

MASTER = "master"
ADMIN = "admin"


def first_start(connection: Connection, log: AuditLog, password: str | None) -> str | None:
    """Fill an empty hub. Returns the admin's password when it was generated here; None when nothing was to do."""
    if connection.execute(select(realms.c.id)).first():
        return None
    given = password or generated_password()
    realm = fresh(name=MASTER, display_name="Master", built_in=True)
    connection.execute(insert(realms).values(**realm))
    held = {}
    for name, description in ROLES.items():
        row = fresh(name=name, display_name=name, description=description, realm_id=None, target=None)
        connection.execute(insert(roles).values(**row))
        held[name] = row["id"]
    user = fresh(name=ADMIN, display_name=ADMIN, realm_id=realm["id"], password_hash=hash_secret(given))
    connection.execute(insert(users).values(**user))
    connection.execute(insert(user_roles).values(**fresh(user_id=user["id"], role_id=held["admin"])))
    add_image(connection, FIRST_IMAGE, None)
    log.tell(connection, "administration", realm["id"], {"created": "hub"})
    return None if password else given
