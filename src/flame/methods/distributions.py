"""Tail probabilities and quantiles, from SciPy, which is imported when a result is made and not at the hospitals."""

from __future__ import annotations

import math
from typing import Any

from flame.model.errors import Unavailable

NORMAL_975 = 1.959963984540054


def normal_two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def t_two_sided(t: float, df: float) -> float:
    return float(2 * _special().stdtr(df, -abs(t)))


def t_975(df: float) -> float:
    return float(_special().stdtrit(df, 0.975))


def chi2_tail(x: float, df: float) -> float:
    return float(_special().chdtrc(df, x)) if df > 0 else math.nan


def f_tail(x: float, df1: float, df2: float) -> float:
    return float(_special().fdtrc(df1, df2, x))


def normal_quantile(p: float) -> float:
    return float(_special().ndtri(p))


def hypergeometric_two_sided(a: int, b: int, c: int, d: int) -> float:
    """Fisher's exact test of a 2 x 2 table: the tables that are no more likely than this one."""
    row, column, n = a + b, a + c, a + b + c + d
    gamma = _special().gammaln

    def log_choose(total: int, part: int) -> float:
        return float(gamma(total + 1) - gamma(part + 1) - gamma(total - part + 1))

    def log_probability(k: int) -> float:
        return log_choose(column, k) + log_choose(n - column, row - k) - log_choose(n, row)

    limit = log_probability(a) + 1e-7
    tables = range(max(0, row + column - n), min(row, column) + 1)
    return min(1.0, math.fsum(math.exp(v) for k in tables if (v := log_probability(k)) <= limit))


def _special() -> Any:
    try:
        from scipy import special
    except ImportError:
        raise Unavailable(
            "SciPy is not installed where the result is made.", next_step="pip install 'flame-federated[methods]'"
        ) from None
    return special
