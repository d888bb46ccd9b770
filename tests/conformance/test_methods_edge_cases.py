"""What goes wrong at real hospitals: each method gives the pooled result, or says in words what does not fit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from flame.methods import named
from flame.methods.method import Method
from flame.methods.run import drive, run_local, sum_of
from flame.model.errors import (
    HasInfinite,
    HasMissing,
    Invalid,
    MixedTypes,
    NotBinary,
    NotFound,
    NotNumeric,
    OutOfDomain,
    OutOfRange,
    Separated,
    Singular,
    TooManyLevels,
    UnknownLevel,
)
from flame.sdk.table import Table
from method_examples import EXAMPLES, entry_name, table

WHOLE = table(240, 11)
BY_HOSPITAL = {"cox by site", "meta-analysis", "mixed-linear"}
"""What these estimate depends on who is which hospital: there is no pooled table that gives the same."""


def method(title: str) -> Method[Any, Any, Any]:
    return named.method(entry_name(title), EXAMPLES[title])


def rows(data: Table, chosen: Any) -> Table:
    chosen = np.asarray(chosen, dtype=int)
    return Table({c: [data[c][i] for i in chosen] if isinstance(data[c], list) else data[c][chosen] for c in data})


def joined(tables: Sequence[Table]) -> Table:
    return Table(
        {
            c: [x for t in tables for x in t[c]]
            if isinstance(tables[0][c], list)
            else np.concatenate([t[c] for t in tables])
            for c in tables[0]
        }
    )


def sorted_by(column: str) -> list[Table]:
    """Cut where the column changes most: one hospital has the small values, the other the large ones."""
    order = np.argsort(np.asarray(WHOLE[column]), kind="stable")
    return [rows(WHOLE, part) for part in np.array_split(order, 3)]


def with_gaps() -> list[Table]:
    rng = np.random.default_rng(8)
    columns: dict[str, Any] = {}
    for name, values in WHOLE.items():
        gone = rng.random(WHOLE.rows) < 0.05
        if isinstance(values, list):
            columns[name] = [None if g else v for g, v in zip(gone, values, strict=True)]
        else:
            columns[name] = np.where(gone, np.nan, values)
    data = Table(columns)
    return [rows(data, part) for part in np.array_split(np.arange(WHOLE.rows), 3)]


SPLITS: dict[str, list[Table]] = {
    "no rows": [rows(WHOLE, range(0)), rows(WHOLE, range(120)), rows(WHOLE, range(120, 240))],
    "one row": [rows(WHOLE, range(1)), rows(WHOLE, range(1, 240))],
    "a few rows": [rows(WHOLE, range(4)), rows(WHOLE, range(4, 9)), rows(WHOLE, range(9, 240))],
    "eighteen sites": [rows(WHOLE, part) for part in np.array_split(np.arange(240), 18)],
    "a category missing": sorted_by("ward"),
    "one outcome only": sorted_by("y"),
    "separated at one site": sorted_by("b"),
    "the same site twice": [rows(WHOLE, range(100)), rows(WHOLE, range(100)), rows(WHOLE, range(100, 240))],
    "missing values": with_gaps(),
}


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of a result, by where it stands."""
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in numbers(item, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in numbers(item, f"{path}[{i}]").items()}
    return {path: value}


def assert_same(one: Any, other: Any, digits: float = 1e-9) -> None:
    first, second = (numbers(json.loads(result.as_json())) for result in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name in (".rounds", ".contributors", ".iterations"):
            continue
        if isinstance(value, float):
            assert value == pytest.approx(second[name], rel=digits, abs=1e-12), name
        else:
            assert value == second[name], name


@pytest.mark.parametrize("situation", SPLITS)
@pytest.mark.parametrize("title", [title for title in EXAMPLES if title not in BY_HOSPITAL])
def test_however_patients_are_divided_the_result_is_the_pooled_one(title: str, situation: str) -> None:
    tables = SPLITS[situation]
    result = run_local(method(title), tables)
    assert result.contributors == len(tables)
    assert_same(result, run_local(method(title), [joined(tables)]))


@pytest.mark.parametrize("situation", SPLITS)
@pytest.mark.parametrize("title", sorted(BY_HOSPITAL))
def test_what_is_estimated_within_hospitals_bears_the_same(title: str, situation: str) -> None:
    assert run_local(method(title), SPLITS[situation]).contributors == len(SPLITS[situation])


@pytest.mark.parametrize("title", EXAMPLES)
def test_sums_on_a_grid_end_and_are_as_good_as_the_grid(title: str) -> None:
    """With 2 ** -30 no step ever becomes zero: a loop that waited for that would not end."""

    def coarse(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        total = sum_of(answers)
        return {k: v if np.asarray(v).dtype.kind != "f" else np.rint(np.ldexp(v, 30)) / 2**30 for k, v in total.items()}

    tables = SPLITS["a few rows"]
    counted = itertools.count()
    rough = run_local(method(title), tables, lambda answers: (next(counted), coarse(answers))[1])
    exact = run_local(method(title), tables)
    assert next(counted) <= exact.rounds + 40
    assert getattr(rough, "converged", True)
    for a, b in zip(getattr(rough, "coefficients", ()), getattr(exact, "coefficients", ()), strict=True):
        if hasattr(a, "estimate"):
            assert a.estimate == pytest.approx(b.estimate, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("leaves_after", [1, 2, 3])
@pytest.mark.parametrize("title", EXAMPLES)
def test_a_site_that_leaves_never_biases_what_remains(title: str, leaves_after: int) -> None:
    """Its earlier sums are forgotten: the result is that of those who stayed, to the last bit."""
    tables = SPLITS["a few rows"]
    tried = method(title)
    prepared = [tried.prepare(t) for t in tables]
    course = drive(tried)
    question = next(course)
    for taken in itertools.count(1):
        there = prepared if taken <= leaves_after else prepared[1:]
        try:
            question = course.send((sum_of([tried.local(data, question) for data in there]), len(there)))
        except StopIteration as end:
            result = end.value
            break
    stayed = run_local(method(title), tables[1:])
    everyone = run_local(method(title), tables)
    if taken > leaves_after:
        assert result.contributors == 2
        assert result.as_json() == stayed.as_json()
    else:
        assert result.as_json() == everyone.as_json()


# --- what cannot be is said, with site and column -------------------------------------------------------------------


def with_column(name: str, values: Any) -> Table:
    return Table({**{c: WHOLE[c] for c in WHOLE}, name: values})


def sites(wrong: Table) -> dict[str, Table]:
    return {"Mainz": rows(WHOLE, range(100)), "Bonn": wrong}


TEXT = ["high"] * 240
WRONG = {
    "a typo in a column": ("linear", {"formula": "a ~ b + hight"}, WHOLE, NotFound, "Mainz.*hight"),
    "text for numbers": ("cox", {"duration": "time", "event": "y", "covariates": ["a"]}, with_column("time", TEXT), NotNumeric, "Bonn.*'time'"),
    "text at one site": ("linear", {"outcome": "a", "covariates": ["b"]}, with_column("b", TEXT), MixedTypes, "Bonn.*'b'"),
    "numbers at one site": ("linear", {"outcome": "a", "covariates": ["ward"]}, with_column("ward", np.ones(240)), MixedTypes, "'ward'"),
    "another unit": ("linear", {"outcome": "a", "covariates": ["b"], "ranges": ["b=0:200"]}, with_column("b", WHOLE["b"] * 1000), OutOfRange, "Bonn.*'b'"),
    "infinite": ("linear", {"outcome": "a", "covariates": ["b"]}, with_column("b", np.full(240, np.inf)), HasInfinite, "Bonn.*'b'"),
    "infinite by a function": ("linear", {"formula": "a ~ log(b)"}, with_column("b", np.zeros(240)), HasInfinite, "Bonn.*'b'"),
    "missing where it may not": ("linear", {"outcome": "a", "covariates": ["b"], "missing": "error"}, with_column("b", np.full(240, np.nan)), HasMissing, "Bonn.*'b'"),
    "an outcome that is not binary": ("logistic", {"outcome": "y", "covariates": ["b"]}, with_column("y", np.arange(240)), NotBinary, "Bonn.*'y'"),
    "an unknown level": ("logistic", {"outcome": "sex", "covariates": ["b"], "levels": ["f", "m"]}, with_column("sex", ["x"] * 240), UnknownLevel, "Bonn.*'sex'"),
    "negative counts": ("poisson", {"outcome": "count", "covariates": ["b"]}, with_column("count", np.full(240, -1)), OutOfDomain, "Bonn.*'count'"),
    "negative times": ("kaplan-meier", {"duration": "time", "event": "y"}, with_column("time", np.full(240, -1.0)), OutOfDomain, "Bonn.*'time'"),
    "negative weights": ("linear", {"outcome": "a", "covariates": ["b"], "weights": "time"}, with_column("time", np.full(240, -1.0)), OutOfDomain, "Bonn.*'time'"),
    "free text as a category": ("anova", {"value": "a", "group": "ward"}, with_column("ward", [f"note {i}" for i in range(240)]), TooManyLevels, "Bonn.*'ward'"),
    "risks above one": ("calibration", {"outcome": "y", "score": "risk"}, with_column("risk", np.full(240, 50.0)), OutOfDomain, "Bonn.*'risk'"),
    "scores outside the bins": ("roc", {"outcome": "y", "score": "risk"}, with_column("risk", np.full(240, 50.0)), OutOfRange, "Bonn.*'risk'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_data_that_do_not_fit_are_named_by_site_and_column(case: str) -> None:
    name, parameters, wrong, kind, says = WRONG[case]
    with pytest.raises(kind, match=says):
        run_local(named.method(name, parameters), sites(wrong))


IMPOSSIBLE = {
    "constant column": ("linear", {"outcome": "a", "covariates": ["b", "time"]}, {"time": np.full(240, 3.0)}, Singular, "'time'"),
    "constant column in Cox": ("cox", {"duration": "time", "event": "y", "covariates": ["a", "b"]}, {"b": np.ones(240)}, Singular, "'b'"),
    "constant column in PCA": ("pca", {"columns": ["a", "b"]}, {"b": np.full(240, 0.1)}, Singular, "'b'"),
    "collinear columns": ("poisson", {"outcome": "count", "covariates": ["a", "b", "time"]}, {"time": WHOLE["a"] + 2 * WHOLE["b"]}, Singular, "'time'"),
    "collinear categories": ("linear", {"formula": "a ~ ward + C(twin)"}, {"twin": WHOLE["ward"]}, Singular, "'twin'"),
    "separation": ("logistic", {"formula": "y ~ a + b"}, {"y": (WHOLE["b"] > 40) * 1}, Separated, "'b'"),
    "separation by a level": ("logistic", {"formula": "y ~ a + ward"}, {"y": np.array([w == "west" for w in WHOLE["ward"]]) * 1}, Separated, "'ward'"),
    "a level without counts": ("poisson", {"formula": "count ~ a + ward"}, {"count": np.where(np.array(WHOLE["ward"]) == "west", 0, WHOLE["count"])}, Separated, "'ward'"),
    "separation in Cox": ("cox", {"duration": "time", "event": "y", "covariates": ["x"]}, {"x": -np.argsort(np.argsort(np.asarray(WHOLE["time"]) + np.arange(240) / 1e4)) ** 1.0, "time": np.asarray(WHOLE["time"]) + np.arange(240) / 1e4, "y": np.ones(240)}, Separated, "'x'"),
    "all censored": ("kaplan-meier", {"duration": "time", "event": "y"}, {"y": np.zeros(240)}, Invalid, "all times are censored"),
    "all censored in Cox": ("cox", {"duration": "time", "event": "y", "covariates": ["a"]}, {"y": np.zeros(240)}, Invalid, "all times are censored"),
    "one outcome": ("logistic", {"outcome": "y", "covariates": ["a"]}, {"y": np.ones(240)}, Invalid, "always 1"),
    "one outcome in a curve": ("roc", {"outcome": "y", "score": "risk"}, {"y": np.zeros(240)}, Invalid, "never 1"),
    "three groups in a test of two": ("t-test", {"value": "a", "group": "ward"}, {}, Invalid, "takes two"),
    "one group": ("anova", {"value": "a", "group": "ward"}, {"ward": ["north"] * 240}, Invalid, "fewer than two groups"),
    "no complete record": ("correlation", {"columns": ["a", "b"]}, {"b": np.full(240, np.nan)}, Invalid, "No hospital has a complete record"),
    "no overdispersion": ("negative-binomial", {"outcome": "count", "covariates": ["a"]}, {"count": np.arange(240) % 2}, Invalid, "family poisson"),
    "fisher on a larger table": ("fisher-exact", {"row": "ward", "column": "y"}, {}, Invalid, "2 x 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_has_no_answer_is_said_in_words(case: str) -> None:
    name, parameters, changed, kind, says = IMPOSSIBLE[case]
    data = Table({**{c: WHOLE[c] for c in WHOLE}, **changed})
    tables = [rows(data, part) for part in np.array_split(np.arange(240), 3)]
    with pytest.raises(kind, match=says) as error:
        run_local(named.method(name, parameters), tables)
    if kind in (Singular, Separated):
        assert error.value.fields["column"] in data


def test_a_penalty_fits_what_is_separated() -> None:
    data = with_column("y", (WHOLE["b"] > 40) * 1)
    fit = run_local(
        named.method("logistic", {"formula": "y ~ b", "penalty": 0.01, "standardise": True}),
        [rows(data, range(100)), rows(data, range(100, 240))],
    )
    assert fit.converged and 0 < fit.coefficients[1].estimate < 50


def test_everything_censored_at_one_site_is_no_obstacle() -> None:
    tables = [rows(WHOLE, range(120)), rows(with_column("y", np.zeros(240)), range(120, 240))]
    for title in ("cox", "kaplan-meier"):
        assert_same(run_local(method(title), tables), run_local(method(title), [joined(tables)]))


def test_ties_across_sites_are_ties() -> None:
    """Both halves share all their times: Efron's correction sees the tie between hospitals."""
    twice = [rows(WHOLE, range(120)), rows(with_column("a", WHOLE["a"][::-1]), range(120))]
    found, pooled = run_local(method("cox"), twice), run_local(method("cox"), [joined(twice)])
    assert_same(found, pooled)
    assert len(found.baseline) <= 2 * len(np.unique(WHOLE["time"]))


def test_an_empty_column_at_one_site_is_missing_and_no_type() -> None:
    """As at hospitals that never measured something: the reader sees no value, so text and numbers are both possible."""
    empty = Table({**{c: WHOLE[c] for c in WHOLE}, "ward": [None] * 240, "b": [None] * 240})
    tables = [rows(WHOLE, range(150)), rows(empty, range(150, 240))]
    fit = run_local(named.method("linear", {"formula": "a ~ b + ward"}), tables)
    assert (fit.n, fit.dropped) == (150, 90)


def test_a_binned_time_is_rounded_up_and_says_so() -> None:
    binned = run_local(
        named.method("cox", {"duration": "time", "event": "y", "covariates": ["a"], "bin_width": 5.0}), [WHOLE]
    )
    rounded = with_column("time", np.ceil(WHOLE["time"] / 5) * 5)
    exact = run_local(named.method("cox", {"duration": "time", "event": "y", "covariates": ["a"]}), [rounded])
    assert [c.estimate for c in binned.coefficients] == pytest.approx([c.estimate for c in exact.coefficients])
    assert binned.bin_width == 5.0


@pytest.mark.parametrize("bad", ["y ~ bs(a)", "y ~ __import__('os')", "log(y) ~ a", "y ~ a | b", "~", "y ~ C(a, [1])"])
def test_a_formula_is_read_and_never_executed(bad: str) -> None:
    with pytest.raises(Invalid):
        named.method("linear", {"formula": bad})
