"""The gateway in front of a program that is hostile, and of one that is not."""

from __future__ import annotations

import array
import contextlib
import os
import queue
import socket
import struct
import threading
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from flame.model.errors import Conflict, ReleaseRefused
from flame.node.gateway import Gateway, http, server
from flame.wire.gateway import (
    MAX_HEAD,
    UPGRADE,
    UPGRADED,
    Connection,
    Contribute,
    Done,
    Fail,
    Failed,
    Finish,
    GetData,
    GetTotal,
    Hello,
    Log,
    Message,
    Participant,
    Progress,
    Receive,
    Send,
    Sent,
    Submit,
    Table,
    TimedOut,
    Total,
    Welcome,
)
from flame.wire.values import decode, encode, encode_bytes
from node_world import AGGREGATOR, ANALYSIS, DATA_NODES, PROJECT

ME = DATA_NODES[0]
MAX_BODY = 1 << 20


class RecordingRun:
    """The run's side: remembers what it was asked, and waits the way a real one does."""

    def __init__(self, role="default"):
        self.role = role
        self.asked = []
        self.messages = queue.SimpleQueue()
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.refuse = None

    def welcome(self):
        others = [Participant(node, "default") for node in DATA_NODES] + [Participant(AGGREGATOR, "aggregator")]
        node = AGGREGATOR if self.role == "aggregator" else ME
        return Welcome(1, ANALYSIS, PROJECT, "run", node, self.role, others, {"a": 1}, ["data"])

    def max_body(self):
        return MAX_BODY

    def table(self, source):
        return Table(source, 2, ["x"]), encode({"x": ["a", None]})

    def contribute(self, name, round, body):
        if self.refuse:
            raise self.refuse
        self.asked.append(("contribute", name, round, bytes(body)))

    def total(self, name, round, cancelled):
        return 3, encode({"n": 7})

    def send(self, to, category, body):
        self.asked.append(("send", to, category, bytes(body)))
        return "id-1"

    def receive(self, category, senders, timeout, cancelled):
        arrived = threading.Event()
        cancelled.when_set(arrived.set)
        self.entered.release()
        if not arrived.wait(timeout):
            return
        self.cancelled.release()
        return

    def log(self, level, template, values):
        self.asked.append(("log", level, template, values))

    def progress(self, percent):
        self.asked.append(("progress", percent))

    def submit(self, name, media_type, body, noise=None):
        self.asked.append(("submit", name, media_type, bytes(body)))

    def finish(self):
        self.asked.append(("finish",))

    def fail(self, failure):
        self.asked.append(("fail", failure))


@contextlib.contextmanager
def served(folder, side):
    gateway = Gateway(folder, side)
    gateway.open()
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.fixture
def side():
    return RecordingRun()


@pytest.fixture
def gateway(tmp_path, side):
    with served(tmp_path, side) as gateway:
        yield gateway


@pytest.fixture
def dial(gateway):
    with contextlib.ExitStack() as stack:

        def dial():
            stream = socket.socket(socket.AF_UNIX)
            stack.callback(stream.close)
            stream.settimeout(60)
            stream.connect(str(gateway.path))
            return stream

        yield dial


@pytest.fixture
def program(dial):
    return lambda: joined(dial())


def joined(stream):
    stream.sendall(UPGRADE)
    assert exactly(stream, len(UPGRADED)) == UPGRADED
    connection = Connection(stream)
    assert isinstance(ask(connection, Hello()), Welcome)
    return connection


def ask(connection, request, body=()):
    connection.send(request, body)
    return connection.receive_reply()[0]


def exactly(stream, size):
    data = b""
    while len(data) < size:
        got = stream.recv(size - len(data))
        assert got, "the gateway hung up"
        data += got
    return data


def answer(stream):
    """All that comes until the gateway hangs up."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while got := stream.recv(65536):
            data += got
    return data


def frame(head, body_size=0, head_size=None):
    return struct.pack(">IQ", len(head) if head_size is None else head_size, body_size) + head


# --- the program that is not hostile --------------------------------------------------------------------------------


def test_each_request_reaches_the_run_and_its_answer_the_program(program, side):
    connection = program()
    connection.send(GetData())
    head, body = connection.receive_reply()
    assert head == Table("data", 2, ["x"])
    assert decode(body) == {"x": ["a", None]}
    assert ask(connection, Contribute("beta", 1), encode({"n": 1})) == Done()
    assert ask(connection, Send([AGGREGATOR, DATA_NODES[1]], "c"), [b"body"]) == Sent("id-1")
    assert ask(connection, Log("info", "hi {n}", {"n": "3"})) == Done()
    assert ask(connection, Progress(20)) == Done()
    assert ask(connection, Receive("c", [], 0.01)) == TimedOut()
    failure = Fail("ValueError", [("main.py", 3)], "text", "")
    assert ask(connection, failure) == Done()
    assert ask(connection, Finish()) == Done()
    assert side.asked == [
        ("contribute", "beta", 1, encode_bytes({"n": 1})),
        ("send", [AGGREGATOR, DATA_NODES[1]], "c", b"body"),
        ("log", "info", "hi {n}", {"n": "3"}),
        ("progress", 20),
        ("fail", failure),
        ("finish",),
    ]


def test_the_aggregator_asks_for_totals_and_submits(tmp_path):
    side = RecordingRun("aggregator")
    with served(tmp_path, side) as gateway, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.connect(str(gateway.path))
        connection = joined(stream)
        connection.send(GetTotal("beta", 1))
        head, body = connection.receive_reply()
        assert head == Total(3)
        assert decode(body) == {"n": 7}
        assert ask(connection, Submit("result.json", "application/json"), [b"{}"]) == Done()
        assert side.asked == [("submit", "result.json", "application/json", b"{}")]
        refused = ask(connection, Contribute("beta", 1), [b"x"])
        assert isinstance(refused, Failed)
        assert "data node" in refused.message


def test_our_own_sdk_works_through_it(gateway, side):
    from flame.sdk.federation import connect

    with connect(str(gateway.path)) as program:
        assert program.id == ME
        program.contribute("beta", {"n": 3})
        program.progress(50)
    assert [asked[0] for asked in side.asked] == ["contribute", "progress", "finish"]


def test_the_socket_is_open_to_the_sandbox_user_and_gone_afterwards(tmp_path, side):
    with served(tmp_path, side) as gateway:
        assert gateway.path.stat().st_mode & 0o777 == 0o666
    assert not gateway.path.exists()


def test_a_directory_with_a_long_name_serves_too(tmp_path, side):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with served(folder, side) as gateway:
        assert gateway.path.is_socket()


def test_a_socket_left_by_a_crash_is_replaced_and_a_file_is_not(tmp_path, side):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(tmp_path / "gateway.sock"))
    with served(tmp_path, side):
        pass
    (tmp_path / "gateway.sock").write_text("precious")
    with pytest.raises(Conflict):
        Gateway(tmp_path, side).open()
    assert (tmp_path / "gateway.sock").read_text() == "precious"


# --- what is refused, and the connection stays usable ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (GetTotal("beta", 1), "permission_denied"),
        (Submit("result.json"), "permission_denied"),
        (Send([], "c"), "bad_request"),
        (Send([ME], "c"), "bad_request"),
        (Send([AGGREGATOR, AGGREGATOR], "c"), "bad_request"),
        (Send(["stranger"], "c"), "entity_not_found"),
        (Send([AGGREGATOR] * 100, "c"), "bad_request"),
        (Send([AGGREGATOR], "../c"), "bad_request"),
        (Send([AGGREGATOR], ""), "bad_request"),
        (Receive("c", ["stranger"]), "entity_not_found"),
        (Receive("c", [ME]), "bad_request"),
        (Receive("c", [], -1.0), "bad_request"),
        (Receive("c", [], float("nan")), "bad_request"),
        (Receive("c", [], float("inf")), "bad_request"),
        (Contribute("beta", -1), "bad_request"),
        (Contribute("beta", 2**40), "bad_request"),
        (Contribute("be ta", 1), "bad_request"),
        (Contribute("x" * 200, 1), "bad_request"),
        (GetData("other"), "entity_not_found"),
        (Log("shout", "x"), "bad_request"),
        (Log("info", "x" * 5000), "bad_request"),
        (Progress(101), "bad_request"),
        (Progress(-1), "bad_request"),
        (Hello(), "bad_request"),
    ],
)
def test_a_refusal_says_why_and_the_connection_stays_usable(program, side, request_, code):
    connection = program()
    refused = ask(connection, request_)
    assert isinstance(refused, Failed)
    assert refused.code == code
    assert refused.message
    assert side.asked == []
    assert ask(connection, Progress(1)) == Done()


@pytest.mark.parametrize("name", ["../result", "a/b", "", ".hidden", "x" * 200, "a\nb"])
def test_a_result_has_a_plain_file_name(tmp_path, name):
    side = RecordingRun("aggregator")
    with served(tmp_path, side) as gateway, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.connect(str(gateway.path))
        connection = joined(stream)
        assert isinstance(ask(connection, Submit(name)), Failed)
        assert side.asked == []


def test_the_runs_own_refusal_reaches_the_program(program, side):
    side.refuse = ReleaseRefused("Too often.", next_step="Use fewer rounds.")
    connection = program()
    assert ask(connection, Contribute("beta", 1), [b"x"]) == Failed(
        "release_refused", "Too often.", "Use fewer rounds."
    )
    side.refuse = None
    assert ask(connection, Contribute("beta", 1), [b"x"]) == Done()


def test_an_error_inside_the_node_stays_inside(program, side, caplog):
    side.refuse = RuntimeError("/srv/secret/path")
    connection = program()
    refused = ask(connection, Contribute("beta", 1), [b"x"])
    assert isinstance(refused, Failed)
    assert "secret" not in str(refused)
    assert "secret" in caplog.text
    assert ask(connection, Progress(1)) == Done()


def test_a_body_above_the_cap_is_refused_and_the_connection_stays_usable(program, side):
    connection = program()
    refused = ask(connection, Contribute("beta", 1), [bytes(MAX_BODY + 1)])
    assert isinstance(refused, Failed)
    assert refused.code == "release_refused"
    assert str(MAX_BODY) in refused.message
    assert side.asked == []
    assert ask(connection, Contribute("beta", 1), [bytes(MAX_BODY)]) == Done()


def test_an_impossible_length_ends_the_connection_with_a_reason(dial, side):
    stream = dial()
    connection = joined(stream)
    stream.sendall(frame(msgspec.msgpack.encode(Contribute("beta", 1)), 2**63))
    refused, _ = connection.receive_reply()
    assert isinstance(refused, Failed)
    assert str(MAX_BODY) in refused.message
    assert answer(stream) == b""
    assert side.asked == []


@pytest.mark.parametrize("announced", [MAX_BODY, 1 << 30])
def test_an_announced_length_alone_takes_no_memory(tmp_path, announced):
    class Generous(RecordingRun):
        def max_body(self):
            return 1 << 29

    with served(tmp_path, Generous()) as gateway, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX))) for _ in range(8)]
        for stream in streams:
            stream.connect(str(gateway.path))
            joined(stream)
        tracemalloc.start()
        try:
            for stream in streams:
                stream.sendall(frame(msgspec.msgpack.encode(Contribute("beta", 1)), announced) + b"x")
            threading.Event().wait(0.2)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("request_", [Progress(1), GetData(), Finish(), Receive("c")])
def test_a_body_where_none_belongs_is_refused(program, side, request_):
    connection = program()
    refused = ask(connection, request_, [b"free bytes"])
    assert isinstance(refused, Failed)
    assert side.asked == []
    assert ask(connection, Progress(1)) == Done()


# --- hostile clients ------------------------------------------------------------------------------------------------


def test_a_giant_head_is_cut_off(dial):
    stream = dial()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.sendall(b"GET /flame/v1 HTTP/1.1\r\nX: " + b"x" * (http.MAX_HEAD * 4))
    assert answer(stream).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_takes_its_time_holds_nothing(dial, monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    slow = dial()
    slow.sendall(b"GET /flame")
    quick = joined(dial())
    assert ask(quick, Progress(1)) == Done()
    assert answer(slow).startswith(b"HTTP/1.1 408 ")


def test_a_frame_that_takes_its_time_is_cut_off(dial, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    stream = dial()
    joined(stream)
    stream.sendall(b"\0\0")
    assert b"took longer" in answer(stream)


def test_a_program_may_compute_longer_than_a_head_may_take(dial, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    connection = joined(dial())
    threading.Event().wait(0.3)
    assert ask(connection, Progress(1)) == Done()


@pytest.mark.parametrize(
    "target", [b"GET / HTTP/1.1", b"POST /flame/v1 HTTP/1.1", b"GET http://169.254.169.254/latest HTTP/1.1"]
)
def test_anything_but_the_upgrade_is_a_404_in_json(dial, target):
    stream = dial()
    stream.sendall(target + b"\r\nHost: gateway\r\n\r\n")
    head, _, body = answer(stream).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    problem = msgspec.json.decode(body)
    assert problem["code"] == "entity_not_found"
    assert problem["nextStep"]


@pytest.mark.parametrize(
    "data",
    [
        frame(b"\xc1"),
        frame(b""),
        frame(msgspec.msgpack.encode({"op": "nonsense"})),
        frame(msgspec.msgpack.encode({"op": "progress", "percent": "many"})),
        frame(msgspec.msgpack.encode({"op": "progress", "percent": 1, "extra": 2})),
        frame(msgspec.msgpack.encode([1, 2, 3])),
        frame(b"\x91" * 30_000),
        frame(b"\x81\xa2op\xa1\xff"),
        frame(b"", head_size=MAX_HEAD + 1),
        frame(b"", head_size=2**32 - 1),
    ],
)
def test_a_frame_that_cannot_be_read_ends_the_connection_with_a_reason(dial, program, side, data):
    stream = dial()
    connection = joined(stream)
    stream.sendall(data)
    refused, _ = connection.receive_reply()
    assert isinstance(refused, Failed)
    assert refused.code == "malformed"
    assert answer(stream) == b""
    assert ask(program(), Progress(1)) == Done()
    assert side.asked == [("progress", 1)]


@pytest.mark.parametrize("first", [Progress(1), Hello(version=99)])
def test_nothing_goes_before_a_hello_that_fits(dial, side, first):
    stream = dial()
    stream.sendall(UPGRADE)
    exactly(stream, len(UPGRADED))
    assert isinstance(ask(Connection(stream), first), Failed)
    assert answer(stream) == b""
    assert side.asked == []


def test_connections_beyond_the_limit_are_turned_away_and_come_in_later(dial):
    inside = [joined(dial()) for _ in range(server.MAX_CONNECTIONS)]
    for _ in range(40):
        assert answer(dial()).startswith(b"HTTP/1.1 503 ")
    assert ask(inside[-1], Progress(1)) == Done()
    inside[0].close()
    assert ask(eventually(lambda: joined(dial())), Progress(1)) == Done()


def eventually(attempt):
    for _ in range(200):
        with contextlib.suppress(AssertionError, OSError):
            return attempt()
        threading.Event().wait(0.02)
    return attempt()


def test_requests_beyond_the_limit_are_refused_while_others_wait(program, side):
    waiting = [program() for _ in range(server.MAX_REQUESTS)]
    for connection in waiting:
        connection.send(Receive("never"))
        assert side.entered.acquire(timeout=60)
    late = program()
    refused = ask(late, Contribute("beta", 1), [bytes(1000)])
    assert isinstance(refused, Failed)
    assert refused.code == "unavailable"
    waiting[0].close()
    assert side.cancelled.acquire(timeout=60)
    eventually_done(late)


def eventually_done(connection):
    for _ in range(200):
        if ask(connection, Progress(1)) == Done():
            return
        threading.Event().wait(0.02)
    pytest.fail("no slot was given back")


def test_a_program_that_hangs_up_takes_no_message_with_it(program, side):
    connection = program()
    connection.send(Receive("c"))
    assert side.entered.acquire(timeout=60)
    connection.close()
    assert side.cancelled.acquire(timeout=60)


def test_descriptors_sent_along_are_dropped(dial, side):
    stream = dial()
    connection = joined(stream)
    before = len(os.listdir("/proc/self/fd"))
    reading, writing = os.pipe()
    data = frame(msgspec.msgpack.encode(Progress(1)))
    stream.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing] * 10))])
    assert connection.receive_reply()[0] == Done()
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody else holds the other end
    os.close(reading)
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_ends_everything_promptly(tmp_path):
    side = RecordingRun()
    gateway = Gateway(tmp_path, side)
    gateway.open()
    streams = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for stream in streams:
        stream.connect(str(gateway.path))
    waiting, idle, half = (joined(stream) for stream in streams[:3])
    waiting.send(Receive("never"))
    assert side.entered.acquire(timeout=60)
    streams[2].sendall(b"\0")
    gateway.close()
    gateway.close()
    assert side.cancelled.acquire(timeout=60)
    for connection in (waiting, idle, half):
        with pytest.raises((EOFError, OSError)):
            if isinstance(connection.receive_reply()[0], TimedOut):
                connection.receive_reply()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gateway-run")]
    for stream in streams:
        stream.close()


def test_one_run_at_its_limit_does_not_delay_another(tmp_path, gateway, dial):
    for _ in range(server.MAX_CONNECTIONS):
        dial().sendall(b"GET")
    folder = tmp_path / "other"
    folder.mkdir()
    with served(folder, RecordingRun()) as other, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.settimeout(5)
        stream.connect(str(other.path))
        assert ask(joined(stream), Progress(1)) == Done()


def test_a_message_reaches_the_program_with_its_body(tmp_path):
    class Delivering(RecordingRun):
        def receive(self, category, senders, timeout, cancelled):
            return Message("id-9", AGGREGATOR, category), encode({"x": 1})

    with served(tmp_path, Delivering()) as gateway, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.connect(str(gateway.path))
        connection = joined(stream)
        connection.send(Receive("state", [AGGREGATOR]))
        head, body = connection.receive_reply()
        assert head == Message("id-9", AGGREGATOR, "state")
        assert decode(body) == {"x": 1}


def test_the_path_of_a_gateway_is_inside_its_runs_directory(gateway, tmp_path):
    assert gateway.path == Path(tmp_path) / "gateway.sock"


@pytest.mark.parametrize("keep", [lambda body: body, memoryview, lambda body: {"nested": [memoryview(body)[5:]]}])
def test_a_body_that_the_run_keeps_is_never_written_over(tmp_path, keep):
    kept = []

    class Keeping(RecordingRun):
        def contribute(self, name, round, body):
            kept.append(keep(body))

    with served(tmp_path, Keeping()) as gateway, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.connect(str(gateway.path))
        connection = joined(stream)
        for letter in (b"a", b"b", b"c"):
            assert ask(connection, Contribute("beta", 1), [letter * MAX_BODY]) == Done()
    first = kept[0]["nested"][0] if isinstance(kept[0], dict) else kept[0]
    assert set(bytes(first)) == {ord("a")}


def test_large_bodies_of_one_size_share_one_buffer(tmp_path):
    seen = []

    class Reading(RecordingRun):
        def contribute(self, name, round, body):
            seen.append((id(body), bytes(body[:1]), len(body)))

    with served(tmp_path, Reading()) as gateway, contextlib.closing(socket.socket(socket.AF_UNIX)) as stream:
        stream.connect(str(gateway.path))
        connection = joined(stream)
        for letter in (b"a", b"b"):
            assert ask(connection, Contribute("beta", 1), [letter * MAX_BODY]) == Done()
        assert ask(connection, Contribute("beta", 1), [b"c" * 10]) == Done()
    assert [(start, size) for _, start, size in seen] == [(b"a", MAX_BODY), (b"b", MAX_BODY), (b"c", 10)]
    assert seen[0][0] == seen[1][0]
