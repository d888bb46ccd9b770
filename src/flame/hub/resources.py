"""The plumbing that every collection shares: envelopes, scoped reads, the query language in SQL, typed bodies."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    String,
    Table,
    UnaryExpression,
    and_,
    asc,
    desc,
    func,
    not_,
    or_,
    select,
)
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from flame.hub.authorisation import Actor
from flame.hub.columns import check_id
from flame.hub.described import About, Described, Endpoint, in_query
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import issue, wrong
from flame.hub.query import MAX_LIMIT, Fields, Filter, Query, Vocabulary, parse
from flame.hub.state import HubState, hub_of
from flame.model.errors import Invalid, Malformed, NotAllowed, NotFound

MAX_BODY = 1 << 20
Row = dict[str, Any]
T = TypeVar("T")

Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
"""An id in a body."""
Name = Annotated[str, msgspec.Meta(min_length=3, max_length=128)]
Label = Annotated[str, msgspec.Meta(max_length=256)]
LongText = Annotated[str, msgspec.Meta(max_length=4096)]

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""An escaped NUL in JSON: no field of ours holds one, and not every database can store it."""


class Body(msgspec.Struct, rename="camel", kw_only=True):
    """Base of the bodies that clients send. Unknown keys are ignored, as FLAME's clients expect; known ones are typed."""

    def given(self) -> Row:
        """What was sent, by column name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not msgspec.UNSET}


@dataclass(frozen=True)
class Relation:
    """A related record that may be included: through which column, and of which resource."""

    column: str
    resource: Callable[[], Resource]


@dataclass(frozen=True)
class Resource:
    """A collection: where it lives, who sees what of it, and what it may be asked.

    secret: columns that never leave; extra: fields that come only when asked for; guarded: who may ask for such a field;
    json: columns that hold JSON text; computed: fields made from others, by column-style name; constant: fields that FLAME's
    clients expect and that are the same everywhere here; absent: relations that are always null here.
    """

    name: str
    table: Table
    readable: Callable[[Actor], ColumnElement[bool]]
    filters: frozenset[str] = frozenset()
    sorts: frozenset[str] = frozenset({"createdAt", "updatedAt"})
    default_sort: str = "-createdAt"
    relations: Mapping[str, Relation] = field(default_factory=dict)
    computed: Mapping[str, ColumnElement[Any]] = field(default_factory=dict)
    secret: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()
    guarded: Mapping[str, Callable[[Actor], bool]] = field(default_factory=dict)
    constant: Mapping[str, Any] = field(default_factory=dict)
    json: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    finish: Callable[[Row], Row] | None = None
    key: str = "id"
    """The column that names a row."""

    @property
    def plural(self) -> str:
        for ending, several in (("ey", "eys"), ("y", "ies"), ("is", "es")):
            if self.name.endswith(ending):
                return self.name.removesuffix(ending) + several
        return self.name + "s"

    @cached_property
    def fields(self) -> dict[str, ColumnElement[Any]]:
        """Wire name -> column."""
        columns: dict[str, ColumnElement[Any]] = {camel(c.name): c for c in self.table.c if c.name not in self.secret}
        return columns | {camel(name): expression for name, expression in self.computed.items()}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        includes = {name: relation.resource().filters for name, relation in self.relations.items()}
        includes |= dict.fromkeys(self.absent, frozenset())
        related = {name: relation.resource().open_fields for name, relation in self.relations.items()}
        return Vocabulary(frozenset(self.fields) | set(self.constant), self.filters, self.sorts, includes, related)

    @property
    def open_fields(self) -> frozenset[str]:
        """What may be asked for also where this is included in something else."""
        return (frozenset(self.fields) | set(self.constant)) - set(self.guarded)

    def schema(self, *, single: bool = False) -> Row:
        """`meta.schema`: what a client may ask."""
        allowed = set(self.fields) | set(self.constant)
        related = {name: relation.resource().name for name, relation in self.relations.items()}
        known: Row = {
            "name": self.name,
            "strict": True,
            "indexes": None,
            "fields": {"default": sorted(allowed - self.extra), "allowed": sorted(allowed)},
            "relations": {"allowed": sorted({*related, *self.absent}), "schemas": related},
        }
        if not single:
            known["filters"] = {"allowed": sorted(self.filters), "caseSensitive": [], "indexed": []}
            known["pagination"] = {"maxLimit": MAX_LIMIT}
            known["sorts"] = {"allowed": sorted(self.sorts), "default": self.default_sort, "indexed": []}
        return known

    def columns(self, asked: Query | Fields, include: Sequence[str] = ()) -> dict[str, ColumnElement[Any]]:
        wanted = self._wanted(asked) | {"id"}
        needed = wanted | {camel(self.relations[name].column) for name in include if name in self.relations}
        return {name: column for name, column in self.fields.items() if name in needed}

    def _wanted(self, asked: Query | Fields) -> frozenset[str]:
        usual = (frozenset(self.fields) | set(self.constant)) - self.extra
        return asked.only or usual | asked.added

    def wire(self, row: RowMapping, asked: Query | Fields | None = None) -> Row:
        """A database row in its wire form."""
        values: Row = {str(name): value for name, value in row.items()}
        for name in self.json & set(values):
            values[name] = json.loads(values[name]) if values[name] else []
        wanted = self._wanted(asked or Query())
        values |= {name: value for name, value in self.constant.items() if name in wanted}
        return self.finish(values) if self.finish else values

    def check(self, actor: Actor, query: Query) -> None:
        """Raises NotAllowed for a field that this actor may not ask for."""
        for name in sorted((query.added | (query.only or frozenset())) & set(self.guarded)):
            if not self.guarded[name](actor):
                raise NotAllowed(f"The field '{name}' is not for you.", next_step="Ask without it.")


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


# ------------------------------------------------------------------------------------------------------------- reading


def list_rows(connection: Connection, actor: Actor, resource: Resource, query: Query) -> tuple[list[Row], int]:
    """The visible rows that a query asks for, and how many there are in all."""
    resource.check(actor, query)
    condition = and_(resource.readable(actor), *(_condition(actor, resource, f) for f in query.filters))
    total = connection.execute(select(func.count()).select_from(resource.table).where(condition)).scalar_one()
    chosen = resource.columns(query, query.include)
    order = _order(resource, query)
    # first which rows, then what is in them: counts of what belongs to a row are made for a page, not for all
    key = resource.table.c[resource.key]
    page = select(key).where(condition).order_by(*order).limit(query.limit).offset(query.offset)
    keys = connection.execute(page).scalars().all()
    statement = select(*(column.label(name) for name, column in chosen.items()))
    statement = statement.where(key.in_(keys)).order_by(*order)
    rows = [resource.wire(row, query) for row in connection.execute(statement).mappings()]
    _include(connection, actor, resource, query, rows)
    return rows, total


def get_row(connection: Connection, actor: Actor, resource: Resource, key: str, query: Query | None = None) -> Row:
    """One visible row. Raises NotFound, also for what is there but not visible."""
    query = query or Query()
    resource.check(actor, query)
    chosen = resource.columns(query, query.include)
    statement = select(*(column.label(name) for name, column in chosen.items()))
    row = connection.execute(statement.where(resource.table.c.id == key, resource.readable(actor))).mappings().first()
    if row is None:
        raise NotFound(f"The {resource.name} was not found.")
    rows = [resource.wire(row, query)]
    _include(connection, actor, resource, query, rows)
    return rows[0]


def raw_row(connection: Connection, actor: Actor, resource: Resource, key: str) -> Any:
    """One visible row as the database has it. Raises NotFound."""
    table = resource.table
    row = connection.execute(select(table).where(table.c.id == key, resource.readable(actor))).first()
    if row is None:
        raise NotFound(f"The {resource.name} was not found.")
    return row


def related_row(connection: Connection, actor: Actor, resource: Resource, key: str, place: str) -> Any:
    """What a body refers to, as `raw_row`. Raises Invalid naming the place when it is not there or not visible."""
    try:
        return raw_row(connection, actor, resource, key)
    except NotFound as error:
        issues = [issue(place, error.message, "relation")]
        raise Invalid(error.message, code="entity_relation_invalid", issues=issues) from None


def _include(connection: Connection, actor: Actor, resource: Resource, query: Query, rows: list[Row]) -> None:
    for name in query.include:
        if name in resource.absent:
            for row in rows:
                row[name] = None
            continue
        relation = resource.relations[name]
        other, local = relation.resource(), camel(relation.column)
        keys = {row[local] for row in rows if row.get(local)}
        asked = query.related.get(name, Fields())
        columns = (column.label(label) for label, column in other.columns(asked).items())
        statement = select(*columns).where(other.table.c.id.in_(keys), other.readable(actor))
        found = {row["id"]: other.wire(row, asked) for row in connection.execute(statement).mappings()} if keys else {}
        for row in rows:
            row[name] = found.get(row.get(local))


def _order(resource: Resource, query: Query) -> list[ColumnElement[Any]]:
    default = (resource.default_sort.lstrip("-"), resource.default_sort.startswith("-"))
    chosen = [*(query.sort or [default]), ("id", False)]
    return [_sorted(resource.fields[name], down) for name, down in chosen if name in resource.fields]


def _sorted(column: ColumnElement[Any], down: bool) -> ColumnElement[Any]:
    """What has no value comes first, on PostgreSQL as on SQLite."""
    ordered: UnaryExpression[Any] = desc(column) if down else asc(column)
    if not getattr(column, "nullable", True):
        return ordered
    placed: ColumnElement[Any] = ordered.nulls_last() if down else ordered.nulls_first()
    return placed


def _condition(actor: Actor, resource: Resource, wanted: Filter) -> ColumnElement[bool]:
    relation, _, name = wanted.path.rpartition(".")
    if not relation:
        return _compare(resource.fields[name], wanted)
    link = resource.relations[relation]
    other = link.resource()
    inner = _compare(other.fields[name], wanted)
    return resource.table.c[link.column].in_(select(other.table.c.id).where(inner, other.readable(actor)))


def _compare(column: ColumnElement[Any], wanted: Filter) -> ColumnElement[bool]:
    found = _found(column, wanted)
    if not wanted.negated:
        return found
    if None in wanted.values:
        return not_(found)
    return or_(column.is_(None), not_(found))  # what has no value is not equal to one, whatever SQL says


def _found(column: ColumnElement[Any], wanted: Filter) -> ColumnElement[bool]:
    values = [_typed(column, wanted.path, value) for value in wanted.values]
    if wanted.operator in _PARTS and not isinstance(column.type, String):
        raise wrong(f"filter.{wanted.path}", f"'{wanted.path}' is no text: it is compared as a whole.")
    one = values[0]
    found: ColumnElement[bool]
    match wanted.operator:
        case "eq":
            found = column.is_(None) if one is None else column == one
        case "in":
            there = column.in_([value for value in values if value is not None])
            found = or_(column.is_(None), there) if None in values else there
        case "contains":
            found = column.icontains(one, autoescape=True)  # as SQLite does: PostgreSQL's LIKE tells capitals apart
        case "starts":
            found = column.istartswith(one, autoescape=True)
        case "ends":
            found = column.iendswith(one, autoescape=True)
        case "lt":
            found = column < one
        case "le":
            found = column <= one
        case "gt":
            found = column > one
        case "ge":
            found = column >= one
    return found


_PARTS = frozenset({"contains", "starts", "ends"})


def _typed(column: ColumnElement[Any], path: str, value: str | None) -> Any:
    if value is None:
        return None
    if isinstance(column.type, Boolean):
        if value not in ("true", "false", "1", "0"):
            raise wrong(f"filter.{path}", f"'{value[:40]}' is neither true nor false.")
        return value in ("true", "1")
    if isinstance(column.type, Integer):
        if not value.lstrip("-").isdigit() or len(value) > 18:
            raise wrong(f"filter.{path}", f"'{value[:40]}' is not a whole number.")
        return int(value)
    return value


# ---------------------------------------------------------------------------------------------------- requests, answers


def answer(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def record(row: object, resource: Resource | None = None, status: int = 200) -> Response:
    """One record in FLAME's envelope."""
    schema = resource.schema(single=True) if resource else {}
    return answer({"data": row, "meta": {"schema": schema}}, status)


def collection(rows: Sequence[object], total: int, query: Query, resource: Resource | None = None) -> Response:
    schema = resource.schema() if resource else {}
    return answer(
        {"data": rows, "meta": {"total": total, "limit": query.limit, "offset": query.offset, "schema": schema}}
    )


async def arriving(request: Request) -> AsyncIterator[bytes]:
    """A body as it comes. Raises Invalid (408) when nothing comes for a while: nobody holds the hub by being slow."""
    seconds = hub_of(request).settings.body_idle_seconds
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(seconds):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(f"For {seconds} seconds nothing came.", next_step="Send it again.") from None
        except ClientDisconnect:
            raise Malformed("The sender has gone before the end.") from None
        yield piece


class TooSlow(Invalid):
    code, status = "request_timeout", 408


class TooLarge(Invalid):
    code, status = "content_too_large", 413


async def read_bytes(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body of a request, at most `limit` bytes."""
    pieces: list[bytes] = []
    size = 0
    async for piece in arriving(request):
        size += len(piece)
        if size > limit:
            raise TooLarge(f"The body is larger than {limit} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


async def read_body(request: Request, kind: type[T]) -> T:
    """The JSON body as a typed structure. Raises Invalid naming the field."""
    data = await read_bytes(request)
    if _NUL.search(data):
        raise Invalid("A text of the body holds a NUL character.")
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        path = place.strip("`.") or "body"
        raise Invalid(f"The body is not valid: {error}", issues=[issue(path, text)]) from None
    except (msgspec.DecodeError, RecursionError):
        raise Invalid("The body is not JSON.") from None


def path_id(request: Request, resource: Resource, name: str = "id") -> str:
    return check_id(request.path_params[name], resource.name)


Reveal = Callable[[HubState, Row], Row]


def readable_routes(path: str, resource: Resource, reveal: Reveal | None = None) -> list[Route]:
    """``GET path`` and ``GET path/:id``, scoped. reveal: what the hub itself has to open before it is shown."""

    async def many(request: Request) -> Response:
        actor = await authenticate(request)
        hub = hub_of(request)
        query = parse(request.query_params.multi_items(), resource.vocabulary)
        rows, total = await hub.database.read(lambda c: list_rows(c, actor, resource, query))
        return collection([reveal(hub, row) for row in rows] if reveal else rows, total, query, resource)

    async def one(request: Request) -> Response:
        actor = await authenticate(request)
        hub = hub_of(request)
        key = path_id(request, resource)
        query = parse(request.query_params.multi_items(), resource.vocabulary)
        row = await hub.database.read(lambda c: get_row(c, actor, resource, key, query))
        return record(reveal(hub, row) if reveal else row, resource)

    many.__doc__ = f"The {resource.plural} that one may see."
    one.__doc__ = f"One {resource.name}."
    return [
        Described("GET", path, many, About(resource, "list", query=asked_of(resource))),
        Described("GET", path + "/{id}", one, About(resource, query=asked_of(resource, single=True))),
    ]


def asked_of(resource: Resource, *, single: bool = False) -> Row:
    """The parameters of a query string that a resource understands, as JSON schema."""
    known = resource.vocabulary
    text_ = in_query(maxLength=4096)
    found: Row = {"fields": text_} | {f"fields[{relation}]": text_ for relation in sorted(known.related)}
    if known.includes:
        found["include"] = in_query(maxLength=4096, description=f"Of {', '.join(sorted(known.includes))}; by commas.")
    if single:
        return found
    dotted = (f"{relation}.{name}" for relation, names in known.includes.items() for name in names)
    found |= {f"filter[{name}]": text_ for name in sorted([*known.filters, *dotted])}
    found["sort"] = in_query(
        maxLength=4096, description=f"Of {', '.join(sorted(known.sorts))}; by commas, '-' descends."
    )
    return found | {"page[limit]": in_query("integer", minimum=0), "page[offset]": in_query("integer", minimum=0)}


def changing_routes(
    path: str,
    *,
    create: Endpoint | None = None,
    update: Endpoint | None = None,
    remove: Endpoint | None = None,
    resource: Resource | None = None,
    body: type | None = None,
    changes: type | None = None,
) -> list[Route]:
    """``POST path``, ``POST`` and ``PATCH path/:id``, ``DELETE path/:id``. changes: the body of an update, if another."""
    routes: list[Route] = []
    if create:
        routes.append(Described("POST", path, create, About(resource, status=201, body=body)))
    if update:
        about = About(resource, status=202, body=changes or body)
        routes += [Described("POST", path + "/{id}", update, about), Described("PATCH", path + "/{id}", update, about)]
    if remove:
        routes.append(Described("DELETE", path + "/{id}", remove, About(resource, status=202)))
    return routes


def text(value: object, path: str, *, least: int = 1, most: int = 4096) -> str:
    """A text of a body within its bounds. Raises Invalid naming the field."""
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise wrong(path, f"'{path}' is a text of {least} to {most} characters.")
    return value
