"""A mailbox has limits: whoever meets one is told so, waits, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from wire import channel
from world import PASSWORD, HubProcess, Study, World, seal

from flame.node.link import Link
from flame.node.link import link as link_module
from flame.protocol.control import Deliver, Rejected

WAY = "/messenger/messages"
MESSAGES, BYTES = 12, 3 << 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    limits = {
        "mailbox_messages_max": "20",
        "mailbox_run_messages_max": str(MESSAGES),
        "mailbox_run_bytes_max": str(BYTES),
    }
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD, **limits)
    yield hub
    hub.stop()


@pytest.fixture
def running(world: World) -> tuple[Study, bytes]:
    study = Study.set_up(world)
    return study, study.start(study.ready())


async def nothing(*_: object) -> None:
    return


@pytest.mark.parametrize("polls", [False, True])
def test_a_sender_waits_for_room_and_everything_arrives_once(
    running: tuple[Study, bytes], monkeypatch: pytest.MonkeyPatch, polls: bool
) -> None:
    study, run = running
    a, _, c = study.nodes
    monkeypatch.setattr(link_module, "RETRY_SECONDS_MOST", 0.1)
    monkeypatch.setattr(link_module, "RETRY_SECONDS", 0.1)
    if polls:
        monkeypatch.setattr(link_module.control, "PATH", "/messenger/nowhere")

    async def story() -> None:
        link = Link(study.world.hub.url, a.client, a.key, on_deliver=nothing, on_changed=nothing, on_connected=nothing)
        task = asyncio.create_task(link.run())
        await asyncio.wait_for(link.online.wait(), 20)
        assert link.polls is polls
        sent = [seal(run, a, [c.id], b"%d" % n, n) for n in range(3 * MESSAGES)]
        sending = [asyncio.create_task(link.put("envelope", run, m, e)) for m, e in sent]
        while sum(one.done() for one in sending) < MESSAGES:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert sum(one.done() for one in sending) == MESSAGES, "no more than there is room for"
        monkeypatch.undo()
        async with channel(study.world, c) as third:
            found = []
            while len(found) < len(sent):
                item = await third.next(Deliver)
                found.append(item.msg_id)
                await third.ack(item.seq)
            await asyncio.wait_for(asyncio.gather(*sending), 20)
            assert sorted(found) == sorted(m for m, _ in sent)
            assert await third.quiet(Deliver)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()

    asyncio.run(story())


def test_what_is_refused_is_refused_in_words_by_every_way(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes
    for n in range(MESSAGES):
        a("PUT", WAY, 202, content=seal(run, a, [c.id], b"x", n)[1])
    msg_id, envelope = seal(run, a, [c.id], b"one too many", MESSAGES)
    answer = a.http.put(WAY, content=envelope)
    assert (answer.status_code, answer.headers["retry-after"]) == (507, "2")
    assert f"{MESSAGES} messages waiting for node {c.id}" in answer.json()["message"] and answer.json()["nextStep"]

    async def story() -> None:
        async with channel(study.world, a) as first:
            await first.put(msg_id, run, envelope)
            said = await first.next(Rejected)
            assert (said.msg_id, said.code, said.retry_after) == (msg_id, "storage_insufficient", 2)

    asyncio.run(story())
    assert len(c.get(WAY)) == MESSAGES
    c("POST", f"{WAY}/ack", 202, json={"seqs": [row["seq"] for row in c.get(WAY)]})
    a("PUT", WAY, 202, content=envelope)


def test_a_run_that_has_used_up_its_bytes_hears_it_before_it_sends(running: tuple[Study, bytes]) -> None:
    study, run = running
    a, _, c = study.nodes
    a("PUT", WAY, 202, content=seal(run, a, [c.id], os.urandom(2 << 20))[1])
    _, large = seal(run, a, [c.id], os.urandom(2 << 20), 1)
    answer = a.http.put(WAY, content=large)
    assert (answer.status_code, answer.json()["code"]) == (409, "run_quota")
    assert f"{BYTES} bytes" in answer.json()["message"]
    assert len(c.get(WAY)) == 1
    place = study.world.hub.dir / "objects"
    assert list((place / "arriving").iterdir()) == []
    assert len(list((place / "kept" / "mail").iterdir())) >= 1
