"""Large envelopes, whichever way they come and go: announced, followed while they still arrive, and made whole."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from flame.crypto.envelope import peek_head
from flame.hub.columns import check_id
from flame.hub.relay.arriving import STALL_SECONDS, name_of
from flame.hub.relay.intake import Addressed, store, take_envelope
from flame.model.errors import Conflict, Malformed, NotFound, Unavailable

if TYPE_CHECKING:
    from flame.hub.relay.arriving import Attempt
    from flame.hub.state import HubState
    from flame.storage.mailbox import Delivery, Letter

MAX_ENVELOPE: Final = 4 << 30
MESSAGES: Final = "/messenger/messages"
UPLOADS: Final = "/messenger/uploads"
PREFIX_DIGEST: Final = "upload-prefix-sha256"
"""The header that says, in hex, the digest of what came before: of the first bytes up to where it goes on."""
_RANGE: Final = re.compile(r"bytes=([0-9]{1,15})-")
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})?/([0-9]{1,15})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Continued:
    """Where a broken upload goes on: from `offset` to `size`; `digest` of what came before."""

    offset: int
    size: int
    digest: str


def read_range(text: str) -> int:
    """From where a reader wants a body. Raises Malformed for anything but ``bytes=N-``."""
    if not text:
        return 0
    found = _RANGE.fullmatch(text)
    if found is None:
        raise Malformed("A range is 'bytes=N-': from a byte to the end.")
    return int(found[1])


def read_continued(content_range: str, digest: str, length: int) -> Continued:
    """Raises Malformed when the headers of a continued upload do not fit together."""
    found = _CONTENT_RANGE.fullmatch(content_range)
    if found is None or _DIGEST.fullmatch(digest) is None:
        raise Malformed(f"An upload that goes on says Content-Range: bytes N-M/SIZE, and {PREFIX_DIGEST} in hex.")
    offset, size = int(found[1]), int(found[3])
    last = int(found[2]) if found[2] else size - 1
    if not 0 < size <= MAX_ENVELOPE or last != size - 1 or length != size - offset:
        raise Malformed("The range and the length of what goes on do not fit together.")
    return Continued(offset, size, digest)


def read_names(text: str) -> tuple[str, bytes]:
    """Sender and message id from the end of a path. Raises NotFound."""
    sender, _, msg_id = text.partition("/")
    return check_id(sender, "message"), read_msg_id(msg_id)


def read_msg_id(text: str) -> bytes:
    try:
        msg_id = bytes.fromhex(text)
    except ValueError:
        msg_id = b""
    if len(msg_id) != 16:
        raise NotFound("The message was not found.")
    return msg_id


async def announce(hub: HubState, addressed: Addressed) -> tuple[bool, bool]:
    """Store a letter with its header alone. Returns whether it is new, and whether its body is still wanted."""
    fresh = await store(hub, addressed)
    letter = addressed.letter
    hub.channels.stir_here(name_of(letter.sender, letter.msg_id))
    return fresh, fresh or bool(await hub.mailbox.is_arriving(letter.sender, letter.msg_id))


async def continued(hub: HubState, node: str, msg_id: bytes, where: Continued) -> Letter | None:
    """The letter of an upload that goes on; None: it is whole already. Raises Conflict: all of it must be sent."""
    arriving = await hub.mailbox.is_arriving(node, msg_id)
    if arriving is False:
        return None
    start = hub.arrivals.start_of(node, msg_id)
    if arriving is None or not start or peek_head(start)[0].msg_id != msg_id:
        raise Conflict("Nothing of this message is here.", next_step="Send all of it.")
    addressed, header = await take_envelope(hub, node, start, where.size)
    return replace(addressed.letter, body=start[:header])


async def complete(hub: HubState, letter: Letter, blob: str) -> None:
    """The letter's object is kept: from now on it survives a crash. The object goes when nobody wants it any more.

    A cancelled one leaves the object: the letter may name it already. What nothing names goes at the next start.
    """
    try:
        await hub.runs.live(letter.run)  # it may have ended while the body came
        taken = await hub.mailbox.arrived(letter.sender, letter.msg_id, blob)
    except Exception:
        await hub.objects.remove(blob)
        raise
    finally:
        hub.arrivals.done(letter.sender, letter.msg_id)
    if not taken:
        await hub.objects.remove(blob)
    hub.channels.stir(name_of(letter.sender, letter.msg_id))


def leave(hub: HubState, attempt: Attempt, letter: Letter, *, announced: bool) -> None:
    """The line broke, or the letter was refused: what has come of an announced one stays for the next attempt."""
    attempt.leave()
    if not announced:
        hub.arrivals.discard(letter.sender, letter.msg_id)


async def upload_state(hub: HubState, node: str, msg_id: bytes) -> dict[str, object]:
    """How far a letter of this node has come. Raises NotFound."""
    arriving = await hub.mailbox.is_arriving(node, msg_id)
    if arriving is None:
        raise NotFound("Nothing of this message is here.", next_step="Send all of it.")
    return {"complete": not arriving, "offset": hub.arrivals.offset_of(node, msg_id) if arriving else 0}


async def find(hub: HubState, node: str, sender: str, msg_id: bytes) -> Delivery:
    """Raises NotFound."""
    found = await hub.mailbox.find(node, sender, msg_id)
    if found is None:
        raise NotFound(
            "The message was not found.", next_step="It was acknowledged, has expired, or is not for this node."
        )
    return found


async def wait_for_more(hub: HubState, node: str, letter: Letter, offset: int) -> Delivery:
    """A letter of which nothing beyond `offset` comes in here at present: until it does, or has come in elsewhere.

    Raises Unavailable when nothing happens for a while; NotFound when nobody waits for it any more.
    """
    until = time.monotonic() + STALL_SECONDS
    with hub.channels.watching(name_of(letter.sender, letter.msg_id)) as stirred:
        while True:
            found = await find(hub, node, letter.sender, letter.msg_id)
            arrival = hub.arrivals.find(letter.sender, letter.msg_id)
            if found.letter.is_whole or (arrival is not None and (arrival.is_written or arrival.have > offset)):
                return found
            left = until - time.monotonic()
            if left <= 0 or not await stirred.within(left):
                raise Unavailable(
                    "The message is still on its way in.", next_step="Fetch it again from where it ended.", retryAfter=1
                )
            stirred.clear()
