"""How good is a score? ROC curve and its area, calibration, confusion matrix, Brier score: counts and sums.

The area under the curve needs the order of all scores; they are counted in bins, and the area has a bound: pairs
within one bin may be ordered either way. Hanley & McNeil 1982; Brier 1950; Hosmer & Lemeshow 1980; Wilson 1927.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Missing, Rows, Taken, Variable
from flame.methods.distributions import NORMAL_975, chi2_tail
from flame.methods.method import Question, Result, Summary
from flame.model.errors import Invalid, NotBinary, OutOfDomain

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RocPoint:
    threshold: float
    """Positive: a score at or above it."""
    sensitivity: float
    specificity: float


@dataclass(frozen=True, kw_only=True)
class RocResult(Result):
    method: str
    outcome: str
    score: str
    auc: float
    auc_bound: float
    """The area is at most this far from that of the scores themselves."""
    se: float
    ci_low: float
    ci_high: float
    n: int
    events: int
    dropped: int
    bins: int
    curve: tuple[RocPoint, ...]


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    low: float
    high: float
    n: int
    predicted: float
    observed: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class CalibrationResult(Result):
    method: str
    outcome: str
    score: str
    brier: float
    brier_skill: float
    """Against the prevalence as everybody's score."""
    log_loss: float
    expected_calibration_error: float
    hosmer_lemeshow: float
    hosmer_lemeshow_df: int
    hosmer_lemeshow_p: float
    mean_score: float
    prevalence: float
    n: int
    events: int
    dropped: int
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, kw_only=True)
class Proportion:
    name: str
    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class ConfusionResult(Result):
    method: str
    outcome: str
    score: str
    threshold: float
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    measures: tuple[Proportion, ...]
    f1: float
    kappa: float
    matthews: float
    n: int
    dropped: int


@dataclass(frozen=True)
class Counted:
    total: Summary | None = None


class Roc(Agreed[Counted, RocResult]):
    """``outcome``: 0 and 1; ``score``: numbers from ``low`` to ``high``; higher speaks for 1."""

    name: ClassVar[str] = "roc"

    def __init__(
        self,
        outcome: str,
        score: str,
        *,
        bins: int = 1000,
        low: float = 0.0,
        high: float = 1.0,
        missing: Missing = "drop",
    ) -> None:
        if not 2 <= bins <= 100_000 or not low < high or outcome == score:
            raise Invalid("bins is between 2 and 100,000; low is less than high; outcome and score differ.")
        self.outcome, self.score, self.bins, self.low, self.high = outcome, score, bins, low, high
        self.missing = missing
        self.variables = (Variable(outcome, "number"), Variable(score, "number", low=low, high=high))

    def begin(self, layout: Layout) -> Counted:
        return Counted()

    def ask(self, state: Counted) -> Question | None:
        return {"step": "count"} if state.total is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        y, score, dropped = scored(rows, self.outcome, self.score)
        places = np.minimum(((score - self.low) / (self.high - self.low) * self.bins).astype(np.int64), self.bins - 1)
        return {
            "n": len(y),
            "dropped": dropped,
            "events": np.bincount(places[y == 1], minlength=self.bins).astype(np.int64),
            "others": np.bincount(places[y == 0], minlength=self.bins).astype(np.int64),
        }

    def learn(self, state: Counted, total: Summary, contributors: int) -> Counted:
        check_both(self.outcome, total["n"], np.asarray(total["events"]).sum())
        return Counted(total)

    def conclude(self, state: Counted, taken: Taken) -> RocResult:
        assert state.total is not None
        events, others = np.asarray(state.total["events"]), np.asarray(state.total["others"])
        positive, negative = int(events.sum()), int(others.sum())
        below = np.cumsum(others) - others
        pairs = float(positive) * float(negative)
        auc = float((events * (below + others / 2)).sum()) / pairs
        se = _hanley(auc, positive, negative)
        edges = np.linspace(self.low, self.high, self.bins + 1)[:-1]
        held = np.flatnonzero(events + others)
        return RocResult(
            method=self.name,
            outcome=self.outcome,
            score=self.score,
            auc=auc,
            auc_bound=float((events * others).sum()) / 2 / pairs,
            se=se,
            ci_low=max(0.0, auc - NORMAL_975 * se),
            ci_high=min(1.0, auc + NORMAL_975 * se),
            n=positive + negative,
            events=positive,
            dropped=round(state.total["dropped"]),
            bins=self.bins,
            curve=tuple(
                RocPoint(
                    threshold=float(edges[i]),
                    sensitivity=float(events[i:].sum()) / positive,
                    specificity=float(others[:i].sum()) / negative,
                )
                for i in held
            ),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


class Calibration(Agreed[Counted, CalibrationResult]):
    """``score``: predicted probabilities. Equal bins, Hosmer-Lemeshow's statistic over them, Brier score, log loss."""

    name: ClassVar[str] = "calibration"

    def __init__(self, outcome: str, score: str, *, bins: int = 10, missing: Missing = "drop") -> None:
        if not 2 <= bins <= 1000 or outcome == score:
            raise Invalid("bins is between 2 and 1,000; outcome and score differ.")
        self.outcome, self.score, self.bins, self.missing = outcome, score, bins, missing
        self.variables = (Variable(outcome, "number"), Variable(score, "number"))

    def begin(self, layout: Layout) -> Counted:
        return Counted()

    def ask(self, state: Counted) -> Question | None:
        return {"step": "count"} if state.total is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        y, score, dropped = scored(rows, self.outcome, self.score)
        if ((score < 0) | (score > 1)).any():
            raise OutOfDomain(self.score)
        places = np.minimum((score * self.bins).astype(np.int64), self.bins - 1)
        safe = np.clip(score, 1e-15, 1 - 1e-15)
        return {
            "n": len(y),
            "dropped": dropped,
            "count": np.bincount(places, minlength=self.bins).astype(np.int64),
            "events": np.bincount(places[y == 1], minlength=self.bins).astype(np.int64),
            "scores": np.bincount(places, weights=score, minlength=self.bins).astype(np.float64),
            "brier": float(((score - y) ** 2).sum()),
            "log_loss": float(-(y * np.log(safe) + (1 - y) * np.log1p(-safe)).sum()),
        }

    def learn(self, state: Counted, total: Summary, contributors: int) -> Counted:
        check_both(self.outcome, total["n"], np.asarray(total["events"]).sum())
        return Counted(total)

    def conclude(self, state: Counted, taken: Taken) -> CalibrationResult:
        assert state.total is not None
        count, events = np.asarray(state.total["count"]), np.asarray(state.total["events"])
        scores, n = np.asarray(state.total["scores"]), int(count.sum())
        prevalence, brier = float(events.sum()) / n, float(state.total["brier"]) / n
        held = np.flatnonzero(count)
        predicted, observed = scores[held] / count[held], events[held] / count[held]
        variance = count[held] * predicted * (1 - predicted)
        gaps = (events[held] - scores[held])[variance > 0] ** 2 / variance[variance > 0]
        statistic, df = float(gaps.sum()), max(len(held) - 2, 0)
        return CalibrationResult(
            method=self.name,
            outcome=self.outcome,
            score=self.score,
            brier=brier,
            brier_skill=1 - brier / (prevalence * (1 - prevalence)),
            log_loss=float(state.total["log_loss"]) / n,
            expected_calibration_error=float((count[held] * np.abs(predicted - observed)).sum()) / n,
            hosmer_lemeshow=statistic,
            hosmer_lemeshow_df=df,
            hosmer_lemeshow_p=chi2_tail(statistic, df),
            mean_score=float(scores.sum()) / n,
            prevalence=prevalence,
            n=n,
            events=int(events.sum()),
            dropped=round(state.total["dropped"]),
            bins=tuple(
                CalibrationBin(
                    low=int(i) / self.bins,
                    high=(int(i) + 1) / self.bins,
                    n=int(count[i]),
                    predicted=float(scores[i] / count[i]),
                    observed=float(events[i] / count[i]),
                    ci_low=wilson(int(events[i]), int(count[i]))[0],
                    ci_high=wilson(int(events[i]), int(count[i]))[1],
                )
                for i in held
            ),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


class Brier(Calibration):
    """Brier score, its skill and log loss; the calibration comes with them."""

    name: ClassVar[str] = "brier"


class Confusion(Agreed[Counted, ConfusionResult]):
    """``score`` at or above ``threshold`` says 1; a score that is a prediction of 0 and 1 does with the default."""

    name: ClassVar[str] = "confusion"

    def __init__(self, outcome: str, score: str, *, threshold: float = 0.5, missing: Missing = "drop") -> None:
        if outcome == score or not math.isfinite(threshold):
            raise Invalid("outcome and score differ; threshold is a number.")
        self.outcome, self.score, self.threshold, self.missing = outcome, score, threshold, missing
        self.variables = (Variable(outcome, "number"), Variable(score, "number"))

    def begin(self, layout: Layout) -> Counted:
        return Counted()

    def ask(self, state: Counted) -> Question | None:
        return {"step": "count"} if state.total is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        y, score, dropped = scored(rows, self.outcome, self.score)
        cells = np.bincount((y * 2 + (score >= self.threshold)).astype(np.int64), minlength=4)
        return {"n": len(y), "dropped": dropped, "cells": cells.astype(np.int64)}

    def learn(self, state: Counted, total: Summary, contributors: int) -> Counted:
        if round(total["n"]) < 1:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        return Counted(total)

    def conclude(self, state: Counted, taken: Taken) -> ConfusionResult:
        assert state.total is not None
        tn, fp, fn, tp = (int(v) for v in np.asarray(state.total["cells"]))
        n = tn + fp + fn + tp
        chance = ((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp)) / n**2
        spread = math.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        measures = (
            ("sensitivity", tp, tp + fn),
            ("specificity", tn, tn + fp),
            ("positive predictive value", tp, tp + fp),
            ("negative predictive value", tn, tn + fn),
            ("accuracy", tp + tn, n),
            ("prevalence", tp + fn, n),
        )
        return ConfusionResult(
            method=self.name,
            outcome=self.outcome,
            score=self.score,
            threshold=self.threshold,
            true_positive=tp,
            false_positive=fp,
            true_negative=tn,
            false_negative=fn,
            measures=tuple(_proportion(*measure) for measure in measures),
            f1=2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
            kappa=((tp + tn) / n - chance) / (1 - chance) if chance < 1 else math.nan,
            matthews=(tp * tn - fp * fn) / spread if spread > 0 else math.nan,
            n=n,
            dropped=round(state.total["dropped"]),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


def scored(rows: Rows, outcome: str, score: str) -> tuple[Floats, Floats, int]:
    """Complete rows: (outcome, score, rows left out). Raises NotBinary."""
    kept = rows.complete([outcome, score])
    y = rows.numbers[outcome][kept]
    if not np.isin(y, (0.0, 1.0)).all():
        raise NotBinary(outcome)
    return y, rows.numbers[score][kept], int((~kept).sum())


def check_both(outcome: str, n: float, events: float) -> None:
    if round(n) < 1:
        raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
    if round(events) in (0, round(n)):
        raise Invalid(
            f"The outcome '{outcome}' is {'always' if events else 'never'} 1: there is nothing to tell apart."
        )


def wilson(events: int, n: int) -> tuple[float, float]:
    if not n:
        return math.nan, math.nan
    z2 = NORMAL_975**2
    share = events / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    width = NORMAL_975 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - width), min(1.0, centre + width)


def _proportion(name: str, part: int, whole: int) -> Proportion:
    low, high = wilson(part, whole)
    return Proportion(name=name, value=part / whole if whole else math.nan, ci_low=low, ci_high=high)


def _hanley(auc: float, positive: int, negative: int) -> float:
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    spread = auc * (1 - auc) + (positive - 1) * (q1 - auc * auc) + (negative - 1) * (q2 - auc * auc)
    return math.sqrt(max(spread, 0.0) / (float(positive) * negative))
