"""What the researcher's commands do, beside what one session does: who is asked, on which image, what has become of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from flame.crypto.canonical import digest, parse_canonical
from flame.crypto.keys import PublicKey, fingerprint_words
from flame.crypto.signatures import sign_document, verify_start_order
from flame.model.errors import Conflict, DoesNotMatchApproval, FlameError, Invalid, NotFound
from flame.model.manifest import CodeFile, Environment, Manifest, Participant, Recipient, Researcher
from flame.protocol.documents import Ending, StartOrder
from flame.protocol.freeze import AUTHOR_FILE, LockedState, format_time, freeze
from flame.protocol.roster import Statement, follow
from flame.researcher.api import Api
from flame.researcher.place import config_dir, locked, read_private_json, write_private_json
from flame.researcher.session import KnownNode, Progress, ResearcherSession, Submission

KNOWN: Final = "known-nodes.json"
NOBODY: Final = str(UUID(int=0))
MAX_PAGES: Final = 200


def pages(api: Api, path: str) -> list[dict[str, Any]]:
    """All rows of a list."""
    joined = "&" if "?" in path else "?"
    rows: list[dict[str, Any]] = []
    for _ in range(MAX_PAGES):
        answer = api.get(f"{path}{joined}page[limit]=50&page[offset]={len(rows)}")
        rows += answer["data"]
        if not answer["data"] or len(rows) >= int(answer["meta"]["total"]):
            break
    return rows


def chosen(rows: Sequence[Mapping[str, Any]], wanted: str, what: str, listed: str) -> dict[str, Any]:
    """The one row that ``wanted`` names: an id or its beginning, or a name. Raises NotFound, Invalid for several."""
    exact = [row for row in rows if wanted in (row["id"], row.get("name"), row.get("displayName"))]
    found = exact or [row for row in rows if len(wanted) >= 4 and str(row["id"]).startswith(wanted)]
    if not found:
        raise NotFound(f"None of your {what} is '{wanted[:128]}'.", next_step=f"See `{listed}`.")
    if len(found) > 1:
        raise Invalid(f"Several of your {what} are '{wanted[:128]}'.", next_step="Use the whole id.")
    return dict(found[0])


def find_project(api: Api, wanted: str) -> dict[str, Any]:
    return chosen(pages(api, "/core/projects"), wanted, "projects", "flame projects list")


def find_analysis(api: Api, wanted: str) -> dict[str, Any]:
    return chosen(pages(api, "/core/analyses"), wanted, "analyses", "flame analyses list")


def places_of(api: Api, kind: str, key: str, id_: str) -> list[dict[str, Any]]:
    """The hospitals that a project or an analysis asks, each with its node and what it has decided."""
    return pages(api, f"/core/{kind}-nodes?filter[{key}]={id_}&include=node")


def image_of(api: Api, project: Mapping[str, Any], wanted: str | None) -> dict[str, Any]:
    """The environment that an analysis runs in: the one asked for, the project's, or the only one that there is."""
    images = [image for image in pages(api, "/core/master-images") if image.get("digest")]
    if wanted is not None:
        found = [image for image in images if wanted in (image["id"], image["virtualPath"])]
    elif project.get("masterImageId"):
        found = [image for image in images if image["id"] == project["masterImageId"]]
    else:
        found = images
    if len(found) != 1:
        names = ", ".join(sorted(str(image["virtualPath"]) for image in images)) or "none; ask the hub's administrator"
        raise Invalid("It is not clear in which environment this runs.", next_step=f"Name it with --image: {names}.")
    return found[0]


def nodes_of(api: Api, project: Mapping[str, Any]) -> list[KnownNode]:
    """The nodes that a project asks. A node that was seen before under another first key is refused.

    The first time, the hub's word is all there is; it is remembered, and shown with `flame projects show` for people
    to compare by telephone.
    """
    rows = places_of(api, "project", "projectId", str(project["id"]))
    found = []
    for row in rows:
        node = row.get("node") or {}
        if not node.get("member"):
            raise Conflict(
                f"The node '{node.get('name', '?')}' is not enrolled.", next_step="Ask its hospital, or take it out."
            )
        found.append(KnownNode(str(node["id"]), str(node["name"]), str(node["type"]), str(node["member"])))
    if not found:
        raise Conflict("This project asks no node.", next_step="Ask hospitals: `flame projects ask PROJECT NODE …`.")
    _compare_known(api.url, found)
    return found


def _compare_known(hub: str, nodes: Sequence[KnownNode]) -> None:
    path = config_dir() / KNOWN
    with locked(path):
        document = read_private_json(path) or {}
        known = document.setdefault(hub, {})
        for node in nodes:
            before = known.get(node.id)
            if before is not None and before["member"] != node.fingerprint:
                raise DoesNotMatchApproval(
                    f"The hub names another key for {node.name} than before: {node.fingerprint[:16]}…, "
                    f"not {str(before['member'])[:16]}….",
                    next_step=f"Ask the hospital by telephone. If it has enrolled anew, take it out of {path}.",
                )
            known[node.id] = {"name": node.name, "member": node.fingerprint}
        write_private_json(path, document)


@dataclass(frozen=True)
class Plan:
    """What `flame submit` would do, before anything is done."""

    project: dict[str, Any]
    image: dict[str, Any]
    nodes: list[KnownNode]
    manifest: Manifest


def plan(
    session: ResearcherSession,
    project: dict[str, Any],
    files: Mapping[str, bytes],
    entrypoint: str,
    title: str,
    image: str | None,
    arguments: Sequence[str],
) -> Plan:
    """Freeze the analysis here, with ids that are not given yet. Raises Invalid for what could not be locked."""
    environment = image_of(session.api, project, image)
    nodes = nodes_of(session.api, project)
    own = Recipient(session.user, session.name, session.keys.result_fingerprint)
    state = LockedState(
        analysis=NOBODY,
        project=str(project["id"]),
        title=title,
        created=format_time(datetime.now(UTC)),
        code=[CodeFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()],
        entrypoint=entrypoint,
        arguments=arguments,
        environment=Environment(str(environment["virtualPath"]), str(environment["digest"])),
        participants=[Participant(n.id, n.name, _role(n), "", n.fingerprint) for n in nodes],
        researcher=Researcher(session.user, session.name, session.keys.sign_fingerprint),
        people={session.name: own},
        author_file=files.get(AUTHOR_FILE),
    )
    return Plan(project, environment, nodes, freeze(state))


def _role(node: KnownNode) -> Any:
    return "aggregator" if node.role == "aggregator" else "default"


def order_number(api: Api, analysis: str, manifest: bytes) -> int:
    """The next run's number of a manifest."""
    hex_ = digest(manifest).hex()
    used = [row["number"] for row in api.get(f"/core/analyses/{analysis}/runs")["data"] if row["manifest"] == hex_]
    return max(used, default=0) + 1


def parameter_values(manifest: Manifest, texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as the manifest's types say it. Raises Invalid, naming what may be chosen."""
    known = {parameter.name: parameter for parameter in manifest.parameters}
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or name not in known:
            raise Invalid(
                f"--param {text[:100]!r} names no parameter of this analysis.",
                next_step=f"Write NAME=VALUE with one of: {', '.join(sorted(known)) or 'none'}.",
            )
        parameter = known[name]
        if parameter.type == "text":
            values[name] = given
            continue
        try:
            values[name] = msgspec.json.decode(given)
        except msgspec.DecodeError:
            raise Invalid(
                f"--param {text[:100]!r} is not of the type {parameter.type}.",
                next_step="Numbers as 3 or 0.5, flags as true or false, lists as [1, 2].",
            ) from None
    return values


def aggregator_keys(api: Api, manifest: Manifest) -> tuple[PublicKey, ...]:
    """The keys of the aggregator that the signed manifest names, followed from the first. Raises Conflict, NotFound."""
    member = manifest.aggregator.member
    rows = [row for row in api.get(f"/core/roster?members={member}")["data"] if row.get("member") == member]
    if not rows:
        raise NotFound("The hub does not know the aggregator's key.", next_step="Ask the hub's operator.")
    statements = [Statement(s["document"], s["signature"]) for s in rows[0]["statements"]]
    standing = follow(member, "node", str(rows[0]["publicKey"]), statements)
    if standing.revoked:
        raise Conflict(
            f"The aggregator's key was revoked {standing.revoked}: whoever holds it could have made up this result.",
            next_step="Ask the aggregator's hospital by telephone.",
        )
    return tuple(PublicKey.from_hex_pem(key) for key in standing.keys)


def read(manifest: bytes) -> Manifest:
    return Manifest.from_document(parse_canonical(manifest, max_bytes=4 << 20))


def shown_manifest(manifest: Manifest, hex_: str) -> dict[str, Any]:
    """What a person looks at before signing, and what the hospitals will see."""
    document = manifest.document()
    document.pop("version")
    return {
        "digest": hex_,
        **document,
        "participants": [
            {
                "name": p.name,
                "role": p.role,
                "organisation": p.organisation,
                "member": p.member,
                "words": fingerprint_words(bytes.fromhex(p.member)),
            }
            for p in manifest.participants
        ],
    }


def follow_run(
    session: ResearcherSession,
    submission: Submission,
    names: Mapping[str, str],
    progress: Callable[[Progress], None],
    seconds: float,
) -> tuple[str, str]:
    """From the hospitals' decisions to the end of a run; returns its status and, where it failed, whose reason."""
    until = time.monotonic() + seconds
    told: dict[str, str] = {}
    seen = ""
    while True:
        shown, seen = session.look(submission.analysis, seen, min(25.0, max(0.0, until - time.monotonic())))
        for row in shown["nodes"]:
            decided = row["approvalStatus"] or "not decided yet"
            if told.get(row["nodeId"]) != decided:
                told[row["nodeId"]] = decided
                progress(Progress("approve", names.get(row["nodeId"], row["nodeId"]), 0, decided))
        against = [names.get(id_, id_) for id_, said in told.items() if said == "rejected"]
        if not shown["analysis"]["configurationLocked"]:
            return "stopped", "The analysis was unlocked: its approvals and orders are void."
        if shown["analysis"]["distributionStatus"] == "executed":
            return session.watch(submission, names, progress, max(1.0, until - time.monotonic()))
        if "failed" in (shown["analysis"]["buildStatus"], shown["analysis"]["distributionStatus"]):
            return "failed", "The hub could not build the analysis; see its log there."
        if against:
            return "rejected", f"{', '.join(against)} rejected it."
        if time.monotonic() > until:
            waits = [names.get(id_, id_) for id_, said in told.items() if said != "approved"]
            return "waiting", f"It waits for {', '.join(waits)}." if waits else "It waits to be built."


def own_runs(session: ResearcherSession, submission: Submission) -> dict[str, int]:
    """The runs of a manifest that were ordered with the researcher's signature: id -> number.

    An order that the hub made up, or of another manifest, is not among them.
    """
    hex_ = digest(submission.manifest).hex()
    found = {}
    for row in session.api.get(f"/core/analyses/{submission.analysis}/runs")["data"]:
        try:
            order: StartOrder = StartOrder.decode(str(row["order"]).encode())
            signature = bytes.fromhex(row["signature"] or "")
        except (FlameError, ValueError):
            continue
        if order.manifest == hex_ and any(_signed(key, signature, order) for key in submission.signers):
            found[order.digest.hex()] = order.number
    return found


def _signed(key: PublicKey, signature: bytes, order: StartOrder) -> bool:
    try:
        verify_start_order(key, signature, order.digest)
    except FlameError:
        return False
    return True


def researcher_keys(api: Api, fingerprint: str) -> tuple[PublicKey, ...]:
    """Somebody else's signing keys, followed from the fingerprint that they have given."""
    rows = [row for row in api.get(f"/core/roster?members={fingerprint}")["data"] if row.get("member") == fingerprint]
    if not rows:
        raise NotFound("The hub does not know this key.", next_step="Ask its owner for `flame keys fingerprint`.")
    statements = [Statement(s["document"], s["signature"]) for s in rows[0]["statements"]]
    standing = follow(fingerprint, "researcher", str(rows[0]["publicKey"]), statements)
    return tuple(PublicKey.from_hex_pem(key) for key in standing.keys)


def end_of_project(session: ResearcherSession, project: str, reason: str) -> dict[str, str]:
    """The signed end of a project: with it the hospitals delete what it has left there."""
    ending = Ending(project, session.keys.sign_fingerprint, reason, format_time(datetime.now(UTC)))
    document = ending.encoded()
    signature = sign_document(session.keys.sign, "ending-v1", parse_canonical(document))
    return {"document": document.decode(), "signature": signature.hex()}
