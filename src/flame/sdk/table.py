"""A table as a program sees it: named columns of equal length."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flame.model.errors import Invalid, NotFound, NotNumeric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Column = Any  # a one-dimensional NumPy array, or a list of text (None where it is missing)


class Table(Mapping[str, Column]):
    """Columns by name: numbers as NumPy arrays (missing: NaN), text as ``list[str | None]``.

    Raises Invalid when the columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = dict(columns)
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise Invalid(f"The columns of a table differ in length: {lengths}.")
        self.rows: int = next(iter(lengths.values()), 0)

    def __getitem__(self, name: str) -> Column:
        try:
            return self._columns[name]
        except KeyError:
            raise NotFound(
                f"The table has no column '{name}'.", next_step=f"It has: {', '.join(self._columns) or 'none'}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        """Shape and names, never a value: a table printed or logged by mistake tells nothing about a patient."""
        return f"<Table of {self.rows} rows: {', '.join(self._columns)}>"

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """One column as float64, shape (rows,). Raises NotFound, or NotNumeric when it holds text."""
        import numpy as np

        column = self[name]
        if isinstance(column, list):
            raise NotNumeric(name)
        return np.asarray(column, dtype=np.float64)

    def matrix(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """These columns side by side, shape (rows, len(columns)), float64, missing values as NaN.

        Raises NotFound for a column that is not there, NotNumeric for one that holds text.
        """
        import numpy as np

        out = np.empty((self.rows, len(columns)), dtype=np.float64)
        for j, name in enumerate(columns):
            out[:, j] = self.numbers(name)
        return out

    def to_csv(self) -> bytes:
        """The table as UTF-8 CSV with a header; a missing value is an empty cell; numbers read back as they were."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self._columns)
        plain = [column if isinstance(column, list) else column.tolist() for column in self._columns.values()]
        for row in zip(*plain, strict=True):
            writer.writerow(["" if cell is None or cell != cell else _cell(cell) for cell in row])
        return out.getvalue().encode()


def _cell(value: object) -> object:
    return int(value) if isinstance(value, bool) else value
