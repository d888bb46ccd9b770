"""One example of each method of the catalogue, and a table that all of them can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from flame.sdk.table import Table

EXAMPLES: dict[str, dict[str, Any]] = {
    "describe": {"columns": ["a", "b", "ward"], "by": "y"},
    "table-one": {"columns": ["a", "ward"], "by": "y"},
    "histogram": {"column": "a", "by": "ward"},
    "correlation": {"columns": ["a", "b"]},
    "cross-table": {"row": "ward", "column": "y"},
    "t-test": {"value": "a", "group": "y"},
    "student-t-test": {"value": "a", "group": "y"},
    "anova": {"value": "a", "group": "ward"},
    "chi-squared": {"row": "ward", "column": "y"},
    "fisher-exact": {"row": "sex", "column": "y"},
    "mann-whitney": {"value": "a", "group": "y"},
    "kruskal-wallis": {"value": "a", "group": "ward"},
    "linear": {"formula": "a ~ b * C(ward)"},
    "poisson": {"formula": "count ~ b + ward"},
    "gamma": {"outcome": "time", "covariates": ["b", "ward"]},
    "negative-binomial": {"outcome": "count", "covariates": ["b"]},
    "glm": {"formula": "y ~ log(time) + sex", "family": "binomial", "penalty": 0.1, "l1_ratio": 0.5},
    "mixed-linear": {"formula": "a ~ b", "cluster": "ward"},
    "kaplan-meier": {"duration": "time", "event": "y", "group": "ward"},
    "log-rank": {"duration": "time", "event": "y", "group": "ward"},
    "restricted-mean": {"duration": "time", "event": "y", "group": "sex", "horizon": 5.0},
    "cox": {"duration": "time", "event": "y", "covariates": ["a", "ward"], "strata": ["sex"]},
    "cox by site": {"duration": "time", "event": "y", "covariates": ["a", "ward"], "strata": ["site"]},
    "roc": {"outcome": "y", "score": "risk"},
    "calibration": {"outcome": "y", "score": "risk"},
    "brier": {"outcome": "y", "score": "risk"},
    "confusion": {"outcome": "y", "score": "risk"},
    "pca": {"columns": ["a", "b", "time"]},
    "k-means": {"columns": ["a", "b"], "k": 3},
    "mca": {"columns": ["ward", "sex", "y"]},
    "meta-analysis": {"formula": "y ~ a", "family": "binomial"},
}
"""Title: parameters. What stands before " by " is the method's name."""


def entry_name(title: str) -> str:
    return title.partition(" by ")[0]


def table(n: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4) * 1
    return Table(
        {
            "a": rng.normal(size=n),
            "b": rng.normal(40, 9, n),
            "y": y,
            "ward": [str(w) for w in rng.choice(["north", "south", "west"], n)],
            "sex": [str(s) for s in rng.choice(["f", "m"], n)],
            "count": rng.negative_binomial(2, 0.3, n),
            "time": np.ceil(rng.exponential(9, n)),
            "risk": np.round(rng.random(n) * 0.6 + 0.2 * y, 3),
        }
    )
