"""A node at rest has not imported what only a run, a page or a command needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "pyarrow",
    "pandas",
    "scipy",
    "typer",
    "rich",
    "fastapi",
    "sqlalchemy",
    "aiohttp",
    "pydantic",
    "jinja2",
    "hypothesis",
)


def imported(statement):
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "flame.node.gateway.server",
        "flame.node.egress.guard",
        "flame.node.egress.policy",
        "flame.node.data.sources",
        "flame.node.data.snapshot",
        "flame.node.local.stewards",
        "flame.node.local.port",
        "flame.node.local.client",
        "flame.privacy.release",
        "flame.privacy.sums",
    ],
)
def test_nothing_heavy_is_imported(module):
    assert not imported(f"import {module}") & set(HEAVY)


def test_the_local_interface_needs_aiohttp_and_nothing_heavier():
    assert imported("import flame.node.local.server") & set(HEAVY) == {"aiohttp"}


def test_the_reader_of_sources_starts_without_numpy():
    assert not imported("import flame.node.data.reader") & {"numpy", "pyarrow", "aiohttp"}


def test_the_commands_import_the_node_only_when_they_run():
    found = imported("import flame.cli.node")
    assert not found & {"numpy", "pyarrow", "aiohttp", "msgspec", "cryptography"}
