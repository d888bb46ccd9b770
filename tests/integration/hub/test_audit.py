"""The log: what happened stands in it, and nobody takes it out again unseen."""

from __future__ import annotations

import json
import secrets
import sqlite3
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from world import PASSWORD, HubProcess, Node, Study, World

from flame.crypto.keys import IdentityKey, PublicKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import (
    TreeHead,
    leaf_hash,
    sign_tree_head,
    verify_consistency,
    verify_inclusion,
    verify_tree_head,
)
from flame.protocol.audit import KnownHead, verify_export
from flame.protocol.documents import Event, SignedEvent, stamp


@pytest.fixture(scope="module")
def study(world: World) -> Study:
    study = Study.set_up(world)
    study.start(study.ready())
    return study


def signed_event(node: Node, key: IdentityKey | None = None, **changed: Any) -> dict[str, str]:
    key = key or node.key
    values = {
        "type": "run-started", "signer": node.key.public.fingerprint.hex(), "subject": node.id,
        "time": stamp(datetime.now(UTC)), "facts": {"round": 1}, "nonce": secrets.token_hex(16),
    } | changed  # fmt: skip
    event = Event(**values)
    return {"event": event.encoded().decode(), "signature": sign_event(key, event.digest).hex()}


def hub_key(study: Study) -> PublicKey:
    return PublicKey.from_hex_pem(study.nodes[0].get("/core/audit/head")["hubKey"])


def export(study: Study) -> dict[str, Any]:
    return study.world.admin("GET", "/core/audit/export", 200)


def test_what_was_decided_stands_in_the_log(study: Study) -> None:
    report = verify_export(export(study), hub_key(study))
    assert report.ok and report.verified == report.size > 10
    about = [event.type for event in report.events if event.subject in (study.analysis, study.project)]
    assert {"submission", "signature", "approval", "build", "start"} <= set(about)
    enrolled = {event.subject for event in report.events if event.type == "enrolment"}
    assert {node.id for node in study.nodes} <= enrolled


def test_a_node_gets_a_receipt_that_can_be_checked(study: Study) -> None:
    node, body = study.nodes[0], signed_event(study.nodes[0])
    receipt = node.make("/core/audit/events", **body)
    assert node.make("/core/audit/events", **body) == receipt
    head = TreeHead(receipt["head"]["size"], bytes.fromhex(receipt["head"]["root"]), receipt["head"]["time"])
    verify_tree_head(hub_key(study), bytes.fromhex(receipt["head"]["signature"]), head)
    leaf = leaf_hash(SignedEvent(**body).leaf())
    assert leaf.hex() == receipt["leafHash"]
    wanted = {"index": str(receipt["index"]), "size": str(head.size)}
    proof = node.get("/core/audit/inclusion", **wanted)["proof"]
    verify_inclusion(leaf, receipt["index"], head.size, [bytes.fromhex(h) for h in proof], head.root)
    (text,) = node.get("/core/audit/leaves", **{"from": str(receipt["index"]), "to": str(receipt["index"] + 1)})
    assert json.loads(text) == body


def test_a_later_head_continues_an_earlier_one(study: Study) -> None:
    node = study.nodes[0]
    old = node.get("/core/audit/head")
    for _ in range(3):
        node.make("/core/audit/events", **signed_event(node))
    new = node.get("/core/audit/head")
    proof = node.get("/core/audit/consistency", old=str(old["size"]), new=str(new["size"]))["proof"]
    roots = bytes.fromhex(old["root"]), bytes.fromhex(new["root"])
    verify_consistency(old["size"], roots[0], new["size"], roots[1], [bytes.fromhex(h) for h in proof])
    assert new["size"] == old["size"] + 3


def test_only_nodes_write_and_only_with_their_own_key(study: Study) -> None:
    node, other = study.nodes[:2]
    path = "/core/audit/events"
    assert node.refused(409, "POST", path, json=signed_event(node, other.key))["code"] == "bad_signature"
    assert node.refused(409, "POST", path, json=signed_event(other))["code"] == "bad_signature"
    body = signed_event(node)
    node.refused(400, "POST", path, json=body | {"event": body["event"].replace(":", ": ", 1)})
    node.refused(400, "POST", path, json=body | {"signature": "zz"})
    node.refused(400, "POST", path, json=signed_event(node, nonce="short"))
    study.researcher.refused(403, "POST", path, json=body)
    study.world.anonymous().refused(401, "GET", "/core/audit/head")


@pytest.mark.parametrize(
    "how", ["changed", "left out", "reordered", "cut", "head", "signature of an event", "other hub"]
)
def test_every_tampering_is_found(study: Study, how: str) -> None:
    honest, key = export(study), hub_key(study)
    known = [KnownHead(honest["head"]["size"], bytes.fromhex(honest["head"]["root"]))]
    forged = deepcopy(honest)
    leaves = forged["leaves"]
    if how == "changed":
        leaves[3] = leaves[3].replace("created", "deleted").replace("approved", "rejected").replace("key", "yek")
    elif how == "left out":
        del leaves[4]
    elif how == "reordered":
        leaves[1], leaves[2] = leaves[2], leaves[1]
    elif how == "cut":
        leaves.pop()
    elif how == "head":
        forged["head"]["time"] += 1
    elif how == "signature of an event":
        leaf = json.loads(leaves[-1])
        leaf["signature"] = "00" * 64
        leaves[-1] = json.dumps(leaf, separators=(",", ":"))
    elif how == "other hub":
        key = IdentityKey.generate().public
    assert verify_export(honest, hub_key(study), known).ok
    assert not verify_export(forged, key, known).ok


def test_a_hub_that_rewrites_its_own_history_is_found_by_who_kept_a_head(tmp_path: Path) -> None:
    """The hub holds its key: it can sign anything. What it cannot do is continue a head that it has signed before."""
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    world.realm("one")
    kept = world.admin("GET", "/core/audit/head", 200)["data"]
    world.realm("two")
    world.person(world.realm("three"), "researcher")
    world.close()
    hub.stop()
    _rewrite(hub.dir)
    hub.start()
    world = World(hub)
    forged = world.admin("GET", "/core/audit/export", 200)
    world.close()
    hub.stop()
    key = PublicKey.from_hex_pem(forged["hubKey"])
    assert verify_export(forged, key).ok
    report = verify_export(forged, key, [KnownHead(kept["size"], bytes.fromhex(kept["root"]))])
    assert any("changed" in problem or "forked" in problem or "cut" in problem for problem in report.problems)


def _rewrite(directory: Path) -> None:
    """Replace the first entry, and sign all heads anew: what an operator with every key could do."""
    from flame.crypto.translog import Frontier, leaf_hash

    key = IdentityKey.load(directory / "keys" / "hub.pem")
    database = sqlite3.connect(directory / "hub.db")
    rows = database.execute("SELECT idx, leaf FROM log_leaves ORDER BY idx").fetchall()
    event = Event("administration", key.public.fingerprint.hex(), "x", "2026-01-01T00:00:00Z", {}, "00" * 16)
    first = SignedEvent(event.encoded().decode(), sign_event(key, event.digest).hex()).leaf()
    edge = Frontier()
    for index, leaf in rows:
        leaf = first if index == 0 else leaf
        nodes = b"".join(edge.grow(leaf_hash(leaf)))
        values = (leaf, leaf_hash(leaf), edge.root(), nodes, index)
        database.execute("UPDATE log_leaves SET leaf = ?, hash = ?, root = ?, nodes = ? WHERE idx = ?", values)
    database.execute("UPDATE log_frontier SET state = ?", (edge.state(),))
    database.commit()
    database.close()
    assert sign_tree_head(key, TreeHead(edge.size, edge.root(), 0))


def entries(who: Any, **wanted: str) -> list[dict[str, Any]]:
    return who.get("/core/audit/entries", **{f"filter[{name}]": value for name, value in wanted.items()})


def test_whatever_matters_leaves_an_entry_in_its_own_transaction(world: World) -> None:
    """One of everything, and the log before and after: who did it, to what, and no name, address or secret."""
    before = world.admin.get("/core/audit/head")["size"]
    study = Study.set_up(world)
    study.start(study.ready())
    realm = world.realm("counted")
    person = world.person(realm, "researcher", keys=True)
    node = study.nodes[0]
    steward = world.person(node.realm, "steward")
    study.researcher.make("/core/project-members", projectId=study.project, userId=person.id, role="reader")
    wrong = {"grant_type": "password", "username": "nobody in particular", "password": "wrong"}
    for _ in range(12):
        world.anonymous()("POST", "/auth/token", json=wrong)
    spare = world.node(realm)
    world.admin("DELETE", f"/core/nodes/{spare.id}", 202)
    second = Study.set_up(world)
    second.submit()
    second.command("configurationLock")
    place = second.place(second.nodes[0])
    world.admin("GET", f"/core/analysis-nodes/{place['id']}", 200)
    second.nodes[0].change(
        f"/core/analysis-nodes/{place['id']}",
        **second.approval(second.nodes[0], second.sign() if second.manifest()["digest"] else "", "rejected"),
    )
    second.command("configurationUnlock")
    after = world.admin.get("/core/audit/head")["size"]
    texts = world.admin.get("/core/audit/leaves", **{"from": str(before), "to": str(after)})
    events = [json.loads(json.loads(text)["event"]) for text in texts]
    types = {event["type"] for event in events}
    assert {
        "administration", "enrolment", "key", "proposal", "submission", "signature", "approval", "build",
        "distribution", "start", "unlock", "lock-out",
    } <= types  # fmt: skip
    told = [event["facts"] for event in events if event["type"] == "administration"]
    for what in ("realm", "user", "node", "enrolment token"):
        assert any(facts.get("created") == what for facts in told), what
    assert any(facts.get("member") == person.id for facts in told)
    assert any(facts.get("added") == node.id for facts in told)
    assert any(facts.get("deleted") == "node" for facts in told)
    rejected = [e["facts"] for e in events if e["type"] == "approval" and e["facts"]["decision"] == "rejected"]
    assert rejected and rejected[0]["signed"] is True and len(rejected[0]["approval"]) == 64
    everything = "".join(texts)
    for secret in (PASSWORD, "nobody in particular", "person-", "127.0.0.1", "wrong"):
        assert secret not in everything, secret
    assert steward.id in everything


def test_a_repeated_decision_is_one_entry(study: Study) -> None:
    node = study.nodes[0]
    place = study.place(node)
    body = study.approval(node, study.manifest()["digest"])
    about = {"type": "approval", "subject": study.analysis}
    node.change(f"/core/analysis-nodes/{place['id']}", **body)
    count = len(entries(world_admin(study), **about))
    node.change(f"/core/analysis-nodes/{place['id']}", **body)
    assert len(entries(world_admin(study), **about)) == count


def world_admin(study: Study) -> Any:
    return study.world.admin


def test_the_log_is_searched_with_the_language_of_every_list(study: Study) -> None:
    admin = study.world.admin
    found = entries(admin, type="approval", subject=study.analysis)
    assert len(found) >= 2 and {row["event"]["facts"]["node"] for row in found} == {node.id for node in study.nodes}
    assert [row["index"] for row in found] == sorted((row["index"] for row in found), reverse=True)
    answer = admin(
        "GET", "/core/audit/entries", 200, params={"filter[type]": "a~", "page[limit]": "2", "sort": "index"}
    )
    assert len(answer["data"]) == 2 and answer["meta"]["total"] > 2
    admin.refused(400, "GET", "/core/audit/entries", params={"filter[leaf]": "x"})
    admin.refused(400, "GET", "/core/audit/entries", params={"filter[index]": "x"})
    one = admin.get(f"/core/audit/entries/{found[0]['index']}")
    head = one["head"]
    path = [bytes.fromhex(step) for step in one["proof"]]
    verify_inclusion(bytes.fromhex(one["hash"]), one["index"], head["size"], path, bytes.fromhex(head["root"]))
    for wrong in ("99999999", "-1", "x", "1e3"):
        admin.refused(404, "GET", f"/core/audit/entries/{wrong}")


def test_everybody_reads_what_is_theirs_and_checks_the_whole(study: Study) -> None:
    world = study.world
    own, other = study.researcher, world.person(world.realm("elsewhere"), "researcher")
    here = world.person(study.nodes[0].realm, "auditor")
    about = {"subject": study.analysis}
    for reader in (own, here, study.nodes[0]):
        assert {row["type"] for row in entries(reader, **about)} >= {"submission", "approval", "start"}
    assert entries(other, **about) == []
    hidden = entries(world.admin, **about)[0]["index"]
    other.refused(404, "GET", f"/core/audit/entries/{hidden}")
    assert {row["subject"] for row in entries(other, type="administration")} == {other.id}
    for reader in (own, other, here, study.nodes[0]):
        exported = reader("GET", "/core/audit/export", 200)
        report = verify_export(exported, hub_key(study))
        assert report.ok and report.size == len(exported["leaves"]), report.problems
        assert report.hidden > 0, "not everything is for everybody"
    (leaf,) = other.get("/core/audit/leaves", **{"from": str(hidden), "to": str(hidden + 1)})
    assert set(leaf) == {"hash"}
    world.anonymous().refused(401, "GET", "/core/audit/entries")


def test_every_signature_is_checked_from_the_log_alone(study: Study) -> None:
    """Whoever enrolled, registered or rotated a key stands in the log with it."""
    study.nodes[0].make("/core/audit/events", **signed_event(study.nodes[0]))
    report = verify_export(export(study), hub_key(study))
    assert report.ok and report.unknown == [] and report.verified == report.size


def test_the_command_fetches_and_checks_the_log_of_a_hub(study: Study, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flame.cli.audit import app

    out, url = tmp_path / "log.json", study.world.hub.url
    called = ["export", url, "--out", str(out), "--user", "admin"]
    said = CliRunner().invoke(app, called, input=PASSWORD + "\n")
    assert said.exit_code == 0 and "entries in" in said.stdout, said.stderr
    assert CliRunner().invoke(app, called, input=PASSWORD + "\n").exit_code == 3, "an export is not written over"
    fingerprint = hub_key(study).fingerprint.hex()
    study.nodes[0].make("/core/audit/events", **signed_event(study.nodes[0]))
    later = tmp_path / "later.json"
    CliRunner().invoke(app, ["export", url, "--out", str(later), "--user", "admin"], input=PASSWORD + "\n")
    said = CliRunner().invoke(app, ["verify", str(later), "--hub", fingerprint, "--since", str(out)])
    assert said.exit_code == 0 and "The log verifies." in said.stdout, said.stderr
    assert f"Analysis {study.analysis}" in said.stdout
    assert CliRunner().invoke(app, ["verify", str(out), "--since", str(later)]).exit_code == 3


def test_an_order_is_shown_with_its_proof(study: Study) -> None:
    node = study.nodes[0]
    (run,) = node.get(f"/core/analyses/{study.analysis}/runs")
    old = node.get("/core/audit/head")
    shown = node.get(f"/core/audit/starts/{run['id']}", seen="3")
    assert shown["event"]["facts"]["run"] == run["id"] and shown["event"]["type"] == "start"
    size, root = shown["head"]["size"], bytes.fromhex(shown["head"]["root"])
    leaf = leaf_hash(
        SignedEvent(json.dumps(shown["event"], sort_keys=True, separators=(",", ":")), shown["signature"]).leaf()
    )
    verify_inclusion(leaf, shown["index"], size, [bytes.fromhex(step) for step in shown["proof"]], root)
    assert size >= old["size"]
    first = verify_export(export(study), hub_key(study), [KnownHead(size, root)])
    assert first.heads == 1
    node.refused(404, "GET", "/core/audit/starts/" + "00" * 32 + "?seen=0")
    node.refused(400, "GET", f"/core/audit/starts/{run['id']}")
    stranger = study.world.person(study.world.realm("strangers"), "researcher")
    stranger.refused(404, "GET", f"/core/audit/starts/{run['id']}?seen=0")
