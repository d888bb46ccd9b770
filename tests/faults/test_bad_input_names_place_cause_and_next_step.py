"""Bad input: the error says where, why and what to do next, and nobody else's run is harmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from federation_world import (
    AGES_PROGRAM,
    HOSPITALS,
    LIVING,
    Researcher,
    eventually,
    federation_in,
    program,
    run_state,
    sandboxes,
)
from flame.lab.federation import Federation, Outcome
from flame.lab.stewards import Steward
from flame.model.errors import Exhausted, FlameError, Invalid, NotAuthenticated
from flame.researcher.api import Api

JOIN_SECONDS = 20
NODES = (*HOSPITALS, "aggregator")
TABLES = {
    "Aachen": "age,number,height,weight\n34,0,170,70\n51,1,181,90\n68,2,165,61\n",
    "Bonn": "age,number,weight\n29,0,72\n44,1,80\n57,2,95\n",
    "Cologne": "age,number,height,weight\n61,0,171,heavy\n63,1,169,81\n75,2,160,66\n",
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    variables = {name: {"FLAME_NODE_JOIN_SECONDS": str(JOIN_SECONDS)} for name in NODES}
    with federation_in(tmp_path_factory.mktemp("bad"), TABLES, variables) as found:
        yield found


def with_data(columns: str, source: bytes = AGES_PROGRAM, **more: int) -> dict[str, bytes]:
    files = program(source, **more)
    files["flame.toml"] += f"\n[[data]]\ncolumns = [{columns}]\n".encode()
    return files


def at_a_hospital(code: str) -> bytes:
    """A program that does something at the hospital of the 29-year-old (Bonn), and the usual elsewhere."""
    inner = AGES_PROGRAM.decode().replace(
        '        ages = federation.data().numbers("age")\n',
        '        ages = federation.data().numbers("age")\n'
        "        if 29 in ages:\n" + "".join(f"            {line}\n" for line in code.splitlines()),
    )
    assert inner != AGES_PROGRAM.decode()
    return inner.encode()


def ended_beside_another(federation: Federation, files: dict[str, bytes]) -> Outcome:
    """Run something bad, and something good while it goes on: the good one is not harmed."""
    researcher = Researcher(federation)
    bad = researcher.started(files, "Bad")
    good = researcher.run(program(), "Good")
    assert good.status == "executed", good.reason
    return researcher.finish(bad)


BAD_PROGRAMS = {
    "a column that one hospital does not have": (
        with_data('"age", "height"'),
        ("Bonn", "height"),
    ),
    "text in a column of numbers": (
        with_data('"age", "weight"', AGES_PROGRAM.replace(b'numbers("age")', b'numbers("weight")')),
        ("Cologne", "The column 'weight' holds text where numbers are needed", "Code it as numbers"),
    ),
    "an outcome that is not binary at one hospital": (
        with_data(
            '"age", "number", "weight"',
            AGES_PROGRAM.replace(
                b'ages = federation.data().numbers("age")\n',
                b'ages = federation.data().numbers("age")\n'
                b"        from flame.methods.design import binary_design\n"
                b'        binary_design(federation.data(), "number", ["age"])\n',
            ),
        ),
        ("The outcome 'number' is not binary", "Code it as 0/1 at the source"),
    ),
    "a program that raises": (
        program(at_a_hospital("raise ValueError('patient 4711 is strange')")),
        ("Bonn", "ValueError", "main.py, line", "steward"),
    ),
    "a program that exits with an error": (
        program(at_a_hospital("import os\nos._exit(3)")),
        ("Bonn", "exit code 3", "steward"),
    ),
    "a program that eats memory": (
        program(at_a_hospital("eaten = []\nwhile True:\n    eaten.append(b'x' * 50_000_000)"), memory=256),
        ("Bonn", "emory"),
    ),
    "a program that prints without end": (
        program(at_a_hospital("while True:\n    print('x' * 100_000)")),
        ("Bonn", "output"),
    ),
    "a hospital that ends without contributing": (
        program(at_a_hospital("import sys\nfederation.finish()\nsys.exit(0)")),
        ("aggregator", "Bonn", "ended without sending"),
    ),
    "an aggregator that submits nothing": (
        program(AGES_PROGRAM.replace(b"        federation.submit(", b"        str(")),
        ("aggregator", "without submitting a result"),
    ),
}


@pytest.mark.parametrize("case", BAD_PROGRAMS)
def test_a_bad_program_or_table_ends_everywhere_and_says_why(federation: Federation, case: str) -> None:
    files, words = BAD_PROGRAMS[case]
    outcome = ended_beside_another(federation, files)
    assert outcome.status == "failed"
    for word in words:
        assert word in outcome.reason
    assert "4711" not in outcome.reason
    assert_gone_everywhere(federation, outcome.run)


def assert_gone_everywhere(federation: Federation, run: str) -> None:
    for node in federation.nodes:
        ended = eventually(
            lambda node=node: (  # type: ignore[misc]
                found if (found := run_state(federation, node.name, run)) and found["state"] not in LIVING else None
            ),
            f"{node.name} ended the run",
        )
        assert ended["state"] == "ended" or ended["reason"], node.name
    with suppress(AssertionError):
        eventually(lambda: sandboxes(federation) == [], "the sandboxes are gone")
    assert sandboxes(federation) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_that_never_ends_is_ended_at_its_time_limit(federation: Federation) -> None:
    outcome = ended_beside_another(
        federation, program(at_a_hospital("import time\nwhile True:\n    time.sleep(1)"), minutes=1)
    )
    assert outcome.status == "failed"
    assert "time" in outcome.reason
    assert "flame.toml" in outcome.reason or "Bonn" in outcome.reason
    assert_gone_everywhere(federation, outcome.run)


def test_what_may_not_leave_the_steward_reads_at_the_node(federation: Federation) -> None:
    files, _ = BAD_PROGRAMS["text in a column of numbers"]
    outcome = Researcher(federation).run(files, "Bad")
    kept = federation.steward("Cologne").api.get(f"/api/runs/{outcome.run}/output")["output"]
    assert "weight" in kept


# --- what is refused before anything runs ---------------------------------------------------------------------------


def test_an_unknown_entry_point_is_named_before_anything_is_uploaded(federation: Federation) -> None:
    session = federation.session
    with pytest.raises(Invalid, match="nope") as said:
        session.submit(
            federation.project,
            program(),
            entrypoint="nope.py",
            title="Bad",
            image=federation.image,
            environment=federation.environment,
            nodes=federation.known_nodes,
        )
    assert "main.py" in said.value.next_step


def test_an_unknown_entry_point_on_the_command_line(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_bytes(AGES_PROGRAM)
    told = flame("dev", "submit", str(tmp_path), "--entrypoint", "nope.py", "--dir", str(federation.directory))
    assert told.returncode == 4
    assert "nope.py" in told.stderr
    assert "It has: main.py" in told.stderr


def test_a_failed_run_on_the_command_line(federation: Federation, tmp_path: Path) -> None:
    for name, content in program(at_a_hospital("raise ValueError('patient 4711 is strange')")).items():
        (tmp_path / name).write_bytes(content)
    out = ("--out", str(tmp_path / "out"))
    told = flame("dev", "submit", str(tmp_path), "--dir", str(federation.directory), *out, "--json")
    assert told.returncode == 7
    shown = json.loads(told.stdout)
    assert shown["status"] == "failed"
    assert "Bonn" in shown["reason"]
    assert "flame node log" in told.stderr
    assert str(federation.node("Bonn").directory) in told.stderr
    assert "4711" not in told.stdout + told.stderr


def test_an_analysis_without_an_entry_point_is_not_locked_and_the_hub_says_why(federation: Federation) -> None:
    api = federation.session.api
    body = {"name": "no-entry-point", "projectId": federation.project, "masterImageId": federation.image}
    analysis = api.post("/core/analyses", body)["data"]["id"]
    with pytest.raises(FlameError) as said:
        api.post(f"/core/analyses/{analysis}/command", {"command": "configurationLock"})
    assert said.value.status in (400, 409)
    assert said.value.message
    assert said.value.next_step


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[analysis]\npurpose = = 1\n", ("flame.toml", "line 2")),
        (b"\xff\xfe", ("flame.toml", "cannot be read")),
        (b"[analyses]\n", ("flame.toml", "analyses")),
        (b"[[releases]]\nkind = 'everything'\n", ("everything",)),
        (b"[resources]\nmemory_mb = 'much'\n", ("flame.toml", "resources.memory_mb")),
    ],
    ids=["not TOML", "not text", "unknown table", "unknown release", "wrong type"],
)
def test_an_unreadable_flame_toml_is_refused_by_the_hub(
    federation: Federation, content: bytes, words: tuple[str, ...]
) -> None:
    with pytest.raises(FlameError) as said:
        Researcher(federation).submit({**program(), "flame.toml": content})
    for word in words:
        assert word in str(said.value)
    assert said.value.next_step


def test_a_wrong_password_at_the_hub(federation: Federation) -> None:
    with pytest.raises((NotAuthenticated, Invalid)) as said:
        Api.login(federation.hub_url, federation.researcher.username, "not the password")
    assert said.value.message
    assert said.value.next_step
    assert "not the password" not in str(said.value)


def test_a_wrong_token_at_a_nodes_local_interface(federation: Federation) -> None:
    directory = federation.node("Bonn").directory
    with pytest.raises(NotAuthenticated, match="token") as said:
        Steward(directory, "not-a-token").status()
    assert "flame node steward add" in said.value.next_step
    told = flame("node", "status", "--dir", str(directory), FLAME_NODE_TOKEN="not-a-token")
    assert told.returncode == 5
    assert "flame node steward add" in told.stderr


def test_a_hub_that_is_not_there(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(FlameError, match="cannot be reached") as said:
        Api.login("http://127.0.0.1:9", "someone", "something")
    assert said.value.next_step


# --- who is away ----------------------------------------------------------------------------------------------------


def test_a_hospital_that_is_offline_is_named_when_the_others_give_up(federation: Federation) -> None:
    researcher = Researcher(federation)
    submission = researcher.prepared(program(), "Without Bonn")
    federation.stop("Bonn")
    try:
        researcher.start(submission)
        outcome = researcher.finish(submission)
    finally:
        federation.restart("Bonn", {"FLAME_NODE_JOIN_SECONDS": str(JOIN_SECONDS)})
    assert outcome.status == "failed"
    assert "Bonn did not join the run" in outcome.reason
    assert "Ask whether the node is running" in outcome.reason
    eventually(lambda: run_state(federation, "Bonn", submission.run), "Bonn takes up the order that waited for it")
    assert_gone_everywhere(federation, submission.run)
    good = researcher.run(program(), "Good")
    assert good.status == "executed", good.reason


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hospital_that_goes_away_and_does_not_return_is_named(federation: Federation) -> None:
    researcher = Researcher(federation)
    source = at_a_hospital("import time\ntime.sleep(600)")
    submission = researcher.started(program(source, minutes=1), "Bonn goes away")
    eventually(lambda: (run_state(federation, "Bonn", submission.run) or {}).get("state") == "running", "Bonn runs")
    os.kill(federation.pid_of("Bonn"), signal.SIGKILL)
    try:
        outcome = researcher.finish(submission)
    finally:
        federation.restart("Bonn", {"FLAME_NODE_JOIN_SECONDS": str(JOIN_SECONDS)})
    assert outcome.status == "failed"
    assert "Bonn" in outcome.reason
    assert "time" in outcome.reason
    assert_gone_everywhere(federation, submission.run)


# --- a full disk ----------------------------------------------------------------------------------------------------


def test_a_full_hub_refuses_what_it_cannot_keep_and_goes_on(federation: Federation) -> None:
    """The cap stands for the disk: a large program is refused, a small one still runs."""
    used = sum(path.stat().st_size for path in (federation.directory / "hub").rglob("*") if path.is_file())
    federation.restart("hub", {"FLAME_HUB_STORAGE_BYTES_MAX": str(used + (8 << 20))})
    try:
        large = {**program(), "large.bin": bytes(used + (9 << 20))}
        with pytest.raises(Exhausted, match="storage is full") as said:
            Researcher(federation).submit(large, "Large")
        assert said.value.status == 507
        assert "ask the hub's operator" in said.value.next_step
        good = Researcher(federation).run(program(), "Small")
        assert good.status == "executed", good.reason
    finally:
        federation.restart("hub")


def flame(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flame", *arguments],
        env={**os.environ, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
