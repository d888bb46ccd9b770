"""Generalised linear models by Fisher scoring over sums: exactly the pooled fit, for five families.

First the hospitals agree on the design; then they sum its columns, so that all work about common means (an age or a
year costs no digits); then each round sums, at the coefficients in question, deviance, score and information.
Weights and offsets enter each hospital's own terms. Ridge, lasso and elastic net need nothing more from the
hospitals: the penalty is added where the sum is (proximal Newton: Lee, Sun & Saunders 2014).
McCullagh & Nelder 1989; separation: Albert & Anderson 1984.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import (
    Agreed,
    Layout,
    Missing,
    Rows,
    Taken,
    Variable,
    merged,
    read_ranges,
    with_ranges,
)
from flame.methods.algebra import check_rank, dying_direction, inverse, pack, solve, unpack
from flame.methods.distributions import NORMAL_975, normal_two_sided, t_975, t_two_sided
from flame.methods.families import Family, family
from flame.methods.method import ColumnScale, Question, Result, Summary
from flame.methods.terms import INTERCEPT, terms
from flame.model.errors import Invalid, OutOfDomain, Separated, Singular

Floats = NDArray[np.float64]
WeightKind = Literal["frequency", "precision"]

_STEP = 1e-12
"""Converged: no coefficient moves by more than this, relative to itself and its standard error."""
_NOISE = 1e-6
_SHRINK = 0.9
"""Below _NOISE a step must shrink by this (scoring converges linearly where the link is not canonical); if not, rounding
or the quantisation of a secure sum is all that is left of it, and the fit is as good as the sums are."""
_FALL = 1e-10
_SEPARATED = 1e-8
_MAX_HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One coefficient. ``effect``: its exponential where the link is a log or a logit (ratio of odds, rates, means)."""

    name: str
    estimate: float
    se: float | None
    ci_low: float | None
    ci_high: float | None
    statistic: float | None
    p: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    vif: float | None


@dataclass(frozen=True, kw_only=True)
class GlmResult(Result):
    method: str
    outcome: str
    family: str
    link: str
    coefficients: tuple[Estimate, ...]
    statistic: Literal["t", "z"]
    log_likelihood: float
    null_log_likelihood: float | None
    """Without an offset only: of the intercept alone."""
    deviance: float
    null_deviance: float | None
    pearson: float
    dispersion: float
    alpha: float | None
    """Negative binomial: variance = mu + alpha mu**2."""
    r_squared: float | None
    aic: float
    bic: float
    n: int
    events: int | None
    weight: float
    df_residual: float
    dropped: int
    penalty: float
    l1_ratio: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Fit:
    """Where the iteration stands; coefficients refer to centred columns."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    mean: Floats | None = None
    n: int = 0
    dropped: int = 0
    weight: float = 0.0
    outcome: float = 0.0
    """Weighted sum of the outcome."""
    at: Floats | None = None
    alpha: float = 1.0
    best: Floats | None = None
    objective: float = math.inf
    total: Summary | None = None
    null: Summary | None = None
    information: Floats | None = None
    cross: Floats | None = None
    step: Floats | None = None
    size: float = math.inf
    halvings: int = 0
    iterations: int = 0
    finished: bool = False
    converged: bool = False


class Glm(Agreed[Fit, GlmResult]):
    """``Glm(formula="visits ~ age + C(sex)", family="poisson")``, or ``outcome`` and ``covariates``.

    ``weights``: a column of weights; "frequency" counts a row as that many, "precision" divides its variance.
    ``offset``: a column added to the linear predictor. ``exposure``: the same by its logarithm.
    ``penalty`` λ and ``l1_ratio`` α minimise −loglik/n + λ(α‖b‖₁ + (1 − α)/2 ‖b‖²), the constant left free.
    ``standardise``: each column as (x - mean) / sd over all hospitals, for the penalty and in the result.
    ``alpha`` fixes the dispersion of the negative binomial.
    Raises Singular, Separated, or Invalid, each naming what to look at.
    """

    name: ClassVar[str] = "glm"

    def __init__(
        self,
        outcome: str | None = None,
        covariates: Sequence[str] | None = None,
        *,
        formula: str | None = None,
        family: str = "gaussian",
        link: str | None = None,
        levels: Sequence[str] | None = None,
        references: Sequence[str] = (),
        intercept: bool = True,
        weights: str | None = None,
        weight_kind: WeightKind = "frequency",
        offset: str | None = None,
        exposure: str | None = None,
        penalty: float = 0.0,
        l1_ratio: float = 0.0,
        standardise: bool = False,
        alpha: float | None = None,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
        max_iterations: int = 100,
    ) -> None:
        self.family = _family(family, link)
        self.terms, named = terms(covariates, formula, references, intercept)
        self.outcome = _one_outcome(outcome, named)
        if self.outcome in {v.name for v in self.terms.variables}:
            raise Invalid("The outcome and the covariates must be different columns.")
        if levels and (self.family.name != "binomial" or len(levels) != 2 or levels[0] == levels[1]):
            raise Invalid("levels names two different texts of a binary outcome: (no event, event).")
        if penalty < 0 or not 0 <= l1_ratio <= 1 or not math.isfinite(penalty):
            raise Invalid("penalty is not negative, and l1_ratio is between 0 and 1.")
        if alpha is not None and (self.family.name != "negative-binomial" or not alpha > 0):
            raise Invalid("alpha is a positive number, and belongs to the negative binomial.")
        if offset and exposure:
            raise Invalid("Give an offset or an exposure, not both.")
        if weight_kind not in ("frequency", "precision") or missing not in ("drop", "error"):
            raise Invalid("weight_kind is 'frequency' or 'precision'; missing is 'drop' or 'error'.")
        if standardise and not self.terms.intercept:
            raise Invalid("Columns are standardised about their means, which needs a constant in the model.")
        if self.family.link == "inverse" and not self.terms.intercept:
            raise Invalid("The inverse link needs a constant to start from.")
        self.levels = tuple(levels) if levels else ()
        self.weights, self.weight_kind = weights, weight_kind
        self.offset, self.exposure = offset, exposure
        self.penalty, self.l1_ratio, self.standardise = float(penalty), float(l1_ratio), standardise
        self.fixed_alpha = alpha
        self.missing = missing
        self.max_iterations = max_iterations
        extra = [Variable(c, "number") for c in (weights, offset, exposure) if c]
        outcome_kind = Variable(self.outcome, "category" if self.levels else "number", self.levels)
        self.variables = with_ranges(merged([outcome_kind, *self.terms.variables, *extra]), read_ranges(ranges))

    def begin(self, layout: Layout) -> Fit:
        names = self.terms.names(layout)
        if not names:
            raise Invalid("The model has no columns at all.")
        return Fit(names, self.terms.sources(layout), alpha=self.fixed_alpha or 1.0)

    def ask(self, state: Fit) -> Question | None:
        if state.mean is None:
            return {"step": "means"}
        if state.finished:
            return None
        assert state.at is not None
        question = {"step": "score", "mean": state.mean, "at": state.at, "alpha": state.alpha}
        return question | {"cross": state.cross is None}

    def answer(self, rows: Rows, question: Question) -> Summary:
        x, y, weight, offset, dropped = self._design(rows)
        if question["step"] == "means":
            return {
                "n": len(y),
                "dropped": dropped,
                "weight": float(weight.sum()),
                "outcome": float((weight * y).sum()),
                "columns": x.sum(axis=0),
            }
        x = x - question["mean"]
        alpha = float(question["alpha"])
        eta = x @ question["at"] + offset
        mu, slope = self.family.mean(eta)
        variance = self.family.variance(mu, alpha)
        # With the canonical link slope and variance are the same, and their quotient must not be taken where both vanish.
        factor = np.ones_like(mu) if self.family.is_canonical else slope / variance
        score = weight * (y - mu) * factor
        information = (x * (weight * slope * factor)[:, np.newaxis]).T @ x
        summary = {
            "n": len(y),
            "score": score @ x,
            "information": pack(information),
            "pearson": float((weight * (y - mu) ** 2 / variance).sum()),
            "log_weight": float(np.log(weight[weight > 0]).sum()) if self.weight_kind == "precision" else 0.0,
            **self.family.sums(y, mu, eta, weight, alpha),
        }
        return summary | ({"cross": pack(x.T @ x)} if question["cross"] else {})

    def learn(self, state: Fit, total: Summary, contributors: int) -> Fit:
        if state.mean is None:
            return self._begin_fit(state, total)
        assert state.at is not None
        if state.cross is None:
            cross = unpack(np.asarray(total["cross"]), len(state.names))
            check_rank(cross, state.sources)
            state = replace(state, cross=cross, null=total)
        assert state.at is not None
        objective = self._objective(state, total, state.at)
        if state.best is not None and objective > state.objective + _FALL * (1 + abs(state.objective)):
            return self._halve(state)
        return self._accept(state, total, objective)

    def conclude(self, state: Fit, taken: Taken) -> GlmResult:
        assert state.best is not None and state.total is not None and state.information is not None
        k = len(state.names)
        count = state.weight if self.weight_kind == "frequency" else float(state.n)
        df = count - k
        dispersion = float(state.total["pearson"]) / df if self.family.has_dispersion and df > 0 else 1.0
        likelihood = self._log_likelihood(state.total, count, dispersion)
        plain = self.penalty == 0
        constant_only = self.terms.intercept and not self.offset and not self.exposure and state.null is not None
        null_deviance = float(state.null["deviance"]) if constant_only and state.null is not None else None
        null_likelihood = None
        if constant_only and state.null is not None and self.family.name != "negative-binomial":
            scale = float(state.null["pearson"]) / (count - 1) if self.family.has_dispersion and count > 1 else 1.0
            null_likelihood = self._log_likelihood(state.null, count, scale)
        deviance = float(state.total["deviance"])
        free = k + (self.family.name == "negative-binomial" and self.fixed_alpha is None)
        use_t = self.family.name == "gaussian"
        gaussian_r2 = use_t and null_deviance is not None and null_deviance > 0 and self.family.link == "identity"
        return GlmResult(
            method=self.name,
            outcome=self.outcome,
            family=self.family.name,
            link=self.family.link,
            coefficients=self._estimates(state, dispersion, df if use_t else None, plain),
            statistic="t" if use_t else "z",
            log_likelihood=likelihood,
            null_log_likelihood=null_likelihood,
            deviance=deviance,
            null_deviance=null_deviance,
            pearson=float(state.total["pearson"]),
            dispersion=dispersion,
            alpha=state.alpha if self.family.name == "negative-binomial" else None,
            r_squared=1 - deviance / null_deviance if gaussian_r2 and null_deviance else None,
            aic=-2 * likelihood + 2 * free,
            bic=-2 * likelihood + math.log(count) * free,
            n=state.n,
            events=round(state.outcome) if self.family.name == "binomial" and not self.weights else None,
            weight=state.weight,
            df_residual=df,
            dropped=state.dropped,
            penalty=self.penalty,
            l1_ratio=self.l1_ratio,
            iterations=state.iterations,
            converged=state.converged,
            rounds=taken.rounds,
            contributors=taken.contributors,
            scale=self._scales(state),
        )

    def _log_likelihood(self, total: Summary, count: float, scale: float) -> float:
        likelihood = self.family.log_likelihood(total, count, scale)
        return likelihood + (0.5 * float(total["log_weight"]) if self.family.name == "gaussian" else 0.0)

    # --- at a hospital ----------------------------------------------------------------------------------------------

    def _design(self, rows: Rows) -> tuple[Floats, Floats, Floats, Floats, int]:
        kept = rows.complete([v.name for v in self.variables])
        complete = rows.take(kept)
        y = (
            complete.codes[self.outcome].astype(np.float64)
            if self.outcome in complete.codes
            else complete.numbers[self.outcome]
        )
        self.family.check(y, self.outcome)
        weight = np.ones(complete.n)
        if self.weights:
            weight = complete.numbers[self.weights]
            if (weight < 0).any():
                raise OutOfDomain(self.weights)
        offset = np.zeros(complete.n)
        if self.offset:
            offset = complete.numbers[self.offset]
        elif self.exposure:
            if (complete.numbers[self.exposure] <= 0).any():
                raise OutOfDomain(self.exposure)
            offset = np.log(complete.numbers[self.exposure])
        return self.terms.matrix(complete), y, weight, offset, int((~kept).sum())

    # --- where the sum is -------------------------------------------------------------------------------------------

    def _begin_fit(self, state: Fit, total: Summary) -> Fit:
        n, weight, outcome = round(total["n"]), float(total["weight"]), float(total["outcome"])
        if n < 1 or not weight > 0:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        mean = np.asarray(total["columns"]) / n
        at = np.zeros(len(mean))
        average = outcome / weight
        if self.family.name == "binomial" and (outcome <= 0 or outcome >= weight):
            raise Invalid(f"The outcome '{self.outcome}' is {'always' if outcome else 'never'} 1: there is no fit.")
        if self.family.name != "gaussian" and average <= 0:
            raise Invalid(f"The outcome '{self.outcome}' is always 0: there is no fit.")
        if self.terms.intercept:
            mean[state.names.index(INTERCEPT)] = 0.0
            at[state.names.index(INTERCEPT)] = self.family.linear(average)
        else:
            mean[:] = 0.0
        return replace(state, mean=mean, at=at, n=n, dropped=round(total["dropped"]), weight=weight, outcome=outcome)

    def _accept(self, state: Fit, total: Summary, objective: float) -> Fit:
        assert state.at is not None and state.cross is not None
        information = unpack(np.asarray(total["information"]), len(state.names))
        self._check_separation(state, information)
        alpha, moved = self._next_alpha(state, total)
        step = self._step(state, information, np.asarray(total["score"]), total)
        reference = state.information if state.information is not None else information
        deviation = np.sqrt(np.diag(inverse(self._penalised(state, reference, total), state.sources)))
        scale = np.abs(state.at) + deviation * math.sqrt(self._scale(state, total))
        size = max(float(np.max(np.abs(step) / scale)), moved)
        converged = size <= _STEP or (size <= _NOISE and size > state.size * _SHRINK)
        exhausted = state.iterations >= self.max_iterations
        done = converged or exhausted
        return replace(
            state,
            best=state.at,
            objective=objective if alpha == state.alpha or done else math.inf,
            total=total,
            information=information,
            step=step,
            size=size,
            at=state.at + step,
            alpha=state.alpha if done else alpha,
            halvings=0,
            iterations=state.iterations + (not done),
            finished=done,
            converged=converged,
        )

    def _halve(self, state: Fit) -> Fit:
        assert state.best is not None and state.step is not None
        if state.halvings >= _MAX_HALVINGS:
            return replace(state, finished=True, converged=False)
        step = state.step / 2
        return replace(state, step=step, at=state.best + step, halvings=state.halvings + 1)

    def _next_alpha(self, state: Fit, total: Summary) -> tuple[float, float]:
        """A Newton step on log(alpha) beside the one on the coefficients; they are orthogonal in expectation."""
        if self.family.name != "negative-binomial" or self.fixed_alpha is not None:
            return state.alpha, 0.0
        first, second = (float(v) for v in np.asarray(total["alpha"]))
        step = first / -second if second < 0 else math.copysign(0.5, first)
        step = max(-1.0, min(1.0, step))
        if state.alpha * math.exp(step) < 1e-8:
            raise Invalid(
                "The counts vary no more than Poisson counts: the negative binomial's alpha goes to 0.",
                next_step="Use the family poisson.",
            )
        return state.alpha * math.exp(step), abs(step)

    def _scale(self, state: Fit, total: Summary) -> float:
        df = max(state.n - len(state.names), 1)
        return max(float(total["pearson"]) / df, 1e-300) if self.family.has_dispersion else 1.0

    def _weights_of_penalty(self, state: Fit) -> Floats:
        """1 for each column, its standard deviation where standardised, 0 for the constant."""
        weights = self._deviations(state) if self.standardise else np.ones(len(state.names))
        if self.terms.intercept:
            weights[state.names.index(INTERCEPT)] = 0.0
        return weights

    def _deviations(self, state: Fit) -> Floats:
        """Standard deviations (divisor n) of the columns; 1 for the constant."""
        assert state.cross is not None
        return np.sqrt(np.diag(state.cross) / state.n)

    def _scales(self, state: Fit) -> tuple[ColumnScale, ...]:
        if not self.standardise:
            return ()
        assert state.mean is not None
        return tuple(
            ColumnScale(column=name, mean=float(mean), sd=float(sd))
            for name, mean, sd in zip(state.names, state.mean, self._deviations(state), strict=True)
            if name != INTERCEPT
        )

    def _ridge(self, state: Fit) -> Floats:
        return self._strength(state) * (1 - self.l1_ratio) * self._weights_of_penalty(state) ** 2

    def _strength(self, state: Fit) -> float:
        return self.penalty * state.weight

    def _objective(self, state: Fit, total: Summary, at: Floats) -> float:
        """Half the deviance and the penalty: what a good step makes smaller."""
        if self.penalty == 0:
            if self.family.name == "negative-binomial":
                return -float(total["likelihood"])
            return float(total["deviance"]) / 2
        lasso = self._strength(state) * self.l1_ratio * float(self._weights_of_penalty(state) @ np.abs(at))
        return float(total["deviance"]) / 2 + lasso + 0.5 * float(self._ridge(state) @ at**2)

    def _penalised(self, state: Fit, information: Floats, total: Summary) -> Floats:
        return information + np.diag(self._ridge(state)) if self.penalty else information

    def _step(self, state: Fit, information: Floats, score: Floats, total: Summary) -> Floats:
        assert state.at is not None
        if self.penalty == 0:
            return solve(information, score, state.sources)
        ridge = self._ridge(state)
        curved = information + np.diag(ridge)
        slope = score - ridge * state.at
        if self.l1_ratio == 0:
            return solve(curved, slope, state.sources)
        threshold = self._strength(state) * self.l1_ratio * self._weights_of_penalty(state)
        return _lasso(curved, curved @ state.at + slope, threshold, state.at) - state.at

    def _check_separation(self, state: Fit, information: Floats) -> None:
        """Raises Separated when the information has died away in some direction, next to that of the null model."""
        if self.family.name not in ("binomial", "poisson") or self.penalty or state.information is None:
            return
        assert state.cross is not None
        rate = state.outcome / state.weight
        null = state.cross * (rate * (1 - rate) if self.family.name == "binomial" else rate)
        direction = dying_direction(null, information, _SEPARATED)
        if direction is None:
            return
        if self.terms.intercept and len(direction) > 1:
            direction[state.names.index(INTERCEPT)] = 0.0
        raise Separated(state.sources[int(direction.argmax())])

    def _estimates(self, state: Fit, dispersion: float, df: float | None, plain: bool) -> tuple[Estimate, ...]:
        assert state.best is not None and state.mean is not None and state.information is not None
        k = len(state.names)
        constant = state.names.index(INTERCEPT) if self.terms.intercept else None
        if self.standardise:
            back = np.diag(self._deviations(state))
        else:  # from centred columns to the columns themselves: only the constant changes
            back = np.eye(k)
            if constant is not None:
                back[constant] -= state.mean
        estimates = back @ state.best
        errors: list[float | None] = [None] * k
        if plain and (df is None or df > 0):
            covariance = back @ (inverse(state.information, state.sources) * dispersion) @ back.T
            errors = [float(v) for v in np.sqrt(np.diag(covariance))]
        vif = self._vif(state, constant)
        ratio = self.family.link in ("logit", "log")
        quantile = NORMAL_975 if df is None else t_975(df) if df > 0 else math.nan
        return tuple(
            _estimate(name, float(b), se, quantile, df, ratio, v)
            for name, b, se, v in zip(state.names, estimates, errors, vif, strict=True)
        )

    def _vif(self, state: Fit, constant: int | None) -> list[float | None]:
        assert state.cross is not None
        if constant is None:
            return [None] * len(state.names)
        others = [j for j in range(len(state.names)) if j != constant]
        found: list[float | None] = [None] * len(state.names)
        if others:
            cross = state.cross[np.ix_(others, others)]
            width = np.sqrt(np.diag(cross))
            correlation = cross / np.outer(width, width)
            values = np.diag(inverse(correlation, [state.sources[j] for j in others]))
            for j, value in zip(others, values.tolist(), strict=True):
                found[j] = value
        return found


class Linear(Glm):
    """Ordinary (or weighted) least squares."""

    name: ClassVar[str] = "linear"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(outcome, covariates, family="gaussian", **options)


class LogisticRegression(Glm):
    """Logistic regression: log odds of a binary outcome."""

    name: ClassVar[str] = "logistic"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(outcome, covariates, family="binomial", **options)


class Poisson(Glm):
    """Poisson regression: log rates of counts."""

    name: ClassVar[str] = "poisson"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(outcome, covariates, family="poisson", **options)


class Gamma(Glm):
    """Gamma regression: positive, skewed outcomes."""

    name: ClassVar[str] = "gamma"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(outcome, covariates, family="gamma", **options)


class NegativeBinomial(Glm):
    """Negative binomial regression (NB2): counts that vary more than Poisson's."""

    name: ClassVar[str] = "negative-binomial"

    def __init__(self, outcome: str | None = None, covariates: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(outcome, covariates, family="negative-binomial", **options)


def _family(name: str, link: str | None) -> Family:
    return family(name, link)


def _one_outcome(outcome: str | None, named: str | None) -> str:
    if outcome is not None and named is not None and outcome != named:
        raise Invalid(f"The outcome is '{outcome}', and '{named}' in the formula.")
    chosen = outcome or named
    if not chosen:
        raise Invalid("No outcome is named.", next_step="Write it on the left of the formula, as in 'died ~ age'.")
    return chosen


def _lasso(curved: Floats, right: Floats, threshold: Floats, start: Floats) -> Floats:
    """min ½ b'Hb − r'b + Σ t|b| by coordinate descent; H is positive definite."""
    b = start.copy()
    gradient = right - curved @ b
    for _ in range(100_000):
        largest = 0.0
        for j in range(len(b)):
            free = gradient[j] + curved[j, j] * b[j]
            new = math.copysign(max(abs(free) - threshold[j], 0.0), free) / curved[j, j]
            change = new - b[j]
            if change:
                b[j] = new
                gradient -= curved[:, j] * change
                largest = max(largest, abs(change) * math.sqrt(curved[j, j]))
        if largest <= 1e-14 * (1 + math.sqrt(float(b @ curved @ b))):
            return b
    raise Singular("covariates")


def _estimate(
    name: str, b: float, se: float | None, quantile: float, df: float | None, ratio: bool, vif: float | None
) -> Estimate:
    low = high = statistic = p = None
    if se is not None and se > 0:
        low, high, statistic = b - quantile * se, b + quantile * se, b / se
        p = normal_two_sided(statistic) if df is None else t_two_sided(statistic, df)
    return Estimate(
        name=name,
        estimate=b,
        se=se,
        ci_low=low,
        ci_high=high,
        statistic=statistic,
        p=p,
        effect=_exp(b) if ratio else None,
        effect_low=_exp(low) if ratio and low is not None else None,
        effect_high=_exp(high) if ratio and high is not None else None,
        vif=vif,
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf
