"""A steward, the researcher, or a withdrawn approval: the run ends at every node, with that reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from federation_world import LIVING, Researcher, Ward, eventually, program, run_state, sandboxes
from flame.lab.federation import Federation

WAITING = b"""\
import time

import flame

with flame.connect() as federation:
    while True:
        time.sleep(1)
"""


def by_a_steward(federation: Federation, analysis: str, run: str) -> str:
    federation.steward("Bonn").api.post(f"/api/runs/{run}/stop", {"reason": "the donor has withdrawn"})
    return "Stopped by a steward of Bonn: the donor has withdrawn"


def by_the_researcher(federation: Federation, analysis: str, run: str) -> str:
    federation.session.command(analysis, "executionStop")
    return "Stopped by the researcher."


def by_a_withdrawn_approval(federation: Federation, analysis: str, run: str) -> str:
    federation.steward("Bonn").decide(analysis, "rejected")
    return "Stopped by a steward of Bonn, who withdrew the approval"


@pytest.mark.parametrize("stop", [by_a_steward, by_the_researcher, by_a_withdrawn_approval])
def test_a_stopped_run_ends_everywhere_with_the_reason(ward: Ward, stop: Callable[[Federation, str, str], str]) -> None:
    with ward.lent() as federation:
        researcher = Researcher(federation)
        submission = researcher.started(program(WAITING), "Stopped")
        for node in federation.nodes:
            eventually(
                lambda node=node: (  # type: ignore[misc]
                    (run_state(federation, node.name, submission.run) or {}).get("state") == "running"
                ),
                f"{node.name} runs",
            )
        assert sandboxes(federation)
        reason = stop(federation, submission.analysis, submission.run)
        outcome = researcher.finish(submission)
        assert outcome.status == "stopped"
        assert reason in outcome.reason
        for node in federation.nodes:
            ended = run_state(federation, node.name, submission.run)
            assert ended is not None
            assert ended["state"] not in LIVING
            assert reason in ended["reason"], node.name
            eventually(lambda: sandboxes(federation) == [], "the sandboxes are gone")
        good = researcher.run(program(), "After it")
        assert good.status == "executed", good.reason


def test_a_stop_reaches_a_node_that_was_away(ward: Ward) -> None:
    with ward.lent() as federation:
        researcher = Researcher(federation)
        submission = researcher.started(program(WAITING), "Stopped meanwhile")
        eventually(lambda: (run_state(federation, "Bonn", submission.run) or {}).get("state") == "running", "Bonn runs")
        federation.stop("Bonn")
        federation.session.command(submission.analysis, "executionStop")
        federation.restart("Bonn")
        outcome = researcher.finish(submission)
        assert outcome.status == "stopped"
        eventually(
            lambda: (run_state(federation, "Bonn", submission.run) or {}).get("state") not in LIVING, "Bonn ended it"
        )
