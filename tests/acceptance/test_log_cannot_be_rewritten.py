"""Whoever holds the hub's database can change the log, and cannot hide it: an export, and a head kept from before, show where."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acceptance.federations import log_of, make_sites, submitted
from flame.crypto.keys import PublicKey
from flame.lab.federation import Federation
from flame.lab.processes import Child, end, wait_for_file
from flame.protocol.audit import KnownHead, Report, verify_export
from flame.researcher.api import Api


@dataclass(frozen=True)
class Kept:
    """A hub that was stopped, and what an auditor had kept before."""

    hub: Path
    key: PublicKey
    signers: dict[str, PublicKey]
    before: dict[str, Any]
    admin: tuple[str, str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("log")
    federation = Federation.up(folder / "fed", make_sites(folder / "sites"))
    try:
        federation.approve(submitted(federation, "To be logged"))
        before = log_of(federation)
    finally:
        federation.down(keep_files=True)
    signers = {node.fingerprint: PublicKey.from_hex_pem(node.public_key) for node in federation.nodes}
    admin = (federation.admin.username, federation.admin.password)
    yield Kept(federation.directory / "hub", PublicKey.from_hex_pem(federation.hub_key), signers, before, admin)


def rewritten(kept: Kept, folder: Path, *statements: str) -> Report:
    """The stopped hub's database is changed; a hub starts on it; its export is checked with what was kept."""
    hub = folder / "hub"
    shutil.copytree(kept.hub, hub)
    with closing(sqlite3.connect(hub / "hub.db")) as connection, connection:
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
    return check(kept, exported(kept, hub))


def exported(kept: Kept, hub: Path) -> dict[str, Any]:
    (hub / "hub.json").unlink(missing_ok=True)
    child = Child(["-m", "flame.hub", str(hub), "0"], hub / "again.log", {})
    try:
        url = str(wait_for_file(hub / "hub.json", child)["url"])
        with closing(Api.login(url, *kept.admin)) as api:
            found: dict[str, Any] = api.get("/core/audit/export")
            return found
    finally:
        end(child.pid)
        child.let_go()


def check(kept: Kept, export: dict[str, Any]) -> Report:
    head = kept.before["head"]
    known = [KnownHead(head["size"], bytes.fromhex(head["root"]))]
    return verify_export(json.dumps(export).encode(), kept.key, known, kept.signers)


def test_an_honest_log_verifies(kept: Kept, tmp_path: Path) -> None:
    report = rewritten(kept, tmp_path)
    assert report.problems == []
    assert report.ok
    assert report.heads == 1
    assert report.verified == report.size > 10, "every leaf's signature was checked"
    types = {event.type for event in report.events}
    assert {"confirmation", "signature"} <= types


def test_an_edited_leaf_is_found_and_named(kept: Kept, tmp_path: Path) -> None:
    """One character of an event, the stored hash with it: the signature names the place, the head the log."""
    place = 5
    text = kept.before["leaves"][place]
    at = text.index("nonce") + 20
    other = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
    report = rewritten(kept, tmp_path, f"UPDATE log_leaves SET leaf = CAST('{other}' AS BLOB) WHERE idx = {place}")
    assert not report.ok
    assert any(problem.startswith(f"Entry {place} ") for problem in report.problems), report.problems


def test_a_deleted_leaf_is_found(kept: Kept, tmp_path: Path) -> None:
    report = rewritten(kept, tmp_path, "DELETE FROM log_leaves WHERE idx = 6")
    assert not report.ok
    size = len(kept.before["leaves"])
    assert any(f"{size} entries" in problem for problem in report.problems), report.problems


def test_a_cut_end_is_found_by_the_head_that_was_kept(kept: Kept, tmp_path: Path) -> None:
    last = len(kept.before["leaves"]) - 1
    report = rewritten(kept, tmp_path, f"DELETE FROM log_leaves WHERE idx >= {last}")
    assert not report.ok
    assert any("cut" in problem for problem in report.problems), report.problems


def test_exchanged_leaves_are_found(kept: Kept, tmp_path: Path) -> None:
    report = rewritten(
        kept,
        tmp_path,
        "UPDATE log_leaves SET idx = 1000000 WHERE idx = 3",
        "UPDATE log_leaves SET idx = 3 WHERE idx = 4",
        "UPDATE log_leaves SET idx = 4 WHERE idx = 1000000",
    )
    assert not report.ok
    assert any("root" in problem or "beginning" in problem for problem in report.problems), report.problems


def test_the_command_says_so_too(kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``flame audit verify FILE``: exit code 0, or 3 and the places."""
    from flame.cli.audit import verify

    honest, forged = tmp_path / "honest.json", tmp_path / "forged.json"
    honest.write_text(json.dumps(kept.before))
    leaves = list(kept.before["leaves"])
    leaves[2], leaves[3] = leaves[3], leaves[2]
    forged.write_text(json.dumps({**kept.before, "leaves": leaves}))
    fingerprint = kept.key.fingerprint.hex()
    verify(honest, hub=fingerprint, json=True)
    assert json.loads(capsys.readouterr().out)["verified"] is True
    with pytest.raises(SystemExit) as ended:
        verify(forged, hub=fingerprint)
    assert ended.value.code == 3
    assert "root" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        verify(honest, hub="00" * 32)
    assert ended.value.code == 3
    assert "another key" in capsys.readouterr().err
