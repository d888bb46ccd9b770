"""What clients may ask about realms, people, clients, roles, permissions, who holds which, sessions and keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import ColumnElement, Table, literal

from flame.hub import authorisation as rules
from flame.hub.authorisation import Actor
from flame.hub.identity import tables
from flame.hub.identity.tables import clients, realms, roles, sessions, user_keys, users
from flame.hub.resources import Relation, Resource

_NAMED: Final = frozenset({"id", "name", "displayName", "realmId"})
_SORTS: Final = frozenset({"id", "name", "displayName", "createdAt", "updatedAt"})
_TIMES: Final = frozenset({"id", "createdAt", "updatedAt"})


def _with_realm() -> dict[str, Relation]:
    return {"realm": Relation("realm_id", lambda: REALM)}


REALM = Resource(
    "realm", realms, rules.readable_realms, filters=frozenset({"id", "name", "displayName", "builtIn"}), sorts=_SORTS
)
USER = Resource(
    "user", users, rules.readable_users, filters=_NAMED | {"active"}, sorts=_SORTS, relations=_with_realm(),
    secret=frozenset({"password_hash"}), extra=frozenset({"email"}),
    computed={"avatar": literal(None), "cover": literal(None), "status": literal(None)},
)  # fmt: skip
CLIENT = Resource(
    "client", clients, rules.readable_clients, filters=_NAMED | {"active", "builtIn"}, sorts=_SORTS,
    relations=_with_realm(), secret=frozenset({"secret_hash"}),
    constant={"secretHashed": True, "secretEncrypted": False, "accessPolicyId": None},
)  # fmt: skip
ROLE = Resource(
    "role", roles, rules.readable_roles, filters=_NAMED | {"builtIn", "target"}, sorts=_SORTS,
    relations=_with_realm(), constant={"clientId": None},
)  # fmt: skip
PERMISSION = Resource(
    "permission", tables.permissions, rules.readable_permissions, filters=_NAMED | {"builtIn"}, sorts=_SORTS,
    relations=_with_realm(), constant={"clientId": None, "decisionStrategy": None},
)  # fmt: skip
POLICY = Resource(
    "policy", tables.policies, rules.readable_policies, filters=_NAMED | {"builtIn", "type"}, sorts=_SORTS,
    relations=_with_realm(),
)  # fmt: skip
SCOPE = Resource(
    "scope", tables.scopes, rules.readable_scopes, filters=_NAMED | {"builtIn"}, sorts=_SORTS, relations=_with_realm()
)
USER_ATTRIBUTE = Resource(
    "user-attribute", tables.user_attributes, rules.readable_user_attributes,
    filters=frozenset({"id", "name", "userId", "realmId"}), sorts=_TIMES | {"name"},
    relations=_with_realm() | {"user": Relation("user_id", lambda: USER)},
)  # fmt: skip
SESSION = Resource(
    "session", sessions, rules.readable_sessions, filters=frozenset({"id", "subject", "kind", "clientId", "revoked"}),
    sorts=_TIMES | {"expires"}, secret=frozenset({"refresh_id"}), relations={
        "client": Relation("client_id", lambda: CLIENT), "realm": Relation("realm_id", lambda: REALM),
    },
)  # fmt: skip

_ONES: Final[Mapping[str, Callable[[], Resource]]] = {
    "user": lambda: USER,
    "client": lambda: CLIENT,
    "role": lambda: ROLE,
    "permission": lambda: PERMISSION,
    "scope": lambda: SCOPE,
}


def _link(table: Table, left: str, right: str, readable: Callable[[Actor], ColumnElement[bool]]) -> Resource:
    """Who holds which: both sides and their realms may be included and filtered by."""
    sides = {side: Relation(f"{side}_id", _ONES[side]) for side in (left, right)}
    places = {f"{side}Realm": Relation(f"{side}_realm_id", lambda: REALM) for side in (left, right)}
    filters = frozenset({"id", *(f"{side}{suffix}" for side in (left, right) for suffix in ("Id", "RealmId"))})
    return Resource(f"{left}-{right}", table, readable, filters=filters, sorts=_TIMES, relations=sides | places)


ROLE_PERMISSION = _link(tables.role_permissions, "role", "permission", rules.readable_role_permissions)
USER_PERMISSION = _link(tables.user_permissions, "user", "permission", rules.readable_user_permissions)
CLIENT_PERMISSION = _link(tables.client_permissions, "client", "permission", rules.readable_client_permissions)
USER_ROLE = _link(tables.user_roles, "user", "role", rules.readable_user_roles)
CLIENT_ROLE = _link(tables.client_roles, "client", "role", rules.readable_client_roles)
CLIENT_SCOPE = _link(tables.client_scopes, "client", "scope", rules.readable_client_scopes)

USER_KEY = Resource(
    "user-key", user_keys, rules.readable_user_keys, filters=frozenset({"userId", "kind", "fingerprint"}),
    relations={"user": Relation("user_id", lambda: USER)},
)  # fmt: skip
