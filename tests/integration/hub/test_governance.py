"""From a program to a run: who decides, on what, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from world import Study, World

from flame.crypto.canonical import parse_canonical
from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_manifest
from flame.model.manifest import Manifest


def test_a_study_goes_from_upload_to_its_end(study: Study) -> None:
    digest = study.ready()
    run = study.start(digest)
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["id"] == run.hex()
    for node in study.nodes:
        place = study.place(node)["id"]
        node.change(f"/core/analysis-nodes/{place}", executionStatus="executing", executionProgress=50)
    assert study.researcher.get(f"/core/analyses/{study.analysis}")["executionStatus"] == "executing"
    for node in study.nodes:
        node.change(
            f"/core/analysis-nodes/{study.place(node)['id']}",
            executionStatus="executed",
            executionProgress=100,
            executionRun=run.hex(),
            executionReason="It ended well.",
        )
    row = study.researcher.get(f"/core/analyses/{study.analysis}")
    assert (row["executionStatus"], row["executionProgress"]) == ("executed", 100)
    place = study.place(study.nodes[0])
    assert (place["executionRun"], place["executionReason"]) == (run.hex(), "It ended well.")
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["state"] == "ended"


def test_the_manifest_says_what_stands_there(study: Study) -> None:
    study.submit({"main.py": b"print(1)\n", "flame.toml": b'[analysis]\npurpose = "To see"\nruns_max = 3\n'})
    study.researcher.refused(409, "GET", f"/core/analyses/{study.analysis}/manifest")
    study.command("configurationLock")
    answer = study.manifest()
    text = answer["manifest"].encode()
    manifest = Manifest.from_document(parse_canonical(text))
    assert answer["digest"] == hashlib.sha256(text).hexdigest() and answer["missing"] == []
    assert (manifest.purpose, manifest.runs_max, manifest.entrypoint) == ("To see", 3, "main.py")
    assert manifest.code[1].sha256 == hashlib.sha256(b"print(1)\n").hexdigest()
    members = {p.node: (p.role, p.member) for p in manifest.participants}
    kinds = ("default", "default", "aggregator")
    assert members == {n.id: (kind, n.key.public.fingerprint.hex()) for n, kind in zip(study.nodes, kinds, strict=True)}
    assert manifest.researcher.key == study.researcher.sign_key.public.fingerprint.hex()
    assert [r.result_key for r in manifest.recipients] == [study.researcher.result_key.key_id.hex()]
    assert {p.organisation for p in manifest.participants} == {"hospital-a", "hospital-b", "hospital-c"}


def test_missing_keys_are_said_and_do_not_stop_the_lock(world: World) -> None:
    study = Study.set_up(world, keys=False)
    study.submit()
    study.command("configurationLock")
    answer = study.manifest()
    assert answer["manifest"] is None and answer["digest"] is None
    assert any("signing key" in text for text in answer["missing"])
    node, place = study.nodes[0], study.place(study.nodes[0])["id"]
    node.refused(409, "POST", f"/core/analysis-nodes/{place}", json=study.approval(node, "00" * 32))


def test_a_broken_author_file_is_missing_not_an_error(study: Study) -> None:
    study.submit({"main.py": b"1", "flame.toml": b"[unknown]\n"})
    study.command("configurationLock")
    assert "unknown" in study.manifest()["missing"][0]


def test_the_lock_demands_what_flame_demands_in_its_words(study: Study) -> None:
    assert study.command("configurationLock", expect=400)["message"] == "An entrypoint must be selected."
    assert study.command("nonsense", expect=400)["message"] == "Invalid command."
    study.submit()
    assert study.command("configurationUnlock", expect=400)["message"] == "The analysis configuration is not locked."
    assert study.command("buildStart", expect=400)["message"] == "The analysis configuration is not locked."
    study.command("configurationLock")
    assert study.command("configurationLock", expect=400)["message"] == "The analysis configuration is locked."
    message = "All assigned nodes have to approve the analysis."
    assert study.command("buildStart", expect=400)["message"] == message
    assert study.command("distributionStart", expect=400)["message"] == "The analysis is not built yet."


def test_a_locked_analysis_does_not_change(study: Study) -> None:
    study.submit()
    study.command("configurationLock")
    path = f"/core/analyses/{study.analysis}"
    for body in ({"description": "other"}, {"imageCommandArguments": [{"value": "x"}]}, {"masterImageId": None}):
        assert study.researcher.refused(409, "POST", path, json=body)["code"] == "entity_conflict"
    study.upload(study.researcher, "CODE", {"more.py": b"x"}, 409)
    rows = study.researcher.get("/core/analysis-bucket-files", **{"filter[analysisId]": study.analysis})
    study.researcher.refused(409, "POST", f"/core/analysis-bucket-files/{rows[0]['id']}", json={"root": True})
    study.researcher.refused(409, "DELETE", f"/core/analysis-bucket-files/{rows[0]['id']}")
    study.researcher.refused(409, "DELETE", f"/storage/bucket-files/{rows[0]['bucketFileId']}")


def test_an_unlock_voids_every_approval(study: Study) -> None:
    study.submit()
    study.command("configurationLock")
    before = study.manifest()["digest"]
    study.approve()
    study.command("configurationUnlock")
    assert {study.place(node)["approvalStatus"] for node in study.nodes} == {None}
    study.upload(study.researcher, "CODE", {"more.py": b"x"})
    study.command("configurationLock")
    assert study.manifest()["digest"] != before
    node = study.nodes[0]
    answer = node.refused(
        409, "POST", f"/core/analysis-nodes/{study.place(node)['id']}", json=study.approval(node, before)
    )
    assert answer["code"] == "does_not_match_approval"


def test_taking_a_node_out_voids_the_lock_openly(study: Study) -> None:
    study.submit()
    study.command("configurationLock")
    study.approve()
    place = study.place(study.nodes[1])["id"]
    study.researcher("DELETE", f"/core/analysis-nodes/{place}", 202)
    row = study.researcher.get(f"/core/analyses/{study.analysis}")
    assert (row["configurationLocked"], row["nodes"], row["nodesApproved"]) == (False, 2, 0)


def test_nothing_is_approved_before_the_lock(study: Study) -> None:
    study.submit()
    node, steward = study.nodes[0], study.stewards[0]
    path = f"/core/analysis-nodes/{study.place(node)['id']}"
    assert "not locked" in node.refused(409, "POST", path, json=study.approval(node, "00" * 32))["message"]
    assert "not locked" in steward.refused(409, "POST", path, json={"approvalStatus": "approved"})["message"]


@pytest.mark.parametrize("what", ["digest", "node", "subject", "expired", "comment", "key", "status", "not canonical"])
def test_an_approval_counts_for_exactly_what_it_says(study: Study, what: str) -> None:
    study.submit()
    study.command("configurationLock")
    digest, (node, other, _) = study.manifest()["digest"], study.nodes
    body = study.approval(node, digest)
    if what == "digest":
        body = study.approval(node, "11" * 32)
    elif what == "node":
        body = study.approval(node, digest, node=other.id)
    elif what == "subject":
        body = study.approval(node, digest, subject="project")
    elif what == "expired":
        body = study.approval(node, digest, expires="2020-01-01T00:00:00Z")
    elif what == "comment":
        body["comment"] = "not what was signed"
    elif what == "key":
        body["approval"]["signature"] = study.approval(other, digest)["approval"]["signature"]
    elif what == "status":
        body["approvalStatus"] = "rejected"
    elif what == "not canonical":
        body["approval"]["document"] = " " + body["approval"]["document"]
    path = f"/core/analysis-nodes/{study.place(node)['id']}"
    answer = node("POST", path, json=body)
    assert answer["statusCode"] in (400, 409), answer
    assert study.place(node)["approvalStatus"] is None


def test_only_the_node_signs_and_only_its_steward_decides(study: Study, world: World) -> None:
    study.submit()
    study.command("configurationLock")
    digest, node = study.manifest()["digest"], study.nodes[0]
    path = f"/core/analysis-nodes/{study.place(node)['id']}"
    signed, plain = study.approval(node, digest), {"approvalStatus": "approved"}
    for who in (study.researcher, study.stewards[0], world.admin):
        who.refused(403, "POST", path, json=signed)
    for who in (study.researcher, world.admin):
        who.refused(403, "POST", path, json=plain)
    for stranger in (study.nodes[1], study.stewards[1]):
        stranger.refused(403, "POST", path, json=plain)
    world.person(world.realm("elsewhere"), "steward").refused(404, "POST", path, json=plain)
    row = study.stewards[0].change(path, **plain, comment="fine")
    assert (row["approvalStatus"], row["approvalSigned"], row["comment"]) == ("approved", False, "fine")
    row = node.change(path, **study.approval(node, digest, "rejected"))
    assert (row["approvalStatus"], row["approvalSigned"]) == ("rejected", True)
    assert "does not override" in study.stewards[0].refused(409, "POST", path, json=plain)["message"]


def test_who_asks_does_not_approve(world: World) -> None:
    realm = world.realm("small")
    both = world.person(realm, "researcher", "steward", keys=True)
    node = world.node(realm)
    project = both.make("/core/projects", name=f"p-{realm[:8]}")["id"]
    place = both.make("/core/project-nodes", projectId=project, nodeId=node.id)["id"]
    answer = both.refused(403, "POST", f"/core/project-nodes/{place}", json={"approvalStatus": "approved"})
    assert "does not approve" in answer["message"]


def test_the_researchers_signature_is_checked(study: Study) -> None:
    study.submit()
    study.command("configurationLock")
    digest = study.manifest()["digest"]
    path = f"/core/analyses/{study.analysis}/manifest/signature"
    good = sign_manifest(study.researcher.sign_key, bytes.fromhex(digest)).hex()
    wrong = sign_manifest(IdentityKey.generate(), bytes.fromhex(digest)).hex()
    assert (
        study.researcher.refused(409, "PUT", path, json={"digest": digest, "signature": wrong})["code"]
        == "bad_signature"
    )
    study.researcher.refused(409, "PUT", path, json={"digest": "00" * 32, "signature": good})
    study.researcher.refused(400, "PUT", path, json={"digest": digest, "signature": "zz"})
    study.stewards[0].refused(403, "PUT", path, json={"digest": digest, "signature": good})
    study.world.admin.refused(403, "PUT", path, json={"digest": digest, "signature": good})
    assert study.manifest()["signature"] is None
    assert study.sign() == digest
    assert study.manifest()["signer"] == study.researcher.sign_key.public.fingerprint.hex()


def test_a_start_order_is_checked_and_counts_once(study: Study) -> None:
    digest = study.ready()
    path = f"/core/analyses/{study.analysis}/runs"

    def refused(status: int, code: str, **changed: Any) -> None:
        answer = study.researcher.refused(status, "POST", path, json=study.order(digest, **changed))
        assert answer["code"] == code, answer

    refused(409, "bad_signature", key=IdentityKey.generate())
    refused(409, "entity_conflict", number=2)
    refused(409, "entity_conflict", number=0)
    refused(409, "expired", expires="2020-01-01T00:00:00Z", created="2019-12-31T00:00:00Z")
    refused(400, "bad_request", participants=[study.nodes[0].id])
    refused(400, "bad_request", parameters={"unknown": 1})
    answer = study.researcher.refused(409, "POST", path, json=study.order("00" * 32))
    assert answer["code"] == "does_not_match_approval"
    order = study.order(digest)
    study.stewards[0].refused(403, "POST", path, json=order)
    first = study.researcher.make(path, **order)
    assert first["id"] == hashlib.sha256(order["order"].encode()).hexdigest()
    assert study.researcher.make(path, **order) == first
    other = study.order(digest, created="2026-01-01T00:00:00Z")
    assert study.researcher.refused(409, "POST", path, json=other)["code"] == "replayed"


def test_an_order_waits_for_every_approval_and_is_built_then(study: Study) -> None:
    """Also the aggregator's: until the last of them nothing is built, and no node is given the order to run."""
    study.submit()
    study.command("configurationLock")
    digest = study.sign()
    path = f"/core/analyses/{study.analysis}/runs"
    assert study.researcher.make(path, **study.order(digest))["state"] == "waiting"
    study.researcher.refused(409, "POST", path, json=study.order(digest, number=2))
    *first, last = study.nodes
    for node in first:
        node.change(f"/core/analysis-nodes/{study.place(node)['id']}", **study.approval(node, digest))
    assert study.researcher.get(f"/core/analyses/{study.analysis}")["buildStatus"] is None
    last.change(f"/core/analysis-nodes/{study.place(last)['id']}", **study.approval(last, digest))
    study.wait_for("distributionStatus", "executed")
    assert study.researcher.get(path)[0]["state"] == "ordered"


def test_only_nodes_report_and_only_the_aggregator_hands_in_results(study: Study) -> None:
    digest = study.ready()
    study.start(digest)
    data, _, aggregator = study.nodes
    place = f"/core/analysis-nodes/{study.place(data)['id']}"
    for who in (study.researcher, study.stewards[0], study.nodes[1]):
        who.refused(403, "POST", place, json={"executionStatus": "failed"})
    data.refused(400, "POST", place, json={"executionStatus": "flying"})
    data.refused(400, "POST", place, json={"executionProgress": 101})
    study.upload(data, "RESULT", {"1.flame": b"x"}, 403)
    study.upload(study.researcher, "RESULT", {"1.flame": b"x"}, 403)
    study.upload(data, "CODE", {"evil.py": b"x"}, 403)
    (row,) = study.upload(aggregator, "RESULT", {"1.flame": b"sealed"})["data"]
    assert row["sha256"] == hashlib.sha256(b"sealed").hexdigest()
    study.upload(aggregator, "RESULT", {"1.flame": b"other"}, 409)
    assert study.researcher("GET", f"/storage/bucket-files/{row['id']}/stream", 200) == b"sealed"
    study.stewards[0].refused(404, "GET", f"/storage/bucket-files/{row['id']}/stream")
    study.upload(data, "TEMP", {"part.bin": b"x"})


def test_only_who_asked_stops_a_run(study: Study) -> None:
    study.start(study.ready())
    study.stewards[0].refused(
        403, "POST", f"/core/analyses/{study.analysis}/command", json={"command": "executionStop"}
    )
    study.command("executionStop")
    assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["state"] == "stopping"


def test_who_watches_hears_of_a_change_at_once_and_sees_only_their_own(study: Study, world: World) -> None:
    study.start(study.ready())
    path = f"/core/analyses/{study.analysis}/watch"
    first = study.researcher("GET", path, 200, params={"wait": "0"})
    same = study.researcher("GET", path, 200, params={"wait": "0", "seen": first["meta"]["seen"]})
    assert same == first
    place = study.place(study.nodes[0])["id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(study.researcher, "GET", path, 200, params={"wait": "30", "seen": first["meta"]["seen"]})
        node = study.nodes[0]
        node.change(f"/core/analysis-nodes/{place}", executionStatus="executing")
        later = waiting.result(timeout=20)
    assert later["meta"]["seen"] != first["meta"]["seen"]
    assert "executing" in {row["executionStatus"] for row in later["data"]["nodes"]}
    world.person(world.realm("outside"), "researcher").refused(404, "GET", path, params={"wait": "0"})


def test_who_is_asked_no_longer_leaves_what_was_locked_with_it(study: Study) -> None:
    """A hospital does not stay part of an analysis that its stewards can no longer see."""
    digest = study.ready()
    place = study.researcher.get(
        "/core/project-nodes", **{"filter[projectId]": study.project, "filter[nodeId]": study.nodes[0].id}
    )[0]["id"]
    study.start(digest)
    bucket = study.researcher.get("/core/analysis-buckets", **{"filter[analysisId]": study.analysis})[0]["id"]
    for path in (
        f"/core/project-nodes/{place}", f"/core/analysis-nodes/{study.place(study.nodes[0])['id']}",
        f"/core/analysis-buckets/{bucket}", f"/core/analyses/{study.analysis}",
    ):  # fmt: skip
        study.researcher.refused(409, "DELETE", path)  # nothing of it changes while it runs
    study.command("executionStop")
    for node in study.nodes:
        node.change(f"/core/analysis-nodes/{study.place(node)['id']}", executionStatus="stopped")
    study.researcher("DELETE", f"/core/project-nodes/{place}", 202)
    row = study.researcher.get(f"/core/analyses/{study.analysis}")
    assert (row["configurationLocked"], row["nodes"], row["nodesApproved"]) == (False, 2, 0)
    assert study.nodes[0].get("/core/analyses") == []


def test_a_build_is_the_program_as_one_layer_beside_its_environment(study: Study, tmp_path: Path) -> None:
    long = "deep/" * 40 + "more.py"
    path = f"/core/analyses/{study.analysis}/image"
    study.researcher.refused(409, "GET", path)
    study.submit({"main.py": b"print(1)\n", long: b"x = 1\n" * 200})
    study.command("configurationLock")
    study.approve()
    study.command("buildStart")
    row = study.wait_for("buildStatus", "executed")
    archive = study.nodes[0]("GET", path, 200)
    assert study.researcher("GET", path, 200) == archive  # the same bytes whenever it is made
    with tarfile.open(fileobj=io.BytesIO(archive)) as layout:
        blobs = {m.name: layout.extractfile(m).read() for m in layout.getmembers()}
    for name, data in blobs.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    (described,) = json.loads(blobs["index.json"])["manifests"]
    assert described["digest"] == row["buildHash"]
    manifest = json.loads(blobs["blobs/" + row["buildHash"].replace(":", "/")])
    digest = "sha256:" + hashlib.sha256(b"environment").hexdigest()
    shown = {"flame.environment": "python/base", "flame.environment.digest": digest}
    assert manifest["annotations"] == shown | {"flame.manifest": study.manifest()["digest"]}
    (layer,) = manifest["layers"]
    assert layer["size"] == row["buildSize"]
    with tarfile.open(fileobj=io.BytesIO(blobs["blobs/" + layer["digest"].replace(":", "/")])) as code:
        files = {m.name: code.extractfile(m).read() for m in code.getmembers()}
        assert all(m.mtime == 0 and m.uid == 0 for m in code.getmembers())
    assert files == {"program/main.py": b"print(1)\n", f"program/{long}": b"x = 1\n" * 200}
    study.world.person(study.world.realm("outside"), "researcher").refused(404, "GET", path)


def test_a_build_says_which_file_is_damaged(study: Study, world: World) -> None:
    study.submit()
    study.command("configurationLock")
    study.approve()
    stored = world.hub.dir / "objects" / "kept" / "files" / hashlib.sha256(b"x = 1\n").hexdigest()
    content = stored.read_bytes()
    try:
        stored.write_bytes(b"y = 1\n")
        study.command("buildStart")
        study.wait_for("buildStatus", "failed")
    finally:
        stored.write_bytes(content)
    lines = study.researcher.get("/core/analysis-logs", **{"filter[analysisId]": study.analysis})
    assert "lib/more.py is damaged" in lines[0]["message"] and lines[0]["level"] == "error"
