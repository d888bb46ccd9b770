"""``flame audit verify`` and ``show`` on exports that were written here: honest ones, changed ones, large ones."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flame.cli.audit import app
from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_event
from flame.crypto.translog import Frontier, TreeHead, leaf_hash, sign_tree_head
from flame.protocol.audit import Entry, export_end, export_entry, export_start, open_export, verify_export
from flame.protocol.documents import Event, SignedEvent

MANIFEST, RUN = "ab" * 32, "cd" * 32


@dataclass
class Log:
    """A hub's log as it grows; `write` exports it, signed by the hub over what is there."""

    hub: IdentityKey = field(default_factory=IdentityKey.generate)
    nodes: dict[str, IdentityKey] = field(default_factory=dict)
    leaves: list[bytes] = field(default_factory=list)

    def tell(self, type_: str, subject: str, facts: Mapping[str, Any], key: IdentityKey | None = None) -> None:
        key, number = key or self.hub, len(self.leaves)
        time = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}Z"
        event = Event(type_, key.public.fingerprint.hex(), subject, time, dict(facts), f"{number:032x}")
        self.leaves.append(SignedEvent(event.encoded().decode(), sign_event(key, event.digest).hex()).leaf())

    def enrol(self, node: str) -> IdentityKey:
        key = self.nodes[node] = IdentityKey.generate()
        facts = {"fingerprint": key.public.fingerprint.hex(), "publicKey": key.public.hex_pem, "by": "an admin"}
        self.tell("enrolment", node, facts)
        return key

    @property
    def head(self) -> tuple[int, str]:
        return len(self.leaves), Frontier.of(map(leaf_hash, self.leaves)).root().hex()

    def write(self, path: Path, hidden: tuple[int, ...] = ()) -> Path:
        head = TreeHead(self.head[0], bytes.fromhex(self.head[1]), 1)
        with path.open("wb") as file:
            file.write(export_start(self.hub.public, head, sign_tree_head(self.hub, head)))
            for place, leaf in enumerate(self.leaves):
                entry = Entry.hidden(leaf_hash(leaf)) if place in hidden else Entry.shown(leaf)
                file.write(export_entry(entry, first=place == 0))
            file.write(export_end())
        return path

    @property
    def fingerprint(self) -> str:
        return self.hub.public.fingerprint.hex()


@pytest.fixture
def log() -> Log:
    """Two hospitals approve; one of them runs, and its result leaves."""
    log = Log()
    aachen, _ = log.enrol("aachen"), log.enrol("bonn")
    log.tell("proposal", "lungs", {"digest": "12" * 32, "by": "ada"})
    log.tell("submission", "ages", {"manifest": MANIFEST, "by": "ada"})
    for node in ("aachen", "bonn"):
        facts = {"subject": "analysis", "digest": MANIFEST, "node": node, "decision": "approved", "signed": True}
        log.tell("approval", "ages", facts)
    log.tell("start", "ages", {"run": RUN, "number": 1, "manifest": MANIFEST})
    log.tell("run-started", RUN, {"manifest": MANIFEST}, aachen)
    log.tell("result", RUN, {"ordinal": 0, "bytes": 812, "sha256": "ef" * 32}, aachen)
    log.tell("run-ended", RUN, {"state": "ended", "code": "", "left": [["sum", 3, 576, 3]]}, aachen)
    return log


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_report_says_who_approved_what_ran_and_what_left(log: Log, tmp_path: Path) -> None:
    said = call("verify", log.write(tmp_path / "log.json"), "--hub", log.fingerprint)
    assert said.exit_code == 0, said.stderr
    for words in (
        "Project lungs", "Analysis ages", "locked by ada: manifest abababababab…",
        "approved for node bonn, signed by the node", "ordered by the researcher: run number 1",
        "started at node aachen", "result 0 handed over by node aachen: 812 bytes sealed",
        "ended at node aachen; left: sum ×3, 576 bytes", "The log verifies.",
    ):  # fmt: skip
        assert words in said.stdout, words
    assert "To look at" not in said.stdout


def test_what_is_missing_is_named(log: Log, tmp_path: Path) -> None:
    other = "11" * 32
    log.tell("run-started", other, {"manifest": "99" * 32}, log.nodes["bonn"])
    log.tell("run-ended", RUN, {"state": "ended"}, IdentityKey.generate())
    said = call("verify", log.write(tmp_path / "log.json"), "--hub", log.fingerprint, "--json")
    gaps = json.loads(said.stdout)["gaps"]
    assert "Run 111111111111 was started, and no order for it stands in the log." in gaps
    assert "Run 111111111111 was started at node bonn without its signed approval in the log." in gaps
    assert "Run 111111111111 was started at node bonn, and no end of it is logged there." in gaps
    assert json.loads(said.stdout)["signers not known here"] == 1


def test_an_earlier_export_names_the_first_entry_that_is_another_one(log: Log, tmp_path: Path) -> None:
    """The hub signs whatever it likes: what it cannot do is agree with what was exported before."""
    before, size = log.write(tmp_path / "before.json"), len(log.leaves)
    log.tell("unlock", "ages", {"by": "ada"})
    now = log.write(tmp_path / "now.json")
    assert call("verify", now, "--since", before).exit_code == 0
    forged = Log(log.hub, log.nodes, list(log.leaves))
    forged.leaves[4], forged.leaves[5] = forged.leaves[5], forged.leaves[4]
    changed = forged.write(tmp_path / "changed.json")
    assert call("verify", changed, "--hub", log.fingerprint).exit_code == 0, "by itself it is a fine log"
    said = call("verify", changed, "--since", before, "--json")
    document = json.loads(said.stdout)
    assert (said.exit_code, document["verified"], document["first bad entry"]) == (3, False, 4)
    for_people = call("verify", changed, "--since", before)
    assert for_people.exit_code == 3 and "Entry 4 is another one than in the earlier export." in for_people.stderr
    forged.leaves[:] = log.leaves[: size - 2]
    cut = call("verify", forged.write(tmp_path / "cut.json"), "--since", before)
    assert cut.exit_code == 3 and f"Entry {size - 2} and what follows it stand in the earlier export" in cut.stderr


def test_a_kept_head_is_enough_and_narrows_the_place_down(log: Log, tmp_path: Path) -> None:
    early = Log(log.hub, log.nodes, log.leaves[:3]).head
    late = log.head
    heads = [part for size, root in (early, late) for part in ("--head", f"{size}:{root}")]
    log.tell("unlock", "ages", {"by": "ada"})
    said = call("verify", log.write(tmp_path / "now.json"), *heads)
    assert said.exit_code == 0 and "The hub's key was not named" in said.stdout
    del log.leaves[5]
    said = call("verify", log.write(tmp_path / "forged.json"), *heads, "--hub", log.fingerprint)
    assert said.exit_code == 3
    assert f"is one of the entries 3 to {late[0] - 1}" in " ".join(said.stderr.split())
    assert late[1] in said.stderr, "both heads are named"


def test_an_edited_entry_is_named_by_its_own_signature(log: Log, tmp_path: Path) -> None:
    log.leaves[6] = log.leaves[6].replace(b"approved", b"rejected") if b"approved" in log.leaves[6] else log.leaves[6]
    log.leaves[8] = log.leaves[8].replace(b"812", b"813")
    said = call("verify", log.write(tmp_path / "log.json"), "--hub", log.fingerprint, "--json")
    assert said.exit_code == 3 and json.loads(said.stdout)["first bad entry"] == 8


def test_a_log_is_not_compared_with_itself(log: Log, tmp_path: Path) -> None:
    path = log.write(tmp_path / "log.json")
    said = call("verify", path)
    assert said.exit_code == 2 and "--since" in said.stderr
    assert call("verify", path, "--hub", "00" * 32).exit_code == 3
    assert call("verify", path, "--head", "x:y").exit_code == 2
    assert call("verify", path, "--head", "3:abcd").exit_code == 2
    assert call("verify", tmp_path / "nothing.json", "--hub", log.fingerprint).exit_code == 4


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"version":1,"leaves":[\n"x"\n'])
def test_what_is_no_export_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(content)
    said = call("verify", path, "--hub", "00" * 32)
    assert said.exit_code == 2, (said.stdout, said.stderr)


def test_an_export_that_is_cut_off_is_no_log(log: Log, tmp_path: Path) -> None:
    path = log.write(tmp_path / "log.json")
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:5]) + b"\n")
    said = call("verify", path, "--hub", log.fingerprint)
    assert said.exit_code == 2 and "cut off" in said.stderr


def test_entries_of_others_are_hashes_and_the_whole_still_holds(log: Log, tmp_path: Path) -> None:
    said = call("verify", log.write(tmp_path / "log.json", hidden=(2, 3)), "--hub", log.fingerprint, "--json")
    document = json.loads(said.stdout)
    assert (said.exit_code, document["entries not shown to you"], document["entries"]) == (0, 2, len(log.leaves))


def test_an_export_that_another_program_has_formatted_is_read(log: Log, tmp_path: Path) -> None:
    path = log.write(tmp_path / "log.json")
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert call("verify", path, "--hub", log.fingerprint).exit_code == 0


def test_show_tells_of_one_analysis(log: Log, tmp_path: Path) -> None:
    path = log.write(tmp_path / "log.json")
    said = call("show", path, "--analysis", "ages")
    assert said.exit_code == 0 and "Analysis ages" in said.stdout and "Project" not in said.stdout
    assert call("show", path, "--analysis", "other").exit_code == 4
    assert json.loads(call("show", path, "--json").stdout)["counts"]["approval"] == 2


def test_a_long_log_is_checked_in_little_memory(tmp_path: Path) -> None:
    log = Log()
    for number in range(2000):
        log.tell("environment", f"image {number}", {"path": "x" * 3000, "digest": "00" * 32})
    path = log.write(tmp_path / "log.json")
    size, head = path.stat().st_size, log.head
    del log.leaves
    assert size > 6_000_000
    tracemalloc.start()
    with open_export(path) as export:
        report = verify_export(export, log.hub.public, each=lambda index, event: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.ok and (report.size, report.root.hex()) == head
    assert peak < size / 6, f"{peak} bytes for a file of {size}"
