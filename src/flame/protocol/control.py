"""The control channel: one WebSocket that a node opens, msgpack frames both ways. Bulk has connections of its own.

What waits is pushed. A node that comes back says Hello; the hub delivers all that is not acknowledged, in order. Where
a proxy lets no WebSocket through, the same is said in plain requests (`flame.hub.relay.polling`).

Both sides speak a range of versions and settle on the newest that both know, so that neighbouring releases work
together; without a common one whoever notices says which side to upgrade. What is added within a version is optional:
unknown fields are ignored.
"""

from __future__ import annotations

import msgspec

from flame.model.errors import FlameError, Incompatible, Malformed

VERSION = 1
"""The newest that this release speaks."""
OLDEST_READABLE = 1
PATH = "/messenger/control"
MAX_FRAME = 1 << 20
INLINE_BYTES = 256 << 10
"""An envelope up to this size travels in the control channel; a larger one by PUT and GET of its own."""


POLL_LETTERS = 32
"""At most so many in one answer to a poll, and in one request that sends."""


class _Frame(msgspec.Struct, tag_field="t", forbid_unknown_fields=False):
    pass


class Hello(_Frame, tag="hello"):
    """Node to hub, first: it speaks the versions from ``oldest`` (0: from ``version``) to ``version``."""

    version: int
    release: str
    oldest: int = 0


class Welcome(_Frame, tag="welcome"):
    """Hub to node, first: ``version`` is spoken from now on. ``log``: the newest tree head (``flame.protocol.audit``).

    ``bulk``: where large envelopes go and come from, at the same host; empty: at the hub's own address.
    """

    version: int
    release: str
    log_size: int
    log_root: bytes
    bulk: str = ""


class Unwelcome(_Frame, tag="unwelcome"):
    """Hub to node, instead of Welcome, and last: why they cannot work together, and what to do."""

    code: str
    message: str
    next_step: str = ""


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
    """Hub to node: what was put is not taken, and repeating it changes nothing (unless ``code`` is unavailable).

    ``retry_after``: seconds after which repeating it may be of use; 0: the node decides.
    """

    msg_id: bytes
    code: str
    message: str
    next_step: str = ""
    retry_after: float = 0


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
ToNode = Welcome | Unwelcome | Stored | Rejected | Deliver | Changed

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


def rejection(msg_id: bytes, error: FlameError) -> Rejected:
    """What the hub says of a letter that it does not take."""
    after = error.fields.get("retryAfter", 0)
    return Rejected(
        msg_id, error.code, error.message, error.next_step, float(after) if isinstance(after, int | float) else 0
    )


def settle(hello: Hello, release: str) -> int:
    """The hub's side: the newest version that both speak. Raises Incompatible, naming the side to upgrade."""
    oldest = hello.oldest or hello.version
    if oldest <= hello.version and hello.version >= OLDEST_READABLE and oldest <= VERSION:
        return min(hello.version, VERSION)
    older = "node" if hello.version < VERSION else "hub"
    raise Incompatible(
        f"The node (release {hello.release[:32]}) speaks {_versions(oldest, hello.version)} of the protocol, "
        f"this hub (release {release}) {_versions(OLDEST_READABLE, VERSION)}.",
        next_step=f"Upgrade the {older}.",
    )


def check_settled(welcome: Welcome, release: str) -> int:
    """The node's side: the version that the hub has chosen. Raises Incompatible when it is none of ours."""
    if OLDEST_READABLE <= welcome.version <= VERSION:
        return welcome.version
    older = "node" if welcome.version > VERSION else "hub"
    raise Incompatible(
        f"The hub (release {welcome.release[:32]}) wants to speak version {welcome.version} of the protocol, "
        f"this node (release {release}) speaks {_versions(OLDEST_READABLE, VERSION)}.",
        next_step=f"Upgrade the {older}.",
    )


def _versions(oldest: int, newest: int) -> str:
    return f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
