"""What every method promises, and the catalogue that tells of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from flame.methods.catalogue import CATALOGUE, Entry
from flame.methods.logistic import Logistic
from flame.methods.method import Method
from flame.methods.run import run_local
from flame.methods.standardise import Standardised
from flame.model.errors import Invalid
from flame.sdk.table import Table
from flame.wire import values

METHODS = {
    "logistic": Logistic("y", ["a", "b"]),
    "standardised logistic": Standardised(Logistic("y", ["a", "b"])),
}


def table(n: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    return Table({"a": rng.normal(size=n), "b": rng.normal(40, 9, n), "y": (rng.random(n) < 0.4) * 1})


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


def test_the_order_of_the_hospitals_does_not_matter(method: Method[Any, Any, Any]) -> None:
    one, other = run_local(method, SITES), run_local(method, SITES[::-1])
    for a, b in zip(one.coefficients, other.coefficients, strict=True):
        assert a.estimate == pytest.approx(b.estimate, rel=1e-12)


def test_a_method_may_be_run_again(method: Method[Any, Any, Any]) -> None:
    assert run_local(method, SITES) == run_local(method, SITES)


def test_no_table_is_no_result(method: Method[Any, Any, Any]) -> None:
    with pytest.raises(Invalid):
        run_local(method, [])


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.name)
def test_the_catalogue_names_what_is_there(entry: Entry) -> None:
    assert CATALOGUE[entry.name] is entry
    source = importlib.util.find_spec(entry.program)
    assert source is not None and source.origin is not None
    with open(source.origin, encoding="utf-8") as file:
        program = file.read()
    for parameter in entry.parameters:
        assert f'"{parameter.name}"' in program, f"the program does not read {parameter.name}"
        assert parameter.required != (parameter.default is not None or parameter.name == "levels")


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
