"""The node's local interface: JSON over HTTP on 127.0.0.1, for its stewards' commands and pages.

A request needs a loopback Host (so that no web site reaches it by a name of its own), no foreign Origin, a steward's
bearer token, and JSON as its content type where it changes something. There are no cookies, so nothing to forge.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from flame.model.errors import FlameError, Invalid, NotAllowed, NotAuthenticated, NotFound
from flame.node.local.port import NodeService
from flame.node.local.stewards import Account, Accounts

MAX_BODY: Final = 256 << 10
PREFIX: Final = "/api"

_LOOPBACK: Final = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?")
_ACCOUNT: Final = web.RequestKey("account", Account)
_log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def app(service: NodeService, accounts: Accounts) -> web.Application:
    """The interface of one node. Its routes are those of ``NodeService``, one to one."""
    application = web.Application(
        client_max_size=MAX_BODY, middlewares=[_problems, _same_machine, _authenticated(accounts)]
    )
    calls = _Calls(service)
    application.add_routes(
        [
            web.get(f"{PREFIX}/status", calls.status),
            web.get(f"{PREFIX}/analyses", calls.analyses),
            web.get(f"{PREFIX}/analyses/{{id}}", calls.analysis),
            web.get(f"{PREFIX}/analyses/{{id}}/code", calls.code),
            web.post(f"{PREFIX}/analyses/{{id}}/decision", calls.decide),
            web.post(f"{PREFIX}/analyses/{{id}}/start", calls.start),
            web.get(f"{PREFIX}/projects", calls.projects),
            web.get(f"{PREFIX}/projects/{{id}}", calls.project),
            web.post(f"{PREFIX}/projects/{{id}}/decision", calls.decide_project),
            web.post(f"{PREFIX}/projects/{{id}}/comment", calls.comment_project),
            web.get(f"{PREFIX}/members", calls.members),
            web.post(f"{PREFIX}/members", calls.confirm),
            web.post(f"{PREFIX}/members/revocation", calls.revoke),
            web.get(f"{PREFIX}/keys", calls.keys),
            web.post(f"{PREFIX}/keys/rotation", calls.rotate_key),
            web.get(f"{PREFIX}/runs", calls.runs),
            web.get(f"{PREFIX}/runs/{{id}}", calls.run),
            web.get(f"{PREFIX}/runs/{{id}}/output", calls.output),
            web.post(f"{PREFIX}/runs/{{id}}/stop", calls.stop),
            web.get(f"{PREFIX}/releases", calls.releases),
            web.post(f"{PREFIX}/releases/{{id}}/decision", calls.release),
        ]
    )
    return application


async def serve_local(service: NodeService, accounts: Accounts, port: int = 0) -> tuple[web.AppRunner, str]:
    """Serve on 127.0.0.1; port 0 takes a free one. Returns the runner, which ``cleanup()`` ends, and the URL."""
    runner = web.AppRunner(app(service, accounts), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


class _Calls:
    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def status(self, request: web.Request) -> web.Response:
        account = _account(request)
        return _json({**await self._service.status(), "account": {"name": account.name, "role": account.role}})

    async def analyses(self, request: web.Request) -> web.Response:
        return _json(await self._service.analyses())

    async def analysis(self, request: web.Request) -> web.Response:
        return _json(await self._service.analysis(_id(request)))

    async def code(self, request: web.Request) -> web.Response:
        return _json(await self._service.code(_id(request)))

    async def decide(self, request: web.Request) -> web.Response:
        steward = _steward(request, "decides about an analysis")
        body = await _body(request, {"decision", "comment", "days", "confirmUnsigned", "digest", "conditions"})
        decision = _choice(body, "decision", ("approved", "rejected"))
        days = _days(body)
        conditions = body.get("conditions", {})
        if not isinstance(conditions, dict) or len(conditions) > 32:
            raise Invalid("'conditions' is not an object.", field="conditions")
        unsigned = body.get("confirmUnsigned", False)
        if not isinstance(unsigned, bool):
            raise Invalid("'confirmUnsigned' is not true or false.", field="confirmUnsigned")
        comment, seen = _text(body, "comment"), _text(body, "digest")
        if decision == "approved" and not seen:
            raise Invalid(
                "An approval names the digest of what the steward has looked at.",
                next_step="Send 'digest' as GET /api/analyses/:id shows it.",
                field="digest",
            )
        return _json(
            await self._service.decide(_id(request), decision, steward, comment, days, unsigned, seen, conditions)
        )

    async def start(self, request: web.Request) -> web.Response:
        await _body(request, set())
        return _json(await self._service.start(_id(request), _account(request).name))

    async def projects(self, request: web.Request) -> web.Response:
        return _json(await self._service.projects())

    async def decide_project(self, request: web.Request) -> web.Response:
        steward = _steward(request, "decides about a project")
        body = await _body(request, {"decision", "comment", "digest", "days"})
        decision = _choice(body, "decision", ("approved", "rejected"))
        comment, seen = _text(body, "comment"), _text(body, "digest")
        return _json(await self._service.decide_project(_id(request), decision, steward, comment, seen, _days(body)))

    async def project(self, request: web.Request) -> web.Response:
        return _json(await self._service.project(_id(request)))

    async def comment_project(self, request: web.Request) -> web.Response:
        _steward(request, "comments on a project")
        body = await _body(request, {"comment"})
        return _json(await self._service.comment_project(_id(request), _text(body, "comment")))

    async def members(self, request: web.Request) -> web.Response:
        return _json(await self._service.members())

    async def confirm(self, request: web.Request) -> web.Response:
        steward = _steward(request, "confirms a member")
        body = await _body(request, {"fingerprint", "kind", "name"})
        fingerprint = _text(body, "fingerprint").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            raise Invalid(
                "'fingerprint' is not 64 hex digits.",
                next_step="Read it out over the telephone, all of it.",
                field="fingerprint",
            )
        kind, name = _text(body, "kind"), _text(body, "name")
        return _json(await self._service.confirm(fingerprint, kind, name, steward))

    async def revoke(self, request: web.Request) -> web.Response:
        steward = _steward(request, "revokes a member")
        body = await _body(request, {"member", "reason"})
        return _json(await self._service.revoke(_text(body, "member"), _text(body, "reason"), steward))

    async def keys(self, request: web.Request) -> web.Response:
        return _json(await self._service.keys())

    async def rotate_key(self, request: web.Request) -> web.Response:
        await _body(request, set())
        return _json(await self._service.rotate_key(_account(request).name))

    async def runs(self, request: web.Request) -> web.Response:
        return _json(await self._service.runs())

    async def run(self, request: web.Request) -> web.Response:
        return _json(await self._service.run(_id(request)))

    async def output(self, request: web.Request) -> web.Response:
        _steward(request, "reads what a program printed: it may show data")
        return _json({"output": await self._service.output(_id(request))})

    async def stop(self, request: web.Request) -> web.Response:
        body = await _body(request, {"reason"})
        return _json(await self._service.stop(_id(request), _account(request).name, _text(body, "reason")))

    async def releases(self, request: web.Request) -> web.Response:
        return _json(await self._service.releases())

    async def release(self, request: web.Request) -> web.Response:
        steward = _steward(request, "lets a result leave")
        body = await _body(request, {"decision"})
        return _json(
            await self._service.release(_id(request), _choice(body, "decision", ("released", "rejected")), steward)
        )


@web.middleware
async def _problems(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """The one place that turns an error into a response."""
    try:
        response = await handler(request)
    except FlameError as error:
        response = _problem(error.status, error.code, error.message, error.next_step)
    except web.HTTPException as error:
        response = _problem(
            error.status,
            "bad_request" if error.status != 404 else "entity_not_found",
            error.reason,
            "Check address and method.",
        )
    except Exception:  # noqa: BLE001 - the log is told, the caller learns nothing of the node's inside
        _log.exception("The local interface failed on %s.", request.method)
        response = _problem(500, "internal", "The node failed on this request.", "Look into the node's log.")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@web.middleware
async def _same_machine(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """No web page that a steward happens to look at may speak to the node."""
    if not _LOOPBACK.fullmatch(request.headers.get("Host", "")):
        raise NotAllowed(
            "The request names a host that is not this machine.", next_step="Use the address in node.json as it stands."
        )
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{request.headers['Host']}":
        raise NotAllowed(
            "The request comes from a page of another origin.", next_step="Use the node's own pages or commands."
        )
    if request.method not in ("GET", "HEAD") and request.content_type != "application/json":
        raise NotAllowed(
            "A request that changes something is sent as application/json.", next_step="Set its Content-Type."
        )
    return await handler(request)


def _authenticated(accounts: Accounts) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = accounts.find(token.strip()) if scheme.lower() == "bearer" and token else None
        if account is None:
            raise NotAuthenticated(
                "The request carries no token of a steward of this node.",
                next_step="Use --token-file or $FLAME_NODE_TOKEN; `flame node steward add NAME` makes an account.",
            )
        request[_ACCOUNT] = account
        return await handler(request)

    return middleware


def _account(request: web.Request) -> Account:
    return request[_ACCOUNT]


def _steward(request: web.Request, what: str) -> str:
    """The steward's name. Raises NotAllowed for an administrator: they run the node and do not decide about data."""
    account = _account(request)
    if account.role != "steward":
        raise NotAllowed(
            f"Only a steward {what}; '{account.name}' is an administrator.", next_step="Ask a data steward."
        )
    return account.name


def _id(request: web.Request) -> str:
    found = request.match_info["id"]
    if not re.fullmatch(r"[0-9A-Za-z-]{1,80}", found):  # a release's id is its run's 64 digits, a hyphen and a number
        raise NotFound("There is nothing of that id.", next_step="See the list.")
    return found


async def _body(request: web.Request, known: set[str]) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.text() or "{}")
    except (ValueError, RecursionError, LookupError):
        raise Invalid("The body is not JSON.", next_step="Send an object.") from None
    if not isinstance(body, dict):
        raise Invalid("The body is not a JSON object.", next_step="Send an object.")
    for key in body:
        if key not in known:
            raise Invalid(
                f"The key '{key[:64]}' is not known here.",
                next_step=f"Known: {', '.join(sorted(known)) or 'none'}.",
                field=key[:64],
            )
    return body


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or len(value) > 4000:
        raise Invalid(f"'{key}' is not a text of at most 4000 characters.", field=key)
    return value


def _days(body: Mapping[str, Any]) -> int | None:
    days = body.get("days")
    if days is not None and (type(days) is not int or not 1 <= days <= 3650):
        raise Invalid(
            "'days' is not a whole number from 1 to 3650.", next_step="Leave it out for the default.", field="days"
        )
    return days


def _choice(body: Mapping[str, Any], key: str, options: tuple[str, ...]) -> str:
    value = body.get(key)
    if value not in options:
        raise Invalid(f"'{key}' is none of {', '.join(options)}.", field=key)
    return str(value)


def _json(document: Any) -> web.Response:
    return web.json_response(document)


def _problem(status: int, code: str, message: str, next_step: str) -> web.Response:
    body = {"statusCode": status, "code": code, "message": message, "nextStep": next_step}
    return web.json_response(body, status=status, content_type="application/problem+json")
