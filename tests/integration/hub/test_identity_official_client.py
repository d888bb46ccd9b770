"""FLAME's own client, unmodified, for everything that it offers about identity."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from flame_hub import AuthClient, HubAPIError, auth
from flame_hub.types import FilterOperator
from world import PASSWORD, HubProcess, World


@pytest.fixture(scope="module")
def base(hub: HubProcess) -> str:
    return f"{hub.url}/auth"


class Ways:
    """The client with one way or another to log in; all of it is closed at the end."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._open: list[Any] = []
        self._http = httpx2.Client(base_url=base, trust_env=False)

    def password(self, user: str, password: str) -> auth.PasswordAuth:
        return auth.PasswordAuth(user, password, client=self._http)

    def secret(self, client: object, secret: str) -> auth.ClientAuth:
        return auth.ClientAuth(str(client), secret, client=self._http)

    def client(self, way: Any) -> AuthClient:
        self._open.append(AuthClient(base_url=self.base, auth=way))
        return self._open[-1]

    def close(self) -> None:
        for one in (*self._open, self._http):
            one.close()


@pytest.fixture(scope="module")
def ways(base: str) -> Iterator[Ways]:
    ways = Ways(base)
    yield ways
    ways.close()


@pytest.fixture(scope="module")
def client(ways: Ways) -> AuthClient:
    return ways.client(ways.password("admin", PASSWORD))


@pytest.fixture(scope="module")
def master(client: AuthClient) -> Any:
    (found,) = [realm for realm in client.get_realms() if realm.name == "master"]
    return found


def name(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(4)}"


def test_realms(client: AuthClient) -> None:
    realm = client.create_realm(name("realm"), display_name="A hospital", description="In the north.")
    assert client.get_realm(realm.id) == realm
    assert client.find_realms(filter={"id": realm.id}) == [realm]
    changed = client.update_realm(realm, name=name("realm"))
    assert changed.name != realm.name and changed.display_name == "A hospital"
    client.delete_realm(realm)
    assert client.get_realm(realm.id) is None


def test_users(client: AuthClient, master: Any) -> None:
    user = client.create_user(
        name("user"), email="a.b@example.org", display_name="A. B.", first_name="A", last_name="B"
    )
    assert user.realm_id == master.id
    read = client.get_user(user.id, fields="email")
    assert read.email == "a.b@example.org" and read.realm == master
    (found,) = client.find_users(filter={"name": user.name}, fields="email")
    assert found == read
    assert client.get_user(user.id).email is None and "realm" in client.get_users()[0].model_fields_set
    changed = client.update_user(user, display_name="C. D.", active=False, name=name("user"))
    assert (changed.display_name, changed.active) == ("C. D.", False)
    client.delete_user(user)
    assert client.get_user(user.id) is None


def test_permissions(client: AuthClient, master: Any) -> None:
    permission = client.create_permission(name("permission"), display_name="Of ours", realm_id=master)
    assert client.get_permission(permission.id).realm == master
    general = client.create_permission(name("permission"))
    read = client.get_permission(general.id)
    assert read.realm is None and "realm" in read.model_fields_set
    changed = client.update_permission(general, description="new")
    assert changed.description == "new"
    assert general.id in {p.id for p in client.find_permissions(filter={"name": general.name})}
    names = {p.name for p in client.find_permissions(filter={"name": (FilterOperator.eq, "analysis_approve")})}
    assert names == {"analysis_approve"} and client.get_permissions()
    for one in (permission, general):
        client.delete_permission(one)
    assert client.get_permission(general.id) is None


def test_roles_and_what_they_hold(client: AuthClient, master: Any) -> None:
    role = client.create_role(name("role"), display_name="Of ours")
    assert client.get_role(role.id).realm == master
    assert client.update_role(role, description="new").description == "new"
    permission = client.find_permissions(filter={"name": "project_create"})[0]
    link = client.create_role_permission(role, permission)
    read = client.get_role_permission(link.id)
    assert (read.role, read.permission) == (
        client.get_role(role.id).model_copy(update={"realm": None}),
        read.permission,
    )
    assert read.permission.name == "project_create" and read.role_realm == master and read.permission_realm is None
    assert link.id in {one.id for one in client.find_role_permissions(filter={"role_id": role.id})}
    assert client.get_role_permissions()
    client.delete_role_permission(link)
    client.delete_role(role)
    assert client.get_role(role.id) is None and client.get_roles() and client.find_roles(filter={"name": "admin"})


def test_who_holds_what(client: AuthClient) -> None:
    user = client.create_user(name("user"), email="e@example.org")
    permission, role = client.create_permission(name("permission")), client.create_role(name("role"))
    held = client.create_user_permission(user, permission)
    assert client.get_user_permission(held.id).user.id == user.id
    assert [one.id for one in client.find_user_permissions(filter={"user_id": user.id})] == [held.id]
    assert client.get_user_permissions()
    client.delete_user_permission(held)
    link = client.create_user_role(user, role)
    read = client.get_user_role(link.id)
    assert (read.user_id, read.role_id) == (user.id, role.id) and "userRealm" not in read.model_fields_set
    assert read.user_realm.name == "master"
    assert [one.id for one in client.find_user_roles(filter={"role_id": role.id})] == [link.id]
    assert client.get_user_roles()
    client.delete_user_role(link)
    assert client.get_user_role(link.id) is None


def test_clients(client: AuthClient, master: Any, ways: Ways) -> None:
    secret = secrets.token_hex(16)
    made = client.create_client(name("Mixed-Case"), master, secret=secret, redirect_uri="https://example.org/back")
    assert client.get_client(made.id).realm == master and made.display_name == made.name
    assert made.redirect_uri == "https://example.org/back"
    own = ways.client(ways.secret(made.id, secret))
    assert own.get_client(made.id).name == made.name
    changed = client.update_client(made, display_name="new", secret="another secret")
    assert changed.display_name == "new"
    with pytest.raises(HubAPIError):
        own.get_client(made.id)
    other = ways.client(ways.secret(made.id, "another secret"))
    assert other.get_clients() == [client.get_client(made.id)]
    assert [one.id for one in client.find_clients(filter={"name": made.name})] == [made.id]
    client.delete_client(made)
    assert client.get_client(made.id) is None
    with pytest.raises(HubAPIError, match="ended"):
        other.get_clients()


def test_what_comes_with_a_list(client: AuthClient) -> None:
    for kind in (
        "realms",
        "users",
        "permissions",
        "roles",
        "clients",
        "user_roles",
        "role_permissions",
        "user_permissions",
    ):
        rows, meta = getattr(client, f"get_{kind}")(meta=True)
        assert meta.total >= len(rows) and meta.limit == 50 and meta.offset == 0
    page, meta = client.find_permissions(page={"limit": 2, "offset": 1}, sort={"by": "name"}, meta=True)
    assert len(page) == 2 and meta.total > 50 and page[0].name < page[1].name


def test_the_ways_in_and_their_failures(ways: Ways) -> None:
    def status(way: Any) -> tuple[int, str]:
        with pytest.raises(HubAPIError) as caught:
            ways.client(way).get_realms()
        return caught.value.error_response.status_code, caught.value.error_response.message

    assert status(ways.password("admin", "wrong")) == (400, "The user credentials are invalid.")
    code, message = status(ways.secret(uuid4(), "wrong"))
    assert code == 401 and "Client authentication failed" in message
    assert status(auth.StaticAuth("rubbish")) == (400, "The JWT is invalid.")
    way = ways.password("admin", PASSWORD)
    own = ways.client(way)
    own.get_realms()
    first, way._current_token_expires_at_nanos = way._current_token, 0
    own.get_realms()
    assert way._current_token.access_token != first.access_token
    assert ways.client(way._current_token.access_token).get_realms()
    way._current_token.refresh_token, way._current_token_expires_at_nanos = "rubbish", 0
    with pytest.raises(HubAPIError, match="The JWT is invalid"):
        own.get_realms()


def test_each_method_of_the_client_is_called(request: pytest.FixtureRequest) -> None:
    source = request.path.read_text()
    plural = {"client", "permission", "realm", "role", "role_permission", "user", "user_permission", "user_role"}
    generic = {f"get_{one}s" for one in plural}  # called by name, in the test of lists
    public = {one for one in dir(AuthClient) if not one.startswith("_")} - generic
    assert {one for one in public if f".{one}(" not in source} == set()


def test_a_bearer_at_the_root(world: World) -> None:
    assert isinstance(world.admin("GET", "/auth/", 200), dict)
    assert httpx2.get(f"{world.hub.url}/auth/", trust_env=False).status_code == 200
