"""What an analysis gives to people waits at its aggregator for a steward: released, it can be opened; refused, never."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from acceptance.federations import AUTHOR, FILES, approved, eventually, make_sites, submitted
from flame.cli.node import app as commands
from flame.crypto.keys import PublicKey
from flame.lab.federation import Federation
from flame.researcher.session import Progress, ResultFile, Submission
from unit.runtime.worlds import need_bubblewrap

HELD = {**FILES, "flame.toml": AUTHOR.replace(b'release = "auto"', b'release = "hold"')}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    need_bubblewrap()
    folder: Path = tmp_path_factory.mktemp("held")
    running = Federation.up(folder / "fed", make_sites(folder / "sites"))
    try:
        yield running
    finally:
        running.down(keep_files=True)


def test_the_steward_that_the_lab_plays_releases_what_is_held(federation: Federation) -> None:
    outcome = federation.submit(HELD, entrypoint="main.py", title="Held and released by the lab")
    assert (outcome.status, len(outcome.results)) == ("executed", 1), outcome.reason


def test_a_released_result_is_opened_by_the_researcher(federation: Federation) -> None:
    submission, held = ended_with_a_held_result(federation, "Held, then released")
    assert opened(federation, submission) == [], "nothing leaves before a steward says so"
    assert waiting(federation) == (0, 1)
    assert of_the_node(federation, "release", held).exit_code == 0
    assert waiting(federation) == (0, 0)
    assert len(eventually(lambda: opened(federation, submission), "the released result")) == 1
    again = of_the_node(federation, "release", held)
    assert again.exit_code == 3
    assert "already" in again.stderr


def test_a_refused_result_never_leaves(federation: Federation) -> None:
    submission, held = ended_with_a_held_result(federation, "Held, then refused")
    assert of_the_node(federation, "release", held, "--refuse").exit_code == 0
    assert release_rows(federation, submission)[0]["state"] == "rejected"
    assert of_the_node(federation, "release", held).exit_code == 3, "a refusal is for good"
    assert opened(federation, submission) == []


def test_the_status_counts_the_analyses_that_wait(federation: Federation) -> None:
    submission = submitted(federation, "Waits for a decision")
    steward = federation.steward(federation.aggregator.name)
    eventually(lambda: steward.show(submission.analysis), "the analysis at the node")
    assert waiting(federation) == (1, 0)
    assert of_the_node(federation, "reject", submission.analysis).exit_code == 0
    assert waiting(federation) == (0, 0)


def waiting(federation: Federation) -> tuple[int, int]:
    """Analyses and results."""
    status = json.loads(of_the_node(federation, "status", "--json").stdout)
    return status["analysesWaiting"], status["resultsWaiting"]


def ended_with_a_held_result(federation: Federation, title: str) -> tuple[Submission, str]:
    submission = approved(federation, title, HELD)
    federation.session.start(submission)
    names = {node.id: node.name for node in federation.nodes}
    status, reason = federation.session.watch(submission, names, _silent, 120)
    assert status == "executed", reason
    (row,) = release_rows(federation, submission)
    assert row["state"] == "held"
    return submission, str(row["id"])


def release_rows(federation: Federation, submission: Submission) -> list[dict[str, Any]]:
    shown = of_the_node(federation, "releases", "--json")
    return [row for row in json.loads(shown.stdout) if row["run"] == submission.run]


def opened(federation: Federation, submission: Submission) -> list[ResultFile]:
    return federation.session.open_results(submission, PublicKey.from_hex_pem(federation.aggregator.public_key))


def of_the_node(federation: Federation, *arguments: str) -> Result:
    """A command as the aggregator's steward types it."""
    variables = {
        "FLAME_NODE_DIR": str(federation.aggregator.directory),
        "FLAME_NODE_TOKEN": federation.aggregator.steward_token,
    }
    return CliRunner().invoke(commands, list(arguments), env=variables)


def _silent(step: Progress) -> None:
    del step
