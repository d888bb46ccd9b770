"""What an operator relies on: TLS, proxies, health, metrics, logs without secrets, a graceful end, commands beside a running hub."""

from __future__ import annotations

import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from world import PASSWORD, HubProcess, Study, World

from flame.hub.settings import Settings
from flame.model.errors import Invalid
from postgres_world import Postgres


def flame(*arguments: str, code: int = 0, **env: str) -> Any:
    base = {k: v for k, v in os.environ.items() if not k.startswith("FLAME_")}
    command = [str(Path(sys.executable).with_name("flame")), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=base | env)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout if code == 0 else done.stderr)


# ------------------------------------------------------------------------------------------------------------ settings


def test_options_win_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('dir = "state"\nport = 1\nhost = "192.0.2.1"\ntoken_seconds = 60\npassword_file = true\n')
    environ = {"FLAME_HUB_CONFIG": str(file), "FLAME_HUB_PORT": "2", "FLAME_HUB_HOST": "192.0.2.2"}
    found = Settings.from_env(environ, port=3)
    assert (found.port, found.host, found.token_seconds, found.refresh_seconds) == (3, "192.0.2.2", 60, 2592000)
    assert found.password_file is True and found.dir == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "named"),
    [("prot = 1", "prot"), ('port = "1"', "port"), ("port = true", "port"), ("password_file = 1", "password_file"),
     ("port", "hub.toml"), ('trusted_proxies = "anybody"', "anybody"), ('tls_cert = "a.pem"', "TLS"),
     ('database_password_file = "p"', "database")],
)  # fmt: skip
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(text)
    with pytest.raises(Invalid, match=named):
        Settings.from_env({}, config=file, dir=tmp_path)


# --------------------------------------------------------------------------------------------------- TLS, health, logs


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    start = datetime.now(UTC) - timedelta(minutes=1)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(start + timedelta(days=5))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return folder / "cert.pem", folder / "key.pem"


def test_the_hub_speaks_tls_itself(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, tls_cert=str(cert), tls_key=str(key))
    try:
        assert hub.url.startswith("https://")
        url = hub.url.replace("127.0.0.1", "localhost")
        trusting = ssl.create_default_context(cafile=str(cert))
        with httpx2.Client(verify=trusting, trust_env=False) as client:
            assert client.get(f"{url}/readyz").json() == {"ok": True}
        with httpx2.Client(trust_env=False) as client, pytest.raises(httpx2.ConnectError):
            client.get(f"{url}/readyz")
        env = {"FLAME_HUB_DIR": str(hub.dir), "FLAME_HUB_TLS_CERT": str(cert), "FLAME_HUB_TLS_KEY": str(key)}
        (tls,) = [one for one in flame("hub", "doctor", **env) if one["name"] == "tls"]
        assert tls["state"] == "warning" and "Renew" in tls["next_step"]  # five days are left
    finally:
        hub.stop()


@pytest.fixture(scope="module")
def world(hub: HubProcess) -> Iterator[World]:
    found = World(hub)
    yield found
    found.close()


def test_health_and_readiness(world: World) -> None:
    anyone = world.anonymous()
    assert anyone("GET", "/healthz", 200) == {"ok": True}
    assert anyone("GET", "/readyz", 200) == {"ok": True}


def test_a_hub_whose_database_is_away_is_alive_and_not_ready(tmp_path: Path) -> None:
    from postgres_world import running

    with running() as server:
        hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, database_url=server.setting(server.fresh()))
        world = World(hub)
        try:
            assert world.anonymous()("GET", "/readyz", 200) == {"ok": True}
            server.stop()
            assert world.anonymous()("GET", "/healthz", 200) == {"ok": True}
            assert world.anonymous().refused(503, "GET", "/readyz")["message"]
            server.start()
            until = time.monotonic() + 30
            while world.anonymous().http.get("/readyz").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.1)
            assert world.realm("afterwards")
        finally:
            world.close()
            hub.stop()


def test_metrics_count_routes_and_name_nobody(world: World) -> None:
    key = world.realm("counted")
    world.admin("GET", f"/auth/realms/{key}", 200)
    text = world.anonymous()("GET", "/metrics", 200).decode()
    assert 'flame_hub_requests_total{method="GET",route="/auth/realms/{id}",status="200"} 1.0' in text
    assert key not in text
    for name in ("flame_hub_request_seconds_bucket", "flame_hub_connected_nodes", "flame_hub_objects_bytes",
                 "flame_hub_database_commits_total"):  # fmt: skip
        assert name in text


def test_metrics_are_for_this_machine_or_for_who_has_the_token(world: World, tmp_path: Path) -> None:
    world.anonymous().refused(403, "GET", "/metrics", headers={"x-forwarded-for": "192.0.2.7"})
    token = tmp_path / "token"
    token.write_text("the operators token\n")
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, metrics_token_file=str(token))
    other = World(hub)
    try:
        other.anonymous().refused(403, "GET", "/metrics")
        other.anonymous().refused(403, "GET", "/metrics", headers={"authorization": "Bearer another"})
        headers = {"authorization": "Bearer the operators token", "x-forwarded-for": "192.0.2.7"}
        assert b"flame_hub_info" in other.anonymous()("GET", "/metrics", 200, headers=headers)
    finally:
        other.close()
        hub.stop()


def test_only_a_trusted_proxy_says_who_is_calling(tmp_path: Path) -> None:
    """Seen by what the metrics allow: a caller from elsewhere is refused when the proxy that says so is believed."""
    for trusted in (None, "127.0.0.1,10.0.0.0/8"):
        more = {"trusted_proxies": trusted} if trusted else {}
        hub = HubProcess(tmp_path / str(trusted)[:4], admin_password=PASSWORD, **more)
        world = World(hub)
        try:
            answer = world.anonymous().http.get("/metrics", headers={"x-forwarded-for": "192.0.2.7"})
            assert answer.status_code == 403
            assert world.anonymous().http.get("/metrics").status_code == 200
        finally:
            world.close()
            hub.stop()


def test_the_log_tells_what_failed_and_holds_no_secret_and_no_person(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    canary, name = secrets.token_hex(12), f"person-{secrets.token_hex(6)}"
    try:
        realm = world.realm("logged")
        body = {"name": name, "password": PASSWORD, "email": f"{canary}@example.org", "realmId": realm}
        world.admin("POST", "/auth/users", 201, json=body)
        wrong = {"grant_type": "password", "username": name, "password": canary}
        world.anonymous()("POST", "/auth/token", json=wrong)
        world.anonymous()("GET", f"/auth/users?filter[name]={canary}", 401)
        world.anonymous()("GET", "/auth/userinfo", headers={"authorization": f"Bearer {canary}"})
        world.admin("GET", f"/core/projects/{canary}", 404)
        token = world.admin.http.headers["authorization"].removeprefix("Bearer ")
    finally:
        world.close()
        hub.stop()
    text = (hub.dir / "hub.log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = [line for line in lines if line["event"] == "request"]
    assert {("/auth/users", 401), ("/core/projects/{id}", 404)} <= {(line["route"], line["status"]) for line in told}
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)
    for secret in (canary, name, PASSWORD, token):
        assert secret not in text
    assert (hub.dir / "hub.log").stat().st_mode & 0o077 == 0


def test_what_is_under_way_is_finished_before_the_end(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, stop_seconds="20")
    world = World(hub)
    study = Study.set_up(world)
    begun, go = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="main.py"\r\n\r\nprint('
        begun.set()
        assert go.wait(30)
        yield b"1)\r\n--b--\r\n"

    answers: list[Any] = []

    def upload() -> None:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        path = f"/storage/buckets/{bucket}/upload"
        answers.append(study.researcher("POST", path, 201, content=body(), headers=headers))

    bucket = study.bucket("CODE")
    uploading = threading.Thread(target=upload)
    uploading.start()
    assert begun.wait(30)
    time.sleep(0.2)
    hub.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert hub.process.poll() is None, "it waits for the upload"
    go.set()
    uploading.join(30)
    hub.wait()
    world.close()
    assert hub.process.returncode in (0, -signal.SIGTERM)  # uvicorn ends by the signal that it was sent
    assert answers[0]["data"][0]["size"] == len(b"print(1)")
    assert not (hub.dir / "hub.json").exists()


# ------------------------------------------------------------------------------------------------------------ commands


def test_a_second_process_on_the_same_directory_is_refused(hub: HubProcess) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLAME_")} | {"FLAME_HUB_DIR": str(hub.dir)}
    command = [str(Path(sys.executable).with_name("flame")), "hub", "serve", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 3 and "runs on" in done.stderr and "PostgreSQL" in done.stderr


def test_the_operator_looks_after_people_realms_and_nodes_beside_the_running_hub(hub: HubProcess, world: World) -> None:
    env = {"FLAME_HUB_DIR": str(hub.dir)}
    name = f"clinic-{secrets.token_hex(3)}"
    flame("hub", "realm", "add", name, **env)
    made = flame("hub", "user", "add", "alice", "--realm", name, "--role", "researcher", **env)
    alice = world.login("alice", made["password"])
    assert alice("GET", "/auth/userinfo", 200)["sub"] == made["id"]
    assert [row["name"] for row in flame("hub", "user", "list", "--realm", name, **env)] == ["alice"]
    flame("hub", "user", "lock", "alice", **env)
    alice("GET", "/auth/userinfo", 401)
    flame("hub", "user", "unlock", "alice", **env)
    password = flame("hub", "user", "password", "alice", **env)["password"]
    assert password != made["password"] and world.login("alice", password)
    node = flame("hub", "node", "add", "ward", "--realm", name, **env)
    assert len(node["token"]) > 30
    assert flame("hub", "node", "token", "ward", **env)["token"] != node["token"]
    assert "ward" in {row["name"] for row in flame("hub", "node", "list", **env)}
    flame("hub", "node", "remove", "ward", **env)
    flame("hub", "user", "remove", "alice", **env)
    assert "no user" in flame("hub", "user", "lock", "alice", code=4, **env)["message"]
    assert "own account" in flame("hub", "user", "lock", "admin", code=3, **env)["message"]
    flame("hub", "realm", "remove", name, **env)


def test_a_lost_password_of_the_administrator_is_replaced(tmp_path: Path) -> None:
    env = {"FLAME_HUB_DIR": str(tmp_path / "hub")}
    first = flame("hub", "init", **env)["password"]
    assert "already" in flame("hub", "init", code=3, **env)["message"]
    again = flame("hub", "user", "password", "admin", **env)["password"]
    hub = HubProcess(tmp_path / "hub")
    world = World(hub, again)
    try:
        world.anonymous()(
            "POST", "/auth/token", 400, json={"grant_type": "password", "username": "admin", "password": first}
        )
    finally:
        world.close()
        hub.stop()


def test_a_hub_of_release_0_1_is_migrated_and_served(tmp_path: Path) -> None:
    """The directory that release 0.1 left: its people log in, its analyses and its log are there, roles have rights."""
    import tarfile

    with tarfile.open(Path(__file__).parents[2] / "data" / "hub-0.1.tar.gz") as archive:
        archive.extractall(tmp_path / "hub", filter="data")
    env = {"FLAME_HUB_DIR": str(tmp_path / "hub")}
    before, after = "0001", "0002"
    assert any(one["name"] == "database" and one["state"] == "bad" for one in doctor_of(env))
    done = flame("hub", "migrate", **env)
    assert (done["before"], done["after"]) == (before, after) and Path(done["copy"]).is_file()
    hub = HubProcess(tmp_path / "hub")
    world = World(hub)
    try:
        assert len(world.admin.get("/core/analyses")) == 3
        study = Study.set_up(world)  # people of old roles and new ones, projects, nodes
        assert study.ready()
    finally:
        world.close()
        hub.stop()


def doctor_of(env: dict[str, str]) -> list[dict[str, Any]]:
    base = {k: v for k, v in os.environ.items() if not k.startswith("FLAME_")}
    command = [str(Path(sys.executable).with_name("flame")), "hub", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=base | env)
    assert done.returncode == 1
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_whole_life_of_a_study_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD, database_url=postgres.setting(postgres.fresh()))
    world = World(hub)
    try:
        study = Study.set_up(world)
        run = study.start(study.ready())
        assert study.researcher.get(f"/core/analyses/{study.analysis}/runs")[0]["id"] == run.hex()
        named = study.researcher.get("/core/analyses", **{"filter[name]": "~FIRST~"})
        assert [row["id"] for row in named] == [study.analysis], "searches do not tell capitals apart"
        world.admin("GET", "/core/analyses?sort=-displayName,name", 200)
        assert not (hub.dir / "hub.db").exists()
        hub.kill()
        hub.start()
        assert world.hub.url
    finally:
        world.close()
        hub.stop()
