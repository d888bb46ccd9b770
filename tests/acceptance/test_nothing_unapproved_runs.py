"""A hub that means ill changes, exchanges, leaves out or repeats: no node runs anything that its steward has not approved.

The hub's operator is played with a text editor: its database and objects are changed under the running hub, past all of
its own checks; what the hub can see itself is handed in over HTTP in another test, and refused there.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from acceptance.federations import (
    AUTHOR,
    MEAN,
    approved,
    change_hub,
    events_about,
    eventually,
    make_sites,
    node_run,
    submitted,
)
from flame.crypto.canonical import canonical, digest, parse_canonical
from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_approval, sign_manifest, sign_start_order
from flame.lab.federation import Federation
from flame.model.errors import FlameError
from flame.model.manifest import Manifest
from flame.node.link.credentials import token_request
from flame.protocol.documents import Approval, StartOrder
from flame.protocol.freeze import format_time
from flame.researcher.api import Api
from flame.researcher.session import Submission
from unit.runtime.worlds import need_bubblewrap

FOREIGN = IdentityKey.generate()
STRANGER = "ab" * 32


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    need_bubblewrap()
    folder = tmp_path_factory.mktemp("hostile")
    running = Federation.up(folder / "fed", make_sites(folder / "sites"))
    try:
        yield running
    finally:
        running.down(keep_files=True)


def order_for(submission: Submission, **changes: Any) -> StartOrder:
    manifest = Manifest.from_document(parse_canonical(submission.manifest))
    moment = datetime.now(UTC)
    order = StartOrder(
        manifest=digest(submission.manifest).hex(),
        number=1,
        parameters={},
        participants=[p.node for p in manifest.participants],
        created=format_time(moment),
        expires=format_time(moment + timedelta(hours=1)),
    )
    return msgspec.structs.replace(order, **changes)


def slip_in(federation: Federation, submission: Submission, order: StartOrder, signature: str) -> str:
    """The hub shows a start order that it never checked."""
    run = order.digest.hex()
    change_hub(
        federation,
        'INSERT INTO runs(id, analysis_id, manifest_digest, number, "order", signature, state, expires, created_at) '
        "VALUES(?, ?, ?, ?, ?, ?, 'ordered', ?, ?)",
        run,
        submission.analysis,
        digest(submission.manifest).hex(),
        order.number,
        order.encoded().decode(),
        signature,
        4_000_000_000,
        "2030-01-01T00:00:00.000Z",
    )
    return run


def look_again(federation: Federation, submission: Submission) -> None:
    for node in federation.nodes:
        federation.steward(node.name).api.post(f"/api/analyses/{submission.analysis}/start", {})


def signed(federation: Federation, order: StartOrder, key: IdentityKey | None = None) -> str:
    return sign_start_order(key or federation.session.keys.sign, order.digest).hex()


def show(federation: Federation, submission: Submission, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The hub shows another manifest than the one that was signed and approved."""
    document = json.loads(submission.manifest)
    change(document)
    changed = canonical(document)
    hex_ = digest(submission.manifest).hex()
    assert change_hub(federation, "UPDATE manifests SET document = ? WHERE digest = ?", changed.decode(), hex_) == 1
    look_again(federation, submission)
    for node in federation.nodes:  # a look that was under way may still have seen the former one

        def seen(name: str = node.name) -> bool:
            shown = {row["id"]: row["digest"] for row in federation.steward(name).analyses()}
            return shown[submission.analysis] == digest(changed).hex()

        assert eventually(seen, f"the changed manifest at {node.name}")
    return changed


def assert_refused(
    federation: Federation, submission: Submission, run: str, code: str, words: str, at: Sequence[str] = ()
) -> None:
    """At each node: ended by a rule, in words; nothing was started or sent; a leaf says so and none says 'started'."""
    refused = 0
    for node in federation.nodes:
        if at and node.name not in at:
            continue
        name = node.name

        def row(name: str = name) -> dict[str, Any] | None:
            found = node_run(federation, name, submission.analysis)
            if found and found["id"] == run and found["state"] in TERMINAL:
                return found
            # a refusal ends the run at the hub, perhaps only now: each node is shown it as if it were the first
            assert change_hub(federation, "UPDATE runs SET state = 'ordered' WHERE id = ?", run) == 1
            federation.steward(name).api.post(f"/api/analyses/{submission.analysis}/start", {})
            time.sleep(0.3)
            return None

        found = eventually(row, f"the refusal at {name}")
        told = found["code"] == "peer_ended"  # another node found the same first, and said so
        assert told or (found["state"], found["code"]) == ("refused", code), found
        assert words in found["reason"], found
        shown = federation.steward(name).api.get(f"/api/runs/{run}")
        assert {released["kind"] for released in shown["releases"]} <= {"control"}, "only that it has ended"
        assert federation.steward(name).api.get(f"/api/runs/{run}/output")["output"] == ""
        assert f"run {run[:12]} is running" not in (node.directory / "node.log").read_text()

        def leaf(signer: str = node.fingerprint) -> bool:
            mine = [event for event in events_about(federation, run) if event["signer"] == signer]
            assert "run-started" not in {event["type"] for event in mine}
            return any(event["type"] == "refusal" and event["facts"]["code"] == code for event in mine)

        assert told or eventually(leaf, f"the refusal of {name} in the log")
        refused += not told
    assert refused, "the first of them has refused"


TERMINAL = ("ended", "refused", "failed", "stopped")


# --- the control: what is approved does run ------------------------------------------------------------------------------


def test_what_is_approved_runs_once_and_no_repetition_runs_it_again(federation: Federation) -> None:
    submission = approved(federation, "Approved")
    federation.session.start(submission)
    run = submission.run
    for node in federation.nodes:

        def ended(name: str = node.name) -> bool:
            row = node_run(federation, name, submission.analysis)
            return row is not None and row["id"] == run and row["state"] == "ended"

        assert eventually(ended, f"the end of the run at {node.name}")

    def told() -> bool:
        path = f"/core/analysis-nodes?filter[analysisId]={submission.analysis}"
        return {row["executionStatus"] for row in federation.session.api.get(path)["data"]} == {"executed"}

    assert eventually(told, "every node's last word at the hub")
    change_hub(federation, "UPDATE runs SET state = 'ordered' WHERE id = ?", run)
    look_again(federation, submission)
    change_hub(federation, "DELETE FROM runs WHERE id = ?", run)
    again = order_for(submission, parameters={"shift": 1.0})
    second = slip_in(federation, submission, again, signed(federation, again))
    assert_refused(federation, submission, second, "replayed", "a number counts once")
    for node in federation.nodes:
        rows = [row for row in federation.steward(node.name).runs() if row["analysis"] == submission.analysis]
        assert sorted(row["state"] for row in rows) == ["ended", "refused"], "the repeated order was not even a run"
        text = (node.directory / "node.log").read_text()
        assert text.count(f"run {run[:12]} is running") == 1


@pytest.mark.slow
def test_an_order_that_the_hub_keeps_from_its_log_is_refused_in_the_end(federation: Federation) -> None:
    submission = approved(federation, "Not in the log")
    order = order_for(submission)
    run = slip_in(federation, submission, order, signed(federation, order))
    look_again(federation, submission)
    for node in federation.nodes:

        def refused(name: str = node.name) -> bool:
            row = node_run(federation, name, submission.analysis)
            return row is not None and (row["id"], row["state"], row["code"]) == (run, "refused", "start_not_logged")

        assert eventually(refused, f"the refusal at {node.name}", seconds=120)


# --- the program ---------------------------------------------------------------------------------------------------------


def test_one_changed_byte_of_code(federation: Federation) -> None:
    marked = MEAN + b"# one byte of this comment is changed: AAAA-BBBB\n"
    submission = submitted(federation, "Code", {"main.py": marked, "flame.toml": AUTHOR})
    federation.approve(submission)
    federation.session.build_and_distribute(submission.analysis, lambda step: None)
    objects = [p for p in (federation.directory / "hub" / "objects").rglob("*") if p.is_file()]
    stored = [path for path in objects if path.read_bytes() == marked]
    assert len(stored) == 1
    stored[0].chmod(0o600)
    stored[0].write_bytes(marked.replace(b"AAAA-BBBB", b"AAAA-BBBC"))
    federation.session.start(submission)
    assert_refused(
        federation, submission, submission.run, "does_not_match_approval", "not the one that the manifest names"
    )


# --- the start order -----------------------------------------------------------------------------------------------------

ORDERS: Mapping[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "a changed parameter": ({}, {"parameters": {"shift": 1.0}}, "bad_signature", "start order"),
    "another number": ({}, {"number": 2}, "bad_signature", "start order"),
    "signed, but a value that was not approved": (
        {"parameters": {"shift": 0.5}}, {}, "refused", "not approved",
    ),
    "signed, but fewer participants": ({"participants": []}, {}, "does_not_match_approval", "other participants"),
    "signed, but expired": (
        {"created": "2020-01-01T00:00:00Z", "expires": "2020-01-02T00:00:00Z"}, {}, "expired", "expired",
    ),
    "signed, but for another manifest": ({"manifest": STRANGER}, {}, "does_not_match_approval", "another manifest"),
    "signed, but a number beyond the manifest's": ({"number": 9}, {}, "refused", "allows 1 to 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", ORDERS)
def test_a_start_order_that_is_not_the_researchers_own(federation: Federation, case: str) -> None:
    before, after, code, words = ORDERS[case]
    submission = approved(federation, f"Order {case}")
    order = order_for(submission, **before)
    signature = signed(federation, order)
    order = msgspec.structs.replace(order, **after)
    run = slip_in(federation, submission, order, signature)
    assert_refused(federation, submission, run, code, words)


@pytest.mark.parametrize("signature", ["missing", "foreign"])
def test_a_start_order_without_the_researchers_signature(federation: Federation, signature: str) -> None:
    submission = approved(federation, f"Order with a signature that is {signature}")
    order = order_for(submission)
    run = slip_in(federation, submission, order, signed(federation, order, FOREIGN) if signature == "foreign" else "")
    assert_refused(federation, submission, run, "bad_signature", "start order")


# --- the manifest --------------------------------------------------------------------------------------------------------


def _environment(manifest: dict[str, Any]) -> None:
    manifest["environment"]["digest"] = manifest["environment"]["digest"][:-1] + "0"
    manifest["environment"]["digest"] = manifest["environment"]["digest"][:-2] + "77"


def _code(manifest: dict[str, Any]) -> None:
    manifest["code"][0]["sha256"] = STRANGER


def _participant_key(manifest: dict[str, Any]) -> None:
    for participant in manifest["participants"]:
        participant["member"] = (
            FOREIGN.public.fingerprint.hex()[:-2] + f"{manifest['participants'].index(participant):02x}"
        )


def _extra_participant(manifest: dict[str, Any]) -> None:
    extra = {**manifest["participants"][0], "node": "ffffffff-ffff-4fff-bfff-ffffffffffff", "member": STRANGER}
    extra |= {"name": "stranger", "role": "default"}
    manifest["participants"].append(extra)


def _recipient(manifest: dict[str, Any]) -> None:
    manifest["recipients"][0]["result_key"] = STRANGER


MANIFESTS: Mapping[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "another environment": (_environment, "bad_signature", "manifest"),
    "other code": (_code, "bad_signature", "manifest"),
    "an extra participant": (_extra_participant, "not_confirmed", "not confirmed"),
    "a swapped recipient's key": (_recipient, "not_confirmed", "not confirmed"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_was_changed_after_the_signature(federation: Federation, case: str) -> None:
    change, code, words = MANIFESTS[case]
    submission = approved(federation, f"Manifest with {case}")
    changed = show(federation, submission, change)
    order = order_for(submission, manifest=digest(changed).hex(), participants=_nodes(changed))
    run = slip_in(federation, submission, order, signed(federation, order))
    assert_refused(federation, submission, run, code, words)


def test_a_swapped_participants_key(federation: Federation) -> None:
    """Each node sees its own key swapped, too; an unknown one of the others would be not_confirmed."""
    submission = approved(federation, "Swapped keys")
    changed = show(federation, submission, _participant_key)
    order = order_for(submission, manifest=digest(changed).hex())
    run = slip_in(federation, submission, order, signed(federation, order))
    assert_refused(federation, submission, run, "does_not_match_approval", "another key for this node")


def test_a_swapped_key_of_one_other_participant(federation: Federation) -> None:
    submission = approved(federation, "One swapped key")
    victim = federation.node("hospital-1").id

    def swap(manifest: dict[str, Any]) -> None:
        next(p for p in manifest["participants"] if p["node"] == victim)["member"] = STRANGER

    changed = show(federation, submission, swap)
    order = order_for(submission, manifest=digest(changed).hex())
    run = slip_in(federation, submission, order, signed(federation, order))
    assert_refused(federation, submission, run, "not_confirmed", "hospital-1", at=["hospital-0", "aggregator"])


@pytest.mark.parametrize("signature", ["missing", "foreign"])
def test_a_manifest_without_the_researchers_signature(federation: Federation, signature: str) -> None:
    submission = approved(federation, f"Manifest with a signature that is {signature}")
    hash_ = digest(submission.manifest)
    other = sign_manifest(FOREIGN, hash_).hex() if signature == "foreign" else None
    assert change_hub(federation, "UPDATE manifests SET signature = ? WHERE digest = ?", other, hash_.hex()) == 1
    look_again(federation, submission)
    for node in federation.nodes:  # a look that was under way may still have seen the true one

        def seen(database: Path = node.directory / "node.db") -> bool:
            with closing(sqlite3.connect(database, timeout=30)) as connection:
                sql = "SELECT signature FROM analyses WHERE id = ?"
                return bool(connection.execute(sql, (submission.analysis,)).fetchone() == (other,))

        assert eventually(seen, f"the changed signature at {node.name}")
    order = order_for(submission)
    run = slip_in(federation, submission, order, signed(federation, order))
    words = "not signed" if signature == "missing" else "manifest"
    assert_refused(federation, submission, run, "bad_signature", words)


def test_a_manifest_that_is_signed_but_that_nobody_here_approved(federation: Federation) -> None:
    """Even the researcher cannot exchange the environment after the approval."""
    submission = approved(federation, "Signed anew")
    changed = show(federation, submission, _environment)
    signature = sign_manifest(federation.session.keys.sign, digest(changed)).hex()
    old = digest(submission.manifest).hex()
    assert change_hub(federation, "UPDATE manifests SET signature = ? WHERE digest = ?", signature, old) == 1
    order = order_for(submission, manifest=digest(changed).hex())
    run = slip_in(federation, submission, order, signed(federation, order))
    assert_refused(federation, submission, run, "not_approved", "No steward of this hospital has approved")


def _nodes(manifest: bytes) -> list[str]:
    return [participant["node"] for participant in json.loads(manifest)["participants"]]


# --- the approval --------------------------------------------------------------------------------------------------------


def approval_of(federation: Federation, node: str, analysis: str) -> tuple[bytes, bytes]:
    with closing(sqlite3.connect(federation.node(node).directory / "node.db", timeout=30)) as database:
        sql = "SELECT document, signature FROM approvals WHERE subject = 'analysis' AND about = ? AND ended IS NULL"
        document, signature = database.execute(sql, (analysis,)).fetchone()
        return bytes(document), bytes(signature)


def put_approval(federation: Federation, node: str, analysis: str, document: bytes, signature: bytes) -> None:
    with closing(sqlite3.connect(federation.node(node).directory / "node.db", timeout=30)) as database, database:
        sql = "UPDATE approvals SET document = ?, signature = ? WHERE subject = 'analysis' AND about = ? AND ended IS NULL"
        assert database.execute(sql, (document, signature, analysis)).rowcount == 1


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("expired", "expired"),
        ("of an older manifest", "does_not_match_approval"),
        ("of another node", "bad_signature"),
        ("a rejection", "not_approved"),
    ],
)
def test_an_approval_that_does_not_stand(federation: Federation, case: str, code: str) -> None:
    """Put into one node's own database; the other nodes may begin, and end because this one does not take part."""
    submission = approved(federation, f"Approval {case}")
    name, key = "hospital-0", IdentityKey.load(federation.node("hospital-0").directory / "keys" / "identity.pem")
    document, signature = approval_of(federation, name, submission.analysis)
    approval: Approval = Approval.decode(document)
    changes: dict[str, dict[str, str]] = {
        "expired": {"time": "2020-01-01T00:00:00Z", "expires": "2020-01-02T00:00:00Z"},
        "of an older manifest": {"manifest": STRANGER},
        "a rejection": {"decision": "rejected"},
    }
    approval = msgspec.structs.replace(approval, **changes.get(case, {}))
    document = approval.encoded()
    signature = sign_approval(key, parse_canonical(document))
    if case == "of another node":
        document, signature = approval_of(federation, "hospital-1", submission.analysis)
    put_approval(federation, name, submission.analysis, document, signature)
    order = order_for(submission)
    run = slip_in(federation, submission, order, signed(federation, order))
    assert_refused(federation, submission, run, code, "", at=[name])


# --- at the hub, where it can see it -------------------------------------------------------------------------------------


def node_api(federation: Federation, name: str) -> Api:
    """The hub's interface with the credential of a node that means ill, or was taken over."""
    import tomllib

    folder = federation.node(name).directory
    enrolled = tomllib.loads((folder / "node.toml").read_text())
    key = IdentityKey.load(folder / "keys" / "identity.pem")
    answer = Api(federation.hub_url).post("/auth/token", token_request(key, enrolled["client"], enrolled["hub"]))
    return Api(federation.hub_url, str(answer["access_token"]))


def test_the_hub_refuses_what_it_can_see(federation: Federation) -> None:
    submission = approved(federation, "At the hub")
    runs = f"/core/analyses/{submission.analysis}/runs"
    good = order_for(submission)

    def handed_in(order: StartOrder, signature: str) -> str:
        with pytest.raises(FlameError) as refused:
            federation.session.api.post(runs, {"order": order.encoded().decode(), "signature": signature})
        return str(refused.value)

    assert handed_in(good, "")
    assert handed_in(good, signed(federation, good, FOREIGN))
    changed = order_for(submission, parameters={"shift": 1.0})
    assert handed_in(changed, signed(federation, good))
    beyond = order_for(submission, number=9)
    assert "9" in handed_in(beyond, signed(federation, beyond))
    fewer = order_for(submission, participants=good.participants[1:])
    assert "participants" in handed_in(fewer, signed(federation, fewer))
    late = order_for(submission, created="2020-01-01T00:00:00Z", expires="2020-01-02T00:00:00Z")
    assert "expired" in handed_in(late, signed(federation, late))
    hash_ = digest(submission.manifest)
    with pytest.raises(FlameError):
        body = {"digest": hash_.hex(), "signature": sign_manifest(FOREIGN, hash_).hex()}
        federation.session.api.put(f"/core/analyses/{submission.analysis}/manifest/signature", body)
    assert federation.session.api.get(runs)["data"] == []


def test_the_hub_takes_no_approval_of_another_node_or_manifest(federation: Federation) -> None:
    older, newer = approved(federation, "Older"), submitted(federation, "Newer")
    api = node_api(federation, "hospital-0")
    own = federation.node("hospital-0").id
    rows = api.get(f"/core/analysis-nodes?filter[analysisId]={newer.analysis}&filter[nodeId]={own}")["data"]
    for node in ("hospital-0", "hospital-1"):
        document, signature = approval_of(federation, node, older.analysis)
        body = {
            "approvalStatus": "approved",
            "approval": {"document": document.decode(), "signature": signature.hex()},
        }
        with pytest.raises(FlameError):
            api.post(f"/core/analysis-nodes/{rows[0]['id']}", body)
    again = api.get(f"/core/analysis-nodes?filter[analysisId]={newer.analysis}&filter[nodeId]={own}")["data"]
    assert again[0]["approvalStatus"] != "approved"
