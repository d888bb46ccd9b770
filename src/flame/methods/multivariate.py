"""Principal components, k-means and multiple correspondence analysis: cross-products and sums by cluster.

PCA: Pearson 1901, Jolliffe 2002; k-means: Lloyd 1982; MCA from the Burt table: Greenacre 2007, ch. 18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Agreed, Layout, Levels, Missing, Rows, Taken, Variable, read_ranges, with_ranges
from flame.methods.descriptive import Crossing, cross_answer, cross_learn
from flame.methods.method import Question, Result, Summary
from flame.model.errors import Invalid, Singular

Floats = NDArray[np.float64]

_SMALLEST_RATIO = 1e-13


@dataclass(frozen=True, kw_only=True)
class Component:
    component: int
    eigenvalue: float
    share: float
    cumulative: float


@dataclass(frozen=True, kw_only=True)
class Loading:
    column: str
    mean: float
    sd: float
    loadings: tuple[float, ...]
    """In each component, as unit vectors; the largest in absolute value of a component is positive."""


@dataclass(frozen=True, kw_only=True)
class PcaResult(Result):
    method: str
    matrix: str
    components: tuple[Component, ...]
    loadings: tuple[Loading, ...]
    n: int
    dropped: int


class Pca(Agreed[Crossing, PcaResult]):
    """Principal components of the correlation (``standardise``) or the covariance matrix (divisor n - 1)."""

    name: ClassVar[str] = "pca"

    def __init__(
        self,
        columns: Sequence[str],
        *,
        standardise: bool = True,
        components: int = 0,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        if not columns or len(set(columns)) != len(columns) or not 0 <= components <= len(columns):
            raise Invalid("columns are different; components is at most their number (0: all).")
        self.columns, self.standardise, self.missing = tuple(columns), standardise, missing
        self.components = components or len(columns)
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
        state = cross_learn(state, total, len(self.columns))
        if state.n < 2:
            raise Invalid("There are fewer than two complete records.")
        if state.cross is not None and self.standardise:
            assert state.mean is not None
            sd = np.sqrt(np.diag(state.cross) / state.n)
            constant = sd <= _SMALLEST_RATIO * np.abs(state.mean)
            if constant.any():
                raise Singular(self.columns[int(constant.argmax())])
        return state

    def conclude(self, state: Crossing, taken: Taken) -> PcaResult:
        assert state.cross is not None and state.mean is not None
        covariance = state.cross / (state.n - 1)
        sd = np.sqrt(np.diag(covariance))
        matrix = covariance / np.outer(sd, sd) if self.standardise else covariance
        values, vectors = np.linalg.eigh(matrix)
        values, vectors = values[::-1], vectors[:, ::-1]
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
        share = values / values.sum()
        return PcaResult(
            method=self.name,
            matrix="correlation" if self.standardise else "covariance",
            components=tuple(
                Component(
                    component=i + 1,
                    eigenvalue=float(values[i]),
                    share=float(share[i]),
                    cumulative=float(share[: i + 1].sum()),
                )
                for i in range(self.components)
            ),
            loadings=tuple(
                Loading(
                    column=column,
                    mean=float(state.mean[j]),
                    sd=float(sd[j]),
                    loadings=tuple(float(v) for v in vectors[j, : self.components]),
                )
                for j, column in enumerate(self.columns)
            ),
            n=state.n,
            dropped=state.dropped,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )


# --- k-means --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cluster:
    cluster: int
    n: int
    centre: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class KMeansResult(Result):
    method: str
    columns: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    inertia: float
    n: int
    dropped: int
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Clustering:
    mean: Floats | None = None
    sd: Floats | None = None
    centres: Floats | None = None
    n: int = 0
    dropped: int = 0
    sizes: NDArray[np.int64] | None = None
    inertia: float = math.inf
    iterations: int = 0
    finished: bool = False
    converged: bool = False


class KMeans(Agreed[Clustering, KMeansResult]):
    """Lloyd's algorithm. ``centres``: where to start, one after the other, as ``k`` times the columns' numbers; without
    them points drawn with ``seed`` from a normal distribution of the columns' means and deviations.

    ``standardise``: distances in standard deviations; the centres in the result are in the columns' units.
    """

    name: ClassVar[str] = "k-means"

    def __init__(
        self,
        columns: Sequence[str],
        k: int,
        *,
        centres: Sequence[float] = (),
        standardise: bool = False,
        seed: int = 0,
        max_iterations: int = 300,
        ranges: Sequence[str] = (),
        missing: Missing = "drop",
    ) -> None:
        if not columns or len(set(columns)) != len(columns) or not 1 <= k <= 1000:
            raise Invalid("columns are different; k is between 1 and 1,000.")
        if centres and len(centres) != k * len(columns):
            raise Invalid(f"centres holds {len(centres)} numbers; {k} x {len(columns)} are needed.")
        self.columns, self.k, self.missing = tuple(columns), k, missing
        self.centres = np.array(centres, dtype=np.float64).reshape(k, -1) if centres else None
        self.standardise, self.seed, self.max_iterations = standardise, seed, max_iterations
        self.variables = with_ranges([Variable(c, "number") for c in columns], read_ranges(ranges))

    def begin(self, layout: Layout) -> Clustering:
        return Clustering()

    def ask(self, state: Clustering) -> Question | None:
        if state.mean is None:
            return {"step": "means"}
        if state.sd is None:
            return {"step": "spread", "mean": state.mean}
        if state.finished:
            return None
        return {"step": "assign", "mean": state.mean, "sd": self._unit(state), "centres": state.centres}

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete(self.columns)
        x = np.column_stack([rows.numbers[c][kept] for c in self.columns])
        if question["step"] == "means":
            return {"n": len(x), "dropped": int((~kept).sum()), "sum": x.sum(axis=0)}
        x = x - question["mean"]
        if question["step"] == "spread":
            return {"n": len(x), "squares": (x**2).sum(axis=0)}
        x = x / question["sd"]
        centres = np.asarray(question["centres"])
        distance = np.column_stack([((x - centre) ** 2).sum(axis=1) for centre in centres])
        nearest = distance.argmin(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, x - centres[nearest])
        return {
            "n": len(x),
            "sizes": np.bincount(nearest, minlength=len(centres)).astype(np.int64),
            "moves": sums,
            "inertia": float(distance[np.arange(len(x)), nearest].sum()),
        }

    def learn(self, state: Clustering, total: Summary, contributors: int) -> Clustering:
        if state.mean is None:
            n = round(total["n"])
            if n < self.k:
                raise Invalid(f"There are {n} complete records for {self.k} clusters.")
            return replace(state, n=n, dropped=round(total["dropped"]), mean=np.asarray(total["sum"]) / n)
        if state.sd is None:
            sd = np.sqrt(np.asarray(total["squares"]) / state.n)
            constant = sd <= _SMALLEST_RATIO * np.abs(state.mean)
            if self.standardise and constant.any():
                raise Singular(self.columns[int(constant.argmax())])
            return self._placed(replace(state, sd=sd))
        sizes = np.asarray(total["sizes"])
        assert state.centres is not None
        move = np.asarray(total["moves"]) / np.maximum(sizes, 1)[:, np.newaxis]
        inertia = float(total["inertia"])
        same = state.sizes is not None and np.array_equal(sizes, state.sizes)
        still = bool(np.abs(move).max() <= 1e-9 * float(np.abs(state.centres).max() + 1e-300))
        converged = same and (still or inertia >= state.inertia * (1 - 1e-14))
        done = converged or state.iterations >= self.max_iterations
        return replace(
            state,
            sizes=sizes,
            inertia=inertia,
            centres=state.centres if done else state.centres + move,
            iterations=state.iterations + (not done),
            finished=done,
            converged=converged,
        )

    def conclude(self, state: Clustering, taken: Taken) -> KMeansResult:
        assert state.centres is not None and state.sizes is not None and state.mean is not None
        centres = state.centres * self._unit(state) + state.mean
        return KMeansResult(
            method=self.name,
            columns=self.columns,
            clusters=tuple(
                Cluster(cluster=i + 1, n=int(n), centre=tuple(float(v) for v in centre))
                for i, (n, centre) in enumerate(zip(state.sizes, centres, strict=True))
            ),
            inertia=state.inertia,
            n=state.n,
            dropped=state.dropped,
            iterations=state.iterations,
            converged=state.converged,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )

    def _unit(self, state: Clustering) -> Floats:
        assert state.sd is not None
        return state.sd if self.standardise else np.ones(len(self.columns))

    def _placed(self, state: Clustering) -> Clustering:
        assert state.mean is not None and state.sd is not None
        if self.centres is not None:
            return replace(state, centres=(self.centres - state.mean) / self._unit(state))
        drawn = np.random.default_rng(self.seed).normal(size=(self.k, len(self.columns)))
        return replace(state, centres=drawn * state.sd / self._unit(state))


# --- multiple correspondence analysis -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Category:
    column: str
    level: str
    n: int
    coordinates: tuple[float, ...]
    """Principal coordinates in each dimension; the largest in absolute value of a dimension is positive."""


@dataclass(frozen=True, kw_only=True)
class McaResult(Result):
    method: str
    dimensions: tuple[Component, ...]
    """Principal inertias of the indicator matrix."""
    categories: tuple[Category, ...]
    n: int
    dropped: int


@dataclass(frozen=True)
class Burt:
    levels: tuple[Levels, ...]
    table: NDArray[np.int64] | None = None
    n: int = 0
    dropped: int = 0


class Mca(Agreed[Burt, McaResult]):
    """Multiple correspondence analysis of two or more categories, over rows that are complete in all of them."""

    name: ClassVar[str] = "mca"

    def __init__(self, columns: Sequence[str], *, dimensions: int = 2, missing: Missing = "drop") -> None:
        if len(columns) < 2 or len(set(columns)) != len(columns) or dimensions < 1:
            raise Invalid("columns are two or more different ones; dimensions is at least 1.")
        self.columns, self.dimensions, self.missing = tuple(columns), dimensions, missing
        self.variables = tuple(Variable(c, "category") for c in columns)

    def begin(self, layout: Layout) -> Burt:
        return Burt(tuple(layout[c] or () for c in self.columns))

    def ask(self, state: Burt) -> Question | None:
        return {"step": "burt"} if state.table is None else None

    def answer(self, rows: Rows, question: Question) -> Summary:
        kept = rows.complete(self.columns)
        indicator = np.hstack(
            [rows.codes[c][kept][:, np.newaxis] == np.arange(len(rows.levels[c])) for c in self.columns]
        ).astype(np.int64)
        return {"n": len(indicator), "dropped": int((~kept).sum()), "burt": indicator.T @ indicator}

    def learn(self, state: Burt, total: Summary, contributors: int) -> Burt:
        n = round(total["n"])
        if n < 1:
            raise Invalid("No hospital has a complete record.", next_step="Look at the columns' missing values.")
        return replace(state, table=np.asarray(total["burt"]), n=n, dropped=round(total["dropped"]))

    def conclude(self, state: Burt, taken: Taken) -> McaResult:
        assert state.table is not None
        names = [(c, level) for c, levels in zip(self.columns, state.levels, strict=True) for level in levels]
        sizes = np.diag(state.table)
        held = np.flatnonzero(sizes)
        q = len(self.columns)
        mass = sizes[held] / (state.n * q)
        root = np.sqrt(mass)
        burt = state.table[np.ix_(held, held)] / (state.n * q * q)
        values, vectors = np.linalg.eigh((burt - np.outer(mass, mass)) / np.outer(root, root))
        most = max(len(held) - q, 0)
        values, vectors = np.maximum(values[::-1][:most], 0.0), vectors[:, ::-1][:, :most]
        shown = min(self.dimensions, most)
        total = values.sum() or 1.0
        coordinates = vectors / root[:, np.newaxis] * np.sqrt(values)
        if shown:
            coordinates = coordinates * np.sign(coordinates[np.abs(coordinates).argmax(axis=0), np.arange(most)])
        return McaResult(
            method=self.name,
            dimensions=tuple(
                Component(
                    component=i + 1,
                    eigenvalue=float(values[i]),
                    share=float(values[i] / total),
                    cumulative=float(values[: i + 1].sum() / total),
                )
                for i in range(shown)
            ),
            categories=tuple(
                Category(
                    column=names[j][0],
                    level=names[j][1],
                    n=int(sizes[j]),
                    coordinates=tuple(float(v) for v in coordinates[row, :shown]),
                )
                for row, j in enumerate(held.tolist())
            ),
            n=state.n,
            dropped=state.dropped,
            rounds=taken.rounds,
            contributors=taken.contributors,
        )
