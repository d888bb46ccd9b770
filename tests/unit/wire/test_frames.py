"""Frames over a real socket pair: what is sent arrives, what is hostile is refused before it costs anything."""

from __future__ import annotations

import socket
import threading
import typing
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.model.errors import FlameError, Invalid, Malformed, NotFound, Refused, ReleaseRefused
from flame.wire import gateway, values

REQUESTS: list[gateway.Request] = [
    gateway.Hello(sdk="flame"),
    gateway.GetData("data"),
    gateway.Contribute("sum", 1),
    gateway.GetTotal("sum", 1),
    gateway.Send(["a", "b"], "state"),
    gateway.Receive("state", ["a"], 1.5),
    gateway.Log("info", "{n} rows", {"n": "3"}),
    gateway.Progress(50),
    gateway.Submit("result.json", "application/json"),
    gateway.Keep("step"),
    gateway.GetKept("ab" * 16),
    gateway.ListKept("step"),
    gateway.Finish(),
    gateway.Fail("ValueError", [("main.py", 3)], "text", "code"),
]
REPLIES: list[gateway.Reply] = [
    gateway.Welcome(1, "a", "p", "r", "n", "default", [gateway.Participant("n", "default")], {"x": [1.5]}, ["data"]),
    gateway.Table("data", 3, ["a"]),
    gateway.Total(3),
    gateway.Message("1", "a", "state"),
    gateway.Sent("1"),
    gateway.Kept([("ab" * 16, "step")]),
    gateway.TimedOut(),
    gateway.Done(),
    gateway.Failed("refused", "No.", "Ask."),
]


@pytest.fixture
def pair() -> Iterator[tuple[gateway.Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = gateway.Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_these_tests_know_every_frame() -> None:
    assert {type(request) for request in REQUESTS} == set(typing.get_args(gateway.Request))
    assert {type(reply) for reply in REPLIES} == set(typing.get_args(gateway.Reply))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda frame: type(frame).__name__)
def test_requests_arrive(pair: tuple[gateway.Connection, socket.socket], request_: gateway.Request) -> None:
    connection, theirs = pair
    connection.send(request_, [b"body", b"", memoryview(b"more")])
    assert gateway.Connection(theirs).receive_request() == (request_, b"bodymore")


@pytest.mark.parametrize("reply", REPLIES, ids=lambda frame: type(frame).__name__)
def test_replies_arrive(pair: tuple[gateway.Connection, socket.socket], reply: gateway.Reply) -> None:
    connection, theirs = pair
    gateway.Connection(theirs).send(reply)
    assert connection.receive_reply() == (reply, b"")


def test_a_large_body_of_many_parts_arrives_whole(pair: tuple[gateway.Connection, socket.socket]) -> None:
    connection, theirs = pair
    sent = {f"x{i}": np.arange(i, dtype="f8") for i in range(400)} | {
        "big": np.ones(6_000_000),
        "none": np.zeros((0, 3)),
    }
    writer = threading.Thread(target=connection.send, args=(gateway.Contribute("sum", 1), values.encode(sent)))
    writer.start()
    _, body = gateway.Connection(theirs).receive_request()
    writer.join()
    got = values.decode(body)
    assert all(np.array_equal(got[name], sent[name]) for name in sent)


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(pair: tuple[gateway.Connection, socket.socket]) -> None:
    connection, theirs = pair
    connection.send(gateway.Contribute("sum", 1), [bytes(1001)])
    with pytest.raises(ReleaseRefused, match="1001 bytes"):
        gateway.Connection(theirs).receive_request(max_body=1000)


def test_an_announced_length_costs_no_memory(pair: tuple[gateway.Connection, socket.socket]) -> None:
    """A hostile program announces 4 GiB, sends nothing and hangs up."""
    import tracemalloc

    connection, theirs = pair
    head = msgspec.msgpack.encode(gateway.Finish())
    theirs.sendall(len(head).to_bytes(4, "big") + gateway.MAX_BODY.to_bytes(8, "big") + head)
    theirs.shutdown(socket.SHUT_WR)
    tracemalloc.start()
    with pytest.raises(EOFError):
        connection.receive_request()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x91" * 20_000,
        msgspec.msgpack.encode({"op": "shutdown"}),
        msgspec.msgpack.encode({"op": "progress", "percent": "much"}),
        msgspec.msgpack.encode({"op": "progress", "percent": 1, "and": 2}),
        msgspec.msgpack.encode({"op": "contribute", "name": "x", "round": 1.5}),
        msgspec.msgpack.encode({"op": "done"}),
    ],
)
def test_heads_that_are_no_request_are_refused(pair: tuple[gateway.Connection, socket.socket], head: bytes) -> None:
    connection, theirs = pair
    theirs.sendall(len(head).to_bytes(4, "big") + bytes(8) + head)
    with pytest.raises(Malformed):
        connection.receive_request()


def test_a_head_beyond_its_limit_is_refused(pair: tuple[gateway.Connection, socket.socket]) -> None:
    connection, theirs = pair
    with pytest.raises(Invalid):
        connection.send(gateway.Log("info", "x" * gateway.MAX_HEAD))
    theirs.sendall((gateway.MAX_HEAD + 1).to_bytes(4, "big") + bytes(8))
    with pytest.raises(Malformed):
        connection.receive_request()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_end_in_an_error_of_the_family_or_a_frame(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            gateway.Connection(ours).receive_request(max_body=1 << 20)
        except (FlameError, EOFError):
            pass


def test_the_opening_meets_its_answer() -> None:
    ours, node = socket.socketpair()
    with ours, node:
        node.sendall(gateway.UPGRADED)
        gateway.ask_upgrade(ours)
        assert node.recv(1000) == gateway.UPGRADE


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
def test_another_server_at_the_socket_is_recognised(answer: bytes) -> None:
    ours, node = socket.socketpair()
    with ours, node:
        node.sendall(answer)
        with pytest.raises(Malformed, match="flame-frames/1"):
            gateway.ask_upgrade(ours)


def test_an_error_comes_back_as_itself() -> None:
    sent = NotFound("There is no such source.", next_step="Look.")
    got = gateway.raised(gateway.failed(sent))
    assert type(got) is NotFound and (got.message, got.next_step) == (sent.message, sent.next_step)
    unknown = gateway.raised(gateway.Failed("of_a_later_version", "No."))
    assert type(unknown) is Refused and unknown.fields["code"] == "of_a_later_version"


def test_the_longest_error_fits_a_head(pair: tuple[gateway.Connection, socket.socket]) -> None:
    connection, theirs = pair
    gateway.Connection(theirs).send(gateway.failed(Invalid("\U0001f600" * 9000, next_step="\U0001f600" * 9000)))
    reply, _ = connection.receive_reply()
    assert isinstance(reply, gateway.Failed)


def test_closing_ends_a_wait_in_another_thread() -> None:
    ours, theirs = socket.socketpair()
    connection = gateway.Connection(ours)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            connection.receive_reply()
        except (EOFError, OSError) as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    connection.close()
    thread.join(30)
    assert not thread.is_alive() and len(ended) == 1
    theirs.close()
