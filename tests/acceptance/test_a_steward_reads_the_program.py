"""Before a steward decides they read the program that would run: fetched from the hub, checked against the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from acceptance.federations import FILES, change_hub, eventually, make_sites, submitted
from flame.lab.federation import Federation
from flame.researcher.session import Submission
from unit.runtime.worlds import need_bubblewrap

CLEARING = b'# \x1b[2J nothing to see\nprint("two")\n'
PROGRAM: Mapping[str, bytes] = {**FILES, "lib/clear.py": CLEARING, "table.bin": b"\xff\xfe\x00"}
MARKED = FILES["main.py"] + b"# exchanged later\n"
AT = "hospital-0"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    need_bubblewrap()
    folder: Path = tmp_path_factory.mktemp("read")
    running = Federation.up(folder / "fed", make_sites(folder / "sites"))
    try:
        yield running
    finally:
        running.down(keep_files=True)


@pytest.fixture(scope="module")
def submission(federation: Federation) -> Submission:
    found = submitted(federation, "Read before it runs", PROGRAM)
    eventually(lambda: federation.steward(AT).show(found.analysis), "the analysis at the node")
    return found


def test_every_file_of_the_manifest_is_served_with_its_text(federation: Federation, submission: Submission) -> None:
    rows = federation.steward(AT).api.get(f"/api/analyses/{submission.analysis}/code")
    assert [row["path"] for row in rows] == [file["path"] for file in json.loads(submission.manifest)["code"]]
    of = {row["path"]: row for row in rows}
    for path, content in PROGRAM.items():
        assert of[path]["size"] == len(content)
        assert of[path]["sha256"] == hashlib.sha256(content).hexdigest()
        assert of[path]["text"] == (None if path == "table.bin" else content.decode())


def test_the_command_prints_it_and_no_byte_of_it_moves_the_cursor(
    federation: Federation, submission: Submission
) -> None:
    shown = of_the_node(federation, "show", submission.analysis, "--code")
    assert shown.exit_code == 0, shown.stderr
    for line in PROGRAM["main.py"].decode().splitlines():
        assert f" | {line}" in shown.stdout
    assert "   1 | # \N{REPLACEMENT CHARACTER}[2J nothing to see" in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "not UTF-8" in shown.stdout
    assert "import flame" not in of_the_node(federation, "show", submission.analysis).stdout


def test_the_question_comes_after_the_program(federation: Federation, submission: Submission) -> None:
    asked = of_the_node(federation, "approve", submission.analysis)
    assert asked.exit_code == 2, "nobody is at the terminal"
    assert " | import flame" in asked.stdout
    assert federation.steward(AT).show(submission.analysis)["decision"] == "pending"


@pytest.mark.parametrize("exchanged", [b"#" + MARKED[1:], MARKED + b"#", MARKED[:-1]])
def test_a_file_that_the_hub_exchanged_is_an_error_that_says_so(federation: Federation, exchanged: bytes) -> None:
    found = submitted(federation, "Exchanged at the hub", {**FILES, "main.py": MARKED})
    eventually(lambda: federation.steward(AT).show(found.analysis), "the analysis at the node")
    objects = [path for path in (federation.directory / "hub" / "objects").rglob("*") if path.is_file()]
    stored = [path for path in objects if path.read_bytes() == MARKED]
    assert stored
    for path in stored:
        path.chmod(0o600)
        path.write_bytes(exchanged)
    told = "UPDATE bucket_files SET size = ? WHERE sha256 = ?"
    assert change_hub(federation, told, len(exchanged), hashlib.sha256(MARKED).hexdigest())
    try:
        refused = of_the_node(federation, "show", found.analysis, "--code")
    finally:
        for path in stored:
            path.write_bytes(MARKED)
        change_hub(federation, told, len(MARKED), hashlib.sha256(MARKED).hexdigest())
    assert refused.exit_code != 0
    assert "manifest" in refused.stderr
    assert "import flame" not in refused.stdout


def of_the_node(federation: Federation, *arguments: str) -> Result:
    """A command as the hospital's steward types it."""
    from flame.cli.node import app as commands

    node = federation.node(AT)
    variables = {"FLAME_NODE_DIR": str(node.directory), "FLAME_NODE_TOKEN": node.steward_token}
    return CliRunner().invoke(commands, list(arguments), env=variables)
