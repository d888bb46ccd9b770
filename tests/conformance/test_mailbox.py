"""What every form of the mailbox promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.model.errors import Conflict, Exhausted, Refused
from flame.storage.engine import Database
from flame.storage.mailbox import Letter, Mailbox, MemoryMailbox, Quota, SqlMailbox
from postgres_world import Postgres

A, B, C = "node-a", "node-b", "node-c"
RUN = bytes(32)


def letter(body: bytes = b"x", sender: str = A, **changed: object) -> Letter:
    made = Letter(sender, os.urandom(16), RUN, "envelope", len(body), 2_000_000_000, body)
    return replace(made, **changed)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Mailbox]]:
    opened: list[Database] = []

    def build(quota: Quota | None = None) -> Mailbox:
        quota = quota or Quota()
        if request.param == "memory":
            return MemoryMailbox(quota)
        database = a_database(request, str(request.param), tmp_path)
        database.open()
        opened.append(database)
        return SqlMailbox(database, quota)

    yield build
    for database in opened:
        database.close()


def a_database(request: pytest.FixtureRequest, form: str, folder: Path) -> Database:
    if form == "sqlite":
        return Database(folder / f"{os.urandom(8).hex()}.db")
    server: Postgres = request.getfixturevalue("postgres")
    return Database(server.url(server.fresh()))


@pytest.fixture
def mailbox(make: Callable[..., Mailbox]) -> Mailbox:
    return make()


def check(scenario: Awaitable[None]) -> None:
    async def run() -> None:
        await scenario

    asyncio.run(run())


def test_what_is_put_waits_for_its_recipients_and_nobody_else(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = letter(b"hello")
        assert await mailbox.put(sent, [B, C]) == {B: 1, C: 1}
        for recipient in (B, C):
            (found,) = await mailbox.waiting(recipient)
            assert (found.seq, found.letter) == (1, sent)
        assert await mailbox.waiting(A) == []
        assert await mailbox.find(A, A, sent.msg_id) is None
        assert (await mailbox.find(B, A, sent.msg_id)).letter == sent

    check(scenario())


def test_a_repeat_is_stored_once(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = letter()
        await mailbox.put(sent, [B])
        assert await mailbox.put(sent, [B]) is None
        assert len(await mailbox.waiting(B)) == 1
        (found,) = await mailbox.waiting(B)
        await mailbox.acknowledge(B, [found.seq])
        assert await mailbox.put(sent, [B]) is None
        assert await mailbox.waiting(B) == []

    check(scenario())


def test_another_letter_under_the_same_name_is_refused(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = letter(b"one")
        await mailbox.put(sent, [B])
        with pytest.raises(Conflict):
            await mailbox.put(replace(sent, size=99), [B])
        assert await mailbox.put(replace(sent, sender=C), [B]) == {B: 2}

    check(scenario())


def test_order_is_kept_and_numbers_are_never_used_again(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = [letter(b"%d" % i) for i in range(5)]
        for one in sent:
            await mailbox.put(one, [B])
        assert [d.letter for d in await mailbox.waiting(B)] == sent
        assert [d.seq for d in await mailbox.waiting(B, after=2, limit=2)] == [3, 4]
        await mailbox.acknowledge(B, [1, 2, 3, 4, 5])
        assert await mailbox.put(letter(), [B]) == {B: 6}

    check(scenario())


def test_acknowledging_twice_or_what_is_not_there_changes_nothing(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        await mailbox.put(letter(), [B])
        await mailbox.put(letter(), [B])
        for _ in range(2):
            assert await mailbox.acknowledge(B, [1, 1, 77]) == []
        await mailbox.acknowledge(C, [2])
        assert [d.seq for d in await mailbox.waiting(B)] == [2]

    check(scenario())


def test_a_blob_is_given_back_when_the_last_recipient_has_it(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        await mailbox.put(letter(b"header", blob="mail/1", size=5_000_000), [B, C])
        assert await mailbox.acknowledge(B, [1]) == []
        assert await mailbox.acknowledge(C, [1]) == ["mail/1"]

    check(scenario())


def test_a_purged_run_leaves_nothing_and_others_stay(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        other = letter(run=b"o" * 32)
        await mailbox.put(letter(blob="mail/2"), [B, C])
        await mailbox.put(other, [B])
        assert await mailbox.purge(RUN) == ["mail/2"]
        assert [d.letter for d in await mailbox.waiting(B)] == [other]
        assert await mailbox.waiting(C) == []

    check(scenario())


def test_what_has_expired_goes(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        await mailbox.put(letter(expires=100, blob="mail/3"), [B])
        await mailbox.put(letter(expires=300), [B])
        assert await mailbox.expire(200) == ["mail/3"]
        assert [d.seq for d in await mailbox.waiting(B)] == [2]

    check(scenario())


@pytest.mark.parametrize("quota", [Quota(letters=2), Quota(bytes=5)])
def test_a_full_box_refuses_and_stores_nothing_anywhere(make: Callable[..., Mailbox], quota: Quota) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        for _ in range(2):
            await mailbox.put(letter(b"xx"), [B])
        with pytest.raises(Exhausted):
            await mailbox.put(letter(b"xx"), [C, B])
        assert await mailbox.waiting(C) == []
        await mailbox.acknowledge(B, [1])
        assert await mailbox.put(letter(b"xx"), [C, B]) == {C: 1, B: 3}

    check(scenario(make(quota)))


@pytest.mark.parametrize("other_first", [False, True])
def test_one_run_leaves_room_for_others(make: Callable[..., Mailbox], other_first: bool) -> None:
    """A run has its own part of each box, in messages (wait for room) and in bytes (refused for good)."""

    async def scenario(mailbox: Mailbox) -> None:
        other = b"o" * 32
        if other_first:
            await mailbox.put(letter(b"xx", run=other), [B])
        for _ in range(3):
            await mailbox.put(letter(b"xx"), [B])
        with pytest.raises(Exhausted) as full:
            await mailbox.put(letter(b"xx"), [C, B])
        assert full.value.fields["retryAfter"] and "as many as it may have" in full.value.message
        assert await mailbox.waiting(C) == [], "refused at one, stored at none"
        with pytest.raises(Refused, match="may have 40 bytes") as spent:
            await mailbox.put(letter(b"x" * 35), [B])
        assert spent.value.code == "run_quota"
        await mailbox.put(letter(b"x" * 40, run=other), [C])
        await mailbox.put(letter(b"xx", run=other), [B])
        first = (await mailbox.waiting(B))[1 if other_first else 0]
        await mailbox.acknowledge(B, [first.seq])
        assert await mailbox.put(letter(b"xx"), [B]) is not None, "what is acknowledged makes room"
        await mailbox.purge(RUN)
        for _ in range(3):
            assert await mailbox.put(letter(b"xx"), [B]) is not None, "and so does the end of a run"

    check(scenario(make(Quota(letters=8, bytes=1000, run_letters=3, run_bytes=40))))


def test_a_refused_letter_may_be_put_again_under_its_name(make: Callable[..., Mailbox]) -> None:
    async def scenario(mailbox: Mailbox) -> None:
        first, second = letter(), letter()
        await mailbox.put(first, [B])
        for _ in range(2):
            with pytest.raises(Exhausted):
                await mailbox.put(second, [B])
        await mailbox.acknowledge(B, [1])
        assert await mailbox.put(second, [B]) == {B: 2}
        assert [d.letter.msg_id for d in await mailbox.waiting(B)] == [second.msg_id]

    check(scenario(make(Quota(letters=1))))


def test_the_order_of_each_sender_is_kept_among_many(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = {who: [letter(b"%d" % n, sender=who) for n in range(60)] for who in (A, C)}

        async def send(who: str) -> None:
            running = []
            for one in sent[who]:  # handed in one after the other, none waited for
                running.append(asyncio.create_task(mailbox.put(one, [B])))
                await asyncio.sleep(0)
            await asyncio.gather(*running)

        await asyncio.gather(send(A), send(C))
        found = await mailbox.waiting(B, limit=1000)
        for who in (A, C):
            assert [d.letter for d in found if d.letter.sender == who] == sent[who]

    check(scenario())


def test_a_large_letter_is_there_before_its_body_and_whole_with_it(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        large = letter(b"header", size=5_000_000)
        assert await mailbox.is_arriving(A, large.msg_id) is None
        await mailbox.put(large, [B, C])
        (found,) = await mailbox.waiting(B)
        assert not found.letter.is_whole
        assert await mailbox.is_arriving(A, large.msg_id) is True
        assert await mailbox.arriving() == [(A, large.msg_id)]
        assert await mailbox.put(large, [B, C]) is None
        assert await mailbox.arrived(A, large.msg_id, "mail/1") is True
        assert await mailbox.arrived(A, large.msg_id, "mail/2") is False, "the first to have all of it counts"
        (found,) = await mailbox.waiting(C)
        assert found.letter.is_whole and found.letter.blob == "mail/1"
        assert await mailbox.is_arriving(A, large.msg_id) is False and await mailbox.arriving() == []
        await mailbox.acknowledge(B, [1])
        assert await mailbox.acknowledge(C, [1]) == ["mail/1"]
        assert await mailbox.is_arriving(A, large.msg_id) is False, "and is not wanted again"
        assert await mailbox.arrived(A, large.msg_id, "mail/3") is False

    check(scenario())


def test_a_body_that_nobody_waits_for_any_more_is_not_taken(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        seen, gone = letter(b"header", size=5_000_000), letter(b"header", size=5_000_000)
        await mailbox.put(seen, [B])
        await mailbox.acknowledge(B, [1])
        assert await mailbox.arrived(A, seen.msg_id, "mail/1") is False
        await mailbox.put(gone, [B])
        await mailbox.purge(RUN)
        assert await mailbox.arrived(A, gone.msg_id, "mail/1") is False
        small = letter()
        await mailbox.put(small, [B])
        assert await mailbox.arrived(A, small.msg_id, "mail/1") is False
        assert (await mailbox.find(B, A, small.msg_id)).letter.blob is None

    check(scenario())


def test_many_at_once_lose_nothing(mailbox: Mailbox) -> None:
    async def scenario() -> None:
        sent = [letter(b"%d" % i) for i in range(200)]
        await asyncio.gather(*(mailbox.put(one, [B]) for one in sent))
        found = await mailbox.waiting(B, limit=1000)
        assert [d.seq for d in found] == list(range(1, 201))
        assert {d.letter.msg_id for d in found} == {one.msg_id for one in sent}

    check(scenario())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.sets(st.sampled_from([A, B, C]), min_size=1)),
        st.tuples(st.just("ack"), st.sampled_from([A, B, C]), st.integers(1, 8)),
        st.tuples(st.just("purge"), st.integers(0, 1), st.none()),
    ),
    max_size=25,
)


@pytest.mark.parametrize("form", ["sqlite", "postgresql"])
@given(steps=STEPS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_forms_agree(
    form: str, steps: list[tuple[object, ...]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whatever is done, in whatever order, the SQL form says what the memory form says."""

    async def play(mailbox: Mailbox) -> list[object]:
        seen: list[object] = []
        for kind, first, second in steps:
            if kind == "put":
                made = Letter(A, bytes([first]) * 16, bytes([first % 2]) * 32, "envelope", 1, 10, b"x", f"mail/{first}")
                seen.append(await mailbox.put(made, sorted(second)))  # type: ignore[call-overload]
            elif kind == "ack":
                seen.append(await mailbox.acknowledge(str(first), [second]))  # type: ignore[list-item]
            else:
                seen.append(sorted(await mailbox.purge(bytes([first]) * 32)))  # type: ignore[list-item]
        for recipient in (A, B, C):
            seen.append(await mailbox.waiting(recipient))
        return seen

    database = a_database(request, form, tmp_path)
    database.open()
    try:
        assert asyncio.run(play(SqlMailbox(database))) == asyncio.run(play(MemoryMailbox()))
    finally:
        database.close()


def test_a_letter_survives_the_end_of_its_process(tmp_path: Path) -> None:
    async def put(database: Database) -> None:
        await SqlMailbox(database).put(sent, [B])

    sent = letter(b"kept")
    for step in ("put", "read"):
        database = Database(tmp_path / "kept.db")
        database.open()
        if step == "put":
            asyncio.run(put(database))
        else:
            (found,) = asyncio.run(SqlMailbox(database).waiting(B))
            assert found.letter == sent
        database.close()
