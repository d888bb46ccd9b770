"""Whatever stands at the hub's address: the link says that it cannot be reached, and tries again; the node does not end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from flame.crypto.keys import IdentityKey
from flame.model.errors import NotAuthenticated, Refused, Unavailable
from flame.node.link import Bulk, Link
from flame.node.link import link as link_module
from flame.protocol import control

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 30))


async def token(_: web.Request) -> web.Response:
    return web.json_response({"access_token": "t", "expires_in": 3600})


class Seen:
    """What the node was told, and what it does when the connection stands."""

    def __init__(self) -> None:
        self.delivered: list[control.Deliver] = []
        self.connected = 0
        self.work: Callable[[], Awaitable[None]] | None = None

    async def on_deliver(self, frame: control.Deliver) -> None:
        self.delivered.append(frame)

    async def on_changed(self, frame: control.Changed) -> None:
        pass

    async def on_connected(self) -> None:
        self.connected += 1
        if self.work is not None:
            await self.work()


@asynccontextmanager
async def hub(routes: dict[str, Handler]) -> AsyncIterator[tuple[str, Link, Seen]]:
    app = web.Application()
    for path, handler in {"/auth/token": token, **routes}.items():
        app.router.add_route("*", path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    seen = Seen()
    link = Link(
        address, "client", IdentityKey.generate(),
        on_deliver=seen.on_deliver, on_changed=seen.on_changed, on_connected=seen.on_connected,
    )  # fmt: skip
    try:
        yield address, link, seen
    finally:
        await link.close()
        await runner.cleanup()


def welcome(size: int = 0, root: bytes = b"") -> bytes:
    return control.encode(control.Welcome(1, "0.1", size, root))


def conversation(*talks: Callable[[web.WebSocketResponse], Awaitable[None]]) -> Handler:
    """One talk per connection, the last one again and again."""
    number = iter(range(1 << 30))

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await talks[min(next(number), len(talks) - 1)](socket)
        return socket

    return handler


async def greets(socket: web.WebSocketResponse) -> None:
    await socket.receive()
    await socket.send_bytes(welcome(3, b"h" * 32))
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            frame = control.decode_to_hub(message.data)
            if isinstance(frame, control.Put):
                await socket.send_bytes(control.encode(control.Stored(frame.msg_id)))


async def hangs_up(socket: web.WebSocketResponse) -> None:
    await socket.close()


async def speaks_text(socket: web.WebSocketResponse) -> None:
    await socket.send_str("hello")


async def speaks_noise(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(b"\xff\xff")


async def says_stored_first(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(control.encode(control.Stored(b"")))


async def shows_an_impossible_head(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(welcome(2**63, b"h" * 32))


async def shows_half_a_head(socket: web.WebSocketResponse) -> None:
    await socket.send_bytes(welcome(5, b"h" * 31))


@pytest.mark.parametrize(
    "talk", [hangs_up, speaks_text, speaks_noise, says_stored_first, shows_an_impossible_head, shows_half_a_head]
)
def test_after_any_nonsense_the_next_connection_counts(
    monkeypatch: pytest.MonkeyPatch, talk: Callable[[web.WebSocketResponse], Awaitable[None]]
) -> None:
    monkeypatch.setattr(link_module, "_BACKOFF_FIRST", 0.01)

    async def story() -> None:
        async with hub({control.PATH: conversation(talk, talk, greets)}) as (_, link, seen):
            running = asyncio.create_task(link.run())
            await link.put("envelope", b"r", b"m", b"body")
            assert seen.connected == 1
            assert link.shown_head == (3, b"h" * 32)
            running.cancel()

    run(story())


def test_a_hub_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RETRY_SECONDS", 0.02)
    answers = iter(["unavailable", "unavailable", None])

    async def busy(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(welcome())
        async for message in socket:
            frame = control.decode_to_hub(message.data)
            if isinstance(frame, control.Put):
                code = next(answers)
                reply = control.Rejected(frame.msg_id, code, "later") if code else control.Stored(frame.msg_id)
                await socket.send_bytes(control.encode(reply))

    async def story() -> None:
        async with hub({control.PATH: conversation(busy)}) as (_, link, _seen):
            running = asyncio.create_task(link.run())
            await link.put("envelope", b"r", b"m", b"body")
            assert next(answers, "none left") == "none left"
            running.cancel()

    run(story())


def test_a_hub_that_refuses_is_believed() -> None:
    async def refuses(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(welcome())
        async for message in socket:
            frame = control.decode_to_hub(message.data)
            if isinstance(frame, control.Put):
                await socket.send_bytes(control.encode(control.Rejected(frame.msg_id, "refused", "No.", "Ask.")))

    async def story() -> None:
        async with hub({control.PATH: conversation(refuses)}) as (_, link, _seen):
            running = asyncio.create_task(link.run())
            with pytest.raises(Refused, match=r"No\. Ask\."):
                await link.put("envelope", b"r", b"m", b"body")
            running.cancel()

    run(story())


def test_work_after_a_greeting_does_not_outlive_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_BACKOFF_FIRST", 0.01)

    async def leaves(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(welcome())
        await socket.close()

    async def story() -> None:
        async with hub({control.PATH: conversation(leaves, greets)}) as (_, link, seen):
            seen.work = asyncio.Event().wait  # type: ignore[assignment]  # work that never ends
            running = asyncio.create_task(link.run())
            await link.put("envelope", b"r", b"m", b"body")
            assert seen.connected == 2
            running.cancel()

    run(story())


async def elsewhere(request: web.Request) -> web.Response:
    raise web.HTTPTemporaryRedirect("/secret")


async def nonsense(request: web.Request) -> web.Response:
    return web.Response(text="<html>", content_type="text/html")


async def a_list(request: web.Request) -> web.Response:
    return web.json_response([1])


async def endless(request: web.Request) -> web.Response:
    return web.Response(body=b" " * 3000)


async def bad_gateway(request: web.Request) -> web.Response:
    return web.Response(status=502, text="<html>")


def test_nobody_is_sent_elsewhere_with_a_nodes_credential() -> None:
    reached: list[str] = []

    async def secret(request: web.Request) -> web.Response:
        reached.append(request.method)
        return web.json_response({"data": []})

    async def story() -> None:
        async with hub({"/a": elsewhere, "/secret": secret}) as (address, link, _):
            for attempt in (
                link.request("GET", "/a"), link.request("POST", "/a", {"x": 1}), link.download("/a", 100),
                link.upload("/a", "n", b"x"),
            ):  # fmt: skip
                with pytest.raises(Refused):
                    await attempt
            bulk = Bulk(lambda: address, lambda: "t")
            for ask in (lambda: bulk.put("/a", 1, [b"x"]), lambda: _read(bulk, "/a")):
                with pytest.raises(Refused):
                    await asyncio.to_thread(ask)
            bulk.close()
        assert reached == []

    run(story())


def _read(bulk: Bulk, path: str) -> bytes:
    with bulk.get(path) as stream:
        return stream.read()


@pytest.mark.parametrize("answer", [nonsense, a_list, endless, bad_gateway])
def test_an_answer_that_is_none_means_that_the_hub_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, answer: Handler
) -> None:
    monkeypatch.setattr(link_module, "MAX_ANSWER", 2000)

    async def story() -> None:
        async with hub({"/a": answer}) as (_, link, _seen):
            with pytest.raises(Unavailable):
                await link.request("GET", "/a")

    run(story())


@pytest.mark.parametrize("answer", [{}, {"access_token": 3, "expires_in": 9}, {"access_token": "t", "expires_in": "x"}])
def test_a_token_that_cannot_be_read_is_none(answer: dict[str, Any]) -> None:
    async def odd(request: web.Request) -> web.Response:
        return web.json_response(answer)

    async def story() -> None:
        async with hub({"/auth/token": odd}) as (_, link, _seen):
            with pytest.raises(Unavailable, match="token"):
                await link.bearer()

    run(story())


def test_a_token_that_the_hub_does_not_know_any_more_is_replaced() -> None:
    given = iter(["old", "new"])

    async def tokens(request: web.Request) -> web.Response:
        return web.json_response({"access_token": next(given), "expires_in": 3600})

    async def only_new(request: web.Request) -> web.Response:
        known = request.headers["Authorization"] == "Bearer new"
        return web.json_response({"data": "yes"} if known else {"message": "who?"}, status=200 if known else 401)

    async def story() -> None:
        async with hub({"/auth/token": tokens, "/a": only_new}) as (_, link, _seen):
            with pytest.raises(NotAuthenticated):
                await link.request("GET", "/a")
            assert await link.request("GET", "/a") == {"data": "yes"}

    run(story())


def test_a_file_larger_than_the_manifest_says_is_not_read_to_its_end() -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 101)

    async def story() -> None:
        async with hub({"/f": large}) as (_, link, _seen):
            with pytest.raises(Refused, match="100 bytes"):
                await link.download("/f", 100)
            assert len(await link.download("/f", 101)) == 101

    run(story())


def test_the_credential_is_in_no_address() -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(str(request.url) + json.dumps(await request.json() if request.can_read_body else None))
        return web.json_response({"data": []})

    async def story() -> None:
        async with hub({"/a": note}) as (_, link, _seen):
            await link.request("GET", "/a")
        assert asked
        assert all("Bearer" not in line and "access_token" not in line for line in asked)

    run(story())


def test_many_acknowledgements_go_in_frames_that_the_hub_takes() -> None:
    told: list[list[int]] = []

    async def story() -> None:
        all_told = asyncio.Event()

        async def counts(socket: web.WebSocketResponse) -> None:
            await socket.send_bytes(welcome())
            async for message in socket:
                frame = control.decode_to_hub(message.data)
                if isinstance(frame, control.Ack):
                    told.append(frame.seqs)
                    if sum(map(len, told)) == 2500:
                        all_told.set()

        async with hub({control.PATH: conversation(counts)}) as (_, link, _seen):
            running = asyncio.create_task(link.run())
            await link.online.wait()
            for seq in range(1, 2501):
                link.ack(seq)
            await all_told.wait()
            running.cancel()

    run(story())
    assert sorted(seq for seqs in told for seq in seqs) == list(range(1, 2501))
    assert max(map(len, told)) <= 1000  # as flame.hub.relay.routes refuses more


def test_where_large_envelopes_go_is_what_the_newest_greeting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_BACKOFF_FIRST", 0.01)
    shown = iter(["http://127.0.0.1:9", "http://elsewhere.example:9", "http://127.0.0.1:10", ""])
    seen_ways: list[str] = []

    async def story() -> None:
        all_seen = asyncio.Event()

        async def greets_and_goes(socket: web.WebSocketResponse) -> None:
            await socket.receive()
            if (way := next(shown, None)) is not None:
                await socket.send_bytes(control.encode(control.Welcome(1, "0.1", 0, b"", way)))
                await socket.receive(timeout=1)
            await socket.close()

        async with hub({control.PATH: conversation(greets_and_goes)}) as (address, link, seen):

            async def look() -> None:
                seen_ways.append(link.bulk)
                if len(seen_ways) == 4:
                    all_seen.set()
                raise Unavailable("The line breaks.")

            seen.work = look
            running = asyncio.create_task(link.run())
            await all_seen.wait()
            running.cancel()
            assert seen_ways == ["http://127.0.0.1:9", address, "http://127.0.0.1:10", address]

    run(story())
