"""A copy of a running hub is of one moment, whole, checked, and becomes the same hub again; on either database."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from world import PASSWORD, HubProcess, Study, World, seal

from flame.storage import postgresql
from postgres_world import Postgres

FORMS = ("sqlite", "postgresql")


def flame(*arguments: str, code: int = 0, **env: str) -> Any:
    """A command as an operator types it, with --json; its document, or the error."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("FLAME_")}
    command = [str(Path(sys.executable).with_name("flame")), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=base | env)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout if code == 0 else done.stderr)


class Place:
    """Where a hub is, or is to be: a directory, and a database in it or at PostgreSQL."""

    def __init__(self, form: str, folder: Path, server: Postgres | None) -> None:
        self.dir = folder
        self.env = {"FLAME_HUB_DIR": str(folder)}
        self.lower: dict[str, str] = {}
        self.url = None
        if form == "postgresql":
            assert server is not None
            name = server.fresh()
            self.url = server.url(name)
            self.lower = {"database_url": server.setting(name)}
            self.env["FLAME_HUB_DATABASE_URL"] = server.setting(name)

    @contextmanager
    def running(self) -> Iterator[World]:
        hub = HubProcess(self.dir, admin_password=PASSWORD, **self.lower)
        world = World(hub)
        try:
            yield world
        finally:
            world.close()
            hub.stop()


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    request.node.user_properties.append(("form", f"backup on {request.param}"))
    return str(request.param)


@pytest.fixture
def place(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(form, tmp_path / "hub", request.getfixturevalue("postgres") if form == "postgresql" else None)


def other(form: str, request: pytest.FixtureRequest, tmp_path: Path, name: str) -> Place:
    return Place(form, tmp_path / name, request.getfixturevalue("postgres") if form == "postgresql" else None)


def count_of(backup: Path, table: str) -> int:
    connection = sqlite3.connect(backup / "hub.db")
    (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(found)


def test_a_hub_under_load_is_copied_and_goes_on_elsewhere(
    form: str, place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Uploads, deletions and mail go on during the copy. Restored on the *other* database as well as on its own."""
    with place.running() as world:
        study = Study.set_up(world)
        run = study.start(study.ready())
        a, _, c = study.nodes
        _, large = seal(run, a, [c.id], os.urandom(600_000))
        a("PUT", "/messenger/messages", 202, content=large)
        busy = Study.set_up(world)
        over, failures = threading.Event(), []

        def load() -> None:
            number = 0
            while not over.is_set():
                number += 1
                try:
                    data = os.urandom(100_000)
                    (row,) = busy.upload(busy.researcher, "CODE", {f"file{number}.py": data})["data"]
                    busy.researcher("DELETE", f"/storage/bucket-files/{row['id']}", 202)
                    busy.upload(busy.researcher, "CODE", {f"kept{number}.py": data})
                    busy.researcher.change(f"/core/analyses/{busy.analysis}", name=f"name-{number}")
                except Exception as error:
                    failures.append(error)
                    return

        loading = threading.Thread(target=load)
        loading.start()
        try:
            made = flame("hub", "backup", str(tmp_path / "backup"), **place.env)
        finally:
            over.set()
            loading.join()
        assert failures == [], "the hub goes on while it is copied"
        assert made["objects"] >= 3 and made["with_key"] is False
    backup = tmp_path / "backup"
    assert flame("hub", "restore", str(backup), "--check")["rows"] == made["rows"]
    assert not (backup / "keys").exists()
    for target_form in FORMS:
        target = other(target_form, request, tmp_path, f"restored-{target_form}")
        key = str(place.dir / "keys" / "hub.pem")
        assert flame("hub", "restore", str(backup), "--key", key, **target.env)["log_root"] == made["log_root"]
        with target.running() as world:
            assert flame("hub", "doctor", **target.env)
            files = world.admin.get("/storage/bucket-files", **{"page[limit]": "50"})
            for file in files:
                data = world.admin("GET", f"/storage/bucket-files/{file['id']}/stream", 200)
                assert len(data) == file["size"]
            assert world.admin("GET", f"/core/analyses/{study.analysis}", 200)["data"]["buildStatus"] == "executed"
            world.realm("after the restore")  # numbers and log go on
            study.world = world
            c.http = world._client(world.node_token(c))
            (item,) = c.get("/messenger/messages")
            assert world.hub.url and c("GET", f"/messenger/messages/{a.id}/{item['msgId']}", 200) == large


def test_mail_that_was_delivered_meanwhile_is_left_out(tmp_path: Path) -> None:
    """An object that is gone when its turn comes: the copy is of the moment after."""
    place = Place("sqlite", tmp_path / "hub", None)
    with place.running() as world:
        study = Study.set_up(world)
        run = study.start(study.ready())
        a, _, c = study.nodes
        _, large = seal(run, a, [c.id], os.urandom(600_000))
        a("PUT", "/messenger/messages", 202, content=large)
    (blob,) = (place.dir / "objects" / "kept" / "mail").glob("*")
    blob.unlink()
    flame("hub", "backup", str(tmp_path / "backup"), **place.env)
    assert count_of(tmp_path / "backup", "deliveries") == 0
    assert flame("hub", "restore", str(tmp_path / "backup"), "--check")["objects"] == 2


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(hub, backup with its key)."""
    folder = tmp_path_factory.mktemp("kept")
    hub = HubProcess(folder / "hub", admin_password=PASSWORD)
    world = World(hub)
    Study.set_up(world).submit()
    flame("hub", "backup", str(folder / "backup"), "--with-key", FLAME_HUB_DIR=str(hub.dir))
    world.close()
    hub.stop()
    return hub.dir, folder / "backup"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["database", "object", "missing object", "key", "manifest"])
def test_a_damaged_backup_is_named_and_not_restored(kept: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(kept[1], backup)
    some = next((backup / "objects" / "files").glob("*"))
    match what:
        case "database":
            flip(backup / "hub.db", 40_000)
        case "object":
            flip(some, 3)
        case "missing object":
            some.unlink()
        case "key":
            flip(backup / "keys" / "hub.pem", 60)
        case "manifest":
            text = (backup / "backup.json").read_text().replace('"path": "hub.db"', '"path": "../../etc/passwd"')
            (backup / "backup.json").write_text(text)
    target = tmp_path / "new"
    said = flame("hub", "restore", str(backup), code=2, FLAME_HUB_DIR=str(target))
    assert "backup" in said["message"]
    assert not target.exists()


def test_a_log_that_was_edited_in_the_backup_is_noticed_even_with_a_new_digest(
    kept: tuple[Path, Path], tmp_path: Path
) -> None:
    import hashlib

    backup = tmp_path / "backup"
    shutil.copytree(kept[1], backup)
    connection = sqlite3.connect(backup / "hub.db")
    connection.execute("UPDATE log_leaves SET leaf = CAST(replace(CAST(leaf AS TEXT), 'administration', 'administrati0n') AS BLOB) WHERE idx = 0")  # fmt: skip
    connection.commit()
    connection.close()
    found = json.loads((backup / "backup.json").read_text())
    piece = next(piece for piece in found["pieces"] if piece["path"] == "hub.db")
    piece["sha256"] = hashlib.sha256((backup / "hub.db").read_bytes()).hexdigest()
    piece["size"] = (backup / "hub.db").stat().st_size
    (backup / "backup.json").write_text(json.dumps(found))
    said = flame("hub", "restore", str(backup), "--check", code=2, FLAME_HUB_DIR=str(tmp_path / "new"))
    assert "log" in said["message"]


def test_keys_come_along_on_request_and_only_the_right_one_is_taken(kept: tuple[Path, Path], tmp_path: Path) -> None:
    hub, backup = kept
    assert (backup / "keys" / "hub.pem").read_bytes() == (hub / "keys" / "hub.pem").read_bytes()
    assert (backup / "keys" / "hub.pem").stat().st_mode & 0o077 == 0
    assert flame("hub", "restore", str(backup), FLAME_HUB_DIR=str(tmp_path / "a"))["with_key"] is True
    flame("hub", "init", FLAME_HUB_DIR=str(tmp_path / "stranger"))
    foreign = str(tmp_path / "stranger" / "keys" / "hub.pem")
    said = flame("hub", "restore", str(backup), "--key", foreign, code=3, FLAME_HUB_DIR=str(tmp_path / "b"))
    assert "stranger" in said["message"]


def test_nothing_is_overwritten(kept: tuple[Path, Path], tmp_path: Path) -> None:
    hub, backup = kept
    assert "not empty" in flame("hub", "restore", str(backup), code=3, FLAME_HUB_DIR=str(hub))["message"]
    assert "not empty" in flame("hub", "backup", str(backup), code=3, FLAME_HUB_DIR=str(hub))["message"]
    assert (
        "no hub"
        in flame("hub", "backup", str(tmp_path / "b"), code=4, FLAME_HUB_DIR=str(tmp_path / "nowhere"))["message"]
    )


def test_a_database_that_is_not_empty_is_not_restored_into(
    kept: tuple[Path, Path], tmp_path: Path, postgres: Postgres
) -> None:
    name = postgres.fresh()
    with postgresql.connect(postgres.url(name)) as connection:
        connection.execute("CREATE TABLE schema_version (id int)")
    env = {"FLAME_HUB_DIR": str(tmp_path / "new"), "FLAME_HUB_DATABASE_URL": postgres.setting(name)}
    assert "database is not empty" in flame("hub", "restore", str(kept[1]), code=3, **env)["message"]
