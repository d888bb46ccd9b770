"""``/messenger``: the control channel, the ways for bulk, and the long poll."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from uuid import uuid4

from msgspec import Struct
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from flame.crypto.envelope import MAX_HEADER
from flame.hub.authorisation import Actor
from flame.hub.columns import check_id
from flame.hub.identity.sessions import authenticate
from flame.hub.nodes.tables import nodes
from flame.hub.problems import wrong
from flame.hub.relay.channels import Channel
from flame.hub.relay.intake import Addressed, take_announcement, take_envelope
from flame.hub.resources import answer, read_body
from flame.hub.state import HubState, hub_of
from flame.model.errors import FlameError, Invalid, Malformed, NotAllowed, NotFound
from flame.protocol.control import (
    INLINE_BYTES,
    MAX_FRAME,
    OLDEST_READABLE,
    PATH,
    VERSION,
    Ack,
    Hello,
    Put,
    Rejected,
    Stored,
    Welcome,
    decode_to_hub,
    encode,
)
from flame.storage.mailbox import Delivery
from flame.storage.objects import CHUNK

MAX_ENVELOPE: Final = 4 << 30
MAX_WAIT: Final = 60.0
MAX_AT_ONCE: Final = 64
BAD_FRAME, REPLACED, WRONG_VERSION = 4400, 4409, 4426


def release() -> str:
    try:
        return version("flame-federated")
    except PackageNotFoundError:
        return "0"


def _node(actor: Actor) -> str:
    if actor.node is None:
        raise NotAllowed("Only nodes use the relay.")
    return actor.node


# ---------------------------------------------------------------------------------------------------- control channel


async def control(socket: WebSocket) -> None:
    """The WebSocket of `flame.protocol.control`."""
    hub = hub_of(socket)
    try:
        node = _node(await authenticate(socket))
    except FlameError as error:
        await socket.send_denial_response(Response(error.message, error.status))
        return
    await socket.accept()
    try:
        await _greet(hub, socket)
    except (Malformed, Invalid, WebSocketDisconnect):
        with suppress(RuntimeError):
            await socket.close(BAD_FRAME, "The first frame is Hello, in a version that the hub reads.")
        return
    channel = Channel(node, socket, hub.mailbox)
    hub.channels.add(channel)
    await _set_online(hub, node, True)
    try:
        await _converse(hub, socket, channel)
    finally:
        if hub.channels.remove(channel):
            await _set_online(hub, node, False)


async def _set_online(hub: HubState, node: str, online: bool) -> None:
    with suppress(FlameError):  # at shutdown the database may be closed already
        await hub.database.write(lambda c: c.execute(update(nodes).where(nodes.c.id == node).values(online=online)))


async def _greet(hub: HubState, socket: WebSocket) -> None:
    hello = decode_to_hub(await socket.receive_bytes())
    if not isinstance(hello, Hello) or not OLDEST_READABLE <= hello.version <= VERSION:
        raise Invalid("The first frame is Hello.")
    head, _ = await hub.database.read(hub.log.head)
    await socket.send_bytes(encode(Welcome(VERSION, release(), head.size, head.root, hub.bulk_url)))


async def _converse(hub: HubState, socket: WebSocket, channel: Channel) -> None:
    """Read and write at the same time; whichever ends first ends both."""
    reader = asyncio.create_task(_read(hub, socket, channel))
    writer = asyncio.create_task(channel.pump())
    try:
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        channel.close()
        for task in (reader, writer):
            task.cancel()
        ended = await asyncio.gather(reader, writer, return_exceptions=True)
    broken = any(isinstance(e, Malformed | Invalid) for e in ended)
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(BAD_FRAME if broken else REPLACED)


async def _read(hub: HubState, socket: WebSocket, channel: Channel) -> None:
    """Frames from the node. Puts run beside each other, so that their letters share commits.

    A Put that has come is carried out also when the channel closes meanwhile: what is stored wakes its recipients.
    """
    running: set[asyncio.Task[None]] = set()
    while (data := await _next_frame(socket)) is not None:
        frame = decode_to_hub(data)
        if isinstance(frame, Ack):
            await _acknowledge(hub, channel.node, frame.seqs)
        elif isinstance(frame, Put):
            task = hub.in_background(_put(hub, socket, channel.node, frame))
            running.add(task)
            task.add_done_callback(running.discard)
            if len(running) >= MAX_AT_ONCE:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


async def _next_frame(socket: WebSocket) -> bytes | None:
    message = await socket.receive()
    if message["type"] != "websocket.receive":
        return None
    data = message.get("bytes")
    if data is None or len(data) > MAX_FRAME:
        raise Malformed("A control frame is binary and at most 1 MiB.")
    return bytes(data)


async def _put(hub: HubState, socket: WebSocket, node: str, frame: Put) -> None:
    reply: Stored | Rejected
    try:
        await store(hub, await _judge(hub, node, frame))
        reply = Stored(frame.msg_id)
    except FlameError as error:
        reply = Rejected(frame.msg_id, error.code, error.message, error.next_step)
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_bytes(encode(reply))


async def _judge(hub: HubState, node: str, frame: Put) -> Addressed:
    if len(frame.body) > INLINE_BYTES:
        raise Invalid(f"More than {INLINE_BYTES} bytes do not go through the control channel.", next_step="Use PUT.")
    if frame.kind == "announce":
        addressed = await take_announcement(hub, node, frame.msg_id, frame.body)
    elif frame.kind == "envelope":
        found, _ = await take_envelope(hub, node, frame.body, len(frame.body))
        addressed = Addressed(replace(found.letter, body=frame.body), found.recipients)
    else:
        raise Invalid(f"The kind '{frame.kind[:40]}' is not known.")
    if (addressed.letter.msg_id, addressed.letter.run) != (frame.msg_id, frame.run):
        raise Malformed("The frame says another message id or run than what it carries.")
    return addressed


async def store(hub: HubState, addressed: Addressed) -> bool:
    """Make a letter durable and wake its recipients; False when it was there already."""
    seqs = await hub.mailbox.put(addressed.letter, addressed.recipients)
    for recipient, seq in (seqs or {}).items():
        hub.channels.stored(recipient, Delivery(seq, addressed.letter))
    return seqs is not None


async def _acknowledge(hub: HubState, node: str, seqs: list[int]) -> None:
    if len(seqs) > 1000 or any(not 0 < seq < 1 << 62 for seq in seqs):
        raise Malformed("An acknowledgement names at most 1000 numbers.")
    hub.acknowledged(node, seqs)


# ------------------------------------------------------------------------------------------------------------ bulk ways


async def put_message(request: Request) -> Response:
    """``PUT /messenger/messages``: one envelope of any size. The head is judged before the body is taken."""
    hub = hub_of(request)
    node = _node(await authenticate(request))
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
    node = _node(await authenticate(request))
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


class AckBody(Struct):
    seqs: list[int]


async def acknowledge(request: Request) -> Response:
    hub = hub_of(request)
    node = _node(await authenticate(request))
    body = await read_body(request, AckBody)
    await _acknowledge(hub, node, body.seqs)
    await hub.database.flush()
    return answer(None, 202)


async def poll(request: Request) -> Response:
    """``GET /messenger/messages?wait=SECONDS&after=SEQ``: for nodes behind proxies that break WebSockets."""
    hub = hub_of(request)
    node = _node(await authenticate(request))
    seconds, after = _number(request, "wait", MAX_WAIT), int(_number(request, "after", 1 << 62))
    waiting = await hub.mailbox.waiting(node, after)
    if not waiting and seconds:
        await hub.channels.wait(node, seconds)
        waiting = await hub.mailbox.waiting(node, after)
    return answer({"data": [_shown(delivery) for delivery in waiting]})


def _number(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name, "0")
    if not text.replace(".", "", 1).isdigit() or len(text) > 20:
        raise wrong(name, f"'{name}' is a number.")
    return min(float(text), most)


def _shown(delivery: Delivery) -> dict[str, Any]:
    letter = delivery.letter
    return {
        "seq": delivery.seq, "kind": letter.kind, "run": letter.run.hex(), "sender": letter.sender,
        "msgId": letter.msg_id.hex(), "size": letter.size,
    }  # fmt: skip


ROUTES: list[BaseRoute] = [
    WebSocketRoute(PATH, control),
    Route("/messenger/messages", put_message, methods=["PUT"]),
    Route("/messenger/messages", poll, methods=["GET"]),
    Route("/messenger/messages/{sender}/{msg_id}", get_message, methods=["GET"]),
    Route("/messenger/messages/ack", acknowledge, methods=["POST"]),
    Route("/messenger/ack", acknowledge, methods=["POST"]),
]
