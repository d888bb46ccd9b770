"""Cox regression by Newton's method on risk-set sums: exactly the pooled partial likelihood.

At each event time of the published grid the hospitals sum, over their patients at risk and over their events, exp(xb)
and its first and second moments in x; the partial likelihood, its score and its information follow from those sums.
Stratified by hospital each partial likelihood stands alone and adds, so that no grid has to be published.
Cox 1972; ties: Breslow 1974, Efron 1977; Therneau & Grambsch 2000, ch. 3 and 6 (test of proportional hazards).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from flame.methods.distributions import NORMAL_975, chi2_tail, normal_two_sided
from flame.methods.event_times import FIRST_CELLS, Lives, at_events, at_risk, lives, read_times, times_sketch
from flame.methods.method import Question, Result, Summary
from flame.methods.terms import INTERCEPT, terms
from flame.model.errors import Invalid, OutOfDomain, Separated

Floats = NDArray[np.float64]
Ties = Literal["efron", "breslow"]

SITE = "site"
"""The stratum that is the hospital itself."""
_STEP = 1e-12
_NOISE = 1e-6
_FALL = 1e-10
_SEPARATED = 1e-8
_MAX_HALVINGS = 30
_STUCK = 1e-3
"""The same for an iteration that gets no farther."""
_FARTHEST = 600.0
"""exp of more than this, times squares, leaves the range of numbers; a step that goes there is halved anyway."""


@dataclass(frozen=True, kw_only=True)
class HazardRatio:
    name: str
    estimate: float
    """log hazard ratio per unit"""
    se: float
    ci_low: float
    ci_high: float
    z: float
    p: float
    hazard_ratio: float
    hazard_ratio_low: float
    hazard_ratio_high: float


@dataclass(frozen=True, kw_only=True)
class Proportionality:
    """Schoenfeld residuals against the event times' ranks (Grambsch & Therneau 1994): small p, hazards not proportional."""

    name: str
    statistic: float
    p: float


@dataclass(frozen=True, kw_only=True)
class BaselinePoint:
    """For covariates at their means over all hospitals."""

    stratum: str
    time: float
    cumulative_hazard: float
    survival: float


@dataclass(frozen=True, kw_only=True)
class CoxResult(Result):
    method: str
    duration: str
    event: str
    ties: str
    strata: tuple[str, ...]
    coefficients: tuple[HazardRatio, ...]
    log_likelihood: float
    null_log_likelihood: float
    likelihood_ratio: float
    likelihood_ratio_p: float
    proportionality: tuple[Proportionality, ...]
    baseline: tuple[BaselinePoint, ...]
    bin_width: float | None
    n: int
    events: int
    dropped: int
    iterations: int
    converged: bool


@dataclass(frozen=True)
class RiskSums:
    """Log partial likelihood, score, information, and what each time adds."""

    log_likelihood: float
    score: Floats
    information: Floats
    hazard: Floats
    schoenfeld: Floats
    """At each time: the events' covariates minus those expected, shape (times, p)."""


@dataclass(frozen=True)
class CoxFit:
    names: tuple[str, ...]
    sources: tuple[str, ...]
    strata: tuple[str, ...]
    cells: int = FIRST_CELLS
    mean: Floats | None = None
    times: Floats | None = None
    n: int = 0
    events: int = 0
    dropped: int = 0
    at: Floats | None = None
    best: Floats | None = None
    log_likelihood: float = -math.inf
    null_log_likelihood: float = math.nan
    information: Floats | None = None
    first_information: Floats | None = None
    sums: RiskSums | None = None
    deaths: Floats | None = None
    step: Floats | None = None
    size: float = math.inf
    halvings: int = 0
    iterations: int = 0
    finished: bool = False
    converged: bool = False


class Cox(Agreed[CoxFit, CoxResult]):
    """``Cox("time", "status", formula="age + C(stage)")``, or a list of ``covariates``.

    ``strata``: columns, and "site" for the hospital itself (then nothing is told about event times).
    ``bin_width`` rounds times up to its multiples. ``entry``: a column of late entries; ``weights``: case weights
    (Breslow's ties only). Raises Singular, Separated, Invalid.
    """

    name: ClassVar[str] = "cox"

    def __init__(
        self,
        duration: str,
        event: str,
        covariates: Sequence[str] | None = None,
        *,
        formula: str | None = None,
        references: Sequence[str] = (),
        ties: Ties = "efron",
        strata: Sequence[str] = (),
        entry: str | None = None,
        weights: str | None = None,
        bin_width: float | None = None,
        baseline: bool = True,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
        max_iterations: int = 50,
    ) -> None:
        if ties not in ("efron", "breslow"):
            raise Invalid("ties is 'efron' or 'breslow'.")
        if weights and ties == "efron":
            raise Invalid("Case weights need ties='breslow'.")
        if bin_width is not None and not bin_width > 0:
            raise Invalid("bin_width is positive.")
        if formula is not None and "~" not in formula:
            formula = f"~ {formula}"
        self.terms, named = terms(covariates, formula, references)
        if named:
            raise Invalid("The formula of a Cox model has no left side: duration and event are parameters.")
        strata = [strata] if isinstance(strata, str) else list(strata)
        self.by_site = SITE in strata
        self.strata = tuple(s for s in strata if s != SITE)
        self.duration, self.event, self.entry, self.weights = duration, event, entry, weights
        self.ties, self.bin_width, self.baseline = ties, bin_width, baseline
        self.missing, self.max_iterations = missing, max_iterations
        used = {v.name for v in self.terms.variables} & {duration, event, entry, *self.strata}
        if used:
            raise Invalid(f"'{sorted(str(u) for u in used)[0]}' is a covariate and something else at once.")
        numbers = [Variable(c, "number") for c in (duration, event, entry, weights) if c]
        strata_columns = [Variable(s, "category") for s in self.strata]
        self.variables = with_ranges(merged([*numbers, *self.terms.variables, *strata_columns]), read_ranges(ranges))

    def begin(self, layout: Layout) -> CoxFit:
        keep = [j for j, name in enumerate(self.terms.names(layout)) if name != INTERCEPT]
        names, sources = self.terms.names(layout), self.terms.sources(layout)
        if not keep:
            raise Invalid("A Cox model needs a covariate.")
        strata = [""]
        for column in self.strata:
            strata = [f"{s}, {column}={level}".lstrip(", ") for s in strata for level in layout[column] or ()]
        return CoxFit(tuple(names[j] for j in keep), tuple(sources[j] for j in keep), tuple(strata))

    def ask(self, state: CoxFit) -> Question | None:
        if state.mean is None or (state.times is None and not self.by_site):
            return {"step": "times", "cells": state.cells}
        if state.finished:
            return None
        question = {"step": "sums", "mean": state.mean, "at": state.at}
        return question if self.by_site else question | {"times": state.times}

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete([v.name for v in self.variables])
        complete = rows.take(kept)
        found = lives(complete, self.duration, self.event, self.bin_width, self.entry)
        x = self._columns(complete)
        if question["step"] == "times":
            summary = {
                "n": complete.n,
                "events": int(found.event.sum()),
                "dropped": int((~kept).sum()),
                "columns": x.sum(axis=0),
            }
            return summary if self.by_site else summary | {"times": times_sketch(found, int(question["cells"]))}
        x = x - question["mean"]
        stratum, count = self._stratum(complete)
        weight = self._weight(complete)
        at = np.asarray(question["at"])
        if self.by_site:
            grid = np.unique(found.time[found.event])
            sums = self._sums(_totals(found, grid, stratum, count, x, weight, at), x.shape[1])
            return {
                "n": complete.n,
                "log_likelihood": sums.log_likelihood,
                "score": sums.score,
                "information": pack(sums.information),
            }
        return {"n": complete.n, **_totals(found, np.asarray(question["times"]), stratum, count, x, weight, at)}

    def learn(self, state: CoxFit, total: Summary, contributors: int) -> CoxFit:
        if "columns" in total:
            return self._first(state, total)
        assert state.at is not None
        if self.by_site:
            k = len(state.names)
            information = unpack(np.asarray(total["information"]), k)
            sums = RiskSums(
                float(total["log_likelihood"]), np.asarray(total["score"]), information, np.zeros(0), np.zeros((0, k))
            )
        else:
            sums = self._sums(total, len(state.names))
            state = replace(state, deaths=np.asarray(total["deaths"]))
        if state.best is not None and sums.log_likelihood < state.log_likelihood - _FALL * (
            1 + abs(state.log_likelihood)
        ):
            return self._halve(state)
        return self._accept(state, sums)

    def conclude(self, state: CoxFit, taken: Taken) -> CoxResult:
        assert state.best is not None and state.information is not None and state.sums is not None
        covariance = inverse(state.information, state.sources)
        ratio = 2 * (state.log_likelihood - state.null_log_likelihood)
        return CoxResult(
            method=self.name,
            duration=self.duration,
            event=self.event,
            ties=self.ties,
            strata=(SITE,) * self.by_site + self.strata,
            coefficients=tuple(
                _hazard_ratio(name, float(b), float(se))
                for name, b, se in zip(state.names, state.best, np.sqrt(np.diag(covariance)), strict=True)
            ),
            log_likelihood=state.log_likelihood,
            null_log_likelihood=state.null_log_likelihood,
            likelihood_ratio=ratio,
            likelihood_ratio_p=chi2_tail(ratio, len(state.names)),
            proportionality=self._proportionality(state, covariance),
            baseline=self._baseline(state) if self.baseline and not self.by_site else (),
            bin_width=self.bin_width,
            n=state.n,
            events=state.events,
            dropped=state.dropped,
            iterations=state.iterations,
            converged=state.converged,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    # --- at a hospital ----------------------------------------------------------------------------------------------

    def _columns(self, rows: Rows) -> Floats:
        layout: dict[str, Any] = dict.fromkeys(rows.numbers) | dict(rows.levels)
        keep = [j for j, name in enumerate(self.terms.names(layout)) if name != INTERCEPT]
        return self.terms.matrix(rows)[:, keep]

    def _stratum(self, rows: Rows) -> tuple[NDArray[np.intp], int]:
        code, count = np.zeros(rows.n, dtype=np.intp), 1
        for column in self.strata:
            code = code * len(rows.levels[column]) + rows.codes[column]
            count *= len(rows.levels[column])
        return code, count

    def _weight(self, rows: Rows) -> Floats:
        if not self.weights:
            return np.ones(rows.n)
        weight = rows.numbers[self.weights]
        if (weight < 0).any():
            raise OutOfDomain(self.weights)
        return weight

    # --- where the sum is -------------------------------------------------------------------------------------------

    def _first(self, state: CoxFit, total: Summary) -> CoxFit:
        n, events = round(total["n"]), round(total["events"])
        if n < 1:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        if events < 1:
            raise Invalid("No event was observed at any hospital: all times are censored.")
        state = replace(
            state,
            n=n,
            events=events,
            dropped=round(total["dropped"]),
            mean=np.asarray(total["columns"]) / n,
            at=np.zeros(len(state.names)),
        )
        if self.by_site:
            return state
        found = read_times(total["times"], state.cells)
        return replace(state, cells=found) if isinstance(found, int) else replace(state, times=found)

    def _sums(self, total: Mapping[str, Any], k: int) -> RiskSums:
        """Everything has the shape (strata * times, …); a time without events adds nothing."""
        died = np.asarray(total["deaths"])
        used = died > 0
        d = died[used].astype(float)
        weight = np.asarray(total["event_weight"])[used]
        s0, s1, s2 = (np.asarray(total[f"risk{i}"])[used] for i in range(3))
        d0, d1, d2 = (np.asarray(total[f"event{i}"])[used] for i in range(3))
        log_likelihood = float(np.asarray(total["event_linear"])[used].sum())
        observed = np.asarray(total["event_x"])[used]
        expected, curvature, hazard = np.zeros_like(s1), np.zeros(k * (k + 1) // 2), np.zeros(len(d))
        upper = np.triu_indices(k)
        for step in range(int(d.max()) if self.ties == "efron" and len(d) else 1):
            on = d > step
            if self.ties == "efron":
                part = (step / d[on])[:, np.newaxis]
                count = np.ones(int(on.sum()))
            else:
                part = np.zeros((int(on.sum()), 1))
                count = weight[on]
            m0 = s0[on] - part[:, 0] * d0[on]
            m1 = (s1[on] - part * d1[on]) / m0[:, np.newaxis]
            m2 = (s2[on] - part * d2[on]) / m0[:, np.newaxis]
            log_likelihood -= float((count * np.log(m0)).sum())
            expected[on] += count[:, np.newaxis] * m1
            curvature += count @ (m2 - m1[:, upper[0]] * m1[:, upper[1]])
            hazard[on] += count / m0
        residual = np.zeros((len(died), k))
        residual[used] = observed - expected
        steps = np.zeros(len(died))
        steps[used] = hazard
        return RiskSums(log_likelihood, residual.sum(axis=0), unpack(curvature, k), steps, residual)

    def _accept(self, state: CoxFit, sums: RiskSums) -> CoxFit:
        assert state.at is not None
        if state.first_information is None:
            check_rank(sums.information, state.sources)
            state = replace(state, first_information=sums.information, null_log_likelihood=sums.log_likelihood)
        assert state.first_information is not None
        assert state.at is not None
        self._check_separation(state, sums.information)
        step = solve(sums.information, sums.score, state.sources)
        scale = np.abs(state.at) + np.sqrt(np.diag(inverse(state.first_information, state.sources)))
        size = float(np.max(np.abs(step) / scale))
        converged = size <= _STEP or (size <= _NOISE and size > state.size / 4)
        done = converged or state.iterations >= self.max_iterations
        return replace(
            state,
            best=state.at,
            sums=sums,
            log_likelihood=sums.log_likelihood,
            information=sums.information,
            step=step,
            size=size,
            at=state.at + step,
            halvings=0,
            iterations=state.iterations + (not done),
            finished=done,
            converged=converged,
        )

    def _halve(self, state: CoxFit) -> CoxFit:
        assert state.best is not None and state.step is not None
        if state.halvings >= _MAX_HALVINGS:
            assert state.information is not None
            self._check_separation(state, state.information, _STUCK)
            return replace(state, finished=True, converged=False)
        step = state.step / 2
        return replace(state, step=step, at=state.best + step, halvings=state.halvings + 1)

    def _check_separation(self, state: CoxFit, information: Floats, limit: float = _SEPARATED) -> None:
        """Raises Separated when the information has died away in some direction: the likelihood has no maximum."""
        assert state.first_information is not None
        direction = dying_direction(state.first_information, information, limit)
        if direction is not None:
            raise Separated(state.sources[int(direction.argmax())])

    def _baseline(self, state: CoxFit) -> tuple[BaselinePoint, ...]:
        assert state.sums is not None and state.times is not None
        points = []
        for stratum, steps in zip(
            state.strata, state.sums.hazard.reshape(len(state.strata), len(state.times)), strict=True
        ):
            for time, step, total in zip(state.times.tolist(), steps, np.cumsum(steps).tolist(), strict=True):
                if step > 0:
                    points.append(
                        BaselinePoint(stratum=stratum, time=time, cumulative_hazard=total, survival=math.exp(-total))
                    )
        return tuple(points)

    def _proportionality(self, state: CoxFit, covariance: Floats) -> tuple[Proportionality, ...]:
        """One degree of freedom each, over the ranks of the event times."""
        if state.deaths is None or state.times is None or state.sums is None or self.weights:
            return ()
        deaths = state.deaths.reshape(len(state.strata), len(state.times)).sum(axis=0).astype(float)
        ranks = np.cumsum(deaths) - (deaths - 1) / 2  # tied events share their mean rank
        total = deaths.sum()
        centred = ranks - (deaths @ ranks) / total
        residual = state.sums.schoenfeld.reshape(len(state.strata), len(state.times), -1).sum(axis=0)
        scaled = total * residual @ covariance
        spread = float(deaths @ centred**2)
        found = []
        for j, name in enumerate(state.names):
            if spread <= 0:
                break
            statistic = float((centred @ scaled[:, j]) ** 2 / (total * covariance[j, j] * spread))
            found.append(Proportionality(name=name, statistic=statistic, p=chi2_tail(statistic, 1)))
        return tuple(found)


def _totals(
    found: Lives, grid: Floats, stratum: NDArray[np.intp], strata: int, x: Floats, weight: Floats, at: Floats
) -> dict[str, Any]:
    """A hospital's sums at each stratum and time, shape (strata * times, …); second moments are packed triangles."""
    linear = np.clip(x @ at, -_FARTHEST, _FARTHEST)
    risk = weight * np.exp(linear)
    rows, columns = np.triu_indices(x.shape[1])
    second = x[:, rows] * x[:, columns] * risk[:, np.newaxis]
    moments = (risk, x * risk[:, np.newaxis], second)
    parts: dict[str, list[Any]] = {}
    for s in range(strata):
        here = stratum == s
        mine = Lives(found.time[here], found.event[here], found.entry[here] if found.entry is not None else None)
        for i, moment in enumerate(moments):
            parts.setdefault(f"risk{i}", []).append(at_risk(mine, grid, moment[here]))
            parts.setdefault(f"event{i}", []).append(at_events(mine, grid, moment[here]))
        ones = np.ones(int(here.sum()), dtype=np.int64)
        parts.setdefault("deaths", []).append(at_events(mine, grid, ones))
        parts.setdefault("event_weight", []).append(at_events(mine, grid, weight[here]))
        parts.setdefault("event_linear", []).append(at_events(mine, grid, (weight * linear)[here]))
        parts.setdefault("event_x", []).append(at_events(mine, grid, (x * weight[:, np.newaxis])[here]))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _hazard_ratio(name: str, b: float, se: float) -> HazardRatio:
    low, high = b - NORMAL_975 * se, b + NORMAL_975 * se
    return HazardRatio(
        name=name,
        estimate=b,
        se=se,
        ci_low=low,
        ci_high=high,
        z=b / se,
        p=normal_two_sided(b / se),
        hazard_ratio=_exp(b),
        hazard_ratio_low=_exp(low),
        hazard_ratio_high=_exp(high),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 709.0 else math.inf
