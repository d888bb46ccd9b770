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


def _special() -> Any:
    try:
        from scipy import special
    except ImportError:
        raise Unavailable(
            "SciPy is not installed where the result is made.", next_step="pip install 'flame-federated[methods]'"
        ) from None
    return special
