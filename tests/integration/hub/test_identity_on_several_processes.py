"""What counts once counts once in all processes together, and what is withdrawn at one is withdrawn at the other."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from flame_hub import AuthClient, auth
from world import PASSWORD, HubProcess, World

from postgres_world import Postgres

CREDENTIALS = {"grant_type": "password", "username": "admin", "password": PASSWORD}


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[list[HubProcess]]:
    folder, database = tmp_path_factory.mktemp("hub"), postgres.setting(postgres.fresh())
    both = [HubProcess(folder, admin_password=PASSWORD, database_url=database) for _ in range(2)]
    yield both
    for hub in both:
        hub.stop()


@pytest.fixture(scope="module")
def world(hubs: list[HubProcess]) -> Iterator[World]:
    world = World(hubs[0])
    yield world
    world.close()


def ask(hub: HubProcess, body: dict[str, str], address: str = "127.0.0.1") -> httpx2.Response:
    transport = httpx2.HTTPTransport(local_address=address)
    with httpx2.Client(base_url=hub.url, transport=transport, trust_env=False, timeout=60) as http:
        return http.post("/auth/token", json=body)


def both_at_once(hubs: list[HubProcess], body: dict[str, str]) -> list[httpx2.Response]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda number: ask(hubs[number % 2], body), range(8)))


def test_a_refresh_token_counts_once_in_all_processes(hubs: list[HubProcess], world: World) -> None:
    for _ in range(3):
        pair = ask(hubs[0], CREDENTIALS).json()
        answers = both_at_once(hubs, {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]})
        good = [answer for answer in answers if answer.status_code == 200]
        assert len(good) == 1 and {answer.status_code for answer in answers} == {200, 400}
        headers = {"authorization": f"Bearer {good[0].json()['access_token']}"}
        assert httpx2.get(f"{hubs[1].url}/auth/userinfo", headers=headers, trust_env=False).status_code == 401


def test_a_device_is_told_yes_once_in_all_processes(hubs: list[HubProcess], world: World) -> None:
    device = world.anonymous()("POST", "/auth/device_authorization", 200, json={"client_id": "flame-cli"})
    from test_identity_flows import DEVICE, Browser, decide

    with httpx2.Client(base_url=hubs[1].url, trust_env=False) as http:
        assert decide(Browser(http), device["user_code"]).status_code == 200
    body = {"grant_type": DEVICE, "client_id": "flame-cli", "device_code": device["device_code"]}
    assert sorted(answer.status_code for answer in both_at_once(hubs, body)) == [200] + [400] * 7


def test_failures_at_one_process_count_at_the_other(hubs: list[HubProcess], world: World) -> None:
    wrong = CREDENTIALS | {"password": "a guess"}
    seen = [ask(hubs[number % 2], wrong, "127.0.0.9").status_code for number in range(11)]
    assert seen == [400] * 10 + [429]
    assert ask(hubs[1], CREDENTIALS).status_code == 200


def test_what_is_closed_at_one_process_is_closed_at_the_other(hubs: list[HubProcess], world: World) -> None:
    name = f"person-{secrets.token_hex(4)}"
    made = world.admin.make("/auth/users", name=name, password=PASSWORD)
    access = ask(hubs[1], CREDENTIALS | {"username": name}).json()["access_token"]
    headers = {"authorization": f"Bearer {access}"}
    assert httpx2.get(f"{hubs[1].url}/auth/userinfo", headers=headers, trust_env=False).status_code == 200
    world.admin("DELETE", f"/auth/users/{made['id']}", 202)
    assert httpx2.get(f"{hubs[1].url}/auth/userinfo", headers=headers, trust_env=False).status_code == 401


def test_flames_client_on_postgresql(hubs: list[HubProcess], world: World) -> None:
    base = f"{hubs[1].url}/auth"
    with httpx2.Client(base_url=base, trust_env=False) as http:
        client: Any = AuthClient(base_url=base, auth=auth.PasswordAuth("admin", PASSWORD, client=http))
        role = client.create_role(f"role-{secrets.token_hex(4)}")
        permission = client.find_permissions(filter={"name": "project_create"}, sort={"by": "name"})[0]
        link = client.create_role_permission(role, permission)
        assert client.get_role_permission(link.id).permission.name == "project_create"
        assert client.find_role_permissions(filter={"role.name": role.name})[0].id == link.id
        client.delete_role(role)
        assert client.get_role_permission(link.id) is None
        client.close()
