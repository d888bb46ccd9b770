"""Large envelopes over the hub's own address, for where its port for bulk (`relay.bulk`) cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from flame.crypto.envelope import MAX_HEADER
from flame.hub.described import About, Described
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.relay import large
from flame.hub.relay.intake import Addressed, node_of, store, take_envelope
from flame.hub.relay.large import MAX_ENVELOPE, MESSAGES, UPLOADS
from flame.hub.resources import answer
from flame.hub.state import HubState, hub_of
from flame.model.errors import Malformed
from flame.protocol.control import INLINE_BYTES
from flame.storage.objects import CHUNK

if TYPE_CHECKING:
    from io import FileIO

    from starlette.requests import Request

    from flame.hub.relay.arriving import Arrival, Attempt
    from flame.storage.mailbox import Letter


async def put_message(request: Request) -> Response:
    """``PUT /messenger/messages``: one envelope of any size. The head is judged before the body is taken."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    size = _content_length(request)
    if size == 0:
        raise wrong("content-length", f"Content-Length is needed, from 1 to {MAX_ENVELOPE}.")
    stream = request.stream()
    start = await _start(stream, min(size, MAX_HEADER))
    addressed, header = await take_envelope(hub, node, start, size)
    if size <= INLINE_BYTES:
        body = start + b"".join([piece async for piece in stream])
        if len(body) != size:
            raise Malformed("The body is not as long as announced.")
        fresh = await store(hub, Addressed(replace(addressed.letter, body=body), addressed.recipients))
    else:
        letter = replace(addressed.letter, body=start[:header])
        fresh = await _take_large(hub, Addressed(letter, addressed.recipients), start, stream)
    return _stored(addressed.letter.msg_id, repeated=not fresh)


def _stored(msg_id: bytes, *, repeated: bool) -> Response:
    return answer({"messageId": msg_id.hex(), "stored": True, "repeated": repeated}, 202)


def _content_length(request: Request) -> int:
    text = request.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_ENVELOPE:
        raise wrong("content-length", f"Content-Length is needed, from 1 to {MAX_ENVELOPE}.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise wrong("content-encoding", "An envelope comes as it is.")
    return int(text)


async def _start(stream: AsyncIterator[bytes], least: int) -> bytes:
    pieces, size = [], 0
    async for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size >= least:
            break
    return b"".join(pieces)


async def _take_large(hub: HubState, addressed: Addressed, start: bytes, stream: AsyncIterator[bytes]) -> bool:
    """Announced first, so that it may be fetched while it comes. Whether it is new."""
    letter = addressed.letter
    attempt = await asyncio.to_thread(hub.arrivals.begin, letter.sender, letter.msg_id, letter.size, letter.run)
    announced = False
    try:
        fresh, announced = await large.announce(hub, addressed)
        if announced:
            await _fill(hub, letter, attempt, _led_by(start, stream))
        else:
            async for _ in stream:
                pass
    finally:
        large.leave(hub, attempt, letter, announced=announced)
    return fresh


async def _led_by(start: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for piece in stream:
        yield piece


async def _fill(hub: HubState, letter: Letter, attempt: Attempt, stream: AsyncIterator[bytes]) -> None:
    gathered = bytearray()
    async for piece in stream:
        gathered += piece
        if len(gathered) >= CHUNK:
            await asyncio.to_thread(attempt.write, gathered)
            gathered = bytearray()
    await asyncio.to_thread(attempt.write, gathered)
    await large.complete(hub, letter, await asyncio.to_thread(attempt.finish))


async def get_upload(request: Request) -> Response:
    """``GET /messenger/uploads/{msg_id}``: how far a broken upload of this node has come."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    return answer(await large.upload_state(hub, node, large.read_msg_id(request.path_params["msg_id"])))


async def put_upload(request: Request) -> Response:
    """``PUT /messenger/uploads/{msg_id}``: the rest of a broken upload."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    msg_id = large.read_msg_id(request.path_params["msg_id"])
    given = request.headers
    where = large.read_continued(
        given.get("content-range", ""), given.get(large.PREFIX_DIGEST, ""), _content_length(request)
    )
    letter = await large.continued(hub, node, msg_id, where)
    if letter is None:
        async for _ in request.stream():
            pass
        return _stored(msg_id, repeated=True)
    resume = hub.arrivals.resume
    attempt = await asyncio.to_thread(resume, node, msg_id, where.size, letter.run, where.offset, where.digest)
    try:
        await _fill(hub, letter, attempt, request.stream())
    finally:
        attempt.leave()
    return _stored(msg_id, repeated=False)


async def get_message(request: Request) -> Response:
    """``GET /messenger/messages/{sender}/{msg_id}``: the body of a letter that waits for this node, from ``Range`` on."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    offset = large.read_range(request.headers.get("range", ""))
    sender, msg_id = large.read_names(f"{request.path_params['sender']}/{request.path_params['msg_id']}")
    letter = (await large.find(hub, node, sender, msg_id)).letter
    if offset >= letter.size:
        raise Malformed(f"The message has {letter.size} bytes.")
    while not letter.is_whole:
        arrival = hub.arrivals.find(sender, msg_id)
        if arrival is not None and await asyncio.to_thread(arrival.beyond, offset) > offset:
            with suppress(FileNotFoundError):  # it has just become whole, and is elsewhere
                file = arrival.path.open("rb", buffering=0)
                return _streamed(_following(arrival, file, offset), letter.size, offset)
            await asyncio.sleep(0.01)
        letter = (await large.wait_for_more(hub, node, letter, offset)).letter
    if letter.blob is None:
        return Response((letter.body or b"")[offset:], media_type="application/octet-stream")
    whole = await asyncio.to_thread(hub.objects.open, letter.blob)
    return _streamed(_pieces(whole, offset), letter.size, offset)


def _streamed(pieces: AsyncIterator[bytes], size: int, offset: int) -> Response:
    headers = {"content-length": str(size - offset)}
    if offset:
        headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
    return StreamingResponse(pieces, 206 if offset else 200, headers, media_type="application/octet-stream")


async def _pieces(file: FileIO, offset: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(offset)
        while piece := await asyncio.to_thread(file.read, CHUNK):
            yield piece


async def _following(arrival: Arrival, file: FileIO, offset: int) -> AsyncIterator[bytes]:
    """What has come, and what comes, as it comes. Breaks off when that stalls: the reader comes again for the rest."""
    with file:
        file.seek(offset)
        while offset < arrival.size:
            have = await asyncio.to_thread(arrival.beyond, offset)
            if have <= offset:
                return
            while offset < have and (piece := await asyncio.to_thread(file.read, min(CHUNK, have - offset))):
                offset += len(piece)
                yield piece


_STORED = About(shape="flat", status=202, body="bytes")

ROUTES: list[BaseRoute] = [
    Described("PUT", MESSAGES, put_message, _STORED),
    Described("GET", MESSAGES + "/{sender}/{msg_id}", get_message, About(shape="bytes", partial=True, errors=(409,))),
    Described("GET", UPLOADS + "/{msg_id}", get_upload, About(shape="flat", errors=(409,))),
    Described("PUT", UPLOADS + "/{msg_id}", put_upload, _STORED),
]
