"""``/openapi.json``: written from the routes, their `About`, the resources' descriptions and the bodies' structures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from sqlalchemy import Boolean, ColumnElement, Integer
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flame.hub.described import About, Described
from flame.hub.resources import Resource

JSON: Final = "application/json"
_REF: Final = "#/components/schemas/"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_WORDS = re.compile(r"[^A-Za-z0-9]")
_CALL = re.compile(r"^``(?:GET|POST|PUT|PATCH|DELETE) [^`]*``:? *(?:\(ours\):? *)?")
"""How docstrings of endpoints begin: with the request, which stands beside the text already."""
_REASONS: Final = {
    400: "the request is not valid; `issues` names the places",
    401: "nobody has logged in",
    403: "not allowed; `message` says why",
    404: "not there, or not visible",
    405: "another method is meant",
    408: "the body came too slowly",
    409: "the state of the thing does not allow it",
    413: "too large",
    426: "hub and node speak no common version; `nextStep` says which to upgrade",
    429: "too often; `retryAfter` says when again",
    503: "try again later",
    507: "the hub's storage, or a quota, is used up",
}

PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["statusCode", "code", "message", "issues"],
    "properties": {
        "statusCode": {"type": "integer"},
        "code": {"type": "string"},
        "message": {"type": "string", "description": "For a person."},
        "issues": {"type": "array", "items": {"$ref": f"{_REF}Issue"}},
        "nextStep": {"type": "string", "description": "What to do next."},
    },
}
ISSUE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "code", "path", "message"],
    "properties": {
        "type": {"enum": ["item", "group"]},
        "code": {"type": "string"},
        "path": {"type": "array", "items": {"type": "string"}},
        "message": {"type": "string"},
        "meta": {"type": "object"},
    },
}


def describe(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an application's routes (its WebSocket has no place in OpenAPI)."""
    found = [route for route in routes if isinstance(route, Route)]
    abouts = [_about(route) for route in found]
    structures = _structures(abouts)
    (_, components) = msgspec.json.schema_components(structures, ref_template=f"{_REF}{{name}}")
    paths: dict[str, Any] = {}
    for route, about in zip(found, abouts, strict=True):
        place = paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            place[method.lower()] = _operation(route, method, about)
    resources = {r.name: r for about in abouts if isinstance(r := about.gives, Resource)}
    for resource in [*resources.values()]:
        resources |= {other.name: other for other in _related(resource)}
    schemas = {"Problem": PROBLEM, "Issue": ISSUE, **components}
    schemas |= {_title(resource): _fields(resource) for resource in resources.values()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FLAME hub",
            "version": version("flame-federated"),
            "description": "The hub's API: FLAME's, for every existing client, and what is added to it.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": {str(code): _problem(code) for code in _REASONS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _about(route: Route) -> About:
    return route.about if isinstance(route, Described) else About(shape="flat", body=None)


def _structures(abouts: Sequence[About]) -> list[type]:
    named = [kind for about in abouts for kind in (about.body, about.gives) if isinstance(kind, type)]
    return list(dict.fromkeys(named))


def _related(resource: Resource) -> list[Resource]:
    return [relation.resource() for relation in resource.relations.values()]


def _title(resource: Resource) -> str:
    return "".join(part.capitalize() for part in resource.name.split("-"))


def _operation(route: Route, method: str, about: About) -> dict[str, Any]:
    path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in about.query.items()]
    operation: dict[str, Any] = {
        "operationId": _operation_id(method, route.path),
        "tags": [route.path.split("/")[1] or "hub"],
        "summary": _summary(route),
        "responses": {code: _answer(about) for code in _good(about)} | _refusals(route, method, about),
        "security": [] if about.public else [{"bearer": []}],
    }
    if path or query:
        operation["parameters"] = [*path, *query]
    if about.body is not None:
        operation["requestBody"] = {"required": True, "content": _body(about)}
    return operation


def _operation_id(method: str, path: str) -> str:
    named = _PARAMETER.sub(r"by_\1", path)
    ending = "_root" if path.endswith("/") else ""  # the same place with and without a slash is two routes
    return _WORDS.sub("_", method.lower() + named).rstrip("_") + ending


def _summary(route: Route) -> str:
    said = inspect.getdoc(route.endpoint) or route.name.replace("_", " ").capitalize()
    text = _CALL.sub("", said.split("\n\n")[0].replace("\n", " "))
    return text[:1].upper() + text[1:]


def _good(about: About) -> list[str]:
    return [str(about.status), *(["206"] if about.partial else [])]


def _body(about: About) -> dict[str, Any]:
    if about.body == "bytes":
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if about.body == "files":
        file = {"type": "string", "format": "binary"}
        return {"multipart/form-data": {"schema": {"type": "object", "additionalProperties": file}}}
    assert isinstance(about.body, type)
    content = {JSON: {"schema": _ref(about.body)}}
    return content | ({"application/x-www-form-urlencoded": {"schema": _ref(about.body)}} if about.form else {})


def _answer(about: About) -> dict[str, Any]:
    if about.shape == "bytes":
        content = {media: {"schema": {"type": "string", "format": "binary"}} for media in about.media}
        return {"description": "the bytes", "content": content}
    if about.shape == "nothing":
        return {"description": "done", "content": {JSON: {"schema": {"type": "null"}}}}
    return {"description": "the answer", "content": {JSON: {"schema": _enveloped(about)}}}


def _enveloped(about: About) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": ["object", "array", "null"]} if about.gives is None else _ref(about.gives)
    if about.shape == "flat":
        return inner
    if about.shape == "list":
        counts = {name: {"type": "integer", "minimum": 0} for name in ("total", "limit", "offset")}
        inner = {"type": "array", "items": inner}
        meta: dict[str, Any] = {"type": "object", "properties": counts | {"schema": {"type": "object"}}}
    else:
        meta = {"type": "object"}
    return {"type": "object", "required": ["data", "meta"], "properties": {"data": inner, "meta": meta}}


def _refusals(route: Route, method: str, about: About) -> dict[str, Any]:
    codes = {400, 429, 503, *about.errors} | (set() if about.public and method == "GET" else {401, 403})
    if _PARAMETER.search(route.path):
        codes.add(404)
    if method != "GET":
        codes |= {404, 409, 507}
    if about.body is not None:
        codes |= {408, 413}
    return {str(code): {"$ref": f"#/components/responses/{code}"} for code in sorted(codes)}


def _problem(code: int) -> dict[str, Any]:
    return {"description": _REASONS[code], "content": {JSON: {"schema": {"$ref": f"{_REF}Problem"}}}}


def _ref(kind: Resource | type) -> dict[str, Any]:
    if isinstance(kind, Resource):
        return {"$ref": f"{_REF}{_title(kind)}"}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=f"{_REF}{{name}}")
    return schema


def _fields(resource: Resource) -> dict[str, Any]:
    known: dict[str, Any] = {name: _field(column) for name, column in resource.fields.items()}
    known |= {name: {"type": ["array", "object", "null"]} for name in resource.json}
    known |= {name: _constant(value) for name, value in resource.constant.items()}
    nothing = {"type": "null"}
    known |= dict.fromkeys(resource.absent, nothing)
    known |= {name: {"anyOf": [_ref(link.resource()), nothing]} for name, link in resource.relations.items()}
    return {"type": "object", "required": ["id"] if "id" in known else [], "properties": known}


def _field(column: ColumnElement[Any]) -> dict[str, Any]:
    kind = "string"
    if isinstance(column.type, Boolean):
        kind = "boolean"
    elif isinstance(column.type, Integer):
        kind = "integer"
    return {"type": [kind, "null"] if getattr(column, "nullable", True) else kind}


def _constant(value: object) -> dict[str, Any]:
    return {"const": value}


def openapi_routes(routes: Sequence[BaseRoute]) -> list[Route]:
    """``GET /openapi.json``, written at the first request."""
    written: list[bytes] = []

    async def openapi(request: Request) -> Response:
        """This document."""
        if not written:
            written.append(msgspec.json.encode(describe([*routes, *own])))
        return Response(written[0], media_type=JSON)

    own: list[Route] = [Described("GET", "/openapi.json", openapi, About(shape="flat", public=True))]
    return own
