"""A node follows its hub to another port of the same host, and nowhere else; a connection that has ended is not used again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flame.model.errors import Unavailable
from flame.node.link import Bulk
from flame.node.link.link import _same_host

HUB = "http://hub.example:8600"


@pytest.mark.parametrize(
    ("shown", "hub", "taken"),
    [
        ("http://hub.example:9000", HUB, "http://hub.example:9000"),
        ("http://HUB.example:9000", HUB, "http://hub.example:9000"),
        ("https://hub.example:9000", "https://hub.example", "https://hub.example:9000"),
        ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:1"),
        ("http://[::1]:1", "http://[::1]:2", "http://[::1]:1"),
        ("http://hub.example:9000/elsewhere?to=1#x", HUB, "http://hub.example:9000"),
    ],
)
def test_another_port_of_the_hub_is_taken(shown: str, hub: str, taken: str) -> None:
    assert _same_host(shown, hub) == taken


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "http://other.example:9000",
        "http://hub.example.other:9000",
        "http://hub.example.:9000",
        "http://127.0.0.1:9000",
        "https://hub.example:9000",
        "ftp://hub.example:9000",
        "file:///etc/passwd",
        "//hub.example:9000",
        "hub.example:9000",
        "http://hub.example",
        "http://hub.example:",
        "http://hub.example:0",
        "http://hub.example:65536",
        "http://hub.example:-1",
        "http://hub.example:9000000",
        "http://hub.example:x",
        "http://user@hub.example:9000",
        "http://user:secret@hub.example:9000",
        "http://:secret@hub.example:9000",
        "http://@hub.example:9000",
        "http://hub.example:9000@other.example:9000",
        "http://hub.example:9000\\@other.example:9000",
        "http://other.example:9000\\@hub.example:9000",
        "http://other.example:9000#@hub.example:9000",
        "http://[hub.example:9000",
        "http://[::1]:9000",
        "http://hub.example\uff0eother:9000",
        "http://hub.example\u2100:9000",
        "http://:9000",
        "http://",
        ":",
        "\0",
        "http://hub.example:9000" + "9" * 10_000,
    ],
)
def test_what_is_not_a_port_of_the_hub_is_not_believed(shown: str) -> None:
    assert _same_host(shown, HUB) == HUB


def test_a_way_over_tls_is_never_left_for_one_in_clear() -> None:
    assert _same_host("http://hub.example:9000", "https://hub.example/flame") == "https://hub.example/flame"


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A port whose every connection is talked to in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream:
                talk(stream)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def request(stream: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := stream.recv(4096)):
            return b""
        data += piece
    return data


def test_requests_go_to_the_address_of_the_moment() -> None:
    seen: list[tuple[str, bytes]] = []

    def answering(name: str) -> Callable[[socket.socket], None]:
        def talk(stream: socket.socket) -> None:
            while data := request(stream):
                seen.append((name, data.split(b"\r\n")[0]))
                stream.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

        return talk

    with listening(answering("first")) as first, listening(answering("second")) as second:
        address = first + "/behind/a/proxy"
        bulk = Bulk(lambda: address, lambda: "token")
        bulk.put("/m", 0, [])
        bulk.put("/m", 0, [])
        address = second
        bulk.put("/m", 0, [])
        bulk.close()
    assert seen == [
        ("first", b"PUT /behind/a/proxy/m HTTP/1.1"),
        ("first", b"PUT /behind/a/proxy/m HTTP/1.1"),
        ("second", b"PUT /m HTTP/1.1"),
    ]


def test_a_connection_that_the_hub_has_ended_costs_one_attempt() -> None:
    answers = 0

    def once(stream: socket.socket) -> None:
        nonlocal answers
        if request(stream):
            answers += 1
            stream.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    with listening(once) as address:
        bulk = Bulk(lambda: address, lambda: "token")
        bulk.put("/m", 0, [])
        with pytest.raises(Unavailable):
            bulk.put("/m", 0, [])
        bulk.put("/m", 0, [])
        bulk.close()
    assert answers == 2


def test_a_port_that_nothing_answers_at_is_given_up_until_the_next_greeting() -> None:
    """A proxy may let the hub's own address pass and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    given_up: list[str] = []
    bulk = Bulk(lambda: closed, lambda: "token", lambda: given_up.append(closed))
    with pytest.raises(Unavailable):
        bulk.put("/m", 0, [])
    assert given_up == [closed]
