"""Public clinical data that come inside an installed package, and their division over hospitals."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final

from flame.model.errors import Invalid, NotFound

OUTCOME: Final = "malignant"
COVARIATES: Final = ("mean radius", "mean texture", "mean smoothness", "mean fractal dimension")
HOSPITALS: Final = ("Aachen", "Bonn", "Cologne", "Dortmund", "Essen", "Freiburg", "Giessen", "Heidelberg")
MAX_HOSPITALS: Final = 32

_MEASURES: Final = (
    "radius", "texture", "perimeter", "area", "smoothness",
    "compactness", "concavity", "concave points", "symmetry", "fractal dimension",
)  # fmt: skip
_COLUMNS: Final = (
    *(f"mean {name}" for name in _MEASURES),
    *(f"{name} error" for name in _MEASURES),
    *(f"worst {name}" for name in _MEASURES),
)


@dataclass(frozen=True)
class Cohort:
    """A table of text fields exactly as its source has them, so that no digit is lost on the way to a hospital."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def chosen(self, columns: Sequence[str]) -> Cohort:
        """The same patients with these columns only."""
        places = [self.columns.index(name) for name in columns]
        return Cohort(tuple(columns), tuple(tuple(row[place] for place in places) for row in self.rows))

    def part(self, patients: Sequence[int]) -> Cohort:
        return Cohort(self.columns, tuple(self.rows[number] for number in patients))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(self.rows)


def breast_cancer() -> Cohort:
    """Breast Cancer Wisconsin (Diagnostic), 569 patients, with the outcome ``malignant`` (1 = malignant).

    Wolberg, Street & Mangasarian 1995, as scikit-learn ships it; its file is read without importing the library,
    whose start takes longer than the analysis. Raises NotFound where scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise NotFound(
            "The demonstration data come with scikit-learn, which is not installed.",
            next_step="Run `pip install 'flame-federated[lab]'`, or give your own files with --site NAME=FILE.csv.",
        )
    path = Path(spec.origin).parent / "datasets" / "data" / "breast_cancer.csv"
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        next(lines)  # counts and the names of the classes: 0 malignant, 1 benign
        rows = tuple((*line[:30], "1" if line[30] == "0" else "0") for line in lines)
    return Cohort((*_COLUMNS, OUTCOME), rows)


def hospital_names(hospitals: int) -> list[str]:
    """Names for so many hospitals. Raises Invalid."""
    if not 1 <= hospitals <= MAX_HOSPITALS:
        raise Invalid(
            f"{hospitals} hospitals cannot be started on one machine.",
            next_step=f"Choose between 1 and {MAX_HOSPITALS} with --hospitals.",
        )
    return [HOSPITALS[i] if i < len(HOSPITALS) else f"Hospital-{i + 1}" for i in range(hospitals)]


def uneven_shares(patients: int, hospitals: int) -> list[list[int]]:
    """Row numbers for each hospital: the second gets half as many as the first, the third a third, and so on.

    The order of the patients is that of a hash of their row numbers: mixed, and the same everywhere and always.
    """
    order = sorted(range(patients), key=lambda row: hashlib.sha256(str(row).encode()).digest())
    weights = [1 / (1 + place) for place in range(hospitals)]
    edges = [round(patients * sum(weights[:place]) / sum(weights)) for place in range(hospitals + 1)]
    return [sorted(order[start:end]) for start, end in pairwise(edges)]


def columns_of(path: Path) -> list[str]:
    """The header of a CSV file. Raises NotFound, Invalid."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = [name.strip() for name in next(csv.reader(file), [])]
    except OSError as error:
        raise NotFound(
            f"The file {path} cannot be read: {error.strerror}.", next_step="Give an existing CSV file."
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise Invalid(f"{path} is not a CSV file in UTF-8.", next_step="Save the table as CSV (UTF-8).") from None
    if len(names) == 1 and ";" in names[0]:
        raise Invalid(f"{path}: the separator is ';', a comma is needed.", next_step="Save the table with commas.")
    return names
