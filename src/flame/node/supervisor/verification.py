"""Whether a start order may start: pure checks over documents, pins and approvals. Default deny.

Each refusal names what is wrong, and what the steward, the researcher or the administrator can do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flame.crypto.canonical import canonical, digest, parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_approval, verify_manifest, verify_start_order
from flame.model.errors import (
    BadSignature,
    DoesNotMatchApproval,
    Expired,
    Malformed,
    NotApproved,
    NotConfirmed,
    Refused,
)
from flame.model.manifest import Manifest
from flame.node.supervisor.conditions import KNOWN
from flame.protocol.documents import Approval, StartOrder
from flame.protocol.freeze import parse_time

TOLERANCE = timedelta(minutes=5)
MAX_MANIFEST = 4 << 20


@dataclass(frozen=True)
class Member:
    """A key that a steward of this hospital has confirmed from a source that is not the hub."""

    fingerprint: str
    kind: str
    """``node``, ``researcher`` or ``result``."""
    name: str
    public: str
    """The key in use. A node or researcher: hex of the PEM text. A result key: base64. Empty until it has been seen."""
    keys: tuple[str, ...] = ()
    """All keys that it has had, the first one first: its name, ``fingerprint``, is the first one's."""
    revoked: str = ""
    """By whom and why it is no member any more."""
    how: str = "here"
    """Confirmed ``here``, or ``by two members`` that are."""


@dataclass(frozen=True)
class Situation:
    """All that a node knows when an order comes."""

    node: str
    own_key: PublicKey
    now: datetime
    members: Mapping[str, Member]
    approval: bytes | None
    """The live signed approval of this manifest by this node, as stored."""
    approval_signature: bytes
    unsigned_confirmed: bool
    """A steward has confirmed that only the hub says who asks."""
    own_keys: tuple[PublicKey, ...] = ()
    """The keys that this node had before and has now, the first one first; empty: it has had one."""


def read_manifest(content: bytes) -> Manifest:
    """A manifest from the bytes that were signed. Raises Malformed."""
    return Manifest.from_document(parse_canonical(content, max_bytes=MAX_MANIFEST))


def verify_participants(manifest: Manifest, situation: Situation) -> None:
    """This node takes part under its own key, and every other participant's key is confirmed here."""
    own = manifest.participant(situation.node)
    if own is None:
        raise Refused(
            "This node is not a participant of the manifest.", next_step="Nothing: other hospitals were asked."
        )
    if own.member != (situation.own_keys or (situation.own_key,))[0].fingerprint.hex():
        raise DoesNotMatchApproval(
            "The manifest names another key for this node than its own.",
            next_step="The hub knows this node under a wrong key: compare fingerprints with its administrator.",
        )
    for participant in manifest.participants:
        if participant.node != situation.node:
            _confirmed(situation, participant.member, "node", participant.name)


def verify_recipients(manifest: Manifest, situation: Situation) -> None:
    """A recipient's key must be confirmed in any case."""
    if not manifest.recipients:
        raise Refused(
            "Nobody could open the result: the manifest names no recipient.", next_step="Name one in flame.toml."
        )
    for recipient in manifest.recipients:
        _confirmed(situation, recipient.result_key, "result", recipient.name)


def verify_signature(manifest: Manifest, content: bytes, signature: bytes | None, situation: Situation) -> None:
    """The researcher's signature on the manifest, by a key confirmed here; or a steward's confirmation without one."""
    if signature is None:
        if situation.unsigned_confirmed:
            return
        raise BadSignature(
            "The manifest is not signed: only the hub says who asks for this.",
            next_step="The researcher signs it with `flame sign`; or a steward confirms it when approving.",
        )
    member = _confirmed(situation, manifest.researcher.key, "researcher", manifest.researcher.name)
    with _naming(f"The manifest is not signed by {manifest.researcher.name}, although the hub shows a signature."):
        _verified_by_any(member, lambda key: verify_manifest(key, signature, digest(content)))


def verify_own_approval(manifest_digest: bytes, situation: Situation) -> Approval:
    """The node's own signed, live approval of exactly this digest."""
    if situation.approval is None:
        raise NotApproved(
            "No steward of this hospital has approved this manifest.",
            next_step="Look at it with `flame node show ANALYSIS` and decide with `flame node approve ANALYSIS`.",
        )
    document = situation.approval
    approval: Approval = Approval.decode(document)
    with _naming("The approval that is stored here was not signed by this node."):
        _any_of(
            situation.own_keys or (situation.own_key,),
            lambda key: verify_approval(key, situation.approval_signature, parse_canonical(document)),
        )
    if approval.manifest != manifest_digest.hex() or approval.subject != "analysis" or approval.node != situation.node:
        raise DoesNotMatchApproval(
            "What was approved here has another digest: something was changed after the approval.",
            next_step="Compare with `flame node show ANALYSIS`, then approve anew or reject.",
        )
    if approval.decision != "approved":
        raise NotApproved(
            "A steward of this hospital has rejected this manifest.",
            next_step="Only a steward can change that, with `flame node approve ANALYSIS`.",
        )
    if set(approval.conditions) - set(KNOWN):
        raise Refused(
            "The approval carries conditions that this release of FLAME cannot apply.",
            next_step="A steward approves again without conditions, or a newer release is installed.",
        )
    if parse_time(approval.expires) < situation.now:
        raise Expired("This hospital's approval has expired.", next_step="A steward may approve it again.")
    return approval


def verify_order(
    manifest: Manifest,
    manifest_digest: bytes,
    order: bytes,
    signature: bytes | None,
    situation: Situation,
    *,
    accepted: bool = False,
) -> StartOrder:
    """The signed start order, its time, its number, its participants and its parameter values.

    ``accepted``: this run was accepted before a restart of the node; the order's own time was judged then, once.
    """
    parsed: StartOrder = StartOrder.decode(order)
    if parsed.manifest != manifest_digest.hex():
        raise DoesNotMatchApproval(
            "The start order is for another manifest.",
            next_step="Nothing has run. Tell the hub's operator; the researcher starts it again with `flame start`.",
        )
    if signature is not None:
        member = _confirmed(situation, manifest.researcher.key, "researcher", manifest.researcher.name)
        with _naming(
            f"The start order is not signed by {manifest.researcher.name}: it was changed, or is a stranger's."
        ):
            verify_start_order(_key(member), signature, digest(order))
    elif not situation.unsigned_confirmed:
        raise BadSignature("The start order is not signed by the researcher.", next_step="Start it with `flame start`.")
    _verify_times(manifest, parsed, situation.now, accepted=accepted)
    if parsed.participants != [p.node for p in manifest.participants]:
        raise DoesNotMatchApproval(
            "The start order names other participants than the manifest.",
            next_step="The researcher starts it again with `flame start`.",
        )
    if not 1 <= parsed.number <= manifest.runs_max:
        raise Refused(
            f"The start order has the number {parsed.number}; the manifest allows 1 to {manifest.runs_max}.",
            next_step="For more runs, set runs_max in flame.toml and submit the analysis again.",
        )
    resolve_parameters(manifest, parsed.parameters)
    return parsed


def resolve_parameters(manifest: Manifest, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each parameter's value: the given one if it is among the approved options, else the default. Raises Refused."""
    known = {p.name: p for p in manifest.parameters}
    if unknown := sorted(set(given) - set(known)):
        raise Refused(
            f"The start order sets '{unknown[0][:64]}', which is no parameter of the manifest.",
            next_step="Leave it out, or declare it under [[parameters]] in flame.toml and submit the analysis again.",
        )
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        value = given.get(name, parameter.default)
        # by their canonical bytes: for Python, true, 1 and 1.0 are all the same
        approved = {canonical(known) for known in (parameter.default, *parameter.options)}
        if canonical(value) not in approved and not parameter.in_range(value):
            raise Refused(
                f"The parameter '{name}' has a value that was not approved.",
                next_step="Use one of the approved options"
                + (f", or a value from {parameter.range[0]} to {parameter.range[1]}." if parameter.range else "."),
            )
        values[name] = value
    return values


def check_number(known_run: str | None, run: str) -> None:
    """A run number counts once for a manifest."""
    from flame.model.errors import Replayed

    if known_run is not None and known_run != run:
        raise Replayed(
            "A run with this number has been ordered before with other content; a number counts once.",
            next_step="The researcher starts it with the next number: `flame start`.",
        )


def _verify_times(manifest: Manifest, order: StartOrder, now: datetime, *, accepted: bool) -> None:
    if parse_time(manifest.expires) < now:
        raise Expired("The manifest has expired.", next_step="Submit the analysis again.")
    if parse_time(order.expires) < now - TOLERANCE and not accepted:
        raise Expired("The start order has expired.", next_step="Start it again with `flame start`.")
    if parse_time(order.created) > now + TOLERANCE:
        raise Expired(
            "The start order comes from the future.", next_step="Check the clocks of the node and of the researcher."
        )


def _confirmed(situation: Situation, fingerprint: str, kind: str, name: str) -> Member:
    member = situation.members.get(fingerprint)
    if member is None or member.kind != kind:
        raise NotConfirmed(
            f"The key of {name} ({fingerprint[:16]}…) is not confirmed here.",
            next_step="Compare it by telephone or letter, then "
            f"`flame node confirm '{name}' {fingerprint} --kind {kind}`.",
            fingerprint=fingerprint,
        )
    if member.revoked:
        raise Refused(
            f"The key of {name} ({fingerprint[:16]}…) was revoked {member.revoked}.",
            next_step="Ask them by telephone for their new fingerprint, and confirm that.",
            code="revoked",
        )
    return member


def _verified_by_any(member: Member, check: Callable[[PublicKey], None]) -> None:
    """By the key in use or one before it: a rotation voids nothing that was signed."""
    present = _key(member)
    _any_of((*(PublicKey.from_hex_pem(key) for key in member.keys[:-1]), present), check)


def _any_of(keys: Sequence[PublicKey], check: Callable[[PublicKey], None]) -> None:
    """The newest first. Raises BadSignature when none fits."""
    for key in reversed(keys[1:]):
        try:
            return check(key)
        except BadSignature:
            continue
    return check(keys[0])


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Which signature is wrong: a steward reads the refusal, not the code."""
    try:
        yield
    except BadSignature as error:
        raise BadSignature(
            what, next_step="Nothing has run. Ask the researcher by telephone; tell the hub's operator."
        ) from error


def _key(member: Member) -> PublicKey:
    if not member.public:
        raise NotConfirmed(
            f"The key of {member.name} has not been seen yet.", next_step="Wait until the hub can be reached."
        )
    key = PublicKey.from_hex_pem(member.public)
    if PublicKey.from_hex_pem((member.keys or (member.public,))[0]).fingerprint.hex() != member.fingerprint:
        raise Malformed(
            f"The stored key of {member.name} does not fit its fingerprint.",
            next_step="The node's database was changed by something else: restore it, then confirm the member again.",
        )
    return key
