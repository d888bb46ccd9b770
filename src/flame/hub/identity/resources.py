"""What clients may ask about realms, people, clients, roles and keys."""

from __future__ import annotations

from typing import Any

from sqlalchemy import literal

from flame.hub import authorisation as rules
from flame.hub.identity.tables import clients, realms, roles, user_keys, user_roles, users
from flame.hub.resources import Relation, Resource, Row


def _with_realm() -> dict[str, Relation]:
    return {"realm": Relation("realm_id", lambda: REALM)}


def _client(row: Row) -> Row:
    constants: dict[str, Any] = {
        "secretHashed": True,
        "secretEncrypted": False,
        "authMethod": "secret",
        "tokenBindingMethod": "none",
        "isConfidential": True,
        "redirectUri": None,
        "grantTypes": None,
        "scope": None,
        "baseUrl": None,
        "rootUrl": None,
        "backchannelLogoutUri": None,
        "postLogoutRedirectUri": None,
        "accessPolicyId": None,
    }
    return row | constants


REALM = Resource(
    "realm", realms, rules.readable_realms, filters=frozenset({"id", "name"}),
    sorts=frozenset({"id", "name", "createdAt", "updatedAt"}),
)  # fmt: skip
USER = Resource(
    "user", users, rules.readable_users, filters=frozenset({"id", "name", "realmId"}),
    sorts=frozenset({"id", "name", "createdAt", "updatedAt"}), relations=_with_realm(),
    secret=frozenset({"password_hash"}), extra=frozenset({"email"}),
    computed={"avatar": literal(None), "cover": literal(None), "status": literal(None)},
)  # fmt: skip
CLIENT = Resource(
    "client", clients, rules.readable_clients, filters=frozenset({"id", "name", "realmId"}),
    sorts=frozenset({"id", "name", "createdAt", "updatedAt"}), relations=_with_realm(),
    secret=frozenset({"secret_hash"}), finish=_client,
)  # fmt: skip
ROLE = Resource(
    "role", roles, rules.readable_roles, filters=frozenset({"id", "name", "realmId"}),
    sorts=frozenset({"id", "name", "createdAt", "updatedAt"}), relations=_with_realm(),
    computed={"client_id": literal(None)},
)  # fmt: skip
USER_ROLE = Resource(
    "user-role", user_roles, rules.readable_user_roles, filters=frozenset({"userId", "roleId"}),
    relations={"user": Relation("user_id", lambda: USER), "role": Relation("role_id", lambda: ROLE)},
)  # fmt: skip
USER_KEY = Resource(
    "user-key", user_keys, rules.readable_user_keys, filters=frozenset({"userId", "kind", "fingerprint"}),
    relations={"user": Relation("user_id", lambda: USER)},
)  # fmt: skip
