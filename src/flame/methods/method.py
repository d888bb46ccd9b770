"""What a federated method is: a question to all hospitals, the sum of their answers, and an update.

    state = method.start()
    while (question := method.question(state)) is not None:
        total = sum of method.local(data, question) over all data nodes
        state = method.update(state, total, contributors)
    result = method.result(state)

Only the question and the summaries travel: a question is what the hospitals need for the next round and nothing more,
so that what the aggregator has learned stays with it. Because a round is a sum, each method runs in clear, under
secure sums or with noise without a change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from flame.sdk.table import Table

Data = TypeVar("Data")
State = TypeVar("State")
Answer = TypeVar("Answer", bound="Result")

Question = Mapping[str, Any]
"""Numbers, text, arrays and nested mappings of them: what ``flame.wire.values`` can carry."""
Summary = Mapping[str, Any]
"""Named numbers and arrays; names and shapes do not depend on the data. ``n``: the number of records behind it."""


@dataclass(frozen=True, kw_only=True)
class ColumnScale:
    """How a column was standardised: (x - mean) / sd over all hospitals; sd with divisor n."""

    column: str
    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every result tells beside its own numbers."""

    rounds: int
    """Sums that were taken over the hospitals."""
    contributors: int
    """Hospitals in the last of them."""
    scale: tuple[ColumnScale, ...] = ()
    """Not empty: estimates are per standard deviation of these columns."""

    def as_text(self) -> str:
        """Tables for a terminal."""
        from flame.methods.rendering import as_text

        return as_text(self)

    def as_html(self) -> str:
        """The same as HTML without a page around it; a notebook shows it by itself."""
        from flame.methods.rendering import as_html

        return as_html(self)

    _repr_html_ = as_html

    def as_json(self) -> str:
        from flame.sdk.results import to_json

        return to_json(self).decode()


class Method(ABC, Generic[Data, State, Answer]):
    """Implement these six. ``Data`` is made once at each data node; ``State`` is a frozen dataclass at the aggregator.

    Everything is deterministic: the same tables give the same result, in whatever order the summaries arrive.
    """

    name: ClassVar[str]

    @abstractmethod
    def prepare(self, table: Table) -> Data:
        """Check and convert a hospital's table. Raises Invalid or NotFound, naming the column, before any round."""

    @abstractmethod
    def start(self) -> State:
        """The state before the first round. It follows from the parameters alone: all nodes know the first question."""

    @abstractmethod
    def question(self, state: State) -> Question | None:
        """What to ask the hospitals next; None when there is nothing more to ask."""

    @abstractmethod
    def local(self, data: Data, question: Question) -> Summary:
        """A hospital's answer, to be added to those of the others. A hospital without rows answers with zeros."""

    @abstractmethod
    def update(self, state: State, total: Summary, contributors: int) -> State:
        """What follows from the sum over ``contributors`` hospitals."""

    @abstractmethod
    def result(self, state: State) -> Answer:
        """The final result: a dataclass that has a form as JSON."""


class OnCovariates(Method[Data, State, Answer]):
    """A method that works on named columns of numbers, so that they can be standardised first."""

    covariates: tuple[str, ...]
