"""Faults happen to real processes: each module shares one federation as long as its tests leave it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from federation_world import Ward


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    found = Ward(tmp_path_factory.mktemp("ward"))
    yield found
    found.close()
