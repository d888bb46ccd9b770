"""The port for large envelopes: the relay's promises hold there too, whatever its callers send."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect
from wire import Deliver, channel
from world import PASSWORD, Actor, HubProcess, Node, Study, World, seal

from flame.crypto.envelope import peek_head
from flame.hub.relay.bulk import MAX_CONNECTIONS, MAX_ENVELOPE, MAX_REQUEST_HEAD
from flame.model.errors import NotFound, Refused
from flame.node.link import Bulk
from flame.protocol.control import PATH, VERSION, Hello, Welcome, decode_to_node, encode

WAY = "/messenger/messages"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD, bulk_port="0")
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def running(world: World) -> tuple[Study, bytes]:
    study = Study.set_up(world)
    return study, study.start(study.ready())


@pytest.fixture(scope="module")
def plane(running: tuple[Study, bytes]) -> Plane:
    study, _ = running
    return Plane(study.world, study.nodes[0])


class Plane:
    """The port as a caller sees it who speaks bytes."""

    def __init__(self, world: World, node: Node) -> None:
        self.hub = world.hub
        self.url = asyncio.run(welcome(world, node)).bulk

    def dial(self) -> Line:
        where = urlsplit(self.url)
        return Line(socket.create_connection((where.hostname, where.port), timeout=30))

    def bulk(self, node: Node) -> Bulk:
        token = bearer(node).removeprefix("Bearer ")
        return Bulk(lambda: self.url, lambda: token)

    def ask(self, data: bytes) -> tuple[int, Any]:
        with closing(self.dial()) as line:
            line.send(data)
            return line.answer()

    def put(self, who: Actor | str, envelope: bytes, length: int | None = None) -> tuple[int, Any]:
        return self.ask(put_head(who, len(envelope) if length is None else length) + envelope)

    def get(self, who: Actor | str, path: str) -> tuple[int, Any]:
        return self.ask(head("GET", path, f"Authorization: {bearer(who)}"))

    def objects(self) -> list[Path]:
        """Everything of letters that lies on the hub's disk."""
        place = self.hub.dir / "objects"
        found = [*(place / "arriving").iterdir(), *(place / "kept" / "mail").glob("*")]
        return sorted(found)


class Line:
    """One connection."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.file = stream.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.stream.close()

    def send(self, data: bytes) -> None:
        """As much as the other side takes: a refusal may come before the end."""
        try:
            self.stream.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def answer(self) -> tuple[int, Any]:
        status = int(self.file.readline().split(b" ")[1])
        fields = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        body = self.file.read(int(fields["content-length"]))
        return status, json.loads(body) if fields["content-type"] == "application/json" else body

    def ended(self) -> bool:
        """Whether the other side has hung up (waits for it)."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


def head(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", *fields, "", "")).encode("latin-1")


def put_head(who: Actor | str, length: int, *fields: str) -> bytes:
    return head("PUT", WAY, f"Authorization: {bearer(who)}", f"Content-Length: {length}", *fields)


def bearer(who: Actor | str) -> str:
    return who if isinstance(who, str) else str(who.http.headers["authorization"])


async def welcome(world: World, node: Node) -> Welcome:
    url = world.hub.url.replace("http", "ws", 1) + PATH
    headers = {"authorization": bearer(node)}
    async with connect(url, additional_headers=headers, proxy=None) as line:
        await line.send(encode(Hello(VERSION, "test")))
        greeting = decode_to_node(await line.recv())
    assert isinstance(greeting, Welcome)
    return greeting


def announced(study: Study, node: Node) -> Deliver:
    async def first() -> Deliver:
        async with channel(study.world, node) as wire:
            return await wire.next(Deliver)

    return asyncio.run(first())


def acknowledge(node: Node) -> None:
    """All that waits for this node."""
    node("POST", "/messenger/messages/ack", 202, json={"seqs": [item["seq"] for item in node.get(WAY)]})


def acknowledged(plane: Plane, node: Node) -> None:
    """What waited for this node waits for nobody, and is gone."""
    acknowledge(node)
    eventually(lambda: plane.objects() == [])


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it does not come true")


def refused(answer: tuple[int, Any], status: int) -> None:
    got, body = answer
    assert got == status == body["statusCode"], answer
    assert body["code"] and body["message"]


def test_a_large_envelope_goes_through_unchanged_to_its_recipients_only(
    running: tuple[Study, bytes], plane: Plane
) -> None:
    study, run = running
    a, b, c = study.nodes
    payload = os.urandom(5 << 20)
    msg_id, envelope = seal(run, a, [b.id, c.id], payload)
    with closing(plane.dial()) as line:  # twice over one connection, as a node does
        for repeated in (False, True):
            line.send(put_head(a, len(envelope)) + envelope)
            assert line.answer() == (202, {"messageId": msg_id.hex(), "stored": True, "repeated": repeated})
    assert len(plane.objects()) == 1
    path = f"{WAY}/{a.id}/{msg_id.hex()}"
    for recipient in (b, c):
        item = announced(study, recipient)
        assert (item.sender, item.msg_id, item.run, item.size) == (a.id, msg_id, run, len(envelope))
        read, length = peek_head(envelope)
        assert item.body == envelope[:length] and read.total_len == len(payload)
        assert plane.get(recipient, path) == (200, envelope)
        assert recipient("GET", path, 200) == envelope  # the first port gives the same
    outsider = study.world.node(a.realm)
    for stranger in (a, outsider):
        refused(plane.get(stranger, path), 404)
    refused(plane.get(study.researcher, path), 403)
    refused(plane.get(study.stewards[1], path), 403)
    for nobody in ("", "Bearer ", "Basic YTpi"):
        refused(plane.get(nobody, path), 401)
    refused(plane.get("Bearer " + "x" * 300, path), 400)
    refused(plane.ask(head("GET", path)), 401)
    acknowledge(b)
    refused(plane.get(b, path), 404)
    assert plane.get(c, path)[0] == 200
    acknowledged(plane, c)
    refused(plane.get(c, path), 404)


def test_a_small_envelope_may_come_this_way_too(running: tuple[Study, bytes], plane: Plane) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], b"small")
    assert plane.put(a, envelope)[0] == 202
    assert announced(study, c).body == envelope
    assert plane.get(c, f"{WAY}/{a.id}/{msg_id.hex()}") == (200, envelope)
    acknowledged(plane, c)


def test_the_nodes_own_side_sends_and_fetches_many_at_once(running: tuple[Study, bytes], plane: Plane) -> None:
    study, run = running
    a, b, c = study.nodes
    sending, fetching = plane.bulk(a), plane.bulk(c)
    sent = dict(seal(run, a, [c.id], os.urandom(3 << 20)) for _ in range(12))

    def whole(msg_id: bytes) -> bytes:
        with fetching.get(f"{WAY}/{a.id}/{msg_id.hex()}") as stream:
            return stream.read()

    with closing(sending), closing(fetching), ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda envelope: sending.put(WAY, len(envelope), [envelope]), sent.values()))
        assert dict(zip(sent, pool.map(whole, sent), strict=True)) == sent
        _, foreign = seal(run, a, [str(uuid4())], os.urandom(30 << 20))
        for _ in range(3):  # refused in the hub's words while it is still being sent; the next one goes through
            with pytest.raises(Refused, match="does not take part"):
                sending.put(WAY, len(foreign), [foreign])
            (first, *_) = sent.values()
            sending.put(WAY, len(first), [first])
        with (
            closing(plane.bulk(b)) as other,
            pytest.raises(NotFound),
            other.get(f"{WAY}/{a.id}/{next(iter(sent)).hex()}"),
        ):
            pass
    acknowledged(plane, c)


@pytest.mark.parametrize("size", [100, 2 << 20])
@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("another sender", 403),
        ("a foreign recipient", 409),
        ("an unknown run", 409),
        ("an outsider", 403),
        ("a person", 403),
        ("nobody", 401),
        ("garbage for a token", 400),
        ("longer than its head says", 400),
        ("shorter than its head says", 400),
        ("no envelope", 400),
        ("nothing but zeros", 400),
        ("too much", 400),
        ("empty", 400),
    ],
)
def test_what_does_not_belong_is_refused_and_not_kept(
    running: tuple[Study, bytes], world: World, plane: Plane, case: str, status: int, size: int
) -> None:
    study, run = running
    a, b, c = study.nodes
    sender: Actor | str = a
    in_run, to = run, [c.id]
    if case == "another sender":
        sender = b
    elif case == "a foreign recipient":
        to = [c.id, str(uuid4())]
    elif case == "an unknown run":
        in_run = os.urandom(32)
    elif case == "an outsider":
        sender = world.node(a.realm)
    sealer = sender if case == "an outsider" else a
    assert isinstance(sealer, Node)
    _, body = seal(in_run, sealer, to, os.urandom(size))
    length = None
    if case == "a person":
        sender = study.researcher
    elif case == "nobody":
        sender = "Bearer"
    elif case == "garbage for a token":
        sender = "Bearer ..."
    elif case == "longer than its head says":
        body += b"\0"
    elif case == "shorter than its head says":
        body = body[:-1]
    elif case == "no envelope":
        body = os.urandom(len(body))
    elif case == "nothing but zeros":
        body = bytes(len(body))
    elif case == "too much":
        length = MAX_ENVELOPE + 1
    elif case == "empty":
        body = b""
    refused(plane.put(sender, body, length), status)
    assert plane.objects() == []
    assert b.get(WAY) == c.get(WAY) == []


def requests_that_are_none(a: Node) -> dict[str, tuple[bytes, int]]:
    auth = f"Authorization: {bearer(a)}"
    long = "x" * (3 * MAX_REQUEST_HEAD)
    return {
        "no length": (head("PUT", WAY, auth) + b"x" * 1000, 400),
        "chunked": (head("PUT", WAY, auth, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", 400),
        "chunked and a length": (head("PUT", WAY, auth, "Transfer-Encoding: chunked", "Content-Length: 3") + b"abc", 400),
        "compressed": (head("PUT", WAY, auth, "Content-Encoding: gzip", "Content-Length: 3") + b"abc", 400),
        "two lengths": (head("PUT", WAY, auth, "Content-Length: 3", "content-length: 4") + b"abcd", 400),
        "two lengths in one": (head("PUT", WAY, auth, "Content-Length: 3, 3") + b"abc", 400),
        "a signed length": (head("PUT", WAY, auth, "Content-Length: +3") + b"abc", 400),
        "a length in other digits": (head("PUT", WAY, auth, "Content-Length: \xb2") + b"abc", 400),
        "a very long length": (head("PUT", WAY, auth, "Content-Length: " + "9" * 30), 400),
        "two tokens": (head("GET", WAY + "/x", auth, auth), 400),
        "a folded header": (head("GET", WAY + "/x", auth, " more: 1"), 400),
        "a space before the colon": (head("GET", WAY + "/x", "Authorization : x"), 400),
        "a bare line feed": (head("PUT", WAY, "X: 1\nContent-Length: 3", auth) + b"abc", 400),
        "a null byte": (head("GET", WAY + "/x", auth, "X: \0"), 400),
        "no name": (head("GET", WAY + "/x", auth, ": 1"), 400),
        "many headers": (head("GET", WAY + "/x", *(f"X{i}: 1" for i in range(65))), 400),
        "a giant head": (head("GET", WAY + "/x", f"X: {long}"), 400),
        "a giant head without end": (f"GET {WAY}/{long}".encode(), 400),
        "HTTP/1.0": (f"GET {WAY}/x HTTP/1.0\r\n\r\n".encode(), 400),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        "nothing": (b"\r\n\r\n", 400),
        "another verb": (head("POST", WAY, auth, "Content-Length: 3") + b"abc", 404),
        "another path": (head("GET", "/core/nodes", auth), 404),
        "a list": (head("GET", WAY, auth), 404),
        "no id": (head("GET", f"{WAY}/", auth), 404),
        "no message id": (head("GET", f"{WAY}/{a.id}/zz", auth), 404),
        "a path upwards": (head("GET", f"{WAY}/../../core/nodes", auth), 404),
        "a path on the disk": (head("GET", f"{WAY}/{a.id}/../../hub.json", auth), 404),
    }  # fmt: skip


def test_what_is_no_request_is_refused_in_words(running: tuple[Study, bytes], plane: Plane) -> None:
    study, _ = running
    for name, (data, status) in requests_that_are_none(study.nodes[0]).items():
        with closing(plane.dial()) as line:
            line.send(data)
            got, body = line.answer()
            assert (got, body["statusCode"]) == (status, status) and body["message"], name
            assert line.ended(), name
    assert plane.objects() == []


def test_what_follows_a_request_is_not_taken_for_its_body_nor_the_other_way_round(
    running: tuple[Study, bytes], plane: Plane
) -> None:
    study, run = running
    a, _, c = study.nodes
    _, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
    hidden = head("GET", f"{WAY}/{a.id}/00", f"Authorization: {bearer(c)}")
    msg_id, small = seal(run, a, [c.id], b"small")
    assert plane.put(a, small)[0] == 202
    path = f"{WAY}/{a.id}/{msg_id.hex()}"
    with closing(plane.dial()) as line:
        line.send(put_head(a, len(envelope)) + envelope + b"garbage\r\n\r\n")
        assert line.answer()[0] == 202
        refused(line.answer(), 400)
        assert line.ended()
    with closing(plane.dial()) as line:  # a body that nobody asked for ends the connection: no second request in it
        line.send(head("GET", path, f"Authorization: {bearer(c)}", f"Content-Length: {len(hidden)}") + hidden)
        assert line.answer() == (200, small)
        assert line.ended()
    acknowledged(plane, c)


def test_a_line_that_breaks_leaves_what_came_and_one_message_comes_of_it(
    running: tuple[Study, bytes], plane: Plane
) -> None:
    study, run = running
    a, _, c = study.nodes
    _, envelope = seal(run, a, [c.id], os.urandom(3 << 20))
    for sent in (10, 1000, 1 << 20, len(envelope) - 1):
        with closing(plane.dial()) as line:
            line.send(put_head(a, len(envelope)) + envelope[:sent])
            if sent > 2 << 20:
                eventually(lambda: plane.objects() != [])
        if sent < 2000:
            assert plane.objects() == [] and c.get(WAY) == []
    (item,) = c.get(WAY)
    assert plane.put(a, envelope)[0] == 202
    assert plane.get(c, f"{WAY}/{a.id}/{item['msgId']}") == (200, envelope)
    acknowledged(plane, c)


def test_a_run_that_ends_while_its_envelope_comes_keeps_nothing(world: World, plane: Plane) -> None:
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    _, envelope = seal(run, a, [c.id], os.urandom(3 << 20))
    with closing(plane.dial()) as line:
        line.send(put_head(a, len(envelope)) + envelope[:-1])
        eventually(lambda: plane.objects() != [])
        for node in study.nodes:
            node.change(f"/core/analysis-nodes/{study.place(node)['id']}", executionStatus="executed")
        line.send(envelope[-1:])
        refused(line.answer(), 409)
    assert plane.objects() == []
    assert c.get(WAY) == []


def test_callers_that_say_nothing_do_not_stop_the_others(running: tuple[Study, bytes], plane: Plane) -> None:
    study, run = running
    a, _, c = study.nodes
    slow = [plane.dial() for _ in range(MAX_CONNECTIONS + 20)]
    for line in slow:
        line.send(b"PUT /messenger")
    assert threads_of(plane) < MAX_CONNECTIONS + 60
    _, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
    assert plane.put(a, envelope)[0] == 202
    eventually(lambda: slow[0].ended())  # the longest-waiting gave way
    for line in slow:
        line.close()
    acknowledged(plane, c)
    eventually(lambda: threads_of(plane) < 60)


def threads_of(plane: Plane) -> int:
    return len(list(Path(f"/proc/{plane.hub.process.pid}/task").iterdir()))


def test_a_node_that_sends_slowly_leaves_room_for_others(running: tuple[Study, bytes], plane: Plane) -> None:
    study, run = running
    a, b, c = study.nodes
    _, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
    slow = [plane.dial() for _ in range(MAX_CONNECTIONS)]
    for line in slow:
        line.send(put_head(a, len(envelope)) + envelope[:1000])
    _, others = seal(run, b, [c.id], os.urandom(1 << 20))
    assert plane.put(b, others)[0] == 202
    for line in slow:
        line.close()
    eventually(lambda: plane.put(a, envelope)[0] == 202)
    acknowledged(plane, c)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def test_a_full_store_refuses_and_gives_its_room_back(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, storage_bytes_max=str(6 << 20), bulk_port="0")
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, b, c = study.nodes
    plane = Plane(world, a)
    _, too_large = seal(run, a, [c.id], os.urandom(20 << 20))
    _, fits = seal(run, a, [c.id], os.urandom(4 << 20))
    _, foreign = seal(run, a, [str(uuid4())], os.urandom(4 << 20))
    for _ in range(3):
        answer = plane.put(a, too_large)
        refused(answer, 507)
        assert answer[1]["code"] == "storage_insufficient"
        refused(plane.put(a, foreign), 409)
        refused(plane.put(b, fits), 403)
        with closing(plane.dial()) as line:
            line.send(put_head(a, len(fits)) + fits[:-1])
            eventually(lambda: plane.objects() != [])
    assert len(c.get(WAY)) == 1
    assert plane.put(a, fits)[0] == 202  # nothing of all that still counts
    world.close()
    hub.stop()


def test_kill_nine_keeps_what_was_answered_and_nothing_else(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, bulk_port="0")
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    plane = Plane(world, a)
    msg_id, whole = seal(run, a, [c.id], os.urandom(2 << 20))
    half_id, half = seal(run, a, [c.id], os.urandom(2 << 20))
    with closing(plane.dial()) as line:
        line.send(put_head(a, len(half)) + half[:-1])
        assert plane.put(a, whole)[0] == 202
        eventually(lambda: sum(path.stat().st_size for path in plane.objects()) == len(half) + len(whole) - 1)
        hub.kill()
        assert line.ended()
    hub.start()
    plane = Plane(world, a)
    assert plane.get(c, f"{WAY}/{a.id}/{msg_id.hex()}") == (200, whole)
    assert plane.ask(head("GET", f"/messenger/uploads/{half_id.hex()}", f"Authorization: {bearer(a)}"))[1] == {
        "complete": False, "offset": len(half) - 1,
    }  # fmt: skip
    assert len(plane.objects()) == 2
    assert plane.put(a, whole)[1]["repeated"] is True
    world.close()
    hub.stop()


def test_the_end_of_the_hub_ends_every_connection_and_keeps_no_half_as_a_whole(directory: Path) -> None:
    hub = HubProcess(directory, admin_password=PASSWORD, bulk_port="0")
    world = World(hub)
    study = Study.set_up(world)
    run = study.start(study.ready())
    a, _, c = study.nodes
    plane = Plane(world, a)
    _, envelope = seal(run, a, [c.id], os.urandom(2 << 20))
    idle, beginning, sending = lines = [plane.dial() for _ in range(3)]
    beginning.send(b"PUT ")
    sending.send(put_head(a, len(envelope)) + envelope[:-1])
    eventually(lambda: plane.objects() != [])
    world.close()
    hub.stop()
    assert hub.process.returncode in (0, -15)
    assert all(line.ended() for line in lines)
    assert [path.parent.name for path in plane.objects()] == ["arriving"]
    assert "bulk_failed" not in (directory / "hub.log").read_text()
    for line in (idle, beginning, sending):
        line.close()


def test_there_is_no_second_port_unless_asked_for_nor_while_recording(directory: Path, tmp_path: Path) -> None:
    for settings in ({}, {"bulk_port": "0", "record": str(tmp_path / "record")}):
        hub = HubProcess(directory, admin_password=PASSWORD, **settings)
        world = World(hub)
        node = world.node(world.realm("hospital"))
        assert asyncio.run(welcome(world, node)).bulk == ""
        listening = [line for line in Path("/proc/net/tcp").read_text().splitlines() if inode(line) in inodes(hub)]
        assert len([line for line in listening if line.split()[3] == "0A"]) == 1
        world.close()
        hub.stop()


def inode(line: str) -> str:
    return f"socket:[{line.split()[9]}]"


def inodes(hub: HubProcess) -> set[str]:
    return {os.readlink(entry) for entry in Path(f"/proc/{hub.process.pid}/fd").iterdir() if entry.is_symlink()}


def test_a_port_that_is_taken_stops_the_hub_in_words(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"The port for large envelopes, {number} at"):
            HubProcess(directory, admin_password=PASSWORD, bulk_port=str(number))
