"""Order statistics from counts below thresholds, to a stated bound: no hospital tells a value of a patient.

Where to look first follows from mean and standard deviation alone (bounds of order statistics: Hawkins 1971), so that
no minimum or maximum is asked for. Each round divides every interval by ``PARTS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PARTS = 32


@dataclass(frozen=True)
class Search:
    """Targets: the order statistics ``rank`` (from 1) of the ``series`` (an index that the caller gives meaning)."""

    series: NDArray[np.int64]
    rank: NDArray[np.int64]
    low: Floats
    high: Floats
    width: Floats
    """The interval's length that is good enough."""

    @property
    def edges(self) -> Floats:
        """Where to count next, shape (targets, PARTS + 1)."""
        part = np.linspace(0.0, 1.0, PARTS + 1)
        edges = self.low[:, np.newaxis] + (self.high - self.low)[:, np.newaxis] * part
        edges[:, -1] = self.high
        return np.asarray(edges)

    @property
    def finished(self) -> bool:
        return bool((self.high - self.low <= self.width).all())

    def narrowed(self, counts: NDArray[np.int64]) -> Search:
        """``counts``: values at or below each edge, shape (targets, PARTS + 1)."""
        edges = self.edges
        first = np.argmax(counts >= self.rank[:, np.newaxis], axis=1)
        first = np.where(counts[:, -1] >= self.rank, first, PARTS)
        pick = np.arange(len(first))
        high = edges[pick, first]
        low = np.where(first > 0, edges[pick, np.maximum(first - 1, 0)], self.low)
        still = (high - low < self.high - self.low) & (high > low)
        width = np.where(still | (first == 0), self.width, math.inf)  # no number lies between: as near as it gets
        low = np.where(first == 0, high, low)
        return replace(self, low=low, high=high, width=width)


def search(
    n: Sequence[int], mean: Sequence[float], sd: Sequence[float], probabilities: Sequence[float], resolution: float
) -> Search:
    """For each series both order statistics around each probability (linear interpolation: Hyndman & Fan's type 7).

    ``sd`` has the divisor n. ``resolution``: of a quantile, in standard deviations.
    """
    series, ranks, lows, highs, widths = [], [], [], [], []
    for i, (count, centre, spread) in enumerate(zip(n, mean, sd, strict=True)):
        for p in probabilities:
            for rank in _ranks(p, count):
                below = math.sqrt((count - rank) / rank) if count else 0.0
                above = math.sqrt((rank - 1) / (count - rank + 1)) if count else 0.0
                margin = 1e-9 * (spread + abs(centre)) if spread > 0 else 0.0
                series.append(i)
                ranks.append(rank)
                lows.append(centre - spread * below - margin)
                highs.append(centre + spread * above + margin)
                widths.append(resolution * spread)
    return Search(
        np.array(series, dtype=np.int64),
        np.array(ranks, dtype=np.int64),
        np.array(lows),
        np.array(highs),
        np.array(widths),
    )


def counts_below(series: Sequence[Floats], which: NDArray[np.int64], edges: Floats) -> NDArray[np.int64]:
    """A hospital's answer. ``series``: sorted values."""
    out = np.zeros(edges.shape, dtype=np.int64)
    for target, index in enumerate(which.tolist()):
        out[target] = np.searchsorted(series[index], edges[target], side="right")
    return out


def read_quantiles(found: Search, n: Sequence[int], probabilities: Sequence[float]) -> list[list[tuple[float, float]]]:
    """For each series and probability: (the quantile, how far it may be off)."""
    middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
    out = []
    for i, count in enumerate(n):
        row = []
        for q, p in enumerate(probabilities):
            at = 2 * (i * len(probabilities) + q)
            if not count:
                row.append((math.nan, math.nan))
                continue
            part = (count - 1) * p - math.floor((count - 1) * p)
            value = middle[at] + part * (middle[at + 1] - middle[at])
            bound = (1 - part) * half[at] + part * half[at + 1]
            row.append((float(value), float(bound)))
        out.append(row)
    return out


def _ranks(p: float, n: int) -> tuple[int, int]:
    if n < 1:
        return 1, 1
    below = min(math.floor((n - 1) * p), n - 1)
    return below + 1, min(below + 2, n)
