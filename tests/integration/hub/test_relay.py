"""Envelopes from node to node: stored once, delivered until acknowledged, to nobody else."""

from __future__ import annotations

import asyncio
import base64
import os
from uuid import UUID, uuid4

import httpx2
import pytest
from wire import Changed, Deliver, channel
from world import Study, World, seal

from flame.crypto.envelope import peek_head
from flame.protocol.control import Rejected, Stored


@pytest.fixture(scope="module")
def running(world: World) -> tuple[Study, bytes]:
    study = Study.set_up(world)
    return study, study.start(study.ready())


def test_a_message_arrives_at_once_and_only_at_its_recipient(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, b, c = study.nodes

    async def scenario() -> None:
        async with (
            channel(study.world, a) as first,
            channel(study.world, b) as second,
            channel(study.world, c) as third,
        ):
            msg_id, envelope = seal(run, a, [c.id], b"payload")
            await first.put(msg_id, run, envelope)
            assert (await first.next(Stored)).msg_id == msg_id
            item = await third.next(Deliver)
            assert (item.sender, item.msg_id, item.run, item.body) == (a.id, msg_id, run, envelope)
            await third.ack(item.seq)
            assert await second.quiet(Deliver)

    asyncio.run(scenario())


def test_what_is_not_acknowledged_comes_again_in_order(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes

    async def scenario() -> None:
        sent = [seal(run, a, [c.id], b"%d" % i, n=i) for i in range(5)]
        async with channel(study.world, a) as first:
            for msg_id, envelope in sent:
                await first.put(msg_id, run, envelope)
                await first.next(Stored)
        async with channel(study.world, c) as third:
            items = [await third.next(Deliver) for _ in sent]
            assert [i.msg_id for i in items] == [m for m, _ in sent]
            assert [i.seq for i in items] == sorted(i.seq for i in items)
            await third.ack(items[0].seq, items[1].seq)
            await third.socket.ping()
        async with channel(study.world, c) as third:
            again = [await third.next(Deliver) for _ in range(3)]
            assert [i.msg_id for i in again] == [m for m, _ in sent[2:]]
            await third.ack(*(i.seq for i in again))
            await asyncio.sleep(0.1)
        async with channel(study.world, c) as third:
            assert await third.quiet(Deliver)

    asyncio.run(scenario())


def test_a_repeated_put_is_delivered_once(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes

    async def scenario() -> None:
        msg_id, envelope = seal(run, a, [c.id], b"once")
        async with channel(study.world, a) as first, channel(study.world, c) as third:
            for _ in range(2):
                await first.put(msg_id, run, envelope)
                await first.next(Stored)
            item = await third.next(Deliver)
            assert item.msg_id == msg_id
            assert await third.quiet(Deliver)
            await third.ack(item.seq)

    asyncio.run(scenario())


def test_a_newer_channel_replaces_the_older(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes

    async def scenario() -> None:
        async with channel(study.world, c) as older, channel(study.world, c) as newer:
            await asyncio.wait_for(older.socket.wait_closed(), 10)
            msg_id, envelope = seal(run, a, [c.id], b"newer")
            async with channel(study.world, a) as first:
                await first.put(msg_id, run, envelope)
            item = await newer.next(Deliver)
            assert item.msg_id == msg_id
            await newer.ack(item.seq)

    asyncio.run(scenario())


@pytest.mark.parametrize("case", ["sender", "run", "recipient", "message id", "garbage", "outsider"])
def test_the_relay_refuses_what_does_not_belong(running: tuple[Study, bytes], world: World, case: str) -> None:
    study, run = running
    a, b, c = study.nodes
    outsider = world.node(a.realm)
    sender, as_sender, to, in_run = a, a, c.id, run
    if case == "sender":
        as_sender = b
    elif case == "run":
        in_run = os.urandom(32)
    elif case == "recipient":
        to = outsider.id
    elif case == "outsider":
        sender = as_sender = outsider
    msg_id, envelope = seal(in_run, as_sender, [to], b"x")
    body = os.urandom(500) if case == "garbage" else envelope
    named = uuid4().bytes if case == "message id" else msg_id

    async def scenario() -> Rejected:
        async with channel(study.world, sender) as wire:
            await wire.put(named, in_run, body)
            return await wire.next(Rejected)

    answer = asyncio.run(scenario())
    assert answer.msg_id == named and answer.message
    assert b"Deliver" not in repr(c.get("/messenger/messages")).encode()
    assert c.get("/messenger/messages") == []


def test_forty_megabytes_go_through_unchanged(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, b, c = study.nodes
    payload = os.urandom(40 << 20)
    msg_id, envelope = seal(run, a, [c.id], payload)
    assert a("PUT", "/messenger/messages", 202, content=envelope)["repeated"] is False
    assert a("PUT", "/messenger/messages", 202, content=envelope)["repeated"] is True
    path = f"/messenger/messages/{a.id}/{msg_id.hex()}"

    async def scenario() -> Deliver:
        async with channel(study.world, c) as wire:
            return await wire.next(Deliver)

    item = asyncio.run(scenario())
    assert (item.msg_id, item.size) == (msg_id, len(envelope))
    head, length = peek_head(envelope)
    assert item.body == envelope[:length] and head.total_len == len(payload)
    assert c("GET", path, 200) == envelope
    b.refused(404, "GET", path)
    study.researcher.refused(403, "GET", path)
    c("POST", "/messenger/messages/ack", 202, json={"seqs": [item.seq]})
    c.refused(404, "GET", path)


def test_a_body_that_breaks_off_is_announced_and_whole_only_when_it_is(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], os.urandom(2 << 20))

    def broken() -> object:
        yield envelope[: 1 << 20]
        raise ConnectionError

    headers = {"content-length": str(len(envelope))}
    with pytest.raises((ConnectionError, httpx2.HTTPError)):
        a.http.put("/messenger/messages", content=broken(), headers=headers)
    a.refused(400, "PUT", "/messenger/messages", content=envelope[:-1])
    while not (waiting := c.get("/messenger/messages")):
        pass
    (item,) = waiting
    assert item["msgId"] == msg_id.hex()
    assert a("GET", f"/messenger/uploads/{msg_id.hex()}", 200)["complete"] is False
    assert a("PUT", "/messenger/messages", 202, content=envelope)["repeated"] is True
    assert c("GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope
    assert len(c.get("/messenger/messages")) == 1
    c("POST", "/messenger/messages/ack", 202, json={"seqs": [item["seq"]]})


def test_an_announcement_reaches_all_other_participants(running: tuple[Study, bytes]) -> None:
    import time

    from flame.crypto.announce import Announcement, sign_announcement
    from flame.crypto.keys import HybridKey

    study, run = running
    a, b, c = study.nodes
    now = int(time.time())
    said = Announcement(
        run, bytes(32), UUID(a.id).bytes, "default", HybridKey.generate().public_bytes, os.urandom(32), 0, bytes(32), now,
        now + 3600,
    )  # fmt: skip
    data, msg_id = sign_announcement(a.key, said), uuid4().bytes

    async def scenario() -> None:
        async with (
            channel(study.world, a) as first,
            channel(study.world, b) as second,
            channel(study.world, c) as third,
        ):
            await first.put(msg_id, run, data, "announce")
            await first.next(Stored)
            for wire in (second, third):
                item = await wire.next(Deliver)
                assert (item.kind, item.sender, item.body) == ("announce", a.id, data)
                await wire.ack(item.seq)
            assert await first.quiet(Deliver)
            await second.put(msg_id, run, data, "announce")
            assert (await second.next(Rejected)).code == "permission_denied"
            await asyncio.sleep(0.1)

    asyncio.run(scenario())


def test_a_long_poll_ends_when_something_comes(running: tuple[Study, bytes]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    study, run = running
    a, b, _ = study.nodes
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(b.get, "/messenger/messages", wait="20")
        msg_id, envelope = seal(run, a, [b.id], b"poll")
        a("PUT", "/messenger/messages", 202, content=envelope)
        item = waiting.result(timeout=15)[0]
    assert item["msgId"] == msg_id.hex()
    assert b("GET", f"/messenger/messages/{a.id}/{msg_id.hex()}", 200) == envelope
    b("POST", "/messenger/messages/ack", 202, json={"seqs": [item["seq"]]})


def posted(msg_id: bytes, run: bytes, body: bytes, kind: str = "envelope") -> dict[str, object]:
    shown = {"kind": kind, "msgId": msg_id.hex(), "run": run.hex(), "body": base64.b64encode(body).decode()}
    return {"messages": [shown]}


@pytest.mark.parametrize(
    "case", ["sender", "run", "recipient", "message id", "garbage", "outsider", "kind", "too large"]
)
def test_nobody_messages_nodes_outside_the_runs_that_they_take_part_in(
    running: tuple[Study, bytes], world: World, case: str
) -> None:
    """Attack 6: any identity sends anything to any node. Here by plain requests; the control channel is above."""
    study, run = running
    a, b, c = study.nodes
    outsider = world.node(a.realm)
    sender = {"sender": b, "outsider": outsider}.get(case, a)
    to = outsider.id if case == "recipient" else c.id
    in_run = os.urandom(32) if case == "run" else run
    payload = os.urandom(300 << 10) if case == "too large" else b"x"
    msg_id, envelope = seal(in_run, outsider if case == "outsider" else a, [to], payload)
    body = os.urandom(500) if case == "garbage" else envelope
    named = uuid4().bytes if case == "message id" else msg_id
    kind = "anything" if case == "kind" else "envelope"
    (said,) = sender("POST", "/messenger/messages", 202, json=posted(named, in_run, body, kind))["data"]
    assert said["msgId"] == named.hex() and said["stored"] is False and said["code"] and said["message"]
    for node in (b, c, outsider):
        assert node.get("/messenger/messages") == []


def test_a_message_in_a_plain_request_is_stored_once_and_waits(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes
    msg_id, envelope = seal(run, a, [c.id], b"plain")
    for repeated in (False, True):
        (said,) = a("POST", "/messenger/messages", 202, json=posted(msg_id, run, envelope))["data"]
        assert said == {"msgId": msg_id.hex(), "stored": True, "repeated": repeated}
    (row,) = c.get("/messenger/messages")
    assert (row["msgId"], row["sender"], base64.b64decode(row["body"])) == (msg_id.hex(), a.id, envelope)
    c("POST", "/messenger/messages/ack", 202, json={"seqs": [row["seq"]]})
    assert c.get("/messenger/messages", wait="0.2") == [], "a poll ends at its limit"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'{"messages": []}', b'{"messages": 3}', b'{"messages": [{"kind": "envelope"}]}',
        b'{"messages": [{"kind": "envelope", "msgId": "zz", "run": "", "body": ""}]}', b'{"messages": [' + b"[" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(running: tuple[Study, bytes], body: bytes) -> None:
    study, _ = running
    study.nodes[0].refused(400, "POST", "/messenger/messages", content=body)


def test_only_nodes_use_the_relay(running: tuple[Study, bytes]) -> None:
    study, _ = running
    study.researcher.refused(403, "GET", "/messenger/messages")
    for path in ("/messenger/messages", "/messenger/hello", "/messenger/messages/ack"):
        study.researcher.refused(403, "POST", path, json={})
        study.world.anonymous().refused(401, "POST", path, json={})
    for wrong in ("wait=x", "after=-1", "wait=1e9", "after=\u0663"):
        study.nodes[0].refused(400, "GET", f"/messenger/messages?{wrong}")
    study.world.anonymous().refused(401, "PUT", "/messenger/messages", content=b"x")


def test_nodes_are_told_what_changes_and_their_mail_goes_with_the_run(world: World) -> None:
    study = Study.set_up(world)
    a, _, c = study.nodes

    async def scenario() -> None:
        async with channel(world, c) as wire:
            digest = await asyncio.to_thread(study.ready)
            assert (await wire.next(Changed)).id == study.analysis
            wire.kept.clear()
            run = await asyncio.to_thread(study.start, digest)
            told = await wire.next(Changed)
            while told.what != "run":
                told = await wire.next(Changed)
            assert told.id == study.analysis
            _, envelope = seal(run, a, [c.id], os.urandom(1 << 20))
            await asyncio.to_thread(a, "PUT", "/messenger/messages", 202, content=envelope)
            await wire.next(Deliver)
            for node in study.nodes:
                place = study.place(node)["id"]
                await asyncio.to_thread(node.change, f"/core/analysis-nodes/{place}", executionStatus="executed")
            assert a("PUT", "/messenger/messages", 409, content=envelope)["code"] == "refused"
        for _ in range(200):
            if not c.get("/messenger/messages") and not list((world.hub.dir / "objects/kept/mail").iterdir()):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the mail of an ended run is still there")

    asyncio.run(scenario())
