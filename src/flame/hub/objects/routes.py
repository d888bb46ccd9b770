"""``/storage``: buckets, uploads and downloads. Files stream both ways in bounded memory."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET, UnsetType
from python_multipart.multipart import MultipartParser, parse_options_header
from sqlalchemy import Connection, delete, insert, select
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from flame.hub.analyses.tables import analyses, analysis_bucket_files, analysis_buckets
from flame.hub.authorisation import Action, Actor, Bucket, bucket_facts, demand
from flame.hub.columns import fresh
from flame.hub.identity.sessions import authenticate
from flame.hub.objects.resources import BUCKET, BUCKET_FILE
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.resources import (
    Body,
    answer,
    changing_routes,
    get_row,
    path_id,
    raw_row,
    read_body,
    readable_routes,
    record,
    text,
)
from flame.hub.state import HubState, hub_of
from flame.model.errors import Conflict, Invalid, Malformed, NotAllowed
from flame.model.manifest import MAX_FILES, check_path
from flame.storage.objects import FileSpool, Spooled

MAX_FILE: Final = 64 << 30
MAX_HEADER: Final = 4096
BLOCK: Final = 512


class BucketBody(Body):
    name: str | UnsetType = UNSET
    region: str | UnsetType | None = UNSET


async def create_bucket(request: Request) -> Response:
    actor = await authenticate(request)
    if actor.kind != "user":
        raise NotAllowed("Nodes and analyses use the buckets of their analysis.")
    body = await read_body(request, BucketBody)
    row = fresh(
        name=text(body.name, "name", least=3, most=256), region=body.region or None, actor_id=actor.id,
        actor_type=actor.kind, realm_id=actor.realm,
    )  # fmt: skip

    def store(connection: Connection) -> dict[str, Any]:
        connection.execute(insert(buckets).values(**row))
        return get_row(connection, actor, BUCKET, row["id"])

    return record(await hub_of(request).database.write(store), BUCKET, 201)


async def delete_bucket(request: Request) -> Response:
    actor = await authenticate(request)
    key = path_id(request, BUCKET)
    hub = hub_of(request)

    def store(connection: Connection) -> tuple[dict[str, Any], list[str]]:
        shown = get_row(connection, actor, BUCKET, key)
        facts = bucket_facts(connection, key)
        if facts.analysis is not None:
            raise Conflict("The bucket belongs to an analysis.", next_step="Delete the analysis.")
        demand(actor, Action.DELETE, facts)
        files = connection.execute(select(bucket_files.c.hash).where(bucket_files.c.bucket_id == key)).scalars().all()
        connection.execute(delete(buckets).where(buckets.c.id == key))
        return shown, list(files)

    shown, files = await hub.database.write(store)
    for name in files:
        await hub.objects.remove(f"files/{name}")
    return record(shown, BUCKET, 202)


# --------------------------------------------------------------------------------------------------------------- upload


async def upload(request: Request) -> Response:
    """``POST /storage/buckets/:id/upload``: multipart; each part's file name is its path in the bucket."""
    actor = await authenticate(request)
    key = path_id(request, BUCKET)
    hub = hub_of(request)

    def check(connection: Connection) -> None:
        raw_row(connection, actor, BUCKET, key)
        _may_upload(connection, actor, bucket_facts(connection, key))

    await hub.database.read(check)
    receiver = _Receiver(hub, request)
    kept: list[str] = []
    try:
        parts = await receiver.receive()
        names = [secrets.token_hex(32) for _ in parts]
        for (_, spooled), name in zip(parts, names, strict=True):
            await hub.objects.keep(spooled, f"files/{name}")
            kept.append(name)
        rows = await hub.database.write(lambda c: _register(c, actor, key, parts, names), "upload")
        kept.clear()
    finally:
        await receiver.discard()
        for name in kept:
            await hub.objects.remove(f"files/{name}")
    shown, replaced = rows
    for name in replaced:
        await hub.objects.remove(f"files/{name}")
    return answer({"data": shown, "meta": {"total": len(shown)}}, 201)


def _may_upload(connection: Connection, actor: Actor, facts: Bucket) -> None:
    demand(actor, Action.UPLOAD, facts)
    if facts.type == "CODE" and facts.analysis is not None:
        locked = select(analyses.c.configuration_locked).where(analyses.c.id == facts.analysis.id)
        if connection.execute(locked).scalar():
            raise Conflict("The analysis configuration is locked.", next_step="Unlock it; its approvals are then void.")


def _register(
    connection: Connection, actor: Actor, key: str, parts: list[tuple[str, Spooled]], names: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows for what was kept; a file of the same path is replaced. Returns them as shown, and the objects replaced."""
    bucket = raw_row(connection, actor, BUCKET, key)
    facts = bucket_facts(connection, key)
    _may_upload(connection, actor, facts)
    shown, replaced = [], []
    for (path, spooled), name in zip(parts, names, strict=True):
        here = (bucket_files.c.bucket_id == key) & (bucket_files.c.path == path)
        older = connection.execute(select(bucket_files.c.hash).where(here)).scalar()
        if older is not None:
            if facts.type == "RESULT":
                raise Conflict(f"There is a result called '{path}' already.", next_step="Results are never replaced.")
            replaced.append(older)
            connection.execute(delete(bucket_files).where(here))
        directory, _, base = path.rpartition("/")
        row = fresh(
            name=base, path=path, directory=directory, size=spooled.size, hash=name, sha256=spooled.sha256,
            actor_id=actor.id, actor_type=actor.kind, realm_id=bucket.realm_id, bucket_id=key,
        )  # fmt: skip
        connection.execute(insert(bucket_files).values(**row))
        if facts.analysis is not None:
            _register_with_analysis(connection, actor, row, facts.analysis.id)
        shown.append(get_row(connection, actor, BUCKET_FILE, row["id"]))
    return shown, replaced


def _register_with_analysis(connection: Connection, actor: Actor, file: dict[str, Any], analysis: str) -> None:
    link = connection.execute(select(analysis_buckets).where(analysis_buckets.c.bucket_id == file["bucket_id"])).one()
    values = fresh(
        path=file["path"], root=False, bucket_id=file["bucket_id"], bucket_file_id=file["id"],
        analysis_bucket_id=link.id, analysis_id=analysis, realm_id=link.realm_id,
        user_id=actor.id if actor.kind == "user" else None, client_id=actor.id if actor.kind == "client" else None,
    )  # fmt: skip
    connection.execute(insert(analysis_bucket_files).values(**values))


@dataclass
class _Part:
    path: str
    spool: FileSpool


class _Receiver:
    """Takes a multipart body apart as it comes: at most one file in hand, the others spooled."""

    def __init__(self, hub: HubState, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Invalid("An upload is multipart/form-data.")
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
            async for piece in self._request.stream():
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
                await self._parts[-1].spool.write(data)
            else:
                part = self._parts[-1]
                self._done.append((part.path, await part.spool.finish()))

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
    actor = await authenticate(request)
    key = path_id(request, BUCKET_FILE)
    hub = hub_of(request)
    row = await hub.database.read(lambda c: raw_row(c, actor, BUCKET_FILE, key))
    quoted = row.name.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "_")
    headers = {"content-length": str(row.size), "content-disposition": f'attachment; filename="{quoted}"'}
    pieces = hub.objects.stream(f"files/{row.hash}")
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


async def stream_bucket(request: Request) -> Response:
    """``GET /storage/buckets/:id/stream``: a plain ustar archive, written as it is sent."""
    actor = await authenticate(request)
    key = path_id(request, BUCKET)
    hub = hub_of(request)

    def load(connection: Connection) -> list[Any]:
        raw_row(connection, actor, BUCKET, key)
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
        async for piece in hub.objects.stream(f"files/{file.hash}"):
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
    await hub.objects.remove(f"files/{name}")
    return record(shown, BUCKET_FILE, 202)


ROUTES = [
    *readable_routes("/storage/buckets", BUCKET),
    *changing_routes("/storage/buckets", create=create_bucket, remove=delete_bucket),
    Route("/storage/buckets/{id}/upload", upload, methods=["POST"]),
    Route("/storage/buckets/{id}/stream", stream_bucket, methods=["GET"]),
    *readable_routes("/storage/bucket-files", BUCKET_FILE),
    *changing_routes("/storage/bucket-files", remove=delete_file),
    Route("/storage/bucket-files/{id}/stream", stream_file, methods=["GET"]),
]
