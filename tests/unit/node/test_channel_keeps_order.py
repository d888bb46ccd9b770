"""The sealed channel over a relay that may do anything: order, repeats, gaps, restarts, large envelopes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import relay_in_memory as world
from flame.model.errors import Refused, RunFailed
from flame.node.release import channel as channel_module
from flame.protocol.control import INLINE_BYTES
from flame.protocol.payload import Label
from relay_in_memory import AGGREGATOR, ALPHA, BETA, GAMMA, federation, settled, until


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_messages_come_in_the_order_in_which_they_were_sent(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            relay.deliver_at_once = False
            for i in range(8):
                await nodes[ALPHA].send(f"m/{i}", [AGGREGATOR], b"%d" % i)
            await until(lambda: len(relay.mailbox.get(AGGREGATOR, [])) == 8, "all posted")
            relay.deliver(AGGREGATOR, *relay.mailbox[AGGREGATOR][::-1])  # a hub that turns everything round
            assert await nodes[AGGREGATOR].bodies(8) == [b"%d" % i for i in range(8)]
            await until(lambda: len(relay.acked.get(AGGREGATOR, [])) == 8, "all acknowledged")

    run(story())


def test_two_senders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, BETA, AGGREGATOR) as (relay, nodes):
            relay.deliver_at_once = False
            for node in (ALPHA, BETA):
                for i in range(2):
                    await nodes[node].send(f"m/{i}", [AGGREGATOR], node.encode() + b"%d" % i)
            await until(lambda: len(relay.mailbox.get(AGGREGATOR, [])) == 4, "all posted")
            withheld = next(f for f in relay.mailbox[AGGREGATOR] if f.sender == ALPHA)
            relay.deliver(AGGREGATOR, *(f for f in relay.mailbox[AGGREGATOR] if f is not withheld))
            assert await nodes[AGGREGATOR].bodies(2) == [BETA.encode() + b"0", BETA.encode() + b"1"]
            assert await nodes[AGGREGATOR].next(2, timeout=0.1) is None, "what follows a gap waits"
            relay.deliver(AGGREGATOR, withheld)
            assert (await nodes[AGGREGATOR].bodies(4))[2:] == [ALPHA.encode() + b"0", ALPHA.encode() + b"1"]

    run(story())


def test_a_long_queue_behind_a_gap_is_taken_in_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_WAITING", 1200)

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            frames = [sender.frame(sender.sealed(receiver, n), n) for n in range(1250)]
            relay.deliver(AGGREGATOR, *frames[1:])
            await settled(receiver)
            assert sum(map(len, receiver.channel._behind_gap.values())) == 1200
            relay.deliver(AGGREGATOR, frames[0])
            assert await receiver.next(1200) is not None
            assert await receiver.next(1201, timeout=0.05) is None
            relay.deliver(AGGREGATOR, *frames[1201:])  # what had no room comes again with the next connection
            assert await receiver.next(1249) is not None
            assert receiver.refused == []

    run(story())


def test_what_is_delivered_again_is_acknowledged_again_and_counted_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            await nodes[ALPHA].send("m/0", [AGGREGATOR], b"zero")
            await nodes[AGGREGATOR].bodies(1)
            await until(lambda: relay.acked.get(AGGREGATOR) == [0], "acknowledged")
            relay.deliver(AGGREGATOR, *relay.mailbox[AGGREGATOR] * 2)
            await until(lambda: relay.acked.get(AGGREGATOR) == [0, 0, 0], "acknowledged again")
            assert await nodes[AGGREGATOR].next(1, timeout=0.05) is None
            await nodes[AGGREGATOR].restart()
            relay.deliver(AGGREGATOR, *relay.mailbox[AGGREGATOR])
            await until(lambda: len(relay.acked[AGGREGATOR]) == 4, "also after a restart")
            assert await nodes[AGGREGATOR].bodies(1) == [b"zero"]
            assert await nodes[AGGREGATOR].next(1, timeout=0.05) is None

    run(story())


@pytest.mark.parametrize("waiting", [False, True], ids=["counted", "behind a gap"])
def test_two_messages_under_one_number_end_the_run(tmp_path: Path, waiting: bool) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            n = 1 if waiting else 0
            relay.deliver(AGGREGATOR, sender.frame(sender.sealed(receiver, n, b"one"), 0))
            relay.deliver(AGGREGATOR, sender.frame(sender.sealed(receiver, n, b"two"), 1))
            await until(lambda: receiver.refused, "refused")
            assert "two different messages" in str(receiver.refused[0])
            assert 1 not in relay.acked.get(AGGREGATOR, [])
            if not waiting:
                assert await receiver.bodies(1) == [b"one"], "what came before the forgery is kept"

    run(story())


def test_an_envelope_from_the_future_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "LATEST_LOOK", 0.05)

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            future = int(time.time()) + 302
            relay.deliver(AGGREGATOR, sender.frame(sender.sealed(receiver, 0, b"x", created=future, expires=future)))
            assert await receiver.next(0, timeout=0.2) is None
            assert receiver.refused == []
            assert AGGREGATOR not in relay.acked
            assert await receiver.bodies(1) == [b"x"]

    run(story())


# --- restarts -------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """Where the process was killed."""


@pytest.mark.parametrize("place", [channel_module.BEFORE_OUTBOX, channel_module.OUTBOX])
@pytest.mark.parametrize("size", [10, INLINE_BYTES * 2], ids=["small", "large"])
def test_a_sender_that_dies_loses_nothing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, size: int
) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_relay, nodes):
            sender = nodes[ALPHA]
            await sender.send("m/0", [AGGREGATOR], b"first")
            with monkeypatch.context() as dying:
                dying.setattr(channel_module, "reached", lambda name: _die(name == place))
                with pytest.raises(Died):
                    sender.channel._send("m/1", "message", 0, Label("x"), _keys(sender, AGGREGATOR), b"s" * size)
            await sender.restart()
            await sender.send("m/0", [AGGREGATOR], b"first")  # the program begins anew
            await sender.send("m/1", [AGGREGATOR], b"s" * size)
            await sender.send("m/2", [AGGREGATOR], b"last")
            assert await nodes[AGGREGATOR].bodies(3) == [b"first", b"s" * size, b"last"]
            assert await nodes[AGGREGATOR].next(3, timeout=0.05) is None
            assert nodes[AGGREGATOR].refused == []

    run(story())


def _die(now: bool) -> None:
    if now:
        raise Died


def _keys(sender: world.Station, *to: str) -> dict[str, bytes]:
    return {node: sender.channel.parties.key_of(node, time.monotonic()) for node in to}


@pytest.mark.parametrize("place", [channel_module.BEFORE_INBOX, channel_module.INBOX])
def test_a_receiver_that_dies_loses_nothing_and_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            receiver = nodes[AGGREGATOR]
            with monkeypatch.context() as dying:
                dying.setattr(channel_module, "reached", lambda name: _die(name == place))
                sender = nodes[ALPHA]
                frame = sender.frame(sender.sealed(receiver, 0, b"zero"))
                with pytest.raises(Died):
                    await receiver.channel._take_in([frame])
            assert AGGREGATOR not in relay.acked, "nothing is acknowledged that is not known to be durable"
            await receiver.restart()
            relay.deliver(AGGREGATOR, frame)
            assert await receiver.bodies(1) == [b"zero"]
            await until(lambda: relay.acked.get(AGGREGATOR) == [0], "acknowledged")
            assert await receiver.next(1, timeout=0.05) is None

    run(story())


def test_what_was_kept_but_not_sent_goes_out_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender = nodes[ALPHA]
            sender.link.online = False
            for i in range(3):
                await sender.send(f"m/{i}", [AGGREGATOR], b"%d" % i)
            assert not await sender.channel.flushed(0.05)
            assert relay.puts == []
            await sender.restart()
            assert await nodes[AGGREGATOR].bodies(3) == [b"0", b"1", b"2"]
            assert await sender.channel.flushed(5)

    run(story())


def test_a_program_that_sends_something_else_after_a_restart_is_ended(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_relay, nodes):
            sender = nodes[ALPHA]
            await sender.send("m/0", [AGGREGATOR], b"first")
            await sender.restart()
            for body, name in ((b"other", "x"), (b"first", "y")):
                with pytest.raises(RunFailed, match="something else") as caught:
                    await sender.send("m/0", [AGGREGATOR], body, name=name)
                assert "deterministic" in caught.value.next_step
            assert await nodes[AGGREGATOR].bodies(1) == [b"first"]

    run(story())


def test_a_held_result_does_not_leave_by_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            station = nodes[AGGREGATOR]
            person = {world.node_world.PERSON: nodes[ALPHA].keys.run_key.public_bytes}
            sealed = await asyncio.to_thread(
                station.channel.send_to_people, "final/0", Label("result.json"), person, b"result"
            )
            await station.restart()
            await asyncio.sleep(0.1)
            assert relay.puts == [], "only the steward's release sends a result"
            again = await asyncio.to_thread(
                station.channel.send_to_people, "final/0", Label("result.json"), person, b"result"
            )
            assert again == sealed, "the same bytes whenever it is asked again"

    run(story())


def test_that_a_peer_has_ended_is_not_forgotten_by_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_relay, nodes):
            await nodes[ALPHA].send("control/ended", [AGGREGATOR], b"why", "control", "ended")
            await until(lambda: nodes[AGGREGATOR].controls == [(ALPHA, "ended", b"why")], "told")
            nodes[AGGREGATOR].controls.clear()  # killed before it could act
            await nodes[AGGREGATOR].restart()
            assert nodes[AGGREGATOR].controls == [(ALPHA, "ended", b"why")]

    run(story())


def test_nothing_of_a_message_lies_open_on_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_relay, nodes):
            await nodes[ALPHA].send("m/0", [AGGREGATOR], b"CANARY-0123456789")
            await nodes[AGGREGATOR].bodies(1)
        for path in tmp_path.iterdir():
            assert b"CANARY" not in path.read_bytes(), path.name

    run(story())


# --- large envelopes ------------------------------------------------------------------------------------------------


def test_a_large_envelope_is_fetched_when_it_is_wanted_and_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            receiver = nodes[AGGREGATOR]
            await nodes[ALPHA].send("m/0", [AGGREGATOR], b"L" * (3 << 20))
            item = await receiver.next(0)
            assert item is not None
            assert item.large
            assert relay.gets == [], "only its head was looked at"
            assert (await asyncio.to_thread(receiver.channel.label, item)).name == "x"
            _, body = await asyncio.to_thread(receiver.channel.body, item)
            assert body == b"L" * (3 << 20)
            assert len(relay.gets) == 1
            assert relay.acked.get(AGGREGATOR) is None, "it stays at the hub until the run ends"

    run(story())


def test_a_broken_line_is_no_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            receiver = nodes[AGGREGATOR]
            await nodes[ALPHA].send("m/0", [AGGREGATOR], b"L" * (1 << 20))
            item = await receiver.next(0)
            assert item is not None
            relay.break_gets = 2
            _, body = await asyncio.to_thread(receiver.channel.body, item)
            assert len(body) == 1 << 20
            assert len(relay.gets) == 3

    run(story())


def test_a_hub_that_never_gives_the_whole_is_waited_for_until_the_run_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            receiver = nodes[AGGREGATOR]
            await nodes[ALPHA].send("m/0", [AGGREGATOR], b"L" * (1 << 20))
            item = await receiver.next(0)
            assert item is not None
            relay.break_gets = 1 << 30
            asyncio.get_running_loop().call_later(0.3, receiver.channel.close, "The run has ended.")
            with pytest.raises(RunFailed, match="has ended"):
                await asyncio.to_thread(receiver.channel.body, item)

    run(story())


def test_another_envelope_of_the_same_sender_is_not_taken_for_the_counted_one(tmp_path: Path) -> None:
    """Same message id, type and round, properly signed: but not the one whose head was counted."""

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            body = b"L" * (INLINE_BYTES * 2)
            counted, other = (sender.sealed(receiver, n, body, msg_id=bytes(16)) for n in (0, 7))
            header = counted[: world.envelope.peek_head(counted)[1]]
            relay.stored[ALPHA, bytes(16)] = other
            relay.deliver(AGGREGATOR, sender.frame(header, size=len(counted)))
            item = await receiver.next(0)
            assert item is not None
            with pytest.raises(Refused, match="another envelope"):
                await asyncio.to_thread(receiver.channel.body, item)
            relay.stored[ALPHA, bytes(16)] = counted
            _, found = await asyncio.to_thread(receiver.channel.body, item)
            assert found == body

    run(story())


# --- waiting --------------------------------------------------------------------------------------------------------


def test_every_wait_has_an_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_, nodes):
            station = nodes[AGGREGATOR]
            await station.die()
            await station.start(seconds=1)
            with pytest.raises(RunFailed, match="Nothing came in time"):
                await asyncio.to_thread(station.channel.wait_for, lambda _: True, None, threading.Event())
            station.channel.parties = world.Parties(
                bytes.fromhex(world.RUN), world.MANIFEST, [station.channel.parties[ALPHA]]
            )
            with pytest.raises(RunFailed, match="has not joined"):
                await station.send("m/0", [ALPHA], b"")

    run(story())


def test_who_waits_is_told_when_the_run_ends_or_the_program_hangs_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_, nodes):
            channel, gone = nodes[AGGREGATOR].channel, threading.Event()
            waits = [asyncio.to_thread(channel.wait_for, lambda _: False, None, gone) for _ in range(3)]
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            await asyncio.sleep(0.05)
            gone.set()
            channel.wake()
            for task in tasks:
                with pytest.raises(RunFailed, match="connection was closed"):
                    await task
            last = asyncio.ensure_future(asyncio.to_thread(channel.wait_for, lambda _: False, None, threading.Event()))
            await asyncio.sleep(0.05)
            channel.close("Ada stopped it.")
            with pytest.raises(RunFailed, match="Ada stopped it"):
                await last

    run(story())


def test_threads_that_send_at_once_use_every_number_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, BETA, AGGREGATOR) as (relay, nodes):
            sender = nodes[ALPHA]
            sizes = [10, INLINE_BYTES]
            await asyncio.gather(
                *(sender.send(f"m/{i}", [AGGREGATOR, BETA], b"%d" % i + b"." * sizes[i % 2]) for i in range(12))
            )
            for node in (AGGREGATOR, BETA):
                found = await nodes[node].bodies(12)
                assert sorted(int(body.split(b".")[0]) for body in found) == list(range(12))
                assert nodes[node].refused == []
            assert GAMMA not in relay.mailbox

    run(story())
