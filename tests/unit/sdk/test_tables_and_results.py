"""Tables give numbers or a clear error; a result is the same bytes, everywhere and always."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flame.model.errors import Invalid, NotFound
from flame.sdk.results import result_file, to_json
from flame.sdk.table import Table


def ward() -> Table:
    return Table(
        {
            "age": np.array([40, 50, 60]),
            "dose": np.array([0.5, np.nan, 1.5], dtype="f4"),
            "ill": np.array([True, False, True]),
            "note": ["a,b", None, 'say "x"\nagain'],
        }
    )


def test_a_matrix_is_float64_in_the_order_asked_for() -> None:
    x = ward().matrix(["ill", "age", "dose"])
    assert x.dtype == np.float64 and x.shape == (3, 3)
    assert x[:, 0].tolist() == [1.0, 0.0, 1.0] and x[:, 1].tolist() == [40.0, 50.0, 60.0]
    assert math.isnan(x[1, 2]) and x[2, 2] == 1.5
    assert Table({"a": np.zeros(0)}).matrix(["a"]).shape == (0, 1)
    assert ward().matrix([]).shape == (3, 0)


def test_text_where_numbers_are_needed_and_missing_columns_are_named() -> None:
    with pytest.raises(Invalid, match="'note' holds text"):
        ward().matrix(["age", "note"])
    with pytest.raises(NotFound, match=r"'sex'.*age, dose, ill, note"):
        ward().matrix(["sex"])
    with pytest.raises(Invalid, match="differ in length"):
        Table({"a": np.zeros(2), "b": ["x"]})


def test_a_printed_table_shows_no_value() -> None:
    assert repr(ward()) == "<Table of 3 rows: age, dose, ill, note>"
    assert str(ward()) == repr(ward()) and f"{ward()}" == repr(ward())


def test_a_table_is_a_mapping_of_its_columns() -> None:
    table = ward()
    assert list(table) == table.columns == ["age", "dose", "ill", "note"] and len(table) == 4
    assert "age" in table and "sex" not in table and table.rows == 3
    assert table.get("age") is table["age"]


def test_csv_keeps_text_numbers_and_gaps() -> None:
    rows = list(csv.DictReader(io.StringIO(ward().to_csv().decode(), newline="")))
    assert [row["note"] for row in rows] == ["a,b", "", 'say "x"\nagain']
    assert [row["dose"] for row in rows] == ["0.5", "", "1.5"]
    assert [row["ill"] for row in rows] == ["1", "0", "1"] and [row["age"] for row in rows] == ["40", "50", "60"]


@given(hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(allow_nan=False)))
def test_numbers_survive_csv_to_the_last_bit(column: np.ndarray) -> None:
    rows = csv.DictReader(io.StringIO(Table({"x": column, "mark": ["-"] * len(column)}).to_csv().decode()))
    assert np.array([float(row["x"]) for row in rows]).tobytes() == column.tobytes()


@dataclass
class Fit:
    name: str
    values: Any


def test_results_become_json_deterministically() -> None:
    value = {
        "b": np.array([[1, 2]]),
        "a": (np.float32(0.5), np.bool_(True), None),
        "fit": Fit("x", np.array([np.inf, 0.1])),
    }
    data = to_json(value)
    assert data == to_json(value)
    assert json.loads(data) == {"b": [[1, 2]], "a": [0.5, True, None], "fit": {"name": "x", "values": [None, 0.1]}}
    assert list(json.loads(data)) == ["b", "a", "fit"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_json_to_the_last_bit(x: float) -> None:
    back = json.loads(to_json([x, np.float64(x)]))
    assert back == [x, x] and math.copysign(1, back[0]) == math.copysign(1, x)


@pytest.mark.parametrize(
    ("result", "name", "media"),
    [
        (b"raw", "result.bin", "application/octet-stream"),
        (bytearray(b"raw"), "result.bin", "application/octet-stream"),
        ("text", "result.txt", "text/plain"),
        ({"a": 1}, "result.json", "application/json"),
        (np.zeros(2), "result.json", "application/json"),
        (None, "result.json", "application/json"),
    ],
)
def test_the_kind_of_a_result_names_its_file(result: Any, name: str, media: str) -> None:
    file = result_file(result)
    assert (file.name, file.media_type) == (name, media)


def test_a_name_of_ones_own_decides_the_media_type() -> None:
    assert result_file("a,b\n", "table.csv").media_type == "text/csv"
    assert result_file(b"\x89PNG", "figure.PNG").media_type == "image/png"
    assert result_file(b"", "model.pt").media_type == "application/octet-stream"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "", "x" * 101, "ä.txt", "a\n", "-rf"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    if not name:
        assert result_file("", name).name == "result.txt"
        return
    with pytest.raises(Invalid, match="not allowed as a file name"):
        result_file("", name)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [object()]}, "result.a[0]"),
        ({1: 2}, "key 1"),
        ({"a": {1, 2}}, "result.a"),
        (np.array(["x"]), "result"),
        (np.array([1j]), "result"),
        ({"raw": b"bytes inside"}, "result.raw"),
    ],
)
def test_what_has_no_form_as_json_is_refused_by_its_place(value: Any, where: str) -> None:
    with pytest.raises(Invalid) as refused:
        to_json(value)
    assert where in str(refused.value)


def test_a_result_nested_without_end_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Invalid, match="nested deeper"):
        to_json(loop)
