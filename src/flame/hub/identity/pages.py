"""The two plain pages for people: ``/auth/authorize`` (a web client's log-in) and ``/auth/device`` (a code from elsewhere).

No script, nothing from elsewhere, no session kept in the browser: a name and a password are typed for each decision. A
form counts only together with the cookie that came with it, and from this origin, so nobody logs somebody else in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from html import escape
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from flame.hub.described import About, Described, in_query
from flame.hub.identity.clients import places
from flame.hub.identity.codes import (
    CHALLENGE,
    Asked,
    decide_device,
    store_code,
    typed,
    waiting_device,
)
from flame.hub.identity.oauth import check_password, checked_scope, find_client, login_limits, origin, read_form
from flame.hub.identity.sessions import actor_of_subject
from flame.hub.identity.tables import clients
from flame.hub.limits import Attempt, source_of
from flame.hub.state import HubState, hub_of
from flame.model.errors import FlameError, Invalid, NotAllowed

COOKIE: Final = "flame_form"
_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:3rem auto;padding:0 1rem;color:#111;background:#fff}"
    "label{display:block;margin:1rem 0}input{display:block;width:100%;font:inherit;padding:.4rem;box-sizing:border-box}"
    "button{font:inherit;padding:.4rem 1rem;margin-right:.5rem}[role=alert]{color:#a00}"
)

_STYLE_HASH: Final = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


# ------------------------------------------------------------------------------------------------------- authorization


class Wanted(msgspec.Struct):
    """A request for a code, as the client's page sent it along."""

    client_id: str = ""
    redirect_uri: str = ""
    response_type: str = ""
    code_challenge: str = ""
    code_challenge_method: str = ""
    scope: str = ""
    state: str = ""
    nonce: str = ""
    response_mode: str = ""


class AuthorizeForm(Wanted):
    username: str = ""
    password: str = ""
    realm: str = ""
    form: str = ""
    decision: str = ""


async def show_authorize(request: Request) -> Response:
    """The log-in page of a web client (authorization code with PKCE, S256)."""
    wanted = _wanted(request)
    client = await _known_client(request, wanted)
    if refused := _refused(wanted):
        return _back(request, wanted, refused)
    return _authorize_page(request, wanted, client)


async def authorize(request: Request) -> Response:
    """The log-in itself: leads back to the client with a code, or shows the page again."""
    form = await read_form(request, AuthorizeForm)
    wanted = msgspec.convert({name: getattr(form, name) for name in Wanted.__struct_fields__}, Wanted)
    client = await _known_client(request, wanted)
    _demand_own_form(request, form.form)
    if refused := _refused(wanted):
        return _back(request, wanted, refused)
    if form.decision == "deny":
        return _back(request, wanted, {"error": "access_denied"})
    try:
        user, note = await check_password(request, form.username, form.password, form.realm or None)
    except FlameError as error:
        return _authorize_page(request, wanted, client, error)
    hub = hub_of(request)
    asked = Asked(
        client.id, wanted.redirect_uri, wanted.code_challenge, checked_scope(wanted.scope), wanted.nonce or None
    )

    def store(connection: Connection) -> str:
        actor_of_subject(connection, "user", user.id)
        note(connection)
        return store_code(connection, hub.tokens.mark, user.id, asked)

    code = await hub.database.write(store)
    return _back(request, wanted, {"code": code})


def _wanted(request: Request) -> Wanted:
    pairs = request.query_params.multi_items()
    fields = dict(pairs)
    if len(fields) != len(pairs) or any(len(value) > 2048 for value in fields.values()):
        raise Invalid("A parameter is there twice, or too long.", error="invalid_request")
    return msgspec.convert(fields, Wanted)


async def _known_client(request: Request, wanted: Wanted) -> Any:
    """The client, whose list holds exactly this address. Raises Invalid: nobody is sent to a place that is not known."""
    client = await hub_of(request).database.read(lambda c: find_client(c, wanted.client_id))
    allowed = places(client.grant_types) if client else []
    if client is None or (allowed and "authorization_code" not in allowed):
        raise Invalid("This program is not known here for log-ins.", error="invalid_client")
    if not wanted.redirect_uri or wanted.redirect_uri not in places(client.redirect_uri):
        raise Invalid("The program's address to return to is not the one registered.", error="invalid_request")
    return client


def _refused(wanted: Wanted) -> dict[str, str] | None:
    """What is wrong with a request whose address is good, in OAuth's words."""
    if wanted.response_type != "code" or wanted.response_mode not in ("", "query"):
        return {"error": "unsupported_response_type"}
    if wanted.code_challenge_method != "S256" or not CHALLENGE.fullmatch(wanted.code_challenge):
        return {"error": "invalid_request", "error_description": "PKCE with S256 is needed."}
    try:
        checked_scope(wanted.scope)
    except Invalid:
        return {"error": "invalid_scope"}
    return {"error": "invalid_request"} if len(wanted.nonce) > 256 else None


def _back(request: Request, wanted: Wanted, said: Mapping[str, str]) -> Response:
    """Lead back to the client."""
    fields = dict(said) | ({"state": wanted.state} if wanted.state else {}) | {"iss": f"{origin(request)}/auth"}
    joint = "&" if urlsplit(wanted.redirect_uri).query else "?"
    response = RedirectResponse(f"{wanted.redirect_uri}{joint}{urlencode(fields)}", 303)
    return _protected(response)


def _authorize_page(request: Request, wanted: Wanted, client: Any, error: FlameError | None = None) -> Response:
    kept = {name: getattr(wanted, name) for name in Wanted.__struct_fields__}
    place = urlsplit(wanted.redirect_uri)
    name = escape(client.display_name or client.name)
    body = (
        f"<h1>Log in</h1><p><strong>{name}</strong> at {escape(place.netloc)} asks who you are, "
        "and will act for you.</p>"
        f"{_alert(error)}<form method=post action=/auth/authorize>{_hidden(kept)}{_mark(request)}{_CREDENTIALS}"
        "<button name=decision value=allow>Log in</button><button name=decision value=deny formnovalidate>Cancel</button>"
        "</form>"
    )
    return _page(request, "Log in", body, error, f"{place.scheme}://{place.netloc}")


# -------------------------------------------------------------------------------------------------------------- devices


class DeviceForm(msgspec.Struct):
    user_code: str = ""
    username: str = ""
    password: str = ""
    realm: str = ""
    form: str = ""
    decision: str = ""


async def show_device(request: Request) -> Response:
    """The page on which a code is entered that another machine shows."""
    return _code_page(request, typed(request.query_params.get("user_code", "")))


async def device(request: Request) -> Response:
    """A code was entered: show who asks; then, with name and password, allow it or not."""
    form = await read_form(request, DeviceForm)
    _demand_own_form(request, form.form)
    hub = hub_of(request)
    try:
        waiting, client = await _waiting(request, hub, form.user_code)
    except FlameError as error:
        return _code_page(request, "", error)
    if form.decision not in ("allow", "deny"):
        return _decision_page(request, form.user_code, client)
    try:
        user, note = await check_password(request, form.username, form.password, form.realm or None)
    except FlameError as error:
        return _decision_page(request, form.user_code, client, error)

    def store(connection: Connection) -> bool:
        actor_of_subject(connection, "user", user.id)
        note(connection)
        return decide_device(connection, waiting.device_hash, user.id, allowed=form.decision == "allow")

    if not await hub.database.write(store):
        return _code_page(request, "", Invalid("This code was used already."))
    said = "is logged in now; go back to it" if form.decision == "allow" else "was refused"
    return _page(request, "Done", f"<h1>Done</h1><p>{escape(client)} {said}. You can close this page.</p>")


async def _waiting(request: Request, hub: HubState, code: str) -> tuple[Any, str]:
    """The request under a code, and its program's name. Raises Invalid; Unavailable after too many wrong codes."""
    source, mark = source_of(request), hub.tokens.mark
    attempt = Attempt(
        mark("pair", source, "device"), mark("source", source, "device"), mark("account", source, "device")
    )

    def look(connection: Connection) -> tuple[Any, str] | None:
        login_limits.check(connection, attempt)
        found = waiting_device(connection, mark, code)
        if found is None:
            return None
        row = connection.execute(clients.select().where(clients.c.id == found.client_id)).one()
        return found, row.display_name or row.name

    with login_limits.watch(attempt):
        found = await hub.database.read(look)
        if found is None:
            await hub.database.write(lambda c: login_limits.failed(c, attempt))
            raise Invalid("No log-in waits under this code.", next_step="Check the code, or start again.")
    return found


def _code_page(request: Request, code: str, error: FlameError | None = None) -> Response:
    shown = f"{code[:4]}-{code[4:8]}" if code else ""
    body = (
        f"<h1>Log in another device</h1>{_alert(error)}<form method=post action=/auth/device>{_mark(request)}"
        "<label>The code that it shows<input name=user_code autocomplete=off autocapitalize=characters maxlength=20 "
        f'required value="{escape(shown)}"></label><button>Go on</button></form>'
    )
    return _page(request, "Log in another device", body, error)


def _decision_page(request: Request, code: str, client: str, error: FlameError | None = None) -> Response:
    body = (
        f"<h1>Log in another device</h1><p><strong>{escape(client)}</strong> wants to act for you, under the code "
        f"{escape(typed(code)[:8])}. Allow it only if you have started this yourself, just now.</p>"
        f"{_alert(error)}<form method=post action=/auth/device>{_hidden({'user_code': typed(code)})}{_mark(request)}{_CREDENTIALS}"
        "<button name=decision value=allow>Allow</button><button name=decision value=deny>Refuse</button></form>"
    )
    return _page(request, "Log in another device", body, error)


# ------------------------------------------------------------------------------------------------------ what both share

_CREDENTIALS: Final = (
    "<label>Name<input name=username autocomplete=username required maxlength=128></label>"
    "<label>Password<input name=password type=password autocomplete=current-password required maxlength=512></label>"
)


def _alert(error: FlameError | None) -> str:
    return f"<p role=alert>{escape(str(error))}</p>" if error else ""


def _hidden(fields: Mapping[str, str]) -> str:
    return "".join(f'<input type=hidden name="{escape(n)}" value="{escape(v)}">' for n, v in fields.items() if v)


def _seed(request: Request) -> str:
    """What the cookie holds: the browser's own, or a new one."""
    if not hasattr(request.state, "form_seed"):
        given = request.cookies.get(COOKIE, "")
        request.state.form_seed = given if len(given) == 43 else secrets.token_urlsafe(32)
    return str(request.state.form_seed)


def _mark(request: Request) -> str:
    return _hidden({"form": hub_of(request).tokens.mark("form", _seed(request))})


def _page(request: Request, title: str, body: str, error: FlameError | None = None, leads_to: str = "") -> Response:
    """A page, and the cookie that its form's mark was made from."""
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)} – FLAME</title><style>{_STYLE}</style><main>{body}</main></html>"
    )
    status = 200 if error is None else 429 if "retryAfter" in error.fields else error.status
    response = Response(page, status, media_type="text/html")
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, _seed(request), path="/auth", httponly=True, samesite="strict", secure=secure)
    return _protected(response, leads_to)


def _protected(response: Response, leads_to: str = "") -> Response:
    """Nothing runs, nothing is loaded, nothing frames it; the form leads here, and on to the client."""
    response.headers["content-security-policy"] = (
        f"default-src 'none'; style-src '{_STYLE_HASH}'; form-action 'self' {leads_to}; base-uri 'none'; "
        "frame-ancestors 'none'"
    ).replace(" ;", ";")
    response.headers["x-frame-options"] = "DENY"
    response.headers["x-content-type-options"] = "nosniff"
    response.headers["referrer-policy"] = "same-origin"  # without any, a browser hides the origin of its own forms
    response.headers["cache-control"] = "no-store"
    return response


def _demand_own_form(request: Request, given: str) -> None:
    """Raises NotAllowed for a form that this browser did not get from here."""
    seed = request.cookies.get(COOKIE, "")
    expected = hub_of(request).tokens.mark("form", seed)
    theirs = request.headers.get("origin")
    elsewhere = theirs is not None and urlsplit(theirs).netloc != request.url.netloc
    if not seed or elsewhere or not hmac.compare_digest(given, expected):
        raise NotAllowed("This form is not from this page.", next_step="Open the page again, with cookies.")


_HTML: Final = ("text/html",)
_ASKED: Final = {name: in_query(maxLength=2048) for name in Wanted.__struct_fields__}
ROUTES: Final = [
    Described("GET", "/auth/authorize", show_authorize, About(shape="bytes", media=_HTML, query=_ASKED, public=True)),
    Described(
        "POST", "/auth/authorize", authorize,
        About(shape="bytes", media=_HTML, body=AuthorizeForm, form=True, public=True),
    ),
    Described(
        "GET", "/auth/device", show_device,
        About(shape="bytes", media=_HTML, query={"user_code": in_query(maxLength=64)}, public=True),
    ),
    Described(
        "POST", "/auth/device", device, About(shape="bytes", media=_HTML, body=DeviceForm, form=True, public=True)
    ),
]  # fmt: skip
