"""``/storage``: buckets, uploads and downloads. Files stream both ways in bounded memory."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, UnsetType
from python_multipart.multipart import MultipartParser, parse_options_header
from sqlalchemy import Connection, delete, insert, select, update
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flame.hub.analyses.tables import analyses, analysis_buckets
from flame.hub.authorisation import Action, Actor, Bucket, Hub, bucket_facts, demand
from flame.hub.columns import fresh, is_id, now
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.objects.files import is_entrypoint, register_file
from flame.hub.objects.resources import BUCKET, BUCKET_FILE
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.objects.upkeep import (
    claim,
    collect,
    key_of,
    limits_of,
    over_limit,
    project_of,
    room,
    set_limits,
    settle,
)
from flame.hub.projects.resources import PROJECT
from flame.hub.query import parse
from flame.hub.resources import (
    Body,
    answer,
    arriving,
    asked_of,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
)
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict, Invalid, Malformed, NotAllowed, NotFound
from flame.model.manifest import MAX_FILES, check_path
from flame.storage.objects import FileSpool, Spooled

MAX_FILE: Final = 64 << 30
MAX_HEADER: Final = 4096
MAX_FRAMING: Final = 1 << 20
"""What a multipart body may hold beside its files, where its announced length is compared with the room that is left."""
MAX_SQUEEZED: Final = 4 << 20
"""What is larger is sent as it is: packing it would cost more than the line."""
SEALED: Final = ".flame"
"""Ciphertext does not get smaller."""
BLOCK: Final = 512
_GZIP: Final = re.compile(r"(?:^|[,\s])gzip\s*(?:,|$|;(?!\s*q=0(?:\.0*)?\s*(?:,|$)))")


BucketName = Annotated[str, Meta(min_length=3, max_length=256)]


class BucketBody(Body):
    name: BucketName | UnsetType = UNSET
    region: BucketName | UnsetType | None = UNSET


class NewBucketBody(BucketBody, kw_only=True):
    name: BucketName


async def create_bucket(request: Request) -> Response:
    """A bucket of one's own."""
    actor = await authenticate(request)
    if actor.kind != "user":
        raise NotAllowed("Nodes and analyses use the buckets of their analysis.")
    if not actor.can("bucket_create"):
        raise NotAllowed("This needs the permission 'bucket_create'.", next_step="Ask an administrator of your realm.")
    body = await read_body(request, NewBucketBody)
    row = fresh(
        name=body.name, region=body.region or None, actor_id=actor.id, actor_type=actor.kind, realm_id=actor.realm
    )

    def store(connection: Connection) -> dict[str, Any]:
        connection.execute(insert(buckets).values(**row))
        return get_row(connection, actor, BUCKET, row["id"])

    return record(await hub_of(request).database.write(store), BUCKET, 201)


async def update_bucket(request: Request) -> Response:
    """Rename a bucket of one's own."""
    actor = await authenticate(request)
    values = (await read_body(request, BucketBody)).given()
    hub = hub_of(request)

    def store(connection: Connection) -> dict[str, Any]:
        key = bucket_key(connection, actor, request)
        demand(actor, Action.UPDATE, bucket_facts(connection, key))
        connection.execute(update(buckets).where(buckets.c.id == key).values(**values, updated_at=now()))
        return get_row(connection, actor, BUCKET, key)

    return record(await hub.database.write(store), BUCKET, 202)


def bucket_key(connection: Connection, actor: Actor, request: Request) -> str:
    """The id of the bucket that a path names, by its id or by a name that only one visible bucket has."""
    given = request.path_params["id"]
    table = BUCKET.table
    named = table.c.id == given if is_id(given) else table.c.name == given
    found = list(connection.execute(select(table.c.id).where(BUCKET.readable(actor), named).limit(2)).scalars())
    if len(found) != 1:
        raise NotFound("The bucket was not found.")
    return str(found[0])


async def get_bucket(request: Request) -> Response:
    """One bucket, by its id or its name."""
    actor = await authenticate(request)
    query = parse(request.query_params.multi_items(), BUCKET.vocabulary)
    load = lambda c: get_row(c, actor, BUCKET, bucket_key(c, actor, request), query)  # noqa: E731
    return record(await hub_of(request).database.read(load), BUCKET)


async def delete_bucket(request: Request) -> Response:
    """Delete a bucket of one's own with its files."""
    actor = await authenticate(request)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], list[str]]:
        key = bucket_key(connection, actor, request)
        shown = get_row(connection, actor, BUCKET, key)
        facts = bucket_facts(connection, key)
        demand(actor, Action.DELETE, facts)
        if facts.analysis is not None:
            raise Conflict("The bucket belongs to an analysis.", next_step="Delete the analysis.")
        files = connection.execute(select(bucket_files.c.hash).where(bucket_files.c.bucket_id == key)).scalars().all()
        connection.execute(delete(buckets).where(buckets.c.id == key))
        return shown, list(files)

    shown, files = await hub.database.write(store)
    await collect(hub, files)
    return record(shown, BUCKET, 202)


# --------------------------------------------------------------------------------------------------------------- upload


async def upload(request: Request) -> Response:
    """``POST /storage/buckets/:id/upload``: multipart; each part's file name is its path in the bucket."""
    actor = await authenticate(request)
    hub = hub_of(request)

    def check(connection: Connection) -> tuple[str, int | None]:
        key = bucket_key(connection, actor, request)
        _may_upload(connection, actor, bucket_facts(connection, key))
        return key, room(connection, hub.settings, key)

    key, left = await hub.database.read(check)
    receiver = _Receiver(hub, request, left)
    mine: str | None = None
    names: list[str] = []
    try:
        parts = await receiver.receive()
        names = [str(spooled.sha256) for _, spooled in parts]
        mine = await hub.database.write(lambda c: claim(c, names))
        for _, spooled in parts:
            await asyncio.to_thread(hub.objects.keep_blocking, spooled, key_of(str(spooled.sha256)), same=True)
        claimed = mine
        rows = await hub.database.write(lambda c: _register(hub, c, actor, key, parts, claimed), "upload")
    except BaseException:
        if mine is not None:
            given_up = mine
            await hub.database.write(lambda c: settle(c, given_up))
            await collect(hub, names)
        raise
    finally:
        await receiver.discard()
    shown, replaced = rows
    await collect(hub, replaced)
    return answer({"data": shown, "meta": {"total": len(shown)}}, 201)


def _may_upload(connection: Connection, actor: Actor, facts: Bucket) -> None:
    demand(actor, Action.UPLOAD, facts)
    if facts.type == "CODE" and facts.analysis is not None:
        locked = select(analyses.c.configuration_locked).where(analyses.c.id == facts.analysis.id)
        if connection.execute(locked).scalar():
            raise Conflict("The analysis configuration is locked.", next_step="Unlock it; its approvals are then void.")


def _register(
    hub: HubState, connection: Connection, actor: Actor, key: str, parts: list[tuple[str, Spooled]], mine: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows for what was kept; a file of the same path is replaced. Returns them as shown, and the objects replaced."""
    bucket = raw_row(connection, actor, BUCKET, key)
    facts = bucket_facts(connection, key)
    _may_upload(connection, actor, facts)
    link = connection.execute(select(analysis_buckets).where(analysis_buckets.c.bucket_id == key)).first()
    shown, replaced = [], []
    for path, spooled in parts:
        here = (bucket_files.c.bucket_id == key) & (bucket_files.c.path == path)
        older = connection.execute(select(bucket_files.c.hash).where(here)).scalar()
        root = False
        if older is not None:
            if facts.type == "RESULT":
                raise Conflict(f"There is a result called '{path}' already.", next_step="Results are never replaced.")
            replaced.append(older)
            root = is_entrypoint(connection, key, path)  # another text of the program that runs is still what runs
            connection.execute(delete(bucket_files).where(here))
        directory, _, base = path.rpartition("/")
        row = fresh(
            name=base, path=path, directory=directory, size=spooled.size, hash=spooled.sha256, sha256=spooled.sha256,
            actor_id=actor.id, actor_type=actor.kind, realm_id=bucket.realm_id, bucket_id=key,
        )  # fmt: skip
        connection.execute(insert(bucket_files).values(**row))
        if link is not None:
            register_file(connection, actor, row, link, root=root)
        shown.append(get_row(connection, actor, BUCKET_FILE, row["id"]))
    settle(connection, mine)
    _check_room(connection, hub, key)
    return shown, replaced


def _check_room(connection: Connection, hub: HubState, bucket: str) -> None:
    """Uploads at the same time were each let in with the same room."""
    project = project_of(connection, bucket)
    if project is not None:
        limits = limits_of(connection, hub.settings, project)
        if limits.bytes_max is not None and limits.bytes_used > limits.bytes_max:
            raise over_limit(0)


@dataclass
class _Part:
    path: str
    spool: FileSpool


class _Receiver:
    """Takes a multipart body apart as it comes: at most one file in hand, the others spooled."""

    def __init__(self, hub: HubState, request: Request, left: int | None) -> None:
        announced = request.headers.get("content-length", "")
        if left is not None and announced.isdigit() and int(announced) > left + MAX_FRAMING:
            raise over_limit(left)  # before a byte of it is read
        self._room, self._came = left, 0
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Invalid("An upload is multipart/form-data.")
        if "content-encoding" in request.headers:
            raise Invalid("An upload is sent as it is: the hub unpacks nothing.")
        self._hub = hub
        self._request = request
        self._parts: list[_Part] = []
        self._done: list[tuple[str, Spooled]] = []
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._todo: list[tuple[str, bytes]] = []
        self._finished = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": lambda: self._todo.append(
                    ("open", self._headers.get(b"content-disposition", b""))
                ),
                "on_part_data": lambda data, start, end: self._todo.append(("data", data[start:end])),
                "on_part_end": lambda: self._todo.append(("close", b"")),
                "on_end": self._on_end,
            },
        )

    async def receive(self) -> list[tuple[str, Spooled]]:
        """(path, spooled) for each file. Raises Invalid, Malformed, Exhausted."""
        from python_multipart.exceptions import MultipartParseError

        try:
            async for piece in arriving(self._request):
                self._parser.write(piece)
                await self._work()
        except MultipartParseError as error:
            raise Malformed(f"The upload is not multipart/form-data: {error}") from None
        if not self._finished:
            raise Malformed("The upload is not complete.", next_step="Send it again.")
        if not self._done:
            raise Invalid("The upload holds no file.")
        if len({path for path, _ in self._done}) != len(self._done):
            raise Invalid("The upload names a file twice.")
        return self._done

    async def discard(self) -> None:
        for part in self._parts:
            await part.spool.discard()

    async def _work(self) -> None:
        todo, self._todo = self._todo, []
        for step, data in todo:
            if step == "open":
                self._open(data)
            elif step == "data":
                self._count(len(data))
                await self._parts[-1].spool.write(data)
            else:
                part = self._parts[-1]
                self._done.append((part.path, await part.spool.finish()))

    def _count(self, size: int) -> None:
        self._came += size
        if self._room is not None and self._came > self._room:
            raise over_limit(self._room)

    def _open(self, disposition: bytes) -> None:
        _, options = parse_options_header(disposition)
        name = options.get(b"filename")
        if not name:
            raise Invalid("Each part of an upload needs a file name.")
        if len(self._parts) >= MAX_FILES:
            raise Invalid(f"An upload holds at most {MAX_FILES} files.")
        try:
            path = check_path(name.decode("utf-8"))
        except UnicodeDecodeError:
            raise Malformed("A file name is not UTF-8.") from None
        self._parts.append(_Part(path, self._hub.objects.spool(at_most=MAX_FILE)))

    def _begin(self) -> None:
        self._headers, self._field, self._value = {}, b"", b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._bounded()

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bounded()

    def _on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""
        if len(self._headers) > 16:
            raise Invalid("A part of the upload has too many headers.")

    def _bounded(self) -> None:
        if len(self._field) + len(self._value) > MAX_HEADER:
            raise Invalid("A header of the upload is too long.")

    def _on_end(self) -> None:
        self._finished = True


# ------------------------------------------------------------------------------------------------------------- download


async def stream_file(request: Request) -> Response:
    """The content of a stored file."""
    actor = await authenticate(request)
    key = path_id(request, BUCKET_FILE)
    hub = hub_of(request)
    row = await hub.database.read(lambda c: raw_row(c, actor, BUCKET_FILE, key))
    quoted = row.name.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "_")
    headers = {"content-disposition": f'attachment; filename="{quoted}"', "vary": "accept-encoding"}
    pieces = hub.objects.stream(key_of(row.hash))
    if row.size <= MAX_SQUEEZED and not row.name.endswith(SEALED) and _takes_gzip(request):
        headers["content-encoding"] = "gzip"
        pieces = _squeezed(pieces)
    else:
        headers["content-length"] = str(row.size)
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


def _takes_gzip(request: Request) -> bool:
    return bool(_GZIP.search(request.headers.get("accept-encoding", "")))


async def _squeezed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(6, wbits=31)
    async for piece in pieces:
        yield await asyncio.to_thread(packer.compress, piece)
    yield packer.flush()


async def stream_bucket(request: Request) -> Response:
    """``GET /storage/buckets/:id/stream``: a plain ustar archive, written as it is sent."""
    actor = await authenticate(request)
    hub = hub_of(request)

    def load(connection: Connection) -> list[Any]:
        key = bucket_key(connection, actor, request)
        return list(
            connection.execute(
                select(bucket_files).where(bucket_files.c.bucket_id == key).order_by(bucket_files.c.path)
            )
        )

    files = await hub.database.read(load)
    headers = [ustar_header(file.path, file.size) for file in files]  # before the first byte: a name that does not fit
    size = sum(BLOCK + -(-file.size // BLOCK) * BLOCK for file in files) + 2 * BLOCK
    return StreamingResponse(
        _tar(hub, files, headers), headers={"content-length": str(size)}, media_type="application/x-tar"
    )


async def _tar(hub: HubState, files: list[Any], headers: list[bytes]) -> AsyncIterator[bytes]:
    for file, header in zip(files, headers, strict=True):
        yield header
        async for piece in hub.objects.stream(key_of(file.hash)):
            yield piece
        if rest := file.size % BLOCK:
            yield bytes(BLOCK - rest)
    yield bytes(2 * BLOCK)


def ustar_header(path: str, size: int) -> bytes:
    """One entry's header in POSIX ustar form: no extension records. Raises Invalid for a path that does not fit."""
    import tarfile

    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = size, 0o644
    try:
        return entry.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError:
        raise Invalid(f"'{path[:100]}' is too long for an archive; fetch the files one by one.") from None


async def delete_file(request: Request) -> Response:
    """Delete a stored file."""
    actor = await authenticate(request)
    key = path_id(request, BUCKET_FILE)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], str]:
        row = raw_row(connection, actor, BUCKET_FILE, key)
        shown = get_row(connection, actor, BUCKET_FILE, key)
        facts = bucket_facts(connection, row.bucket_id)
        if facts.type == "RESULT":
            demand(actor, Action.READ, facts)
            if actor.kind != "user":
                raise NotAllowed("Results are deleted by the project's people.")
        else:
            _may_upload(connection, actor, facts)
        connection.execute(delete(bucket_files).where(bucket_files.c.id == key))
        return shown, row.hash

    shown, name = await hub.database.write(store)
    await collect(hub, [name])
    return record(shown, BUCKET_FILE, 202)


# ------------------------------------------------------------------------------------------------------------- limits


class LimitsBody(Body):
    """What a project may keep; null: as the hub's settings say."""

    bytes_max: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    keep_days: Annotated[int, Meta(ge=1, le=36500)] | None = None


async def get_limits(request: Request) -> Response:
    """How much a project keeps, how much it may keep, and for how many days results stay."""
    actor = await authenticate(request)
    hub = hub_of(request)
    key = path_id(request, PROJECT)

    def load(connection: Connection) -> dict[str, Any]:
        raw_row(connection, actor, PROJECT, key)
        return _shown_limits(connection, hub, key)

    return record(await hub.database.read(load))


async def put_limits(request: Request) -> Response:
    """Set a project's limits: for administrators of the hub."""
    actor = await authenticate(request)
    hub = hub_of(request)
    key = path_id(request, PROJECT)
    body = await read_body(request, LimitsBody)

    def store(connection: Connection) -> dict[str, Any]:
        raw_row(connection, actor, PROJECT, key)
        demand(actor, Action.UPDATE, Hub())
        set_limits(connection, key, body.bytes_max, body.keep_days)
        facts = {"set": "storage limits", "bytesMax": body.bytes_max, "keepDays": body.keep_days, "by": actor.id}
        hub.log.tell(connection, "administration", key, {name: str(value) for name, value in facts.items()})
        return _shown_limits(connection, hub, key)

    return record(await hub.database.write(store), status=202)


def _shown_limits(connection: Connection, hub: HubState, project: str) -> dict[str, Any]:
    found = limits_of(connection, hub.settings, project)
    return {"bytesMax": found.bytes_max, "bytesUsed": found.bytes_used, "keepDays": found.keep_days}


_BUCKETS = readable_routes("/storage/buckets", BUCKET)[:1]
_BY_NAME = About(BUCKET, query=asked_of(BUCKET, single=True))

ROUTES = [
    *_BUCKETS,
    Described("GET", "/storage/buckets/{id}", get_bucket, _BY_NAME),
    *changing_routes(
        "/storage/buckets", create=create_bucket, update=update_bucket, remove=delete_bucket, resource=BUCKET,
        body=NewBucketBody, changes=BucketBody,
    ),
    Described(
        "POST", "/storage/buckets/{id}/upload", upload, About(BUCKET_FILE, "list", status=201, body="files", errors=(408,))
    ),
    Described("GET", "/storage/buckets/{id}/stream", stream_bucket, About(shape="bytes", media=("application/x-tar",))),
    Described("GET", "/storage/projects/{id}/limits", get_limits, About()),
    Described("PUT", "/storage/projects/{id}/limits", put_limits, About(status=202, body=LimitsBody)),
    *readable_routes("/storage/bucket-files", BUCKET_FILE),
    *changing_routes("/storage/bucket-files", remove=delete_file, resource=BUCKET_FILE),
    Described("GET", "/storage/bucket-files/{id}/stream", stream_file, About(shape="bytes")),
]  # fmt: skip
