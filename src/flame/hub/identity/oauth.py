"""``/auth/token`` and what belongs to it: OAuth 2 for programs. The pages for people are in `flame.hub.identity.pages`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response

from flame.crypto.keys import PublicKey
from flame.hub.authorisation import Action, Actor, Realm, demand
from flame.hub.columns import new_id, now
from flame.hub.described import About, Described
from flame.hub.identity.clients import places
from flame.hub.identity.codes import (
    DEVICE_SECONDS,
    INTERVAL,
    Granted,
    Refusal,
    ask_for_device,
    is_spent_for,
    poll,
    redeem,
)
from flame.hub.identity.passwords import matches
from flame.hub.identity.resources import SESSION
from flame.hub.identity.sessions import actor_of, actor_of_subject, authenticate
from flame.hub.identity.tables import clients, permissions, realms, sessions, used_assertions, users
from flame.hub.identity.tokens import AUDIENCE, Claims, peek_subject, verify_assertion
from flame.hub.limits import Attempt, Attempts, LoginLimits, source_of
from flame.hub.nodes.tables import enrolments, nodes
from flame.hub.resources import (
    answer,
    changing_routes,
    get_row,
    path_id,
    read_body,
    read_bytes,
    readable_routes,
    record,
)
from flame.hub.state import HubState, hub_of
from flame.model.errors import FlameError, Invalid, NotAuthenticated, Unavailable

JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
DEVICE: Final = "urn:ietf:params:oauth:grant-type:device_code"
SCOPES: Final = frozenset({"global", "openid"})
_CLIENT_FAILED: Final = "Client authentication failed"
_assertions = Attempts(30)
_devices = Attempts(20)
login_limits = LoginLimits()
T = TypeVar("T", bound=msgspec.Struct)


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
    code: str = ""
    code_verifier: str = ""
    redirect_uri: str = ""
    device_code: str = ""
    scope: str = ""


class TokenAnswer(msgspec.Struct, omit_defaults=True):
    access_token: str
    expires_in: int
    token_type: str
    scope: str
    refresh_token: str = ""
    refresh_token_expires_in: int = 0
    id_token: str = ""


async def token(request: Request) -> Response:
    """Tokens for a password, a client's secret or signed assertion, a refresh token, a code, or a device."""
    wanted = await read_form(request, TokenRequest)
    grants: dict[str, Callable[[Request, HubState, TokenRequest], Any]] = {
        "password": _by_password,
        "client_credentials": _by_client,
        "refresh_token": _by_refresh,
        "authorization_code": _by_code,
        DEVICE: _by_device,
    }
    grant = grants.get(wanted.grant_type)
    if grant is None:
        known = f"Known: {', '.join(grants)}."
        raise Invalid("This grant type is not known.", next_step=known, error="unsupported_grant_type")
    try:
        answered: Response = await grant(request, hub_of(request), wanted)
    except FlameError as error:
        error.fields = {"error": _oauth_code(error)} | dict(error.fields)
        raise
    return answered


def _oauth_code(error: FlameError) -> str:
    if isinstance(error, NotAuthenticated):
        return "invalid_client"
    return "temporarily_unavailable" if isinstance(error, Unavailable) else "invalid_grant"


async def read_form(request: Request, kind: type[T]) -> T:
    """A body as JSON or as a form. Raises Invalid."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return await read_body(request, kind)
    try:
        text = (await read_bytes(request, 16 << 10)).decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=32, errors="strict")
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise Invalid("A field of the form is there twice.", error="invalid_request")
        return msgspec.convert(fields, kind)
    except (ValueError, msgspec.ValidationError) as error:
        raise Invalid(f"The form is not valid: {error}", error="invalid_request") from None


# ------------------------------------------------------------------------------------------------------------ passwords


async def _by_password(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    user, note = await check_password(request, wanted.username, wanted.password, wanted.realm_id)
    return await _tokens(hub, _Subject("user", user.id, user.realm_id), note=note)


async def check_password(
    request: Request, name: str, password: str, realm: str | None = None
) -> tuple[Any, Callable[[Connection], None]]:
    """The account with this name and password, and what the transaction of the log-in has to note. Raises Invalid, Unavailable."""
    hub = hub_of(request)
    attempt = _attempt(hub, request, "user", f"{realm or ''}/{name.casefold()}")
    condition = (users.c.name == name) & users.c.active.is_(True)
    if realm:
        condition &= users.c.realm_id == realm

    def look(connection: Connection) -> Any:
        login_limits.check(connection, attempt)
        return connection.execute(select(users).where(condition).limit(9)).all()

    with login_limits.watch(attempt):
        found = await hub.database.read(look)
        fitting = [row for row in found if await matches(row.password_hash, password)]
        if not found:
            await matches(None, password)
        if len(fitting) != 1:
            subject = found[0].id if len(found) == 1 else "unknown"
            await hub.database.write(lambda c: _failed(hub, c, attempt, "user", subject))
            raise Invalid("The user credentials are invalid.", next_step="Check name and password.")
    return fitting[0], lambda c: login_limits.succeeded(c, attempt)


def _failed(hub: HubState, connection: Connection, attempt: Attempt, kind: str, subject: str) -> None:
    """Count a failed log-in; whoever is shut out by it for a while stands in the log, without the source's address."""
    for limit in login_limits.failed(connection, attempt):
        hub.log.tell(connection, "lock-out", subject, {"kind": kind, "limit": limit})


def _attempt(hub: HubState, request: Request, kind: str, account: str) -> Attempt:
    source, mark = source_of(request), hub.tokens.mark
    return Attempt(mark("pair", source, kind, account), mark("source", source), mark("account", kind, account))


# -------------------------------------------------------------------------------------------------------------- clients


async def _by_client(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    if wanted.client_assertion:
        return await _by_assertion(request, hub, wanted)
    row, note = await _authenticated_client(request, wanted, "client_credentials")
    return await _tokens(hub, _Subject("client", row.id, row.realm_id, row.id), refresh=False, note=note)


async def _authenticated_client(
    request: Request, wanted: TokenRequest, grant: str
) -> tuple[Any, Callable[[Connection], None]]:
    """The client with this id and secret. Raises NotAuthenticated, Unavailable."""
    hub = hub_of(request)
    attempt = _attempt(hub, request, "client", wanted.client_id)

    def look(connection: Connection) -> Any:
        login_limits.check(connection, attempt)
        return find_client(connection, wanted.client_id)

    with login_limits.watch(attempt):
        row = await hub.database.read(look)
        fits = await matches(row.secret_hash if row else None, wanted.client_secret)
        if not fits or row is None or "tls" in (row.auth_method, row.token_binding_method):
            subject = row.id if row else "unknown"
            await hub.database.write(lambda c: _failed(hub, c, attempt, "client", subject))
            raise NotAuthenticated(f"{_CLIENT_FAILED}.", next_step="Check client id and secret.")
    _check_grant(row, grant)
    return row, lambda c: login_limits.succeeded(c, attempt)


def find_client(connection: Connection, client_id: str) -> Any:
    """An active client by its id; one of the hub's own also by its name. None: there is none."""
    named = (clients.c.name == client_id) & clients.c.built_in.is_(True)
    condition = ((clients.c.id == client_id) | named) & clients.c.active.is_(True)
    return connection.execute(select(clients).where(condition)).first()


def _check_grant(client: Any, grant: str) -> None:
    allowed = places(client.grant_types)
    if allowed and grant not in allowed:
        raise Invalid("This client may not ask in this way.", error="unauthorized_client")


async def _by_assertion(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    client_id = wanted.client_id or peek_subject(wanted.client_assertion) or ""
    name = f"{source_of(request)}/{client_id}"
    _assertions.check(name)
    try:
        return await _assertion_judged(hub, wanted, client_id)
    except NotAuthenticated:
        _assertions.failed(name)
        raise


async def _assertion_judged(hub: HubState, wanted: TokenRequest, client_id: str) -> Response:
    if wanted.client_assertion_type != JWT_BEARER:
        raise NotAuthenticated(f"{_CLIENT_FAILED}: the assertion's type is not {JWT_BEARER}.")
    public, realm = await hub.database.read(lambda c: _client_key(c, client_id))
    assertion = verify_assertion(wanted.client_assertion, client_id, public, "/auth/token")
    if assertion is None:
        raise NotAuthenticated(
            f"{_CLIENT_FAILED}: the assertion is not this node's, not for this hub, or too old.",
            next_step="Check the node's clock, and that its key is the one that was enrolled.",
        )
    await hub.database.write(lambda c: _use_once(c, client_id, assertion.id, assertion.expires))
    return await _tokens(hub, _Subject("client", client_id, realm, client_id), refresh=False)


def _client_key(connection: Connection, client_id: str) -> tuple[PublicKey, str]:
    active = select(clients.c.id).where(clients.c.active.is_(True))
    node = connection.execute(
        select(nodes).where(nodes.c.client_id == client_id, nodes.c.client_id.in_(active))
    ).first()
    if node is not None and node.enrolled:
        return PublicKey.from_hex_pem(node.public_key), node.realm_id
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


# ------------------------------------------------------------------------------------------------------ codes, devices


async def _client_of_person(
    request: Request, wanted: TokenRequest, grant: str
) -> tuple[Any, Callable[[Connection], None]]:
    """The client that acts for a person: a public one says who it is, any other proves it."""
    hub = hub_of(request)
    row = await hub.database.read(lambda c: find_client(c, wanted.client_id))
    if row is not None and not row.is_confidential and row.auth_method == "none":
        _check_grant(row, grant)
        return row, lambda c: None
    return await _authenticated_client(request, wanted, grant)


async def _by_code(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    client, note = await _client_of_person(request, wanted, "authorization_code")
    session = new_id()
    mark = hub.tokens.mark("code", wanted.code)

    def spend(connection: Connection) -> Granted | Refusal:
        found = redeem(connection, mark, client.id, wanted.redirect_uri, wanted.code_verifier, session)
        return _still_there(connection, found)

    found = await hub.database.write(spend)
    if isinstance(found, Refusal):
        raise Invalid("The code is not valid.", next_step="Log in again.", error="invalid_grant")
    subject = _Subject("user", found.user, found.realm, client.id, found.scope)
    identity = ""
    if "openid" in found.scope.split():
        more = {"nonce": found.nonce} if found.nonce else {}
        identity = hub.tokens.issue_id(f"{origin(request)}/auth", client.id, found.user, **more)

    def finish(connection: Connection) -> None:
        if not is_spent_for(connection, mark, session):
            raise Invalid("The code is not valid.", next_step="Log in again.", error="invalid_grant")
        note(connection)

    return await _tokens(hub, subject, session=session, note=finish, identity=identity)


async def _by_device(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    client, note = await _client_of_person(request, wanted, DEVICE)
    mark = hub.tokens.mark("device", wanted.device_code)

    def look(connection: Connection) -> Granted | Refusal:
        return _still_there(connection, poll(connection, mark, client.id, int(time.time())))

    found = await hub.database.write(look)
    if isinstance(found, Refusal):
        raise Invalid(found.message, next_step=found.next_step, code=found.error, error=found.error)
    return await _tokens(hub, _Subject("user", found.user, found.realm, client.id, found.scope), note=note)


def _still_there(connection: Connection, found: Granted | Refusal) -> Granted | Refusal:
    if isinstance(found, Granted):
        try:
            actor_of_subject(connection, "user", found.user)
        except NotAuthenticated:
            return Refusal("access_denied", "This account is not active.")
    return found


class DeviceRequest(msgspec.Struct):
    client_id: str
    scope: str = ""


class DeviceAnswer(msgspec.Struct):
    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


async def device_authorization(request: Request) -> Response:
    """A program without a browser asks for a log-in; a person allows it at `verification_uri`, with the code shown."""
    wanted = await read_form(request, DeviceRequest)
    source = source_of(request)
    _devices.check(source)
    _devices.failed(source)  # what is asked for without a log-in is counted, whatever becomes of it
    hub = hub_of(request)
    scope = checked_scope(wanted.scope)

    def store(connection: Connection) -> tuple[str, str] | None:
        client = find_client(connection, wanted.client_id)
        if client is None or DEVICE not in places(client.grant_types):
            return None
        return ask_for_device(connection, hub.tokens.mark, client.id, scope)

    made = await hub.database.write(store)
    if made is None:
        raise NotAuthenticated(f"{_CLIENT_FAILED}: no such client for devices.", error="invalid_client")
    page = f"{origin(request)}/auth/device"
    content = DeviceAnswer(made[0], made[1], page, f"{page}?user_code={made[1]}", DEVICE_SECONDS, INTERVAL)
    return _fresh(answer(content))


def checked_scope(text: str) -> str:
    """The scopes that are asked for. Raises Invalid for one that is not known."""
    wanted = text.split() or ["global"]
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown:
        raise Invalid(f"The scope '{unknown[0][:40]}' is not known.", error="invalid_scope")
    return " ".join(sorted(set(wanted)))


# ------------------------------------------------------------------------------------------------------------- sessions


@dataclass(frozen=True, slots=True)
class _Subject:
    kind: Literal["user", "client"]
    id: str
    realm: str
    client: str | None = None
    scope: str = "global"


async def _tokens(
    hub: HubState,
    subject: _Subject,
    *,
    refresh: bool = True,
    session: str | None = None,
    note: Callable[[Connection], None] | None = None,
    identity: str = "",
) -> Response:
    """A new session, and its first tokens."""
    session = session or new_id()
    access, _ = hub.tokens.issue("access", subject.kind, subject.id, session)
    renewed, token_id = hub.tokens.issue("refresh", subject.kind, subject.id, session) if refresh else ("", None)
    expires = int(time.time()) + (hub.tokens.refresh_seconds if refresh else hub.tokens.access_seconds)
    moment = now()
    values = {
        "id": session, "kind": subject.kind, "subject": subject.id, "refresh_id": token_id, "expires": expires,
        "scope": subject.scope, "client_id": subject.client, "realm_id": subject.realm,
        "created_at": moment, "updated_at": moment,
    }  # fmt: skip

    def store(connection: Connection) -> None:
        actor_of_subject(connection, subject.kind, subject.id)  # whoever was closed just now gets no session
        if note:
            note(connection)
        connection.execute(delete(sessions).where(sessions.c.subject == subject.id, sessions.c.expires < time.time()))
        connection.execute(insert(sessions).values(**values))

    await hub.database.write(store)
    return _token_answer(hub, access, renewed, subject.scope, identity)


async def _by_refresh(request: Request, hub: HubState, wanted: TokenRequest) -> Response:
    try:
        claims = hub.tokens.read(wanted.refresh_token, "refresh")
    except NotAuthenticated:
        raise _no_jwt() from None
    access, _ = hub.tokens.issue("access", claims.kind, claims.subject, claims.session)
    renewed, token_id = hub.tokens.issue("refresh", claims.kind, claims.subject, claims.session)
    scope = await hub.database.write(lambda c: _rotate(c, claims, token_id))
    if scope is None:
        raise _no_jwt()
    return _token_answer(hub, access, renewed, scope)


def _no_jwt() -> Invalid:
    return Invalid("The JWT is invalid.", next_step="Log in again.", error="invalid_grant")


def _rotate(connection: Connection, claims: Claims, new: str) -> str | None:
    """A refresh token counts once; one that comes again was copied, and ends the session. The session's scope."""
    here = sessions.c.id == claims.session
    wanted = select(sessions).where(here, sessions.c.subject == claims.subject).with_for_update()
    row = connection.execute(wanted).first()
    if row is None or row.revoked or row.expires < time.time():
        return None
    try:
        actor_of_subject(connection, claims.kind, claims.subject)
    except NotAuthenticated:
        return None
    if row.refresh_id != claims.id:
        connection.execute(update(sessions).where(here).values(revoked=True, updated_at=now()))
        return None
    connection.execute(update(sessions).where(here).values(refresh_id=new, updated_at=now()))
    return str(row.scope)


def _token_answer(hub: HubState, access: str, refresh: str, scope: str, identity: str = "") -> Response:
    life = hub.tokens.refresh_seconds if refresh else 0
    return _fresh(answer(TokenAnswer(access, hub.tokens.access_seconds, "Bearer", scope, refresh, life, identity)))


def _fresh(response: Response) -> Response:
    response.headers["cache-control"] = "no-store"
    return response


class TokenBody(msgspec.Struct):
    token: str = ""
    token_type_hint: str = ""


async def revoke(request: Request) -> Response:
    """End the session of a token (RFC 7009): who holds it may; without `token`, of the bearer. Unknown tokens are fine."""
    hub = hub_of(request)
    given = (await read_form(request, TokenBody)).token
    if not given:
        await authenticate(request)
        given = request.headers["authorization"].partition(" ")[2].strip()
    claims = _claims(hub, given)
    if claims is not None:
        here = sessions.c.id == claims.session
        await hub.database.write(
            lambda c: c.execute(update(sessions).where(here).values(revoked=True, updated_at=now()))
        )
    return _fresh(answer(None))


def _claims(hub: HubState, token: str) -> Claims | None:
    for use in ("access", "refresh"):
        try:
            return hub.tokens.read(token, use)
        except (Invalid, NotAuthenticated):
            continue
    return None


async def introspect(request: Request) -> Response:
    """What a token stands for (RFC 7662), for whoever has logged in; without `token`, the bearer's own."""
    await authenticate(request)
    hub = hub_of(request)
    given = (await read_form(request, TokenBody)).token if request.method == "POST" else ""
    given = given or request.headers["authorization"].partition(" ")[2].strip()
    claims = _claims(hub, given)
    if claims is None:
        return _fresh(answer({"active": False}))

    def look(connection: Connection) -> dict[str, Any]:
        try:
            actor = actor_of(connection, claims.kind, claims.subject, claims.session)
        except NotAuthenticated:
            return {"active": False}
        return _introspected(connection, actor, claims)

    return _fresh(answer(await hub.database.read(look)))


def _introspected(connection: Connection, actor: Actor, claims: Claims) -> dict[str, Any]:
    session = connection.execute(select(sessions).where(sessions.c.id == claims.session)).one()
    realm = connection.execute(select(realms.c.name).where(realms.c.id == actor.realm)).scalar_one()
    known = connection.execute(
        select(permissions.c.name, permissions.c.realm_id).where(
            permissions.c.name.in_(actor.permissions), permissions.c.built_in.is_(True)
        )
    )
    held = [{"name": row.name, "client_id": None, "realm_id": row.realm_id} for row in known]
    return {
        "active": True, "sub": actor.id, "sub_kind": actor.kind, "sub_name": actor.name, "realm_id": actor.realm,
        "realm_name": realm, "permissions": sorted(held, key=lambda one: str(one["name"])), "scope": session.scope,
        "client_id": session.client_id, "exp": claims.expires, "jti": claims.id, "token_type": "Bearer",
        "aud": AUDIENCE,
    }  # fmt: skip


async def userinfo(request: Request) -> Response:
    """Who the bearer is."""
    actor = await authenticate(request)
    content: dict[str, Any] = {"sub": actor.id, "sub_kind": actor.kind, "sub_name": actor.name, "name": actor.name}
    content |= {"realm_id": actor.realm, "roles": sorted(actor.roles), "permissions": sorted(actor.permissions)}
    return answer(content | {"node_id": actor.node})


async def root(request: Request) -> Response:
    """That the hub is there; with a bearer, that it is a good one."""
    if "authorization" in request.headers:
        await authenticate(request)
    return answer({"timestamp": int(time.time() * 1000)})


async def end_session(request: Request) -> Response:
    """End a session: one's own, or as an administrator one of the realm."""
    actor = await authenticate(request)
    key = path_id(request, SESSION)

    def store(connection: Connection) -> dict[str, Any]:
        shown = get_row(connection, actor, SESSION, key)
        if shown["subject"] != actor.id:
            demand(actor, Action.DELETE, Realm(shown["realmId"], "session"))
        connection.execute(delete(sessions).where(sessions.c.id == key))
        return shown

    return record(await hub_of(request).database.write(store), SESSION, 202)


# ------------------------------------------------------------------------------------------------------------ discovery


def origin(request: Request) -> str:
    """The hub's address as who asks has it."""
    return f"{request.url.scheme}://{request.url.netloc}"


async def discovery(request: Request) -> Response:
    """Where what is (OpenID Connect discovery, RFC 8414)."""
    base = f"{origin(request)}/auth"
    content: dict[str, Any] = {
        "issuer": base,
        "authorization_endpoint": f"{base}/authorize",
        "token_endpoint": f"{base}/token",
        "device_authorization_endpoint": f"{base}/device_authorization",
        "revocation_endpoint": f"{base}/token/revoke",
        "introspection_endpoint": f"{base}/token/introspect",
        "userinfo_endpoint": f"{base}/userinfo",
        "jwks_uri": f"{base}/jwks",
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": [
            "password",
            "client_credentials",
            "refresh_token",
            "authorization_code",
            DEVICE,
        ],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_post", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["Ed25519", "EdDSA"],
        "id_token_signing_alg_values_supported": ["Ed25519"],
        "subject_types_supported": ["public"],
        "scopes_supported": sorted(SCOPES),
        "authorization_response_iss_parameter_supported": True,
    }
    return answer(content)  # fmt: skip


async def jwks(request: Request) -> Response:
    """The key with which id tokens are signed."""
    return answer(hub_of(request).tokens.jwks)


_PUBLIC: Final = About(shape="flat", public=True)
_TOKEN: Final = About(TokenAnswer, "flat", body=TokenRequest, form=True, public=True)
_DISCOVERY: Final = ("/auth/.well-known/openid-configuration", "/.well-known/openid-configuration",
                     "/.well-known/oauth-authorization-server/auth")  # fmt: skip
ROUTES: Final = [
    Described("GET", "/auth/", root, _PUBLIC),
    Described("POST", "/auth/token", token, _TOKEN),
    Described("POST", "/auth//token", token, _TOKEN),
    Described("POST", "/auth/token/revoke", revoke, About(shape="nothing", body=TokenBody, form=True, public=True)),
    Described("POST", "/auth/token/introspect", introspect, About(shape="flat", body=TokenBody, form=True)),
    Described("GET", "/auth/token/introspect", introspect, About(shape="flat")),
    Described("GET", "/auth/userinfo", userinfo, About(shape="flat")),
    Described(
        "POST", "/auth/device_authorization", device_authorization,
        About(DeviceAnswer, "flat", body=DeviceRequest, form=True, public=True),
    ),
    *(Described("GET", path, discovery, _PUBLIC) for path in _DISCOVERY),
    Described("GET", "/auth/jwks", jwks, _PUBLIC),
    *readable_routes("/auth/sessions", SESSION),
    *changing_routes("/auth/sessions", remove=end_session, resource=SESSION),
]  # fmt: skip
