"""The demo's data: read without their library, divided deterministically and unevenly, no patient lost or twice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.lab import datasets
from flame.model.errors import Invalid, NotFound


def test_the_file_says_what_the_library_says() -> None:
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer()
    cohort = datasets.breast_cancer()
    assert cohort.columns == (*loaded.feature_names, datasets.OUTCOME)
    numbers = np.array(cohort.rows, dtype=float)
    np.testing.assert_array_equal(numbers[:, :-1], loaded.data)
    np.testing.assert_array_equal(numbers[:, -1], 1 - loaded.target)  # the library counts benign as 1


def test_the_division_of_the_demo() -> None:
    shares = datasets.uneven_shares(569, 3)
    assert [len(share) for share in shares] == [310, 156, 103]
    assert shares[0][:5] == [0, 1, 3, 4, 7]  # as everywhere: the order is that of a hash


@given(patients=st.integers(0, 400), hospitals=st.integers(1, 12))
def test_every_patient_is_in_exactly_one_hospital(patients: int, hospitals: int) -> None:
    shares = datasets.uneven_shares(patients, hospitals)
    assert len(shares) == hospitals
    assert sorted(row for share in shares for row in share) == list(range(patients))


def test_a_hospitals_file_keeps_every_digit(tmp_path: Path) -> None:
    cohort = datasets.breast_cancer().chosen((datasets.OUTCOME, "mean radius"))
    cohort.part([2, 0]).write(tmp_path / "data" / "one.csv")
    with (tmp_path / "data" / "one.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["malignant", "mean radius"], list(cohort.rows[2]), list(cohort.rows[0])]


@pytest.mark.parametrize("hospitals", [0, -1, 33])
def test_impossible_numbers_of_hospitals_are_refused(hospitals: int) -> None:
    with pytest.raises(Invalid, match="hospitals"):
        datasets.hospital_names(hospitals)


def test_names_are_different_and_fit_for_directories() -> None:
    names = datasets.hospital_names(datasets.MAX_HOSPITALS)
    assert len({name.lower() for name in names}) == datasets.MAX_HOSPITALS
    assert all(name.replace("-", "").isalnum() for name in names)


def test_a_header_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfage, sex\r\n1,2\r\n")
    assert datasets.columns_of(path) == ["age", "sex"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Invalid, match="UTF-8"):
        datasets.columns_of(path)
    with pytest.raises(NotFound):
        datasets.columns_of(tmp_path / "none.csv")


def test_a_semicolon_as_separator_is_said(tmp_path: Path) -> None:
    (tmp_path / "german.csv").write_text("y;age\n0;40\n")
    with pytest.raises(Invalid, match="the separator is ';', a comma is needed"):
        datasets.columns_of(tmp_path / "german.csv")
