"""From a table to numbers: covariates, a binary outcome, complete cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flame.model.errors import HasInfinite, HasMissing, NotBinary
from flame.sdk.table import Table

Missing = Literal["drop", "error"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """``x``: covariates, shape (n, p), without an intercept. ``y``: the outcome, shape (n,). Complete rows only."""

    x: Floats
    y: Floats
    columns: tuple[str, ...]
    dropped: int
    """Rows left out because a value was missing."""

    def with_x(self, x: Floats) -> Design:
        return replace(self, x=x)


def binary_design(
    table: Table,
    outcome: str,
    covariates: Sequence[str],
    levels: tuple[str, str] | None = None,
    missing: Missing = "drop",
) -> Design:
    """Complete cases of a table. ``levels``: for an outcome of text, (no event, event).

    Raises NotFound or UnfitData naming the column: absent, text where numbers are needed, infinite, not binary, or
    missing values under ``missing="error"``.
    """
    x = table.matrix(covariates)
    y = _binary(table, outcome, levels)
    absent = np.isnan(np.column_stack([x, y]))
    incomplete = absent.any(axis=1)
    if missing == "error" and incomplete.any():
        named = [*covariates, outcome]
        column = named[int(absent.any(axis=0).argmax())]
        raise HasMissing(column)
    x, y = x[~incomplete], y[~incomplete]
    infinite = ~np.isfinite(x).all(axis=0)
    if infinite.any():
        raise HasInfinite(covariates[int(infinite.argmax())])
    return Design(x, y, tuple(covariates), int(incomplete.sum()))


def _binary(table: Table, outcome: str, levels: tuple[str, str] | None) -> Floats:
    column = table[outcome]
    if isinstance(column, list):
        return _from_text(column, outcome, levels)
    y = table.numbers(outcome)
    if not np.isin(y[~np.isnan(y)], (0.0, 1.0)).all():
        raise NotBinary(outcome)
    return y


def _from_text(column: list[str | None], outcome: str, levels: tuple[str, str] | None) -> Floats:
    if levels is None:
        raise NotBinary(outcome)
    codes: dict[str | None, float] = {None: np.nan, "": np.nan, levels[0]: 0.0, levels[1]: 1.0}
    try:
        return np.array([codes[text] for text in column], dtype=np.float64)
    except KeyError:
        raise NotBinary(outcome) from None
