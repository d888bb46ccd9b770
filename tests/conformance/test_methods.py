"""Every method equals its pooled reference, whatever the split: a table of (method, data, sites, protection, oracle).

What is measured here becomes ``flame/methods/catalogue/badges.json``: delete it and run this file again. The data of
real hospitals are read from ``$FLAME_TEST_DATA``; cases on them are skipped without it.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import lifelines
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.cluster
import sklearn.linear_model
import sklearn.metrics
import statsmodels.api as sm
from lifelines.datasets import load_lung, load_rossi, load_waltons
from lifelines.statistics import multivariate_logrank_test
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.outliers_influence import variance_inflation_factor

from flame.methods import named
from flame.methods.catalogue import CATALOGUE
from flame.methods.catalogue.badges import FILE, Badge, read_badges, written_badges
from flame.methods.run import run_local
from flame.sdk.table import Table
from flame.wire.values import named_arrays

Columns = Mapping[str, Any]
EXACT, LINEAR, NEWTON, LIKELIHOOD = 0.0, 1e-10, 1e-10, 1e-8
SPLITS = (1, 2, 3, 18)
CLINICAL = os.environ.get("FLAME_TEST_DATA")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


# --- data -----------------------------------------------------------------------------------------------------------


def split(data: Columns, sites: int) -> list[Table]:
    """As ``design/methods.md`` says: a permutation with seed 0, cut into equal parts."""
    n = len(next(iter(data.values())))
    parts = np.array_split(np.random.default_rng(0).permutation(n), sites)
    return [Table({c: taken(values, part) for c, values in data.items()}) for part in parts]


def by(data: Columns, column: str) -> list[Table]:
    """Natural sites: one for each value of a column."""
    keys = np.asarray(data[column])
    return [Table({c: taken(v, np.flatnonzero(keys == key)) for c, v in data.items()}) for key in np.unique(keys)]


def taken(values: Any, rows: Any) -> Any:
    return [values[i] for i in rows] if isinstance(values, list) else np.asarray(values)[rows]


def together(tables: Sequence[Table]) -> dict[str, Any]:
    return {
        c: [x for t in tables for x in t[c]]
        if any(isinstance(t[c], list) for t in tables)
        else np.concatenate([np.asarray(t[c], dtype=float) for t in tables])
        for c in tables[0].columns
    }


@cache
def breast_cancer() -> dict[str, Any]:
    data = load_breast_cancer()
    return {str(name): data.data[:, i] for i, name in enumerate(data.feature_names)} | {"y": data.target.astype(float)}


FOUR = ("mean radius", "mean texture", "mean smoothness", "mean fractal dimension")


@cache
def standardised_four() -> dict[str, Any]:
    data = breast_cancer()
    return {c: (data[c] - data[c].mean()) / data[c].std() for c in FOUR} | {"y": data["y"]}


@cache
def diabetes() -> dict[str, Any]:
    data = load_diabetes(scaled=False)
    return {name: data.data[:, i] for i, name in enumerate(data.feature_names)} | {"y": data.target}


@cache
def iris() -> dict[str, Any]:
    data = load_iris()
    names = ("sepal length", "sepal width", "petal length", "petal width")
    return {name: data.data[:, i] for i, name in enumerate(names)} | {
        "species": [str(data.target_names[t]) for t in data.target]
    }


@cache
def randhie() -> dict[str, Any]:
    frame = sm.datasets.randhie.load_pandas()
    return {c: frame.exog[c].to_numpy(float) for c in frame.exog} | {"visits": frame.endog.to_numpy(float)}


@cache
def frame_of(load: Callable[[], pd.DataFrame]) -> dict[str, Any]:
    frame = load()
    return {c: frame[c].to_numpy(float) if frame[c].dtype.kind in "biuf" else list(frame[c]) for c in frame}


@cache
def lung() -> dict[str, Any]:
    frame = load_lung().dropna(subset=["inst"])
    data = {c: frame[c].to_numpy(float) for c in ("inst", "time", "status", "age", "sex", "ph.ecog")}
    return data | {"status": data["status"] - (data["status"].max() == 2)}


@cache
def scored() -> dict[str, Any]:
    """Predicted risks on a grid of thousandths, so that no bin holds two different ones."""
    rng = np.random.default_rng(5)
    risk = np.floor(rng.beta(1.2, 2.0, 900) * 1000) / 1000 + 0.0005
    return {"y": (rng.random(900) < risk) * 1.0, "risk": risk}


@cache
def hospitals() -> tuple[Table, ...]:
    """Heart disease at four hospitals; ``ill`` is 1 for any disease."""
    assert CLINICAL
    found = []
    for name in ("cleveland", "hungarian", "switzerland", "va_long_beach"):
        with (Path(CLINICAL) / "heart-disease" / f"{name}.csv").open() as file:
            records = list(csv.DictReader(file))
        columns: dict[str, Any] = {c: np.array([float(r[c]) if r[c] else np.nan for r in records]) for c in records[0]}
        found.append(Table(columns | {"ill": (columns["num"] > 0) * 1.0}))
    return tuple(found)


@cache
def cohort(name: str) -> dict[str, Any]:
    assert CLINICAL
    return frame_of_csv(str(Path(CLINICAL) / "breast-cancer" / f"{name}.csv"))


@cache
def frame_of_csv(path: str) -> dict[str, Any]:
    frame = pd.read_csv(path)
    return {c: frame[c].to_numpy(float) if frame[c].dtype.kind in "biuf" else list(frame[c]) for c in frame}


# --- protections ----------------------------------------------------------------------------------------------------


def fixed_point(bits: int) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
    """A sum as secure sums take it: whole numbers exactly, reals as whole multiples of 2 ** -bits."""

    def add(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        total: dict[str, Any] = {}
        for name, array in named_arrays(dict(summaries[0])):
            parts = [np.asarray(s[name]) for s in summaries]
            if array.dtype.kind == "f":
                whole = sum(np.rint(np.ldexp(p.astype(float), bits)).astype(object) for p in parts)
                summed = np.asarray(np.array(whole, dtype=object) / 2**bits, dtype=float).reshape(array.shape)
            else:
                summed = np.sum(parts, axis=0)
            total[name] = summed.item() if array.shape == () else summed
        return total

    return add


PROTECTIONS: dict[str, Any] = {"clear": None, "fixed point": fixed_point(64)}


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    method: str
    data: str
    quantity: str
    oracle: str
    tolerance: float
    parameters: Mapping[str, Any]
    tables: Callable[[int], Sequence[Table]]
    deviation: Callable[[Any], float]
    """How far a result is from the oracle's."""
    sites: tuple[int, ...] = SPLITS
    clinical: bool = False

    @property
    def title(self) -> str:
        return f"{self.method}, {self.data}: {self.quantity}"


def off(got: Any, want: Any) -> float:
    """The largest relative deviation; of what is zero, the absolute one."""
    a, b = np.asarray(got, dtype=float).ravel(), np.asarray(want, dtype=float).ravel()
    assert a.shape == b.shape and np.isfinite(a).all(), (a, b)
    return float(np.max(np.abs(a - b) / np.where(b == 0, 1.0, np.abs(b)), initial=0.0))


def coefficients(result: Any) -> list[float]:
    return [c.estimate for c in result.coefficients]


def errors(result: Any) -> list[float]:
    return [c.se for c in result.coefficients]


def fit_is(model: Callable[[], Any]) -> Callable[[Any], float]:
    """Coefficients and their errors, against a fit of statsmodels."""

    def deviation(result: Any) -> float:
        fit = cached(model)
        assert result.converged
        return max(off(coefficients(result), fit.params), off(errors(result), fit.bse))

    return deviation


def likelihood_is(model: Callable[[], Any]) -> Callable[[Any], float]:
    return lambda result: off(result.log_likelihood, cached(model).llf)


@cache
def cached(model: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model()


def glm(y: Any, x: Any, family: Any, **options: Any) -> Any:
    return sm.GLM(y, x, family=family, **options).fit(tol=1e-13, maxiter=500, tol_criterion="params")


def pooled_linear() -> Any:
    data = diabetes()
    return sm.OLS(data["y"], sm.add_constant(np.column_stack([data[c] for c in data if c != "y"]))).fit()


def pooled_logit() -> Any:
    data = standardised_four()
    x = sm.add_constant(np.column_stack([data[c] for c in FOUR]))
    return sm.Logit(data["y"], x).fit(method="newton", tol=1e-14, maxiter=200, disp=0)


def pooled_hospitals() -> Any:
    data = together(hospitals())
    x = np.column_stack([data[c] for c in ("age", "sex", "trestbps")])
    kind = np.column_stack([data["cp"] == level for level in (2, 3, 4)]) * 1.0
    design = sm.add_constant(np.column_stack([x, kind]))
    kept = ~np.isnan(design).any(axis=1)
    return sm.Logit(data["ill"][kept], design[kept]).fit(method="newton", tol=1e-14, maxiter=200, disp=0)


def pooled_poisson() -> Any:
    data = randhie()
    x = sm.add_constant(np.column_stack([data[c] for c in data if c != "visits"]))
    return sm.Poisson(data["visits"], x).fit(method="newton", tol=1e-14, maxiter=200, disp=0)


def pooled_gamma() -> Any:
    data = diabetes()
    x = sm.add_constant(np.column_stack([data[c] for c in ("age", "bmi", "bp")]))
    return glm(data["y"], x, sm.families.Gamma(sm.families.links.Log()))


def pooled_negative_binomial() -> Any:
    data = randhie()
    x = sm.add_constant(np.column_stack([data[c] for c in ("lncoins", "hlthg", "disea")]))
    near = sm.NegativeBinomial(data["visits"], x).fit(method="bfgs", maxiter=200, disp=0)
    return sm.NegativeBinomial(data["visits"], x).fit(
        start_params=near.params, method="newton", tol=1e-15, maxiter=50, disp=0
    )


def negative_binomial_off(result: Any) -> float:
    fit = cached(pooled_negative_binomial)
    assert result.converged
    return off([*coefficients(result), result.alpha], fit.params)


def weighted() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    data = standardised_four()
    return data | {"w": rng.integers(1, 4, 569) * 1.0, "o": rng.normal(size=569)}


def pooled_weighted() -> Any:
    data = weighted()
    x = sm.add_constant(np.column_stack([data[c] for c in FOUR]))
    return glm(data["y"], x, sm.families.Binomial(), freq_weights=data["w"], offset=data["o"])


def elastic_net_off(result: Any) -> float:
    data = diabetes()
    x = np.column_stack([data[c] for c in data if c != "y"])
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = sklearn.linear_model.ElasticNet(alpha=1.5, l1_ratio=0.7, tol=1e-15, max_iter=1_000_000).fit(x, data["y"])
    return off(coefficients(result), [model.intercept_, *model.coef_])


def lasso_off(result: Any) -> float:
    data = standardised_four()
    x = np.column_stack([data[c] for c in FOUR])
    model = sklearn.linear_model.LogisticRegression(
        C=1 / (569 * 0.02), l1_ratio=1.0, solver="saga", tol=1e-14, max_iter=1_000_000, random_state=0
    ).fit(x, data["y"])
    return off(coefficients(result), [*model.intercept_, *model.coef_[0]])


def vif_off(result: Any) -> float:
    data = diabetes()
    x = sm.add_constant(np.column_stack([data[c] for c in data if c != "y"]))
    return off([c.vif for c in result.coefficients[1:]], [variance_inflation_factor(x, j) for j in range(1, 11)])


def interaction() -> Any:
    import statsmodels.formula.api as smf

    frame = pd.DataFrame(iris()).rename(columns=lambda c: c.replace(" ", "_"))
    return smf.ols("sepal_length ~ petal_width * C(species) + np.log(sepal_width)", frame).fit()


def formula_off(result: Any) -> float:
    fit = cached(interaction)
    order = {
        n.replace("C(species)[T.", "species[").replace("np.", "").replace("T.", ""): v for n, v in fit.params.items()
    }
    ours = {
        c.name.replace("(Intercept)", "Intercept").replace("`", "").replace(" width", "_width"): c.estimate
        for c in result.coefficients
    }
    assert ours.keys() == order.keys()
    return off([ours[n] for n in order], list(order.values()))


# survival


def cox_oracle(data: Columns, covariates: Any, time: str, event: str, ties: str, strata: Any = None) -> Any:
    """statsmodels, and Newton steps of its own score and Hessian to the very top: its optimiser stops early."""
    model = sm.PHReg(data[time], covariates, status=data[event], ties=ties, strata=strata)
    at = model.fit(disp=0).params
    for _ in range(5):
        at = at - np.linalg.solve(model.hessian(at), model.score(at))
    error = np.sqrt(np.diag(np.linalg.inv(-model.hessian(at))))
    return at, error, model.loglike(at)


ROSSI = ("fin", "age", "race", "wexp", "mar", "paro", "prio")


@cache
def rossi_oracle(ties: str) -> Any:
    data = frame_of(load_rossi)
    return cox_oracle(data, np.column_stack([data[c] for c in ROSSI]), "week", "arrest", ties)


@cache
def lung_oracle(stratified: bool) -> Any:
    data = lung()
    x = np.column_stack([data[c] for c in ("age", "sex", "ph.ecog")])
    kept = ~np.isnan(x).any(axis=1)
    data = {c: v[kept] for c, v in data.items()}
    return cox_oracle(data, x[kept], "time", "status", "efron", data["inst"] if stratified else None)


@cache
def gbsg_oracle() -> Any:
    data = cohort("gbsg")
    x = np.column_stack([data["age"], data["grade"] == 2, data["grade"] == 3, np.log1p(data["nodes"]), data["hormon"]])
    return cox_oracle(data, x.astype(float), "rfstime", "status", "efron")


@cache
def rotterdam_oracle() -> Any:
    data = cohort("rotterdam")
    size = np.array(data["size"])
    x = np.column_stack([data["age"], size == "20-50", size == ">50", data["nodes"], data["hormon"]]).astype(float)
    return cox_oracle(data, x, "dtime", "death", "breslow", data["grade"])


def cox_is(oracle: Callable[[], Any]) -> Callable[[Any], float]:
    def deviation(result: Any) -> float:
        estimates, se, likelihood = oracle()
        assert result.converged
        assert off(result.log_likelihood, likelihood) <= LIKELIHOOD
        return max(off(coefficients(result), estimates), off(errors(result), se))

    return deviation


def curve_off(data: Columns, time: str, event: str) -> Callable[[Any], float]:
    def deviation(result: Any) -> float:
        fitter = lifelines.KaplanMeierFitter().fit(data[time], data[event])
        low_high = fitter.confidence_interval_
        worst = 0.0
        for p in result.curve:
            row = low_high.loc[p.time].to_numpy()
            worst = max(worst, abs(float(fitter.predict(p.time)) - p.survival), *np.abs(row - [p.ci_low, p.ci_high]))
        assert result.groups[0].median == fitter.median_survival_time_
        return worst

    return deviation


def log_rank_off(data: Columns, time: str, event: str, group: str) -> Callable[[Any], float]:
    def deviation(result: Any) -> float:
        oracle = multivariate_logrank_test(data[time], data[group], data[event])
        return max(off(result.log_rank.statistic, oracle.test_statistic), off(result.log_rank.p, oracle.p_value))

    return deviation


def restricted_mean_off(result: Any) -> float:
    """By integration of lifelines' curve, and Greenwood's variance of that integral, term by term."""
    data = frame_of(load_waltons)
    worst = 0.0
    for g in result.groups:
        mine = np.array(data["group"]) == g.group
        time, event = data["T"][mine], data["E"][mine]
        fitter = lifelines.KaplanMeierFitter().fit(time, event)
        mean = lifelines.utils.restricted_mean_survival_time(fitter, t=60)
        steps = [t for t in np.unique(time[event == 1]) if t < 60]
        variance = 0.0
        for t in steps:
            grid = [t, *[u for u in steps if u > t], 60.0]
            area = sum(float(fitter.predict(a)) * (b - a) for a, b in itertools.pairwise(grid))
            d, n = int(((time == t) & (event == 1)).sum()), int((time >= t).sum())
            variance += area**2 * d / (n * (n - d)) if n > d else 0.0
        worst = max(worst, off(g.restricted_mean, mean), off(g.restricted_mean_se, math.sqrt(variance)))
    return worst


def baseline_off(result: Any) -> float:
    """Breslow's estimator at the means of the covariates, patient by patient."""
    data = frame_of(load_rossi)
    x = np.column_stack([data[c] for c in ROSSI])
    risk = np.exp((x - x.mean(axis=0)) @ np.array(coefficients(result)))
    total, want = 0.0, []
    for point in result.baseline:
        total += float(((data["week"] == point.time) & (data["arrest"] == 1)).sum()) / float(
            risk[data["week"] >= point.time].sum()
        )
        want.append(total)
    return off([p.cumulative_hazard for p in result.baseline], want)


def proportionality_off(result: Any) -> float:
    """From statsmodels' Schoenfeld residuals (Breslow), against the mean ranks of the event times."""
    data = frame_of(load_rossi)
    x = np.column_stack([data[c] for c in ROSSI])
    fit = sm.PHReg(data["week"], x, status=data["arrest"], ties="breslow").fit(disp=0)
    residual = np.asarray(fit.schoenfeld_residuals)
    kept = ~np.isnan(residual).any(axis=1)
    ranks = scipy.stats.rankdata(data["week"][kept])
    ranks = ranks - ranks.mean()
    covariance = fit.cov_params()
    scaled = kept.sum() * residual[kept] @ covariance
    want = (ranks @ scaled) ** 2 / (kept.sum() * np.diag(covariance) * (ranks @ ranks))
    return off([p.statistic for p in result.proportionality], want)


# descriptive and tests


def moments_off(result: Any) -> float:
    worst = 0.0
    for row in result.numbers:
        values = iris()[row.column]
        if row.group != "all":
            values = values[np.array(iris()["species"]) == row.group]
        want = [values.mean(), values.std(ddof=1), scipy.stats.skew(values), scipy.stats.kurtosis(values)]
        worst = max(worst, off([row.mean, row.sd, row.skewness, row.kurtosis], want))
        assert (row.n, row.missing) == (len(values), 0)
    return worst


def quantiles_beyond_bound(result: Any) -> float:
    worst = 0.0
    for row in result.quantiles:
        values = iris()[row.column]
        if row.group != "all":
            values = values[np.array(iris()["species"]) == row.group]
        gap = abs(row.value - np.quantile(values, row.probability))
        assert row.bound <= 1e-3 * values.std()
        worst = max(worst, gap - row.bound)
    return max(worst, 0.0)


def missing_off(result: Any) -> float:
    data = together(hospitals())
    want = [int(np.isnan(data[row.column]).sum()) for row in result.numbers]
    complete = int((~np.isnan(np.column_stack([data[r.column] for r in result.numbers])).any(axis=1)).sum())
    return off([*(row.missing for row in result.numbers), result.complete], [*want, complete])


def hospital_moments_off(result: Any) -> float:
    data = together(hospitals())
    got = [(r.mean, r.sd) for r in result.numbers]
    return off(got, [(np.nanmean(data[r.column]), np.nanstd(data[r.column], ddof=1)) for r in result.numbers])


def table_one_off(result: Any) -> float:
    data = together(hospitals())
    ill = data["ill"]
    worst = 0.0
    for row in result.table:
        values = data[row.column]
        a, b = values[(ill == 0) & ~np.isnan(values)], values[(ill == 1) & ~np.isnan(values)]
        if row.level is None:
            statistic = scipy.stats.ttest_ind(a, b, equal_var=False).statistic
            difference = abs(a.mean() - b.mean()) / math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        else:
            counts = np.array([[(g == v).sum() for v in np.unique(np.r_[a, b])] for g in (a, b)])
            statistic = scipy.stats.chi2_contingency(counts, correction=False).statistic
            share = counts / counts.sum(axis=1, keepdims=True)
            gap = (share[0] - share[1])[1:]
            covariance = sum(np.diag(s) - np.outer(s, s) for s in share)[1:, 1:] / 2
            difference = math.sqrt(gap @ np.linalg.solve(covariance, gap))
        worst = max(worst, off([row.statistic, row.standardised_difference], [statistic, difference]))
    return worst


def groups_of(value: str, group: str, data: Columns) -> list[Any]:
    labels = np.array(data[group])
    return [data[value][labels == level] for level in np.unique(labels)]


def test_off(oracle: Callable[[], Any]) -> Callable[[Any], float]:
    def deviation(result: Any) -> float:
        want = oracle()
        # A tail of 1e-60 magnifies the last digits of its statistic by the square of that statistic.
        assert off(result.test.p, want.pvalue) <= 1e-9
        return off(result.test.statistic, want.statistic)

    return deviation


test_off.__test__ = False  # type: ignore[attr-defined]


def table_off(result: Any) -> float:
    data = together(hospitals())
    counts = np.array([[((data["cp"] == i) & (data["ill"] == j)).sum() for j in (0, 1)] for i in (1, 2, 3, 4)])
    oracle = scipy.stats.chi2_contingency(counts, correction=False)
    assert [c.n for c in result.cells] == counts.ravel().tolist()
    return off([result.test.statistic, result.test.p], [oracle.statistic, oracle.pvalue])


def fisher_off(result: Any) -> float:
    data = together(hospitals())
    counts = np.array([[((data["sex"] == i) & (data["ill"] == j)).sum() for j in (0, 1)] for i in (0, 1)])
    oracle = scipy.stats.fisher_exact(counts)
    return off([result.fisher.odds_ratio, result.fisher.p], [oracle.statistic, oracle.pvalue])


def whole_radius() -> dict[str, Any]:
    data = breast_cancer()
    return {"radius": np.round(data["mean radius"]), "y": data["y"]}


def u_off(result: Any) -> float:
    oracle = scipy.stats.mannwhitneyu(*groups_of("radius", "y", whole_radius()), method="asymptotic")
    assert result.exact and result.u_bound == 0
    return off([result.u, result.test.p], [oracle.statistic, oracle.pvalue])


def u_beyond_bound(result: Any) -> float:
    oracle = scipy.stats.mannwhitneyu(*groups_of("mean radius", "y", breast_cancer()))
    assert result.u_bound <= 0.001 * oracle.statistic
    return max(abs(result.u - oracle.statistic) - result.u_bound, 0.0)


def kruskal_beyond_bound(result: Any) -> float:
    labels = np.array(iris()["species"])
    ranks = scipy.stats.rankdata(iris()["sepal length"])
    return max(0.0, *(abs(g.mean_rank - ranks[labels == g.group].mean()) - g.bound - 1e-12 for g in result.groups))


def correlation_off(result: Any) -> float:
    columns = [iris()[c] for c in result.columns]
    first = scipy.stats.pearsonr(columns[0], columns[1])
    interval = first.confidence_interval()
    got = [*np.ravel(result.matrix), result.pairs[0].p, result.pairs[0].ci_low, result.pairs[0].ci_high]
    return off(got, [*np.corrcoef(columns).ravel(), first.pvalue, interval.low, interval.high])


def histogram_off(result: Any) -> float:
    counts = np.histogram(iris()["sepal length"], bins=10, range=(4, 8))[0]
    return off([b.n for b in result.bins], [0, *counts, 0])


# evaluation, multivariate, meta-analysis


def roc_off(result: Any) -> float:
    assert abs(result.auc - sklearn.metrics.roc_auc_score(scored()["y"], scored()["risk"])) <= result.auc_bound + 1e-15
    return off(result.auc, sklearn.metrics.roc_auc_score(scored()["y"], scored()["risk"]))


def brier_off(result: Any) -> float:
    y, risk = scored()["y"], scored()["risk"]
    want = [sklearn.metrics.brier_score_loss(y, risk), sklearn.metrics.log_loss(y, risk)]
    return off([result.brier, result.log_loss], want)


def calibration_off(result: Any) -> float:
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(scored()["y"], scored()["risk"], n_bins=10)
    return off([[b.observed for b in result.bins], [b.predicted for b in result.bins]], [observed, predicted])


def confusion_off(result: Any) -> float:
    y, predicted = scored()["y"], scored()["risk"] >= 0.4
    m = sklearn.metrics
    want = [*m.confusion_matrix(y, predicted).ravel(), m.cohen_kappa_score(y, predicted)]
    want += [m.matthews_corrcoef(y, predicted), m.f1_score(y, predicted)]
    got = [result.true_negative, result.false_positive, result.false_negative, result.true_positive]
    return off([*got, result.kappa, result.matthews, result.f1], want)


def pca_off(result: Any) -> float:
    data = breast_cancer()
    x = np.column_stack([data[c] for c in data if c != "y"])
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    singular = np.linalg.svd(x, compute_uv=False) ** 2 / (len(x) - 1)
    # A small eigenvalue has the absolute accuracy of the largest: linear algebra on sums.
    return float(np.max(np.abs(np.array([c.eigenvalue for c in result.components]) - singular)) / singular[0])


def start_centres() -> list[float]:
    return [float(iris()[c][i]) for i in (0, 50, 100) for c in IRIS]


IRIS = ("sepal length", "sepal width", "petal length", "petal width")


def k_means_off(result: Any) -> float:
    x = np.column_stack([iris()[c] for c in IRIS])
    start = np.array(start_centres()).reshape(3, -1)
    oracle = sklearn.cluster.KMeans(3, init=start, n_init=1, tol=0, algorithm="lloyd").fit(x)
    centres = [c.centre for c in result.clusters]
    assert [c.n for c in result.clusters] == np.bincount(oracle.labels_).tolist()
    return max(off(result.inertia, oracle.inertia_), off(centres, oracle.cluster_centers_))


def mca_data() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, 300)
    b = np.where(rng.random(300) < 0.5, a, rng.integers(0, 3, 300))
    return {"a": a * 1.0, "b": [("low", "middle", "high")[i] for i in b], "c": rng.integers(0, 4, 300) * 1.0}


def mca_off(result: Any) -> float:
    data = mca_data()
    z = np.hstack([np.array(v)[:, None] == np.unique(v) for v in data.values()]) / 900
    rows, columns = z.sum(axis=1), z.sum(axis=0)
    singular = np.linalg.svd((z - np.outer(rows, columns)) / np.sqrt(np.outer(rows, columns)), compute_uv=False)
    return off([d.eigenvalue for d in result.dimensions], singular[:3] ** 2)


def meta_off(result: Any) -> float:
    fits = []
    for table in split(standardised_four(), 3):
        x = sm.add_constant(table.matrix(FOUR))
        fits.append(sm.Logit(table["y"], x).fit(method="newton", tol=1e-14, maxiter=200, disp=0))
    worst = 0.0
    for j, found in enumerate(result.coefficients):
        effects = np.array([f.params[j] for f in fits])
        variances = np.array([f.bse[j] ** 2 for f in fits])
        oracle = combine_effects(effects, variances, method_re="dl")
        spread = max(oracle.tau2, 0.0)  # DerSimonian and Laird's estimate is cut at zero; statsmodels shows it uncut
        weights = 1 / (variances + spread)
        want = [oracle.mean_effect_fe, oracle.sd_eff_w_fe, oracle.q, weights @ effects / weights.sum()]
        want += [1 / math.sqrt(weights.sum()), spread]
        got = [found.fixed, found.fixed_se, found.q, found.random, found.random_se, found.tau_squared]
        worst = max(worst, off(got, want))
    return worst


@cache
def clustered() -> dict[str, Any]:
    """Patients measured again: forty of them, three to eleven times."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), rng.integers(3, 12, 40))
    n = len(patient)
    age, drug = rng.normal(60, 9, n), rng.integers(0, 2, n) * 1.0
    level = 5 + 0.3 * age - 2 * drug + rng.normal(0, 1.5, 40)[patient] + rng.normal(0, 2, n)
    return {"age": age, "drug": drug, "level": level, "patient": patient * 1.0}


def patients(sites: int) -> list[Table]:
    """A patient is at one hospital."""
    data = clustered()
    return [
        Table({c: v[np.isin(data["patient"], part)] for c, v in data.items()})
        for part in np.array_split(np.random.default_rng(0).permutation(40), sites)
    ]


def mixed_oracle(reml: bool) -> Any:
    data = clustered()
    x = sm.add_constant(np.column_stack([data["age"], data["drug"]]))
    fit = sm.MixedLM(data["level"], x, data["patient"]).fit(reml=reml, method="bfgs", gtol=1e-11, maxiter=500)
    return x, fit


def mixed_off(reml: bool) -> Callable[[Any], float]:
    """Estimates and likelihood of statsmodels; errors by generalised least squares with the whole matrix, as lme4's."""

    def deviation(result: Any) -> float:
        x, fit = mixed_oracle(reml)
        patient = clustered()["patient"]
        same = patient[:, None] == patient[None, :]
        whole = result.cluster_variance * same + result.residual_variance * np.eye(len(x))
        se = np.sqrt(np.diag(np.linalg.inv(x.T @ np.linalg.solve(whole, x))))
        assert result.converged and off(result.log_likelihood, fit.llf) <= LIKELIHOOD
        assert off([result.cluster_variance, result.residual_variance], [fit.cov_re[0, 0], fit.scale]) <= 1e-6
        return max(off(coefficients(result), fit.fe_params), off(errors(result), se))

    return deviation


IN_IRIS: Any = lambda k: split(iris(), k)  # noqa: E731
IN_BREAST: Any = lambda k: split(breast_cancer(), k)  # noqa: E731
IN_FOUR: Any = lambda k: split(standardised_four(), k)  # noqa: E731
IN_DIABETES: Any = lambda k: split(diabetes(), k)  # noqa: E731
IN_RANDHIE: Any = lambda k: split(randhie(), k)  # noqa: E731
IN_ROSSI: Any = lambda k: split(frame_of(load_rossi), k)  # noqa: E731
IN_WALTONS: Any = lambda k: split(frame_of(load_waltons), k)  # noqa: E731
IN_LUNG: Any = lambda k: by(lung(), "inst")  # noqa: E731
IN_SCORED: Any = lambda k: split(scored(), k)  # noqa: E731
IN_HOSPITALS: Any = lambda k: hospitals()  # noqa: E731

DIABETES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
RANDHIE = ("lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp")
FEW = ("lncoins", "hlthg", "disea")


def case(
    method: str,
    data: str,
    quantity: str,
    oracle: str,
    tolerance: float,
    parameters: Mapping[str, Any],
    tables: Any,
    deviation: Any,
    **more: Any,
) -> Case:
    return Case(method, data, quantity, oracle, tolerance, parameters, tables, deviation, **more)


def clinical(entry: Case, sites: tuple[int, ...] = (4,)) -> Case:
    return replace(entry, sites=sites, clinical=True)


def quoted(parameters: Sequence[str]) -> list[str]:
    return list(parameters)


# fmt: off
CASES = [
    case("describe", "iris", "mean, sd, skewness, kurtosis by group", "NumPy, SciPy", LINEAR, {"columns": quoted(IRIS), "by": "species", "quantiles": []}, IN_IRIS, moments_off),
    case("describe", "iris", "quantiles beyond their stated bound", "NumPy", EXACT, {"columns": quoted(IRIS[:2]), "by": "species"}, IN_IRIS, quantiles_beyond_bound),
    clinical(case("describe", "heart disease", "missing values, complete rows", "NumPy", EXACT, {"columns": ["age", "chol", "slope", "ca", "thal"], "quantiles": []}, IN_HOSPITALS, missing_off)),
    clinical(case("describe", "heart disease", "mean, sd", "NumPy", LINEAR, {"columns": ["age", "chol", "slope", "ca", "thal"], "quantiles": []}, IN_HOSPITALS, hospital_moments_off)),
    clinical(case("table-one", "heart disease", "tests, standardised differences", "SciPy, NumPy", LINEAR, {"columns": ["age", "thalach", "cp", "sex"], "categories": ["cp", "sex"], "by": "ill", "quantiles": []}, IN_HOSPITALS, table_one_off)),
    case("histogram", "iris", "counts", "NumPy", EXACT, {"column": "sepal length", "low": 4.0, "high": 8.0, "bins": 10}, IN_IRIS, histogram_off),
    case("correlation", "iris", "matrix, p, interval", "NumPy, SciPy", LINEAR, {"columns": quoted(IRIS)}, IN_IRIS, correlation_off),
    clinical(case("cross-table", "heart disease", "counts, chi-squared, p", "SciPy", 1e-12, {"row": "cp", "column": "ill"}, IN_HOSPITALS, table_off)),
    clinical(case("chi-squared", "heart disease", "statistic, p", "SciPy", 1e-12, {"row": "cp", "column": "ill"}, IN_HOSPITALS, table_off)),
    clinical(case("fisher-exact", "heart disease", "odds ratio, p", "SciPy", LINEAR, {"row": "sex", "column": "ill"}, IN_HOSPITALS, fisher_off)),
    case("t-test", "breast cancer", "t", "SciPy", LINEAR, {"value": "mean radius", "group": "y"}, IN_BREAST, test_off(lambda: scipy.stats.ttest_ind(*groups_of("mean radius", "y", breast_cancer()), equal_var=False))),
    case("student-t-test", "breast cancer", "t", "SciPy", LINEAR, {"value": "mean radius", "group": "y"}, IN_BREAST, test_off(lambda: scipy.stats.ttest_ind(*groups_of("mean radius", "y", breast_cancer())))),
    case("anova", "iris", "F", "SciPy", LINEAR, {"value": "sepal length", "group": "species"}, IN_IRIS, test_off(lambda: scipy.stats.f_oneway(*groups_of("sepal length", "species", iris())))),
    case("mann-whitney", "breast cancer, whole numbers", "U, p", "SciPy", LINEAR, {"value": "radius", "group": "y"}, lambda k: split(whole_radius(), k), u_off),
    case("mann-whitney", "breast cancer", "U beyond its stated bound", "SciPy", EXACT, {"value": "mean radius", "group": "y"}, IN_BREAST, u_beyond_bound),
    case("kruskal-wallis", "iris", "mean ranks beyond their stated bounds", "SciPy", EXACT, {"value": "sepal length", "group": "species"}, IN_IRIS, kruskal_beyond_bound),
    case("linear", "diabetes", "coefficients, SE", "statsmodels OLS", LINEAR, {"outcome": "y", "covariates": quoted(DIABETES)}, IN_DIABETES, fit_is(pooled_linear)),
    case("linear", "diabetes", "R²", "statsmodels OLS", LINEAR, {"outcome": "y", "covariates": quoted(DIABETES)}, IN_DIABETES, lambda r: off(r.r_squared, cached(pooled_linear).rsquared)),
    case("linear", "diabetes", "VIF", "statsmodels", LINEAR, {"outcome": "y", "covariates": quoted(DIABETES)}, IN_DIABETES, vif_off),
    case("linear", "diabetes, elastic net", "coefficients", "scikit-learn ElasticNet", NEWTON, {"outcome": "y", "covariates": quoted(DIABETES), "penalty": 1.5, "l1_ratio": 0.7, "standardise": True}, IN_DIABETES, elastic_net_off),
    case("linear", "iris, interaction", "coefficients", "statsmodels formula", LINEAR, {"formula": "`sepal length` ~ `petal width` * C(species) + log(`sepal width`)"}, IN_IRIS, formula_off),
    case("logistic", "breast cancer", "coefficients, SE", "statsmodels Logit", NEWTON, {"outcome": "y", "covariates": quoted(FOUR)}, IN_FOUR, fit_is(pooled_logit)),
    case("logistic", "breast cancer", "log-likelihood", "statsmodels Logit", LIKELIHOOD, {"outcome": "y", "covariates": quoted(FOUR)}, IN_FOUR, likelihood_is(pooled_logit)),
    case("logistic", "breast cancer, own units", "coefficients, SE", "statsmodels Logit", NEWTON, {"outcome": "y", "covariates": quoted(FOUR), "standardise": True}, IN_BREAST, fit_is(pooled_logit)),
    case("logistic", "breast cancer, lasso", "coefficients", "scikit-learn saga", 1e-8, {"outcome": "y", "covariates": quoted(FOUR), "penalty": 0.02, "l1_ratio": 1.0}, IN_FOUR, lasso_off),
    clinical(case("logistic", "heart disease", "coefficients, SE", "statsmodels Logit", NEWTON, {"formula": "ill ~ age + sex + trestbps + C(cp)"}, IN_HOSPITALS, fit_is(pooled_hospitals))),
    case("glm", "breast cancer, weights and offset", "coefficients, SE", "statsmodels GLM", NEWTON, {"outcome": "y", "covariates": quoted(FOUR), "family": "binomial", "weights": "w", "offset": "o"}, lambda k: split(weighted(), k), fit_is(pooled_weighted)),
    case("poisson", "randhie", "coefficients, SE", "statsmodels Poisson", NEWTON, {"outcome": "visits", "covariates": quoted(RANDHIE)}, IN_RANDHIE, fit_is(pooled_poisson)),
    case("poisson", "randhie", "log-likelihood", "statsmodels Poisson", LIKELIHOOD, {"outcome": "visits", "covariates": quoted(RANDHIE)}, IN_RANDHIE, likelihood_is(pooled_poisson)),
    case("gamma", "diabetes", "coefficients, SE", "statsmodels GLM", NEWTON, {"outcome": "y", "covariates": ["age", "bmi", "bp"]}, IN_DIABETES, fit_is(pooled_gamma)),
    case("gamma", "diabetes", "log-likelihood", "statsmodels GLM", LIKELIHOOD, {"outcome": "y", "covariates": ["age", "bmi", "bp"]}, IN_DIABETES, likelihood_is(pooled_gamma)),
    case("negative-binomial", "randhie", "coefficients, alpha", "statsmodels NegativeBinomial", 1e-9, {"outcome": "visits", "covariates": quoted(FEW)}, IN_RANDHIE, negative_binomial_off, sites=(1, 3)),
    case("mixed-linear", "repeated measures, REML", "coefficients, SE", "statsmodels MixedLM", 1e-8, {"outcome": "level", "covariates": ["age", "drug"], "cluster": "patient"}, patients, mixed_off(True)),
    case("mixed-linear", "repeated measures, ML", "coefficients, SE", "statsmodels MixedLM", 1e-8, {"outcome": "level", "covariates": ["age", "drug"], "cluster": "patient", "reml": False}, patients, mixed_off(False)),
    case("kaplan-meier", "waltons", "survival, Greenwood intervals, median", "lifelines", LINEAR, {"duration": "T", "event": "E"}, IN_WALTONS, curve_off(frame_of(load_waltons), "T", "E")),
    case("log-rank", "waltons", "chi-squared, p", "lifelines", LINEAR, {"duration": "T", "event": "E", "group": "group"}, IN_WALTONS, log_rank_off(frame_of(load_waltons), "T", "E", "group")),
    case("restricted-mean", "waltons", "mean, SE", "lifelines, Greenwood by hand", LINEAR, {"duration": "T", "event": "E", "group": "group", "horizon": 60.0}, IN_WALTONS, restricted_mean_off),
    clinical(case("log-rank", "GBSG", "chi-squared, p", "lifelines", LINEAR, {"duration": "rfstime", "event": "status", "group": "hormon"}, lambda k: split(cohort("gbsg"), k), lambda r: log_rank_off(cohort("gbsg"), "rfstime", "status", "hormon")(r)), (3,)),
    case("cox", "rossi, Efron", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "week", "event": "arrest", "covariates": quoted(ROSSI)}, IN_ROSSI, cox_is(lambda: rossi_oracle("efron"))),
    case("cox", "rossi, Breslow", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "week", "event": "arrest", "covariates": quoted(ROSSI), "ties": "breslow"}, IN_ROSSI, cox_is(lambda: rossi_oracle("breslow"))),
    case("cox", "rossi, Breslow", "baseline hazard", "by hand", LINEAR, {"duration": "week", "event": "arrest", "covariates": quoted(ROSSI), "ties": "breslow"}, IN_ROSSI, baseline_off),
    case("cox", "rossi, Breslow", "proportionality", "statsmodels residuals", 1e-8, {"duration": "week", "event": "arrest", "covariates": quoted(ROSSI), "ties": "breslow"}, IN_ROSSI, proportionality_off),
    case("cox", "lung, 18 institutions", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "time", "event": "status", "covariates": ["age", "sex", "ph.ecog"]}, IN_LUNG, cox_is(lambda: lung_oracle(False)), sites=(18,)),
    case("cox", "lung, stratified by institution", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "time", "event": "status", "covariates": ["age", "sex", "ph.ecog"], "strata": ["site"]}, IN_LUNG, cox_is(lambda: lung_oracle(True)), sites=(18,)),
    clinical(case("cox", "GBSG", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "rfstime", "event": "status", "formula": "~ age + C(grade) + log1p(nodes) + hormon"}, lambda k: split(cohort("gbsg"), k), cox_is(gbsg_oracle)), (3,)),
    clinical(case("cox", "Rotterdam, strata", "coefficients, SE", "statsmodels PHReg", NEWTON, {"duration": "dtime", "event": "death", "covariates": ["age", "size", "nodes", "hormon"], "references": ["size=<=20"], "strata": ["grade"], "ties": "breslow"}, lambda k: split(cohort("rotterdam"), k), cox_is(rotterdam_oracle)), (2,)),
    case("roc", "predicted risks", "area", "scikit-learn", LINEAR, {"outcome": "y", "score": "risk"}, IN_SCORED, roc_off),
    case("calibration", "predicted risks", "observed and predicted by bin", "scikit-learn", LINEAR, {"outcome": "y", "score": "risk"}, IN_SCORED, calibration_off),
    case("brier", "predicted risks", "Brier score, log loss", "scikit-learn", LINEAR, {"outcome": "y", "score": "risk"}, IN_SCORED, brier_off),
    case("confusion", "predicted risks", "counts, kappa, F1", "scikit-learn", 1e-12, {"outcome": "y", "score": "risk", "threshold": 0.4}, IN_SCORED, confusion_off),
    case("pca", "breast cancer", "eigenvalues", "SVD of the data", LINEAR, {"columns": [c for c in breast_cancer() if c != "y"]}, IN_BREAST, pca_off),
    case("k-means", "iris", "inertia, centres", "scikit-learn", LINEAR, {"columns": quoted(IRIS), "k": 3, "centres": start_centres()}, IN_IRIS, k_means_off),
    case("mca", "categories", "principal inertias", "SVD of the indicators", LINEAR, {"columns": ["a", "b", "c"], "dimensions": 3}, lambda k: split(mca_data(), k), mca_off),
    case("meta-analysis", "breast cancer", "fixed, random, tau², Q", "statsmodels combine_effects", 1e-9, {"outcome": "y", "covariates": quoted(FOUR), "family": "binomial"}, IN_FOUR, meta_off, sites=(3,)),
]
# fmt: on

MEASURED: dict[tuple[str, int, str], float] = {}


def trials() -> list[Any]:
    """Each case over its splits in clear, and over one of them in fixed point."""
    found = []
    for entry in CASES:
        for sites in entry.sites:
            found.append(pytest.param(entry, sites, "clear", id=f"{entry.title}, {sites} in clear"))
        middle = 3 if 3 in entry.sites else entry.sites[0]
        found.append(pytest.param(entry, middle, "fixed point", id=f"{entry.title}, {middle} in fixed point"))
    return found


@pytest.mark.parametrize(("entry", "sites", "protection"), trials())
def test_a_method_equals_its_pooled_reference(entry: Case, sites: int, protection: str) -> None:
    if entry.clinical and not CLINICAL:
        pytest.skip("FLAME_TEST_DATA does not name the folder of the clinical data")
    tables = entry.tables(sites)
    assert len(tables) == sites
    result = run_local(named.method(entry.method, entry.parameters), tables, PROTECTIONS[protection])
    deviation = entry.deviation(result)
    MEASURED[entry.title, sites, protection] = deviation
    assert deviation <= entry.tolerance
    assert result.contributors == sites


def test_every_method_of_the_catalogue_has_a_reference() -> None:
    assert {entry.method for entry in CASES} == set(CATALOGUE)


def decade(deviation: float) -> float:
    """Rounded up to a power of ten, so that machines agree; nothing below 1e-14 is told apart."""
    return 0.0 if deviation == 0 else float(f"1e{max(math.ceil(math.log10(deviation)), -14)}")


def measured_badge(entry: Case) -> Badge | None:
    found = {key: d for key, d in MEASURED.items() if key[0] == entry.title}
    if len(found) < len(entry.sites) + 1:
        return None  # not all of its trials were run here
    worst = decade(max(found.values()))
    return Badge(entry.method, entry.data, entry.quantity, entry.sites, entry.oracle, worst, entry.tolerance)


def test_the_badges_are_what_was_measured() -> None:
    """Restores the file when it is not there; otherwise it must say what this run found, to a power of ten."""
    measured = [measured_badge(entry) for entry in CASES]
    known = tuple(badge for badge in measured if badge is not None)
    if not FILE.exists():
        if len(known) < len(CASES):
            pytest.skip("badges.json is written by a run of all cases, with FLAME_TEST_DATA")
        FILE.write_text(written_badges(known), encoding="utf-8")
    written = {(b.method, b.data, b.quantity): b for b in read_badges(FILE.read_text(encoding="utf-8"))}
    assert {(e.method, e.data, e.quantity) for e in CASES} == written.keys(), "delete badges.json and run again"
    for badge in known:
        stated = written[badge.method, badge.data, badge.quantity]
        assert replace(stated, deviation=badge.deviation) == badge
        assert badge.deviation <= max(stated.deviation * 10, 1e-14), f"{badge.method}: farther off than its badge says"
