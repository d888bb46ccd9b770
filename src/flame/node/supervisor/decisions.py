"""What a steward decides at the node: analyses, projects, members. Signed by the node's key, durable, then told to the hub."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec

from flame.crypto.canonical import digest, parse_canonical
from flame.crypto.keys import PublicKey
from flame.crypto.signatures import sign_approval, verify_document, verify_manifest
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
from flame.node.supervisor.conditions import check_conditions
from flame.node.supervisor.events import RETRY_SECONDS, Events
from flame.node.supervisor.program import show_program
from flame.node.supervisor.roster import Roster, people_of
from flame.node.supervisor.verification import Member, Situation, read_manifest
from flame.protocol.documents import Approval, By, Ending, Proposal
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
        self.roster = Roster(context, events)
        self._wake = asyncio.Event()

    # --- members ----------------------------------------------------------------------------------------------------

    async def members(self) -> dict[str, Member]:
        return await self.roster.members()

    async def confirm(self, fingerprint: str, kind: str, name: str, steward: str) -> dict[str, Any]:
        return await self.roster.confirm(fingerprint, kind, name, steward)

    async def learn_keys(self, manifest: Manifest) -> None:
        await self.roster.learn(manifest)

    async def named_anywhere(self) -> list[tuple[str, str, str]]:
        """Everyone whom a manifest that was shown here names."""
        rows = await self._context.journal.rows("SELECT manifest FROM analyses ORDER BY seen DESC LIMIT 50")
        return list(dict.fromkeys(person for (content,) in rows for person in people_of(read_manifest(bytes(content)))))

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
            "signatureVerified": signature is not None and bool(signature_of(manifest, content, signature, members)),
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
            "members": await self.roster.named(m for m in people_of(manifest) if m[0] != self._context.member),
            "approval": await self._shown_approval(id_),
        }

    async def _shown_approval(self, analysis: str) -> dict[str, Any] | None:
        """The newest decision and what it says: by whom, when, until when, under which conditions."""
        rows = await self._context.journal.rows(
            "SELECT document, comment, ended FROM approvals WHERE subject = 'analysis' AND about = ? ORDER BY id DESC LIMIT 1",
            analysis,
        )
        return shown_approval(bytes(rows[0][0]), str(rows[0][1]), rows[0][2]) if rows else None

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
        conditions: Mapping[str, Any] | None = None,
        by: By | None = None,
    ) -> dict[str, Any]:
        """Sign a decision on the manifest that is stored here.

        ``conditions`` narrow what may run (`flame.node.supervisor.conditions`).

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
        narrowed = check_conditions(conditions or {}) if decision == "approved" else {}
        who = by or By("steward", steward)
        return await self._record("analysis", analysis, hex_, decision, who, comment, days, unsigned, narrowed)

    async def _check_approvable(
        self, manifest: Manifest, content: bytes, signature: str | None, confirm_unsigned: bool
    ) -> None:
        if manifest.participant(self._context.node) is None:
            raise Refused(
                "This node is not a participant of the manifest.", next_step="Nothing: other hospitals were asked."
            )
        await self.require_project(manifest.project)
        if signature is not None:
            if signature_of(manifest, content, signature, await self.members()) == "earlier":
                raise Refused(
                    f"The manifest is signed with a key that {manifest.researcher.name} has replaced since.",
                    next_step="Ask the researcher to sign it again with `flame sign`.",
                )
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
            own_keys=await self.roster.own_keys(),
        )

    # --- projects ---------------------------------------------------------------------------------------------------

    async def projects(self) -> list[dict[str, Any]]:
        """What asks for this hospital: with this node's own decision, and what was said at the hub only."""
        answer = await self._context.link.request(
            "GET", f"/core/project-nodes?filter[nodeId]={self._context.node}&include=project&page[limit]=50"
        )
        found = []
        for row in answer["data"]:
            project = row.get("project") or {}
            approval = await self._project_approval(row["projectId"])
            found.append(
                {
                    "id": row["projectId"],
                    "name": project.get("displayName") or project.get("name", ""),
                    "decision": approval.decision if approval else "pending",
                    "toConfirm": at_hub(row),
                    "expires": project.get("expires") or "",
                    "ended": project.get("endedAt") or "",
                }
            )
        return found

    async def project(self, id_: str) -> dict[str, Any]:
        """A proposal as a steward reads it before deciding."""
        content, ending = await self._proposal(id_)
        proposal: Proposal = Proposal.decode(content)
        approval = await self._project_approval(id_)
        fields = {name: value for name, value in msgspec.to_builtins(proposal).items() if name != "version"}
        return {
            "id": id_,
            "digest": digest(content).hex(),
            **fields,
            "expires": proposal.expires,
            "decision": approval.decision if approval else "pending",
            "approval": shown_approval(approval.encoded(), "", None) if approval else None,
            "ended": ending.time if ending else "",
        }

    async def decide_project(
        self,
        project: str,
        decision: Decision,
        steward: str,
        comment: str = "",
        days: int = DEFAULT_DAYS,
        seen_digest: str = "",
        by: By | None = None,
    ) -> dict[str, Any]:
        content, ending = await self._proposal(project)
        hex_ = digest(content).hex()
        if seen_digest and seen_digest != hex_:
            raise DoesNotMatchApproval(
                "The proposal has been changed since it was shown; nothing was decided.",
                next_step="Look at it again with `flame node projects show PROJECT`, then decide.",
            )
        if ending is not None and decision == "approved":
            raise Conflict("This project has ended.", next_step="Its researcher proposes a new one.")
        who = by or By("steward", steward)
        return await self._record("project", project, hex_, decision, who, comment, days, False, {})

    async def comment_project(self, project: str, comment: str) -> dict[str, Any]:
        """A word to the researcher, without a decision."""
        if not comment.strip() or len(comment) > 4096:
            raise Invalid("A comment has 1 to 4096 characters.", next_step="Write it after the project.")
        row = await self._place("project", project)
        await self._context.link.request("POST", f"/core/project-nodes/{row['id']}", {"comment": comment})
        return {"id": project, "comment": comment}

    async def look_at_project(self, project: str) -> ProjectNews:
        """What has become of a project since this hospital decided about it. Raises Unavailable."""
        content, ending = await self._proposal(project)
        approval = await self._project_approval(project)
        if ending is not None:
            await self._end_project(project)
            return ProjectNews("ended", by_researcher=await self._is_signed_ending(ending))
        if approval is not None and approval.manifest != digest(content).hex():
            await self._end_project(project)
            return ProjectNews("changed")
        return ProjectNews("")

    async def known_projects(self) -> list[str]:
        """Projects that a decision of this hospital stands about."""
        rows = await self._context.journal.rows(
            "SELECT DISTINCT about FROM approvals WHERE subject = 'project' AND ended IS NULL"
        )
        return [str(row[0]) for row in rows]

    async def expired_projects(self) -> list[str]:
        """Projects whose own end has come, as the proposal that was approved here says it, and that are still kept."""
        found = []
        for project in await self.known_projects():
            rows = await self._context.journal.rows(
                "SELECT p.document FROM projects p JOIN approvals a ON a.about = p.id AND a.digest = p.digest"
                " WHERE p.id = ? AND p.ended IS NULL AND a.ended IS NULL AND a.decision = 'approved'",
                project,
            )
            proposal: Proposal | None = Proposal.decode(bytes(rows[0][0])) if rows else None
            if proposal is not None and proposal.expires and parse_time(proposal.expires) < now():
                found.append(project)
        return found

    async def _end_project(self, project: str) -> None:
        await self._context.journal.execute(
            "UPDATE approvals SET ended = ? WHERE subject = 'project' AND about = ? AND ended IS NULL",
            format_time(now()),
            project,
        )

    async def _is_signed_ending(self, ending: Ending) -> bool:
        """Whether it was signed by a researcher believed here; only then anything is deleted because of it."""
        member = (await self.members()).get(ending.researcher)
        return member is not None and member.kind == "researcher" and not member.revoked

    async def _proposal(self, project: str) -> tuple[bytes, Ending | None]:
        """The proposal as the hub shows it, kept here; and its end, if somebody has signed one. Raises Unavailable."""
        data = (await self._context.link.request("GET", f"/core/projects/{project}/proposal"))["data"]
        content = str(data["proposal"]).encode()
        proposal: Proposal = Proposal.decode(content)
        if proposal.project != project:
            raise DoesNotMatchApproval("The hub shows the proposal of another project.")
        await self._context.journal.execute(
            "INSERT INTO projects(id, digest, document, seen) VALUES(?, ?, ?, ?) ON CONFLICT(id) DO UPDATE SET "
            "digest = excluded.digest, document = excluded.document",
            project,
            digest(content).hex(),
            content,
            format_time(now()),
        )
        return content, await self._checked_ending(project, data.get("ending"))

    async def _checked_ending(self, project: str, said: Any) -> Ending | None:
        """Raises Malformed; an end that nobody has signed still ends the project: stopping is always safe."""
        if not isinstance(said, dict):
            return None
        ending: Ending = Ending.decode(str(said.get("document")).encode())
        if ending.project != project:
            raise DoesNotMatchApproval("The hub shows the end of another project.")
        member = (await self.members()).get(ending.researcher)
        if member is None or not member.public:
            return replace_researcher(ending)
        try:
            signature = bytes.fromhex(str(said.get("signature")))
            verify_document(
                PublicKey.from_hex_pem(member.public), signature, "ending-v1", parse_canonical(ending.encoded())
            )
        except (FlameError, ValueError):
            return replace_researcher(ending)
        return ending

    async def _project_approval(self, project: str) -> Approval | None:
        rows = await self._context.journal.rows(
            "SELECT document FROM approvals WHERE subject = 'project' AND about = ? AND ended IS NULL"
            " ORDER BY id DESC LIMIT 1",
            project,
        )
        return Approval.decode(bytes(rows[0][0])) if rows else None

    async def require_project(self, project: str) -> None:
        """This hospital takes part in the project. Raises NotApproved, also when that was withdrawn, or Expired."""
        approval = await self._project_approval(project)
        if approval is None or approval.decision != "approved":
            raise NotApproved(
                "This hospital does not take part in the project"
                + (": a steward has rejected it." if approval else ": no steward has approved it."),
                next_step=f"If it should: `flame node projects approve {project}`.",
            )
        if parse_time(approval.expires) < now():
            raise Expired(
                "This hospital's approval of the project has expired.",
                next_step=f"A steward may renew it: `flame node projects approve {project}`.",
            )
        rows = await self._context.journal.rows(
            "SELECT document FROM projects WHERE id = ? AND digest = ?", project, approval.manifest
        )
        proposal: Proposal | None = Proposal.decode(bytes(rows[0][0])) if rows else None
        if proposal is not None and proposal.expires and parse_time(proposal.expires) < now():
            raise Expired(
                "The project has expired.", next_step="Its researcher proposes a new one, or a later end of this one."
            )

    async def require_live(self, analysis: str, manifest: Manifest) -> None:
        """Whether what runs may go on: approval, project and manifest stand. Raises what ended."""
        if parse_time(manifest.expires) < now():
            raise Expired("The manifest has expired.", next_step="Submit the analysis again.")
        await self.require_project(manifest.project)
        live = await self.live(analysis, "")
        if live is not None and parse_time(Approval.decode(live[0]).expires) < now():
            raise Expired("This hospital's approval has expired.", next_step="A steward may approve it again.")

    # --- decisions at the hub ---------------------------------------------------------------------------------------

    async def to_confirm(self, analysis: str) -> dict[str, Any] | None:
        """What somebody has said at the hub for this hospital, without a signature: it runs nothing."""
        try:
            return at_hub(await self._place("analysis", analysis))
        except (NotFound, Unavailable):
            return None

    async def said_at_hub(self) -> dict[str, dict[str, Any]]:
        """Decisions for this node that stand at the hub without its signature, by analysis."""
        path = f"/core/analysis-nodes?filter[nodeId]={self._context.node}&sort=-updatedAt&page[limit]=50"
        rows = (await self._context.link.request("GET", path))["data"]
        return {str(row["analysisId"]): said for row in rows if (said := at_hub(row)) is not None}

    async def confirm_by_policy(self, analysis: str) -> bool:
        """Sign what a user named in policy.toml has approved at the hub, if a steward has decided nothing yet."""
        allowed = self._context.policy.confirm_hub_approvals
        _, hex_, _ = await self._stored(analysis)
        if not allowed or await self._decision(analysis, hex_) != "pending":
            return False
        said = await self.to_confirm(analysis)
        if said is None or said["decision"] != "approved" or said["by"] not in allowed:
            return False
        by = By("policy", f"confirm_hub_approvals: {said['by']}")
        await self.decide(analysis, "approved", "", seen_digest=hex_, by=by)
        return True

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
        kind = "analysis-nodes" if subject == "analysis" else "project-nodes"
        row = await self._place(subject, about)
        await self._context.link.request("POST", f"/core/{kind}/{row['id']}", body)

    async def _place(self, subject: str, about: str) -> dict[str, Any]:
        """This node's place in an analysis or a project, as the hub has it. Raises NotFound, Unavailable."""
        kind, key = ("analysis-nodes", "analysisId") if subject == "analysis" else ("project-nodes", "projectId")
        path = f"/core/{kind}?filter[{key}]={about}&filter[nodeId]={self._context.node}"
        rows = (await self._context.link.request("GET", path))["data"]
        if not rows:
            raise NotFound(f"The hub does not ask this node about {about}.")
        return dict(rows[0])

    async def _record(
        self,
        subject: Literal["analysis", "project"],
        about: str,
        hex_: str,
        decision: Decision,
        by: By,
        comment: str,
        days: int,
        confirm_unsigned: bool,
        conditions: Mapping[str, Any],
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
            conditions=dict(conditions),
            comment_sha256=hashlib.sha256(comment.encode()).hexdigest(),
            time=format_time(moment),
            expires=format_time(moment + timedelta(days=days)),
            by=[by],
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
            "by": by.name,
            "conditions": dict(conditions),
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


def signature_of(manifest: Manifest, content: bytes, signature: str, members: Mapping[str, Member]) -> str:
    """``present`` or ``earlier``, for the key that has signed; empty as long as the key is not known here.

    Raises BadSignature for one that is wrong.
    """
    member = members.get(manifest.researcher.key)
    if member is None or member.kind != "researcher" or not member.public:
        return ""
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise BadSignature("The manifest's signature cannot be read.", next_step=_SIGN_AGAIN) from None
    for key in reversed(member.keys or (member.public,)):
        try:
            verify_manifest(PublicKey.from_hex_pem(key), raw, digest(content))
            return "present" if key == member.public else "earlier"
        except BadSignature:
            continue
    raise BadSignature(
        f"The manifest is not signed by {manifest.researcher.name}, although the hub shows a signature.",
        next_step=_SIGN_AGAIN,
    )


def at_hub(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A decision that was made at the hub: which, and by whom. None where there is none, or the node's own."""
    status = row.get("approvalStatus")
    if status not in ("approved", "rejected") or row.get("approvalSigned"):
        return None
    return {"decision": status, "by": str(row.get("approvalBy") or ""), "comment": str(row.get("comment") or "")}


def shown_approval(document: bytes, comment: str, ended: str | None) -> dict[str, Any]:
    approval: Approval = Approval.decode(document)
    return {
        "decision": approval.decision,
        "by": ", ".join(f"{by.name} ({by.kind})" for by in approval.by),
        "time": approval.time,
        "expires": approval.expires,
        "conditions": approval.conditions,
        "comment": comment,
        "ended": ended or "",
    }


def replace_researcher(ending: Ending) -> Ending:
    """An end whose signature cannot be checked here: nobody's."""
    return Ending(ending.project, "", ending.reason, ending.time)


@dataclass(frozen=True, slots=True)
class ProjectNews:
    """What has become of a project: nothing, ``changed`` or ``ended``; whether its researcher has signed the end."""

    what: Literal["", "changed", "ended"]
    by_researcher: bool = False


_SIGN_AGAIN = "Ask the researcher by telephone, and to sign it again with `flame sign`."
