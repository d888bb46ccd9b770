"""Logistic regression by Fisher scoring: exactly the pooled maximum-likelihood fit.

A round sums, at the coefficients in question: n, events, log-likelihood, gradient, Fisher information. Each is a sum
over patients, so the sum over hospitals is what the pooled data would give, and so is the fit.
McCullagh & Nelder 1989, ch. 4; separation: Albert & Anderson 1984.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.algebra import check_rank, dying_direction, inverse, pack, solve, unpack
from flame.methods.design import Design, Missing, binary_design
from flame.methods.method import OnCovariates, Question, Result, Summary
from flame.model.errors import Invalid, Separated
from flame.sdk.table import Table

INTERCEPT = "(Intercept)"
NORMAL_975 = 1.959963984540054

_STEP = 1e-12
"""Converged: no coefficient moves by more than this, relative to itself and its standard error at zero."""
_NOISE = 1e-6
"""Below this a step must shrink fourfold (Newton's convergence is quadratic); if not, rounding or the quantisation
of a secure sum is all that is left of it, and the fit is as good as the sums are."""
_FALL = 1e-10
"""A log-likelihood that falls by more than this part of itself means that the step was too long."""
_SEPARATED = 1e-8
"""In a direction of separation the information dies away; an estimate that exists keeps more of it than this."""
_MAX_HALVINGS = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """On the scale of log odds per unit of the covariate (per standard deviation where standardised)."""

    name: str
    estimate: float
    se: float
    ci_low: float
    ci_high: float
    z: float
    p: float
    """Two-sided Wald test."""
    odds_ratio: float
    odds_ratio_low: float
    odds_ratio_high: float


@dataclass(frozen=True, kw_only=True)
class LogisticResult(Result):
    method: str
    outcome: str
    coefficients: tuple[Coefficient, ...]
    log_likelihood: float
    null_log_likelihood: float
    n: int
    events: int
    dropped: int
    """Rows left out because a value was missing."""
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Fit:
    """Where the iteration stands. ``at`` is the point that the hospitals are asked about, k = 1 + p coefficients."""

    at: Floats
    rounds: int = 0
    contributors: int = 0
    n: int = 0
    events: int = 0
    dropped: int = 0
    best: Floats | None = None
    log_likelihood: float = -math.inf
    information: Floats | None = None
    first_information: Floats | None = None
    step: Floats | None = None
    size: float = math.inf
    halvings: int = 0
    iterations: int = 0
    finished: bool = False
    converged: bool = False


class Logistic(OnCovariates[Design, Fit, LogisticResult]):
    """``outcome``: a column of 0 and 1, or of text with ``levels=(no event, event)``; ``covariates``: numbers.

    ``missing``: "drop" leaves incomplete rows out and counts them, "error" refuses them.
    Raises Singular, Separated, or Invalid (no records, only one outcome), each naming what to look at.
    """

    name: ClassVar[str] = "logistic"

    def __init__(
        self,
        outcome: str,
        covariates: Sequence[str],
        *,
        levels: Sequence[str] | None = None,
        missing: Missing = "drop",
        max_iterations: int = 50,
    ) -> None:
        if len({outcome, *covariates}) != 1 + len(covariates):
            raise Invalid("The outcome and the covariates must be different columns.")
        if missing not in ("drop", "error"):
            raise Invalid(f"missing is 'drop' or 'error', not {missing!r}.")
        self.outcome = outcome
        self.covariates = tuple(covariates)
        if levels and (len(levels) != 2 or levels[0] == levels[1]):
            raise Invalid("levels names two different texts: (no event, event).")
        self.levels = (levels[0], levels[1]) if levels else None
        self.missing = missing
        self.max_iterations = max_iterations

    @property
    def names(self) -> tuple[str, ...]:
        return (INTERCEPT, *self.covariates)

    def prepare(self, table: Table) -> Design:
        return binary_design(table, self.outcome, self.covariates, self.levels, self.missing)

    def start(self) -> Fit:
        return Fit(at=np.zeros(len(self.names)))

    def question(self, state: Fit) -> Question | None:
        return None if state.finished else {"coefficients": state.at}

    def local(self, data: Design, question: Question) -> Summary:
        """The information is packed: its upper triangle, row by row, shape (k (k + 1) / 2,)."""
        coefficients: Floats = question["coefficients"]
        linear = coefficients[0] + data.x @ coefficients[1:]
        probability = _logistic(linear)
        residual = data.y - probability
        weight = probability * (1.0 - probability)
        information = np.empty((1 + data.x.shape[1],) * 2)
        information[0, 0] = weight.sum()
        information[0, 1:] = weight @ data.x
        information[1:, 1:] = (data.x * weight[:, np.newaxis]).T @ data.x
        return {
            "n": len(data.y),
            "events": int(data.y.sum()),
            "dropped": data.dropped,
            "log_likelihood": float((data.y * linear - np.logaddexp(0.0, linear)).sum()),
            "gradient": np.concatenate([[residual.sum()], residual @ data.x]),
            "information": pack(information),
        }

    def update(self, state: Fit, total: Summary, contributors: int) -> Fit:
        state = replace(state, rounds=state.rounds + 1, contributors=contributors)
        log_likelihood = float(total["log_likelihood"])
        if state.best is not None and log_likelihood < state.log_likelihood - _FALL * (1 + abs(state.log_likelihood)):
            return self._halve(state)
        information = unpack(np.asarray(total["information"]), len(self.names))
        if state.first_information is None:
            state = self._first(state, total, information)
        return self._accept(state, log_likelihood, np.asarray(total["gradient"]), information)

    def result(self, state: Fit) -> LogisticResult:
        assert state.best is not None and state.information is not None  # there is no result before the last question
        errors = np.sqrt(np.diag(inverse(state.information, self.names)))
        rate = state.events / state.n
        return LogisticResult(
            method=self.name,
            outcome=self.outcome,
            coefficients=tuple(map(_coefficient, self.names, state.best.tolist(), errors.tolist())),
            log_likelihood=state.log_likelihood,
            null_log_likelihood=state.events * math.log(rate) + (state.n - state.events) * math.log1p(-rate),
            n=state.n,
            events=state.events,
            dropped=state.dropped,
            iterations=state.iterations,
            rounds=state.rounds,
            contributors=state.contributors,
            converged=state.converged,
        )

    def _first(self, state: Fit, total: Summary, information: Floats) -> Fit:
        n, events = round(total["n"]), round(total["events"])
        if n < 1:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        if events in (0, n):
            raise Invalid(f"The outcome '{self.outcome}' is {'always' if events else 'never'} 1: there is no fit.")
        check_rank(information, self.names)
        return replace(state, n=n, events=events, dropped=round(total["dropped"]), first_information=information)

    def _accept(self, state: Fit, log_likelihood: float, gradient: Floats, information: Floats) -> Fit:
        assert state.first_information is not None
        self._check_separation(state, information)
        step = solve(information, gradient, self.names)
        scale = np.abs(state.at) + np.sqrt(np.diag(inverse(state.first_information, self.names)))
        size = float(np.max(np.abs(step) / scale))
        converged = size <= _STEP or (size <= _NOISE and size > state.size / 4)
        exhausted = state.iterations >= self.max_iterations
        return replace(
            state,
            best=state.at,
            log_likelihood=log_likelihood,
            information=information,
            step=step,
            size=size,
            at=state.at + step,
            halvings=0,
            iterations=state.iterations + (not converged and not exhausted),
            finished=converged or exhausted,
            converged=converged,
        )

    def _halve(self, state: Fit) -> Fit:
        assert state.best is not None and state.step is not None
        if state.halvings >= _MAX_HALVINGS:
            return replace(state, finished=True, converged=False)
        step = state.step / 2
        return replace(state, step=step, at=state.best + step, halvings=state.halvings + 1)

    def _check_separation(self, state: Fit, information: Floats) -> None:
        """Raises Separated when the information has died away in some direction, next to that of the null model."""
        assert state.first_information is not None
        rate = state.events / state.n
        null = state.first_information * (4 * rate * (1 - rate))  # at zero the weight of each patient is 1/4
        direction = dying_direction(null, information, _SEPARATED)
        if direction is not None:
            raise Separated(self.covariates[int(direction[1:].argmax())] if self.covariates else self.outcome)


def _logistic(linear: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(linear))
    return np.asarray(np.where(linear >= 0, 1.0, small) / (1.0 + small))


def _coefficient(name: str, estimate: float, se: float) -> Coefficient:
    z = estimate / se
    low, high = estimate - NORMAL_975 * se, estimate + NORMAL_975 * se
    return Coefficient(
        name=name,
        estimate=estimate,
        se=se,
        ci_low=low,
        ci_high=high,
        z=z,
        p=math.erfc(abs(z) / math.sqrt(2)),
        odds_ratio=_exp(estimate),
        odds_ratio_low=_exp(low),
        odds_ratio_high=_exp(high),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf
