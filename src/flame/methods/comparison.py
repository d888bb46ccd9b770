"""Tests between groups: means (Student, Welch, ANOVA), counts (chi-squared, Fisher), ranks (Mann-Whitney, Kruskal-Wallis).

Rank tests need the pooled order, which no hospital may learn: values are counted in bins that follow the data, ranks
are those of the bins, and the result says how far a statistic can be from the one of the values themselves. Columns
of whole numbers with room for each of them are exact.
Welch 1947; Fisher 1935; Mann & Whitney 1947 and Kruskal & Wallis 1952, both with the correction for ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Levels, Missing, Rows, Taken, Variable, read_ranges, with_ranges
from flame.methods.distributions import (
    NORMAL_975,
    chi2_tail,
    f_tail,
    hypergeometric_two_sided,
    normal_two_sided,
    t_975,
    t_two_sided,
)
from flame.methods.method import Question, Result, Summary
from flame.model.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GroupMoments:
    """n, mean, and the sum of squares about the mean."""

    n: int
    mean: float
    squares: float

    @property
    def variance(self) -> float:
        return self.squares / (self.n - 1) if self.n > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Test:
    name: str
    statistic: float
    df: float | None
    df_residual: float | None
    p: float


def student(a: GroupMoments, b: GroupMoments) -> Test:
    """Equal variances."""
    df = a.n + b.n - 2
    if a.n < 1 or b.n < 1 or df < 1 or a.squares + b.squares <= 0:
        return _no_test("Student's t")
    se = math.sqrt((a.squares + b.squares) / df * (1 / a.n + 1 / b.n))
    t = (a.mean - b.mean) / se
    return Test(name="Student's t", statistic=t, df=df, df_residual=None, p=t_two_sided(t, df))


def welch(a: GroupMoments, b: GroupMoments) -> Test:
    """Unequal variances, Satterthwaite's degrees of freedom."""
    if a.n < 2 or b.n < 2 or a.squares + b.squares <= 0:
        return _no_test("Welch's t")
    first, second = a.variance / a.n, b.variance / b.n
    df = (first + second) ** 2 / (first**2 / (a.n - 1) + second**2 / (b.n - 1))
    t = (a.mean - b.mean) / math.sqrt(first + second)
    return Test(name="Welch's t", statistic=t, df=df, df_residual=None, p=t_two_sided(t, df))


def anova(groups: Sequence[GroupMoments]) -> Test:
    used = [g for g in groups if g.n]
    n = sum(g.n for g in used)
    df, residual = len(used) - 1, n - len(used)
    within = sum(g.squares for g in used)
    if df < 1 or residual < 1 or within <= 0:
        return _no_test("ANOVA")
    mean = math.fsum(g.n * g.mean for g in used) / n
    between = math.fsum(g.n * (g.mean - mean) ** 2 for g in used)
    f = (between / df) / (within / residual)
    return Test(name="ANOVA", statistic=f, df=df, df_residual=residual, p=f_tail(f, df, residual))


def chi_squared(counts: Ints, yates: bool = False) -> Test:
    """Independence of rows and columns; empty ones are left out. ``yates``: continuity correction of 2 x 2 tables."""
    table = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(float)
    if min(table.shape) < 2:
        return _no_test("chi-squared")
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    gap = np.abs(table - expected)
    if yates and table.shape == (2, 2):
        gap = gap - np.minimum(0.5, gap)
    statistic = float((gap**2 / expected).sum())
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    return Test(name="chi-squared", statistic=statistic, df=df, df_residual=None, p=chi2_tail(statistic, df))


def _no_test(name: str) -> Test:
    return Test(name=name, statistic=math.nan, df=None, df_residual=None, p=math.nan)


# --- means ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GroupMean:
    group: str
    n: int
    mean: float
    sd: float
    se: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """First group minus second."""

    difference: float
    se: float
    ci_low: float
    ci_high: float
    cohens_d: float


@dataclass(frozen=True, kw_only=True)
class MeansResult(Result):
    method: str
    value: str
    group: str
    test: Test
    difference: MeanDifference | None
    eta_squared: float | None
    groups: tuple[GroupMean, ...]
    n: int
    dropped: int


@dataclass(frozen=True)
class MeansState:
    levels: Levels
    n: NDArray[np.int64] | None = None
    dropped: int = 0
    mean: Floats | None = None
    moments: tuple[GroupMoments, ...] = ()


class CompareMeans(Agreed[MeansState, MeansResult]):
    """``value``: numbers; ``group``: a category; ``groups``: which levels, in their order (default: all)."""

    name: ClassVar[str] = "anova"
    test: ClassVar[Literal["student", "welch", "anova"]] = "anova"

    def __init__(
        self,
        value: str,
        group: str,
        *,
        groups: Sequence[str] = (),
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        _check_groups(value, group, groups)
        self.value, self.group, self.chosen, self.missing = value, group, tuple(groups), missing
        self.variables = with_ranges([Variable(value, "number"), Variable(group, "category")], read_ranges(ranges))

    def begin(self, layout: Layout) -> MeansState:
        levels = _chosen_levels(self.group, layout[self.group] or (), self.chosen)
        if self.test != "anova" and len(levels) != 2:
            raise Invalid(
                f"The column '{self.group}' has {len(levels)} groups ({', '.join(levels[:10])}); the test takes two.",
                next_step="Name two of them with groups, or use anova.",
            )
        return MeansState(levels)

    def ask(self, state: MeansState) -> Question | None:
        if state.mean is None:
            return {"step": "means", "groups": list(state.levels)}
        if state.moments:
            return None
        return {"step": "squares", "groups": list(state.levels), "mean": state.mean}

    def answer(self, rows: Rows, question: Question) -> Summary:
        members = _members(rows, self.value, self.group, question["groups"])
        if question["step"] == "means":
            kept = sum(len(values) for values in members)
            return {
                "n": rows.n,
                "dropped": rows.n - kept,
                "group_n": np.array([len(values) for values in members], dtype=np.int64),
                "sum": np.array([values.sum() for values in members]),
            }
        centred = [values - mean for values, mean in zip(members, question["mean"], strict=True)]
        return {
            "n": rows.n,
            "rest": np.array([values.sum() for values in centred]),
            "squares": np.array([(values**2).sum() for values in centred]),
        }

    def learn(self, state: MeansState, total: Summary, contributors: int) -> MeansState:
        if state.mean is None:
            n = np.asarray(total["group_n"])
            if not n.sum():
                raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
            mean = np.asarray(total["sum"]) / np.maximum(n, 1)
            return replace(state, n=n, dropped=round(total["dropped"]), mean=mean)
        assert state.n is not None
        rest, squares = np.asarray(total["rest"]), np.asarray(total["squares"])
        moments = tuple(
            GroupMoments(n, mean + r / n, max(s - r * r / n, 0.0)) if n else GroupMoments(0, math.nan, 0.0)
            for n, mean, r, s in zip(
                state.n.tolist(), state.mean.tolist(), rest.tolist(), squares.tolist(), strict=True
            )
        )
        return replace(state, moments=moments)

    def conclude(self, state: MeansState, taken: Taken) -> MeansResult:
        groups = state.moments
        test = {"student": student, "welch": welch}[self.test](*groups) if self.test != "anova" else anova(groups)
        return MeansResult(
            method=self.name,
            value=self.value,
            group=self.group,
            test=test,
            difference=_difference(groups[0], groups[1], test) if self.test != "anova" else None,
            eta_squared=_eta(test) if self.test == "anova" else None,
            groups=tuple(_group_mean(level, m) for level, m in zip(state.levels, groups, strict=True)),
            n=sum(m.n for m in groups),
            dropped=state.dropped,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


class Anova(CompareMeans):
    """One-way analysis of variance."""


class WelchTest(CompareMeans):
    """Welch's t test: variances may differ."""

    name: ClassVar[str] = "t-test"
    test: ClassVar[Literal["student", "welch", "anova"]] = "welch"


class StudentTest(CompareMeans):
    """Student's t test: equal variances."""

    name: ClassVar[str] = "student-t-test"
    test: ClassVar[Literal["student", "welch", "anova"]] = "student"


# --- counts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    row: str
    column: str
    n: int
    expected: float
    share_of_row: float


@dataclass(frozen=True, kw_only=True)
class OddsRatio:
    """Of a 2 x 2 table, by its cross product; Woolf's interval. ``p``: Fisher's exact test, two-sided."""

    odds_ratio: float
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class CrossTableResult(Result):
    method: str
    row: str
    column: str
    test: Test
    fisher: OddsRatio | None
    cramers_v: float
    cells: tuple[Cell, ...]
    n: int
    dropped: int


@dataclass(frozen=True)
class TableState:
    rows: Levels
    columns: Levels
    counts: Ints | None = None
    dropped: int = 0


class CrossTable(Agreed[TableState, CrossTableResult]):
    """Counts of two categories against each other, with the chi-squared test and, for 2 x 2, Fisher's."""

    name: ClassVar[str] = "cross-table"
    exact: ClassVar[bool] = False

    def __init__(self, row: str, column: str, *, yates: bool = False, missing: Missing = "drop") -> None:
        if row == column:
            raise Invalid("The two columns are the same.")
        self.row, self.column, self.yates, self.missing = row, column, yates, missing
        self.variables = (Variable(row, "category"), Variable(column, "category"))

    def begin(self, layout: Layout) -> TableState:
        state = TableState(layout[self.row] or (), layout[self.column] or ())
        if self.exact and (len(state.rows), len(state.columns)) != (2, 2):
            raise Invalid(
                f"Fisher's exact test takes a 2 x 2 table; this one is {len(state.rows)} x {len(state.columns)}.",
                next_step="Use chi-squared.",
            )
        return state

    def ask(self, state: TableState) -> Question | None:
        return {"step": "count"} if state.counts is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete([self.row, self.column])
        width = len(rows.levels[self.column])
        cells = rows.codes[self.row][kept] * width + rows.codes[self.column][kept]
        counts = np.bincount(cells, minlength=len(rows.levels[self.row]) * width)
        return {
            "n": rows.n,
            "dropped": int((~kept).sum()),
            "counts": counts.reshape(len(rows.levels[self.row]), width).astype(np.int64),
        }

    def learn(self, state: TableState, total: Summary, contributors: int) -> TableState:
        counts = np.asarray(total["counts"])
        if not counts.sum():
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        return replace(state, counts=counts, dropped=round(total["dropped"]))

    def conclude(self, state: TableState, taken: Taken) -> CrossTableResult:
        assert state.counts is not None
        counts, n = state.counts, int(state.counts.sum())
        expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / n
        test, plain = chi_squared(counts, self.yates), chi_squared(counts)
        smaller = min((counts.sum(axis=1) > 0).sum(), (counts.sum(axis=0) > 0).sum()) - 1
        return CrossTableResult(
            method=self.name,
            row=self.row,
            column=self.column,
            test=test,
            fisher=_fisher(counts) if counts.shape == (2, 2) else None,
            cramers_v=math.sqrt(plain.statistic / (n * smaller)) if smaller else math.nan,
            cells=tuple(
                Cell(
                    row=row,
                    column=column,
                    n=int(counts[i, j]),
                    expected=float(expected[i, j]),
                    share_of_row=float(counts[i, j] / counts[i].sum()) if counts[i].sum() else math.nan,
                )
                for i, row in enumerate(state.rows)
                for j, column in enumerate(state.columns)
            ),
            n=n,
            dropped=state.dropped,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


class ChiSquared(CrossTable):
    """Pearson's chi-squared test of independence."""

    name: ClassVar[str] = "chi-squared"


class FisherExact(CrossTable):
    """Fisher's exact test of a 2 x 2 table."""

    name: ClassVar[str] = "fisher-exact"
    exact: ClassVar[bool] = True


# --- ranks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    group: str
    n: int
    mean_rank: float
    bound: float
    """The mean rank is at most this far from that of the values themselves."""


@dataclass(frozen=True, kw_only=True)
class RanksResult(Result):
    method: str
    value: str
    group: str
    test: Test
    u: float | None
    """Mann-Whitney: pairs in which the first group's value is larger, ties by half."""
    u_bound: float | None
    auc: float | None
    exact: bool
    """No bin holds different values."""
    groups: tuple[RankGroup, ...]
    n: int
    dropped: int
    bins: int


@dataclass(frozen=True)
class RanksState:
    levels: Levels
    n: int = 0
    dropped: int = 0
    mean: float | None = None
    whole: bool = False
    edges: Floats | None = None
    counts: Ints | None = None
    refined: int = 0
    finished: bool = False


class CompareRanks(Agreed[RanksState, RanksResult]):
    """``value``: numbers; ``group``: a category; ``bins``: how many bins the values may be counted in."""

    name: ClassVar[str] = "kruskal-wallis"
    two: ClassVar[bool] = False
    refinements: ClassVar[int] = 2

    def __init__(
        self,
        value: str,
        group: str,
        *,
        groups: Sequence[str] = (),
        bins: int = 1000,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        _check_groups(value, group, groups)
        if not 2 <= bins <= 1_000_000:
            raise Invalid("bins is between 2 and 1,000,000.")
        self.value, self.group, self.chosen, self.bins, self.missing = value, group, tuple(groups), bins, missing
        self.variables = with_ranges([Variable(value, "number"), Variable(group, "category")], read_ranges(ranges))

    def begin(self, layout: Layout) -> RanksState:
        levels = _chosen_levels(self.group, layout[self.group] or (), self.chosen)
        if self.two and len(levels) != 2:
            raise Invalid(
                f"The column '{self.group}' has {len(levels)} groups; the test takes two.",
                next_step="Name two of them with groups, or use kruskal-wallis.",
            )
        return RanksState(levels)

    def ask(self, state: RanksState) -> Question | None:
        if state.mean is None:
            return {"step": "mean", "groups": list(state.levels)}
        if state.edges is None:
            return {"step": "spread", "groups": list(state.levels), "mean": state.mean}
        if not state.finished:
            return {"step": "count", "groups": list(state.levels), "edges": state.edges}
        return None

    def answer(self, rows: Rows, question: Question) -> Summary:
        members = _members(rows, self.value, self.group, question["groups"])
        values = np.concatenate(members) if members else np.zeros(0)
        if question["step"] == "mean":
            return {
                "n": rows.n,
                "dropped": rows.n - len(values),
                "present": len(values),
                "sum": float(values.sum()),
                "fractional": int((values != np.floor(values)).any()),
            }
        if question["step"] == "spread":
            return {"n": rows.n, "squares": float(((values - question["mean"]) ** 2).sum())}
        edges = np.asarray(question["edges"])
        counts = [np.bincount(np.searchsorted(edges, v, side="left"), minlength=len(edges) + 1) for v in members]
        return {"n": rows.n, "counts": np.array(counts, dtype=np.int64)}

    def learn(self, state: RanksState, total: Summary, contributors: int) -> RanksState:
        if state.mean is None:
            n = round(total["present"])
            if n < 2:
                raise Invalid("There are fewer than two complete records.")
            return replace(
                state,
                n=n,
                dropped=round(total["dropped"]),
                mean=float(total["sum"]) / n,
                whole=not int(total["fractional"]),
            )
        if state.edges is None:
            sd = math.sqrt(float(total["squares"]) / state.n)
            return replace(state, edges=_first_edges(state.mean, sd, state.n, self.bins, state.whole))
        counts = np.asarray(total["counts"])
        edges = state.edges
        if state.refined >= self.refinements or not _uncertain(counts, edges, state.whole).any():
            return replace(state, counts=counts, finished=True)
        finer = _finer(edges, counts, self.bins, state.whole)
        if np.array_equal(finer, edges):
            return replace(state, counts=counts, finished=True)
        return replace(state, edges=finer, refined=state.refined + 1)

    def conclude(self, state: RanksState, taken: Taken) -> RanksResult:
        assert state.counts is not None and state.edges is not None
        counts = state.counts
        sizes, ties = counts.sum(axis=1), counts.sum(axis=0)
        unsure = _uncertain(counts, state.edges, state.whole)
        rank = np.cumsum(ties) - (ties - 1) / 2
        sums = counts @ rank
        wrong = (counts * (ties - counts) * unsure).sum(axis=1) / 2
        test, u, u_bound = self._test(counts, sums, sizes, ties, wrong)
        pairs = float(sizes[0] * sizes[1]) if self.two else 0.0
        return RanksResult(
            method=self.name,
            value=self.value,
            group=self.group,
            test=test,
            u=u,
            u_bound=u_bound,
            auc=u / pairs if u is not None and pairs else None,
            exact=not unsure.any(),
            groups=tuple(
                RankGroup(
                    group=level,
                    n=int(n),
                    mean_rank=float(s / n) if n else math.nan,
                    bound=float(w / n) if n else math.nan,
                )
                for level, n, s, w in zip(state.levels, sizes, sums, wrong, strict=True)
            ),
            n=state.n,
            dropped=state.dropped,
            bins=len(state.edges) + 1,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    def _test(
        self, counts: Ints, sums: Floats, sizes: Ints, ties: Ints, wrong: Floats
    ) -> tuple[Test, float | None, float | None]:
        n = float(sizes.sum())
        tied = float((ties.astype(float) ** 3 - ties).sum())
        if self.two:
            a, b = float(sizes[0]), float(sizes[1])
            u = float(sums[0]) - a * (a + 1) / 2
            variance = a * b / 12 * (n + 1 - tied / (n * (n - 1)))
            if variance <= 0:
                return _no_test("Mann-Whitney U"), u, float(wrong[0])
            z = (abs(u - a * b / 2) - 0.5) / math.sqrt(variance)  # with the correction for continuity
            z = math.copysign(max(z, 0.0), u - a * b / 2)
            p = normal_two_sided(z)
            return Test(name="Mann-Whitney U", statistic=u, df=None, df_residual=None, p=p), u, float(wrong[0])
        used = sizes > 0
        h = 12 / (n * (n + 1)) * float((sums[used] ** 2 / sizes[used]).sum()) - 3 * (n + 1)
        correction = 1 - tied / (n**3 - n)
        df = int(used.sum()) - 1
        if correction <= 0 or df < 1:
            return _no_test("Kruskal-Wallis"), None, None
        h /= correction
        return Test(name="Kruskal-Wallis", statistic=h, df=df, df_residual=None, p=chi2_tail(h, df)), None, None


class KruskalWallis(CompareRanks):
    """Kruskal-Wallis test over two or more groups, on binned ranks."""


class MannWhitney(CompareRanks):
    """Mann-Whitney U test of two groups, on binned ranks; normal approximation with corrections."""

    name: ClassVar[str] = "mann-whitney"
    two: ClassVar[bool] = True


def _first_edges(mean: float, sd: float, n: int, bins: int, whole: bool) -> Floats:
    reach = sd * min(math.sqrt(n), 8.0)
    if not reach > 0:
        reach = max(abs(mean) * 1e-9, 1e-9)
    if whole:
        low, high = math.floor(mean - reach) - 0.5, math.ceil(mean + reach) + 0.5
        step = max(1, math.ceil((high - low) / bins))
        return np.arange(low, high + step, step)
    return np.linspace(mean - reach, mean + reach, bins)


def _uncertain(counts: Ints, edges: Floats, whole: bool) -> NDArray[np.bool_]:
    """Bins in which values of different groups may differ: their order is not known."""
    mixed = (counts > 0).sum(axis=0) > 1
    if whole:
        single = np.concatenate([[False], np.diff(edges) <= 1.0, [False]])
        return np.asarray(mixed & ~single)
    return np.asarray(mixed)


def _finer(edges: Floats, counts: Ints, bins: int, whole: bool) -> Floats:
    """Edges such that each bin has about as many values; the ends reach as far again as the values may."""
    ties = counts.sum(axis=0)
    width = edges[-1] - edges[0]
    outer = np.concatenate([[edges[0] - width * (ties[0] > 0)], edges, [edges[-1] + width * (ties[-1] > 0)]])
    unsure = _uncertain(counts, edges, whole)
    held = np.flatnonzero(ties)
    keep = np.unique(np.concatenate([edges[held[:-1]], edges[held[1:] - 1]]))  # what is known to lie apart stays so
    share = np.where(unsure, ties, 0).astype(float)
    if len(keep) > 0.75 * bins:  # too many values for that: bins of equal numbers
        keep, share = keep[:0], ties.astype(float)
    room = np.concatenate([[0.0], np.cumsum(np.maximum(share, 1e-9))])
    extra = np.interp(np.linspace(0, room[-1], max(bins - len(keep), 2)), room, outer)
    finer = np.unique(np.concatenate([keep, extra]))
    if whole:
        finer = np.unique(np.floor(finer) + 0.5)
    return finer


def _members(rows: Rows, value: str, group: str, groups: Sequence[str]) -> list[Floats]:
    codes, numbers = rows.codes[group], rows.numbers[value]
    present = ~np.isnan(numbers)
    levels = rows.levels[group]
    return [numbers[(codes == levels.index(level)) & present] for level in groups]


def _check_groups(value: str, group: str, groups: Sequence[str]) -> None:
    if value == group:
        raise Invalid("The value and the group are different columns.")
    if groups and (len(groups) < 2 or len(set(groups)) != len(groups)):
        raise Invalid("groups names two or more different levels.")


def _chosen_levels(column: str, levels: Levels, chosen: Levels) -> Levels:
    for level in chosen:
        if level not in levels:
            raise Invalid(f"'{level}' is not a level of '{column}': it has {', '.join(levels)}.")
    found = chosen or levels
    if len(found) < 2:
        raise Invalid(f"The column '{column}' has fewer than two groups over all hospitals.")
    return found


def _difference(a: GroupMoments, b: GroupMoments, test: Test) -> MeanDifference | None:
    if test.df is None or math.isnan(test.statistic):
        return None
    difference = a.mean - b.mean
    pooled = math.sqrt((a.squares + b.squares) / (a.n + b.n - 2))
    if test.name.startswith("Student"):
        se = pooled * math.sqrt(1 / a.n + 1 / b.n)
    else:
        se = math.sqrt(a.variance / a.n + b.variance / b.n)
    width = t_975(test.df) * se
    return MeanDifference(
        difference=difference,
        se=se,
        ci_low=difference - width,
        ci_high=difference + width,
        cohens_d=difference / pooled if pooled > 0 else math.nan,
    )


def _eta(test: Test) -> float | None:
    if test.df is None or test.df_residual is None:
        return None
    return test.statistic * test.df / (test.statistic * test.df + test.df_residual)


def _group_mean(level: str, m: GroupMoments) -> GroupMean:
    sd = math.sqrt(m.variance) if m.n > 1 else math.nan
    se = sd / math.sqrt(m.n) if m.n > 1 else math.nan
    width = t_975(m.n - 1) * se if m.n > 1 else math.nan
    return GroupMean(group=level, n=m.n, mean=m.mean, sd=sd, se=se, ci_low=m.mean - width, ci_high=m.mean + width)


def _fisher(counts: Ints) -> OddsRatio:
    a, b, c, d = (int(v) for v in counts.reshape(-1))
    ratio = a * d / (b * c) if b * c else (math.inf if a * d else math.nan)
    low = high = math.nan
    if a * b * c * d:
        width = NORMAL_975 * math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
        low, high = ratio * math.exp(-width), ratio * math.exp(width)
    return OddsRatio(odds_ratio=ratio, ci_low=low, ci_high=high, p=hypergeometric_two_sided(a, b, c, d))
