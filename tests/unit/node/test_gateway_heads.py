"""The heads of HTTP requests from a sandbox are read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.node.gateway.http import Head, HeadError, parse_head
from flame.wire.gateway import UPGRADE

ASKED = UPGRADE.removesuffix(b"\r\n\r\n")


def test_the_upgrade_of_our_own_sdk_is_one():
    assert parse_head(ASKED).asks_for_frames


def test_a_host_in_the_address_changes_nothing():
    head = parse_head(ASKED.replace(b" /flame/v1", b" http://169.254.169.254/flame/v1"))
    assert head.path == "/flame/v1"
    assert head.asks_for_frames


@pytest.mark.parametrize(
    "head",
    [
        ASKED.replace(b"GET", b"POST"),
        ASKED.replace(b"/flame/v1", b"/flame/v1/"),
        ASKED.replace(b"flame-frames/1", b"websocket"),
        ASKED.replace(b"Connection: Upgrade", b"Connection: close"),
        ASKED + b"\r\nContent-Length: 5",
        ASKED + b"\r\nTransfer-Encoding: chunked",
    ],
)
def test_other_requests_are_plain_http(head):
    assert not parse_head(head).asks_for_frames


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET /flame/v1",
        b"GET /flame/v1 HTTP/1.0\r\nHost: x",
        b"GET  /flame/v1 HTTP/1.1\r\nHost: x",
        b"GET flame HTTP/1.1\r\nHost: x",
        b"GET file:///etc/passwd HTTP/1.1\r\nHost: x",
        b"GET /a\x00b HTTP/1.1\r\nHost: x",
        b"GET /a HTTP/1.1",
        b"GET /a HTTP/1.1\r\nHost x",
        b"GET /a HTTP/1.1\r\nHost : x",
        b"GET /a HTTP/1.1\r\nHost: x\r\n folded: y",
        b"GET /a HTTP/1.1\r\nHost: x\nEvil: y",
        b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y",
        b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2",
        b"GET /a HTTP/1.1\r\nHost: x" + b"\r\nA: b" * 101,
    ],
)
def test_what_is_not_plain_http_is_refused(head):
    with pytest.raises(HeadError) as refused:
        parse_head(head)
    assert refused.value.status in (400, 431)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(block):
    try:
        head = parse_head(block)
    except HeadError:
        return
    assert isinstance(head, Head)
