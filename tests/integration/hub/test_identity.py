"""Who gets in, with what, and for how long."""

from __future__ import annotations

import hashlib
import time
from uuid import uuid4

import pytest
from world import PASSWORD, Node, World, enrolment

from flame.crypto.keys import HybridKey, IdentityKey, PublicKey, fingerprint_words


def token(world: World, expect: int, **body: str) -> dict[str, object]:
    return world.anonymous()("POST", "/auth/token", expect, json=body)


def test_failures_say_what_flames_clients_expect(world: World) -> None:
    person = {"grant_type": "password", "username": "admin", "password": "wrong"}
    assert token(world, 400, **person)["message"] == "The user credentials are invalid."
    assert (
        token(world, 400, **person | {"username": f"nobody-{uuid4()}"})["message"]
        == "The user credentials are invalid."
    )
    client = {"grant_type": "client_credentials", "client_id": str(uuid4()), "client_secret": "wrong"}
    assert "Client authentication failed" in token(world, 401, **client)["message"]
    assert token(world, 400, grant_type="refresh_token", refresh_token="nonsense")["message"] == "The JWT is invalid."
    world.anonymous().refused(401, "GET", "/core/nodes")
    answer = world.anonymous()("GET", "/core/nodes", 400, headers={"authorization": "Bearer rubbish"})
    assert answer["message"] == "The JWT is invalid."
    token(world, 400, grant_type="magic")


def test_form_and_json_and_double_slash_give_a_token(world: World) -> None:
    body = {"grant_type": "password", "username": "admin", "password": PASSWORD}
    for path, sent in (
        ("/auth/token", {"data": body}),
        ("/auth/token", {"json": body}),
        ("/auth//token", {"json": body}),
    ):
        answer = world.anonymous()("POST", path, 200, **sent)
        assert {"access_token", "refresh_token", "expires_in", "token_type", "scope"} <= set(answer)


def test_a_refresh_token_counts_once_and_its_copy_ends_the_session(world: World) -> None:
    first = token(world, 200, grant_type="password", username="admin", password=PASSWORD)
    second = token(world, 200, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert second["access_token"] != first["access_token"]
    token(world, 400, grant_type="refresh_token", refresh_token=first["refresh_token"])
    token(world, 400, grant_type="refresh_token", refresh_token=second["refresh_token"])
    headers = {"authorization": f"Bearer {second['access_token']}"}
    world.anonymous().refused(401, "GET", "/auth/userinfo", headers=headers)


def test_an_access_token_is_no_refresh_token_nor_the_other_way_round(world: World) -> None:
    pair = token(world, 200, grant_type="password", username="admin", password=PASSWORD)
    token(world, 400, grant_type="refresh_token", refresh_token=pair["access_token"])
    headers = {"authorization": f"Bearer {pair['refresh_token']}"}
    world.anonymous().refused(400, "GET", "/auth/userinfo", headers=headers)


def test_a_closed_account_stops_at_once(world: World) -> None:
    person = world.person(world.realm("closing"), "researcher")
    assert person.get("/core/projects") == []
    world.admin.change(f"/auth/users/{person.id}", active=False)
    person.refused(401, "GET", "/core/projects")


def test_a_node_waits_for_a_person_who_compares_the_fingerprint(world: World) -> None:
    realm = world.realm("careful")
    node = world.node(realm, confirmed=False)
    answer = token(world, 401, **world.assertion(node))
    assert "waits for an administrator's confirmation" in answer["message"]
    path = f"/core/nodes/{node.id}/enrolment"
    shown = world.admin.get(path)
    fingerprint = node.key.public.fingerprint
    assert (shown["fingerprint"], shown["words"]) == (fingerprint.hex(), fingerprint_words(fingerprint))
    wrong = hashlib.sha256(b"other").hexdigest()
    world.admin.refused(409, "POST", f"{path}/confirm", json={"fingerprint": wrong})
    world.person(realm, "researcher").refused(403, "POST", f"{path}/confirm", json={"fingerprint": fingerprint.hex()})
    row = world.admin.change(f"{path}/confirm", fingerprint=fingerprint.hex())
    assert PublicKey.from_hex_pem(row["publicKey"]) == node.key.public
    assert world.node_token(node)


def test_an_enrolment_token_counts_once_and_proves_the_key(world: World) -> None:
    node = world.node(world.realm("once"), confirmed=False)
    text = world.admin.make(f"/core/nodes/{node.id}/enrolment-token")["token"]
    key, other = IdentityKey.generate(), IdentityKey.generate()
    anyone = world.anonymous()
    forged = enrolment(text, key) | {"publicKey": other.public.hex_pem}
    anyone.refused(409, "POST", "/core/enrolments", json=forged)
    answer = anyone.make("/core/enrolments", **enrolment(text, key))
    assert (answer["nodeId"], answer["clientId"], answer["state"]) == (node.id, node.client, "pending")
    assert answer["realmId"] and answer["type"] == "default" and PublicKey.from_hex_pem(answer["hubKey"])
    anyone.refused(404, "POST", "/core/enrolments", json=enrolment(text, key))
    anyone.refused(404, "POST", "/core/enrolments", json=enrolment("never issued", key))


def test_one_key_is_one_node(world: World) -> None:
    realm = world.realm("twins")
    first = world.node(realm)
    second = world.node(realm, confirmed=False)
    text = world.admin.make(f"/core/nodes/{second.id}/enrolment-token")["token"]
    world.anonymous().refused(409, "POST", "/core/enrolments", json=enrolment(text, first.key))


def test_the_key_of_an_enrolled_node_is_not_overwritten(world: World) -> None:
    node = world.node(world.realm("fixed"))
    other = IdentityKey.generate().public.hex_pem
    world.admin.refused(409, "POST", f"/core/nodes/{node.id}", json={"publicKey": other})
    world.admin.change(f"/core/nodes/{node.id}", publicKey=node.key.public.hex_pem, hidden=True)


@pytest.mark.parametrize("case", ["audience", "late", "far", "key", "again", "subject"])
def test_an_assertion_is_for_this_hub_now_once_by_this_key(world: World, case: str) -> None:
    realm = world.realm("assert")
    node = world.node(realm)
    changed: dict[str, object] = {}
    if case == "audience":
        changed = {"aud": "https://elsewhere.example/other/token"}
    elif case == "late":
        changed = {"exp": int(time.time()) - 600}
    elif case == "far":
        changed = {"exp": int(time.time()) + 3600}
    elif case == "subject":
        changed = {"sub": world.node(realm).client}
    signer = Node(node.http, node.id, IdentityKey.generate(), node.client) if case == "key" else node
    body = world.assertion(signer, **changed)
    if case == "again":
        token(world, 200, **body)
    assert "Client authentication failed" in token(world, 401, **body)["message"]


def test_a_secret_works_for_clients_without_a_key(world: World) -> None:
    node = world.node(world.realm("plain"))
    path = f"/core/nodes/{node.id}/client/credentials"
    given = world.admin("POST", path, 200, json={})
    assert given["id"] == node.client and isinstance(given["displayName"], str)
    answer = token(world, 200, grant_type="client_credentials", client_id=given["id"], client_secret=given["secret"])
    headers = {"authorization": f"Bearer {answer['access_token']}"}
    assert world.anonymous()("GET", "/auth/userinfo", 200, headers=headers)["node_id"] == node.id
    node.refused(401, "GET", "/auth/userinfo")  # a new secret ends what was open
    node.http = world._client(world.node_token(node))
    node.refused(403, "POST", path, json={})


def test_a_person_has_one_active_key_of_a_kind_and_registers_only_their_own(world: World) -> None:
    person = world.person(world.realm("keys"), "researcher", keys=True)
    older = person.sign_key.public.fingerprint.hex()
    person.sign_key = IdentityKey.generate()
    person.register_keys()
    rows = person.get("/core/user-keys", **{"filter[kind]": "sign", "sort": "createdAt"})
    assert [(r["fingerprint"], r["revokedAt"] is None) for r in rows] == [
        (older, False),
        (person.sign_key.public.fingerprint.hex(), True),
    ]
    person.refused(400, "POST", "/core/user-keys", json={"kind": "sign", "publicKey": "00"})
    person.refused(400, "POST", "/core/user-keys", json={"kind": "result", "publicKey": "AAAA"})
    person.refused(400, "POST", "/core/user-keys", json={"kind": "other", "publicKey": "AAAA"})
    result = person.get("/core/user-keys", **{"filter[kind]": "result"})[0]
    assert result["fingerprint"] == person.result_key.key_id.hex() != HybridKey.generate().key_id.hex()


def test_a_realms_administrator_stays_in_the_realm(world: World) -> None:
    realm, other = world.realm("mine"), world.realm("other")
    boss = world.person(realm, "realm_admin")
    boss.make("/auth/users", name=f"u-{uuid4()}", password=PASSWORD, roles=["researcher"])
    boss.refused(403, "POST", "/auth/users", json={"name": "intruder", "realmId": other, "password": PASSWORD})
    boss.refused(403, "POST", "/auth/users", json={"name": f"u-{uuid4()}", "password": PASSWORD, "roles": ["admin"]})
    boss.refused(403, "POST", "/core/nodes", json={"name": "node-x", "realmId": other})
    boss.refused(403, "POST", "/core/master-images", json={"virtualPath": "python/other"})
    boss.refused(404, "POST", f"/auth/users/{world.admin.id}", json={"password": "taken over now"})


def test_secrets_never_leave(world: World) -> None:
    text = world.admin.http.get("/auth/users?fields=%2Bemail").text + world.admin.http.get("/auth/clients").text
    assert "argon2" not in text and "passwordHash" not in text and 'secretHash"' not in text
    log = (world.hub.dir / "hub.log").read_text()
    assert PASSWORD not in log
    assert (world.hub.dir / "keys" / "hub.pem").stat().st_mode & 0o077 == 0
