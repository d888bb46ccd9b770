"""The reference of the demo: statsmodels on all files, in a process of its own that never outlives its question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flame.lab.datasets import COVARIATES, OUTCOME, breast_cancer, uneven_shares
from flame.lab.pooled import Request, largest_deviation, pooled_fit, pooled_result
from flame.model.errors import RunFailed

ESTIMATES = (-0.93736012, 5.22349002, 1.61619551, 1.66780706, 0.56047028)


def divided(folder: Path, hospitals: int) -> tuple[str, ...]:
    cohort = breast_cancer().chosen((OUTCOME, *COVARIATES))
    paths = []
    for number, share in enumerate(uneven_shares(len(cohort.rows), hospitals)):
        paths.append(folder / f"{number}.csv")
        cohort.part(share).write(paths[-1])
    return tuple(map(str, paths))


def test_it_gives_the_published_reference(tmp_path: Path) -> None:
    with pooled_fit(Request(divided(tmp_path, 3), OUTCOME, COVARIATES, True)) as fit:
        found = pooled_result(fit)
    np.testing.assert_allclose([row["estimate"] for row in found["coefficients"]], ESTIMATES, atol=5e-9)
    assert found["log_likelihood"] == pytest.approx(-91.92297515, abs=5e-9)


def test_incomplete_records_are_left_out(tmp_path: Path) -> None:
    files = divided(tmp_path, 1)
    more = Path(files[0]).with_name("more.csv")
    more.write_text(f"{','.join((OUTCOME, *COVARIATES))}\n1,,2,3,4\n,1,2,3,4\n0,NA,2,3,4\n")
    with pooled_fit(Request((*files, str(more)), OUTCOME, COVARIATES, True)) as fit:
        found = pooled_result(fit)
    np.testing.assert_allclose([row["estimate"] for row in found["coefficients"]], ESTIMATES, atol=5e-9)


def test_what_the_library_says_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.csv"
    path.write_text("y,x\n0,young\n1,old\n")
    with pooled_fit(Request((str(path),), "y", ("x",), False)) as fit, pytest.raises(RunFailed, match="young"):
        pooled_result(fit)


def test_leaving_ends_the_process(tmp_path: Path) -> None:
    with pooled_fit(Request(divided(tmp_path, 1), OUTCOME, COVARIATES, True)) as fit:
        process = fit._process
    assert process.returncode is not None


def test_the_largest_deviation_is_over_estimates() -> None:
    ours = [{"name": "a", "estimate": 1.0}, {"name": "b", "estimate": 2.0}]
    theirs = [{"name": "a", "estimate": 1.25}, {"name": "b", "estimate": 1.5}]
    assert largest_deviation(ours, theirs) == 0.5
