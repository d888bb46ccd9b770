"""The researcher's loop: keys, submission with a signature over what was frozen, start order, watching, opening results."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flame.crypto.canonical import digest, parse_canonical
from flame.crypto.envelope import open_envelope, peek_head
from flame.crypto.keys import HybridKey, PublicKey
from flame.crypto.signatures import sign_manifest, sign_start_order, verify_manifest
from flame.model.errors import BadSignature, Conflict, DoesNotMatchApproval, Invalid, NotFound, RunFailed
from flame.model.manifest import CodeFile, Environment, Manifest, Recipient, Researcher, check_path
from flame.protocol.documents import StartOrder
from flame.protocol.freeze import AUTHOR_FILE, LockedState, format_time, freeze
from flame.protocol.payload import split
from flame.researcher.api import Api
from flame.researcher.keys import Keys

ORDER_HOURS = 24
WIND_UP_SECONDS = 20.0
TERMINAL = ("executed", "failed", "stopped")


@dataclass(frozen=True)
class KnownNode:
    """A node whose fingerprint the researcher knows from its steward, not from the hub."""

    id: str
    name: str
    role: str
    fingerprint: str


@dataclass(frozen=True)
class Progress:
    stage: str
    node: str | None
    percent: int
    text: str


@dataclass(frozen=True)
class ResultFile:
    name: str
    content: bytes


@dataclass
class Submission:
    analysis: str
    project: str
    manifest: bytes
    run: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    signers: tuple[PublicKey, ...] = ()
    """The keys that may have signed it and its orders."""


_NOT_LOCKED = "The analysis cannot be locked: "
_PLACE = re.compile(r"manifest\.(\w+)\[(\d{1,4})\]\.(\w+) ")


def not_frozen(missing: Sequence[str]) -> Invalid | Conflict:
    """The hub's reasons for freezing nothing as one error: Invalid, in the words of the author's file where it is at
    fault; Conflict for what others have to add first."""
    for reason in missing:
        if reason.startswith((_NOT_LOCKED, AUTHOR_FILE)):
            plain = reason.removeprefix(_NOT_LOCKED).removeprefix(f"{AUTHOR_FILE}: ")
            plain = _PLACE.sub(lambda m: f"[[{m[1]}]] number {int(m[2]) + 1}, key {m[3]} ", plain, count=1)
            said = plain if plain.startswith(AUTHOR_FILE) else f"{AUTHOR_FILE}: {plain}"
            return Invalid(said, next_step=f"Correct {AUTHOR_FILE} and submit again.")
    text = " ".join(missing) or "The hub does not say what is missing."
    return Conflict(f"The analysis is not complete. {text}", next_step="Submit it again when that is there.")


class ResearcherSession:
    """One researcher at one hub."""

    def __init__(self, api: Api, keys: Keys) -> None:
        self.api, self.keys = api, keys
        info = api.get("/auth/userinfo")
        self.user, self.name = str(info["sub"]), str(info.get("preferred_username") or info.get("name"))

    def register_keys(self) -> None:
        """Tell the hub the public halves; a hospital believes them only once a steward has confirmed them."""
        self.api.post("/core/user-keys", {"kind": "sign", "publicKey": self.keys.sign.public.hex_pem})
        self.api.post(
            "/core/user-keys", {"kind": "result", "publicKey": base64.b64encode(self.keys.result.public_bytes).decode()}
        )

    def create_project(self, name: str, description: str, nodes: Sequence[str]) -> str:
        project = str(
            self.api.post("/core/projects", {"name": name, "displayName": name, "description": description})["data"][
                "id"
            ]
        )
        for node in nodes:
            self.api.post("/core/project-nodes", {"projectId": project, "nodeId": node})
        return project

    def submit(
        self,
        project: str,
        files: Mapping[str, bytes],
        *,
        entrypoint: str,
        title: str,
        image: str,
        environment: Environment,
        nodes: Sequence[KnownNode],
        arguments: Sequence[str] = (),
    ) -> Submission:
        """Upload, lock, compare what the hub froze with what was meant, and sign it.

        Raises DoesNotMatchApproval, signing nothing, when the hub's manifest says something else.
        """
        if entrypoint not in files:
            raise Invalid(
                f"The entry point '{entrypoint}' is not among the files.",
                next_step=f"Name one of: {', '.join(sorted(files))[:500]}.",
            )
        for path in files:
            check_path(path)
        body = {
            "name": f"{_slug(title)}-{hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:6]}",
            "displayName": title,
            "description": title,
            "projectId": project,
            "masterImageId": image,
            "imageCommandArguments": [{"value": a, "position": "after"} for a in arguments],
        }
        analysis = str(self.api.post("/core/analyses", body)["data"]["id"])
        self._ask_nodes(analysis, nodes)
        self._upload(analysis, files, entrypoint)
        self.command(analysis, "configurationLock")
        manifest, _ = self.frozen(analysis)
        meant = self._meant(manifest, analysis, project, title, files, entrypoint, environment, nodes, arguments)
        if meant != manifest:
            raise DoesNotMatchApproval(
                f"The hub froze another manifest than the one meant ({_difference(meant, manifest)}); it was not signed.",
                next_step="Tell the hub's operator.",
            )
        self.sign(analysis, manifest)
        return Submission(analysis, project, manifest)

    def sign(self, analysis: str, manifest: bytes) -> None:
        """Put one's own signature to a manifest that names oneself. Raises DoesNotMatchApproval for another's."""
        shown = Manifest.from_document(parse_canonical(manifest, max_bytes=4 << 20))
        if (shown.analysis, shown.researcher.key) != (analysis, self.keys.sign_fingerprint):
            raise DoesNotMatchApproval(
                "The manifest names another analysis or another researcher's key; it was not signed.",
                next_step="Compare with `flame keys fingerprint`; unlock and lock the analysis if your keys are newer.",
            )
        signature = sign_manifest(self.keys.sign, digest(manifest))
        self.api.put(
            f"/core/analyses/{analysis}/manifest/signature",
            {"digest": digest(manifest).hex(), "signature": signature.hex()},
        )

    def command(self, analysis: str, command: str) -> dict[str, Any]:
        return dict(self.api.post(f"/core/analyses/{analysis}/command", {"command": command})["data"])

    def build_and_distribute(self, analysis: str, progress: Callable[[Progress], None]) -> None:
        for command, status in (("buildStart", "buildStatus"), ("distributionStart", "distributionStatus")):
            record, seen = self.command(analysis, command), ""
            while record[status] not in TERMINAL:
                shown, seen = self.look(analysis, seen)
                record = shown["analysis"]
            progress(Progress("build", None, 100, f"{status} {record[status]}"))
            if record[status] != "executed":
                raise RunFailed(
                    f"The hub could not {command.removesuffix('Start')} the analysis.",
                    next_step="See `analysis-logs` at the hub.",
                )

    def start(
        self,
        submission: Submission,
        number: int = 1,
        parameters: Mapping[str, Any] | None = None,
        hours: int | None = ORDER_HOURS,
    ) -> str:
        """Sign and hand in the order to run the manifest once; returns the run's id.

        hours: how long the order may wait for the hospitals; None: as long as the manifest holds.
        """
        manifest = Manifest.from_document(parse_canonical(submission.manifest, max_bytes=4 << 20))
        moment = datetime.now(UTC)
        order = StartOrder(
            manifest=digest(submission.manifest).hex(),
            number=number,
            parameters=dict(parameters or {}),
            participants=[p.node for p in manifest.participants],
            created=format_time(moment),
            expires=manifest.expires if hours is None else format_time(moment + timedelta(hours=hours)),
        )
        signature = sign_start_order(self.keys.sign, order.digest)
        self.api.post(
            f"/core/analyses/{submission.analysis}/runs",
            {"order": order.encoded().decode(), "signature": signature.hex()},
        )
        submission.run = order.digest.hex()
        return submission.run

    def watch(
        self, submission: Submission, names: Mapping[str, str], progress: Callable[[Progress], None], seconds: float
    ) -> tuple[str, str]:
        """Until every node has ended; returns the status and, where it failed, whose reason.

        Once one node has failed, the others hear of it from that node: who has not ended soon after is not there.
        """
        until = time.monotonic() + seconds
        told: dict[str, tuple[str, int]] = {}
        seen = ""
        while True:
            shown, seen = self.look(submission.analysis, seen, min(25.0, max(0.0, until - time.monotonic())))
            rows = [row for row in shown["nodes"] if row["executionRun"] == submission.run]
            for row in rows:
                now = (row["executionStatus"] or "", row.get("executionProgress") or 0)
                if told.get(row["nodeId"]) != now:
                    told[row["nodeId"]] = now
                    progress(Progress("run", names.get(row["nodeId"], row["nodeId"]), now[1], now[0]))
            if len(rows) == len(shown["nodes"]) and all(row["executionStatus"] in TERMINAL for row in rows):
                return _verdict(rows, names)
            if any(row["executionStatus"] in ("failed", "stopped") for row in rows):
                until = min(until, time.monotonic() + WIND_UP_SECONDS)
                if time.monotonic() > until:
                    return _verdict([row for row in rows if row["executionStatus"] in TERMINAL], names)
            if time.monotonic() > until:
                return "failed", "The run did not end in time; it may still be going on."

    def look(self, analysis: str, seen: str, wait: float = 25.0) -> tuple[dict[str, Any], str]:
        """What the hub shows of an analysis as soon as it is something new: the hub holds the answer back until then."""
        answer = self.api.get(f"/core/analyses/{analysis}/watch?seen={seen}&wait={wait:.1f}")
        return dict(answer["data"]), str(answer["meta"]["seen"])

    def open_results(self, submission: Submission, aggregator: PublicKey) -> list[ResultFile]:
        """Fetch this run's sealed results, verify who sealed them, and open them here."""
        sealed = [
            row for row in self.sealed_results(submission.analysis) if row["path"].startswith(submission.run[:12])
        ]
        return [self.open_result(self.fetch(row), [aggregator], {submission.run})[1] for row in sealed]

    def sealed_results(self, analysis: str) -> list[dict[str, Any]]:
        """The results that the hub holds, sealed: path (it begins with the run's id), size and id of each, by path."""
        buckets = self.api.get(f"/core/analysis-buckets?filter[analysisId]={analysis}&filter[type]=RESULT")["data"]
        if not buckets:
            return []
        path = f"/core/analysis-bucket-files?filter[analysisBucketId]={buckets[0]['id']}&page[limit]=50"
        rows: list[dict[str, Any]] = []
        while True:
            answer = self.api.get(f"{path}&page[offset]={len(rows)}&sort=createdAt")
            rows += answer["data"]
            if not answer["data"] or len(rows) >= int(answer["meta"]["total"]):
                return sorted(rows, key=lambda row: str(row["path"]))

    def fetch(self, row: Mapping[str, Any]) -> bytes:
        return self.api.download(f"/storage/bucket-files/{row['bucketFileId']}/stream")

    def open_result(
        self, content: bytes, aggregator: Sequence[PublicKey], runs: Container[str]
    ) -> tuple[str, ResultFile]:
        """The run that a sealed result is of, and the result. ``aggregator``: its keys, the one in use last.

        Raises Refused or BadSignature for what is not sealed to one of our keys by the aggregator, Conflict for the
        result of another run.
        """
        sealed_to = {recipient.key for recipient in peek_head(content)[0].recipients}
        ours: tuple[HybridKey, ...] = (self.keys.result, *self.keys.older)
        key = next((key for key in ours if key.key_id in sealed_to), self.keys.result)
        for sender in reversed(aggregator[1:]):
            try:
                return self._opened(content, key, sender, runs)
            except BadSignature:
                continue  # sealed before the aggregator's key was rotated
        return self._opened(content, key, aggregator[0], runs)

    def _opened(
        self, content: bytes, key: HybridKey, sender: PublicKey, runs: Container[str]
    ) -> tuple[str, ResultFile]:
        head, payload = open_envelope(
            content, recipient_id=UUID(self.user).bytes, hybrid_key=key, expected_sender=sender
        )
        if head.run.hex() not in runs or head.type != "result":
            raise Conflict("The hub gave the result of another run.", next_step="Tell the hub's operator.")
        label, body = split(payload)
        return head.run.hex(), ResultFile(label.name, bytes(body))

    def _ask_nodes(self, analysis: str, nodes: Sequence[KnownNode]) -> None:
        asked = {
            row["nodeId"]
            for row in self.api.get(f"/core/analysis-nodes?filter[analysisId]={analysis}&page[limit]=50")["data"]
        }
        for node in nodes:
            if node.id not in asked:
                self.api.post("/core/analysis-nodes", {"analysisId": analysis, "nodeId": node.id})

    def _upload(self, analysis: str, files: Mapping[str, bytes], entrypoint: str) -> None:
        bucket = self.api.get(f"/core/analysis-buckets?filter[analysisId]={analysis}&filter[type]=CODE")["data"][0][
            "bucketId"
        ]
        self.api.upload(f"/storage/buckets/{bucket}/upload", dict(files))
        rows = self.api.get(f"/core/analysis-bucket-files?filter[analysisId]={analysis}&filter[path]={entrypoint}")[
            "data"
        ]
        self.api.post(f"/core/analysis-bucket-files/{rows[0]['id']}", {"root": True})

    def frozen(self, analysis: str) -> tuple[bytes, str | None]:
        """The manifest that the hub has frozen, and its signature. Raises Invalid, Conflict for what is missing."""
        answer = self.api.get(f"/core/analyses/{analysis}/manifest")["data"]
        if not answer.get("manifest"):
            raise not_frozen([str(text) for text in answer.get("missing") or []])
        return str(answer["manifest"]).encode(), answer.get("signature")

    def signed(self, analysis: str, by: Sequence[PublicKey] = ()) -> Submission:
        """An analysis with a signature over its manifest, by our own keys or by those given.

        Raises NotFound for an unsigned one, BadSignature for anybody else's signature.
        """
        manifest, signature = self.frozen(analysis)
        if not signature:
            raise NotFound("Nobody has signed this analysis.", next_step="Sign it: `flame sign ANALYSIS`.")
        signers = (*(by or (*self.keys.earlier_sign, self.keys.sign.public)),)
        verify_signed(signers, manifest, signature)
        shown = Manifest.from_document(parse_canonical(manifest, max_bytes=4 << 20))
        if shown.analysis != analysis:
            raise DoesNotMatchApproval("The hub shows the manifest of another analysis.")
        return Submission(analysis, shown.project, manifest, signers=signers)

    def _meant(
        self,
        frozen: bytes,
        analysis: str,
        project: str,
        title: str,
        files: Mapping[str, bytes],
        entrypoint: str,
        environment: Environment,
        nodes: Sequence[KnownNode],
        arguments: Sequence[str],
    ) -> bytes:
        """The same document, built here: only names, organisations and the moment of locking are taken from the hub."""
        shown = Manifest.from_document(parse_canonical(frozen, max_bytes=4 << 20))
        known = {node.id: node for node in nodes}
        for participant in shown.participants:
            node = known.get(participant.node)
            if node is None or node.fingerprint != participant.member or node.role != participant.role:
                raise DoesNotMatchApproval(
                    f"The hub's manifest names a participant or key that was not asked for: {participant.name}.",
                    next_step="It was not signed. Tell the hub's operator.",
                )
        if len(shown.participants) != len(nodes):
            raise DoesNotMatchApproval("The hub's manifest leaves out a participant.")
        own = Recipient(self.user, self.name, self.keys.result_fingerprint)
        state = LockedState(
            analysis=analysis,
            project=project,
            title=title,
            created=shown.created,
            code=[CodeFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()],
            entrypoint=entrypoint,
            arguments=arguments,
            environment=environment,
            participants=shown.participants,
            researcher=Researcher(self.user, self.name, self.keys.sign_fingerprint),
            people={self.name: own},
            author_file=files.get(AUTHOR_FILE),
        )
        from flame.crypto.canonical import canonical

        return canonical(freeze(state).document())


def verify_signed(signers: Sequence[PublicKey], manifest: bytes, signature: str) -> None:
    """Raises BadSignature unless one of these keys has signed the manifest."""
    for public in reversed(signers):
        try:
            return verify_manifest(public, bytes.fromhex(signature), digest(manifest))
        except (BadSignature, ValueError):
            continue
    raise BadSignature(
        "The manifest at the hub is signed by nobody whose key you have named: it is not what was submitted, "
        "or somebody else has submitted it.",
        next_step="For a colleague's analysis give --researcher FINGERPRINT; else tell the hub's operator.",
    )


def _verdict(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> tuple[str, str]:
    bad = [row for row in rows if row["executionStatus"] != "executed"]
    if not bad:
        return "executed", ""
    # the one that failed first has a reason of its own; the others tell of it
    first = min(bad, key=lambda row: (" ended: " in (row.get("executionReason") or ""), str(row.get("updatedAt"))))
    reason = str(first.get("executionReason") or "no reason was given")
    return str(first["executionStatus"]), f"{names.get(str(first['nodeId']), first['nodeId'])}: {reason}"


def _difference(meant: bytes, frozen: bytes) -> str:
    ours, theirs = parse_canonical(meant, max_bytes=4 << 20), parse_canonical(frozen, max_bytes=4 << 20)
    assert isinstance(ours, dict) and isinstance(theirs, dict)
    return ", ".join(sorted(key for key in ours if ours[key] != theirs.get(key)))


def _slug(title: str) -> str:
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in title.lower()).strip("-")
    return (plain or "analysis")[:80]
