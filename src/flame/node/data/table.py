"""Typed columns from text: how a CSV's columns become numbers. Pure, deterministic, the same at every hospital.

Empty fields and NA, N/A, n/a, NaN, nan, NULL, null, None and <NA> are missing. A column is

* ``bool`` when every field is true or false (in any of the usual spellings) and none is missing,
* ``int64`` when every field is a whole number of at most 18 digits and none is missing,
* ``float64`` when every field that is not missing is a number, or a truth value where some are missing; missing is NaN,
* ``text`` otherwise; missing is None.

A number with a leading zero (``01067``) is a code, so its column is text. So are ``inf`` and decimal commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

MISSING: Final = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"})
TRUE: Final = frozenset({"true", "True", "TRUE"})
FALSE: Final = frozenset({"false", "False", "FALSE"})
INTEGER: Final = r"[+-]?(0|[1-9][0-9]{0,17})"
NUMBER: Final = r"[+-]?((0|[1-9][0-9]{0,307})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"
"""What would not fit into a float64 is found afterwards, and makes the column text."""

_INTEGER: Final = re.compile(INTEGER)
_NUMBER: Final = re.compile(NUMBER)

Column = Any  # an array of float64, int64 or bool, or a list of text and None


def typed_column(fields: Sequence[str]) -> Column:
    """A column's fields (blanks around them removed) in its type."""
    import numpy as np

    present = [field for field in fields if field not in MISSING]
    complete = len(present) == len(fields)
    if present and all(field in TRUE or field in FALSE for field in present):
        flags = [field in TRUE if field not in MISSING else None for field in fields]
        return np.array(flags, dtype="?" if complete else "f8")
    if present and complete and all(map(_INTEGER.fullmatch, present)):
        return np.array([int(field) for field in present], dtype="i8")
    if all(map(_NUMBER.fullmatch, present)):
        numbers = np.array([float("nan") if field in MISSING else float(field) for field in fields], dtype="f8")
        if not _overflowed(numbers):
            return numbers
    return [None if field in MISSING else field for field in fields]


def type_name(column: Column) -> str:
    return "text" if isinstance(column, list) else {"b": "bool", "i": "int64", "f": "float64"}[column.dtype.kind]


def _overflowed(numbers: NDArray[Any]) -> bool:
    import numpy as np

    return bool(np.isinf(numbers).any())
