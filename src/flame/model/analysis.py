"""The life cycle of an analysis at the hub: configuration, build, distribution, and what nodes report of its execution.

Pure: ``advance(state, command)`` gives the next state or refuses in the words that FLAME's clients know.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    def build_nodes_valid(self) -> bool:
        return self.nodes > 0 and self.approved_nodes == self.nodes


def advance(state: Lifecycle, command: Command) -> Lifecycle:
    """The state after a command. Raises Invalid (400) in FLAME's words, Conflict (409) while a run stands against it."""
    return _TABLE[command](state)


def _lock(state: Lifecycle) -> Lifecycle:
    _require(not state.locked, "The analysis configuration is locked.")
    _require(state.build is None, "The analysis build process has already been initialized.")
    _require(state.default_nodes > 0, "At least one default node must be selected.")
    _require(state.aggregator_nodes > 0, "An aggregator node node must be selected.")
    if not state.entrypoint:
        raise Invalid(
            "An entrypoint must be selected.", next_step="Upload the program, and mark the file that runs as its root."
        )
    _require(state.image, "A master image must be assigned to the analysis.")
    return replace(state, locked=True)


def _unlock(state: Lifecycle) -> Lifecycle:
    _require(state.locked, "The analysis configuration is not locked.")
    allowed = (None, Status.FAILED, Status.STOPPED, Status.STOPPING)
    _require(state.build in allowed, "The analysis build process has already been initialized.")
    _check_not_running(state)
    return replace(state, locked=False, build=None, approved_nodes=0)


def _build(state: Lifecycle) -> Lifecycle:
    _require(state.locked, "The analysis configuration is not locked.")
    _require(state.build_nodes_valid, "All assigned nodes have to approve the analysis.")
    _require(state.build in _RESTARTABLE, "The analysis build process has already been initialized.")
    return replace(state, build=Status.STARTING)


def _distribute(state: Lifecycle) -> Lifecycle:
    _require(state.build == Status.EXECUTED, "The analysis is not built yet.")
    name = state.distribution and state.distribution.value
    _require(state.distribution in _RESTARTABLE, f"The analysis can not be distributed in state {name}")
    return replace(state, distribution=Status.STARTING)


def _check_build(state: Lifecycle) -> Lifecycle:
    _require(state.locked, "The analysis configuration is not locked.")
    _require(state.build is not None, "The analysis is not built yet.")
    return state


def _check_distribution(state: Lifecycle) -> Lifecycle:
    _require(state.build == Status.EXECUTED, "The analysis is not built yet.")
    return state


def _stop(state: Lifecycle) -> Lifecycle:
    _require(state.locked, "The analysis configuration is not locked.")
    if state.execution in TERMINAL:
        raise Conflict("The analysis has ended already.")
    return state if state.execution is None else replace(state, execution=Status.STOPPING)


def _same(state: Lifecycle) -> Lifecycle:
    return state


_TABLE = {
    Command.CONFIGURATION_LOCK: _lock,
    Command.CONFIGURATION_UNLOCK: _unlock,
    Command.BUILD_START: _build,
    Command.BUILD_CHECK: _check_build,
    Command.DISTRIBUTION_START: _distribute,
    Command.DISTRIBUTION_CHECK: _check_distribution,
    Command.STORAGE_CHECK: _same,
    Command.EXECUTION_STOP: _stop,
}


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


def _check_not_running(state: Lifecycle) -> None:
    if state.execution is not None and state.execution not in TERMINAL:
        raise Conflict("The analysis is running.", next_step="Stop it first.")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Invalid(message)
