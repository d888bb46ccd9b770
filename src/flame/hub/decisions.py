"""A hospital's decision about a project or an analysis, signed by its node or made at the hub: one check for both."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from flame.crypto.keys import PublicKey
from flame.crypto.signatures import verify_approval
from flame.hub.authorisation import Action, Actor, Membership, demand
from flame.hub.resources import Body, LongText
from flame.model.errors import Conflict, DoesNotMatchApproval, Expired, Malformed
from flame.protocol.documents import Approval
from flame.protocol.freeze import parse_time


class SignedApproval(msgspec.Struct):
    document: str
    """The approval's canonical text."""
    signature: str
    """Hex."""


class DecisionBody(Body):
    approval_status: Literal["approved", "rejected"] | UnsetType | None = UNSET
    comment: LongText | UnsetType | None = UNSET
    approval: SignedApproval | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True)
class Subject:
    """What is decided about: the kind, the current digest (None before there is one), the place of the node."""

    kind: Literal["analysis", "project"]
    digest: str | None
    node: str
    place: Membership


def decide(actor: Actor, body: DecisionBody, row: Any, subject: Subject, key: PublicKey | None) -> dict[str, Any]:
    """The columns that a decision changes. Raises what forbids it.

    key: the enrolled key of the node that is asking (None for people).
    """
    if body.approval:
        demand(actor, Action.DECIDE_SIGNED, subject.place)
        approval = read_approval(body, subject, key)
        return {
            "approval_status": approval.decision,
            "approval_signed": True,
            "approval": body.approval.document,
            "approval_signature": body.approval.signature,
            "approval_by": None,
            "comment": body.comment or None,
        }
    demand(actor, Action.DECIDE, subject.place)
    if subject.digest is None:
        raise _nothing_to_decide(subject)
    if row.approval_signed and row.approval_status == "rejected" and body.approval_status == "approved":
        raise Conflict(
            "The node has rejected this with its signature; a decision at the hub does not override that.",
            next_step="The steward approves at the node.",
        )
    changed: dict[str, Any] = {"approval_status": body.approval_status, "approval_signed": False}
    changed |= {"approval": None, "approval_signature": None, "approval_by": actor.name}
    return changed | ({} if body.comment is UNSET else {"comment": body.comment})


def read_approval(body: DecisionBody, subject: Subject, key: PublicKey | None) -> Approval:
    """The signed approval of a request. Raises Malformed, BadSignature, DoesNotMatchApproval, Expired, Conflict."""
    assert body.approval and key is not None
    approval: Approval = Approval.decode(body.approval.document.encode())
    try:
        signature = bytes.fromhex(body.approval.signature)
    except ValueError:
        raise Malformed("The signature is not hexadecimal.") from None
    verify_approval(key, signature, msgspec.to_builtins(approval))
    if subject.digest is None:
        raise _nothing_to_decide(subject)
    said = (approval.subject, approval.manifest, approval.node)
    if said != (subject.kind, subject.digest, subject.node):
        raise DoesNotMatchApproval(
            "The approval is about something else than what stands here now.",
            next_step="Fetch the manifest again, look at it, and decide anew.",
            digest=subject.digest,
        )
    if body.approval_status not in (approval.decision, UNSET):
        raise Conflict("approvalStatus says something else than the signed decision.")
    if approval.comment_sha256 != hashlib.sha256((body.comment or "").encode()).hexdigest():
        raise DoesNotMatchApproval("The comment is not the one that was signed.")
    if parse_time(approval.expires).timestamp() < time.time():
        raise Expired("The approval has expired.", next_step="Decide anew.")
    return approval


def _nothing_to_decide(subject: Subject) -> Conflict:
    return Conflict(
        "There is nothing to decide about yet: the analysis is not locked, or its manifest is not complete."
        if subject.kind == "analysis"
        else "There is nothing to decide about.",
        next_step="Wait until the researcher has locked it; `missing` of its manifest says what is not there.",
    )
