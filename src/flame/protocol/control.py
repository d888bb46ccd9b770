"""The control channel: one WebSocket that a node opens, msgpack frames both ways. Bulk has connections of its own.

What waits is pushed. A node that comes back says Hello; the hub delivers all that is not acknowledged, in order.
"""

from __future__ import annotations

import msgspec

from flame.model.errors import Malformed

VERSION = 1
OLDEST_READABLE = 1
PATH = "/messenger/control"
MAX_FRAME = 1 << 20
INLINE_BYTES = 256 << 10
"""An envelope up to this size travels in the control channel; a larger one by PUT and GET of its own."""


class _Frame(msgspec.Struct, tag_field="t", forbid_unknown_fields=False):
    pass


class Hello(_Frame, tag="hello"):
    """Node to hub, first."""

    version: int
    release: str


class Welcome(_Frame, tag="welcome"):
    """Hub to node, first. ``log``: the newest tree head, as bytes the node can verify (``flame.protocol.audit``).

    ``bulk``: where large envelopes go and come from, at the same host; empty: at the hub's own address.
    """

    version: int
    release: str
    log_size: int
    log_root: bytes
    bulk: str = ""


class Put(_Frame, tag="put"):
    """Node to hub: a sealed envelope or an announcement of at most INLINE_BYTES. Answer: Stored or Rejected."""

    kind: str
    """``envelope`` or ``announce``."""
    msg_id: bytes
    run: bytes
    body: bytes


class Stored(_Frame, tag="stored"):
    """Hub to node: what was put is durable. Said again for a repeat."""

    msg_id: bytes


class Rejected(_Frame, tag="rejected"):
    """Hub to node: what was put is not taken, and repeating it changes nothing (unless ``code`` is unavailable)."""

    msg_id: bytes
    code: str
    message: str
    next_step: str = ""


class Deliver(_Frame, tag="deliver"):
    """Hub to node: the next item of the node's mailbox.

    ``size``: bytes of the whole item. ``body``: all of it, or, when ``size`` is above INLINE_BYTES, the envelope's header
    alone (as ``flame.crypto.envelope.peek_head`` measures it); the whole is fetched with GET /messenger/messages/{sender}/{msg_id}.
    """

    seq: int
    kind: str
    run: bytes
    sender: str
    msg_id: bytes
    size: int
    body: bytes


class Ack(_Frame, tag="ack"):
    """Node to hub: these are durable here and need not come again."""

    seqs: list[int]


class Changed(_Frame, tag="changed"):
    """Hub to node: look again. ``what``: analysis, run, project, node; ``id`` names it."""

    what: str
    id: str


ToHub = Hello | Put | Ack
ToNode = Welcome | Stored | Rejected | Deliver | Changed

_to_hub = msgspec.msgpack.Decoder(ToHub)
_to_node = msgspec.msgpack.Decoder(ToNode)
encode = msgspec.msgpack.Encoder().encode


def decode_to_hub(data: bytes) -> ToHub:
    try:
        frame: ToHub = _to_hub.decode(data)
        return frame
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"The control frame cannot be read: {error}") from None


def decode_to_node(data: bytes) -> ToNode:
    try:
        frame: ToNode = _to_node.decode(data)
        return frame
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(f"The control frame cannot be read: {error}") from None
