"""The life cycle of an analysis at the hub: configuration, build, distribution, and what nodes report of its execution.

Pure: ``advance(state, command)`` gives the next state or refuses in the words that FLAME's clients know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from flame.model.errors import Conflict, Invalid


class Status(StrEnum):
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    EXECUTING = "executing"
    EXECUTED = "executed"
    FAILED = "failed"


class Command(StrEnum):
    CONFIGURATION_LOCK = "configurationLock"
    CONFIGURATION_UNLOCK = "configurationUnlock"
    BUILD_START = "buildStart"
    BUILD_CHECK = "buildCheck"
    DISTRIBUTION_START = "distributionStart"
    DISTRIBUTION_CHECK = "distributionCheck"
    STORAGE_CHECK = "storageCheck"
    EXECUTION_STOP = "executionStop"


TERMINAL = frozenset({Status.STOPPED, Status.EXECUTED, Status.FAILED})
_RANK = {
    Status.FAILED: -1,
    Status.STARTING: 0,
    Status.STARTED: 1,
    Status.STOPPING: 2,
    Status.STOPPED: 3,
    Status.EXECUTING: 4,
    Status.EXECUTED: 5,
}
_RESTARTABLE = (None, Status.FAILED, Status.STOPPED)


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What decides about an analysis' commands."""

    locked: bool
    build: Status | None
    distribution: Status | None
    execution: Status | None
    default_nodes: int
    aggregator_nodes: int
    approved_nodes: int
    entrypoint: bool
    image: bool

    @property
    def nodes(self) -> int:
        return self.default_nodes + self.aggregator_nodes

    @property
    def is_running(self) -> bool:
        return self.execution is not None and self.execution not in TERMINAL

    @property
    def build_nodes_valid(self) -> bool:
        return self.nodes > 0 and self.approved_nodes == self.nodes


@dataclass(frozen=True, slots=True)
class Need:
    """What must hold before a command; `otherwise` is said when it does not."""

    holds: Callable[[Lifecycle], bool]
    otherwise: str
    next_step: str = ""
    conflict: bool = False
    """The state stands against it (409), rather than the request being wrong (400)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command: what it needs, in this order, and what it leads to. `effect` says the same in words."""

    needs: tuple[Need, ...]
    then: Callable[[Lifecycle], Lifecycle]
    effect: str


_LOCKED = "The analysis configuration is locked."
_NOT_LOCKED = "The analysis configuration is not locked."
_BEGUN = "The analysis build process has already been initialized."
_NOT_BUILT = "The analysis is not built yet."
_REOPENABLE = (None, Status.FAILED, Status.STOPPED, Status.STOPPING)

STEPS: Mapping[Command, Step] = {
    Command.CONFIGURATION_LOCK: Step(
        (
            Need(lambda s: not s.locked, _LOCKED),
            Need(lambda s: s.build is None, _BEGUN),
            Need(lambda s: s.default_nodes > 0, "At least one default node must be selected."),
            Need(lambda s: s.aggregator_nodes > 0, "An aggregator node node must be selected."),
            Need(
                lambda s: s.entrypoint,
                "An entrypoint must be selected.",
                "Upload the program, and mark the file that runs as its root.",
            ),
            Need(lambda s: s.image, "A master image must be assigned to the analysis."),
        ),
        lambda s: replace(s, locked=True),
        "locked; the manifest is written",
    ),
    Command.CONFIGURATION_UNLOCK: Step(
        (
            Need(lambda s: s.locked, _NOT_LOCKED),
            Need(lambda s: s.build in _REOPENABLE, _BEGUN),
            Need(lambda s: not s.is_running, "The analysis is running.", "Stop it first.", conflict=True),
        ),
        lambda s: replace(s, locked=False, build=None, approved_nodes=0),
        "open; manifest, approvals and build are void",
    ),
    Command.BUILD_START: Step(
        (
            Need(lambda s: s.locked, _NOT_LOCKED),
            Need(lambda s: s.build_nodes_valid, "All assigned nodes have to approve the analysis."),
            Need(lambda s: s.build in _RESTARTABLE, _BEGUN),
        ),
        lambda s: replace(s, build=Status.STARTING),
        "build: starting",
    ),
    Command.BUILD_CHECK: Step(
        (Need(lambda s: s.locked, _NOT_LOCKED), Need(lambda s: s.build is not None, _NOT_BUILT)),
        lambda s: s,
        "as it was",
    ),
    Command.DISTRIBUTION_START: Step(
        (
            Need(lambda s: s.build == Status.EXECUTED, _NOT_BUILT),
            Need(
                lambda s: s.distribution in _RESTARTABLE, "The analysis can not be distributed in state {distribution}"
            ),
        ),
        lambda s: replace(s, distribution=Status.STARTING),
        "distribution: starting",
    ),
    Command.DISTRIBUTION_CHECK: Step(
        (Need(lambda s: s.build == Status.EXECUTED, _NOT_BUILT),), lambda s: s, "as it was"
    ),
    Command.STORAGE_CHECK: Step((), lambda s: s, "as it was; buckets that are missing are made"),
    Command.EXECUTION_STOP: Step(
        (
            Need(lambda s: s.locked, _NOT_LOCKED),
            Need(lambda s: s.execution not in TERMINAL, "The analysis has ended already.", conflict=True),
        ),
        lambda s: s if s.execution is None else replace(s, execution=Status.STOPPING),
        "execution: stopping, if it runs",
    ),
}
"""The whole life cycle. What goes on behind an answer (a build, a run) reports its status; no command does that."""


def advance(state: Lifecycle, command: Command) -> Lifecycle:
    """The state after a command. Raises Invalid (400) in FLAME's words, Conflict (409) while a run stands against it."""
    step = STEPS[command]
    for need in step.needs:
        if not need.holds(state):
            kind = Conflict if need.conflict else Invalid
            raise kind(need.otherwise.format(distribution=state.distribution), next_step=need.next_step)
    return step.then(state)


def table() -> str:
    """The life cycle as a table in Markdown: command, what it refuses with, what it leads to."""
    rows = ["| Command | Refused, in this order, with | Leads to |", "|---|---|---|"]
    for command, step in STEPS.items():
        refusals = "<br>".join(f"{409 if n.conflict else 400} {n.otherwise}" for n in step.needs) or "–"
        rows.append(f"| `{command}` | {refusals} | {step.effect} |")
    return "\n".join(rows) + "\n"


def overall(statuses: Sequence[Status | None]) -> Status | None:
    """The execution status of an analysis: the lowest of those that its nodes have reported."""
    known = [status for status in statuses if status is not None]
    return min(known, key=_RANK.__getitem__, default=None)


def overall_progress(progress: Sequence[int | None]) -> int:
    """The mean over all nodes in whole per cent, rounded down."""
    return sum(value or 0 for value in progress) // len(progress) if progress else 0


def has_ended(statuses: Sequence[Status | None]) -> bool:
    """Whether every participant has reported an end."""
    return bool(statuses) and all(status in TERMINAL for status in statuses)
