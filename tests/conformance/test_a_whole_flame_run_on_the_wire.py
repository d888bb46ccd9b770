"""A whole FLAME run as requests and answers: researcher, stewards and nodes as any of FLAME's clients would send them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from integration.hub.world import PASSWORD, Actor, HubProcess, World

SOON = 2.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD)
    world = World(hub)
    yield world
    world.close()
    hub.stop()


def poll(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    import time

    until = time.monotonic() + SOON
    while not enough(found := look()):
        assert time.monotonic() < until, found
        time.sleep(0.02)
    return found


def node_of(world: World, realm: str, kind: str) -> tuple[dict[str, Any], Actor]:
    """A node whose software knows a client id and a secret, as FLAME's do."""
    row = world.admin.make("/core/nodes", name=f"Node-{secrets.token_hex(3)}", realmId=realm, type=kind)
    given = world.admin("POST", f"/core/nodes/{row['id']}/client/credentials", 200, json={"secret": None})
    assert given["id"] == row["clientId"] and len(given["secret"]) == 64
    body = {"grant_type": "client_credentials", "client_id": given["id"], "client_secret": given["secret"]}
    answer = world.anonymous()("POST", "/auth/token", 200, json=body)
    return row, Actor(world._client(answer["access_token"]), row["id"])


def test_a_run_from_login_to_result(world: World) -> None:
    researcher = world.person(world.realm("university"), "researcher")
    realms = [world.realm(f"hospital-{letter}") for letter in "ab"]
    stewards = [world.person(realm, "steward") for realm in realms]
    world.admin.make("/core/registries", name=f"registry-{secrets.token_hex(3)}", host="registry.invalid")
    nodes = [node_of(world, realm, kind) for realm, kind in zip(realms, ("default", "aggregator"), strict=True)]
    image = world.admin.get("/core/master-images", **{"filter[virtualPath]": "python/base"})[0]["id"]

    project = researcher.make("/core/projects", name=f"Whole-{secrets.token_hex(3)}")["id"]
    for (node, _), steward in zip(nodes, stewards, strict=True):
        place = researcher.make("/core/project-nodes", projectId=project, nodeId=node["id"])
        assert place["approvalStatus"] is None
        steward.change(f"/core/project-nodes/{place['id']}", approvalStatus="approved")

    analysis = researcher.make("/core/analyses", projectId=project, masterImageId=image, name=None)["id"]
    mine = {"filter[analysisId]": analysis}
    rows = poll(lambda: researcher.get("/core/analysis-buckets", **mine), lambda found: len(found) == 3)
    buckets = {row["type"]: row["bucketId"] for row in rows}

    parts = [(str(uuid4()), ("main.py", b"print(1)\n", "application/octet-stream"))]
    stored = researcher("POST", f"/storage/buckets/{buckets['CODE']}/upload", 201, files=parts)
    assert stored["meta"]["total"] == 1 and len(stored["data"][0]["hash"]) == 64
    (file,) = poll(lambda: researcher.get("/core/analysis-bucket-files", **mine), bool)
    researcher.change(f"/core/analysis-bucket-files/{file['id']}", root=True)

    places = researcher.get("/core/analysis-nodes", **mine)
    assert {row["nodeId"] for row in places} == {node["id"] for node, _ in nodes}  # approved nodes come by themselves

    def command(name: str) -> Any:
        return researcher("POST", f"/core/analyses/{analysis}/command", 202, json={"command": name})["data"]

    assert command("configurationLock")["configurationLocked"] is True
    for (node, _), steward in zip(nodes, stewards, strict=True):
        place = next(row for row in places if row["nodeId"] == node["id"])
        row = steward.change(f"/core/analysis-nodes/{place['id']}", approvalStatus="approved")
        assert row["approvalSigned"] is False
    assert command("buildStart")["buildStatus"] == "starting"
    show = f"/core/analyses/{analysis}"
    poll(lambda: researcher.get(show), lambda row: row["buildStatus"] == "executed")
    assert command("distributionStart")["distributionStatus"] == "starting"
    poll(lambda: researcher.get(show), lambda row: row["distributionStatus"] == "executed")

    for node, actor in nodes:
        (seen,) = actor.get("/core/nodes", **{"filter[clientId]": node["clientId"]})
        assert seen["id"] == node["id"]
        (place,) = actor.get("/core/analysis-nodes", include="analysis,node", **{"filter[nodeId]": node["id"]})
        assert place["analysis"]["id"] == analysis and place["node"]["id"] == node["id"]
        credentials = actor("GET", f"/core/nodes/{node['id']}/registry/credentials", 200)
        assert (credentials["host"], credentials["externalName"]) == ("registry.invalid", node["externalName"])
        actor.change(f"/core/analysis-nodes/{place['id']}", executionStatus="executing", executionProgress=10)
        body = {
            "analysisId": analysis,
            "nodeId": node["id"],
            "level": "info",
            "message": "It runs",
            "status": "executing",
        }
        line = actor("POST", "/core/analysis-node-logs", 202, json=body)["data"]
        own = mine | {"filter[nodeId]": node["id"]}
        assert (
            actor.get("/core/analysis-node-logs", **own) == [line] == researcher.get("/core/analysis-node-logs", **own)
        )

    (data_node, data), (_, aggregator) = nodes
    part = [(str(uuid4()), ("1/part.bin", b"sealed", "application/octet-stream"))]
    (piece,) = data("POST", f"/storage/buckets/{buckets['TEMP']}/upload", 201, files=part)["data"]
    assert aggregator("GET", f"/storage/bucket-files/{piece['id']}/stream", 200) == b"sealed"
    data("DELETE", f"/storage/bucket-files/{piece['id']}", 202)
    result = [(str(uuid4()), ("1.flame", b"the result", "application/octet-stream"))]
    aggregator("POST", f"/storage/buckets/{buckets['RESULT']}/upload", 201, files=result)
    for node, actor in nodes:
        (place,) = actor.get("/core/analysis-nodes", **{"filter[nodeId]": node["id"]})
        actor.change(f"/core/analysis-nodes/{place['id']}", executionStatus="executed", executionProgress=100)
    row = researcher.get(show)
    assert (row["executionStatus"], row["executionProgress"]) == ("executed", 100)

    (link,) = researcher.get("/core/analysis-buckets", **mine, **{"filter[type]": "RESULT"})
    (known,) = researcher.get("/core/analysis-bucket-files", **{"filter[analysisBucketId]": link["id"]})
    (file,) = researcher.get("/storage/bucket-files", **{"filter[bucketId]": link["bucketId"]})
    assert known["bucketFileId"] == file["id"]
    assert researcher("GET", f"/storage/bucket-files/{file['id']}/stream", 200) == b"the result"

    events = researcher.get("/core/analysis-node-events", include="node", **mine, **{"filter[nodeId]": data_node["id"]})
    assert len(events) == 3 and events[0]["node"]["id"] == data_node["id"]  # approved, executing, executed
    told = researcher.get("/telemetry/events", **{"filter[refId]": analysis, "filter[name]": "created"})
    assert told[0]["refType"] == "analysis" and told[0]["actorId"] == researcher.id
    told = [researcher.get(f"/telemetry/events/{event['eventId']}")["data"]["diff"] for event in events]
    assert any("executionStatus" in diff and diff["executionStatus"]["next"] == "executed" for diff in told)


def test_every_answer_carries_what_the_client_needs(world: World) -> None:
    listed = world.admin("GET", "/core/nodes", 200)
    assert {"total", "limit", "offset", "schema"} <= set(listed["meta"])
    assert {"name", "strict", "indexes", "fields", "filters", "pagination", "relations", "sorts"} <= set(
        listed["meta"]["schema"]
    )
    assert world.anonymous()("GET", "/core/", 200)["version"] and "timestamp" in world.anonymous()("GET", "/", 200)
    problem = world.admin.refused(404, "GET", f"/core/nodes/{uuid4()}")
    assert (problem["code"], problem["message"], problem["issues"]) == (
        "entity_not_found",
        "The node was not found.",
        [],
    )


def test_telemetry_is_written_and_forgotten_by_administrators_alone(world: World) -> None:
    body = {"refType": "hub", "refId": None, "name": "checked", "scope": "tests", "data": {"diff": {}}}
    event = world.admin.make("/telemetry/events", **body)
    assert world.admin.get(f"/telemetry/events/{event['id']}") == event and event["expiring"] is True
    stranger = world.person(world.realm("elsewhere"), "researcher")
    stranger.refused(404, "GET", f"/telemetry/events/{event['id']}")
    stranger.refused(403, "POST", "/telemetry/events", json=body)
    stranger.refused(403, "DELETE", f"/telemetry/events/{event['id']}")
    world.admin("DELETE", f"/telemetry/events/{event['id']}", 202)
    world.admin.refused(400, "GET", "/telemetry/logs")


def test_the_client_of_an_analysis_holds_what_it_is_given_and_no_more(world: World) -> None:
    researcher = world.person(world.realm("permissions"), "researcher")
    project = researcher.make("/core/projects", name=f"held-{secrets.token_hex(3)}")["id"]
    path = f"/core/analyses/{researcher.make('/core/analyses', projectId=project)['id']}/client/permissions"
    held = researcher.get(path)
    names = [row["permission"]["name"] for row in held]
    assert names == ["analysis_self_message_broker_use", "analysis_self_storage_use"]
    researcher("DELETE", f"{path}/{held[0]['permissionId']}", 202)
    assert researcher.get(path) == held[1:]
    given = researcher("POST", path, 202, json={"permissionId": held[0]["permissionId"]})["data"]
    assert given["permissionId"] == held[0]["permissionId"] and len(researcher.get(path)) == 2
    more = world.admin.get("/auth/permissions", **{"filter[name]": "project_approve"})[0]["id"]
    researcher.refused(403, "POST", path, json={"permissionId": more})
    researcher.refused(400, "POST", path, json={"permissionId": str(uuid4())})
    researcher.refused(404, "DELETE", f"{path}/{uuid4()}")
    world.person(world.realm("outside"), "researcher").refused(404, "GET", path)
