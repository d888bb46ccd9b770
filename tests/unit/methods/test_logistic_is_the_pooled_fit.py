"""Whatever the split: the federated fit is the pooled fit, to ten digits. Oracle: statsmodels."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer

from flame.methods.logistic import Logistic, LogisticResult
from flame.methods.run import run_local
from flame.methods.standardise import Standardised
from flame.model.errors import Invalid, NotFound, Separated, Singular
from flame.sdk.table import Table

COLUMNS = ("mean radius", "mean texture", "mean smoothness", "mean fractal dimension")


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    names = [str(name) for name in data.feature_names]
    return data.data[:, [names.index(column) for column in COLUMNS]], data.target


def tables(x: np.ndarray, y: np.ndarray, parts: Sequence[np.ndarray], columns: Sequence[str] = COLUMNS) -> list[Table]:
    return [Table({**{c: x[part, j] for j, c in enumerate(columns)}, "y": y[part]}) for part in parts]


def split(n: int, sites: int, seed: int = 0) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(seed).permutation(n), sites)


def pooled(x: np.ndarray, y: np.ndarray) -> Any:
    return sm.Logit(y, sm.add_constant(x)).fit(method="newton", tol=1e-14, maxiter=200, disp=0)


def assert_equal(result: LogisticResult, oracle: Any, digits: float = 1e-10) -> None:
    assert result.converged
    assert [c.estimate for c in result.coefficients] == pytest.approx(oracle.params.tolist(), rel=digits, abs=1e-12)
    assert [c.se for c in result.coefficients] == pytest.approx(oracle.bse.tolist(), rel=digits)
    assert [c.p for c in result.coefficients] == pytest.approx(oracle.pvalues.tolist(), rel=1e-8, abs=1e-300)
    assert [(c.ci_low, c.ci_high) for c in result.coefficients] == [
        pytest.approx(tuple(row), rel=1e-9) for row in oracle.conf_int().tolist()
    ]
    assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-8)
    assert result.null_log_likelihood == pytest.approx(oracle.llnull, abs=1e-6)
    assert result.n == oracle.nobs


def test_the_published_reference_values() -> None:
    x, y = breast_cancer()
    result = run_local(Standardised(Logistic("y", COLUMNS)), tables(x, y, split(len(y), 3)))
    estimates = [round(c.estimate, 8) for c in result.coefficients]
    assert estimates == [0.93736012, -5.22349002, -1.61619551, -1.66780706, -0.56047028]
    assert [round(c.se, 8) for c in result.coefficients] == [0.20466408, 0.58772706, 0.24965491, 0.32015249, 0.29935748]
    assert round(result.log_likelihood, 8) == -91.92297515
    assert (result.n, result.events, result.dropped, result.contributors) == (569, 357, 0, 3)
    assert [s.column for s in result.scale] == list(COLUMNS)
    assert [s.mean for s in result.scale] == pytest.approx(x.mean(axis=0).tolist(), rel=1e-14)
    assert [s.sd for s in result.scale] == pytest.approx(x.std(axis=0).tolist(), rel=1e-14)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5, 6, 18])
@pytest.mark.parametrize("standardise", [True, False])
def test_any_number_of_hospitals_gives_the_pooled_fit(sites: int, standardise: bool) -> None:
    x, y = breast_cancer()
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    oracle = pooled(scaled, y)
    logistic = Logistic("y", COLUMNS)
    if standardise:
        result = run_local(Standardised(logistic), tables(x, y, split(len(y), sites)))
        assert_equal(result, oracle)
        assert result.rounds == result.iterations + 3
    else:  # the same model in the columns' own units: slopes and their errors scale with the deviation
        result = run_local(logistic, tables(x, y, split(len(y), sites)))
        slopes = result.coefficients[1:]
        assert [c.estimate for c in slopes] == pytest.approx((oracle.params[1:] / x.std(axis=0)).tolist(), rel=1e-10)
        assert [c.se for c in slopes] == pytest.approx((oracle.bse[1:] / x.std(axis=0)).tolist(), rel=1e-10)
        assert result.log_likelihood == pytest.approx(oracle.llf, abs=1e-8)
        assert result.rounds == result.iterations + 1


def test_the_split_changes_at_most_the_last_digits() -> None:
    x, y = breast_cancer()
    fits = [run_local(Logistic("y", COLUMNS), tables(x, y, split(len(y), 3, seed))) for seed in range(5)]
    for fit in fits[1:]:
        for a, b in zip(fit.coefficients, fits[0].coefficients, strict=True):
            assert a.estimate == pytest.approx(b.estimate, rel=1e-10)


def test_one_hospital_has_patients_of_one_outcome_only() -> None:
    x, y = breast_cancer()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    ill, well = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    parts = [ill[:200], np.concatenate([ill[200:], well[:100]]), well[100:]]
    assert_equal(run_local(Logistic("y", COLUMNS), tables(x, y, parts)), pooled(x, y))


def test_one_hospital_alone_would_be_separated() -> None:
    x, y = breast_cancer()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    apart = np.concatenate([np.argsort(x[:, 0])[:40], np.argsort(x[:, 0])[-40:]])
    rest = np.setdiff1d(np.arange(len(y)), apart)
    sites = tables(x, y, [apart, rest])
    assert_equal(run_local(Logistic("y", COLUMNS), sites), pooled(x, y))
    with pytest.raises((Separated, Singular, Invalid)):
        run_local(Logistic("y", COLUMNS), sites[:1])


def test_hospitals_without_rows_and_with_one_row_take_part() -> None:
    x, y = breast_cancer()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    order = np.random.default_rng(0).permutation(len(y))
    parts = [order[:0], order[:1], order[1:]]
    for method in (Logistic("y", COLUMNS), Standardised(Logistic("y", COLUMNS))):
        result = run_local(method, tables(x, y, parts))
        assert result.contributors == 3
        assert_equal(result, pooled(x, y))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(40, 300), st.integers(1, 4))
def test_random_data_and_splits_give_the_pooled_fit(seed: int, sites: int, n: int, p: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * 10.0 ** rng.integers(-3, 4, p) + rng.normal(size=p)
    linear = ((x - x.mean(axis=0)) / x.std(axis=0)) @ rng.normal(scale=0.5, size=p)
    y = (rng.random(n) < 1 / (1 + np.exp(-linear))).astype(float)
    if not 5 < y.sum() < n - 5:
        return
    names = [f"x{j}" for j in range(p)]
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    try:
        result = run_local(Standardised(Logistic("y", names)), tables(x, y, split(n, sites, seed), names))
    except Separated:
        assert pooled_is_separated(scaled, y)
        return
    assert_equal(result, pooled(scaled, y), digits=1e-9)


def pooled_is_separated(x: np.ndarray, y: np.ndarray) -> bool:
    """By linear programming, as Konis 2007: is there a direction with no patient on the wrong side?"""
    from scipy.optimize import linprog

    signed = sm.add_constant(x) * (2 * y - 1)[:, np.newaxis]
    found = linprog(-signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=[(-1, 1)] * signed.shape[1])
    return bool(-found.fun > 1e-9)


def test_the_four_hospitals_of_the_heart_disease_data() -> None:
    """num > 0 on age, sex and resting blood pressure, complete cases only."""
    root = os.environ.get("FLAME_TEST_DATA")
    if not root:
        pytest.skip("FLAME_TEST_DATA does not name the directory with heart-disease/*.csv")
    covariates = ["age", "sex", "trestbps"]
    sites, rows = [], []
    for name in ("cleveland", "hungarian", "switzerland", "va_long_beach"):
        with (Path(root) / "heart-disease" / f"{name}.csv").open() as file:
            records = list(csv.DictReader(file))
        columns = {c: np.array([float(r[c]) if r[c] else np.nan for r in records]) for c in covariates}
        ill = np.array([float(int(r["num"]) > 0) for r in records])
        sites.append(Table({**columns, "ill": ill}))
        rows.append(np.column_stack([*columns.values(), ill]))
    together = np.concatenate(rows)
    complete = together[~np.isnan(together).any(axis=1)]
    result = run_local(Logistic("ill", covariates), sites)
    oracle = pooled(complete[:, :3], complete[:, 3])
    assert_equal(result, oracle, digits=1e-9)
    assert result.dropped == len(together) - len(complete) > 0

    scaled = (complete[:, :3] - complete[:, :3].mean(axis=0)) / complete[:, :3].std(axis=0)
    assert_equal(run_local(Standardised(Logistic("ill", covariates)), sites), pooled(scaled, complete[:, 3]))


def test_fixed_effect_meta_analysis_is_another_answer() -> None:
    """Why the method exists: averaging the hospitals' own fits is off by a tenth."""
    x, y = breast_cancer()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fits = [pooled(x[part], y[part]) for part in split(len(y), 3)]
    weights = np.array([1 / fit.bse**2 for fit in fits])
    average = (weights * [fit.params for fit in fits]).sum(axis=0) / weights.sum(axis=0)
    exact = run_local(Logistic("y", COLUMNS), tables(x, y, split(len(y), 3)))
    gaps = np.abs(average - [c.estimate for c in exact.coefficients])
    assert gaps.max() > 0.1


def two_groups(n: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {"a": rng.normal(size=n), "b": (rng.random(n) < 0.3) * 1.0, "y": (rng.random(n) < 0.4) * 1}


@pytest.mark.parametrize("constant", [0.0, 0.1, 3.0, 1e9])
@pytest.mark.parametrize("standardise", [True, False])
def test_a_constant_column_is_named(constant: float, standardise: bool) -> None:
    data = two_groups() | {"b": np.full(200, constant)}
    halves = [Table({k: v[:90] for k, v in data.items()}), Table({k: v[90:] for k, v in data.items()})]
    logistic = Logistic("y", ["a", "b"])
    with pytest.raises(Singular, match="'b'") as error:
        run_local(Standardised(logistic) if standardise else logistic, halves)
    assert error.value.fields["column"] == "b"


def test_a_column_constant_at_each_hospital_but_not_over_all_is_fitted() -> None:
    data = two_groups() | {"b": np.repeat([0.1, 0.7], 100)}
    halves = [Table({k: v[:100] for k, v in data.items()}), Table({k: v[100:] for k, v in data.items()})]
    x = np.column_stack([data["a"], data["b"]])
    assert_equal(run_local(Logistic("y", ["a", "b"]), halves), pooled(x, data["y"]))


@pytest.mark.parametrize("standardise", [True, False])
def test_a_column_that_follows_from_others_is_named(standardise: bool) -> None:
    data = two_groups()
    data["c"] = 2 * data["a"] - 3 * data["b"] + 1
    logistic = Logistic("y", ["a", "b", "c"])
    with pytest.raises(Singular, match="'c'"):
        run_local(Standardised(logistic) if standardise else logistic, [Table(data)])


@pytest.mark.parametrize("standardise", [True, False])
def test_perfect_separation_is_told_and_names_the_column(standardise: bool) -> None:
    data = two_groups() | {"y": (two_groups()["a"] > 0.2) * 1}
    logistic = Logistic("y", ["b", "a"])
    with pytest.raises(Separated, match="'a'"):
        run_local(Standardised(logistic) if standardise else logistic, [Table(data)])


def test_quasi_separation_is_told_too() -> None:
    """Every patient of group b is ill, the others are mixed: the coefficient of b has no finite value."""
    data = two_groups()
    data["y"] = np.where(data["b"] == 1, 1, data["y"])
    with pytest.raises(Separated, match="'b'"):
        run_local(Logistic("y", ["a", "b"]), [Table(data)])


@pytest.mark.parametrize("events", [3, 30])
def test_a_rare_outcome_is_no_separation(events: int) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(100_000, 1)), np.zeros(100_000)
    y[:events] = 1
    assert_equal(run_local(Logistic("y", ["x"]), tables(x, y, split(len(y), 3), ["x"])), pooled(x, y), digits=1e-8)


def test_a_large_offset_costs_no_digits_when_standardised() -> None:
    rng = np.random.default_rng(4)
    stamp = 1.7e9 + rng.integers(0, 10_000_000, 500)
    y = (rng.random(500) < 0.5) * 1
    result = run_local(
        Standardised(Logistic("y", ["stamp"])), tables(stamp[:, None] * 1.0, y, split(500, 3), ["stamp"])
    )
    # Exact over integers: Python's own arithmetic is the oracle.
    whole = [int(value) for value in stamp]
    mean = sum(whole) / len(whole)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in whole) / len(whole))
    assert result.scale[0].mean == pytest.approx(mean, rel=1e-15)
    assert result.scale[0].sd == pytest.approx(sd, rel=1e-13)


def test_quantised_sums_converge_to_their_grid() -> None:
    """With few fractional bits the step never reaches zero: the fit must end all the same, as close as the grid."""

    class Quantised(Logistic):
        def local(self, data: Any, question: Any) -> Any:
            summary = super().local(data, question)
            return {k: np.round(np.asarray(v) * 2**22) / 2**22 for k, v in summary.items()}

    x, y = breast_cancer()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    exact = run_local(Logistic("y", COLUMNS), tables(x, y, split(len(y), 3)))
    rough = run_local(Quantised("y", COLUMNS), tables(x, y, split(len(y), 3)))
    assert rough.converged and rough.rounds <= exact.rounds + 3
    for a, b in zip(rough.coefficients, exact.coefficients, strict=True):
        assert a.estimate == pytest.approx(b.estimate, abs=1e-5)


@pytest.mark.parametrize("seed", [55, 234, 912])
def test_a_step_that_goes_too_far_is_halved(seed: int) -> None:
    """Skewed covariates, few patients: the full step overshoots, the likelihood falls, halving brings it back."""
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(15, 60)), int(rng.integers(1, 4))
    x = np.exp(rng.normal(size=(n, p)) * 2)
    y = (rng.random(n) < 1 / (1 + np.exp(-(x @ rng.normal(size=p) - 1)))) * 1
    names = [f"x{j}" for j in range(p)]
    result = run_local(Logistic("y", names), tables(x, y, split(n, 2), names))
    assert result.rounds > result.iterations + 1
    near = [round(c.estimate, 3) for c in result.coefficients]
    oracle = sm.Logit(y, sm.add_constant(x)).fit(start_params=near, method="newton", tol=1e-12, disp=0)
    assert_equal(result, oracle, 1e-8)


@pytest.mark.parametrize("outcome", [0, 1])
def test_one_outcome_everywhere_is_no_fit(outcome: int) -> None:
    data = two_groups() | {"y": np.full(200, outcome)}
    with pytest.raises(Invalid, match="always" if outcome else "never"):
        run_local(Logistic("y", ["a"]), [Table(data)])


def test_no_records_anywhere_is_said() -> None:
    empty = Table({"a": np.zeros(0), "y": np.zeros(0)})
    for method in (Logistic("y", ["a"]), Standardised(Logistic("y", ["a"]))):
        with pytest.raises(Invalid, match="No hospital has a complete record"):
            run_local(method, [empty, empty])


def test_missing_values_are_left_out_and_counted_or_refused() -> None:
    data = two_groups()
    data["a"][[3, 9]] = np.nan
    data["y"] = data["y"].astype(float)
    data["y"][9:11] = np.nan
    keep = ~np.isnan(data["a"]) & ~np.isnan(data["y"])
    result = run_local(Logistic("y", ["a", "b"]), [Table(data)])
    assert (result.n, result.dropped) == (197, 3)
    assert_equal(result, pooled(np.column_stack([data["a"], data["b"]])[keep], data["y"][keep]))
    with pytest.raises(Invalid, match="'a' has missing values"):
        run_local(Logistic("y", ["b", "a"], missing="error"), [Table(data)])


def test_an_outcome_of_text_has_declared_levels() -> None:
    data: dict[str, Any] = two_groups()
    text = ["ill" if y else "well" for y in data["y"]]
    coded = run_local(Logistic("y", ["a"]), [Table(data)])
    named = run_local(Logistic("y", ["a"], levels=("well", "ill")), [Table(data | {"y": text})])
    turned = run_local(Logistic("y", ["a"], levels=("ill", "well")), [Table(data | {"y": text})])
    assert named.coefficients == coded.coefficients
    assert turned.coefficients[1].estimate == pytest.approx(-coded.coefficients[1].estimate)
    assert run_local(Logistic("y", ["a"]), [Table(data | {"y": data["y"] == 1})]) == coded
    gap = run_local(Logistic("y", ["a"], levels=("well", "ill")), [Table(data | {"y": [None, "", *text[2:]]})])
    assert (gap.n, gap.dropped) == (198, 2)


@pytest.mark.parametrize(
    ("column", "values", "kind", "says"),
    [
        ("y", np.arange(200.0), Invalid, "'y' is not binary"),
        ("y", ["ill"] * 200, Invalid, "'y' is not binary"),
        ("a", ["1"] * 200, Invalid, "'a' holds text"),
        ("a", np.full(200, np.inf), Invalid, "'a' has infinite values"),
        ("a", None, NotFound, "no column 'a'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_column_before_any_round(
    column: str, values: Any, kind: type[Exception], says: str
) -> None:
    data: dict[str, Any] = two_groups() | {column: values}
    table = Table({name: column for name, column in data.items() if column is not None})
    with pytest.raises(kind, match=says):
        Logistic("y", ["a", "b"]).prepare(table)


@pytest.mark.parametrize(
    "wrong", [{"covariates": ["y"]}, {"covariates": ["a", "a"]}, {"levels": ("a", "a")}, {"missing": "guess"}]
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        Logistic(**({"outcome": "y", "covariates": ["a"]} | wrong))


def test_an_intercept_alone_is_the_log_odds() -> None:
    data = two_groups()
    result = run_local(Logistic("y", []), [Table(data)])
    rate = data["y"].mean()
    assert result.coefficients[0].estimate == pytest.approx(math.log(rate / (1 - rate)), rel=1e-12)
    assert result.log_likelihood == pytest.approx(result.null_log_likelihood, rel=1e-12)


def test_what_travels_does_not_grow_with_the_data() -> None:
    logistic = Logistic("y", ["a", "b"])
    question = logistic.question(logistic.start())
    assert question is not None
    sizes = []
    for n in (0, 10, 200):
        table = Table({name: column[:n] for name, column in two_groups().items()})
        summary = logistic.local(logistic.prepare(table), question)
        sizes.append({name: np.shape(value) for name, value in summary.items()})
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0]["information"] == (6,)
