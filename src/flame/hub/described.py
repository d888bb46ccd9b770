"""Routes that say what they take and give: the data from which ``/openapi.json`` is written (`flame.hub.openapi`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from flame.hub.resources import Resource

Endpoint = Callable[[Request], Awaitable[Response]]
Shape = Literal["record", "list", "flat", "nothing", "bytes"]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True)
class About:
    """What a route takes and gives. Path parameters, errors that every route may give, and login follow by themselves.

    body: a msgspec structure (JSON), or ``"files"`` (multipart), or ``"bytes"`` (as it comes); form: the same structure is
    taken as a form as well. gives: the resource or structure in the answer; None: any object. shape: in FLAME's envelope
    (``record``, ``list``), alone (``flat``), ``null`` (``nothing``) or no JSON at all (``bytes``, of `media`).
    query: name -> JSON schema of what the query string may hold. public: needs no login.
    """

    gives: Resource | type | None = None
    shape: Shape = "record"
    status: int = 200
    body: type | Literal["files", "bytes"] | None = None
    form: bool = False
    query: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[str] = ("application/octet-stream",)
    public: bool = False
    partial: bool = False
    """A part of the bytes is given on demand (206)."""
    errors: Sequence[int] = ()
    """Beside those of every route: 400, 401, 403, 404, 409, 413, 429, 503, 507 as far as they can come."""


class Described(Route):
    """A route with its `About`. The endpoint's docstring is its text."""

    def __init__(self, method: Method, path: str, endpoint: Endpoint, about: About) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method = method
        self.about = about


def in_query(kind: str = "string", **more: Any) -> dict[str, Any]:
    """The schema of one parameter of a query string."""
    return {"type": kind, **more}
