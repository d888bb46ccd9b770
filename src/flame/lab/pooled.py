"""The pooled fit by an independent library: what a federated result has to equal.

``python -m flame.lab.pooled`` reads a request as JSON from stdin and writes the fit as JSON to stdout. It is a process
of its own because loading statsmodels takes longer than the federation needs to start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flame.lab.elsewhere import Elsewhere, answer

INTERCEPT: Final = "(Intercept)"


@dataclass(frozen=True)
class Request:
    files: tuple[str, ...]
    outcome: str
    covariates: tuple[str, ...]
    standardise: bool


def pooled_fit(request: Request) -> Elsewhere:
    """Start the fit; ``pooled_result`` waits for it."""
    return Elsewhere("flame.lab.pooled", asdict(request))


def pooled_result(fit: Elsewhere) -> dict[str, Any]:
    """``coefficients`` and ``log_likelihood``. Raises RunFailed with what the library said."""
    found: dict[str, Any] = fit.result(
        "The pooled reference could not be computed",
        "Look at the outcome (0 and 1) and the covariates (numbers) in the files.",
    )
    return found


def fit(request: Request) -> dict[str, Any]:
    """Logistic regression by statsmodels on all files together, complete cases, population standard deviations."""
    import numpy as np
    import pandas as pd
    from statsmodels.discrete.discrete_model import Logit

    wanted = [request.outcome, *request.covariates]
    frames = [_read(Path(file), wanted) for file in request.files]
    pooled = pd.concat(frames, ignore_index=True)[wanted].astype("float64").dropna()
    x = pooled[list(request.covariates)].to_numpy()
    if request.standardise:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    design = np.column_stack([np.ones(len(x)), x])
    found = Logit(pooled[request.outcome].to_numpy(), design).fit(method="newton", tol=1e-14, maxiter=200, disp=False)
    names = [INTERCEPT, *request.covariates]
    rows = zip(names, found.params, found.bse, found.conf_int(), found.pvalues, strict=True)
    return {
        "coefficients": [_row(name, *map(float, (estimate, se, *ci, p))) for name, estimate, se, ci, p in rows],
        "log_likelihood": float(found.llf),
    }


def largest_deviation(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> float:
    """The largest absolute difference between two lists of coefficients; they name the same ones in the same order."""
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a["name"] == b["name"] for a, b in pairs)
    return max(abs(float(a["estimate"]) - float(b["estimate"])) for a, b in pairs)


def _read(path: Path, columns: list[str]) -> Any:
    import pandas as pd

    table = pd.read_csv(path, skipinitialspace=True, float_precision="round_trip", encoding="utf-8-sig")
    table.columns = table.columns.str.strip()
    return table[columns]


def _row(name: str, estimate: float, se: float, low: float, high: float, p: float) -> dict[str, Any]:
    import numpy as np

    odds_ratio = float(np.exp(estimate))
    return {
        "name": name, "estimate": estimate, "se": se, "ci_low": low, "ci_high": high, "p": p, "odds_ratio": odds_ratio,
    }  # fmt: skip


def _asked(asked: dict[str, Any]) -> dict[str, Any]:
    return fit(Request(tuple(asked["files"]), asked["outcome"], tuple(asked["covariates"]), asked["standardise"]))


if __name__ == "__main__":
    answer(_asked)
