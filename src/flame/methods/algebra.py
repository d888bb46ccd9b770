"""Linear algebra on sums: symmetric matrices as packed triangles, solved on the correlation scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flame.model.errors import Singular

Floats = NDArray[np.float64]

_DEPENDENT = 1e-12


def pack(matrix: Floats) -> Floats:
    """The upper triangle, row by row, shape (k (k + 1) / 2,): a sum need not carry both halves."""
    return np.asarray(matrix[np.triu_indices(len(matrix))])


def unpack(triangle: Floats, k: int) -> Floats:
    full = np.empty((k, k))
    rows, columns = np.triu_indices(k)
    full[rows, columns] = triangle
    full[columns, rows] = triangle
    return full


def check_rank(matrix: Floats, names: Sequence[str]) -> None:
    """Raises Singular naming the first column that those before it determine (Cholesky on the correlation scale)."""
    width = np.sqrt(np.diag(matrix))
    if (width == 0).any():
        raise Singular(names[int((width == 0).argmax())])
    rest = matrix / np.outer(width, width)
    for j, name in enumerate(names):
        if rest[j, j] <= _DEPENDENT:
            raise Singular(name)
        below = rest[j, j:] / math.sqrt(rest[j, j])
        rest[j:, j:] -= np.outer(below, below)


def dying_direction(first: Floats, now: Floats, limit: float) -> Floats | None:
    """Where the information ``now`` keeps less than ``limit`` of what it ``first`` was: a direction of separation, as
    the size of its parts; None when there is no such direction."""
    width = np.sqrt(np.diag(first))
    lower = np.linalg.cholesky(first / np.outer(width, width))
    half = np.linalg.solve(lower, now / np.outer(width, width))
    values, vectors = np.linalg.eigh(np.linalg.solve(lower, half.T))
    return None if values[0] >= limit else np.asarray(np.abs(np.linalg.solve(lower.T, vectors[:, 0])))


def solve(matrix: Floats, right: Floats, names: Sequence[str]) -> Floats:
    """Symmetric positive definite; equilibrated first, so that units of the covariates cost no digits."""
    width = np.sqrt(np.diag(matrix))
    try:
        lower = np.linalg.cholesky(matrix / np.outer(width, width))
    except np.linalg.LinAlgError:
        check_rank(matrix, names)
        raise Singular(names[-1]) from None
    scaled = right / width if right.ndim == 1 else right / width[:, np.newaxis]
    solved = np.linalg.solve(lower.T, np.linalg.solve(lower, scaled))
    return solved / width if right.ndim == 1 else solved / width[:, np.newaxis]


def inverse(matrix: Floats, names: Sequence[str]) -> Floats:
    return solve(matrix, np.eye(len(matrix)), names)
