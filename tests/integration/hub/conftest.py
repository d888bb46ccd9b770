"""One hub process per module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import PASSWORD, HubProcess, Study, World


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD)
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def world(hub: HubProcess) -> Iterator[World]:
    world = World(hub)
    yield world
    world.close()


@pytest.fixture
def study(world: World) -> Study:
    return Study.set_up(world)
