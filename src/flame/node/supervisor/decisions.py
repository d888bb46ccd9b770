"""What a steward decides at the node: analyses, projects, members. Signed by the node's key, durable, then told to the hub."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from flame.crypto.canonical import digest, parse_canonical
from flame.crypto.keys import PublicKey, fingerprint_words, parse_fingerprint
from flame.crypto.signatures import sign_approval
from flame.model.errors import Conflict, DoesNotMatchApproval, FlameError, Invalid, NotFound, Refused, Unavailable
from flame.model.manifest import Manifest
from flame.node.context import Context, log, now
from flame.node.supervisor.events import Events
from flame.node.supervisor.verification import Member, Situation, read_manifest
from flame.protocol.documents import Approval, By, Proposal
from flame.protocol.freeze import format_time
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
            "manifest": manifest.document(),
            "decision": await self._decision(id_, hex_),
            "confirmed": {
                **{p.name: p.node == self._context.node or p.member in members for p in manifest.participants},
                f"researcher {manifest.researcher.name}": manifest.researcher.key in members,
                **{f"recipient {r.name}": r.result_key in members for r in manifest.recipients},
            },
        }

    async def decide(
        self,
        analysis: str,
        decision: Decision,
        steward: str,
        comment: str = "",
        days: int = DEFAULT_DAYS,
        confirm_unsigned: bool = False,
    ) -> dict[str, Any]:
        content, hex_, signature = await self._stored(analysis)
        manifest = read_manifest(content)
        if decision == "approved" and signature is None and not confirm_unsigned:
            if self._context.policy.unsigned_submissions == "refuse":
                raise Refused("The manifest is not signed, and this hospital's policy refuses unsigned submissions.")
            raise Refused(
                "The manifest is not signed: only the hub says who asks for this.",
                next_step="Ask the researcher to sign it, or approve with --confirm-unsigned.",
            )
        if decision == "approved" and manifest.participant(self._context.node) is None:
            raise Refused("This node is not a participant of the manifest.")
        return await self._record("analysis", analysis, hex_, decision, steward, comment, days, confirm_unsigned)

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
            unsigned_confirmed=bool(live and live[2]),
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
                continue
            except FlameError as error:
                log.error("the hub does not take a decision: %s", error)

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
