"""What a store of objects promises, as files and in a bucket of S3."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flame.model.errors import Conflict, Exhausted, Invalid, Malformed, NotFound, Unavailable
from flame.storage.objects import FileSpool, LocalObjects, Objects, Spooled
from flame.storage.s3 import S3Objects, read_secrets
from s3_world import SECRETS, S3Server, running

FORMS = ("files", "S3")
Make = Callable[..., Objects]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running() as found:
        yield found


@pytest.fixture(params=FORMS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens the same store, as often as wanted."""
    request.node.user_properties.append(("form", f"objects in {request.param}"))
    if request.param == "files":
        return lambda **more: LocalObjects(tmp_path / "objects", **more)
    url = request.getfixturevalue("server").bucket()
    return lambda **more: S3Objects(url, tmp_path / "spool", secrets=SECRETS, **more)


@pytest.fixture
def objects(make: Make) -> Objects:
    return make()


async def spooled(objects: Objects, *pieces: bytes) -> Spooled:
    spool = objects.spool()
    for piece in pieces:
        await spool.write(piece)
    return await spool.finish()


async def content(objects: Objects, key: str) -> bytes:
    return b"".join([piece async for piece in objects.stream(key)])


def keys(objects: Objects) -> list[str]:
    return sorted(one.key for one in objects.kept())


def files_below(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()]


def test_a_body_comes_back_as_it_went_in(objects: Objects, tmp_path: Path) -> None:
    async def scenario() -> None:
        data = os.urandom(9_500_000)  # more than one part of an upload
        body = await spooled(objects, data[:1000], data[1000:5_000_000], data[5_000_000:])
        assert (body.size, body.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        with pytest.raises(NotFound):
            await content(objects, "files/one")
        await objects.keep(body, "files/one")
        assert await content(objects, "files/one") == data
        with objects.open("files/one") as file:
            assert file.read() == data
            assert os.fstat(file.fileno()).st_size == len(data)
        (one,) = objects.kept()
        assert (one.key, one.size) == ("files/one", len(data))
        assert files_below(tmp_path / "spool") + files_below(tmp_path / "objects" / "spool") == []

    asyncio.run(scenario())


def test_nothing_is_an_object_too(objects: Objects) -> None:
    async def scenario() -> None:
        await objects.keep(await spooled_empty(objects), "files/empty")
        assert await content(objects, "files/empty") == b""

    async def spooled_empty(objects: Objects) -> Spooled:
        spool = objects.spool()
        return await spool.finish()

    asyncio.run(scenario())


def test_a_name_is_given_once_unless_it_is_the_content(objects: Objects) -> None:
    async def scenario() -> None:
        first, second = await spooled(objects, b"one"), await spooled(objects, b"two")
        await objects.keep(first, "mail/a")
        with pytest.raises(Conflict):
            await objects.keep(second, "mail/a")
        assert await content(objects, "mail/a") == b"one"
        digest = hashlib.sha256(b"same").hexdigest()
        for _ in range(2):
            objects.keep_blocking(await spooled(objects, b"same"), f"files/{digest}", same=True)
        assert await content(objects, f"files/{digest}") == b"same"
        assert objects.usage.used == len(b"one") + len(b"two") + len(b"same")

    asyncio.run(scenario())


def test_what_is_removed_is_gone_and_removing_it_again_is_no_error(objects: Objects) -> None:
    async def scenario() -> None:
        await objects.keep(await spooled(objects, b"x"), "files/a")
        await objects.remove("files/a")
        await objects.remove("files/a")
        objects.remove_blocking("files/never")
        for read in (lambda: content(objects, "files/a"),):
            with pytest.raises(NotFound):
                await read()
        with pytest.raises(NotFound):
            objects.open("files/a")
        assert keys(objects) == []
        assert objects.usage.used == 0

    asyncio.run(scenario())


def test_what_was_kept_is_there_for_the_next_process_and_spools_of_the_dead_are_cleared(
    make: Make, tmp_path: Path
) -> None:
    async def scenario() -> None:
        first = make()
        await first.keep(await spooled(first, b"kept"), "files/a")
        await spooled(first, b"never named")
        second = make()
        assert await content(second, "files/a") == b"kept"
        left = files_below(tmp_path)
        assert [path.read_bytes() for path in left if "spool" in path.parts] == [b"never named"]  # the first one lives
        os.close(first._mine)  # type: ignore[attr-defined]
        make()
        assert [path for path in files_below(tmp_path) if "spool" in path.parts] == []

    asyncio.run(scenario())


def test_a_full_store_refuses_and_takes_again_when_there_is_room(make: Make) -> None:
    async def scenario() -> None:
        objects = make(bytes_max=3_000_000)
        await objects.keep(await spooled(objects, bytes(2_000_000)), "files/a")
        spool: FileSpool = objects.spool()
        with pytest.raises(Exhausted):
            await spool.write(bytes(2_000_000))
            await spool.finish()
        await spool.discard()
        await objects.remove("files/a")
        await objects.keep(await spooled(objects, bytes(2_000_000)), "files/b")
        assert make(bytes_max=3_000_000).usage.used == 2_000_000

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["../a", "files/../../etc", "/files/a", "files//a", ".hidden", "files/a b", "", "a\0"])
def test_a_key_stays_within_the_store(objects: Objects, key: str) -> None:
    async def scenario() -> None:
        body = await spooled(objects, b"x")
        for act in (lambda: objects.keep(body, key), lambda: content(objects, key)):
            with pytest.raises(Malformed):
                await act()

    asyncio.run(scenario())


def test_a_store_that_is_away_is_said_in_words(tmp_path: Path) -> None:
    objects = S3Objects(
        "s3://bucket?endpoint=http://127.0.0.1:9&region=us-east-1", tmp_path, secrets=SECRETS, retry=False
    )
    with pytest.raises(Unavailable):
        objects.remove_blocking("files/a")


@pytest.mark.parametrize("url", ["http://bucket", "s3://", "s3://key:s3cret@bucket", "s3://bucket?secret=s3cret"])
def test_a_wrong_url_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        S3Objects(url, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_credentials_come_from_a_file_that_holds_them_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    path.write_text('access_key_id = "a"\nsecret_access_key = "s3cret"\n')
    assert read_secrets(path) == {"access_key_id": "a", "secret_access_key": "s3cret"}
    path.write_text('secret_access_key = "s3cret"\n')
    with pytest.raises(Invalid) as caught:
        read_secrets(path)
    assert "s3cret" not in str(caught.value)
