"""``/messenger`` in plain requests, for nodes behind proxies that let no WebSocket through.

The same mailbox, judged by the same code as the control channel's frames: `hello` for Hello and Welcome, `send` for
Put, `poll` for Deliver and Changed, `acknowledge` for Ack. A poll ends as soon as there is something, or at its limit;
what changes between two polls is kept for the next one (`Channels.news_since`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import BaseRoute

from flame.hub.described import About, Described, in_query
from flame.hub.identity.sessions import authenticate
from flame.hub.problems import wrong
from flame.hub.relay.greeting import welcome
from flame.hub.relay.intake import acknowledged, judge, node_of, store
from flame.hub.relay.presence import set_online
from flame.hub.resources import answer, read_body, read_bytes
from flame.hub.state import hub_of
from flame.model.errors import FlameError, Invalid
from flame.protocol.control import POLL_LETTERS, Hello, Put, rejection

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from flame.hub.relay.intake import Addressed
    from flame.hub.state import HubState
    from flame.storage.mailbox import Delivery

MAX_WAIT: Final = 60.0
MAX_SENT: Final = 16 << 20
"""Bytes of one `send`: POLL_LETTERS letters of the largest size, in base64."""
GONE_SECONDS: Final = 30.0
"""A node that has not asked for so long is shown as offline."""


async def hello(request: Request) -> Response:
    """What a node says first where no WebSocket passes; the hub's answer."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    shown = await welcome(hub, await read_body(request, Hello))
    await _show_online(hub, node)
    body = {
        "version": shown.version, "release": shown.release, "logSize": shown.log_size, "logRoot": shown.log_root.hex(),
        "bulk": shown.bulk, "news": hub.channels.cursor(),
    }  # fmt: skip
    return answer(body)


class SentMessage(msgspec.Struct, rename="camel"):
    """One letter: ids in hex, the body in base64."""

    kind: str
    msg_id: str
    run: str
    body: str

    def frame(self) -> Put:
        """Raises Invalid naming the field."""
        try:
            return Put(
                self.kind,
                bytes.fromhex(self.msg_id),
                bytes.fromhex(self.run),
                base64.b64decode(self.body, validate=True),
            )
        except (ValueError, binascii.Error):
            raise wrong("messages", "'msgId' and 'run' are hexadecimal, 'body' is base64.") from None


class SendBody(msgspec.Struct):
    messages: list[SentMessage]


async def send(request: Request) -> Response:
    """``POST /messenger/messages``: letters in their order; the answer says of each whether it is stored.

    One that is refused does not hold up the others. What is stored survives a crash once this has answered.
    """
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    frames = [message.frame() for message in _sent(await read_bytes(request, MAX_SENT)).messages]
    if not 0 < len(frames) <= POLL_LETTERS:
        raise wrong("messages", f"'messages' holds 1 to {POLL_LETTERS} messages.")
    judged = [await _judged(hub, node, frame) for frame in frames]  # one after the other: their order is kept
    return answer(
        {"data": await asyncio.gather(*(_stored(hub, *pair) for pair in zip(frames, judged, strict=True)))}, 202
    )


def _sent(data: bytes) -> SendBody:
    try:
        return msgspec.json.decode(data, type=SendBody)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"The body is not valid: {error}") from None


async def _judged(hub: HubState, node: str, frame: Put) -> Addressed | FlameError:
    try:
        return await judge(hub, node, frame)
    except FlameError as error:
        return error


async def _stored(hub: HubState, frame: Put, judged: Addressed | FlameError) -> dict[str, Any]:
    shown: dict[str, Any] = {"msgId": frame.msg_id.hex(), "stored": True}
    try:
        if isinstance(judged, FlameError):
            raise judged
        return shown | {"repeated": not await store(hub, judged)}
    except FlameError as error:
        said = rejection(frame.msg_id, error)
        return shown | {
            "stored": False, "code": said.code, "message": said.message, "nextStep": said.next_step,
            "retryAfter": said.retry_after,
        }  # fmt: skip


async def poll(request: Request) -> Response:
    """``GET /messenger/messages?wait=SECONDS&after=SEQ&news=CURSOR``: what waits, and what has changed.

    ``news``: the last answer's ``news.cursor``; without one, from now on. ``news.missed``: more has changed than is known here; look at everything.
    """
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    seconds, after = _number(request, "wait", MAX_WAIT), int(_number(request, "after", 1 << 62))
    cursor = request.query_params.get("news") or hub.channels.cursor()
    await _show_online(hub, node)
    with hub.channels.listening(node) as woken:
        waiting = await hub.mailbox.waiting(node, after, POLL_LETTERS)
        news = hub.channels.news_since(node, cursor)
        if not waiting and not news.worth_telling and await woken.within(seconds):
            waiting = await hub.mailbox.waiting(node, after, POLL_LETTERS)
            news = hub.channels.news_since(node, cursor)
    changed = [{"what": what, "id": key} for what, key in news.changed]
    shown = {"cursor": news.cursor, "missed": news.missed, "changed": changed}
    response = answer({"data": [_shown(delivery) for delivery in waiting], "news": shown})
    response.headers["cache-control"] = "no-store"
    return response


def _number(request: Request, name: str, most: float) -> float:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.replace(".", "", 1).isdigit()) or len(text) > 20:
        raise wrong(name, f"'{name}' is a number.")
    return min(float(text), most)


def _shown(delivery: Delivery) -> dict[str, Any]:
    letter = delivery.letter
    return {
        "seq": delivery.seq, "kind": letter.kind, "run": letter.run.hex(), "sender": letter.sender,
        "msgId": letter.msg_id.hex(), "size": letter.size, "body": base64.b64encode(letter.body or b"").decode(),
    }  # fmt: skip


async def _show_online(hub: HubState, node: str) -> None:
    """For a while from now on: until it has not asked for GONE_SECONDS."""
    if hub.channels.polled(node):
        await set_online(hub, node, True)
        hub.in_background(_watch(hub, node))


async def _watch(hub: HubState, node: str) -> None:
    await hub.channels.stops_polling(node, GONE_SECONDS)
    if not hub.channels.is_here(node):
        await set_online(hub, node, False)


class AckBody(msgspec.Struct):
    seqs: list[int]


async def acknowledge(request: Request) -> Response:
    """``POST /messenger/messages/ack``: these are durable at the node; they do not come again."""
    hub = hub_of(request)
    node = node_of(await authenticate(request))
    body = await read_body(request, AckBody)
    acknowledged(hub, node, body.seqs)
    await hub.database.flush()
    return answer({}, 202)


_WAITS = {
    "wait": in_query("number", minimum=0, maximum=MAX_WAIT),
    "after": in_query("integer", minimum=0),
    "news": in_query(),
}

ROUTES: list[BaseRoute] = [
    Described("POST", "/messenger/hello", hello, About(shape="flat", body=Hello, errors=(426,))),
    Described("POST", "/messenger/messages", send, About(shape="flat", status=202, body=SendBody)),
    Described("GET", "/messenger/messages", poll, About(shape="flat", query=_WAITS)),
    Described("POST", "/messenger/messages/ack", acknowledge, About(shape="flat", status=202, body=AckBody)),
]
