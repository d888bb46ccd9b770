"""What FLAME's hub lets through, one test for each hole, and what else a stranger would try: all of it refused here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from world import PASSWORD, Actor, HubProcess, Person, Study, World

from flame.model.manifest import MAX_FILES


@pytest.fixture(scope="module")
def studies(world: World) -> tuple[Study, Study]:
    found = Study.set_up(world), Study.set_up(world)
    for study in found:
        study.submit()
    return found


@pytest.fixture(scope="module")
def stranger(world: World) -> Person:
    """Somebody with every right that a realm can give, in a realm of their own."""
    return world.person(world.realm("stranger"), "researcher", "steward", "auditor", "realm_admin")


# ---------------------------------------------------------------------------------------- the twelve holes, by number


def test_1_nobody_lists_or_streams_the_files_of_others(studies: tuple[Study, Study], stranger: Person) -> None:
    study = studies[0]
    bucket = study.bucket("CODE")
    file = study.researcher.get("/storage/bucket-files", **{"filter[bucketId]": bucket})[0]
    for who in (stranger, studies[1].researcher, studies[1].nodes[0]):
        assert all(row["bucketId"] != bucket for row in who.get("/storage/bucket-files"))
        assert who.get("/storage/bucket-files", **{"filter[bucketId]": bucket}) == []
        who.refused(404, "GET", f"/storage/bucket-files/{file['id']}/stream")
        who.refused(404, "GET", f"/storage/buckets/{bucket}/stream")
        who.refused(404, "GET", f"/storage/buckets/{study.analysis}-code")


def test_2_nobody_plants_files_in_the_analysis_of_others(studies: tuple[Study, Study], stranger: Person) -> None:
    study = studies[0]
    before = study.researcher.get("/core/analysis-bucket-files", **{"filter[analysisId]": study.analysis})
    part = [("f", ("planted.py", b"import os"))]
    for who in (stranger, studies[1].researcher, studies[1].nodes[0]):
        for kind in ("CODE", "RESULT", "TEMP"):
            who.refused(404, "POST", f"/storage/buckets/{study.bucket(kind)}/upload", files=part)
    mine = stranger.make("/storage/buckets", name="my own bucket")["id"]
    stranger("POST", f"/storage/buckets/{mine}/upload", 201, files=part)
    body = {"type": "CODE", "bucketId": mine, "analysisId": study.analysis}
    stranger.refused(400, "POST", "/core/analysis-buckets", json=body)
    own = studies[1].researcher.make("/storage/buckets", name="their own bucket")["id"]
    other = {"type": "CODE", "bucketId": study.bucket("CODE"), "analysisId": studies[1].analysis}
    studies[1].researcher.refused(400, "POST", "/core/analysis-buckets", json=other)
    studies[1].researcher.refused(400, "POST", "/core/analysis-buckets", json=body | {"bucketId": own})
    assert study.researcher.get("/core/analysis-bucket-files", **{"filter[analysisId]": study.analysis}) == before


def test_3_what_was_approved_does_not_change_afterwards(world: World) -> None:
    study = Study.set_up(world)
    study.submit()
    study.command("configurationLock")
    study.approve()
    digest = study.manifest()["digest"]
    path, who = f"/core/analyses/{study.analysis}", study.researcher
    for body in ({"masterImageId": None}, {"imageCommandArguments": [{"value": "--other"}]}, {"name": "another-name"}):
        who.refused(409, "POST", path, json=body)
        who.refused(409, "PATCH", path, json=body)
    study.upload(who, "CODE", {"main.py": b"other"}, 409)
    study.upload(who, "CODE", {"new.py": b"other"}, 409)
    mine = who.make("/storage/buckets", name="a further bucket")["id"]
    body = {"type": "CODE", "bucketId": mine, "analysisId": study.analysis}
    who.refused(409, "POST", "/core/analysis-buckets", json=body)
    study.world.admin.refused(409, "POST", f"/core/nodes/{study.nodes[0].id}", json={"type": "aggregator"})
    assert study.manifest()["digest"] == digest
    link = who.get("/core/analysis-buckets", **{"filter[analysisId]": study.analysis, "filter[type]": "CODE"})[0]
    who("DELETE", f"/core/analysis-buckets/{link['id']}", 202)  # allowed, and voids what was approved, openly
    row = who.get(path)
    assert (row["configurationLocked"], row["nodesApproved"], row["configurationEntrypointValid"]) == (False, 0, False)


@pytest.mark.parametrize(
    "value", ['x"]\nRUN evil\nCMD ["x', "a\rb", "a\x00b", "tab\there", "\x1b[2J", "del\x7f", "next\x85line", "a\u202eb"]
)
def test_4_an_argument_is_data_and_never_a_command(studies: tuple[Study, Study], value: str) -> None:
    study = studies[0]
    path = f"/core/analyses/{study.analysis}"
    before = study.researcher.get(path)["imageCommandArguments"]
    study.researcher.refused(400, "POST", path, json={"imageCommandArguments": [{"value": value}]})
    assert study.researcher.get(path)["imageCommandArguments"] == before


def test_5_the_key_of_an_enrolled_node_is_changed_by_nobody(studies: tuple[Study, Study], world: World) -> None:
    study = studies[0]
    node, other = study.nodes[:2]
    boss = world.person(node.realm, "realm_admin")
    foreign = world.person(other.realm, "realm_admin")
    key = other.key.public.hex_pem
    for who, status in ((world.admin, 409), (boss, 409), (foreign, 403), (study.researcher, 403), (other, 403)):
        who.refused(status, "POST", f"/core/nodes/{node.id}", json={"publicKey": key})
        who.refused(status, "PATCH", f"/core/nodes/{node.id}", json={"publicKey": None})
    assert study.researcher.get(f"/core/nodes/{node.id}")["publicKey"] == node.key.public.hex_pem
    fresh = world.admin.make("/core/nodes", name=f"claims-{secrets.token_hex(3)}", realmId=node.realm)["id"]
    claimed = IdentityKeyOf.another()
    world.admin.change(f"/core/nodes/{fresh}", publicKey=claimed.public.hex_pem)  # it confers nothing ...
    late = world.node(node.realm, confirmed=False)
    late.key = claimed
    answer = world.enrol(late)  # ... and keeps nobody from enrolling with their own key
    world.admin.change(f"/core/nodes/{late.id}/enrolment/confirm", fingerprint=answer["fingerprint"])


class IdentityKeyOf:
    @staticmethod
    def another() -> Any:
        from flame.crypto.keys import IdentityKey

        return IdentityKey.generate()


def test_6_only_participants_reach_a_nodes_mailbox(studies: tuple[Study, Study], stranger: Person) -> None:
    from world import seal

    study, other = studies
    run = os.urandom(32)
    _, envelope = seal(run, other.nodes[0], [study.nodes[0].id], b"x")
    for who in (stranger, study.researcher, other.nodes[0]):
        answer = who("PUT", "/messenger/messages", content=envelope)
        assert answer["statusCode"] in (400, 403, 404, 409), answer
    assert study.nodes[0]("GET", "/messenger/messages", 200)["data"] == []


def test_7_a_command_needs_a_place_in_the_project(studies: tuple[Study, Study], world: World, stranger: Person) -> None:
    study = studies[0]
    realm = study.researcher.get(f"/core/projects/{study.project}")["realmId"]
    path = f"/core/analyses/{study.analysis}/command"
    for name in ("configurationLock", "configurationUnlock", "buildStart", "distributionStart", "storageCheck"):
        for who in (world.person(realm, "researcher"), stranger, studies[1].researcher):
            who.refused(404, "POST", path, json={"command": name})
        for who in (*study.stewards, *study.nodes):
            who.refused(403, "POST", path, json={"command": name})
    assert study.researcher.get(f"/core/analyses/{study.analysis}")["configurationLocked"] is False


def test_8_secrets_of_clients_are_shown_to_nobody_and_set_by_their_own_people(
    studies: tuple[Study, Study], world: World, stranger: Person
) -> None:
    study, other = studies
    path = f"/core/analyses/{study.analysis}/client/credentials"
    for who in (stranger, other.researcher):
        who.refused(404, "GET", path)
        who.refused(404, "POST", path, json={"secret": "taken over now"})
    for who in (study.stewards[0], study.nodes[0]):
        who.refused(403, "GET", path)
        who.refused(403, "POST", path, json={"secret": "taken over now"})
    secret = study.researcher("POST", path, 200, json={"secret": None})["secret"]
    assert study.researcher("GET", path, 200)["secret"] is None
    path = f"/core/nodes/{study.nodes[0].id}/client/credentials"
    for who in (stranger, study.researcher, study.nodes[1], study.nodes[0]):
        who.refused(403, "GET", path)
        who.refused(403, "POST", path, json={"secret": "taken over now"})
    client = study.researcher.get(f"/core/analyses/{study.analysis}")["clientId"]
    text = json.dumps([world.admin.get(f"/auth/clients/{client}"), world.admin.get("/auth/clients")])
    assert secret not in text and "secretHash" not in text.replace("secretHashed", "")


def test_9_who_aggregates_is_approved_by_the_others_too(world: World) -> None:
    study = Study.set_up(world)
    study.submit()
    rogue = world.node(world.realm("rogue"), "aggregator")
    place = study.researcher.make("/core/project-nodes", projectId=study.project, nodeId=rogue.id)
    assert (
        place["approvalStatus"] is None
    )  # an aggregator approves for itself like anybody else, nothing comes by itself
    study.researcher.make("/core/analysis-nodes", analysisId=study.analysis, nodeId=rogue.id)
    study.command("configurationLock")
    for node, steward in zip(study.nodes, study.stewards, strict=True):
        steward.change(f"/core/analysis-nodes/{study.place(node)['id']}", approvalStatus="approved")
    row = study.researcher.get(f"/core/analyses/{study.analysis}")
    assert (row["nodes"], row["nodesApproved"], row["buildNodesValid"], row["distributionNodesValid"]) == (
        4,
        3,
        False,
        False,
    )
    assert study.command("buildStart", expect=400)["message"] == "All assigned nodes have to approve the analysis."
    more = {"analysisId": study.analysis, "nodeId": world.node(world.realm("late"), "aggregator").id}
    study.researcher.refused(409, "POST", "/core/analysis-nodes", json=more)


def test_10_logs_of_others_are_neither_read_nor_deleted(studies: tuple[Study, Study], stranger: Person) -> None:
    study, other = studies
    node = study.nodes[0]
    body = {"analysisId": study.analysis, "nodeId": node.id, "level": "info", "message": "one line"}
    node("POST", "/core/analysis-node-logs", 202, json=body)
    wanted = {"filter[analysisId]": study.analysis, "filter[nodeId]": node.id}
    for who in (stranger, other.researcher, other.nodes[0]):
        for path in ("/core/analysis-node-logs", "/telemetry/logs"):
            who.refused(404, "GET", path, params=wanted)
            who.refused(404, "DELETE", path, params=wanted)
        who.refused(404, "DELETE", "/core/analysis-logs", params={"filter[analysisId]": study.analysis})
        who.refused(404, "POST", "/core/analysis-node-logs", json=body)
    for who in (study.stewards[0], node):
        who.refused(403, "DELETE", "/core/analysis-node-logs", params=wanted)
    study.nodes[1].refused(403, "POST", "/core/analysis-node-logs", json=body)
    study.researcher.refused(400, "DELETE", "/core/analysis-node-logs", params={"filter[analysisId]": study.analysis})
    study.researcher.refused(400, "DELETE", "/telemetry/logs")
    assert len(study.researcher.get("/core/analysis-node-logs", **wanted)) == 1


def test_11_a_registrys_cleanup_wipes_nothing(world: World, stranger: Person) -> None:
    made = world.admin.make(
        "/core/registries", name=f"r-{secrets.token_hex(3)}", host=f"{secrets.token_hex(4)}.invalid"
    )
    command = {"command": "setup", "id": made["id"]}
    world.admin("POST", "/core/services/registry/command", 202, json=command)
    extra = {"name": "precious", "type": "default", "registryId": made["id"], "externalName": "precious"}
    world.admin.make("/core/registry-projects", **extra)
    before = world.admin.get("/core/registry-projects", **{"filter[registryId]": made["id"]})
    for name in ("setup", "cleanup", "delete"):
        stranger.refused(403, "POST", "/core/services/registry/command", json={"command": name, "id": made["id"]})
    world.admin("POST", "/core/services/registry/command", 202, json={"command": "cleanup", "id": made["id"]})
    assert world.admin.get("/core/registry-projects", **{"filter[registryId]": made["id"]}) == before
    assert len(before) == 4
    stranger.refused(403, "GET", f"/core/registries/{made['id']}?fields=%2BaccountSecret")
    stranger.refused(400, "GET", "/core/registry-projects?include=registry&fields[registry]=%2BaccountSecret")
    world.admin("DELETE", f"/core/registries/{made['id']}", 202)


@pytest.mark.parametrize(
    "query",
    [
        "filter[analysis_id]=x", "filter[nonsense]=x", "filters[nonsense]=x", "filter[__proto__]=x", "filter[constructor]=x",
        "filter[prototype]=x", "filter[analysis.__proto__]=x", "filter=x", "filter[]=x", "where[id]=x", "sort=__proto__",
        "include=constructor", "fields=prototype", "fields[analysis]=manifestMissing", "page[size]=1", "filter[id][$ne]=x",
        "filter[analysisId]=%00",
    ],
)  # fmt: skip
def test_12_a_query_that_is_not_understood_is_no_list_of_everything(studies: tuple[Study, Study], query: str) -> None:
    answer = studies[0].researcher.refused(400, "GET", f"/core/analysis-nodes?{query}")
    assert answer["issues"]


# -------------------------------------------------------------------------------------------------- and what else there is


def test_ids_of_another_realm_open_nothing(studies: tuple[Study, Study], stranger: Person) -> None:
    """Whoever knows an id knows an id: every single read, change and deletion of it is as if it were not there."""
    study = studies[0]
    who = study.researcher
    ids = {
        "/core/projects": study.project,
        "/core/analyses": study.analysis,
        "/core/project-nodes": who.get("/core/project-nodes", **{"filter[projectId]": study.project})[0]["id"],
        "/core/analysis-nodes": study.place(study.nodes[0])["id"],
        "/core/analysis-buckets": who.get("/core/analysis-buckets", **{"filter[analysisId]": study.analysis})[0]["id"],
        "/core/analysis-bucket-files": who.get("/core/analysis-bucket-files")[0]["id"],
        "/storage/buckets": study.bucket("CODE"),
        "/storage/bucket-files": who.get("/storage/bucket-files")[0]["id"],
    }
    for path, key in ids.items():
        who("GET", f"{path}/{key}", 200)
        for outsider in (stranger, studies[1].researcher, studies[1].nodes[0]):
            outsider.refused(404, "GET", f"{path}/{key}")
            outsider.refused(404, "DELETE", f"{path}/{key}")
            if path != "/storage/bucket-files":
                outsider.refused(404, "POST", f"{path}/{key}", json={"comment": "mine"})
    body = {"analysisId": study.analysis, "nodeId": studies[1].nodes[0].id}
    stranger.refused(400, "POST", "/core/analysis-nodes", json=body)
    stranger.refused(400, "POST", "/core/analyses", json={"projectId": study.project})
    stranger.refused(400, "POST", "/core/project-nodes", json={"projectId": study.project, "nodeId": body["nodeId"]})


def test_protected_fields_are_not_assigned(studies: tuple[Study, Study], world: World, stranger: Person) -> None:
    study = studies[0]
    who = study.researcher
    own = who.get(f"/core/projects/{study.project}")
    evil = {
        "id": str(uuid4()), "userId": stranger.id, "realmId": str(uuid4()), "clientId": str(uuid4()), "nodes": 99,
        "createdAt": "2000-01-01T00:00:00.000Z", "analyses": 99, "displayName": "changed",
    }  # fmt: skip
    changed = who.change(f"/core/projects/{study.project}", **evil)
    assert changed == own | {"displayName": "changed", "updatedAt": changed["updatedAt"]}
    path = f"/core/analyses/{study.analysis}"
    before = who.get(path)
    evil = {
        "configurationLocked": True, "buildStatus": "executed", "distributionStatus": "executed", "nodesApproved": 3,
        "executionStatus": "executed", "manifestDigest": "00" * 32, "projectId": str(uuid4()), "userId": stranger.id,
        "realmId": str(uuid4()), "buildHash": "x", "buildNodesValid": True,
    }  # fmt: skip
    assert who.change(path, **evil, description="d") == before | {
        "description": "d",
        "updatedAt": who.get(path)["updatedAt"],
    }
    node = study.nodes[0]
    place = study.place(node)
    node.change(f"/core/analysis-nodes/{place['id']}", executionProgress=1, approvalSigned=True, nodeId=str(uuid4()))
    assert study.place(node)["approvalSigned"] is False and study.place(node)["nodeId"] == node.id
    row = world.admin.change(
        f"/core/nodes/{node.id}", enrolled=False, clientId=str(uuid4()), online=True, member="0" * 64
    )
    assert (row["clientId"], row["enrolled"]) == (node.client, True)
    made = who.make("/core/projects", name=f"mass-{secrets.token_hex(3)}", userId=stranger.id, realmId=str(uuid4()))
    assert (made["userId"], made["realmId"]) == (who.id, own["realmId"])
    who("DELETE", f"/core/projects/{made['id']}", 202)


@pytest.mark.parametrize(
    "path",
    [
        "../up.py", "a/../../up.py", "/etc/passwd", "a//b", "./a", "a/.", "..", ".", "a\\..\\b", "a\x00b", "a\nb", "x" * 513,
        "y" * 256, "e\u0301.py", "right\u202eleft.py", "zero\u200bwidth.py", "line\u2028break",
    ],
)  # fmt: skip
def test_file_names_lead_nowhere_else(studies: tuple[Study, Study], hub: HubProcess, path: str) -> None:
    study = studies[0]
    before = sorted(str(p) for p in hub.dir.rglob("*") if p.is_file() and "objects" in p.parts)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="' + path.encode() + b'"\r\n\r\nx\r\n--b--\r\n'
    study.researcher.refused(
        400, "POST", f"/storage/buckets/{study.bucket('CODE')}/upload", content=head, headers=headers
    )
    assert sorted(str(p) for p in hub.dir.rglob("*") if p.is_file() and "objects" in p.parts) == before


@pytest.mark.parametrize(
    "value",
    [
        "' OR '1'='1",
        "x'; DROP TABLE projects; --",
        '" OR 1=1 --',
        "%",
        "_" * 5,
        "~%~",
        "~\\~",
        "1) OR (1=1",
        "!' OR ''='",
    ],
)
def test_a_filters_value_is_a_value(studies: tuple[Study, Study], value: str) -> None:
    study = studies[0]
    listed = study.researcher.get("/core/projects", **{"filter[name]": value})
    assert {row["id"] for row in listed} <= ({study.project} if value.startswith("!") else set())
    assert study.researcher.get(f"/core/projects/{study.project}")["id"] == study.project


def test_an_archive_is_kept_as_it_is_and_never_unpacked(studies: tuple[Study, Study], world: World) -> None:
    study = studies[0]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil", b"\0" * (64 << 20))
    bomb = gzip.compress(b"\0" * (64 << 20))
    own = study.researcher.make("/storage/buckets", name="of bombs")["id"]
    parts = [("a", ("bomb.zip", packed.getvalue())), ("b", ("bomb.gz", bomb))]
    rows = study.researcher("POST", f"/storage/buckets/{own}/upload", 201, files=parts)["data"]
    assert [row["size"] for row in rows] == [len(packed.getvalue()), len(bomb)]
    assert study.researcher("GET", f"/storage/bucket-files/{rows[1]['id']}/stream", 200) == bomb
    headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}
    answer = study.researcher.refused(400, "POST", f"/storage/buckets/{own}/upload", content=bomb, headers=headers)
    assert "unpacks nothing" in answer["message"]
    study.researcher.refused(400, "POST", "/core/projects", content=bomb, headers={"content-encoding": "gzip"})
    study.researcher("DELETE", f"/storage/buckets/{own}", 202)


def test_bodies_are_bounded_in_size_depth_and_number(studies: tuple[Study, Study]) -> None:
    study = studies[0]
    who = study.researcher
    for body in (b"[" * 100_000, b'{"a":' * 50_000, b"{}" * 3, b'"\xff"', b'{"name": "\\ud800"}', b"NaN"):
        who.refused(400, "POST", "/core/projects", content=body)
    who.refused(413, "POST", "/core/projects", content=b" " * ((1 << 20) + 1))
    who.refused(400, "POST", "/core/projects", json={"name": "n" * 129})
    who.refused(400, "POST", "/core/projects", json={"description": "d" * 4097})
    who.refused(400, "POST", f"/core/analyses/{study.analysis}", json={"imageCommandArguments": [{"value": "x"}] * 65})
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="same.py"\r\n\r\n\r\n'
    for body in (part * (MAX_FILES + 1) + b"--b--\r\n", part * 2 + b"--b--\r\n"):
        headers = {"content-type": "multipart/form-data; boundary=b"}
        who.refused(400, "POST", f"/storage/buckets/{study.bucket('CODE')}/upload", content=body, headers=headers)
    head = b"--b\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\nx\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b"}
    who.refused(400, "POST", f"/storage/buckets/{study.bucket('CODE')}/upload", content=head, headers=headers)


def test_lines_of_a_log_stay_lines_and_headers_stay_headers(studies: tuple[Study, Study], hub: HubProcess) -> None:
    study = studies[0]
    node = study.nodes[1]
    message = 'innocent\n{"level": "error", "event": "forged"}\r\nX-Evil: 1'
    body = {"analysisId": study.analysis, "nodeId": node.id, "level": "info", "message": message}
    assert (
        node("POST", "/core/analysis-node-logs", 202, json=body)["data"]["message"] == message
    )  # data, not a line of ours
    node.refused(400, "POST", "/core/analysis-node-logs", json=body | {"level": "forged\nlevel"})
    node.refused(400, "POST", "/core/analysis-node-logs", json=body | {"message": "x" * 2049})
    assert "forged" not in (hub.dir / "hub.log").read_text()
    bucket = study.researcher.make("/storage/buckets", name="of names")["id"]
    (row,) = study.researcher(
        "POST", f"/storage/buckets/{bucket}/upload", 201, files=[("f", ('a"; filename="evil.exe', b"x"))]
    )["data"]
    answer = study.researcher.http.get(f"/storage/bucket-files/{row['id']}/stream")
    shown = answer.headers["content-disposition"]
    assert shown.count('"') == 2 and "\n" not in shown
    study.researcher.refused(404, "GET", "/core/nodes/x%0d%0aX-Evil:%201")
    study.researcher.refused(404, "GET", "/no%0anewline")
    for line in (hub.dir / "hub.log").read_text().splitlines():
        json.loads(line)


def test_a_stale_approval_counts_for_nothing(world: World) -> None:
    study = Study.set_up(world)
    study.submit()
    study.command("configurationLock")
    old = study.manifest()["digest"]
    node = study.nodes[0]
    kept = study.approval(node, old)
    place = f"/core/analysis-nodes/{study.place(node)['id']}"
    node.change(place, **kept)
    study.command("configurationUnlock")
    assert study.place(node)["approvalStatus"] is None
    assert "not locked" in node.refused(409, "POST", place, json=kept)["message"]
    study.upload(study.researcher, "CODE", {"other.py": b"x"})
    study.command("configurationLock")
    assert node.refused(409, "POST", place, json=kept)["code"] == "does_not_match_approval"
    assert study.place(node)["approvalStatus"] is None and study.manifest()["digest"] != old


def test_two_approvals_and_an_unlock_at_once_leave_no_half_state(world: World) -> None:
    """Whoever comes first: after an unlock nothing is approved, and what was approved is approved for what is locked."""
    study = Study.set_up(world)
    study.submit()
    for _ in range(6):
        study.command("configurationLock")
        digest = study.manifest()["digest"]
        bodies = [(n, f"/core/analysis-nodes/{study.place(n)['id']}", study.approval(n, digest)) for n in study.nodes]
        with ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(n, "POST", path, json=body) for n, path, body in bodies]
            unlocked = pool.submit(
                study.researcher,
                "POST",
                f"/core/analyses/{study.analysis}/command",
                json={"command": "configurationUnlock"},
            )
            answers = [future.result() for future in (*sent, unlocked)]
        assert all("data" in a or a["statusCode"] == 409 for a in answers), answers
        row = study.researcher.get(f"/core/analyses/{study.analysis}")
        assert (row["configurationLocked"], row["nodesApproved"], row["buildNodesValid"]) == (False, 0, False)
        assert all(study.place(node)["approvalStatus"] is None for node in study.nodes)
        study.command("buildStart", expect=400)


def test_a_slow_upload_is_given_up_and_holds_nobody_up(tmp_path: Any) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, body_idle_seconds="1", storage_bytes_max=str(4 << 20))
    world = World(hub)
    try:
        bucket = world.admin.make("/storage/buckets", name="slowly")["id"]
        token = world.admin.http.headers["authorization"]
        where = urlsplit(hub.url)
        slow = []
        for _ in range(20):
            line = socket.create_connection((where.hostname, where.port), timeout=20)
            head = (
                f"POST /storage/buckets/{bucket}/upload HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n"
            )
            line.sendall(head.encode())
            slow.append(line)
        begun = time.monotonic()
        world.admin("GET", "/core/nodes", 200)
        assert time.monotonic() - begun < 1
        for line in slow:
            assert b" 408 " in line.recv(4096).split(b"\r\n")[0]
            line.close()
        large = [("f", ("large.bin", b"\0" * (6 << 20)))]
        assert world.admin.refused(507, "POST", f"/storage/buckets/{bucket}/upload", files=large)["message"]
        assert world.admin.get("/storage/bucket-files") == []
        assert not [p for p in (hub.dir / "objects").rglob("*") if p.is_file()]
    finally:
        world.close()
        hub.stop()


def test_a_hub_with_skipped_approvals_says_so_at_its_start(tmp_path: Any) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, skip_project_approval="1", skip_analysis_approval="1")
    hub.process.send_signal(15)
    _, text = hub.process.communicate(timeout=30)
    assert text.count("Warning:") == 3 and "runs nothing" in text


def test_digests_of_files_are_those_of_what_came(studies: tuple[Study, Study]) -> None:
    study: Study = studies[0]
    who: Actor = study.researcher
    (row,) = study.upload(who, "CODE", {"data.txt": b"known"})["data"]
    assert row["sha256"] == hashlib.sha256(b"known").hexdigest()
