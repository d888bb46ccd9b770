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
from flame.crypto.translog import TreeHead, sign_tree_head, verify_consistency, verify_inclusion, verify_tree_head
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
    from flame.crypto.translog import leaf_hash

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
