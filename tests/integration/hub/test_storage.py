"""Stored files: by content, within limits, collected safely, in flat memory; below the directory and in S3."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from world import PASSWORD, HubProcess, Person, Study, World

from s3_world import SECRETS, running

MB = 1_000_000


@pytest.fixture(scope="module", params=["files", "S3"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Any]]:
    """A hub, and what lists its objects."""
    folder = tmp_path_factory.mktemp("hub")
    if request.param == "files":
        hub = HubProcess(folder, admin_password=PASSWORD)
        world = World(hub)
        yield world, lambda: sorted(path.name for path in (folder / "objects" / "kept" / "files").glob("*"))
        world.close()
        hub.stop()
        return
    with running() as server:
        url = server.bucket()
        secrets = folder / "s3.toml"
        secrets.write_text("".join(f'{name} = "{value}"\n' for name, value in SECRETS.items()))
        hub = HubProcess(folder, admin_password=PASSWORD, objects_url=url, objects_credentials_file=str(secrets))
        world = World(hub)
        from flame.storage.s3 import S3Objects

        store = S3Objects(url, folder / "look", secrets=SECRETS)
        yield world, lambda: sorted(one.key.removeprefix("files/") for one in store.kept())
        world.close()
        hub.stop()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(person: Person, study: Study, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = person.get("/storage/bucket-files", **{"filter[bucketId]": study.bucket(kind)})
    return found


def test_the_same_content_is_one_object_until_nobody_names_it(stored: tuple[World, Callable[[], list[str]]]) -> None:
    world, objects = stored
    first, second = Study.set_up(world), Study.set_up(world)
    data = os.urandom(300_000)
    for study in (first, second):
        study.upload(study.researcher, "CODE", {"main.py": data, "copy.py": data})
    assert [name for name in objects() if name == sha(data)] == [sha(data)]
    for row in files_of(first.researcher, first, "CODE"):
        assert row["hash"] == sha(data)
        first.researcher("DELETE", f"/storage/bucket-files/{row['id']}", 202)
    (row, other) = files_of(second.researcher, second, "CODE")
    assert second.researcher("GET", f"/storage/bucket-files/{row['id']}/stream", 200) == data
    for one in (row, other):
        second.researcher("DELETE", f"/storage/bucket-files/{one['id']}", 202)
    assert sha(data) not in objects()


def test_uploads_and_deletions_of_the_same_content_at_once_lose_nothing(stored: tuple[World, Any]) -> None:
    """Whoever was told that a file is stored can read it, whoever else deletes the same content meanwhile."""
    world, objects = stored
    data = os.urandom(50_000)
    studies = [Study.set_up(world) for _ in range(3)]

    def work(study: Study) -> None:
        for _ in range(8):
            study.upload(study.researcher, "CODE", {"main.py": data})
            (row,) = files_of(study.researcher, study, "CODE")
            assert study.researcher("GET", f"/storage/bucket-files/{row['id']}/stream", 200) == data
            study.researcher("DELETE", f"/storage/bucket-files/{row['id']}", 202)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, studies))
    assert sha(data) not in objects()


def test_a_project_has_the_room_that_the_operator_gives_it(stored: tuple[World, Any]) -> None:
    world, objects = stored
    study = Study.set_up(world)
    path = f"/storage/projects/{study.project}/limits"
    study.researcher.refused(403, "PUT", path, json={"bytesMax": 10})
    world.admin("PUT", path, 202, json={"bytesMax": 3 * MB, "keepDays": 30})
    study.upload(study.researcher, "CODE", {"main.py": bytes(1 * MB)})
    assert study.researcher.get(path) == {"bytesMax": 3 * MB, "bytesUsed": 1 * MB, "keepDays": 30}
    before = objects()
    refused = study.upload(study.researcher, "CODE", {"large.bin": os.urandom(2 * MB + 1)}, expect=507)
    assert "room for 2000000 bytes" in refused["message"] and refused["nextStep"]
    assert objects() == before
    study.upload(study.researcher, "CODE", {"large.bin": bytes(2 * MB)})
    study.upload(study.researcher, "CODE", {"more.bin": b"x"}, expect=507)


def test_an_upload_that_is_too_large_is_refused_before_it_starts(stored: tuple[World, Any]) -> None:
    """10 GB are announced, and refused although not one byte of them is sent."""
    world, _ = stored
    study = Study.set_up(world)
    world.admin("PUT", f"/storage/projects/{study.project}/limits", 202, json={"bytesMax": 5 * MB})
    token = study.researcher.http.headers["authorization"]
    place = urlsplit(world.hub.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as line:
        head = (
            f"POST /storage/buckets/{study.bucket('CODE')}/upload HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Authorization: {token}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {10**10}\r\n\r\n"
        )
        line.sendall(head.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 507 ")


def test_an_upload_that_hides_its_length_is_cut_at_the_limit(stored: tuple[World, Any]) -> None:
    world, objects = stored
    study = Study.set_up(world)
    world.admin("PUT", f"/storage/projects/{study.project}/limits", 202, json={"bytesMax": 5 * MB})
    before = objects()

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="large.bin"\r\n\r\n'
        for _ in range(2000):
            yield bytes(MB)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    bucket = study.bucket("CODE")
    answer = study.researcher("POST", f"/storage/buckets/{bucket}/upload", 507, content=endless(), headers=headers)
    assert "room" in answer["message"]
    assert objects() == before
    assert not [path for path in (world.hub.dir / "objects" / "spool").rglob("*") if path.is_file()]


def memory_of(world: World) -> int:
    return int(psutil.Process(world.hub.process.pid).memory_info().rss)


@pytest.mark.parametrize("size", [int(os.environ.get("FLAME_TEST_OBJECT_BYTES", 1000 * MB))])
def test_a_large_file_passes_with_flat_memory(tmp_path: Path, size: int) -> None:
    """Up and down again; by hand with 5 GB: FLAME_TEST_OBJECT_BYTES=5000000000."""
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    try:
        study = Study.set_up(world)
        study.upload(study.researcher, "CODE", {"main.py": bytes(20 * MB)})  # so that everything is imported
        before, highest, over = memory_of(world), 0, threading.Event()

        def watch() -> None:
            nonlocal highest
            while not over.wait(0.02):
                highest = max(highest, memory_of(world))

        watching = threading.Thread(target=watch)
        watching.start()
        piece = os.urandom(MB)
        sent = hashlib.sha256()

        def body() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="f"; filename="large.bin"\r\n\r\n'
            for _ in range(size // MB):
                sent.update(piece)
                yield piece
            yield b"\r\n--b--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=b"}
        begun = time.monotonic()
        up = f"/storage/buckets/{study.bucket('CODE')}/upload"
        row = study.researcher("POST", up, 201, content=body(), headers=headers)["data"][0]
        stored_in = time.monotonic() - begun
        assert (row["size"], row["hash"]) == (size // MB * MB, sent.hexdigest())
        came, got = hashlib.sha256(), 0
        begun = time.monotonic()
        with study.researcher.http.stream("GET", f"/storage/bucket-files/{row['id']}/stream") as answer:
            for part in answer.iter_bytes():
                came.update(part)
                got += len(part)
        over.set()
        watching.join()
        assert (got, came.hexdigest()) == (row["size"], sent.hexdigest())
        print(
            f"{size / 1e9:.1f} GB: in {stored_in:.1f} s, out {time.monotonic() - begun:.1f} s, "
            f"memory {before / 1e6:.0f} MB, at most {highest / 1e6:.0f} MB"
        )
        assert highest - before < 60 * MB
    finally:
        world.close()
        hub.stop()


def test_results_go_after_the_days_that_their_project_keeps_them(tmp_path: Path) -> None:
    """Housekeeping runs at each start: the rows are made old, the program stays, the log says what went."""
    import sqlite3

    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    try:
        study = Study.set_up(world)
        study.ready()
        result = study.upload(study.nodes[2], "RESULT", {"result.bin": b"a result"})["data"][0]
        kept = study.upload(study.nodes[2], "RESULT", {"young.bin": b"a young result"})["data"][0]
        world.admin("PUT", f"/storage/projects/{study.project}/limits", 202, json={"keepDays": 10})
        hub.stop()
        connection = sqlite3.connect(hub.dir / "hub.db")
        old = "2020-01-01T00:00:00.000Z"
        connection.execute("UPDATE bucket_files SET created_at = ? WHERE id <> ?", (old, kept["id"]))
        connection.commit()
        connection.close()
        hub.start()
        world.close()
        world = World(hub)
        rows = world.admin.get("/storage/bucket-files")
        assert result["id"] not in {row["id"] for row in rows} and kept["id"] in {row["id"] for row in rows}
        assert {row["name"] for row in rows} == {"main.py", "more.py", "young.bin"}
        held = {path.name for path in (hub.dir / "objects" / "kept" / "files").glob("*")}
        assert sha(b"a result") not in held and sha(b"a young result") in held
    finally:
        world.close()
        hub.stop()


def test_what_a_crash_left_is_collected_and_what_is_named_stays(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub", admin_password=PASSWORD)
    world = World(hub)
    try:
        study = Study.set_up(world)
        study.submit()
        files = hub.dir / "objects" / "kept" / "files"
        named = sorted(path.name for path in files.glob("*"))
        hub.kill()
        (files / ("0" * 64)).write_bytes(b"kept, and never named")
        hub.start()
        assert sorted(path.name for path in files.glob("*")) == named
    finally:
        world.close()
        hub.stop()
