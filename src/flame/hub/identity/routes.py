"""``/auth``: tokens, and the people, realms, roles and clients behind them; ``/core/user-keys``."""

from __future__ import annotations

import base64
import secrets
import time
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flame.crypto.keys import HybridPublicKey, PublicKey
from flame.hub.authorisation import ROLES, Action, Actor, Hub, Realm, demand
from flame.hub.columns import fresh, new_id, now
from flame.hub.identity import resources as known
from flame.hub.identity.passwords import hash_in_thread, matches
from flame.hub.identity.sessions import authenticate
from flame.hub.identity.tables import clients, realms, roles, sessions, used_assertions, user_keys, user_roles, users
from flame.hub.identity.tokens import peek_subject, verify_assertion
from flame.hub.limits import Attempts
from flame.hub.members.routes import register_member
from flame.hub.nodes.tables import enrolments, nodes
from flame.hub.problems import wrong
from flame.hub.resources import (
    Body,
    answer,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    read_bytes,
    readable_routes,
    record,
    text,
)
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict, Invalid, Malformed, NotAuthenticated
from flame.protocol.documents import MemberKind

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_attempts = Attempts(30)
_CLIENT_FAILED = "Client authentication failed"


class TokenRequest(msgspec.Struct):
    grant_type: str
    username: str = ""
    password: str = ""
    realm_id: str | None = None
    refresh_token: str = ""
    client_id: str = ""
    client_secret: str = ""
    client_assertion_type: str = ""
    client_assertion: str = ""


async def token(request: Request) -> Response:
    """``POST /auth/token``, JSON or form."""
    wanted = await _token_request(request)
    hub = hub_of(request)
    address = request.client.host if request.client else "unknown"
    name = f"{address}/{wanted.username or wanted.client_id}"
    _attempts.check(name)
    try:
        match wanted.grant_type:
            case "password":
                return await _by_password(hub, wanted)
            case "client_credentials":
                return await _by_client(hub, wanted)
            case "refresh_token":
                return await _by_refresh(hub, wanted)
    except (Invalid, NotAuthenticated):
        _attempts.failed(name)
        raise
    raise Invalid(f"The grant type '{wanted.grant_type[:40]}' is not known.")


async def _token_request(request: Request) -> TokenRequest:
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return await read_body(request, TokenRequest)
    try:
        fields = dict(parse_qsl((await read_bytes(request, 16 << 10)).decode("utf-8"), max_num_fields=32))
        return msgspec.convert(fields, TokenRequest)
    except (ValueError, msgspec.ValidationError) as error:
        raise Invalid(f"The form is not valid: {error}") from None


async def _by_password(hub: HubState, wanted: TokenRequest) -> Response:
    condition = (users.c.name == wanted.username) & users.c.active.is_(True)
    if wanted.realm_id:
        condition &= users.c.realm_id == wanted.realm_id
    found = await hub.database.read(lambda c: c.execute(select(users).where(condition).limit(9)).all())
    fitting = [row for row in found if await matches(row.password_hash, wanted.password)]
    if not found:
        await matches(None, wanted.password)
    if len(fitting) != 1:
        raise Invalid("The user credentials are invalid.", next_step="Check name and password.")
    return await _tokens(hub, "user", fitting[0].id)


async def _by_client(hub: HubState, wanted: TokenRequest) -> Response:
    if wanted.client_assertion:
        return await _by_assertion(hub, wanted)
    condition = (clients.c.id == wanted.client_id) & clients.c.active.is_(True)
    row = await hub.database.read(lambda c: c.execute(select(clients).where(condition)).first())
    if not await matches(row.secret_hash if row else None, wanted.client_secret) or row is None:
        raise NotAuthenticated(f"{_CLIENT_FAILED}.", next_step="Check client id and secret.")
    return await _tokens(hub, "client", row.id, refresh=False)


async def _by_assertion(hub: HubState, wanted: TokenRequest) -> Response:
    client_id = wanted.client_id or peek_subject(wanted.client_assertion) or ""
    if wanted.client_assertion_type != JWT_BEARER:
        raise NotAuthenticated(f"{_CLIENT_FAILED}: the assertion's type is not {JWT_BEARER}.")
    public = await hub.database.read(lambda c: _client_key(c, client_id))
    assertion = verify_assertion(wanted.client_assertion, client_id, public, "/auth/token")
    if assertion is None:
        raise NotAuthenticated(
            f"{_CLIENT_FAILED}: the assertion is not this node's, not for this hub, or too old.",
            next_step="Check the node's clock, and that its key is the one that was enrolled.",
        )
    await hub.database.write(lambda c: _use_once(c, client_id, assertion.id, assertion.expires))
    return await _tokens(hub, "client", client_id, refresh=False)


def _client_key(connection: Connection, client_id: str) -> PublicKey:
    active = select(clients.c.id).where(clients.c.active.is_(True))
    node = connection.execute(
        select(nodes).where(nodes.c.client_id == client_id, nodes.c.client_id.in_(active))
    ).first()
    if node is not None and node.enrolled:
        return PublicKey.from_hex_pem(node.public_key)
    if node is not None:
        waiting = select(enrolments.c.id).where(enrolments.c.node_id == node.id, enrolments.c.state == "pending")
        if connection.execute(waiting).first():
            raise NotAuthenticated(
                f"{_CLIENT_FAILED}: the enrolment of this node waits for an administrator's confirmation.",
                next_step="Read the fingerprint to the hub's administrator, who confirms it.",
                waiting="enrolment",
            )
    raise NotAuthenticated(f"{_CLIENT_FAILED}.", next_step="Enrol the node first: `flame node init`.")


def _use_once(connection: Connection, client_id: str, token_id: str, expires: int) -> None:
    connection.execute(delete(used_assertions).where(used_assertions.c.expires < time.time() - 60))
    there = select(used_assertions).where(used_assertions.c.client_id == client_id, used_assertions.c.jti == token_id)
    if connection.execute(there).first():
        raise NotAuthenticated(f"{_CLIENT_FAILED}: this assertion was used before.", next_step="Make a new one.")
    connection.execute(insert(used_assertions).values(client_id=client_id, jti=token_id, expires=expires))


async def _by_refresh(hub: HubState, wanted: TokenRequest) -> Response:
    try:
        claims = hub.tokens.read(wanted.refresh_token, "refresh")
    except NotAuthenticated:
        raise Invalid("The JWT is invalid.", next_step="Log in again.") from None
    access, _ = hub.tokens.issue("access", claims.kind, claims.subject, claims.session)
    renewed, token_id = hub.tokens.issue("refresh", claims.kind, claims.subject, claims.session)
    if not await hub.database.write(lambda c: _rotate(c, claims.session, claims.id, token_id)):
        raise Invalid("The JWT is invalid.", next_step="Log in again.")
    return _token_answer(hub, access, renewed)


def _rotate(connection: Connection, session: str, old: str, new: str) -> bool:
    """A refresh token counts once; one that comes again was copied, and ends the session."""
    row = connection.execute(select(sessions).where(sessions.c.id == session)).first()
    if row is None or row.revoked:
        return False
    if row.refresh_id != old:
        connection.execute(update(sessions).where(sessions.c.id == session).values(revoked=True))
        return False
    connection.execute(update(sessions).where(sessions.c.id == session).values(refresh_id=new))
    return True


async def _tokens(hub: HubState, kind: Literal["user", "client"], subject: str, *, refresh: bool = True) -> Response:
    session = new_id()
    access, _ = hub.tokens.issue("access", kind, subject, session)
    renewed, token_id = hub.tokens.issue("refresh", kind, subject, session) if refresh else (None, None)
    expires = int(time.time()) + (hub.tokens.refresh_seconds if refresh else hub.tokens.access_seconds)
    values = {"id": session, "kind": kind, "subject": subject, "refresh_id": token_id, "expires": expires}

    def store(connection: Connection) -> None:
        connection.execute(delete(sessions).where(sessions.c.subject == subject, sessions.c.expires < time.time()))
        connection.execute(insert(sessions).values(**values))

    await hub.database.write(store)
    return _token_answer(hub, access, renewed)


def _token_answer(hub: HubState, access: str, refresh: str | None) -> Response:
    content: dict[str, Any] = {
        "access_token": access,
        "expires_in": hub.tokens.access_seconds,
        "token_type": "Bearer",
        "scope": "global",
    }
    if refresh:
        content |= {"refresh_token": refresh, "refresh_token_expires_in": hub.tokens.refresh_seconds}
    response = answer(content)
    response.headers["cache-control"] = "no-store"
    return response


async def revoke(request: Request) -> Response:
    """``POST /auth/token/revoke``: end the session of the bearer."""
    await authenticate(request)
    hub = hub_of(request)
    session = hub.tokens.read(request.headers["authorization"].partition(" ")[2].strip(), "access").session
    await hub.database.write(lambda c: c.execute(update(sessions).where(sessions.c.id == session).values(revoked=True)))
    return answer(None, 202)


async def root(request: Request) -> Response:
    if "authorization" in request.headers:
        await authenticate(request)
    return answer({"timestamp": int(time.time() * 1000)})


async def userinfo(request: Request) -> Response:
    actor = await authenticate(request)
    content = {"sub": actor.id, "sub_kind": actor.kind, "sub_name": actor.name, "name": actor.name}
    return answer(content | {"realm_id": actor.realm, "roles": sorted(actor.roles), "node_id": actor.node})


# --------------------------------------------------------------------------------------------------------------- people


class RealmBody(Body):
    name: str | UnsetType = UNSET
    display_name: str | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET


class UserBody(Body):
    name: str | UnsetType = UNSET
    display_name: str | UnsetType | None = UNSET
    email: str | UnsetType | None = UNSET
    first_name: str | UnsetType | None = UNSET
    last_name: str | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    name_locked: bool | UnsetType = UNSET
    realm_id: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    roles: list[str] | UnsetType = UNSET


async def create_realm(request: Request) -> Response:
    actor = await authenticate(request)
    demand(actor, Action.CREATE, Hub())
    body = await read_body(request, RealmBody)
    row = fresh(**body.given() | {"name": text(body.name, "name", least=3, most=128), "built_in": False})

    def store(connection: Connection) -> dict[str, Any]:
        connection.execute(insert(realms).values(**row))
        return get_row(connection, actor, known.REALM, row["id"])

    return record(await hub_of(request).database.write(store), known.REALM, 201)


async def create_user(request: Request) -> Response:
    actor = await authenticate(request)
    body = await read_body(request, UserBody)
    realm = body.realm_id or actor.realm
    demand(actor, Action.CREATE, Realm(realm))
    values = body.given()
    names, password = values.pop("roles", []), values.pop("password", None)
    values |= {"name": text(body.name, "name", least=1, most=128), "realm_id": realm}
    values["password_hash"] = await hash_in_thread(_password(password)) if password else None
    row = fresh(**values)
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        _check_realm(connection, realm)
        connection.execute(insert(users).values(**row))
        _give_roles(connection, actor, row["id"], names)
        hub.log.tell(connection, "administration", row["id"], {"created": "user", "realm": realm, "by": actor.id})
        return get_row(connection, actor, known.USER, row["id"])

    return record(await hub.database.write(store), known.USER, 201)


async def update_user(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, known.USER)
    body = await read_body(request, UserBody)
    hub = hub_of(request)
    current = await hub.database.read(lambda c: raw_row(c, actor, known.USER, key))
    demand(actor, Action.UPDATE, Realm(current.realm_id))
    values = body.given()
    if "realm_id" in values:
        demand(actor, Action.UPDATE, Realm(values["realm_id"]))
    names, password = values.pop("roles", None), values.pop("password", None)
    if password:
        values["password_hash"] = await hash_in_thread(_password(password))

    def store(connection: Connection) -> dict[str, Any]:
        _protect_admin(connection, actor, key)
        connection.execute(update(users).where(users.c.id == key).values(**values, updated_at=now()))
        if names is not None:
            connection.execute(delete(user_roles).where(user_roles.c.user_id == key))
            _give_roles(connection, actor, key, names)
        if password or values.get("active") is False:
            connection.execute(update(sessions).where(sessions.c.subject == key).values(revoked=True))
        hub.log.tell(connection, "administration", key, {"changed": "user", "by": actor.id})
        return get_row(connection, actor, known.USER, key)

    return record(await hub.database.write(store), known.USER, 202)


def _password(given: str) -> str:
    return text(given, "password", least=8, most=512)


def _check_realm(connection: Connection, realm: str) -> None:
    if connection.execute(select(realms.c.id).where(realms.c.id == realm)).first() is None:
        raise wrong("realmId", "There is no such realm.")


def _protect_admin(connection: Connection, actor: Actor, user: str) -> None:
    """A realm's administrator does not take over an administrator of the hub."""
    held = select(roles.c.name).join(user_roles, user_roles.c.role_id == roles.c.id).where(user_roles.c.user_id == user)
    if "admin" in connection.execute(held).scalars().all():
        demand(actor, Action.UPDATE, Hub())


def _give_roles(connection: Connection, actor: Actor, user: str, names: list[str]) -> None:
    for name in dict.fromkeys(names):
        if name not in ROLES or name == "node":
            raise wrong("roles", f"There is no role '{name[:40]}' for people.", f"Known: {', '.join(sorted(ROLES))}.")
        if name == "admin":
            demand(actor, Action.CREATE, Hub())
        role = connection.execute(
            select(roles.c.id).where(roles.c.name == name, roles.c.built_in.is_(True))
        ).scalar_one()
        realm = connection.execute(select(users.c.realm_id).where(users.c.id == user)).scalar_one()
        connection.execute(insert(user_roles).values(**fresh(user_id=user, role_id=role, user_realm_id=realm)))


# ------------------------------------------------------------------------------------------------------- keys of people


class KeyBody(Body):
    kind: Literal["sign", "result"]
    public_key: str


async def create_key(request: Request) -> Response:
    """``POST /core/user-keys``: register one's own public key; it replaces the one before."""
    actor = await authenticate(request)
    if actor.kind != "user":
        raise Conflict("Keys of people are registered by people.")
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
        facts = {"kind": body.kind, "fingerprint": fingerprint}
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


def generated_password() -> str:
    return secrets.token_urlsafe(18)


ROUTES = [
    Route("/auth/", root, methods=["GET"]),
    Route("/auth/token", token, methods=["POST"]),
    Route("/auth//token", token, methods=["POST"]),
    Route("/auth/token/revoke", revoke, methods=["POST"]),
    Route("/auth/userinfo", userinfo, methods=["GET"]),
    *readable_routes("/auth/realms", known.REALM),
    *changing_routes("/auth/realms", create=create_realm),
    *readable_routes("/auth/users", known.USER),
    *changing_routes("/auth/users", create=create_user, update=update_user),
    *readable_routes("/auth/roles", known.ROLE),
    *readable_routes("/auth/user-roles", known.USER_ROLE),
    *readable_routes("/auth/clients", known.CLIENT),
    *readable_routes("/core/user-keys", known.USER_KEY),
    *changing_routes("/core/user-keys", create=create_key),
]
