"""Attempts to become somebody else, or more than one is; each is refused, and says nothing that helps."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from websockets.exceptions import ConnectionClosed
from wire import channel
from world import PASSWORD, HubProcess, Person, World, jwk

from flame.crypto.keys import IdentityKey

CREDENTIALS = {"grant_type": "password", "username": "admin", "password": PASSWORD}


def token(world: World, expect: int = 200, **body: str) -> dict[str, Any]:
    return world.anonymous()("POST", "/auth/token", expect, json=body)


def bearer(actor: Person) -> str:
    return str(actor.http.headers["authorization"]).removeprefix("Bearer ")


def as_bearer(world: World, text: str, expect: int) -> Any:
    return world.anonymous()("GET", "/auth/userinfo", expect, headers={"authorization": f"Bearer {text}"})


def permission(world: World, name: str) -> str:
    return str(world.admin.get("/auth/permissions", **{"filter[name]": name})[0]["id"])


def role(world: World, name: str) -> str:
    return str(world.admin.get("/auth/roles", **{"filter[name]": name})[0]["id"])


# --------------------------------------------------------------------------------------------------------------- tokens


def encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_tokens_that_the_hub_has_not_signed(world: World) -> None:
    mine = bearer(world.admin)
    head, body, signature = mine.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = world.person(world.realm("forger"), "researcher")
    public = world.anonymous()("GET", "/auth/jwks", 200)["keys"][0]["x"]
    confused = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(public), algorithms=["HS256"])
    foreign = jwt.encode({"alg": "Ed25519"}, claims, jwk(IdentityKey.generate()), algorithms=["Ed25519"])
    for forged in (
        f"{encoded({'alg': 'none'})}.{body}.",
        f"{encoded({'alg': 'None', 'typ': 'JWT'})}.{body}.{signature}",
        f"{encoded({'alg': 'HS256'})}.{body}.{signature}",
        f"{encoded({'alg': 'Ed25519', 'jwk': {'kty': 'OKP', 'crv': 'Ed25519', 'x': public}})}.{body}.{signature}",
        f"{head}.{encoded(claims | {'sub': other.id})}.{signature}",
        f"{head}.{encoded(claims | {'exp': claims['exp'] + 9999})}.{signature}",
        f"{head}.{body}.{'A' * len(signature)}",
        f"{head}.{body}",
        confused,
        foreign,
        mine + "A" * 9000,
        "..",
    ):
        assert as_bearer(world, forged, 400)["message"] == "The JWT is invalid."
    as_bearer(world, mine, 200)


def test_a_token_for_another_audience_or_use_opens_nothing(world: World, hub: HubProcess) -> None:
    """Even one that the hub's own key has signed."""
    key = IdentityKey.load(hub.dir / "keys" / "hub.pem")
    body = bearer(world.admin).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    for changed in ({"aud": "elsewhere"}, {"use": "id"}, {"use": "refresh"}, {"sub_kind": "robot"}, {"aud": None}):
        made = jwt.encode({"alg": "Ed25519"}, claims | changed, jwk(key), algorithms=["Ed25519"])
        as_bearer(world, made, 400)
    for changed in ({"exp": int(time.time()) - 1}, {"sid": str(uuid4())}, {"sub": str(uuid4())}):
        made = jwt.encode({"alg": "Ed25519"}, claims | changed, jwk(key), algorithms=["Ed25519"])
        as_bearer(world, made, 401)


def test_who_is_gone_is_gone_at_once(world: World) -> None:
    realm = world.realm("gone")
    for end in ("delete", "close", "password"):
        name = f"gone-{secrets.token_hex(4)}"
        made = world.admin.make("/auth/users", name=name, password=PASSWORD, realmId=realm, roles=["researcher"])
        pair = token(world, grant_type="password", username=name, password=PASSWORD)
        as_bearer(world, pair["access_token"], 200)
        if end == "delete":
            world.admin("DELETE", f"/auth/users/{made['id']}", 202)
        else:
            change = {"active": False} if end == "close" else {"password": "another password"}
            world.admin.change(f"/auth/users/{made['id']}", **change)
        as_bearer(world, pair["access_token"], 401)
        token(world, 400, grant_type="refresh_token", refresh_token=pair["refresh_token"])
        token(world, 400, grant_type="password", username=name, password=PASSWORD)


def test_a_client_that_is_gone_is_gone_at_once(world: World) -> None:
    for end in ("delete", "close", "secret"):
        made = world.admin.make("/auth/clients", name=f"c-{end}", secret="a secret of a client")
        body = {"grant_type": "client_credentials", "client_id": made["id"], "client_secret": "a secret of a client"}
        access = token(world, **body)["access_token"]
        as_bearer(world, access, 200)
        if end == "delete":
            world.admin("DELETE", f"/auth/clients/{made['id']}", 202)
        else:
            change = {"active": False} if end == "close" else {"secret": "another secret"}
            world.admin.change(f"/auth/clients/{made['id']}", **change)
        as_bearer(world, access, 401)
        token(world, 401, **body)


def test_a_role_that_is_taken_stops_at_once(world: World) -> None:
    person = world.person(world.realm("taken"), "researcher")
    person.make("/core/projects", name=f"p-{secrets.token_hex(4)}")
    link = world.admin.get("/auth/user-roles", **{"filter[userId]": person.id})[0]
    world.admin("DELETE", f"/auth/user-roles/{link['id']}", 202)
    person.refused(403, "POST", "/core/projects", json={"name": "another"})


def test_two_refreshes_at_once_do_not_both_go_on(world: World) -> None:
    """One of them was a copy; which one cannot be known, so neither goes on for long."""
    pair = token(world, **CREDENTIALS)
    body = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: httpx2.post(f"{world.hub.url}/auth/token", json=body, trust_env=False), range(8))
        )
    good = [answer for answer in answers if answer.status_code == 200]
    assert len(good) == 1
    token(world, 400, grant_type="refresh_token", refresh_token=good[0].json()["refresh_token"])


# -------------------------------------------------------------------------------------------------------------- rights


def test_nobody_assigns_what_is_protected(world: World) -> None:
    realm, other = world.realm("mass"), world.realm("mass")
    person = world.person(realm, "researcher")
    mine = f"/auth/users/{person.id}"
    person.change(mine, displayName="A new name", email="me@example.org")
    for change in ({"active": False}, {"roles": ["admin"]}, {"nameLocked": True}):
        person.refused(403, "POST", mine, json=change)
    person.refused(409, "POST", mine, json={"realmId": other})
    before = world.admin.get(mine)
    person.change(mine, id=str(uuid4()), builtIn=True, passwordHash="x", createdAt="2000-01-01", password_hash="x")
    after = world.admin.get(mine)
    assert {k: v for k, v in before.items() if k != "updatedAt"} == {k: v for k, v in after.items() if k != "updatedAt"}
    person.refused(403, "POST", mine, json={"password": "taken over now"})
    person.refused(403, "POST", mine, json={"password": "taken over now", "currentPassword": "wrong"})
    person.change(mine, password="a new password", currentPassword=PASSWORD)
    person.refused(401, "GET", mine)  # a new password ends every session
    made = world.admin.make("/auth/realms", name=f"mass-{secrets.token_hex(4)}", builtIn=True)
    assert made["builtIn"] is False
    made = world.admin.make("/auth/clients", name="mass", builtIn=True, secretHash="x", createdAt="2000-01-01")
    assert made["builtIn"] is False and not made["createdAt"].startswith("2000")
    assert world.admin.make("/auth/roles", name=f"mass-{secrets.token_hex(4)}", builtIn=True)["builtIn"] is False


def test_nobody_gives_what_is_not_theirs(world: World) -> None:
    realm = world.realm("gifts")
    boss, plain = world.person(realm, "realm_admin"), world.person(realm, "researcher")
    friend = world.person(realm)
    for name in ("admin", "node"):
        body = {"userId": friend.id, "roleId": role(world, name)}
        assert boss("POST", "/auth/user-roles", json=body)["statusCode"] in (400, 403)
        boss.refused(400 if name == "node" else 403, "POST", f"/auth/users/{friend.id}", json={"roles": [name]})
    for name in ("realm_create", "master_image_manage", "registry_manage", "permission_create"):
        body = {"userId": friend.id, "permissionId": permission(world, name)}
        boss.refused(403, "POST", "/auth/user-permissions", json=body)
    body = {"userId": friend.id, "roleId": role(world, "steward")}
    plain.refused(403, "POST", "/auth/user-roles", json=body)
    boss.make("/auth/user-roles", **body)
    assert sorted(friend("GET", "/auth/userinfo", 200)["roles"]) == ["steward"]
    boss.refused(403, "POST", "/auth/user-roles", json=body | {"userId": boss.id})
    body = {"userId": boss.id, "permissionId": permission(world, "analysis_approve")}
    boss.refused(403, "POST", "/auth/user-permissions", json=body)
    client = boss.make("/auth/clients", name="helper", secret="a secret of a client")
    body = {"clientId": client["id"], "permissionId": permission(world, "realm_create")}
    boss.refused(403, "POST", "/auth/client-permissions", json=body)
    boss.refused(
        400, "POST", "/auth/client-roles", json={"clientId": client["id"], "roleId": role(world, "researcher")}
    )


def test_a_role_of_ones_own_is_no_way_up(world: World) -> None:
    realm = world.realm("roles")
    boss, friend = world.person(realm, "realm_admin"), world.person(realm)
    mine = boss.make("/auth/roles", name="helpers")
    assert mine["realmId"] == realm
    boss.refused(409, "POST", "/auth/roles", json={"name": "admin"})
    boss.refused(409, "POST", f"/auth/roles/{mine['id']}", json={"name": "admin"})
    boss.refused(403, "POST", "/auth/roles", json={"name": "elsewhere", "realmId": world.realm("roles")})
    link = boss.make("/auth/role-permissions", roleId=mine["id"], permissionId=permission(world, "project_create"))
    body = {"roleId": mine["id"], "permissionId": permission(world, "realm_create")}
    boss.refused(403, "POST", "/auth/role-permissions", json=body)
    boss.make("/auth/user-roles", userId=friend.id, roleId=mine["id"])
    friend.make("/core/projects", name=f"p-{secrets.token_hex(4)}")  # it does what it says
    boss.make("/auth/user-roles", userId=boss.id, roleId=mine["id"])  # nothing in it that is not held already
    body = {"roleId": mine["id"], "permissionId": permission(world, "analysis_approve")}
    boss.refused(403, "POST", "/auth/role-permissions", json=body)  # it would be a gift to oneself
    boss("DELETE", f"/auth/role-permissions/{link['id']}", 202)
    friend.refused(403, "POST", "/core/projects", json={"name": "another"})
    boss("DELETE", f"/auth/roles/{mine['id']}", 202)


def test_a_permission_of_ones_own_confers_nothing_by_its_name(world: World) -> None:
    realm = world.realm("names")
    for actor in (world.admin, world.person(realm, "realm_admin")):
        body = {"name": "realm_create", "realmId": realm}
        assert actor("POST", "/auth/permissions", json=body)["statusCode"] in (403, 409)
    person = world.person(realm)
    made = world.admin.make("/auth/permissions", name=f"own-{secrets.token_hex(4)}", realmId=realm)
    world.admin.make("/auth/user-permissions", userId=person.id, permissionId=made["id"])
    assert person("GET", "/auth/userinfo", 200)["permissions"] == []


def test_what_the_hub_stands_on_stays(world: World) -> None:
    master = world.admin.get("/auth/realms", **{"filter[name]": "master"})[0]["id"]
    admin = role(world, "admin")
    world.admin.refused(409, "DELETE", f"/auth/realms/{master}")
    world.admin.refused(409, "POST", f"/auth/realms/{master}", json={"name": "slave"})
    world.admin.refused(409, "DELETE", f"/auth/roles/{admin}")
    world.admin.refused(409, "POST", f"/auth/roles/{admin}", json={"description": "x"})
    world.admin.refused(409, "DELETE", f"/auth/permissions/{permission(world, 'analysis_approve')}")
    body = {"roleId": admin, "permissionId": permission(world, "analysis_approve")}
    world.admin.refused(409, "POST", "/auth/role-permissions", json=body)
    link = world.admin.get("/auth/role-permissions", **{"filter[roleId]": admin})[0]["id"]
    world.admin.refused(409, "DELETE", f"/auth/role-permissions/{link}")
    link = world.admin.get("/auth/user-roles", **{"filter[userId]": world.admin.id})[0]["id"]
    world.admin.refused(409, "DELETE", f"/auth/user-roles/{link}")
    world.admin.refused(409, "DELETE", f"/auth/users/{world.admin.id}")
    cli = world.admin.get("/auth/clients", **{"filter[name]": "flame-cli"})[0]["id"]
    world.admin.refused(409, "DELETE", f"/auth/clients/{cli}")
    node = world.node(world.realm("stays"))
    world.admin.refused(409, "DELETE", f"/auth/clients/{node.client}")
    world.admin.refused(409, "DELETE", f"/auth/realms/{node.realm}")


def test_an_administrator_of_the_hub_is_not_taken_over_by_one_of_the_realm(world: World) -> None:
    realm = world.realm("over")
    boss, chief, special = world.person(realm, "realm_admin"), world.person(realm, "admin"), world.person(realm)
    world.admin.make("/auth/user-permissions", userId=special.id, permissionId=permission(world, "master_image_manage"))
    for above in (chief, special):
        path = f"/auth/users/{above.id}"
        boss.refused(403, "POST", path, json={"password": "taken over now"})
        boss.refused(403, "POST", path, json={"active": False})
        boss.refused(403, "DELETE", path)
    link = world.admin.get("/auth/user-roles", **{"filter[userId]": chief.id})[0]["id"]
    boss.refused(403, "DELETE", f"/auth/user-roles/{link}")
    boss.change(f"/auth/users/{world.person(realm, 'steward').id}", password="a forgotten one")


def test_ids_of_other_realms_are_not_even_there(world: World) -> None:
    here, there = world.realm("here"), world.realm("there")
    boss, friend = world.person(here, "realm_admin"), world.person(here)
    victim, client = world.person(there, "researcher"), world.admin.make("/auth/clients", name="theirs", realmId=there)
    theirs = world.admin.make("/auth/roles", name="theirs", realmId=there)
    link = world.admin.get("/auth/user-roles", **{"filter[userId]": victim.id})[0]
    note = world.admin.make("/auth/user-attributes", userId=victim.id, name="note", value="x")
    session = world.admin.get("/auth/sessions", **{"filter[subject]": victim.id})[0]
    for kind, key in (
        ("users", victim.id), ("clients", client["id"]), ("roles", theirs["id"]), ("user-roles", link["id"]),
        ("realms", there), ("user-attributes", note["id"]), ("sessions", session["id"]),
    ):  # fmt: skip
        boss.refused(404, "GET", f"/auth/{kind}/{key}")
        boss.refused(404, "DELETE", f"/auth/{kind}/{key}")
        assert key not in {row["id"] for row in boss.get(f"/auth/{kind}")}
        assert boss.get(f"/auth/{kind}", **{"filter[id]": key}) == []
    boss.refused(404, "POST", f"/auth/users/{victim.id}", json={"active": False})
    boss.refused(400, "POST", "/auth/user-roles", json={"userId": victim.id, "roleId": role(world, "researcher")})
    boss.refused(400, "POST", "/auth/user-roles", json={"userId": friend.id, "roleId": theirs["id"]})
    boss.refused(400, "POST", "/auth/user-attributes", json={"userId": victim.id, "name": "x"})
    for path in ("/auth/users", "/auth/clients", "/auth/roles"):
        boss.refused(403, "POST", path, json={"name": "intruder", "realmId": there})
    assert boss.get("/auth/users", **{"filter[realm.name]": "there~"}) == []


def test_the_name_of_another_realms_person_does_not_help(world: World) -> None:
    """Same name, two realms: each password opens its own account, and a realm can be said."""
    name = f"twin-{secrets.token_hex(4)}"
    realms = [world.realm("twin"), world.realm("twin")]
    for number, realm in enumerate(realms):
        world.admin.make("/auth/users", name=name, password=f"password number {number}", realmId=realm)
    body = {"grant_type": "password", "username": name, "password": "password number 1"}
    told = as_bearer(world, token(world, **body)["access_token"], 200)
    assert told["realm_id"] == realms[1]
    token(world, 400, **body, realm_id=realms[0])


# -------------------------------------------------------------------------------------------------------- guessing, logs


def attempts(world: World, address: str, name: str, password: str, count: int) -> list[int]:
    transport = httpx2.HTTPTransport(local_address=address)
    body = {"grant_type": "password", "username": name, "password": password}
    with httpx2.Client(base_url=world.hub.url, transport=transport, trust_env=False, timeout=60) as http:
        return [http.post("/auth/token", json=body).status_code for _ in range(count)]


def test_guessing_is_slowed_down_and_locks_nobody_out(world: World, hub: HubProcess) -> None:
    name = f"target-{secrets.token_hex(4)}"
    world.admin.make("/auth/users", name=name, password=PASSWORD, realmId=world.realm("target"))
    assert attempts(world, "127.0.0.1", name, PASSWORD, 1) == [200]
    assert attempts(world, "127.0.0.2", name, "a guess", 12) == [400] * 10 + [429] * 2
    assert attempts(world, "127.0.0.2", name, PASSWORD, 1) == [429]  # a right guess is not told
    assert attempts(world, "127.0.0.1", name, PASSWORD, 1) == [200]  # who was here before is not concerned
    assert attempts(world, "127.0.0.3", name, PASSWORD, 1) == [200]  # nor who comes from elsewhere
    for number in range(5):  # one source, many names
        attempts(world, "127.0.0.4", f"nobody-{number}", "a guess", 10)
    assert attempts(world, "127.0.0.4", f"another-{uuid4()}", "a guess", 1) == [429]
    hub.stop()
    hub.start()
    world.close()
    world.__init__(hub)  # type: ignore[misc]
    assert attempts(world, "127.0.0.2", name, "a guess", 1) == [429]  # a restart forgets nothing
    assert attempts(world, "127.0.0.1", name, PASSWORD, 1) == [200]
    stored = (hub.dir / "hub.db").read_bytes() + (hub.dir / "hub.db-wal").read_bytes()
    assert b"127.0.0.2" not in stored and b"127.0.0.4" not in stored


def test_secrets_are_in_no_log_and_in_the_database_only_as_hashes(world: World, hub: HubProcess) -> None:
    person = world.person(world.realm("quiet"), "researcher")
    secret, wrong = f"secret-{uuid4()}", f"wrong-{uuid4()}"
    client = world.admin.make("/auth/clients", name="quiet", secret=secret)
    body = {"grant_type": "client_credentials", "client_id": client["id"]}
    access = token(world, **body, client_secret=secret)["access_token"]
    token(world, 401, **body, client_secret=wrong)
    token(world, 400, grant_type="password", username="admin", password=wrong)
    device = world.anonymous()("POST", "/auth/device_authorization", 200, json={"client_id": "flame-cli"})
    world.anonymous()("GET", "/auth/token/introspect?token=x", 401)
    stored = b"".join(path.read_bytes() for path in hub.dir.rglob("*") if path.is_file())
    for text in (secret, wrong, access, bearer(person), PASSWORD, device["device_code"], device["user_code"]):
        assert text.encode() not in stored


def test_a_cookie_or_a_query_is_no_bearer(world: World) -> None:
    access = bearer(world.admin)
    world.anonymous()("GET", f"/auth/users?access_token={access}", 401)
    world.anonymous()("GET", "/auth/users", 401, headers={"cookie": f"access_token={access}"})


@pytest.mark.parametrize("name", ["a\r\nx-evil: 1", "nul\x00", "\x1b[31mred", "", "x" * 129])
def test_names_carry_no_control_characters(world: World, name: str) -> None:
    for path in ("/auth/users", "/auth/clients", "/auth/roles"):
        world.admin.refused(400, "POST", path, json={"name": name})


def test_a_node_whose_client_is_closed_is_disconnected(world: World) -> None:
    node = world.node(world.realm("closing"))

    async def connected() -> None:
        async with channel(world, node) as wire:
            await asyncio.to_thread(world.admin.change, f"/auth/clients/{node.client}", active=False)
            with pytest.raises(ConnectionClosed):
                await wire.next(str, seconds=10)

    asyncio.run(connected())
    node.refused(401, "GET", "/auth/userinfo")
    assert "Client authentication failed" in token(world, 401, **world.assertion(node))["message"]
