"""The control channel: the WebSocket of `flame.protocol.control`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from flame.hub.identity.sessions import actor_of_subject, authenticate
from flame.hub.relay.channels import Channel
from flame.hub.relay.greeting import welcome
from flame.hub.relay.intake import acknowledged, judge, node_of, store
from flame.hub.relay.presence import set_online
from flame.hub.state import HubState, hub_of
from flame.model.errors import FlameError, Incompatible, Invalid, Malformed, NotAuthenticated, Unavailable
from flame.protocol.control import (
    MAX_FRAME,
    Ack,
    Hello,
    Put,
    Rejected,
    Stored,
    Unwelcome,
    decode_to_hub,
    encode,
    rejection,
)

if TYPE_CHECKING:
    from flame.hub.relay.intake import Addressed

MAX_AT_ONCE: Final = 64
LOOK_AGAIN: Final = 300.0
BAD_FRAME, REPLACED, WRONG_VERSION = 4400, 4409, 4426


async def control(socket: WebSocket) -> None:
    hub = hub_of(socket)
    try:
        actor = await authenticate(socket)
        node = node_of(actor)
    except FlameError as error:
        await socket.send_denial_response(Response(error.message, error.status))
        return
    await socket.accept()
    if not await _greet(hub, socket):
        return
    channel = Channel(node, socket, hub.mailbox)
    hub.channels.add(channel)
    await set_online(hub, node, True)
    try:
        await _converse(hub, socket, channel, actor.id)
    finally:
        if hub.channels.remove(channel):
            await set_online(hub, node, False)


async def _greet(hub: HubState, socket: WebSocket) -> bool:
    """Whether they can work together; the socket is closed otherwise."""
    try:
        hello = decode_to_hub(await socket.receive_bytes())
        if not isinstance(hello, Hello):
            raise Invalid("The first frame is Hello.")
        await socket.send_bytes(encode(await welcome(hub, hello)))
    except Incompatible as error:
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_bytes(encode(Unwelcome(error.code, error.message, error.next_step)))
            await socket.close(WRONG_VERSION, error.next_step)
        return False
    except (Malformed, Invalid, WebSocketDisconnect, KeyError):
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(BAD_FRAME, "The first frame is Hello.")
        return False
    return True


async def _converse(hub: HubState, socket: WebSocket, channel: Channel, client: str) -> None:
    """Read and write at the same time, while the node's client is in force; whichever ends first ends all."""
    reader = asyncio.create_task(_read(hub, socket, channel))
    writer = asyncio.create_task(channel.pump())
    guard = asyncio.create_task(_until_withdrawn(hub, client))
    try:
        await asyncio.wait({reader, writer, guard}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        channel.close()
        for task in (reader, writer, guard):
            task.cancel()
        ended = await asyncio.gather(reader, writer, guard, return_exceptions=True)
    broken = any(isinstance(e, Malformed | Invalid) for e in ended)
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(BAD_FRAME if broken else REPLACED)


async def _until_withdrawn(hub: HubState, client: str) -> None:
    """Until the client is deleted or closed: told at once by whichever process does it, looked up now and then."""
    with hub.channels.watching(client) as watched:
        while True:
            watched.clear()
            try:
                await hub.database.read(lambda c: actor_of_subject(c, "client", client))
            except NotAuthenticated:
                return
            except Unavailable:
                await asyncio.sleep(1)
                continue
            await watched.within(LOOK_AGAIN)


async def _read(hub: HubState, socket: WebSocket, channel: Channel) -> None:
    """Frames from the node. Letters are judged one after the other and handed to the database in that order; there
    they share commits, so that the order of a sender is kept and nothing waits for a disk in between.

    A Put that has come is carried out also when the channel closes meanwhile: what is stored wakes its recipients.
    """
    running: set[asyncio.Task[None]] = set()
    while (data := await _next_frame(socket)) is not None:
        frame = decode_to_hub(data)
        if isinstance(frame, Ack):
            acknowledged(hub, channel.node, frame.seqs)
        elif isinstance(frame, Put):
            try:
                addressed = await judge(hub, channel.node, frame)
            except FlameError as error:
                await _answer(socket, rejection(frame.msg_id, error))
                continue
            task = hub.in_background(_store(hub, socket, addressed))
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


async def _store(hub: HubState, socket: WebSocket, addressed: Addressed) -> None:
    reply: Stored | Rejected
    try:
        await store(hub, addressed)
        reply = Stored(addressed.letter.msg_id)
    except FlameError as error:
        reply = rejection(addressed.letter.msg_id, error)
    await _answer(socket, reply)


async def _answer(socket: WebSocket, reply: Stored | Rejected) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_bytes(encode(reply))
