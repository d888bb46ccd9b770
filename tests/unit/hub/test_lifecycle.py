"""The life cycle of an analysis: a table, and the words of each refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.model.analysis import (
    TERMINAL,
    Command,
    Lifecycle,
    Status,
    advance,
    has_ended,
    overall,
    overall_progress,
    table,
)
from flame.model.errors import Conflict, Invalid

OPEN = Lifecycle(False, None, None, None, 2, 1, 0, True, True)
LOCKED = replace(OPEN, locked=True)
APPROVED = replace(LOCKED, approved_nodes=3)
BUILT = replace(APPROVED, build=Status.EXECUTED)
RUNNING = replace(BUILT, distribution=Status.EXECUTED, execution=Status.EXECUTING)


@pytest.mark.parametrize(
    ("state", "command", "message"),
    [
        (LOCKED, Command.CONFIGURATION_LOCK, "The analysis configuration is locked."),
        (replace(OPEN, default_nodes=0), Command.CONFIGURATION_LOCK, "At least one default node must be selected."),
        (replace(OPEN, aggregator_nodes=0), Command.CONFIGURATION_LOCK, "An aggregator node node must be selected."),
        (replace(OPEN, entrypoint=False), Command.CONFIGURATION_LOCK, "An entrypoint must be selected."),
        (replace(OPEN, image=False), Command.CONFIGURATION_LOCK, "A master image must be assigned to the analysis."),
        (OPEN, Command.CONFIGURATION_UNLOCK, "The analysis configuration is not locked."),
        (BUILT, Command.CONFIGURATION_UNLOCK, "The analysis build process has already been initialized."),
        (OPEN, Command.BUILD_START, "The analysis configuration is not locked."),
        (LOCKED, Command.BUILD_START, "All assigned nodes have to approve the analysis."),
        (BUILT, Command.BUILD_START, "The analysis build process has already been initialized."),
        (APPROVED, Command.DISTRIBUTION_START, "The analysis is not built yet."),
        (RUNNING, Command.DISTRIBUTION_START, "The analysis can not be distributed in state executed"),
    ],
)
def test_a_refusal_is_in_flames_words(state: Lifecycle, command: Command, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        advance(state, command)
    assert refused.value.message == message


def test_the_way_from_open_to_distributed() -> None:
    assert advance(OPEN, Command.CONFIGURATION_LOCK) == LOCKED
    assert advance(APPROVED, Command.BUILD_START).build is Status.STARTING
    assert advance(BUILT, Command.DISTRIBUTION_START).distribution is Status.STARTING
    assert advance(RUNNING, Command.EXECUTION_STOP).execution is Status.STOPPING


def test_an_unlock_voids_and_does_not_happen_under_a_run() -> None:
    failed = replace(APPROVED, build=Status.FAILED)
    assert advance(failed, Command.CONFIGURATION_UNLOCK) == replace(OPEN, build=None)
    with pytest.raises(Conflict):
        advance(replace(failed, execution=Status.EXECUTING), Command.CONFIGURATION_UNLOCK)


@given(
    st.builds(
        Lifecycle,
        st.booleans(), st.none() | st.sampled_from(Status), st.none() | st.sampled_from(Status),
        st.none() | st.sampled_from(Status), st.integers(0, 3), st.integers(0, 2), st.integers(0, 5), st.booleans(), st.booleans(),
    ),
    st.sampled_from(Command),
)  # fmt: skip
def test_no_command_breaks_the_rules_whatever_the_state(state: Lifecycle, command: Command) -> None:
    try:
        after = advance(state, command)
    except (Invalid, Conflict):
        return
    if command is Command.BUILD_START:
        assert state.locked and state.approved_nodes == state.nodes > 0
    if command is Command.DISTRIBUTION_START:
        assert state.build is Status.EXECUTED
    if command is Command.CONFIGURATION_LOCK:
        assert after.locked and state.build is None
    if command is Command.CONFIGURATION_UNLOCK:
        assert after.approved_nodes == 0 and after.build is None


@given(st.lists(st.none() | st.sampled_from(Status), max_size=6))
def test_the_whole_is_as_far_as_its_slowest_part(statuses: list[Status | None]) -> None:
    whole = overall(statuses)
    assert (whole is None) == (not any(statuses))
    if Status.FAILED in statuses:
        assert whole is Status.FAILED
    assert has_ended(statuses) == (bool(statuses) and all(s in TERMINAL for s in statuses))


def test_progress_is_the_mean_over_all() -> None:
    assert overall_progress([100, None, 50]) == 50
    assert overall_progress([]) == 0


def test_the_life_cycle_is_printed_in_the_reference() -> None:
    """`from flame.model.analysis import table` prints it anew."""
    reference = Path(__file__).parents[3] / "docs" / "reference" / "life-cycle.md"
    assert table() in reference.read_text(encoding="utf-8")
    assert all(f"| `{command}` |" in table() for command in Command)
