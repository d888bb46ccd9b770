"""The published grid of event times, and sums over the patients at risk at each of them.

Exact: the union of all hospitals' event times, found by a sum (``union``). Binned: times rounded up to multiples of a
width, for where an exact time would point at a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flame.methods.agreement import Rows
from flame.methods.union import chunks_number, number_chunks, sketch, union
from flame.model.errors import Invalid, NotBinary, OutOfDomain

Floats = NDArray[np.float64]
Values = NDArray[Any]
Ints = NDArray[np.int64]

FIRST_CELLS = 512
MAX_CELLS = 1 << 16


@dataclass(frozen=True)
class Lives:
    """Times and whether they ended in an event, complete rows only."""

    time: Floats
    event: NDArray[np.bool_]
    entry: Floats | None = None


def lives(rows: Rows, duration: str, event: str, bin_width: float | None, entry: str | None = None) -> Lives:
    """Raises UnfitData for an event that is not 0 or 1, a negative time, an entry that is not before the time."""
    time, ended = rows.numbers[duration], rows.numbers[event]
    if not np.isin(ended, (0.0, 1.0)).all():
        raise NotBinary(event)
    if (time < 0).any():
        raise OutOfDomain(duration)
    if bin_width:
        time = np.ceil(time / bin_width) * bin_width
    entered = None
    if entry:
        entered = rows.numbers[entry]
        if bin_width:
            entered = np.floor(entered / bin_width) * bin_width
        if (entered >= time).any():
            raise OutOfDomain(entry)
    return Lives(time, ended == 1.0, entered)


def times_sketch(found: Lives, cells: int) -> Ints:
    return sketch(number_chunks(np.unique(found.time[found.event])), cells)


def read_times(total: object, cells: int) -> Floats | int:
    """The grid, or the larger number of cells to ask for."""
    keys = union(np.asarray(total))
    if keys is None:
        if cells >= MAX_CELLS:
            raise Invalid(
                "There are more different event times than can be summed over.",
                next_step="Give bin_width, such as 30 for months of days.",
            )
        return cells * 4
    times = np.sort(chunks_number(keys))
    if not len(times):
        raise Invalid("No event was observed at any hospital: all times are censored.")
    return times


def at_risk(found: Lives, grid: Floats, values: Values) -> Values:
    """Sums of ``values`` (n, …) over those at risk at each time of the grid: entry < time of grid <= time."""
    sums = _from_the_end(np.searchsorted(grid, found.time, side="right"), values, len(grid))
    if found.entry is not None:
        sums = sums - _from_the_end(np.searchsorted(grid, found.entry, side="right"), values, len(grid))
    return sums


def at_events(found: Lives, grid: Floats, values: Values) -> Values:
    """Sums of ``values`` (n, …) over those with an event at each time of the grid."""
    out = np.zeros((len(grid), *values.shape[1:]), dtype=values.dtype)
    np.add.at(out, np.searchsorted(grid, found.time[found.event]), values[found.event])
    return out


def _from_the_end(places: NDArray[np.intp], values: Values, length: int) -> Values:
    """Row k: the sum over those whose place is beyond k."""
    out = np.zeros((length + 1, *values.shape[1:]), dtype=values.dtype)
    np.add.at(out, places, values)
    return np.asarray(np.cumsum(out[::-1], axis=0)[::-1][1:])
