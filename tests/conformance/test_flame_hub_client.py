"""FLAME's official Python client, unmodified, against a real hub: every public method of it, and what its users rely on."""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import httpx2
import pytest
from flame_hub import AuthClient, CoreClient, HubAPIError, StorageClient
from flame_hub.auth import ClientAuth, PasswordAuth, StaticAuth
from flame_hub.models import (
    Analysis,
    AnalysisBucket,
    AnalysisBucketFile,
    AnalysisNode,
    Node,
    Project,
    Registry,
)
from flame_hub.types import FilterOperator

from flame.hub.app import ROUTES
from flame.hub.described import Described
from flame.hub.resources import Resource
from integration.hub.world import HubProcess

PASSWORD = "a password for tests"
SOON = 2.5
"""Seconds within which FLAME's own tests expect what happens behind an answer."""

T = TypeVar("T")
CLIENTS = (AuthClient, CoreClient, StorageClient)
called: set[str] = set()
opened: list[httpx2.Client] = []


def public_methods() -> dict[str, Callable[..., Any]]:
    return {
        f"{kind.__name__}.{name}": getattr(kind, name)
        for kind in CLIENTS
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name))
    }


def recorded(kind: type[T]) -> type[T]:
    """The same client, which notes what is called of it."""

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: object, *args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return method(self, *args, **kwargs)

        return call

    mine = {n: m for n, m in public_methods().items() if n.startswith(f"{kind.__name__}.")}
    return type(kind.__name__, (kind,), {n.partition(".")[2]: noting(n, m) for n, m in mine.items()})


@dataclass
class Flame:
    """The three clients of one user."""

    url: str
    auth: Any
    core: Any
    storage: Any

    @classmethod
    def of(cls, url: str, credentials: httpx2.Auth) -> Flame:
        def client(kind: type, path: str) -> Any:
            opened.append(httpx2.Client(base_url=url + path, auth=credentials, trust_env=False))
            return recorded(kind)(client=opened[-1])

        return cls(url, client(AuthClient, "/auth"), client(CoreClient, "/core"), client(StorageClient, "/storage"))

    def close(self) -> None:
        for client in (self.auth, self.core, self.storage):
            client.close()


def token_client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=f"{url}/auth", trust_env=False)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """As FLAME's own test suites start one; on either database."""
    more = {"skip_project_approval": "1", "skip_analysis_approval": "1"}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        more["database_url"] = server.setting(server.fresh())
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD, **more)
    yield hub
    hub.stop()


@pytest.fixture(autouse=True)
def form(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    if "hub" in request.fixturenames:
        record_property("form", f"the official client on {request.node.callspec.params['hub']}")


@pytest.fixture(scope="module")
def flame(hub: HubProcess) -> Iterator[Flame]:
    with token_client(hub.url) as client:
        flame = Flame.of(hub.url, PasswordAuth("admin", PASSWORD, client=client))
        yield flame
        for further in opened:
            further.close()


def name(kind: str = "test") -> str:
    return f"{kind}-{secrets.token_hex(5)}"


def soon(look: Callable[[], T]) -> T:
    """The first true value, within the time that FLAME's own tests allow."""
    until = time.monotonic() + SOON
    while not (found := look()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def refused(status: int, act: Callable[[], object]) -> HubAPIError:
    with pytest.raises(HubAPIError) as error:
        act()
    assert error.value.error_response.status_code == status, error.value
    assert error.value.error_response.code and error.value.error_response.message
    return error.value


# --------------------------------------------------------------------------------------------------------------- logins


def test_each_way_in_and_its_failures(hub: HubProcess, flame: Flame) -> None:
    with token_client(hub.url) as client:
        wrong = Flame.of(hub.url, PasswordAuth("admin", "not the password", client=client))
        assert "The user credentials are invalid" in str(refused(400, wrong.core.get_nodes))
        wrong = Flame.of(hub.url, ClientAuth(name(), "not the secret", client=client))
        assert "Client authentication failed" in str(refused(401, wrong.core.get_nodes))
        right = PasswordAuth("admin", PASSWORD, client=client)
        Flame.of(hub.url, right).core.get_nodes()
        first = right._current_token
        right._current_token_expires_at_nanos = 0
        Flame.of(hub.url, right).core.get_nodes()
        assert right._current_token.access_token != first.access_token
        right._current_token_expires_at_nanos = 0
        right._current_token.refresh_token = "rubbish"
        assert "The JWT is invalid" in str(refused(400, Flame.of(hub.url, right).core.get_nodes))
    assert Flame.of(hub.url, StaticAuth(first.access_token)).core.get_nodes() is not None
    assert "The JWT is invalid" in str(refused(400, Flame.of(hub.url, StaticAuth("rubbish")).core.get_nodes))
    bearer = {"authorization": f"Bearer {first.access_token}"}
    assert httpx2.get(f"{hub.url}/auth/", headers=bearer, trust_env=False).status_code == 200
    body = {"grant_type": "password", "username": "admin", "password": PASSWORD}
    assert httpx2.post(f"{hub.url}/auth//token", json=body, trust_env=False).status_code == 200


def test_a_client_logs_in_with_the_id_and_the_secret_that_were_given(hub: HubProcess, flame: Flame) -> None:
    master = flame.auth.find_realms(filter={"name": "master"})[0]
    secret = secrets.token_hex(16)
    made = flame.auth.create_client("Mixed-Case-Client", master, secret=secret)
    assert made.name == "Mixed-Case-Client"
    with token_client(hub.url) as client:
        assert Flame.of(hub.url, ClientAuth(str(made.id), secret, client=client)).core.get_nodes() is not None
    flame.auth.delete_client(made)


# ------------------------------------------------------------------------------------------------------------- identity


def test_realms_users_roles_permissions_and_clients(flame: Flame) -> None:
    auth = flame.auth
    assert [realm.name for realm in auth.find_realms(filter={"name": "master"})] == ["master"]
    realm = auth.create_realm(name("realm"), display_name="A realm", description="For tests")
    assert auth.get_realm(realm.id) == realm and realm in auth.get_realms()
    assert auth.update_realm(realm, display_name="Another").display_name == "Another"

    user = auth.create_user(name("user"), f"{name('mail')}@example.org", first_name="A", last_name="B")
    assert user.email is None or "@" in user.email
    assert auth.get_user(user.id, fields="email").email.endswith("@example.org")
    assert "email" not in auth.get_user(user.id).model_fields_set
    assert user.id in {found.id for found in auth.get_users()}
    assert [found.id for found in auth.find_users(filter={"name": user.name})] == [user.id]
    assert auth.update_user(user, display_name="Somebody").display_name == "Somebody"

    role = auth.create_role(name("role"), display_name="A role")
    assert auth.get_role(role.id).id == role.id and role.id in {r.id for r in auth.get_roles()}
    assert auth.update_role(role, description="changed").description == "changed"
    assert [found.id for found in auth.find_roles(filter={"name": role.name})] == [role.id]

    permission = auth.create_permission(name("permission"), description="For tests")
    assert auth.get_permission(permission.id).id == permission.id
    assert auth.update_permission(permission, display_name="shown").display_name == "shown"
    assert permission.id in {p.id for p in auth.find_permissions(filter={"name": permission.name})}
    assert len(auth.get_permissions()) > 5

    given = auth.create_role_permission(role, permission)
    assert auth.get_role_permission(given.id).id == given.id
    assert given.id in {g.id for g in auth.find_role_permissions(filter={"role_id": role.id})}
    assert auth.get_role_permissions()
    auth.delete_role_permission(given)

    held = auth.create_user_permission(user, permission)
    assert {"user", "permission"} <= auth.get_user_permission(held.id).model_fields_set
    assert held.id in {h.id for h in auth.find_user_permissions(filter={"user_id": user.id})}
    assert auth.get_user_permissions()
    auth.delete_user_permission(held)

    has = auth.create_user_role(user, role)
    assert {"user_realm", "role_realm"} <= auth.get_user_role(has.id).model_fields_set
    assert has.id in {h.id for h in auth.find_user_roles(filter={"user_id": user.id})}
    assert auth.get_user_roles()
    auth.delete_user_role(has)

    client = auth.create_client(name("client"), realm, display_name="A client", secret=secrets.token_hex(16))
    assert auth.get_client(client.id).id == client.id and client.id in {c.id for c in auth.get_clients()}
    assert auth.find_clients(filter={"id": client.id})[0].id == client.id
    assert auth.update_client(client, description="changed").description == "changed"

    auth.delete_client(client)
    auth.delete_permission(permission)
    auth.delete_role(role)
    auth.delete_user(user)
    auth.delete_realm(realm)
    assert auth.get_realm(realm.id) is None and auth.get_user(user.id) is None and auth.get_client(client.id) is None


# ----------------------------------------------------------------------------------------- nodes, registries and images


@pytest.fixture
def registry(flame: Flame) -> Iterator[Registry]:
    made = flame.core.create_registry(
        name("registry"), f"https://{name('host')}.invalid/path", account_name="admin", account_secret="never shown"
    )
    yield made
    flame.core.delete_registry(made)


@pytest.fixture
def node(flame: Flame, registry: Registry) -> Iterator[Node]:
    realm = flame.auth.find_realms(filter={"name": "master"})[0]
    made = flame.core.create_node(f"Node-{name()}", realm_id=realm, registry_id=registry)
    yield made
    if flame.core.get_node(made.id) is not None:
        flame.core.delete_node(made)


def test_registries_keep_their_secret_and_set_up_three_projects(flame: Flame, registry: Registry) -> None:
    core = flame.core
    assert registry.host.endswith(".invalid") and "account_secret" not in registry.model_fields_set
    assert core.get_registry(registry.id) == registry and registry in core.get_registries()
    assert core.find_registries(filter={"name": registry.name}) == [registry]
    assert core.get_registry(registry.id, fields="account_secret").account_secret == "never shown"
    assert core.find_registries(filter={"id": registry.id}, fields="account_secret")[0].account_secret == "never shown"
    core.update_registry(registry, account_secret="another", account_name="robot")
    assert core.get_registry(registry.id, fields="account_secret").account_secret == "another"
    for _ in range(2):
        core.send_registry_command(registry, "setup")
    core.send_registry_command(registry, "cleanup")
    projects = core.find_registry_projects(filter={"registry_id": registry.id})
    assert sorted(p.type for p in projects) == ["incoming", "masterImages", "outgoing"]
    assert {p.type: p.public for p in projects} == {"incoming": False, "outgoing": False, "masterImages": True}
    assert projects[0].registry.id == registry.id


def test_registry_projects(flame: Flame, registry: Registry) -> None:
    core = flame.core
    made = core.create_registry_project(name("project"), "default", registry, name("external"), account_secret="hidden")
    assert core.get_registry_project(made.id).registry.id == registry.id
    assert core.get_registry_project(made.id, fields="account_secret").account_secret == "hidden"
    assert made.id in {p.id for p in core.get_registry_projects()}
    assert core.update_registry_project(made, registry_project_type="aggregator").type == "aggregator"
    core.delete_registry_project(made)
    assert core.get_registry_project(made.id) is None
    refused(400, lambda: core.create_registry_project("nowhere", "default", str(UUID(int=7)), "nowhere"))


def test_nodes_their_clients_and_credentials(flame: Flame, hub: HubProcess, registry: Registry, node: Node) -> None:
    core = flame.core
    assert node.name.startswith("Node-") and node.type == "default" and node.online is False
    read = core.get_node(node.id)
    assert {"registry", "registry_project"} <= read.model_fields_set
    assert read.registry.id == registry.id and read.registry_project.type == "node"
    assert read == core.find_nodes(filter={"id": node.id})[0]
    assert node.id in {n.id for n in core.get_nodes()}
    assert (node.created_at, node.updated_at) == (read.created_at, read.updated_at)
    client = flame.auth.get_client(node.client_id)
    shown = core.get_node_client_credentials(node)
    assert (shown.id, shown.name, shown.display_name) == (client.id, client.name, client.display_name)
    changed = core.update_node_client_credentials(node, secret="a secret of the node", name=name("renamed"))
    assert changed.secret == "a secret of the node" and flame.auth.get_client(node.client_id).name == changed.name
    assert core.get_node_client_credentials(node).secret is None
    with token_client(hub.url) as tokens:
        own = Flame.of(hub.url, ClientAuth(str(node.client_id), "a secret of the node", client=tokens))
        assert own.core.find_nodes(filter={"client_id": node.client_id})[0].id == node.id
        assert own.core.get_node_registry_credentials(node.id).host == registry.host
    assert len(core.update_node_client_credentials(node, secret=None).secret) == 64
    credentials = core.get_node_registry_credentials(node)
    assert (credentials.host, credentials.external_name) == (registry.host, node.external_name)
    updated = core.update_node(node, hidden=True, node_type="aggregator", external_name="Ext_1", public_key="2d2d2d2d")
    assert (updated.hidden, updated.type, updated.external_name) == (True, "aggregator", "Ext_1")
    assert core.update_node(node, registry_id=None).registry_project_id is None
    assert core.get_node_registry_credentials(node) is None
    core.delete_node(node)
    assert core.get_node(node.id) is None and flame.auth.get_client(node.client_id) is None


def test_master_images(flame: Flame) -> None:
    core = flame.core
    core.sync_master_images()
    image = core.find_master_images(filter={"path": "python/base"})[0]
    assert core.get_master_image(image.id) == image and image in core.get_master_images()
    group = core.find_master_image_groups(filter={"virtual_path": image.group_virtual_path})[0]
    assert core.get_master_image_group(group.id) == group and group in core.get_master_image_groups()
    core.build_master_image(image)
    soon(lambda: core.get_master_image(image.id).build_status == "executed")


# ------------------------------------------------------------------------------------------------ projects and analyses


@dataclass
class Study:
    project: Project
    nodes: list[Node]
    analysis: Analysis
    places: list[AnalysisNode]
    buckets: dict[str, AnalysisBucket]


@pytest.fixture
def study(flame: Flame) -> Iterator[Study]:
    """A project with an analysis, a data node and an aggregator; approvals are skipped in this hub."""
    core = flame.core
    image = core.find_master_images(filter={"path": "python/base"})[0]
    project = core.create_project(f"PROJECT-{name()}", display_name="A project", master_image_id=image)
    nodes = [core.create_node(name("node"), node_type=kind) for kind in ("default", "aggregator")]
    for node in nodes:
        assert core.create_project_node(project, node).approval_status == "approved"
    analysis = core.create_analysis(project, name=name("analysis"), master_image_id=image)
    buckets = soon(lambda: (b := core.find_analysis_buckets(filter={"analysis_id": analysis.id})) and len(b) == 3 and b)
    places = core.find_analysis_nodes(filter={"analysis_id": analysis.id})
    yield Study(project, nodes, analysis, places, {b.type.value: b for b in buckets})
    if core.get_analysis(analysis.id) is not None:
        core.delete_analysis(analysis)
    for node in nodes:
        core.delete_node(node)
    core.delete_project(project)
    assert core.get_project(project.id) is None


def upload(flame: Flame, study: Study, path: str = "main.py", kind: str = "CODE") -> AnalysisBucketFile:
    bucket = study.buckets[kind]
    (stored,) = flame.storage.upload_to_bucket(bucket.bucket_id, {"file_name": path, "content": b"print(1)\n"})
    wanted = {"analysis_bucket_id": bucket.id, "path": path}
    (file,) = soon(lambda: flame.core.find_analysis_bucket_files(filter=wanted))
    assert file.bucket_file_id == stored.id
    return file


def test_projects_and_who_is_asked(flame: Flame, study: Study) -> None:
    core, project = flame.core, study.project
    assert project.name == project.name.lower() and project.display_name == "A project"
    read = core.get_project(project.id)
    assert read.master_image.virtual_path == "python/base" and (read.nodes, read.analyses) == (2, 1)
    assert core.find_projects(filter={"name": project.name})[0] == read
    assert project.id in {p.id for p in core.get_projects()}
    assert core.update_project(project, description="What it is about").description == "What it is about"
    error = refused(409, lambda: core.delete_project(project))
    assert "analyses" in str(error)
    (place,) = core.find_project_nodes(filter={"project_id": project.id, "node_id": study.nodes[0].id})
    assert core.get_project_node(place.id) == place and place.id in {p.id for p in core.get_project_nodes()}
    assert place.node.id == study.nodes[0].id and place.project.id == project.id
    changed = core.update_project_node(place, comment="not now", approval_status="rejected")
    assert (changed.approval_status, changed.comment) == ("rejected", "not now")
    core.delete_project_node(place)
    assert core.get_project_node(place.id) is None


def test_the_life_of_an_analysis(flame: Flame, study: Study) -> None:
    core, analysis = flame.core, study.analysis
    assert {p.approval_status for p in study.places} == {"approved"} and len(study.places) == 2
    changed = core.update_analysis(
        analysis, description="What it asks", image_command_arguments=[{"value": "--fast", "position": "before"}]
    )
    assert changed.image_command_arguments == [{"value": "--fast", "position": "before"}]
    read = core.get_analysis(analysis.id)
    assert {"registry", "project", "master_image"} <= read.model_fields_set and read.project.id == study.project.id
    assert core.find_analyses(filter={"project_id": study.project.id}) == [read]
    assert read.id in {a.id for a in core.get_analyses()}
    error = refused(400, lambda: core.send_analysis_command(analysis, "configurationLock"))
    assert "An entrypoint must be selected." in str(error)
    file = upload(flame, study)
    assert core.update_analysis_bucket_file(file, is_entrypoint=True).root is True
    assert upload(flame, study).root is True  # another text of the same file is still the entrypoint
    locked = core.send_analysis_command(analysis, "configurationLock")
    assert locked.configuration_locked and locked.distribution_nodes_valid and locked.configuration_nodes_valid
    assert locked.configuration_entrypoint_valid and locked.configuration_image_valid
    core.send_analysis_command(analysis, "configurationUnlock")
    assert core.get_analysis(analysis.id).nodes_approved == 2  # this hub skips approvals
    core.send_analysis_command(analysis, "configurationLock")
    assert core.send_analysis_command(analysis, "buildStart").build_status == "starting"
    built = soon(lambda: (a := core.get_analysis(analysis.id)).build_status == "executed" and a)
    assert built.build_progress == 100 and built.build_hash and built.build_os == "linux"
    assert soon(lambda: core.find_analysis_logs(filter={"analysis_id": analysis.id}))[0].level == "info"
    assert core.send_analysis_command(analysis, "buildCheck").build_status == "executed"
    assert core.send_analysis_command(analysis, "distributionStart").distribution_status == "starting"
    soon(lambda: core.get_analysis(analysis.id).distribution_status == "executed")
    core.send_analysis_command(analysis, "distributionCheck")
    core.send_analysis_command(analysis, "storageCheck")
    core.delete_analysis_logs(analysis)
    assert core.find_analysis_logs(filter={"analysis_id": analysis.id}) == []


def test_nodes_of_an_analysis_their_logs_and_their_state(flame: Flame, study: Study) -> None:
    core, analysis = flame.core, study.analysis
    place = study.places[0]
    read = core.get_analysis_node(place.id)
    assert core.find_analysis_nodes(filter={"node_id": place.node_id}) == [read]
    assert read.analysis.id == analysis.id and read.node.id == place.node_id
    assert place.id in {p.id for p in core.get_analysis_nodes()}
    assert core.create_analysis_node(analysis, place.node_id).id == place.id  # asking again finds what is there
    changed = core.update_analysis_node(
        place, comment="fine", approval_status="rejected", execution_status="executing", execution_progress=40
    )
    assert (changed.approval_status, changed.execution_status, changed.execution_progress) == (
        "rejected",
        "executing",
        40,
    )
    whole = core.get_analysis(analysis.id)
    assert (whole.execution_status, whole.execution_progress, whole.nodes_approved) == ("executing", 20, 1)
    log = core.create_analysis_node_log(analysis, place.node_id, "info", "It goes on", status="executing", code="42")
    wanted = {"analysis_id": analysis.id, "node_id": place.node_id}
    assert core.find_analysis_node_logs(filter=wanted) == [log]
    core.delete_analysis_node_logs(analysis, place.node_id)
    assert core.find_analysis_node_logs(filter=wanted) == []
    refused(400, lambda: core.find_analysis_node_logs(filter={"analysis_id": analysis.id}))
    core.delete_analysis_node(place)
    assert core.get_analysis_node(place.id) is None


def test_the_client_of_an_analysis(flame: Flame, hub: HubProcess, study: Study) -> None:
    core, analysis = flame.core, study.analysis
    shown = core.get_analysis_client_credentials(analysis)
    assert shown.id == analysis.client_id and shown.name == str(analysis.id)
    secret = core.update_analysis_client_credentials(analysis, secret=None).secret
    with token_client(hub.url) as tokens:
        own = Flame.of(hub.url, ClientAuth(str(analysis.client_id), secret, client=tokens))
        assert [a.id for a in own.core.get_analyses()] == [analysis.id]
        assert own.core.get_projects() == []


def test_buckets_of_an_analysis(flame: Flame, study: Study) -> None:
    core, storage, analysis = flame.core, flame.storage, study.analysis
    assert sorted(study.buckets) == ["CODE", "RESULT", "TEMP"]
    read = core.get_analysis_bucket(study.buckets["CODE"].id)
    assert read.analysis_id == analysis.id and read.id in {b.id for b in core.get_analysis_buckets()}
    bucket = storage.create_bucket(name("bucket"))
    (stored,) = storage.upload_to_bucket(bucket, {"file_name": "dir/more.py", "content": b"x = 1\n"})
    further = core.create_analysis_bucket("CODE", bucket, analysis)
    file = core.create_analysis_bucket_file("dir/more.py", stored, bucket, further, is_entrypoint=True)
    read = core.get_analysis_bucket_file(file.id)
    assert read.root and read.analysis.id == analysis.id and read.analysis_bucket.id == further.id
    assert file.id in {f.id for f in core.get_analysis_bucket_files()}
    core.delete_analysis_bucket_file(file)
    assert core.get_analysis_bucket_file(file.id) is None and storage.get_bucket_file(stored.id).id == stored.id
    storage.delete_bucket_file(stored)
    core.delete_analysis_bucket(further)
    storage.delete_bucket(bucket)


# -------------------------------------------------------------------------------------------------------------- storage


def test_buckets_and_files(flame: Flame) -> None:
    storage = flame.storage
    bucket = storage.create_bucket(name("bucket"), region="eu-1")
    assert storage.get_bucket(bucket.id) == bucket and bucket in storage.get_buckets()
    assert storage.find_buckets(filter={"name": bucket.name}) == [bucket]
    text, data = b"line\n" * 5000, secrets.token_bytes(3 << 20)
    files = storage.upload_to_bucket(
        bucket, {"file_name": "a/b.txt", "content": text}, {"file_name": "c.bin", "content": io.BytesIO(data)}
    )
    assert [(f.name, f.path, f.directory, f.size) for f in files] == [
        ("b.txt", "a/b.txt", "a", len(text)),
        ("c.bin", "c.bin", "", len(data)),
    ]
    assert b"".join(storage.stream_bucket_file(files[0])) == text
    assert b"".join(storage.stream_bucket_file(files[1], chunk_size=1 << 16)) == data
    with tarfile.open(fileobj=io.BytesIO(b"".join(storage.stream_bucket_tarball(bucket)))) as archive:
        assert {m.name: archive.extractfile(m).read() for m in archive} == {"a/b.txt": text, "c.bin": data}
        assert all(m.type == tarfile.REGTYPE and not m.pax_headers for m in archive.getmembers())
    found = storage.find_bucket_files(filter={"bucket_id": bucket.id}, sort={"by": "name", "order": "descending"})
    assert [f.name for f in found] == ["c.bin", "b.txt"] and found[0].bucket.id == bucket.id
    assert storage.get_bucket_file(files[0].id) == found[1]
    assert files[0].id in {f.id for f in storage.get_bucket_files()}
    storage.delete_bucket_file(files[0])
    assert storage.get_bucket_file(files[0].id) is None
    storage.delete_bucket(bucket)
    assert storage.get_bucket(bucket.id) is None
    assert "The bucket was not found" in str(refused(404, lambda: list(storage.stream_bucket_tarball(bucket))))
    assert "The bucket-file was not found" in str(refused(404, lambda: list(storage.stream_bucket_file(files[1]))))


def test_streams_are_packed_for_who_asks(flame: Flame) -> None:
    storage = flame.storage
    bucket = storage.create_bucket(name("bucket"))
    (file,) = storage.upload_to_bucket(bucket, {"file_name": "text", "content": b"the same " * 9999})
    path = f"{flame.url}/storage/bucket-files/{file.id}/stream"
    for offer, coding in (("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("identity", None)):
        answer = storage._client.get(path, headers={"accept-encoding": offer})
        assert answer.headers.get("content-encoding") == coding and answer.content == b"the same " * 9999, offer
        assert answer.headers["content-disposition"] == 'attachment; filename="text"'
    storage.delete_bucket(bucket)


# ------------------------------------------------------------------------------------------------------ queries, errors


def test_queries_as_the_client_writes_them(flame: Flame, study: Study) -> None:
    core = flame.core
    nodes = [n.id for n in study.nodes]
    found, meta = core.find_nodes(filter={"name": (FilterOperator.neq, study.nodes[0].name)}, meta=True)
    assert nodes[0] not in {n.id for n in found} and meta.total >= len(found) and meta.response_schema["name"] == "node"
    ending = study.nodes[0].name[-6:]
    assert [n.id for n in core.find_nodes(filter={"name": (FilterOperator.like, ending)})] == nodes[:1]
    named = core.find_analysis_nodes(filter={"analysis.project_id": study.project.id}, sort={"by": "created_at"})
    assert {p.id for p in named} == {p.id for p in study.places}
    one, meta = core.find_analysis_nodes(page={"limit": 1, "offset": 1}, meta=True)
    assert (len(one), meta.limit, meta.offset) == (1, 1, 1)
    assert core.find_analysis_nodes(filter={"execution_status": "null", "analysis_id": study.analysis.id})
    before = {"created_at": (FilterOperator.lt, "2020-01-01")}
    refused(400, lambda: core.find_projects(filter=before))
    data, meta = core.get_project(study.project.id, meta=True)
    assert data.id == study.project.id and "fields" in meta.response_schema


def test_one_record_brings_along_every_relation_that_can_be_included(flame: Flame, study: Study) -> None:
    """Over every resource of the hub that has relations; in a list as well as alone."""
    upload(flame, study)
    http = flame.core._client
    seen = 0
    for path, resource in resources_with_relations():
        (row,) = http.get(flame.url + path, params={"page[limit]": "1"}).json()["data"][:1] or [None]
        if row is None:
            continue
        everything = {"include": ",".join(sorted({*resource.relations, *resource.absent}))}
        alone = http.get(f"{flame.url}{path}/{row['id']}", params=everything)
        listed = http.get(flame.url + path, params=everything | {"page[limit]": "1"})
        assert alone.status_code == listed.status_code == 200, alone.text
        assert set(resource.relations) <= set(alone.json()["data"]), path
        assert listed.json()["data"] == [alone.json()["data"]], path
        seen += 1
    assert seen >= 12


def resources_with_relations() -> list[tuple[str, Resource]]:
    lists = [route for route in ROUTES if isinstance(route, Described) and route.about.shape == "list"]
    found = [(route.path, route.about.gives) for route in lists if route.method == "GET"]
    return [(path, gives) for path, gives in found if isinstance(gives, Resource) and gives.relations]


def test_an_unknown_name_is_refused_by_name(flame: Flame) -> None:
    for wrong in ({"filter": {"nonsense": 1}}, {"sort": {"by": "nonsense"}}, {"fields": "nonsense"}):
        error = refused(400, lambda wrong=wrong: flame.core.find_nodes(**wrong))
        assert any("nonsense" in ".".join(issue["path"]) for issue in error.error_response.issues)


def test_what_is_missing_is_none_and_what_is_wrong_says_so(flame: Flame) -> None:
    nobody = str(UUID(int=1))
    assert flame.core.get_node(nobody) is None and flame.storage.get_bucket(nobody) is None
    assert "The node was not found." in str(refused(404, lambda: flame.core.delete_node(nobody)))
    refused(400, lambda: flame.core.create_node("x"))
    refused(400, lambda: flame.core.create_analysis(nobody))


# ------------------------------------------------------------------------------------------------------- and all of it


def test_a_client_is_closed(hub: HubProcess) -> None:
    Flame.of(hub.url, StaticAuth("nobody's")).close()


def test_every_public_method_of_the_client_was_called() -> None:
    """Last in this file: what the tests above have not called is not known to work."""
    assert sorted(set(public_methods()) - called) == []
