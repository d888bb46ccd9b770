"""Standardise covariates over all hospitals, then run another method on them.

Two rounds before the inner method: first n and Σx, then Σ(x − mean)² about the common mean. One round of n, Σx, Σx²
would be cheaper, but its variance is a difference of two large numbers: for a year of birth (mean 1960, sd 15) it
loses four digits, for a time stamp all of them. The second round also sums x − mean: the square of what remains there
is the rounding of the mean, and is taken off (the corrected two-pass algorithm: Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from flame.methods.method import Answer, ColumnScale, Method, OnCovariates, Question, State, Summary
from flame.model.errors import Invalid, Singular
from flame.sdk.table import Table

Floats = NDArray[np.float64]
_SMALLEST_RATIO = 1e-13  # sd / |mean| of a constant column is the rounding of its values


class HasColumns(Protocol):
    """Data that can be standardised."""

    @property
    def x(self) -> Floats: ...

    def with_x(self, x: Floats) -> Any: ...


Columns = TypeVar("Columns", bound=HasColumns)


@dataclass(frozen=True)
class Scaling(Generic[State]):
    inner: State
    n: int = 0
    mean: Floats | None = None
    sd: Floats | None = None


class Standardised(Method[Columns, Scaling[State], Answer]):
    """``Standardised(Logistic(outcome, covariates))``: each covariate as (x − mean) / sd, sd with divisor n.

    Means and deviations are those of all hospitals' complete cases together and stand in the result's ``scale``.
    Raises Singular for a column that is constant over all hospitals, Invalid when there are no records.
    """

    name: ClassVar[str] = "standardised"

    def __init__(self, inner: OnCovariates[Columns, State, Answer]) -> None:
        self._inner = inner
        self._columns = inner.covariates

    def prepare(self, table: Table) -> Columns:
        return self._inner.prepare(table)

    def start(self) -> Scaling[State]:
        return Scaling(self._inner.start())

    def question(self, state: Scaling[State]) -> Question | None:
        if state.mean is None:
            return {"step": "mean"}
        if state.sd is None:
            return {"step": "spread", "mean": state.mean}
        inner = self._inner.question(state.inner)
        return None if inner is None else {"step": "inner", "mean": state.mean, "sd": state.sd, "inner": inner}

    def local(self, data: Columns, question: Question) -> Summary:
        if question["step"] == "mean":
            return {"n": len(data.x), "sum": data.x.sum(axis=0)}
        centred = data.x - question["mean"]
        if question["step"] == "spread":
            return {"n": len(data.x), "rest": centred.sum(axis=0), "squares": (centred**2).sum(axis=0)}
        scaled = cast("Columns", data.with_x(centred / question["sd"]))
        return self._inner.local(scaled, question["inner"])

    def update(self, state: Scaling[State], total: Summary, contributors: int) -> Scaling[State]:
        if state.mean is None:
            n = int(total["n"])
            if n < 1:
                raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
            return replace(state, n=n, mean=np.asarray(total["sum"] / n))
        if state.sd is None:
            return replace(state, sd=self._spread(state.n, state.mean, total))
        return replace(state, inner=self._inner.update(state.inner, total, contributors))

    def result(self, state: Scaling[State]) -> Answer:
        assert state.mean is not None and state.sd is not None  # there is no result before the last question
        inner = self._inner.result(state.inner)
        scale = tuple(
            ColumnScale(column=name, mean=float(mean), sd=float(sd))
            for name, mean, sd in zip(self._columns, state.mean, state.sd, strict=True)
        )
        return replace(inner, rounds=inner.rounds + 2, scale=scale)

    def _spread(self, n: int, mean: Floats, total: Summary) -> Floats:
        variance = (total["squares"] - total["rest"] ** 2 / n) / n
        sd = np.sqrt(np.maximum(variance, 0.0))
        constant = sd <= _SMALLEST_RATIO * np.abs(mean)
        if constant.any():
            raise Singular(self._columns[int(constant.argmax())])
        return np.asarray(sd)
