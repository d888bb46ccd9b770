from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame.sdk import Federation, connect
from unit.sdk.gateway_in_memory import AGGREGATOR, Gateway, Run

TABLES: dict[str, dict[str, Any]] = {
    "node-a": {"age": np.array([40.0, 50.0]), "ward": ["north", None]},
    "node-b": {"age": np.array([60.0]), "ward": ["south"]},
}


@pytest.fixture
def run() -> Run:
    return Run(TABLES, {"outcome": "ill"})


@pytest.fixture
def join(run: Run) -> Iterator[Callable[[str], Federation]]:
    """Join the run as a node; several nodes may live in one test."""
    gateways: list[Gateway] = []
    joined: list[Federation] = []
    with tempfile.TemporaryDirectory(prefix="fl-") as short:

        def as_node(node: str) -> Federation:
            path = Path(short) / node
            gateways.append(Gateway(run, node, path))
            joined.append(connect(str(path)))
            return joined[-1]

        for node in (*TABLES, AGGREGATOR):
            assert node.startswith("node-")
        yield as_node
        for federation in reversed(joined):
            federation.close()
        run.end()
        for gateway in gateways:
            gateway.close()
