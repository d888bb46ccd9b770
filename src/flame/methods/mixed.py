"""Linear mixed model with a random intercept, by (restricted) maximum likelihood.

Given the ratio of the variances, all that the likelihood needs are sums over clusters of a few products of cluster
totals; hospitals give them for a row of ratios at once, and each round narrows the interval in which the derivative of
the likelihood changes its sign. A cluster lies within a hospital, or is the hospital; its name is told to nobody.
Laird & Ware 1982; Pinheiro & Bates 2000, ch. 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Missing, Rows, Taken, Variable, merged, read_ranges, with_ranges
from flame.methods.algebra import check_rank, inverse, pack, unpack
from flame.methods.distributions import NORMAL_975, normal_two_sided
from flame.methods.method import Question, Result, Summary
from flame.methods.terms import INTERCEPT, terms
from flame.model.errors import Invalid

Floats = NDArray[np.float64]

SITE = "site"
_RATIOS = 16
_NARROW = 1e-11
_FIRST = np.concatenate([[0.0], np.logspace(-6, 6, _RATIOS - 1)])


@dataclass(frozen=True, kw_only=True)
class Effect:
    name: str
    estimate: float
    se: float
    ci_low: float
    ci_high: float
    z: float
    p: float


@dataclass(frozen=True, kw_only=True)
class MixedResult(Result):
    method: str
    outcome: str
    cluster: str
    reml: bool
    coefficients: tuple[Effect, ...]
    cluster_variance: float
    residual_variance: float
    intraclass_correlation: float
    log_likelihood: float
    n: int
    clusters: int
    dropped: int
    converged: bool


@dataclass(frozen=True)
class Profile:
    """The likelihood at one ratio of the variances."""

    ratio: float
    log_likelihood: float
    slope: float
    """Of minus twice the log-likelihood."""
    coefficients: Floats
    inverse: Floats
    variance: float


@dataclass(frozen=True)
class MixedFit:
    names: tuple[str, ...]
    sources: tuple[str, ...]
    mean: Floats | None = None
    n: int = 0
    clusters: int = 0
    dropped: int = 0
    cross: Floats | None = None
    ratios: Floats = field(default_factory=_FIRST.copy)
    rounds: int = 0
    found: Profile | None = None
    converged: bool = False


class MixedLinear(Agreed[MixedFit, MixedResult]):
    """``cluster``: a column that says which rows belong together within a hospital, or "site" for the hospital."""

    name: ClassVar[str] = "mixed-linear"

    def __init__(
        self,
        outcome: str | None = None,
        covariates: Sequence[str] | None = None,
        *,
        cluster: str = SITE,
        formula: str | None = None,
        references: Sequence[str] = (),
        reml: bool = True,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
        max_iterations: int = 40,
    ) -> None:
        self.terms, named = terms(covariates, formula, references)
        if not (outcome or named) or (outcome and named and outcome != named):
            raise Invalid("Name one outcome: as a parameter, or on the left of the formula.")
        if not self.terms.intercept:
            raise Invalid("A random intercept needs a constant in the model.")
        self.outcome = outcome or named or ""
        self.cluster, self.reml, self.missing, self.max_iterations = cluster, reml, missing, max_iterations
        own = [Variable(self.outcome, "number")] + ([Variable(cluster, "label")] if cluster != SITE else [])
        if {v.name for v in own} & {v.name for v in self.terms.variables} or cluster == self.outcome:
            raise Invalid("The outcome, the cluster and the covariates are different columns.")
        self.variables = with_ranges(merged([*own, *self.terms.variables]), read_ranges(ranges))

    def begin(self, layout: Layout) -> MixedFit:
        return MixedFit(self.terms.names(layout), self.terms.sources(layout))

    def ask(self, state: MixedFit) -> Question | None:
        if state.mean is None:
            return {"step": "means"}
        if state.cross is None:
            return {"step": "cross", "mean": state.mean}
        return {"step": "ratios", "mean": state.mean, "ratios": state.ratios} if state.found is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete([v.name for v in self.variables])
        complete = rows.take(kept)
        z = np.column_stack([self.terms.matrix(complete), complete.numbers[self.outcome]])
        code = complete.codes[self.cluster] if self.cluster != SITE else np.zeros(complete.n, dtype=np.intp)
        _, place, size = np.unique(code, return_inverse=True, return_counts=True)
        if question["step"] == "means":
            return {"n": complete.n, "dropped": int((~kept).sum()), "clusters": len(size), "sum": z.sum(axis=0)}
        z = z - question["mean"]
        if question["step"] == "cross":
            return {"n": complete.n, "cross": pack(z.T @ z)}
        sums = np.zeros((len(size), z.shape[1]))
        np.add.at(sums, place, z)
        upper = np.triu_indices(z.shape[1])
        products = sums[:, upper[0]] * sums[:, upper[1]]
        ratio = np.asarray(question["ratios"])[:, np.newaxis]
        grown = 1 + ratio * size
        return {
            "n": complete.n,
            "taken": (ratio / grown) @ products,
            "taken_slope": (1 / grown**2) @ products,
            "log": np.log(grown).sum(axis=1),
            "log_slope": (size / grown).sum(axis=1),
        }

    def learn(self, state: MixedFit, total: Summary, contributors: int) -> MixedFit:
        if state.mean is None:
            n, clusters = round(total["n"]), round(total["clusters"])
            if n < 1:
                raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
            if clusters < 2 or clusters >= n or n <= len(state.names):
                raise Invalid(f"There are {clusters} clusters in {n} records: their variance cannot be told apart.")
            mean = np.asarray(total["sum"]) / n
            mean[state.names.index(INTERCEPT)] = 0.0
            return replace(state, n=n, clusters=clusters, dropped=round(total["dropped"]), mean=mean)
        if state.cross is None:
            cross = unpack(np.asarray(total["cross"]), len(state.names) + 1)
            check_rank(cross[:-1, :-1], state.sources)
            return replace(state, cross=cross)
        return self._narrow(state, [self._profile(state, total, i) for i in range(len(state.ratios))])

    def conclude(self, state: MixedFit, taken: Taken) -> MixedResult:
        assert state.found is not None and state.mean is not None
        back = np.eye(len(state.names))
        constant = state.names.index(INTERCEPT)
        back[constant] -= state.mean[:-1]
        back[constant, constant] = 1.0
        estimates = back @ state.found.coefficients
        estimates[constant] += state.mean[-1]
        errors = np.sqrt(np.diag(back @ state.found.inverse @ back.T) * state.found.variance)
        return MixedResult(
            method=self.name,
            outcome=self.outcome,
            cluster=self.cluster,
            reml=self.reml,
            coefficients=tuple(
                _effect(name, float(b), float(se)) for name, b, se in zip(state.names, estimates, errors, strict=True)
            ),
            cluster_variance=state.found.ratio * state.found.variance,
            residual_variance=state.found.variance,
            intraclass_correlation=state.found.ratio / (1 + state.found.ratio),
            log_likelihood=state.found.log_likelihood,
            n=state.n,
            clusters=state.clusters,
            dropped=state.dropped,
            converged=state.converged,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    # --- where the sum is -------------------------------------------------------------------------------------------

    def _profile(self, state: MixedFit, total: Summary, i: int) -> Profile:
        assert state.cross is not None
        k = len(state.names)
        full = state.cross - unpack(np.asarray(total["taken"][i]), k + 1)
        slope = -unpack(np.asarray(total["taken_slope"][i]), k + 1)
        inverted = inverse(full[:k, :k], state.sources)
        b = inverted @ full[:k, k]
        signed = np.append(-b, 1.0)  # the residual sum of squares is a quadratic form in it, and so is its derivative
        rest, rest_slope = float(signed @ full @ signed), float(signed @ slope @ signed)
        if rest <= 0:
            raise Invalid("The covariates explain the outcome without rest.")
        df = state.n - k if self.reml else state.n
        twice = df * (math.log(2 * math.pi * rest / df) + 1) + float(total["log"][i])
        derivative = df * rest_slope / rest + float(total["log_slope"][i])
        if self.reml:
            twice += float(np.linalg.slogdet(full[:k, :k])[1])
            derivative += float(np.sum(inverted * slope[:k, :k]))
        return Profile(float(state.ratios[i]), -twice / 2, derivative, b, inverted, rest / df)

    def _narrow(self, state: MixedFit, profiles: Sequence[Profile]) -> MixedFit:
        state = replace(state, rounds=state.rounds + 1)
        best = max(range(len(profiles)), key=lambda i: profiles[i].log_likelihood)
        turns = [i for i in range(len(profiles) - 1) if profiles[i].slope < 0 <= profiles[i + 1].slope]
        if not turns:  # the likelihood falls from the first ratio on, or rises to the last
            end = profiles[0] if profiles[0].slope >= 0 else profiles[-1]
            return replace(state, found=end, converged=end.ratio == 0.0 or state.rounds > 1)
        at = min(turns, key=lambda i: min(abs(i - best), abs(i + 1 - best)))
        low, high = profiles[at], profiles[at + 1]
        exhausted = state.rounds >= self.max_iterations
        if high.ratio - low.ratio <= _NARROW * high.ratio or exhausted:
            return replace(state, found=low, converged=not exhausted)
        return replace(state, ratios=np.linspace(low.ratio, high.ratio, _RATIOS))


def _effect(name: str, b: float, se: float) -> Effect:
    return Effect(
        name=name,
        estimate=b,
        se=se,
        ci_low=b - NORMAL_975 * se,
        ci_high=b + NORMAL_975 * se,
        z=b / se,
        p=normal_two_sided(b / se),
    )
