"""Survival curves, the log-rank test and restricted means: all from counts at risk and of events at each time.

Kaplan & Meier 1958; Greenwood 1926, intervals on the log(-log) scale: Kalbfleisch & Prentice 2002; Mantel 1966;
restricted mean and its variance: Klein & Moeschberger 2003, ch. 4.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Missing, Rows, Taken, Variable, read_ranges, with_ranges
from flame.methods.distributions import NORMAL_975, chi2_tail, normal_two_sided
from flame.methods.event_times import FIRST_CELLS, at_events, at_risk, lives, read_times, times_sketch
from flame.methods.method import Question, Result, Summary
from flame.model.errors import Invalid

Floats = NDArray[np.float64]
Interval = Literal["log-log", "log", "plain"]

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    group: str
    time: float
    at_risk: int
    events: int
    survival: float
    se: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class GroupSurvival:
    group: str
    n: int
    events: int
    median: float | None
    median_low: float | None
    median_high: float | None
    restricted_mean: float
    """Mean survival up to ``horizon``."""
    restricted_mean_se: float
    restricted_mean_low: float
    restricted_mean_high: float


@dataclass(frozen=True, kw_only=True)
class LogRank:
    statistic: float
    df: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of the restricted means of two groups, second minus first."""

    first: str
    second: str
    difference: float
    se: float
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class SurvivalResult(Result):
    method: str
    duration: str
    event: str
    groups: tuple[GroupSurvival, ...]
    log_rank: LogRank | None
    differences: tuple[Difference, ...]
    curve: tuple[CurvePoint, ...]
    horizon: float
    interval: str
    bin_width: float | None
    n: int
    events: int
    dropped: int


@dataclass(frozen=True)
class Counting:
    levels: tuple[str, ...]
    cells: int = FIRST_CELLS
    times: Floats | None = None
    total: Summary | None = None


class KaplanMeier(Agreed[Counting, SurvivalResult]):
    """``duration``: a column of times; ``event``: 1 where it ended in the event, 0 where it was censored; ``group``.

    ``bin_width`` rounds times up to its multiples. ``horizon``: up to where the restricted mean goes (default: the
    last event time of all). ``entry``: a column of late entries.
    """

    name: ClassVar[str] = "kaplan-meier"

    def __init__(
        self,
        duration: str,
        event: str,
        group: str | None = None,
        *,
        entry: str | None = None,
        bin_width: float | None = None,
        horizon: float | None = None,
        interval: Interval = "log-log",
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        if interval not in ("log-log", "log", "plain"):
            raise Invalid("interval is 'log-log', 'log' or 'plain'.")
        if bin_width is not None and not bin_width > 0:
            raise Invalid("bin_width is positive.")
        if len({duration, event, group, entry} - {None}) != 2 + bool(group) + bool(entry):
            raise Invalid("duration, event, group and entry are different columns.")
        self.duration, self.event, self.group, self.entry = duration, event, group, entry
        self.bin_width, self.horizon, self.interval, self.missing = bin_width, horizon, interval, missing
        variables = [Variable(duration, "number"), Variable(event, "number")]
        variables += [Variable(entry, "number")] if entry else []
        variables += [Variable(group, "category")] if group else []
        self.variables = with_ranges(variables, read_ranges(ranges))

    def begin(self, layout: Layout) -> Counting:
        levels = layout[self.group] if self.group else (ALL,)
        if not levels:
            raise Invalid(f"The column '{self.group}' has no value at any hospital.")
        return Counting(tuple(levels))

    def ask(self, state: Counting) -> Question | None:
        if state.times is None:
            return {"step": "times", "cells": state.cells}
        return {"step": "counts", "times": state.times} if state.total is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete([v.name for v in self.variables])
        complete = rows.take(kept)
        found = lives(complete, self.duration, self.event, self.bin_width, self.entry)
        if question["step"] == "times":
            return {"n": complete.n, "times": times_sketch(found, int(question["cells"]))}
        levels = len(complete.levels[self.group]) if self.group else 1
        codes = complete.codes[self.group] if self.group else np.zeros(complete.n, dtype=np.intp)
        member = (codes[:, np.newaxis] == np.arange(levels)).astype(np.int64)
        grid = np.asarray(question["times"])
        return {
            "n": complete.n,
            "dropped": int((~kept).sum()),
            "at_risk": at_risk(found, grid, member),
            "events": at_events(found, grid, member),
            "group_n": member.sum(axis=0),
        }

    def learn(self, state: Counting, total: Summary, contributors: int) -> Counting:
        if state.times is None:
            found = read_times(total["times"], state.cells)
            return replace(state, cells=found) if isinstance(found, int) else replace(state, times=found)
        return replace(state, total=total)

    def conclude(self, state: Counting, taken: Taken) -> SurvivalResult:
        assert state.times is not None and state.total is not None
        risk = np.asarray(state.total["at_risk"]).T
        events = np.asarray(state.total["events"]).T
        horizon = self.horizon if self.horizon is not None else float(state.times[-1])
        curves = [_curve(level, state.times, risk[g], events[g], self.interval) for g, level in enumerate(state.levels)]
        groups = tuple(
            _group(level, points, int(state.total["group_n"][g]), int(events[g].sum()), horizon)
            for g, (level, points) in enumerate(zip(state.levels, curves, strict=True))
        )
        return SurvivalResult(
            method=self.name,
            duration=self.duration,
            event=self.event,
            groups=groups,
            log_rank=log_rank(risk, events) if len(groups) > 1 else None,
            differences=tuple(_difference(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :] if a.n and b.n),
            curve=tuple(point for points in curves for point in points),
            horizon=horizon,
            interval=self.interval,
            bin_width=self.bin_width,
            n=round(state.total["n"]),
            events=int(events.sum()),
            dropped=round(state.total["dropped"]),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


class LogRankTest(KaplanMeier):
    """The log-rank test between the levels of ``group``; the curves come with it."""

    name: ClassVar[str] = "log-rank"

    def __init__(self, duration: str, event: str, group: str, **options: Any) -> None:
        super().__init__(duration, event, group, **options)


class RestrictedMean(KaplanMeier):
    """Restricted mean survival and its differences; the curves come with it."""

    name: ClassVar[str] = "restricted-mean"


def log_rank(risk: NDArray[np.int64], events: NDArray[np.int64]) -> LogRank:
    """From counts of shape (groups, times); the hypergeometric variance, ties and all."""
    everyone, died = risk.sum(axis=0).astype(float), events.sum(axis=0).astype(float)
    used = everyone > 0
    share = risk[:, used] / everyone[used]
    n, d = everyone[used], died[used]
    excess = (events[:, used] - share * d).sum(axis=1)
    factor = np.where(n > 1, d * (n - d) / np.maximum(n - 1, 1), 0.0)
    covariance = np.diag((share * factor).sum(axis=1)) - (share * factor) @ share.T
    present = risk.sum(axis=1) > 0
    df = max(int(present.sum()) - 1, 0)
    chosen = np.flatnonzero(present)[:df]
    if not df or np.linalg.matrix_rank(covariance[np.ix_(chosen, chosen)]) < df:
        return LogRank(statistic=math.nan, df=df, p=math.nan)
    statistic = float(excess[chosen] @ np.linalg.solve(covariance[np.ix_(chosen, chosen)], excess[chosen]))
    return LogRank(statistic=statistic, df=df, p=chi2_tail(statistic, df))


def _curve(
    level: str, times: Floats, risk: NDArray[np.int64], events: NDArray[np.int64], interval: Interval
) -> list[CurvePoint]:
    points = []
    survival, greenwood = 1.0, 0.0
    for time, n, d in zip(times.tolist(), risk.tolist(), events.tolist(), strict=True):
        if not d:
            continue
        survival *= 1 - d / n
        greenwood = greenwood + d / (n * (n - d)) if n > d else math.inf
        se = survival * math.sqrt(greenwood) if survival > 0 else math.nan
        low, high = _interval(survival, greenwood, interval)
        points.append(
            CurvePoint(group=level, time=time, at_risk=n, events=d, survival=survival, se=se, ci_low=low, ci_high=high)
        )
    return points


def _interval(survival: float, greenwood: float, interval: Interval) -> tuple[float, float]:
    if survival <= 0:
        return (0.0, 0.0) if interval == "log-log" else (math.nan, math.nan)
    error = NORMAL_975 * math.sqrt(greenwood)
    if interval == "plain":
        return max(0.0, survival * (1 - error)), min(1.0, survival * (1 + error))
    if interval == "log":
        return survival * math.exp(-error), min(1.0, survival * math.exp(error))
    if survival >= 1:
        return 1.0, 1.0
    width = error / abs(math.log(survival))
    return survival ** math.exp(width), survival ** math.exp(-width)


def _group(level: str, points: Sequence[CurvePoint], n: int, events: int, horizon: float) -> GroupSurvival:
    mean, variance = _restricted(points, horizon)
    se = math.sqrt(variance)
    return GroupSurvival(
        group=level,
        n=n,
        events=events,
        median=_crossing([(p.time, p.survival) for p in points]),
        median_low=_crossing([(p.time, p.ci_low) for p in points]),
        median_high=_crossing([(p.time, p.ci_high) for p in points]),
        restricted_mean=mean,
        restricted_mean_se=se,
        restricted_mean_low=mean - NORMAL_975 * se,
        restricted_mean_high=mean + NORMAL_975 * se,
    )


def _crossing(curve: Sequence[tuple[float, float]]) -> float | None:
    return next((time for time, survival in curve if survival <= 0.5), None)


def _restricted(points: Sequence[CurvePoint], horizon: float) -> tuple[float, float]:
    """(mean, variance): the area under the curve; each event's term weighs the area that remains after it."""
    before = [p for p in points if p.time < horizon]
    times = [0.0, *(p.time for p in before), horizon]
    heights = [1.0, *(p.survival for p in before)]
    areas = [height * (b - a) for height, a, b in zip(heights, times, times[1:], strict=False)]
    remaining = np.cumsum(areas[::-1])[::-1]
    variance = 0.0
    for index, point in enumerate(before, start=1):
        if point.at_risk > point.events:
            variance += remaining[index] ** 2 * point.events / (point.at_risk * (point.at_risk - point.events))
    return float(sum(areas)), float(variance)


def _difference(a: GroupSurvival, b: GroupSurvival) -> Difference:
    difference = b.restricted_mean - a.restricted_mean
    se = math.hypot(a.restricted_mean_se, b.restricted_mean_se)
    return Difference(
        first=a.group,
        second=b.group,
        difference=difference,
        se=se,
        ci_low=difference - NORMAL_975 * se,
        ci_high=difference + NORMAL_975 * se,
        p=normal_two_sided(difference / se) if se > 0 else math.nan,
    )
