"""Meta-analysis of each hospital's own fit: an average of local answers, and not the fit of the pooled data.

For where hospitals are studies of their own, and to see how much they differ. Each hospital fits the model to its own
rows; only weighted sums of estimates leave it. A hospital that cannot fit (too few rows, one outcome only) is counted
and left out. Fixed effect by inverse variance; random effects by DerSimonian & Laird 1986; heterogeneity: Cochran's Q,
Higgins & Thompson's I² 2002.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Rows, Taken
from flame.methods.distributions import NORMAL_975, chi2_tail, normal_two_sided
from flame.methods.glm import Glm
from flame.methods.method import Question, Result, Summary
from flame.model.errors import Invalid

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Combined:
    name: str
    hospitals: int
    fixed: float
    fixed_se: float
    fixed_low: float
    fixed_high: float
    fixed_p: float
    random: float
    random_se: float
    random_low: float
    random_high: float
    random_p: float
    tau_squared: float
    q: float
    q_p: float
    i_squared: float


@dataclass(frozen=True, kw_only=True)
class MetaResult(Result):
    method: str
    caution: str
    outcome: str
    family: str
    coefficients: tuple[Combined, ...]
    hospitals: int
    left_out: int
    """Hospitals whose own data do not determine the fit."""
    n: int


@dataclass(frozen=True)
class Combining:
    names: tuple[str, ...]
    layout: Layout
    shift: Floats | None = None
    first: Summary | None = None
    spread: Floats | None = None
    random: Summary | None = None


class MetaAnalysis(Agreed[Combining, MetaResult]):
    """The parameters are those of ``Glm``; each hospital fits that model alone."""

    name: ClassVar[str] = "meta-analysis"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        self.model = Glm(outcome, covariates, **options)
        if self.model.penalty:
            raise Invalid("Penalised estimates have no standard errors to combine them by.")
        self.variables, self.missing = self.model.variables, self.model.missing

    def begin(self, layout: Layout) -> Combining:
        return Combining(self.model.terms.names(layout), layout)

    def ask(self, state: Combining) -> Question | None:
        zeros = np.zeros(len(state.names))
        if state.first is None:
            return {"step": "combine", "spread": zeros, "shift": zeros}
        if state.shift is None:
            raise AssertionError("the first sum gives the shift")
        if state.spread is None:
            return {"step": "combine", "spread": zeros, "shift": state.shift}
        return {"step": "combine", "spread": state.spread, "shift": state.shift} if state.random is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        """Sums over hospitals of weights 1 / (variance + spread) and their moments about ``shift``."""
        k = len(question["shift"])
        fitted = self._own_fit(rows)
        weight, gap, used = np.zeros(k), np.zeros(k), 0
        if fitted is not None:
            estimate, se = fitted
            used, weight, gap = 1, 1 / (se**2 + question["spread"]), estimate - question["shift"]
        return {
            "n": rows.n,
            "hospitals": used,
            "left_out": int(rows.n > 0 and not used),
            "weight": weight,
            "weight2": weight**2,
            "first": weight * gap,
            "second": weight * gap**2,
        }

    def learn(self, state: Combining, total: Summary, contributors: int) -> Combining:
        if state.first is None:
            if not round(total["hospitals"]):
                raise Invalid("No hospital's own data determine the fit.", next_step="Fit the pooled model instead.")
            mean = np.asarray(total["first"]) / np.asarray(total["weight"])
            return replace(state, first=total, shift=mean)
        if state.spread is None:
            weight, hospitals = np.asarray(total["weight"]), round(total["hospitals"])
            rest = np.asarray(total["first"])
            q = np.maximum(np.asarray(total["second"]) - rest**2 / weight, 0.0)
            scale = weight - np.asarray(total["weight2"]) / weight
            with np.errstate(divide="ignore", invalid="ignore"):
                spread = np.where(scale > 0, np.maximum((q - (hospitals - 1)) / scale, 0.0), 0.0)
            return replace(state, first=dict(total) | {"q": q}, spread=spread)
        return replace(state, random=total)

    def conclude(self, state: Combining, taken: Taken) -> MetaResult:
        assert state.first is not None and state.random is not None
        assert state.shift is not None and state.spread is not None
        return MetaResult(
            method=self.name,
            caution="An average of the hospitals' own fits; the fit of the pooled data may be another.",
            outcome=self.model.outcome,
            family=self.model.family.name,
            coefficients=tuple(self._combined(state, j, name) for j, name in enumerate(state.names)),
            hospitals=round(state.first["hospitals"]),
            left_out=round(state.first["left_out"]),
            n=round(state.first["n"]),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    def _own_fit(self, rows: Rows) -> tuple[Floats, Floats] | None:
        """This hospital's estimates and errors; None when its data do not determine them."""
        layout: dict[str, Any] = dict.fromkeys(rows.numbers) | dict(rows.levels)
        state = self.model.begin(layout)
        try:
            while (question := self.model.ask(state)) is not None:
                state = self.model.learn(state, self.model.answer(rows, question), 1)
            found = self.model.conclude(state, Taken(0, 1)).coefficients
        except Invalid:
            return None
        if not state.converged or any(c.se is None or not math.isfinite(c.se) or c.se <= 0 for c in found):
            return None
        return np.array([c.estimate for c in found]), np.array([c.se for c in found], dtype=np.float64)

    def _combined(self, state: Combining, j: int, name: str) -> Combined:
        assert state.first is not None and state.random is not None
        assert state.shift is not None and state.spread is not None
        hospitals = round(state.first["hospitals"])
        q = float(state.first["q"][j])
        averages = []
        for total in (state.first, state.random):
            weight = float(total["weight"][j])
            mean, se = float(state.shift[j]) + float(total["first"][j]) / weight, 1 / math.sqrt(weight)
            averages.append((mean, se, mean - NORMAL_975 * se, mean + NORMAL_975 * se, normal_two_sided(mean / se)))
        (fixed, fixed_se, *fixed_rest), (random, random_se, *random_rest) = averages
        return Combined(
            name=name,
            hospitals=hospitals,
            fixed=fixed,
            fixed_se=fixed_se,
            fixed_low=fixed_rest[0],
            fixed_high=fixed_rest[1],
            fixed_p=fixed_rest[2],
            random=random,
            random_se=random_se,
            random_low=random_rest[0],
            random_high=random_rest[1],
            random_p=random_rest[2],
            tau_squared=float(state.spread[j]),
            q=q,
            q_p=chi2_tail(q, hospitals - 1),
            i_squared=max(0.0, 1 - (hospitals - 1) / q) if q > 0 else 0.0,
        )
