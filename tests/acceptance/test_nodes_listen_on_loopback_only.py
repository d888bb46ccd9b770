"""Nodes accept no connection from the hub or from each other: what listens is read from the kernel, process by process."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from acceptance.federations import FILES, eventually, make_sites, node_run, submitted
from flame.lab.federation import Federation, NodeInfo
from unit.runtime.worlds import need_bubblewrap

LISTEN = "0A"
TRIES_TO_LISTEN = b"""
import socket, time
import flame

held = []
for address in (("0.0.0.0", 0), ("127.0.0.1", 0)):
    try:
        listener = socket.socket()
        listener.bind(address)
        listener.listen()
        held.append(listener)
    except OSError:
        pass

with flame.connect() as fed:
    fed.log("listening as far as it can")
    time.sleep(600)
"""


@dataclass(frozen=True)
class Listener:
    host: str
    port: int
    pid: int


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    need_bubblewrap()
    folder = tmp_path_factory.mktemp("listening")
    running = Federation.up(folder / "fed", make_sites(folder / "sites"))
    try:
        yield running
    finally:
        running.down(keep_files=True)


@pytest.fixture(scope="module")
def executing(federation: Federation) -> Iterator[list[int]]:
    """A run of a program that tries to listen itself, everywhere under way; all process ids of nodes and sandboxes."""
    from flame.researcher.session import Progress

    def silent(step: Progress) -> None:
        del step

    submission = submitted(federation, "Listening", {**FILES, "main.py": TRIES_TO_LISTEN})
    federation.approve(submission)
    federation.session.build_and_distribute(submission.analysis, silent)
    federation.session.start(submission)
    for node in federation.nodes:

        def programs_there(node: NodeInfo = node) -> bool:
            return any(_namespace(pid) != _namespace(node.pid) and _runs(pid, "main.py") for pid in family(node.pid))

        eventually(programs_there, f"the program at {node.name}")
        row = node_run(federation, node.name, submission.analysis)
        assert row is not None
        assert row["state"] == "running"
    yield [pid for node in federation.nodes for pid in family(node.pid)]
    for node in federation.nodes:
        row = node_run(federation, node.name, submission.analysis)
        if row is not None and row["state"] == "running":
            federation.steward(node.name).api.post(f"/api/runs/{row['id']}/stop", {})


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def listeners(pid: int) -> list[Listener]:
    """What a process listens on: its sockets, looked up in the tables of its own network namespace."""
    try:
        inodes = _sockets(pid)
        tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    except OSError:  # it has ended meanwhile, or was a process of ours that only looked
        assert pid != os.getpid()
        return []
    found = []
    for line in (line.split() for table in tables for line in table):
        if line[3] == LISTEN and line[9] in inodes:
            host, port = line[1].split(":")
            found.append(Listener(_address(host), int(port, 16), pid))
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    for link in list(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(link)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def _address(text: str) -> str:
    if len(text) == 8:
        return socket.inet_ntop(socket.AF_INET, struct.pack("<I", int(text, 16)))
    words = [struct.pack("<I", int(text[i : i + 8], 16)) for i in range(0, 32, 8)]
    return socket.inet_ntop(socket.AF_INET6, b"".join(words))


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return os.readlink("/proc/self/ns/net")


def _runs(pid: int, what: str) -> bool:
    try:
        return what.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_the_reader_of_the_kernels_tables_finds_a_listener() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert Listener("0.0.0.0", server.getsockname()[1], os.getpid()) in listeners(os.getpid())


@pytest.mark.usefixtures("executing")
def test_a_node_listens_once_on_loopback_for_its_own_stewards(federation: Federation) -> None:
    for node in federation.nodes:
        found = [(one.host, one.port) for one in listeners(node.pid)]
        assert found == [("127.0.0.1", urlsplit(node.url).port)], node.name


def test_sandboxes_listen_nowhere_outside_their_own_namespace(federation: Federation, executing: list[int]) -> None:
    here = {_namespace(node.pid) for node in federation.nodes}
    assert len(here) == 1
    nodes = {node.pid for node in federation.nodes}
    children = [pid for pid in executing if pid not in nodes]
    assert len(children) >= len(nodes)
    assert [one for pid in children if _namespace(pid) in here for one in listeners(pid)] == []


@pytest.mark.usefixtures("executing")
def test_the_hub_listens_where_it_says_and_nowhere_else(federation: Federation) -> None:
    found = {(one.host, one.port) for pid in family(federation.hub_pid) for one in listeners(pid)}
    assert found == {("127.0.0.1", port) for port in _hub_ports(federation)}


@pytest.mark.usefixtures("executing")
def test_every_open_connection_was_dialled_by_a_node(federation: Federation) -> None:
    """At the hub every connection is at its own listening port: it has dialled nobody."""
    inodes = _sockets(federation.hub_pid)
    lines = [line.split() for line in Path(f"/proc/{federation.hub_pid}/net/tcp").read_text().splitlines()[1:]]
    mine = [int(line[1].split(":")[1], 16) for line in lines if line[9] in inodes]
    assert len(mine) > len(federation.nodes)
    assert set(mine) <= _hub_ports(federation)


def _hub_ports(federation: Federation) -> set[int | None]:
    """Where the hub says that it listens: its own address, and the one for bulk."""
    said = json.loads((federation.directory / "hub" / "hub.json").read_text())
    return {urlsplit(said["url"]).port, urlsplit(said["bulk"]).port}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, 401),
        ({"Authorization": "{token}", "Host": "hospital.example"}, 403),
        ({"Authorization": "{token}", "Host": "127.0.0.1.hospital.example"}, 403),
        ({"Authorization": "{token}", "Origin": "https://hub.example"}, 403),
        ({"Authorization": "{token}", "Origin": "null"}, 403),
        ({"Authorization": "{token}"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/api/status", "/api/analyses", "/api/runs", "/api/members"])
def test_the_local_interface_wants_a_token_and_no_foreign_page(
    federation: Federation, headers: dict[str, str], status: int, path: str
) -> None:
    node = federation.nodes[0]
    sent = {name: value.replace("{token}", f"Bearer {node.steward_token}") for name, value in headers.items()}
    where = urlsplit(node.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.request("GET", path, headers=sent)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status, body
        if status != 200:
            assert b"nextStep" in body
            assert node.fingerprint.encode() not in body
    finally:
        connection.close()


def test_the_token_of_one_node_opens_no_other(federation: Federation) -> None:
    first, second = federation.nodes[:2]
    where = urlsplit(second.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"Bearer {first.steward_token}"})
        assert connection.getresponse().status == 401
    finally:
        connection.close()
