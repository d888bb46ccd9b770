"""The one place that turns an error into FLAME's error body."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flame.model.errors import Conflict, FlameError, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

_log = structlog.get_logger("flame.hub")
_RESERVED = frozenset({"statusCode", "code", "message", "issues", "nextStep"})


def issue(path: str, message: str, code: str = "invalid") -> dict[str, Any]:
    """One entry of `issues`: what is wrong, and where."""
    return {"type": "item", "code": code, "path": path.split("."), "message": message, "meta": {}}


def wrong(path: str, message: str, next_step: str = "") -> Invalid:
    """An Invalid that names the place."""
    return Invalid(message, next_step=next_step, issues=[issue(path, message)])


def body_of(error: FlameError) -> dict[str, Any]:
    """The JSON body: FLAME's keys first, then what the error's own fields say."""
    extra = {k: v for k, v in error.fields.items() if k not in _RESERVED and isinstance(v, str | int | float | list)}
    return {
        "statusCode": status_of(error),
        "code": error.code,
        "message": error.message,
        "issues": error.fields.get("issues", []),
        "nextStep": error.next_step,
        **extra,
    }


def status_of(error: FlameError) -> int:
    """429 for what may be repeated after a pause, else the error's own."""
    return 429 if isinstance(error, Unavailable) and "retryAfter" in error.fields else error.status


def response_of(error: FlameError) -> Response:
    headers = {"retry-after": str(error.fields["retryAfter"])} if "retryAfter" in error.fields else {}
    content = json.dumps(body_of(error)).encode()
    return Response(content, status_of(error), headers, media_type="application/json")


async def on_flame_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlameError)
    if error.status >= 500:
        _log.warning("refused", path=request.url.path, code=error.code, message=error.message)
    return response_of(error)


async def on_integrity(request: Request, error: Exception) -> Response:
    return response_of(Conflict("This exists already, or something that it needs does not."))


async def on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return response_of(NotFound(f"There is no {request.url.path[:200]} here."))
    known = Invalid(str(error.detail))
    content = {**body_of(known), "statusCode": error.status_code}
    return Response(json.dumps(content), error.status_code, dict(error.headers or {}), "application/json")


async def on_anything(request: Request, error: Exception) -> Response:
    """The last resort: what it was goes to the log, not to the caller."""
    _log.error("internal_error", path=request.url.path, exc_info=error)
    content = {"statusCode": 500, "code": "internal_error", "message": "The hub failed.", "issues": []}
    content["nextStep"] = "Tell the hub's operator when this was; its log says why."
    return Response(json.dumps(content), 500, media_type="application/json")


HANDLERS: dict[Any, Any] = {
    FlameError: on_flame_error,
    IntegrityError: on_integrity,
    HTTPException: on_http,
    Exception: on_anything,
}
