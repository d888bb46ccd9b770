"""The run's life cycle, every state with every event: where it leads, what is to be done, or that it cannot happen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.model.errors import Conflict
from flame.model.run import (
    EXECUTION_STATUS,
    Accepted,
    DeadlinePassed,
    Denied,
    Do,
    Event,
    NodeRestarted,
    PeerEnded,
    ProgramEnded,
    ProgramFailed,
    PromiseBroken,
    Ready,
    Run,
    RunState,
    SandboxVerified,
    StopAsked,
    advance,
    at_the_end,
)

EVENTS: dict[str, Event] = {
    "accepted": Accepted(),
    "denied": Denied("not approved", "not_approved"),
    "ready": Ready(),
    "verified": SandboxVerified(),
    "broken": PromiseBroken("network", "a socket"),
    "program ended": ProgramEnded(),
    "program failed": ProgramFailed("It died.", "program_failed"),
    "peer ended": PeerEnded("Ulm", "out of memory"),
    "stop": StopAsked("Ada"),
    "deadline": DeadlinePassed("Too late."),
    "restart": NodeRestarted(),
}
LIVING = ("queued", "preparing", "prepared", "running")
ENDED = ("ended", "stopped", "refused", "failed")

ENDING = [Do.KILL, Do.TELL_PEERS, Do.LOG_END, Do.REPORT, Do.CLEAN_UP]
REFUSING = [Do.KILL, Do.TELL_PEERS, Do.LOG_REFUSAL, Do.REPORT, Do.CLEAN_UP]

FORWARD: dict[tuple[str, str], tuple[str, list[Do]]] = {
    ("queued", "accepted"): ("preparing", [Do.MAKE_KEYS, Do.REPORT, Do.PREPARE]),
    ("preparing", "ready"): ("prepared", [Do.LOG_START, Do.START_SANDBOX]),
    ("prepared", "verified"): ("running", [Do.OPEN, Do.REPORT]),
    ("running", "program ended"): ("ended", [Do.LOG_END, Do.TELL_PEERS, Do.REPORT, Do.KILL, Do.CLEAN_UP]),
    ("queued", "restart"): ("queued", [Do.VERIFY]),
}
ANY: dict[str, tuple[str, list[Do]]] = {
    "denied": ("refused", REFUSING),
    "broken": ("failed", ENDING),
    "program failed": ("failed", ENDING),
    "peer ended": ("failed", ENDING),
    "stop": ("stopped", ENDING),
    "deadline": ("failed", ENDING),
    "restart": ("preparing", [Do.MAKE_KEYS, Do.PREPARE]),
}


def expected(state: str, event: str) -> tuple[str, list[Do]] | None:
    """The table above, read: None where the event cannot happen."""
    return FORWARD.get((state, event)) or ANY.get(event)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", LIVING)
def test_each_step_is_the_one_in_the_table(state: str, event: str) -> None:
    run = Run("r", RunState(state))
    wanted = expected(state, event)
    if wanted is None:
        with pytest.raises(Conflict, match=state):
            advance(run, EVENTS[event])
        return
    after, todo = advance(run, EVENTS[event])
    assert (after.state.value, todo) == wanted


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", ENDED)
def test_what_has_ended_stays_as_it_is(state: str, event: str) -> None:
    run = Run("r", RunState(state), "why", "code")
    assert advance(run, EVENTS[event]) == (run, [])


def test_the_states_of_the_table_are_all_there_are() -> None:
    assert {s.value for s in RunState} == {*LIVING, *ENDED}
    assert {s.value for s in RunState if s.is_terminal} == set(ENDED)
    assert set(EXECUTION_STATUS) == set(RunState)


@pytest.mark.parametrize(
    ("event", "words", "code"),
    [
        ("denied", "not approved", "not_approved"),
        ("broken", "The sandbox broke its promise 'network': a socket", "promise_broken"),
        ("program failed", "It died.", "program_failed"),
        ("peer ended", "Ulm ended: out of memory", "peer_ended"),
        ("stop", "Stopped by Ada.", "stopped"),
        ("deadline", "Too late.", "deadline"),
    ],
)
def test_an_end_says_why(event: str, words: str, code: str) -> None:
    after, _ = advance(Run("r", RunState.RUNNING), EVENTS[event])
    assert (after.reason, after.code) == (words, code)


def test_a_promise_without_detail_reads_well() -> None:
    after, _ = advance(Run("r", RunState.PREPARED), PromiseBroken("network"))
    assert after.reason == "The sandbox broke its promise 'network'"


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_no_program_starts_that_was_not_accepted_and_prepared(story: list[str]) -> None:
    """Whatever happens in whatever order: OPEN only after VERIFIED after READY after ACCEPTED (or a restart of one)."""
    run, done, seen = Run("r"), [], []
    for name in story:
        try:
            run, todo = advance(run, EVENTS[name])
        except Conflict:
            continue
        seen.append(name)
        done += todo
        if Do.OPEN in todo:
            assert "accepted" in seen
            assert seen[-2:] == ["ready", "verified"]
    assert done.count(Do.CLEAN_UP) == int(run.state.is_terminal), "what has ended is cleaned up once"


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_whoever_ends_badly_kills_first_and_tells_the_others(story: list[str]) -> None:
    run = Run("r")
    for name in story:
        try:
            run, todo = advance(run, EVENTS[name])
        except Conflict:
            continue
        if run.state in (RunState.FAILED, RunState.STOPPED, RunState.REFUSED) and todo:
            assert todo[0] is Do.KILL
            assert {Do.TELL_PEERS, Do.REPORT, Do.CLEAN_UP} <= set(todo)


@pytest.mark.parametrize("state", ENDED)
def test_a_node_that_died_in_an_end_can_do_it_again(state: str) -> None:
    """What belongs to an end is told by the state alone, and is the same as on the way into it."""
    way = {"ended": "program ended", "stopped": "stop", "refused": "denied", "failed": "deadline"}[state]
    _, todo = advance(Run("r", RunState.RUNNING), EVENTS[way])
    assert at_the_end(RunState(state)) == todo


@pytest.mark.parametrize("state", LIVING)
def test_what_has_not_ended_has_no_end(state: str) -> None:
    with pytest.raises(Conflict):
        at_the_end(RunState(state))
