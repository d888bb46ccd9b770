"""What every method promises, and the catalogue that tells of them."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from flame.methods import named
from flame.methods.catalogue import CATALOGUE, Entry
from flame.methods.logistic import Logistic
from flame.methods.method import Method
from flame.methods.rendering import as_csv, sheets
from flame.methods.run import run_local
from flame.methods.standardise import Standardised
from flame.model.errors import Invalid, NotFound
from flame.sdk.results import to_json
from flame.wire import values
from method_examples import EXAMPLES, entry_name, table

METHODS = {
    "logistic": Logistic("y", ["a", "b"]),
    "standardised logistic": Standardised(Logistic("y", ["a", "b"])),
    **{title: named.method(entry_name(title), parameters) for title, parameters in EXAMPLES.items()},
}


SITES = [table(80, 1), table(0, 2), table(41, 3)]


@pytest.fixture(params=METHODS, ids=str)
def method(request: pytest.FixtureRequest) -> Method[Any, Any, Any]:
    return METHODS[request.param]


def rounds(method: Method[Any, Any, Any]) -> Any:
    """Each question with the sites' answers to it."""
    prepared = [method.prepare(site) for site in SITES]
    state = method.start()
    while (question := method.question(state)) is not None:
        answers = [dict(method.local(data, question)) for data in prepared]
        yield question, answers
        total = {name: sum(np.asarray(a[name]) for a in answers) for name in answers[0]}
        state = method.update(state, {k: v.item() if v.shape == () else v for k, v in total.items()}, len(SITES))


def test_questions_and_summaries_travel_as_they_are(method: Method[Any, Any, Any]) -> None:
    for question, answers in rounds(method):
        sent = values.decode(values.encode_bytes(question))
        again = [method.local(method.prepare(site), sent) for site in SITES]
        for before, after in zip(answers, again, strict=True):
            assert all(np.array_equal(before[name], after[name]) for name in before)
            assert dict(values.named_arrays(before)).keys() == before.keys()


def test_names_and_shapes_do_not_depend_on_the_data(method: Method[Any, Any, Any]) -> None:
    for _, answers in rounds(method):
        assert len({tuple((k, np.shape(v), np.asarray(v).dtype.str) for k, v in a.items()) for a in answers}) == 1


def test_every_summary_says_how_many_records_are_behind_it(method: Method[Any, Any, Any]) -> None:
    for _, answers in rounds(method):
        assert [answer["n"] for answer in answers] == [80, 0, 41]


def test_the_order_of_the_hospitals_changes_no_bit(method: Method[Any, Any, Any]) -> None:
    first = run_local(method, SITES)
    for order in ((2, 1, 0), (1, 0, 2)):
        assert to_json(run_local(method, [SITES[i] for i in order])) == to_json(first)


def test_a_method_may_be_run_again(method: Method[Any, Any, Any]) -> None:
    assert to_json(run_local(method, SITES)) == to_json(run_local(method, SITES))


def test_a_result_is_shown_as_text_html_and_json(method: Method[Any, Any, Any]) -> None:
    result = run_local(method, SITES)
    assert json.loads(result.as_json())["contributors"] == 3
    text, html = result.as_text(), result.as_html()
    assert "contributors" in text and max(map(len, text.splitlines())) < 250
    assert html.count("<table>") == html.count("</table>") > 0 and result._repr_html_() == html
    for sheet in sheets(result):
        assert len(list(csv.reader(io.StringIO(as_csv(sheet))))) == 1 + len(sheet.rows)


def test_no_table_is_no_result(method: Method[Any, Any, Any]) -> None:
    with pytest.raises(Invalid):
        run_local(method, [])


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_the_catalogue_names_what_is_there(entry: Entry) -> None:
    assert CATALOGUE[entry.name] is entry
    assert importlib.util.find_spec(entry.program) is not None
    module, _, class_name = entry.method.partition(":")
    made = getattr(importlib.import_module(module), class_name)
    assert made.name == entry.name
    assert made.__doc__
    taken = {p.name: p for c in made.__mro__ if "__init__" in vars(c) for p in parameters_of(c)}
    for parameter in entry.parameters:
        own = taken.get(parameter.name)
        assert own is not None or entry.name == "meta-analysis", f"{parameter.name} is not taken"
        if own is not None and parameter.default is not None and own.default not in (None, own.empty):
            assert own.default == parameter.default
        assert not (parameter.required and parameter.default is not None)


def parameters_of(kind: type) -> list[inspect.Parameter]:
    return list(inspect.signature(kind.__init__).parameters.values())


def test_every_method_of_the_catalogue_is_among_those_tried_here() -> None:
    assert CATALOGUE.keys() <= {entry_name(title) for title in METHODS}


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("cox", {"duration": "t"}, "needs the parameter 'event'"),
        ("cox", {"duration": "t", "event": "e", "tie": "efron"}, "no parameter 'tie'"),
        ("cox", {"duration": "t", "event": "e", "ties": "exact"}, "one of efron, breslow"),
        ("linear", {"formula": 3}, "type text"),
        ("k-means", {"columns": ["a"], "k": 2.0}, "type integer"),
        ("k-means", {"columns": ["a", 1], "k": 2}, "type list of texts"),
        ("linear", {"formula": "y ~ x", "penalty": True}, "type number"),
    ],
)
def test_parameters_are_checked_by_type_and_name(name: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        named.method(name, parameters)


def test_parameters_are_read_from_a_command_line() -> None:
    read = named.read_parameters(
        CATALOGUE["cox"], ["duration=time", "event=status", "covariates=age,sex", "ties=efron", "strata=site"]
    )
    assert read == {
        "duration": "time",
        "event": "status",
        "covariates": ["age", "sex"],
        "ties": "efron",
        "strata": ["site"],
    }
    assert named.read_parameters(CATALOGUE["histogram"], ["column=a", "bins=5", "low=0.5", "high=9"])["low"] == 0.5
    with pytest.raises(Invalid, match="twice"):
        named.read_parameters(CATALOGUE["cox"], ["duration=a", "duration=b"])
    with pytest.raises(NotFound):
        named.method("magic", {})


def test_the_catalogue_needs_neither_numpy_nor_the_sdk() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, flame.methods.catalogue; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"numpy", "msgspec", "flame.sdk", "flame.wire"} & set(loaded)


def test_the_sdk_is_light() -> None:
    """An analysis image carries msgspec and NumPy, nothing else; neither is loaded before it is needed."""
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, flame; a = set(sys.modules); flame.connect; print(*sys.modules); print(*a)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    with_sdk, bare = (set(line.split()) for line in loaded)
    assert not {"numpy", "msgspec", "flame.sdk"} & bare
    ours = {name.split(".")[0] for name in with_sdk} & {
        "numpy",
        "scipy",
        "pandas",
        "pyarrow",
        "msgspec",
        "cryptography",
    }
    assert ours == {"msgspec"}
    assert {name.split(".")[1] for name in with_sdk if name.startswith("flame.")} <= {"model", "wire", "sdk"}


class Skewed(Logistic):
    """A method whose summaries differ in shape: wrong, and said so."""

    def local(self, data: Any, question: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"n": len(data.y), "rows": data.y}


def test_summaries_of_different_shapes_are_refused() -> None:
    with pytest.raises(Invalid, match="differ in names or shapes"):
        run_local(Skewed("y", ["a"]), SITES)
