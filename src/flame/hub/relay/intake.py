"""What the relay accepts: the one check for everything that a node hands in, by whichever way."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from flame.crypto.announce import Announcement
from flame.crypto.envelope import peek_head
from flame.hub.relay.runs import RunFacts
from flame.model.errors import Invalid, Malformed, NotAllowed, Refused
from flame.protocol.control import INLINE_BYTES, Put
from flame.storage.mailbox import Delivery, Letter

if TYPE_CHECKING:
    from flame.hub.authorisation import Actor
    from flame.hub.state import HubState

SIGNATURE = 64
LETTERBOX_SECONDS = 30 * 24 * 3600
MAX_ACKS = 1000


@dataclass(frozen=True, slots=True)
class Addressed:
    """A letter and the nodes that it goes to."""

    letter: Letter
    recipients: tuple[str, ...]


def node_of(actor: Actor) -> str:
    """Whose mailbox it is. Raises NotAllowed: people and analyses have none, and write into none."""
    if actor.node is None:
        raise NotAllowed("Only nodes use the relay.")
    return actor.node


async def judge(hub: HubState, node: str, frame: Put) -> Addressed:
    """A small letter, whole. Raises what forbids it."""
    if len(frame.body) > INLINE_BYTES:
        raise Invalid(f"More than {INLINE_BYTES} bytes do not go this way.", next_step="Use PUT /messenger/messages.")
    if frame.kind == "announce":
        addressed = await take_announcement(hub, node, frame.msg_id, frame.body)
    elif frame.kind == "envelope":
        found, _ = await take_envelope(hub, node, frame.body, len(frame.body))
        addressed = Addressed(replace(found.letter, body=frame.body), found.recipients)
    else:
        raise Invalid(f"The kind '{frame.kind[:40]}' is not known.")
    if (addressed.letter.msg_id, addressed.letter.run) != (frame.msg_id, frame.run):
        raise Malformed("The message id or run that is named is not that of what it carries.")
    return addressed


async def store(hub: HubState, addressed: Addressed) -> bool:
    """Make a letter durable and wake its recipients; False when it was there already."""
    seqs = await hub.mailbox.put(addressed.letter, addressed.recipients)
    for recipient, seq in (seqs or {}).items():
        hub.channels.stored(recipient, Delivery(seq, addressed.letter))
    return seqs is not None


def acknowledged(hub: HubState, node: str, seqs: list[int]) -> None:
    """Raises Malformed for what cannot be an acknowledgement."""
    if len(seqs) > MAX_ACKS or any(not 0 < seq < 1 << 62 for seq in seqs):
        raise Malformed(f"An acknowledgement names at most {MAX_ACKS} numbers.")
    hub.acknowledged(node, seqs)


async def take_envelope(hub: HubState, node: str, data: bytes, size: int) -> tuple[Addressed, int]:
    """Judge an envelope by its head (`data`: at least the header). The letter has neither body nor blob yet.

    Returns the letter and the length of the envelope's header.

    Raises Malformed, NotAllowed (another sender), Refused (run unknown, ended; a recipient that takes no part).
    """
    head, header = peek_head(data)
    if size != header + head.body_length:
        raise Malformed(f"The envelope has {size} bytes; its head announces {header + head.body_length}.")
    _check_sender(head.sender, node)
    run = await hub.runs.live(head.run)
    _check_member(run, node)
    recipients = tuple(dict.fromkeys(str(UUID(bytes=r.id)) for r in head.recipients))
    for recipient in recipients:
        if recipient not in run.participants:
            raise Refused(f"Node {recipient} does not take part in this run.", run=head.run.hex())
    expires = min(max(head.expires, int(time.time())), int(time.time()) + LETTERBOX_SECONDS)
    return Addressed(Letter(node, head.msg_id, head.run, "envelope", size, expires), recipients), header


async def take_announcement(hub: HubState, node: str, msg_id: bytes, data: bytes) -> Addressed:
    """Judge an announcement; it goes to all other participants. Its signature is for them to check."""
    if len(msg_id) != 16:
        raise Invalid("A message id is 16 bytes.")
    said = Announcement.parse(data[:-SIGNATURE])
    _check_sender(said.node, node)
    run = await hub.runs.live(said.run)
    _check_member(run, node)
    others = tuple(sorted(set(run.participants) - {node}))
    return Addressed(Letter(node, msg_id, said.run, "announce", len(data), said.expires, body=data), others)


def _check_sender(said: bytes, node: str) -> None:
    if said != UUID(node).bytes:
        raise NotAllowed("The sender in the head is not the node that sends it.")


def _check_member(run: RunFacts, node: str) -> None:
    if node not in run.participants:
        raise NotAllowed("This node does not take part in the run.")
