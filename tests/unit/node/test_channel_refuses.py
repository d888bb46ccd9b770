"""What may not come in: strangers, forgeries and replays are as if they had not come; a member that breaks the rules ends the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace as altered

from flame.crypto import envelope
from flame.crypto.announce import Announcement, sign_announcement
from flame.crypto.keys import HybridKey, IdentityKey
from flame.model.errors import BadSignature, Expired, FlameError, Malformed, Refused
from flame.node.release import channel as channel_module
from flame.protocol.control import INLINE_BYTES
from flame.protocol.payload import MAX_LABEL, Label, prefix, split
from relay_in_memory import AGGREGATOR, ALPHA, BETA, GAMMA, RUN, Relay, Station, federation, settled, until


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


async def is_as_if_it_had_not_come(relay: Relay, sender: Station, receiver: Station, *frames: Any) -> None:
    """Dropped, not acknowledged; and the true message still comes through."""
    relay.deliver(receiver.node, *frames)
    await settled(receiver)
    assert receiver.refused == [], "whoever can put this before a node could end every run"
    assert receiver.node not in relay.acked
    relay.deliver(receiver.node, sender.frame(sender.sealed(receiver, 0, b"true"), 99))
    assert await receiver.bodies(1) == [b"true"]
    await until(lambda: relay.acked.get(receiver.node) == [99], "acknowledged")


def stranger(sender: Station, receiver: Station) -> bytes:
    now = int(time.time())
    return envelope.seal(
        IdentityKey.generate(), prefix(Label("x")), type="message", run=bytes.fromhex(RUN), sender=UUID(sender.node).bytes,
        msg_id=bytes(16), round=0, created=now, expires=now + 60, content_type="a/b", log_size=0, log_root=bytes(32),
        recipients=[envelope.RecipientKey(UUID(receiver.node).bytes, receiver.keys.run_key.public_bytes, 0)],
    )  # fmt: skip


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


FORGERIES = {
    "noise": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=b"noise"),
    "empty": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=b""),
    "somebody else's key": lambda s, r: s.frame(stranger(s, r)),
    "in another member's name": lambda s, r: s.frame(s.sealed(r, 0), sender=BETA),
    "in the node's own name": lambda s, r: s.frame(s.sealed(r, 0), sender=r.node),
    "a node that takes no part": lambda s, r: s.frame(s.sealed(r, 0), sender=str(UUID(int=7))),
    "no identifier": lambda s, r: s.frame(s.sealed(r, 0), sender="../../x"),
    "a changed head": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=flipped(s.sealed(r, 0), 40)),
    "a changed body": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=flipped(s.sealed(r, 0), -70)),
    "cut off": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=s.sealed(r, 0, b"long")[:-1]),
    "longer than said": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=s.sealed(r, 0) + b"x"),
    "its head alone": lambda s, r: altered(s.frame(s.sealed(r, 0)), body=s.sealed(r, 0)[: envelope.peek_head(s.sealed(r, 0))[1]]),
    "for another node": lambda s, r: s.frame(
        s.sealed(r, 0, recipients=[envelope.RecipientKey(UUID(BETA).bytes, r.keys.run_key.public_bytes, 0)])
    ),
    "for a key of another run": lambda s, r: s.frame(
        s.sealed(r, 0, recipients=[envelope.RecipientKey(UUID(r.node).bytes, HybridKey.generate().public_bytes, 0)])
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_no_member_signed_for_this_run_is_as_if_it_had_not_come(tmp_path: Path, forgery: str) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            frame = FORGERIES[forgery](nodes[ALPHA], nodes[AGGREGATOR])
            await is_as_if_it_had_not_come(relay, nodes[ALPHA], nodes[AGGREGATOR], frame)

    run(story())


def test_a_forgery_does_not_take_what_came_with_it_along(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            good = [sender.frame(sender.sealed(receiver, n, b"%d" % n), n) for n in range(2)]
            relay.deliver(AGGREGATOR, good[0], FORGERIES["noise"](sender, receiver), good[1])
            assert await receiver.bodies(2) == [b"0", b"1"]
            assert receiver.refused == []

    run(story())


def test_a_message_to_one_run_cannot_be_replayed_into_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            relay.deliver(AGGREGATOR, sender.frame(sender.sealed(receiver, 0, run=b"o" * 32)))
            await until(lambda: receiver.refused, "refused")
            assert "another run" in str(receiver.refused[0])

    run(story())


MAY_NOT = [
    (AGGREGATOR, ALPHA, "sum"), (BETA, ALPHA, "sum"), (ALPHA, AGGREGATOR, "result"), (ALPHA, AGGREGATOR, "announce"),
    (AGGREGATOR, ALPHA, "total"), (ALPHA, AGGREGATOR, "Sum"),
]  # fmt: skip


@pytest.mark.parametrize(("sender", "receiver", "type_"), MAY_NOT, ids=lambda v: v[:8])
def test_a_member_that_may_not_send_this_ends_the_run(tmp_path: Path, sender: str, receiver: str, type_: str) -> None:
    async def story() -> None:
        async with federation(tmp_path) as (relay, nodes):
            body = nodes[sender].sealed(nodes[receiver], 0, type=type_)
            relay.deliver(receiver, nodes[sender].frame(body))
            await until(lambda: nodes[receiver].refused, "refused")
            assert f"'{type_}'" in str(nodes[receiver].refused[0])
            assert receiver not in relay.acked
            assert await nodes[receiver].next(0, timeout=0.05) is None

    run(story())


@pytest.mark.parametrize(
    ("sender", "receiver", "type_"),
    [(ALPHA, AGGREGATOR, "sum"), (ALPHA, BETA, "message"), (AGGREGATOR, GAMMA, "message"), (GAMMA, AGGREGATOR, "control")],
    ids=lambda v: v[:8],
)  # fmt: skip
def test_what_the_roles_allow_comes_in(tmp_path: Path, sender: str, receiver: str, type_: str) -> None:
    async def story() -> None:
        async with federation(tmp_path) as (relay, nodes):
            relay.deliver(receiver, nodes[sender].frame(nodes[sender].sealed(nodes[receiver], 0, b"x", type=type_)))
            assert await nodes[receiver].bodies(1) == [b"x"]

    run(story())


def test_an_envelope_that_came_too_late_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver, past = nodes[ALPHA], nodes[AGGREGATOR], int(time.time()) - 301
            relay.deliver(AGGREGATOR, sender.frame(sender.sealed(receiver, 0, created=past, expires=past)))
            await until(lambda: receiver.refused, "refused")
            assert isinstance(receiver.refused[0], Expired)

    run(story())


def test_no_memory_is_given_for_what_a_head_merely_announces(tmp_path: Path) -> None:
    """A member announces a terabyte in a small envelope, and more than any policy allows in a large one."""

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            now = int(time.time())
            sealer = envelope.Sealer(
                sender.identity, total_len=1 << 40, type="message", run=bytes.fromhex(RUN), sender=UUID(ALPHA).bytes,
                msg_id=bytes(16), round=0, created=now, expires=now + 60, content_type="a/b", log_size=0, log_root=bytes(32),
                recipients=[envelope.RecipientKey(UUID(AGGREGATOR).bytes, receiver.keys.run_key.public_bytes, 0)],
            )  # fmt: skip
            relay.deliver(AGGREGATOR, sender.frame(sealer.header.encode(), size=10))
            await until(lambda: receiver.refused, "refused")
            assert "more than any policy allows" in str(receiver.refused[0])

    run(story())


def test_the_hub_cannot_make_a_small_message_vanish_by_calling_it_large(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            body = sender.sealed(receiver, 0, b"small")
            relay.stored[ALPHA, bytes(16)] = body
            relay.deliver(AGGREGATOR, sender.frame(body, size=INLINE_BYTES + 1))
            assert await receiver.bodies(1) == [b"small"]

    run(story())


def test_what_waits_behind_a_gap_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_WAITING_BYTES", 50_000)

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (relay, nodes):
            sender, receiver = nodes[ALPHA], nodes[AGGREGATOR]
            relay.deliver(
                AGGREGATOR, *(sender.frame(sender.sealed(receiver, n, b"." * 20_000), n) for n in range(1, 9))
            )
            await settled(receiver)
            kept = [f for waiting in receiver.channel._behind_gap.values() for f in waiting.values()]
            assert len(kept) == 3
            assert receiver.refused == []

    run(story())


# --- announcements --------------------------------------------------------------------------------------------------


def announced(station: Station, identity: IdentityKey | None = None, **other: Any) -> bytes:
    honest = Announcement.parse(station.announcement()[:-64])
    return sign_announcement(identity or station.identity, replace(honest, **other))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"run": b"o" * 32}, Refused),
        ({"manifest": b"o" * 32}, Refused),
        ({"role": "aggregator"}, Refused),
        ({"node": UUID(BETA).bytes}, Refused),
        ({"created": 1, "expires": 2}, Expired),
        ({"mask_key": bytes(32)}, Refused),
        ({"run_key": HybridKey.generate().public_bytes}, Refused),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_an_announcement_of_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[FlameError]
) -> None:
    """The last one: other keys than those announced before, the sign of a cloned node."""

    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_, nodes):
            parties = nodes[AGGREGATOR].channel.parties
            with pytest.raises(error):
                parties.take(ALPHA, announced(nodes[ALPHA], **change), int(time.time()))
            assert parties.key_of(ALPHA, time.monotonic()) == nodes[ALPHA].keys.run_key.public_bytes

    run(story())


def test_an_announcement_that_was_taken_in_time_holds_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_, nodes):
            parties, now = nodes[AGGREGATOR].channel.parties, int(time.time())
            old = announced(nodes[ALPHA], created=now - 90_000, expires=now - 80_000)
            with pytest.raises(Expired):
                parties.take(ALPHA, old, now)
            assert parties.restore(ALPHA, old).created == now - 90_000
            with pytest.raises(BadSignature):
                parties.restore(ALPHA, announced(nodes[ALPHA], IdentityKey.generate()))
            with pytest.raises(FlameError):
                parties.restore(ALPHA, b"noise")

    run(story())


def test_nobody_announces_for_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with federation(tmp_path, ALPHA, AGGREGATOR) as (_, nodes):
            parties, now = nodes[AGGREGATOR].channel.parties, int(time.time())
            with pytest.raises(BadSignature):
                parties.take(BETA, announced(nodes[ALPHA], node=UUID(BETA).bytes), now)
            with pytest.raises(BadSignature):
                parties.take(ALPHA, announced(nodes[ALPHA], IdentityKey.generate()), now)
            with pytest.raises(Refused, match="takes no part"):
                parties.take(str(UUID(int=7)), announced(nodes[ALPHA]), now)
            assert len(parties.missing()) == 2

    run(story())


# --- payloads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\5\x91\xa1x",
        b"\xff" * 64,
        b"\0\0\0\1\x90",
        (MAX_LABEL + 1).to_bytes(4, "big") + bytes(9999),
    ],
)
def test_a_payload_without_a_label_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        split(data)


@pytest.mark.parametrize("label", [Label("x"), Label("ü" * 500, "application/json"), Label("")])
@pytest.mark.parametrize("body", [b"", b"x", bytes(1000)])
def test_a_payload_reads_back(label: Label, body: bytes) -> None:
    head = prefix(label)
    assert len(head) % 64 == 0
    found, rest = split(head + body)
    assert (found, bytes(rest)) == (label, body)


def test_a_name_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(Malformed):
        prefix(Label("x" * MAX_LABEL))
