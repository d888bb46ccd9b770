"""Hub and nodes of neighbouring releases work together, or refuse in words that say which to upgrade."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import PASSWORD, HubProcess, Node, World

from flame.model.errors import Incompatible, Malformed
from flame.node.link import Link
from flame.protocol import control
from flame.protocol.control import Hello, Unwelcome, Welcome, check_settled, settle

NEIGHBOUR = """
import sys
import flame, flame.protocol.control as control
control.OLDEST_READABLE, control.VERSION = int(sys.argv[1]), int(sys.argv[2])
flame.__version__ = sys.argv[3]
from flame.hub import Settings, serve
serve(Settings.from_env())
"""


class NeighbourHub(HubProcess):
    """A hub of another release: it speaks other versions of the protocol."""

    def __init__(self, directory: Path, oldest: int, newest: int, release: str) -> None:
        self.spoken = [str(oldest), str(newest), release]
        super().__init__(directory, admin_password=PASSWORD)

    def start(self) -> None:
        real = subprocess.Popen

        def popen(command: list[str], **kwargs: Any) -> Any:
            assert command == [sys.executable, "-m", "flame.hub"]
            return real([sys.executable, "-c", NEIGHBOUR, *self.spoken], **kwargs)

        subprocess.Popen = popen  # type: ignore[misc,assignment]
        try:
            super().start()
        finally:
            subprocess.Popen = real  # type: ignore[misc]


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Node]]:
    """A hub that speaks versions 2 to 3."""
    hub = NeighbourHub(tmp_path_factory.mktemp("later"), 2, 3, "0.9.0")
    world = World(hub)
    yield world, world.node(world.realm("hospital"))
    world.close()
    hub.stop()


@pytest.fixture(scope="module")
def earlier(world: World) -> tuple[World, Node]:
    """This hub: it speaks version 1."""
    return world, world.node(world.realm("hospital"))


async def nothing(*_: object) -> None:
    return


async def meet(world: World, node: Node) -> str:
    """What the node's link says: nothing when it is online."""
    link = Link(world.hub.url, node.client, node.key, on_deliver=nothing, on_changed=nothing, on_connected=nothing)
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(20):
            while not (link.online.is_set() or link.last_error):
                await asyncio.sleep(0.01)
        assert not link.polls
        return link.last_error
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()


def speak(monkeypatch: pytest.MonkeyPatch, oldest: int, newest: int) -> None:
    monkeypatch.setattr(control, "OLDEST_READABLE", oldest)
    monkeypatch.setattr(control, "VERSION", newest)


@pytest.mark.parametrize(("oldest", "newest"), [(2, 3), (1, 2), (3, 4), (2, 2)])
def test_a_node_that_has_a_version_in_common_works_with_a_later_hub(
    later: tuple[World, Node], monkeypatch: pytest.MonkeyPatch, oldest: int, newest: int
) -> None:
    speak(monkeypatch, oldest, newest)
    assert asyncio.run(meet(*later)) == ""


def test_a_node_that_is_too_old_is_told_to_upgrade(later: tuple[World, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, 1, 1)
    said = asyncio.run(meet(*later))
    assert "speaks version 1 of the protocol" in said and "(release 0.9.0) versions 2 to 3" in said
    assert said.endswith("Upgrade the node.")


def test_a_hub_that_is_too_old_is_named_as_the_one_to_upgrade(
    earlier: tuple[World, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(monkeypatch, 2, 3)
    said = asyncio.run(meet(*earlier))
    assert "speaks versions 2 to 3 of the protocol" in said and said.endswith("Upgrade the hub.")


def test_the_same_is_said_in_plain_requests(later: tuple[World, Node], earlier: tuple[World, Node]) -> None:
    _, node = later
    said = node.refused(426, "POST", "/messenger/hello", json={"version": 1, "release": "0.1"})
    assert said["code"] == "incompatible_release" and said["nextStep"] == "Upgrade the node."
    said = node("POST", "/messenger/hello", 200, json={"version": 4, "oldest": 1, "release": "1.1"})
    assert said["version"] == 3
    _, node = earlier
    said = node.refused(426, "POST", "/messenger/hello", json={"version": 7, "oldest": 6, "release": "3.0"})
    assert said["nextStep"] == "Upgrade the hub." and "(release 3.0)" in said["message"]
    node.refused(400, "POST", "/messenger/hello", json={"version": "one"})


@pytest.mark.parametrize(
    ("theirs", "ours", "settled"),
    [((1, 1), (1, 1), 1), ((0, 1), (1, 2), 1), ((2, 5), (1, 3), 3), ((1, 3), (3, 5), 3), ((4, 4), (1, 3), None),
     ((1, 2), (3, 5), None), ((3, 2), (1, 3), None)],
)  # fmt: skip
def test_both_settle_on_the_newest_version_that_both_know(
    monkeypatch: pytest.MonkeyPatch, theirs: tuple[int, int], ours: tuple[int, int], settled: int | None
) -> None:
    speak(monkeypatch, *ours)
    hello = Hello(theirs[1], "x", theirs[0])
    if settled is None:
        with pytest.raises(Incompatible):
            settle(hello, "here")
    else:
        assert settle(hello, "here") == settled


def test_a_node_believes_no_hub_that_settles_on_what_it_does_not_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    speak(monkeypatch, 2, 3)
    for version, older in ((4, "node"), (1, "hub")):
        with pytest.raises(Incompatible, match=f"Upgrade the {older}"):
            check_settled(Welcome(version, "0.5", 0, b""), "0.3")


def test_what_a_later_release_adds_is_no_harm() -> None:
    later = {"t": "welcome", "version": 1, "release": "9", "log_size": 0, "log_root": b"", "new": [1, 2]}
    assert isinstance(control.decode_to_node(control.encode(later)), Welcome)
    assert isinstance(control.decode_to_node(control.encode(Unwelcome("x", "y"))), Unwelcome)
    with pytest.raises(Malformed):
        control.decode_to_node(control.encode({"t": "unheard of"}))
