"""The life of one run at one node, as a table: ``(run, event) -> (run, instructions)``. No I/O here.

QUEUED -> PREPARING -> PREPARED -> RUNNING -> ENDED
   |          |            |          |
   +----------+------------+----------+--> REFUSED (a rule said no before anything ran)
                                      +--> FAILED, STOPPED

The supervisor (``flame.node.supervisor``) is the shell around it: it performs the instructions and feeds back events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from flame.model.errors import Conflict


class RunState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    PREPARED = "prepared"
    RUNNING = "running"
    ENDED = "ended"
    STOPPED = "stopped"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        return self in (RunState.ENDED, RunState.STOPPED, RunState.REFUSED, RunState.FAILED)


EXECUTION_STATUS = {
    RunState.QUEUED: "starting",
    RunState.PREPARING: "starting",
    RunState.PREPARED: "started",
    RunState.RUNNING: "executing",
    RunState.ENDED: "executed",
    RunState.STOPPED: "stopped",
    RunState.REFUSED: "failed",
    RunState.FAILED: "failed",
}
"""How FLAME's wire calls each state."""


@dataclass(frozen=True, slots=True)
class Run:
    id: str
    state: RunState = RunState.QUEUED
    reason: str = ""
    code: str = ""
    """The error's code, for programs; ``reason`` is for people."""

    def into(self, state: RunState, reason: str = "", code: str = "") -> Run:
        return replace(self, state=state, reason=reason or self.reason, code=code or self.code)


# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """Signatures, pins, policy and the own approval hold."""


@dataclass(frozen=True, slots=True)
class Denied:
    """A rule said no before anything ran."""

    reason: str
    code: str = "refused"


@dataclass(frozen=True, slots=True)
class Ready:
    """Environment, code and data are here and are what was approved."""


@dataclass(frozen=True, slots=True)
class SandboxVerified:
    """Seen from outside, the sandbox keeps every promise."""


@dataclass(frozen=True, slots=True)
class PromiseBroken:
    promise: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """The program said that it has finished, and all that it released is on its way."""


@dataclass(frozen=True, slots=True)
class ProgramFailed:
    reason: str
    code: str = "program_failed"


@dataclass(frozen=True, slots=True)
class PeerEnded:
    """Another participant ended without success; waiting for it would be for ever."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    by: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    what: str


@dataclass(frozen=True, slots=True)
class NodeRestarted:
    """The node came back; its sandboxes did not."""


Event = (
    Accepted
    | Denied
    | Ready
    | SandboxVerified
    | PromiseBroken
    | ProgramEnded
    | ProgramFailed
    | PeerEnded
    | StopAsked
    | DeadlinePassed
    | NodeRestarted
)

# --- instructions ---------------------------------------------------------------------------------------------------


class Do(StrEnum):
    VERIFY = "check signatures, pins, policy and the own approval"
    MAKE_KEYS = "make run keys and announce them"
    PREPARE = "check the environment, fetch the code, freeze the data"
    START_SANDBOX = "start the sandbox, blocked; verify it from outside"
    OPEN = "let the program run and open the gateway"
    KILL = "end the sandbox"
    REPORT = "tell the hub the state"
    TELL_PEERS = "tell the other participants that this node ended"
    LOG_START = "leaf: the run started here"
    LOG_END = "leaf: the run ended here"
    LOG_REFUSAL = "leaf: the run was refused here"
    CLEAN_UP = "delete the run's files and keys"


def advance(run: Run, event: Event) -> tuple[Run, list[Do]]:
    """One step. Raises Conflict for an event that cannot happen in the run's state."""
    match run.state, event:
        case state, _ if state.is_terminal:
            return run, []
        case RunState.QUEUED, Accepted():
            return run.into(RunState.PREPARING), [Do.MAKE_KEYS, Do.REPORT, Do.PREPARE]
        case _, Denied(reason, code):
            return run.into(RunState.REFUSED, reason, code), at_the_end(RunState.REFUSED)
        case RunState.PREPARING, Ready():
            return run.into(RunState.PREPARED), [Do.LOG_START, Do.START_SANDBOX]
        case RunState.PREPARED, SandboxVerified():
            return run.into(RunState.RUNNING), [Do.OPEN, Do.REPORT]
        case _, PromiseBroken(promise, detail):
            reason = f"The sandbox broke its promise '{promise}': {detail}".rstrip(": ")
            return run.into(RunState.FAILED, reason, "promise_broken"), at_the_end(RunState.FAILED)
        case RunState.RUNNING, ProgramEnded():
            return run.into(RunState.ENDED), at_the_end(RunState.ENDED)
        case _, ProgramFailed(reason, code):
            return run.into(RunState.FAILED, reason, code), at_the_end(RunState.FAILED)
        case _, PeerEnded(name, reason):
            return run.into(RunState.FAILED, f"{name} ended: {reason}", "peer_ended"), at_the_end(RunState.FAILED)
        case _, StopAsked(by):
            return run.into(RunState.STOPPED, f"Stopped by {by}.", "stopped"), at_the_end(RunState.STOPPED)
        case _, DeadlinePassed(what):
            return run.into(RunState.FAILED, what, "deadline"), at_the_end(RunState.FAILED)
        case RunState.QUEUED, NodeRestarted():
            return run, [Do.VERIFY]
        case _, NodeRestarted():
            return run.into(RunState.PREPARING), [Do.MAKE_KEYS, Do.PREPARE]
    raise Conflict(f"A run that is {run.state} cannot take {type(event).__name__}.")


def at_the_end(state: RunState) -> list[Do]:
    """What belongs to a terminal state. Each may be done again, for a node that died in the middle of it."""
    match state:
        case RunState.ENDED:
            return [Do.LOG_END, Do.TELL_PEERS, Do.REPORT, Do.KILL, Do.CLEAN_UP]
        case RunState.REFUSED:
            return [Do.KILL, Do.TELL_PEERS, Do.LOG_REFUSAL, Do.REPORT, Do.CLEAN_UP]
        case RunState.FAILED | RunState.STOPPED:
            return [Do.KILL, Do.TELL_PEERS, Do.LOG_END, Do.REPORT, Do.CLEAN_UP]
    raise Conflict(f"A run that is {state} has not ended.")
