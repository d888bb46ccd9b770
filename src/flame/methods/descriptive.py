"""Describe columns and compare them between groups: counts, moments about the mean, quantiles, levels, missing values.

Moments in two rounds, first means, then powers of what remains about them (corrected two-pass: Chan, Golub & LeVeque
1983), so that a large offset costs no digits. Standardised differences: Austin 2009, for categories Yang & Dalton 2012.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Levels, Missing, Rows, Taken, Variable, read_ranges, with_ranges
from flame.methods.algebra import pack, unpack
from flame.methods.comparison import GroupMoments, anova, chi_squared, welch
from flame.methods.distributions import t_two_sided
from flame.methods.method import Question, Result, Summary
from flame.methods.quantiles import Search, counts_below, read_quantiles, search
from flame.model.errors import Invalid

Floats = NDArray[np.float64]

EVERYONE = "all"
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A column of numbers in a group. Skewness and kurtosis (excess) are those of moments, without correction."""

    column: str
    group: str
    n: int
    missing: int
    mean: float
    sd: float
    se: float
    skewness: float
    kurtosis: float


@dataclass(frozen=True, kw_only=True)
class Quantile:
    column: str
    group: str
    probability: float
    value: float
    bound: float
    """The value is at most this far from the pooled one (linear interpolation)."""


@dataclass(frozen=True, kw_only=True)
class LevelCount:
    column: str
    group: str
    level: str
    n: int
    share: float
    """Of those with a value."""
    missing: int


@dataclass(frozen=True, kw_only=True)
class DescribeResult(Result):
    method: str
    n: int
    complete: int
    """Rows without a missing value in any of the columns."""
    by: str | None
    numbers: tuple[Numbers, ...]
    quantiles: tuple[Quantile, ...]
    levels: tuple[LevelCount, ...]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row of Table 1: a column, or a level of it. ``groups``: mean (sd), or n (%), in the order of the groups."""

    column: str
    level: str | None
    everyone: str
    groups: tuple[str, ...]
    test: str
    statistic: float
    p: float
    standardised_difference: float | None
    """The largest between any two groups."""
    missing: int


@dataclass(frozen=True, kw_only=True)
class TableOneResult(Result):
    method: str
    n: int
    by: str
    groups: tuple[str, ...]
    group_n: tuple[int, ...]
    group_missing: int
    table: tuple[Compared, ...]
    numbers: tuple[Numbers, ...]
    quantiles: tuple[Quantile, ...]
    levels: tuple[LevelCount, ...]


@dataclass(frozen=True)
class Describing:
    layout: Layout
    groups: tuple[str, ...]
    """Everyone first."""
    counts: Summary | None = None
    mean: Floats | None = None
    """Shape (groups, columns of numbers)."""
    powers: Summary | None = None
    search: Search | None = None


class Describe(Agreed[Describing, DescribeResult]):
    """``columns``: numbers, and categories (text, or named in ``categories``); ``by``: a category.

    ``quantiles``: probabilities; each is found to ``resolution`` standard deviations and the bound is in the result.
    """

    name: ClassVar[str] = "describe"

    def __init__(
        self,
        columns: Sequence[str],
        by: str | None = None,
        *,
        categories: Sequence[str] = (),
        quantiles: Sequence[float] = (0.25, 0.5, 0.75),
        resolution: float = 1e-3,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        if not columns or len({*columns, by}) != len(columns) + 1:
            raise Invalid("columns are one or more different columns, other than the groups'.")
        if set(categories) - set(columns):
            raise Invalid(f"'{sorted(set(categories) - set(columns))[0]}' is a category, but no column.")
        if not all(0 < p < 1 for p in quantiles) or not 1e-12 <= resolution <= 1:
            raise Invalid("quantiles are between 0 and 1; resolution between 1e-12 and 1 standard deviation.")
        self.columns, self.by, self.missing = tuple(columns), by, missing
        self.probabilities, self.resolution = tuple(quantiles), resolution
        variables = [Variable(c, "category" if c in categories else "either") for c in columns]
        variables += [Variable(by, "category")] if by else []
        self.variables = with_ranges(variables, read_ranges(ranges))

    def begin(self, layout: Layout) -> Describing:
        return Describing(layout, (EVERYONE, *((layout[self.by] or ()) if self.by else ())))

    def ask(self, state: Describing) -> Question | None:
        if state.counts is None:
            return {"step": "counts"}
        if not self._numbers(state.layout):
            return None
        if state.powers is None:
            return {"step": "powers", "mean": state.mean}
        if state.search is None or state.search.finished:
            return None
        return {"step": "below", "series": state.search.series, "edges": state.search.edges}

    def answer(self, rows: Rows, question: Question) -> Summary:
        masks = self._masks(rows)
        numbers = [c for c in self.columns if c in rows.numbers]
        if question["step"] == "counts":
            return {"n": rows.n, **self._counts(rows, masks, numbers)}
        present = [[_present(rows.numbers[c][mask]) for c in numbers] for mask in masks]
        if question["step"] == "powers":
            powers = np.zeros((4, len(masks), len(numbers)))
            for g, row in enumerate(present):
                for j, values in enumerate(row):
                    centred = values - question["mean"][g][j]
                    powers[:, g, j] = [(centred**k).sum() for k in (1, 2, 3, 4)]
            return {"n": rows.n, "powers": powers}
        ordered = [np.sort(values) for row in present for values in row]
        return {
            "n": rows.n,
            "below": counts_below(ordered, np.asarray(question["series"]), np.asarray(question["edges"])),
        }

    def learn(self, state: Describing, total: Summary, contributors: int) -> Describing:
        if state.counts is None:
            if round(total["n"]) < 1:
                raise Invalid("No hospital has a record.")
            present = np.asarray(total["present"])
            mean = np.asarray(total["sum"]) / np.maximum(present, 1)
            return replace(state, counts=total, mean=mean)
        if state.powers is None:
            assert state.mean is not None
            state = replace(state, powers=total)
            width = len(self._numbers(state.layout))
            moments = [self._moments(state, g, j) for g in range(len(state.groups)) for j in range(width)]
            if not self.probabilities:
                return state
            return replace(
                state,
                search=search(
                    [m.n for m in moments],
                    [m.mean for m in moments],
                    [math.sqrt(m.squares / m.n) if m.n else 0.0 for m in moments],
                    self.probabilities,
                    self.resolution,
                ),
            )
        assert state.search is not None
        return replace(state, search=state.search.narrowed(np.asarray(total["below"])))

    def conclude(self, state: Describing, taken: Taken) -> DescribeResult:
        assert state.counts is not None
        return DescribeResult(
            method=self.name,
            n=round(state.counts["n"]),
            complete=round(state.counts["complete"]),
            by=self.by,
            numbers=self._all_numbers(state),
            quantiles=self._all_quantiles(state),
            levels=self._all_levels(state),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    # --- at a hospital ----------------------------------------------------------------------------------------------

    def _masks(self, rows: Rows) -> list[NDArray[np.bool_]]:
        everyone = [np.ones(rows.n, dtype=np.bool_)]
        if not self.by:
            return everyone
        return everyone + [rows.codes[self.by] == g for g in range(len(rows.levels[self.by]))]

    def _counts(self, rows: Rows, masks: Sequence[NDArray[np.bool_]], numbers: Sequence[str]) -> Summary:
        levels = [
            np.bincount(rows.codes[c][mask] + 1, minlength=len(rows.levels[c]) + 1)
            for mask in masks
            for c in self.columns
            if c in rows.codes
        ]
        return {
            "complete": int(rows.complete(self.columns).sum()),
            "group": np.array([mask.sum() for mask in masks], dtype=np.int64),
            "present": _grid([[rows.present(c)[mask].sum() for c in numbers] for mask in masks], np.int64),
            "sum": _grid([[_present(rows.numbers[c][mask]).sum() for c in numbers] for mask in masks], np.float64),
            "levels": np.concatenate([np.zeros(0, dtype=np.int64), *levels]),
        }

    # --- where the sum is -------------------------------------------------------------------------------------------

    def _numbers(self, layout: Layout) -> list[str]:
        return [c for c in self.columns if layout[c] is None]

    def _moments(self, state: Describing, g: int, j: int) -> GroupMoments:
        assert state.counts is not None and state.powers is not None and state.mean is not None
        n = int(state.counts["present"][g][j])
        rest, squares = (float(v) for v in np.asarray(state.powers["powers"])[:2, g, j])
        if n < 1:
            return GroupMoments(0, math.nan, 0.0)
        return GroupMoments(n, float(state.mean[g, j]) + rest / n, max(squares - rest**2 / n, 0.0))

    def _all_numbers(self, state: Describing) -> tuple[Numbers, ...]:
        found = []
        for j, column in enumerate(self._numbers(state.layout)):
            for g, group in enumerate(state.groups):
                assert state.counts is not None and state.powers is not None
                moments = self._moments(state, g, j)
                _, _, cubes, fourths = (float(v) for v in np.asarray(state.powers["powers"])[:, g, j])
                n, sd = moments.n, math.sqrt(moments.variance) if moments.n > 1 else math.nan
                wide = moments.squares / n if n else 0.0
                found.append(
                    Numbers(
                        column=column,
                        group=group,
                        n=n,
                        missing=int(state.counts["group"][g]) - n,
                        mean=moments.mean,
                        sd=sd,
                        se=sd / math.sqrt(n) if n else math.nan,
                        skewness=cubes / n / wide**1.5 if wide > 0 else math.nan,
                        kurtosis=fourths / n / wide**2 - 3 if wide > 0 else math.nan,
                    )
                )
        return tuple(found)

    def _all_quantiles(self, state: Describing) -> tuple[Quantile, ...]:
        if state.search is None or state.counts is None:
            return ()
        numbers = self._numbers(state.layout)
        counts = [int(n) for n in np.asarray(state.counts["present"]).reshape(-1)]
        values = read_quantiles(state.search, counts, self.probabilities)
        return tuple(
            Quantile(column=column, group=group, probability=p, value=value, bound=bound)
            for j, column in enumerate(numbers)
            for g, group in enumerate(state.groups)
            for p, (value, bound) in zip(self.probabilities, values[g * len(numbers) + j], strict=True)
        )

    def _level_counts(self, state: Describing) -> dict[str, NDArray[np.int64]]:
        """For each category its counts, shape (groups, 1 + levels); the first is of missing values."""
        assert state.counts is not None
        found: dict[str, list[NDArray[np.int64]]] = {}
        rest = np.asarray(state.counts["levels"])
        for _ in state.groups:
            for column in self.columns:
                levels = state.layout[column]
                if levels is not None:
                    found.setdefault(column, []).append(rest[: len(levels) + 1])
                    rest = rest[len(levels) + 1 :]
        return {column: np.array(parts) for column, parts in found.items()}

    def _all_levels(self, state: Describing) -> tuple[LevelCount, ...]:
        found = []
        for column, counts in self._level_counts(state).items():
            levels: Levels = state.layout[column] or ()
            for g, group in enumerate(state.groups):
                present = int(counts[g, 1:].sum())
                for level, n in zip(levels, counts[g, 1:].tolist(), strict=True):
                    found.append(
                        LevelCount(
                            column=column,
                            group=group,
                            level=level,
                            n=n,
                            share=n / present if present else math.nan,
                            missing=int(counts[g, 0]),
                        )
                    )
        return tuple(found)


class TableOne(Agreed[Describing, TableOneResult]):
    """Table 1: each column by group, with Welch's t or ANOVA, or chi-squared, and standardised differences."""

    name: ClassVar[str] = "table-one"

    def __init__(
        self,
        columns: Sequence[str],
        by: str,
        *,
        categories: Sequence[str] = (),
        quantiles: Sequence[float] = (0.25, 0.5, 0.75),
        resolution: float = 1e-3,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        self._describe = Describe(
            columns,
            by,
            categories=categories,
            quantiles=quantiles,
            resolution=resolution,
            ranges=ranges,
            missing=missing,
        )
        self.by = by
        self.variables, self.missing = self._describe.variables, missing

    def begin(self, layout: Layout) -> Describing:
        return self._describe.begin(layout)

    def ask(self, state: Describing) -> Question | None:
        return self._describe.ask(state)

    def answer(self, rows: Rows, question: Question) -> Summary:
        return self._describe.answer(rows, question)

    def learn(self, state: Describing, total: Summary, contributors: int) -> Describing:
        return self._describe.learn(state, total, contributors)

    def conclude(self, state: Describing, taken: Taken) -> TableOneResult:
        found = self._describe.conclude(state, taken)
        assert state.counts is not None
        sizes = [int(n) for n in np.asarray(state.counts["group"])]
        return TableOneResult(
            method=self.name,
            n=found.n,
            by=self.by,
            groups=state.groups[1:],
            group_n=tuple(sizes[1:]),
            group_missing=sizes[0] - sum(sizes[1:]),
            table=self._table(state, found),
            numbers=found.numbers,
            quantiles=found.quantiles,
            levels=found.levels,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    def _table(self, state: Describing, found: DescribeResult) -> tuple[Compared, ...]:
        rows: list[Compared] = []
        numbers = self._describe._numbers(state.layout)
        counts = self._describe._level_counts(state)
        for column in self._describe.columns:
            if state.layout[column] is None:
                rows.append(self._compare_numbers(state, column, numbers.index(column)))
            else:
                rows += self._compare_levels(column, state.layout[column] or (), counts[column])
        return tuple(rows)

    def _compare_numbers(self, state: Describing, column: str, j: int) -> Compared:
        assert state.counts is not None
        moments = [self._describe._moments(state, g, j) for g in range(len(state.groups))]
        groups = moments[1:]
        test = welch(groups[0], groups[1]) if len(groups) == 2 else anova(groups)
        return Compared(
            column=column,
            level=None,
            everyone=_mean_sd(moments[0]),
            groups=tuple(map(_mean_sd, groups)),
            test=test.name,
            statistic=test.statistic,
            p=test.p,
            standardised_difference=_largest([_smd(a, b) for a, b in _pairs(groups)]),
            missing=int(state.counts["group"][0]) - moments[0].n,
        )

    def _compare_levels(self, column: str, levels: Levels, counts: NDArray[np.int64]) -> list[Compared]:
        test = chi_squared(counts[1:, 1:])
        shares = [row[1:] / max(row[1:].sum(), 1) for row in counts[1:]]
        difference = _largest([_smd_levels(a, b) for a, b in _pairs(shares)])
        return [
            Compared(
                column=column,
                level=level,
                everyone=_count_share(counts[0], i),
                groups=tuple(_count_share(row, i) for row in counts[1:]),
                test=test.name,
                statistic=test.statistic,
                p=test.p,
                standardised_difference=difference,
                missing=int(counts[0, 0]),
            )
            for i, level in enumerate(levels)
        ]


# --- correlation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Correlated:
    first: str
    second: str
    correlation: float
    covariance: float
    ci_low: float
    ci_high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class CorrelationResult(Result):
    method: str
    columns: tuple[str, ...]
    n: int
    dropped: int
    pairs: tuple[Correlated, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Crossing:
    n: int = 0
    dropped: int = 0
    mean: Floats | None = None
    cross: Floats | None = None


class Correlation(Agreed[Crossing, CorrelationResult]):
    """Pearson's correlation of columns of numbers, over rows that are complete in all of them."""

    name: ClassVar[str] = "correlation"

    def __init__(self, columns: Sequence[str], *, ranges: Sequence[str] = (), missing: Missing = "drop") -> None:
        if len(columns) < 2 or len(set(columns)) != len(columns):
            raise Invalid("Two or more different columns are correlated.")
        self.columns, self.missing = tuple(columns), missing
        self.variables = with_ranges([Variable(c, "number") for c in columns], read_ranges(ranges))

    def begin(self, layout: Layout) -> Crossing:
        return Crossing()

    def ask(self, state: Crossing) -> Question | None:
        if state.mean is None:
            return {"step": "means"}
        return {"step": "cross", "mean": state.mean} if state.cross is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        return cross_answer(rows, self.columns, question)

    def learn(self, state: Crossing, total: Summary, contributors: int) -> Crossing:
        return cross_learn(state, total, len(self.columns))

    def conclude(self, state: Crossing, taken: Taken) -> CorrelationResult:
        assert state.cross is not None
        width = np.sqrt(np.diag(state.cross))
        with np.errstate(divide="ignore", invalid="ignore"):
            matrix = np.where(np.outer(width, width) > 0, state.cross / np.outer(width, width), np.nan)
        pairs = tuple(
            self._pair(state, matrix, i, j) for i in range(len(self.columns)) for j in range(i + 1, len(self.columns))
        )
        return CorrelationResult(
            method=self.name,
            columns=self.columns,
            n=state.n,
            dropped=state.dropped,
            pairs=pairs,
            matrix=tuple(tuple(float(v) for v in row) for row in matrix),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    def _pair(self, state: Crossing, matrix: Floats, i: int, j: int) -> Correlated:
        assert state.cross is not None
        r, n = float(matrix[i, j]), state.n
        low = high = p = math.nan
        if abs(r) < 1 and n > 3:
            width = 1.959963984540054 / math.sqrt(n - 3)
            low, high = math.tanh(math.atanh(r) - width), math.tanh(math.atanh(r) + width)
            p = t_two_sided(r * math.sqrt((n - 2) / (1 - r * r)), n - 2)
        return Correlated(
            first=self.columns[i],
            second=self.columns[j],
            correlation=r,
            covariance=float(state.cross[i, j]) / (n - 1) if n > 1 else math.nan,
            ci_low=low,
            ci_high=high,
            p=p,
        )


def cross_answer(rows: Rows, columns: Sequence[str], question: Question) -> Summary:
    """Sums of columns, then of cross-products about common means."""
    kept = rows.complete(columns)
    x = np.column_stack([rows.numbers[c][kept] for c in columns])
    if question["step"] == "means":
        return {"n": len(x), "dropped": int((~kept).sum()), "sum": x.sum(axis=0)}
    centred = x - question["mean"]
    return {"n": len(x), "rest": centred.sum(axis=0), "cross": pack(centred.T @ centred)}


def cross_learn(state: Crossing, total: Summary, k: int) -> Crossing:
    if state.mean is None:
        n = round(total["n"])
        if n < 1:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        return replace(state, n=n, dropped=round(total["dropped"]), mean=np.asarray(total["sum"]) / n)
    rest = np.asarray(total["rest"])
    cross = unpack(np.asarray(total["cross"]), k) - np.outer(rest, rest) / state.n
    return replace(state, cross=cross)


# --- histogram ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bin:
    group: str
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class HistogramResult(Result):
    method: str
    column: str
    by: str | None
    n: int
    missing: int
    bins: tuple[Bin, ...]
    """The first and the last are open to their sides."""


@dataclass(frozen=True)
class Binning:
    groups: tuple[str, ...]
    n: int = 0
    missing: int = 0
    mean: float | None = None
    edges: Floats | None = None
    counts: NDArray[np.int64] | None = None


class Histogram(Agreed[Binning, HistogramResult]):
    """Counts in equal bins from ``low`` to ``high``; without them three standard deviations around the mean."""

    name: ClassVar[str] = "histogram"

    def __init__(
        self,
        column: str,
        by: str | None = None,
        *,
        bins: int = 20,
        low: float | None = None,
        high: float | None = None,
        ranges: Sequence[str] = (),
    ) -> None:
        ordered = low < high if low is not None and high is not None else low is None and high is None
        if not 1 <= bins <= 10_000 or not ordered:
            raise Invalid("bins is between 1 and 10,000; low is less than high, or both are left out.")
        if column == by:
            raise Invalid("The column and the groups' column are different.")
        self.column, self.by, self.bins = column, by, bins
        self.edges = np.linspace(low, high, bins + 1) if low is not None and high is not None else None
        variables = [Variable(column, "number")] + ([Variable(by, "category")] if by else [])
        self.variables = with_ranges(variables, read_ranges(ranges))

    def begin(self, layout: Layout) -> Binning:
        return Binning((EVERYONE, *((layout[self.by] or ()) if self.by else ())), edges=self.edges)

    def ask(self, state: Binning) -> Question | None:
        if state.counts is not None:
            return None
        if state.edges is not None:
            return {"step": "count", "edges": state.edges}
        return {"step": "mean"} if state.mean is None else {"step": "spread", "mean": state.mean}

    def answer(self, rows: Rows, question: Question) -> Summary:
        values = _present(rows.numbers[self.column])
        if question["step"] == "mean":
            return {"n": rows.n, "present": len(values), "sum": float(values.sum())}
        if question["step"] == "spread":
            centred = values - question["mean"]
            return {"n": rows.n, "squares": float((centred**2).sum())}
        edges = np.asarray(question["edges"])
        masks = [np.ones(rows.n, dtype=np.bool_)]
        masks += [rows.codes[self.by] == g for g in range(len(rows.levels[self.by]))] if self.by else []
        counts = [
            np.bincount(_bin(_present(rows.numbers[self.column][mask]), edges), minlength=len(edges) + 1)
            for mask in masks
        ]
        return {"n": rows.n, "present": len(values), "counts": np.array(counts, dtype=np.int64)}

    def learn(self, state: Binning, total: Summary, contributors: int) -> Binning:
        if "counts" in total:
            n = round(total["present"])
            return replace(state, counts=np.asarray(total["counts"]), n=n, missing=round(total["n"]) - n)
        if state.mean is None:
            n = round(total["present"])
            if n < 1:
                raise Invalid(f"The column '{self.column}' has no value at any hospital.")
            return replace(state, n=n, mean=float(total["sum"]) / n)
        sd = math.sqrt(float(total["squares"]) / state.n) or 1.0
        return replace(state, edges=np.linspace(state.mean - 3 * sd, state.mean + 3 * sd, self.bins + 1))

    def conclude(self, state: Binning, taken: Taken) -> HistogramResult:
        assert state.edges is not None and state.counts is not None
        bounds = [-math.inf, *state.edges.tolist(), math.inf]
        return HistogramResult(
            method=self.name,
            column=self.column,
            by=self.by,
            n=state.n,
            missing=state.missing,
            bins=tuple(
                Bin(group=group, low=bounds[i], high=bounds[i + 1], n=int(n))
                for group, row in zip(state.groups, state.counts, strict=True)
                for i, n in enumerate(row)
            ),
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


def _bin(values: Floats, edges: Floats) -> NDArray[np.intp]:
    """0 below the first edge, len(edges) above the last; the last bin includes its right edge, as NumPy's."""
    found = np.searchsorted(edges, values, side="right")
    return np.asarray(np.where(values == edges[-1], len(edges) - 1, found))


def _present(values: Floats) -> Floats:
    return np.asarray(values[~np.isnan(values)])


def _grid(rows: Sequence[Sequence[object]], dtype: type) -> NDArray[np.generic]:
    return np.array([list(row) for row in rows], dtype=dtype).reshape(len(rows), -1)


def _pairs(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    return [(a, b) for i, a in enumerate(items) for b in items[i + 1 :]]


def _largest(values: Sequence[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return max(known) if known else None


def _smd(a: GroupMoments, b: GroupMoments) -> float:
    if a.n < 2 or b.n < 2:
        return math.nan
    pooled = math.sqrt((a.variance + b.variance) / 2)
    return abs(a.mean - b.mean) / pooled if pooled > 0 else math.nan


def _smd_levels(a: Floats, b: Floats) -> float:
    """Mahalanobis distance of the shares, the first level left out."""
    difference = (a - b)[1:]
    if not len(difference):
        return 0.0
    covariance = ((np.diag(a) - np.outer(a, a)) + (np.diag(b) - np.outer(b, b)))[1:, 1:] / 2
    return math.sqrt(max(float(difference @ np.linalg.pinv(covariance) @ difference), 0.0))


def _mean_sd(moments: GroupMoments) -> str:
    if not moments.n:
        return "–"
    return f"{moments.mean:.4g} ({math.sqrt(moments.variance):.3g})" if moments.n > 1 else f"{moments.mean:.4g}"


def _count_share(counts: NDArray[np.int64], i: int) -> str:
    present = int(counts[1:].sum())
    return f"{int(counts[1 + i])} ({100 * counts[1 + i] / present:.1f} %)" if present else "0"
