"""What a steward decides at the node: analyses, projects, members. Signed by the node's key, durable, then told to the hub."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal

from flame.crypto.canonical import digest, parse_canonical
from flame.crypto.keys import PublicKey, fingerprint_words, parse_fingerprint
from flame.crypto.signatures import sign_approval, verify_manifest
from flame.model.errors import (
    BadSignature,
    Conflict,
    DoesNotMatchApproval,
    Expired,
    FlameError,
    Invalid,
    NotApproved,
    NotFound,
    Refused,
    Unavailable,
)
from flame.model.manifest import Manifest
from flame.node.context import Context, log, now
from flame.node.supervisor.events import RETRY_SECONDS, Events
from flame.node.supervisor.program import show_program
from flame.node.supervisor.verification import Member, Situation, read_manifest
from flame.protocol.documents import Approval, By, Proposal
from flame.protocol.freeze import format_time, parse_time
from flame.storage.failpoints import declare, reached

DEFAULT_DAYS = 90
Decision = Literal["approved", "rejected"]

DECIDED = declare(
    "node.approval.after-commit", "a signed decision is in the node's database; the hub has not been told"
)


class Decisions:
    def __init__(self, context: Context, events: Events) -> None:
        self._context, self._events = context, events
        self._wake = asyncio.Event()

    # --- members ----------------------------------------------------------------------------------------------------

    async def members(self) -> dict[str, Member]:
        rows = await self._context.journal.rows("SELECT fingerprint, kind, name, public FROM members")
        return {row[0]: Member(*row) for row in rows}

    async def confirm(self, fingerprint: str, kind: str, name: str, steward: str) -> dict[str, Any]:
        """Pin a key. The steward has compared the fingerprint with a source that is not the hub."""
        if kind not in ("node", "researcher", "result"):
            raise Invalid(f"'{kind}' is no kind of member.", next_step="Use node, researcher or result.")
        hex_ = parse_fingerprint(fingerprint).hex()
        known = (await self.members()).get(hex_)
        if known is not None and known.kind != kind:
            raise Conflict(
                f"This key is confirmed here as the one of a {known.kind} ({known.name}), not of a {kind}.",
                next_step="Compare the fingerprint again: one key serves one purpose.",
            )
        row = (hex_, kind, name[:128], "", steward, format_time(now()))
        await self._context.journal.execute(
            "INSERT INTO members VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT(fingerprint) DO UPDATE SET name = excluded.name",
            *row,
        )
        await self._events.add("confirmation", hex_, kind=kind)
        return {"fingerprint": hex_, "kind": kind, "name": name, "words": fingerprint_words(bytes.fromhex(hex_))}

    async def learn_keys(self, manifest: Manifest) -> None:
        """Fetch the public keys behind confirmed fingerprints; the hub cannot give another one, the fingerprint is checked."""
        members = await self.members()
        for participant in manifest.participants:
            await self._learn(members, participant.member, f"/core/nodes/{participant.node}")
        await self._learn_of_person(members, manifest.researcher.key, manifest.researcher.id)
        for recipient in manifest.recipients:
            await self._learn_of_person(members, recipient.result_key, recipient.id)

    async def _learn(self, members: Mapping[str, Member], fingerprint: str, path: str) -> None:
        member = members.get(fingerprint)
        if member is None or member.public:
            return
        answer = await self._context.link.request("GET", path)
        await self._keep(fingerprint, str(answer["data"].get("publicKey") or ""))

    async def _learn_of_person(self, members: Mapping[str, Member], fingerprint: str, user: str) -> None:
        member = members.get(fingerprint)
        if member is None or member.public:
            return
        answer = await self._context.link.request("GET", f"/core/user-keys?filter[userId]={user}")
        for row in answer["data"]:
            if row.get("fingerprint") == fingerprint:
                await self._keep(fingerprint, str(row["publicKey"]))

    async def _keep(self, fingerprint: str, public: str) -> None:
        if _fingerprint_of(public) != fingerprint:
            raise DoesNotMatchApproval(
                f"The hub gives another key than the one confirmed here as {fingerprint[:16]}…: a participant's key was swapped.",
                next_step="Ask the member by telephone; tell the hub's operator.",
            )
        await self._context.journal.execute("UPDATE members SET public = ? WHERE fingerprint = ?", public, fingerprint)

    # --- analyses ---------------------------------------------------------------------------------------------------

    async def take_manifest(
        self, analysis: str, project: str, title: str, content: bytes, signature: str | None
    ) -> None:
        """Remember the manifest that the hub shows. Another digest ends every approval of the earlier one for good."""
        hex_ = digest(content).hex()
        moment = format_time(now())

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO analyses VALUES(?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
                "digest = excluded.digest, manifest = excluded.manifest, signature = excluded.signature, title = excluded.title",
                (analysis, project, title, hex_, content, signature, moment),
            )
            connection.execute(
                "UPDATE approvals SET ended = ? WHERE subject = 'analysis' AND about = ? AND digest != ? AND ended IS NULL",
                (moment, analysis, hex_),
            )

        await self._context.journal.write(write)

    async def manifest_withdrawn(self, analysis: str) -> None:
        """The hub shows no manifest any more (an unlock): approvals end for good."""
        moment = format_time(now())
        await self._context.journal.execute(
            "UPDATE approvals SET ended = ? WHERE subject = 'analysis' AND about = ? AND ended IS NULL",
            moment,
            analysis,
        )

    async def analyses(self) -> list[dict[str, Any]]:
        rows = await self._context.journal.rows(
            "SELECT id, project, title, digest, seen FROM analyses ORDER BY seen DESC"
        )
        return [
            {
                "id": id_,
                "project": project,
                "title": title,
                "digest": hex_,
                "seen": seen,
                "decision": await self._decision(id_, hex_),
            }
            for id_, project, title, hex_, seen in rows
        ]

    async def analysis(self, id_: str) -> dict[str, Any]:
        """Everything a steward looks at before deciding."""
        content, hex_, signature = await self._stored(id_)
        manifest = read_manifest(content)
        members = await self.members()
        return {
            "id": id_,
            "title": manifest.title,
            "digest": hex_,
            "signed": signature is not None,
            "signatureVerified": signature is not None and _check_signature(manifest, content, signature, members),
            "manifest": manifest.document(),
            "decision": await self._decision(id_, hex_),
            "confirmed": _confirmed(
                [
                    *(
                        (p.name, p.node == self._context.node or _is(members, p.member, "node"))
                        for p in manifest.participants
                    ),
                    (
                        f"researcher {manifest.researcher.name}",
                        _is(members, manifest.researcher.key, "researcher"),
                    ),
                    *((f"recipient {r.name}", _is(members, r.result_key, "result")) for r in manifest.recipients),
                ]
            ),
        }

    async def code(self, id_: str) -> list[dict[str, Any]]:
        """The program's files as the hub has them now, each checked against the stored manifest."""
        content, _, _ = await self._stored(id_)
        return await show_program(self._context.link, read_manifest(content))

    async def decide(
        self,
        analysis: str,
        decision: Decision,
        steward: str,
        comment: str = "",
        days: int = DEFAULT_DAYS,
        confirm_unsigned: bool = False,
        seen_digest: str = "",
    ) -> dict[str, Any]:
        """Sign a decision on the manifest that is stored here.

        ``seen_digest``: what the steward looked at; another one by now is refused, so that the hub cannot exchange the
        manifest between the looking and the signing.
        """
        content, hex_, signature = await self._stored(analysis)
        if seen_digest and seen_digest != hex_:
            raise DoesNotMatchApproval(
                "The manifest has been changed since it was shown; nothing was decided.",
                next_step="Look at it again with `flame node show ANALYSIS`, then decide.",
            )
        if decision == "approved":
            await self._check_approvable(read_manifest(content), content, signature, confirm_unsigned)
        # a confirmation for an unsigned manifest says nothing about a signed one, whose orders must be signed too
        unsigned = confirm_unsigned and signature is None
        return await self._record("analysis", analysis, hex_, decision, steward, comment, days, unsigned)

    async def _check_approvable(
        self, manifest: Manifest, content: bytes, signature: str | None, confirm_unsigned: bool
    ) -> None:
        if manifest.participant(self._context.node) is None:
            raise Refused(
                "This node is not a participant of the manifest.", next_step="Nothing: other hospitals were asked."
            )
        await self.require_project(manifest.project)
        if signature is not None:
            _check_signature(manifest, content, signature, await self.members())
        elif self._context.policy.unsigned_submissions == "refuse":
            raise Refused(
                "The manifest is not signed, and this hospital's policy refuses unsigned submissions.",
                next_step="Ask the researcher to sign it with `flame sign`.",
            )
        elif not confirm_unsigned:
            raise Refused(
                "The manifest is not signed: only the hub says who asks for this.",
                next_step="Ask the researcher to sign it, or approve with --confirm-unsigned.",
            )

    async def live(self, analysis: str, digest_hex: str) -> tuple[bytes, bytes, bool] | None:
        """The newest standing decision on a digest: document, signature, whether unsigned was confirmed."""
        row = await self._context.journal.read(
            lambda c: c.execute(
                "SELECT document, signature, unsigned_confirmed FROM approvals WHERE subject = 'analysis' AND about = ? AND ended IS NULL"
                " ORDER BY (digest = ?) DESC, id DESC LIMIT 1",
                (analysis, digest_hex),
            ).fetchone()
        )
        return (bytes(row[0]), bytes(row[1]), bool(row[2])) if row else None

    async def situation(self, analysis: str, digest_hex: str) -> Situation:
        live = await self.live(analysis, digest_hex)
        return Situation(
            node=self._context.node,
            own_key=self._context.identity.public,
            now=now(),
            members=await self.members(),
            approval=live[0] if live else None,
            approval_signature=live[1] if live else b"",
            unsigned_confirmed=bool(live and live[2]) and self._context.policy.unsigned_submissions != "refuse",
        )

    # --- projects ---------------------------------------------------------------------------------------------------

    async def projects(self) -> list[dict[str, Any]]:
        answer = await self._context.link.request(
            "GET", f"/core/project-nodes?filter[nodeId]={self._context.node}&include=project"
        )
        return [
            {
                "id": row["projectId"],
                "name": (row.get("project") or {}).get("name", ""),
                "decision": row.get("approvalStatus"),
            }
            for row in answer["data"]
        ]

    async def decide_project(self, project: str, decision: Decision, steward: str, comment: str = "") -> dict[str, Any]:
        answer = await self._context.link.request("GET", f"/core/projects/{project}/proposal")
        content = str(answer["data"]["proposal"]).encode()
        proposal: Proposal = Proposal.decode(content)
        if proposal.project != project:
            raise DoesNotMatchApproval("The hub shows the proposal of another project.")
        return await self._record(
            "project", project, digest(content).hex(), decision, steward, comment, DEFAULT_DAYS, False
        )

    async def require_project(self, project: str) -> None:
        """This hospital takes part in the project. Raises NotApproved, also when that was withdrawn, or Expired."""
        rows = await self._context.journal.rows(
            "SELECT document FROM approvals WHERE subject = 'project' AND about = ? AND ended IS NULL"
            " ORDER BY id DESC LIMIT 1",
            project,
        )
        approval: Approval | None = Approval.decode(bytes(rows[0][0])) if rows else None
        if approval is None or approval.decision != "approved":
            raise NotApproved(
                "This hospital does not take part in the project"
                + (": a steward has rejected it." if approval else ": no steward has approved it."),
                next_step=f"If it should: `flame node approve-project {project}`.",
            )
        if parse_time(approval.expires) < now():
            raise Expired(
                "This hospital's approval of the project has expired.",
                next_step=f"A steward may renew it: `flame node approve-project {project}`.",
            )

    # --- telling the hub --------------------------------------------------------------------------------------------

    def kick(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Send decisions that the hub has not got yet, whenever it can be reached."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                await self._context.link.online.wait()
                self._wake.set()
            except FlameError as error:
                log.error("the hub does not take a decision: %s", error)
            except Exception:  # noqa: BLE001 - a hub that answers nonsense must not end the node
                log.exception("the hub's answer about a decision cannot be read")

    async def flush(self) -> None:
        rows = await self._context.journal.rows(
            "SELECT id, subject, about, decision, document, signature, comment FROM approvals WHERE sent = 0 ORDER BY id"
        )
        for id_, subject, about, decision, document, signature, comment in rows:
            body = {
                "approvalStatus": decision,
                "approval": {"document": bytes(document).decode(), "signature": bytes(signature).hex()},
            }
            if comment:
                body["comment"] = comment
            try:
                await self._tell(subject, about, body)
            except Unavailable:
                raise
            except FlameError as error:
                log.warning("the hub does not take the decision on %s: %s", about, error)
            await self._context.journal.execute("UPDATE approvals SET sent = 1 WHERE id = ?", id_)

    async def _tell(self, subject: str, about: str, body: dict[str, Any]) -> None:
        kind, key = ("analysis-nodes", "analysisId") if subject == "analysis" else ("project-nodes", "projectId")
        rows = (
            await self._context.link.request(
                "GET", f"/core/{kind}?filter[{key}]={about}&filter[nodeId]={self._context.node}"
            )
        )["data"]
        if not rows:
            raise NotFound(f"The hub does not ask this node about {about}.")
        await self._context.link.request("POST", f"/core/{kind}/{rows[0]['id']}", body)

    async def _record(
        self,
        subject: Literal["analysis", "project"],
        about: str,
        hex_: str,
        decision: Decision,
        steward: str,
        comment: str,
        days: int,
        confirm_unsigned: bool,
    ) -> dict[str, Any]:
        if not 1 <= days <= 3650:
            raise Invalid(f"An approval lasts 1 to 3650 days, not {days}.")
        if len(comment) > 4096:
            raise Invalid("The comment is longer than 4096 characters.")
        moment = now()
        approval = Approval(
            subject=subject,
            manifest=hex_,
            node=self._context.node,
            decision=decision,
            conditions={},
            comment_sha256=hashlib.sha256(comment.encode()).hexdigest(),
            time=format_time(moment),
            expires=format_time(moment + timedelta(days=days)),
            by=[By("steward", steward)],
        )
        document = approval.encoded()
        signature = sign_approval(self._context.identity, parse_canonical(document))

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE approvals SET ended = ? WHERE subject = ? AND about = ? AND ended IS NULL",
                (approval.time, subject, about),
            )
            connection.execute(
                "INSERT INTO approvals(subject, about, digest, decision, document, signature, comment, expires, unsigned_confirmed) VALUES(?,?,?,?,?,?,?,?,?)",
                (subject, about, hex_, decision, document, signature, comment, approval.expires, confirm_unsigned),
            )

        await self._context.journal.write(write)
        reached(DECIDED)
        self.kick()
        return {
            "subject": subject,
            "id": about,
            "digest": hex_,
            "decision": decision,
            "expires": approval.expires,
            "by": steward,
        }

    async def _stored(self, analysis: str) -> tuple[bytes, str, str | None]:
        row = await self._context.journal.read(
            lambda c: c.execute("SELECT manifest, digest, signature FROM analyses WHERE id = ?", (analysis,)).fetchone()
        )
        if row is None:
            raise NotFound(
                f"No analysis {analysis} has been shown to this node.",
                next_step="See `flame node analyses`; it appears when it is locked at the hub.",
            )
        return bytes(row[0]), str(row[1]), row[2]

    async def _decision(self, analysis: str, hex_: str) -> str:
        live = await self.live(analysis, hex_)
        if live is None:
            return "pending"
        approval: Approval = Approval.decode(live[0])
        return approval.decision if approval.manifest == hex_ else "pending"


def _is(members: Mapping[str, Member], fingerprint: str, kind: str) -> bool:
    member = members.get(fingerprint)
    return member is not None and member.kind == kind


def _confirmed(named: Iterable[tuple[str, bool]]) -> dict[str, bool]:
    """By name; a name that two bear is confirmed when both are, so that nobody hides behind another's name."""
    found: dict[str, bool] = {}
    for name, confirmed in named:
        found[name] = found.get(name, True) and confirmed
    return found


def _check_signature(manifest: Manifest, content: bytes, signature: str, members: Mapping[str, Member]) -> bool:
    """Whether the researcher's signature could be verified; False as long as the key is not known here.

    Raises BadSignature for one that is wrong.
    """
    member = members.get(manifest.researcher.key)
    if member is None or member.kind != "researcher" or not member.public:
        return False
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise BadSignature("The manifest's signature cannot be read.", next_step=_SIGN_AGAIN) from None
    try:
        verify_manifest(PublicKey.from_hex_pem(member.public), raw, digest(content))
    except BadSignature as error:
        raise BadSignature(
            f"The manifest is not signed by {manifest.researcher.name}, although the hub shows a signature.",
            next_step=_SIGN_AGAIN,
        ) from error
    return True


_SIGN_AGAIN = "Ask the researcher by telephone, and to sign it again with `flame sign`."


def _fingerprint_of(public: str) -> str:
    """Of a key as the hub gives it: hex of a PEM text, or base64 of a hybrid key."""
    import base64
    import binascii

    try:
        return PublicKey.from_hex_pem(public).fingerprint.hex()
    except FlameError:
        pass
    try:
        raw = base64.b64decode(public, validate=True)
    except (binascii.Error, ValueError):
        raise Conflict("The hub gives a key that cannot be read.") from None
    return hashlib.sha256(raw).hexdigest()
