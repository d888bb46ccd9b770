"""The reference names everything that there is, and what it says about values is what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flame.hub import authorisation
from flame.hub.identity.permissions import HELD, KNOWN
from flame.hub.settings import PREFIX, Settings
from flame.model import manifest
from flame.node.egress import policy
from flame.protocol import freeze

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def reference(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def row(text: str, name: str) -> str:
    """The line of a table whose first cell names it."""
    for line in text.splitlines():
        if line.startswith("|") and f"`{name}`" in line.split("|")[1]:
            return line
    raise AssertionError(f"no table has a row for {name}")


def test_every_verb_and_option_is_in_the_reference() -> None:
    script = ROOT / "scripts" / "cli_reference.py"
    written = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert written == reference("cli.md"), (
        "the command line has changed: python scripts/cli_reference.py > docs/reference/cli.md"
    )


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: str(field.name))
def test_every_setting_of_the_hub_with_its_default(field: dataclasses.Field[object]) -> None:
    line = row(reference("settings.md"), PREFIX + field.name.upper())
    if field.default not in (None, dataclasses.MISSING):
        shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert f"`{shown}`" in line


def test_every_variable_that_the_code_reads() -> None:
    text = reference("settings.md")
    found = set()
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests" / "acceptance").rglob("*.py"), ROOT / ".ci" / "run"]:
        found |= set(re.findall(r"\b(?:FLAME_[A-Z][A-Z_]*[A-Z]|REQUIRE_BACKENDS)\b", path.read_text(encoding="utf-8")))
    assert {"FLAME_NODE_DIR", "FLAME_GATEWAY", "FLAME_TEST_DATA"} <= found
    assert {name for name in found if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("field", dataclasses.fields(policy.Policy), ids=lambda field: str(field.name))
def test_every_policy_key_with_its_default_and_choices(field: dataclasses.Field[object]) -> None:
    line = row(reference("policy.md"), field.name)
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    assert f"`{shown}`" in line or f'`"{shown}"`' in line
    for choice in policy._CHOICES.get(field.name, ()):
        assert f'`"{choice}"`' in line
    for bound in policy._RANGES.get(field.name, ()):
        assert str(bound) in line


PARTS = [
    kind
    for _, kind in inspect.getmembers(manifest, dataclasses.is_dataclass)
    if isinstance(kind, type) and kind.__module__ == manifest.__name__
]


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_manifest(kind: type) -> None:
    text = reference("manifest.md").split("## `flame.toml`")[0]
    assert {field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in text} == set()


def test_every_kind_of_release() -> None:
    for kind in manifest.ReleaseKind.__args__:
        row(reference("manifest.md").split("### Kinds of releases")[1], kind)


def test_every_key_of_the_authors_file() -> None:
    text = reference("manifest.md").split("## `flame.toml`")[1]
    source = inspect.getsource(freeze)
    groups = re.findall(r"_(?:table|rows)\(author, \"(\w+)\", \{([^}]*)\}", source)
    assert len(groups) >= 5
    for table, keys in groups:
        assert f"[{table}]" in text
        assert [key for key in re.findall(r'"(\w+)"', keys) if f"`{key}`" not in text] == []


def told_to_the_log() -> set[str]:
    """The types of entries that the code writes."""
    hub = re.compile(r"log\.tell\(\s*\w+,\s*\"([a-z-]+)\"")
    node = re.compile(r"events\.add(?:_once)?\(\s*\"([a-z-]+)\"")
    found: set[str] = set()
    for path in (ROOT / "src" / "flame").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= {*hub.findall(text), *node.findall(text)}
    return found


def test_every_type_of_entry_in_the_log() -> None:
    found = told_to_the_log()
    assert {"administration", "approval", "run-started", "result"} <= found
    for name in found:
        row(reference("log.md"), name)


def test_every_route_of_the_log() -> None:
    from flame.hub.audit.routes import ROUTES

    text = reference("log.md")
    assert [route.path for route in ROUTES if route.path.replace("{", ":").replace("}", "") not in text] == []


def test_every_role_and_action_of_the_hub() -> None:
    text = reference("permissions.md")
    for name in (*authorisation.ROLES, *(action.value for action in authorisation.Action)):
        row(text, name)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_permission_with_the_roles_that_hold_it(name: str) -> None:
    holders = row(reference("permissions.md"), name).rstrip("| ").split("|")[-1]
    assert set(re.findall(r"`(\w+)`", holders)) == {role for role, held in HELD.items() if name in held}
