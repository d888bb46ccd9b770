"""Large envelopes over the hub's own address, for where its port for bulk (`relay.bulk`) cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from starlette.responses import Response, StreamingResponse

from flame.crypto.envelope import MAX_HEADER
from flame.hub.columns import check_id
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.relay.intake import Addressed, node_of, store, take_envelope
from flame.hub.resources import answer
from flame.hub.state import HubState, hub_of
from flame.model.errors import Malformed, NotFound
from flame.protocol.control import INLINE_BYTES
from flame.storage.objects import CHUNK

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_ENVELOPE: Final = 4 << 30


async def put_message(request: Request) -> Response:
    """``PUT /messenger/messages``: one envelope of any size. The head is judged before the body is taken."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    size = _content_length(request)
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
        fresh = await _store_large(hub, Addressed(letter, addressed.recipients), start, stream, size)
    shown = {"messageId": addressed.letter.msg_id.hex(), "stored": True, "repeated": not fresh}
    return answer(shown, 202)


def _content_length(request: Request) -> int:
    text = request.headers.get("content-length", "")
    if not text.isdigit() or not 0 < int(text) <= MAX_ENVELOPE:
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


async def _store_large(
    hub: HubState, addressed: Addressed, start: bytes, stream: AsyncIterator[bytes], size: int
) -> bool:
    spool = hub.objects.spool(hashed=False, at_most=size)
    try:
        await spool.write(start)
        async for piece in stream:
            await spool.write(piece)
        spooled = await spool.finish()
        if spooled.size != size:
            raise Malformed("The body is not as long as announced.")
        blob = f"mail/{uuid4().hex}"
        await hub.objects.keep(spooled, blob)
    finally:
        await spool.discard()
    return await store_large(hub, Addressed(replace(addressed.letter, blob=blob), addressed.recipients))


async def store_large(hub: HubState, addressed: Addressed) -> bool:
    """Store a letter whose object is kept, or remove the object. False when the letter was there already.

    A cancelled one leaves the object: the letter may be durable already. What nothing names goes at the next start.
    """
    letter, fresh = addressed.letter, False
    try:
        await hub.runs.live(letter.run)  # it may have ended while the body came
        fresh = await store(hub, addressed)
    except Exception:
        if letter.blob is not None:
            await hub.objects.remove(letter.blob)
        raise
    if not fresh and letter.blob is not None:
        await hub.objects.remove(letter.blob)
    return fresh


async def get_message(request: Request) -> Response:
    """``GET /messenger/messages/{sender}/{msg_id}``: the body of a letter that waits for this node."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    sender = check_id(request.path_params["sender"], "message")
    try:
        msg_id = bytes.fromhex(request.path_params["msg_id"])
    except ValueError:
        raise NotFound("The message was not found.") from None
    found = await hub.mailbox.find(node, sender, msg_id)
    if found is None:
        raise NotFound(
            "The message was not found.", next_step="It was acknowledged, has expired, or is not for this node."
        )
    letter = found.letter
    if letter.blob is None:
        return Response(letter.body, media_type="application/octet-stream")
    headers = {"content-length": str(letter.size)}
    return StreamingResponse(_pieces(hub, letter.blob), headers=headers, media_type="application/octet-stream")


async def _pieces(hub: HubState, blob: str) -> AsyncIterator[bytes]:
    with hub.objects.open(blob) as file:
        while piece := await asyncio.to_thread(file.read, CHUNK):
            yield piece
