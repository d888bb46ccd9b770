"""What all hospitals agree on before the first sum of a method: the type of each column and the levels of categories.

A level that one hospital lacks has its place there all the same, so that each hospital's design has the same columns.
The agreement is itself a sum (see ``union``): it tells which levels there are, not which hospital has which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from flame.methods.method import Answer, Method, Question, Summary
from flame.methods.union import CHUNK_BYTES, chunks_text, sketch, text_chunks, union
from flame.model.errors import (
    HasInfinite,
    HasMissing,
    Invalid,
    MixedTypes,
    NotNumeric,
    OutOfRange,
    TooManyLevels,
    UnknownLevel,
)
from flame.sdk.table import Table

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Missing = Literal["drop", "error"]
Kind = Literal["number", "category", "either", "label"]
Levels = tuple[str, ...]
Layout = Mapping[str, Levels | None]
"""For each column its levels in their order, or None for a column of numbers."""

MAX_LEVELS = 100
"""Different values that one hospital's category may have."""
_CHUNKS = 6
_CELLS = 160
_MAX_CELLS = 5120

Inner = TypeVar("Inner")


@dataclass(frozen=True)
class Variable:
    """A column that a method reads. ``either``: numbers are numbers and text is a category, as the data have it.
    ``label``: which rows belong together, within a hospital; its values are told to nobody."""

    name: str
    kind: Kind = "either"
    levels: Levels = ()
    """Declared levels: nothing has to be agreed, and no other is accepted."""
    low: float | None = None
    high: float | None = None
    """A plausible range of numbers: what lies outside is in another unit, or a code."""


def merged(variables: Sequence[Variable]) -> tuple[Variable, ...]:
    """One entry a column. Raises Invalid when a column is to be a number and a category at once."""
    by_name: dict[str, Variable] = {}
    for variable in variables:
        known = by_name.get(variable.name, variable)
        kinds = {known.kind, variable.kind} - {"either"}
        if len(kinds) > 1:
            raise Invalid(f"The column '{variable.name}' is used as a number and as a category.")
        kind: Kind = kinds.pop() if kinds else "either"
        by_name[variable.name] = replace(known, kind=kind, levels=known.levels or variable.levels)
    return tuple(by_name.values())


@dataclass(frozen=True)
class Rows:
    """A hospital's table under the agreed layout: numbers with NaN, categories as codes with -1 where missing."""

    n: int
    numbers: Mapping[str, Floats]
    codes: Mapping[str, Codes]
    levels: Mapping[str, Levels]

    def present(self, name: str) -> NDArray[np.bool_]:
        """Where the column has a value."""
        if name in self.codes:
            return np.asarray(self.codes[name] >= 0)
        return np.asarray(~np.isnan(self.numbers[name]))

    def complete(self, names: Sequence[str]) -> NDArray[np.bool_]:
        kept = np.ones(self.n, dtype=np.bool_)
        for name in names:
            kept &= self.present(name)
        return kept

    def take(self, kept: NDArray[Any]) -> Rows:
        return Rows(
            int(kept.sum()),
            {name: column[kept] for name, column in self.numbers.items()},
            {name: column[kept] for name, column in self.codes.items()},
            self.levels,
        )


class Site:
    """A hospital's columns as they are, and under a layout once there is one."""

    def __init__(self, table: Table, variables: Sequence[Variable], missing: Missing) -> None:
        self.n = table.rows
        self._variables = tuple(variables)
        self._columns: dict[str, Floats | list[str | None]] = {}
        for variable in variables:
            column = _column(table, variable.name)
            if isinstance(column, list):
                if variable.kind == "number":
                    raise NotNumeric(variable.name)
            else:
                _check_range(column, variable)
            if missing == "error" and _absent(column).any():
                raise HasMissing(variable.name)
            self._columns[variable.name] = column
        self._kinds = {v.name: v.kind for v in variables}
        self._levels = {v.name: self._levels_of(v) for v in variables if v.kind in ("category", "either")}
        self._labels = {v.name: _labels(self._columns[v.name]) for v in variables if v.kind == "label"}
        self._under: tuple[dict[str, Levels | None], Rows] | None = None

    def agreement(self, cells: int) -> Summary:
        """Which columns are text or numbers here, and a sketch of the levels."""
        columns = [self._columns[v.name] for v in self._variables]
        keys = [
            bytes([1 + index]) + level.encode()
            for index, v in enumerate(self._variables)
            for level in self._levels.get(v.name, ())
            if v.kind == "category" or isinstance(self._columns[v.name], list)
        ]
        return {
            "n": self.n,
            "text": np.array([isinstance(c, list) for c in columns], dtype=np.int64),
            "numeric": np.array([not isinstance(c, list) and not _absent(c).all() for c in columns], dtype=np.int64),
            "levels": sketch(text_chunks(keys, _CHUNKS), cells),
        }

    def rows(self, layout: Layout) -> Rows:
        """The table under the agreed layout, made once. Raises UnfitData for a column that does not fit it."""
        if self._under is not None and self._under[0] == layout:
            return self._under[1]
        numbers: dict[str, Floats] = {}
        codes: dict[str, Codes] = dict(self._labels)
        levels: dict[str, Levels] = {}
        for name, agreed in layout.items():
            column = self._columns[name]
            is_number = not isinstance(column, list) and not _absent(column).all()
            if agreed is not None and self._kinds[name] == "either" and is_number:
                raise MixedTypes(name)
            if agreed is None:
                if isinstance(column, list):
                    raise MixedTypes(name)
                numbers[name] = column
            else:
                levels[name] = tuple(agreed)
                codes[name] = _codes(name, self._texts(name), levels[name])
        self._under = (dict(layout), Rows(self.n, numbers, codes, levels))
        return self._under[1]

    def _levels_of(self, variable: Variable) -> Levels:
        column = self._columns[variable.name]
        if variable.kind == "either" and not isinstance(column, list):
            return ()
        found = sorted({text for text in self._texts(variable.name) if text is not None})
        if variable.levels and set(found) - set(variable.levels):
            raise UnknownLevel(variable.name)
        if len(found) > MAX_LEVELS or any(len(t.encode()) >= _CHUNKS * CHUNK_BYTES or t.endswith("\0") for t in found):
            raise TooManyLevels(variable.name)
        return tuple(found)

    def _texts(self, name: str) -> list[str | None]:
        column = self._columns[name]
        if isinstance(column, list):
            return [text or None for text in column]
        distinct, where = np.unique(column, return_inverse=True)
        if len(distinct) > MAX_LEVELS + 1:
            raise TooManyLevels(name)
        names = [level_name(value) for value in distinct.tolist()]
        return [names[i] for i in where]


@dataclass(frozen=True)
class Agreement(Generic[Inner]):
    """Where a method stands: without a layout, or inside."""

    inner: Inner | None = None
    layout: Layout | None = None
    cells: int = _CELLS
    rounds: int = 0
    contributors: int = 0


@dataclass(frozen=True)
class Taken:
    """What the platform knows of the run when it ends."""

    rounds: int
    contributors: int


class Agreed(Method[Site, Agreement[Inner], Answer]):
    """A method whose hospitals agree on a layout first. Implement the five below, as for ``Method``.

    ``variables``: the columns that are read. ``missing``: "drop" leaves incomplete rows out and counts them, "error"
    refuses them.
    """

    variables: tuple[Variable, ...]
    missing: Missing = "drop"

    @abstractmethod
    def begin(self, layout: Layout) -> Inner:
        """The state once the layout is known."""

    @abstractmethod
    def ask(self, state: Inner) -> Question | None: ...

    @abstractmethod
    def answer(self, rows: Rows, question: Question) -> Summary: ...

    @abstractmethod
    def learn(self, state: Inner, total: Summary, contributors: int) -> Inner: ...

    @abstractmethod
    def conclude(self, state: Inner, taken: Taken) -> Answer: ...

    # --- as a Method ------------------------------------------------------------------------------------------------

    def prepare(self, table: Table) -> Site:
        if len(self.variables) > 250:
            raise Invalid(f"{len(self.variables)} columns are more than the 250 that one analysis may read.")
        return Site(table, self.variables, self.missing)

    def start(self) -> Agreement[Inner]:
        open_ones = [v for v in self.variables if v.kind != "label"]
        if all(v.kind == "number" or (v.kind == "category" and v.levels) for v in open_ones):
            layout = {v.name: None if v.kind == "number" else v.levels for v in open_ones}
            return Agreement(self.begin(layout), layout)
        return Agreement()

    def question(self, state: Agreement[Inner]) -> Question | None:
        if state.layout is None:
            return {"agree": state.cells}
        assert state.inner is not None
        asked = self.ask(state.inner)
        return None if asked is None else {"layout": _sent(state.layout), **asked}

    def local(self, data: Site, question: Question) -> Summary:
        if "agree" in question:
            return data.agreement(int(question["agree"]))
        return self.answer(data.rows(_received(question["layout"])), question)

    def update(self, state: Agreement[Inner], total: Summary, contributors: int) -> Agreement[Inner]:
        state = replace(state, rounds=state.rounds + 1, contributors=contributors)
        if state.layout is not None:
            assert state.inner is not None
            return replace(state, inner=self.learn(state.inner, total, contributors))
        found = union(np.asarray(total["levels"]))
        if found is None:
            if state.cells >= _MAX_CELLS:
                raise Invalid(
                    "The categories have more different levels than can be agreed on.",
                    next_step="Declare their levels, group rare ones, or leave a column out.",
                )
            return replace(state, cells=state.cells * 4)
        layout = self._layout(total, chunks_text(found))
        return replace(state, layout=layout, inner=self.begin(layout))

    def result(self, state: Agreement[Inner]) -> Answer:
        assert state.inner is not None  # there is no result before the last question
        return self.conclude(state.inner, Taken(state.rounds, state.contributors))

    def _layout(self, total: Summary, keys: Sequence[bytes]) -> Layout:
        layout: dict[str, Levels | None] = {}
        for index, variable in enumerate(self.variables):
            if variable.kind == "label":
                continue
            text, numeric = int(total["text"][index]), int(total["numeric"][index])
            found = [key[1:].decode() for key in keys if key[0] == 1 + index]
            if variable.kind == "number" or (variable.kind == "either" and text <= numeric):
                layout[variable.name] = None  # a hospital with text refuses, and is named by its own error
            else:
                if variable.levels and set(found) - set(variable.levels):
                    raise UnknownLevel(variable.name)
                layout[variable.name] = variable.levels or ordered_levels(found)
        return layout


def level_name(value: float) -> str | None:
    """How a number is written as a level: 2.0 is "2"."""
    if value != value:
        return None
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def ordered_levels(levels: Sequence[str]) -> Levels:
    """Numbers by size, text by letters."""
    try:
        return tuple(sorted(levels, key=lambda text: (float(text), text)))
    except ValueError:
        return tuple(sorted(levels))


def read_ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``column=low:high`` for each column. Raises Invalid."""
    ranges = {}
    for text in texts:
        name, _, bounds = text.rpartition("=")
        low, colon, high = bounds.partition(":")
        try:
            ranges[name] = (float(low), float(high))
        except ValueError:
            colon = ""
        if not name or not colon or not ranges[name][0] < ranges[name][1]:
            raise Invalid(f"The range {text[:100]!r} is not COLUMN=LOW:HIGH.", next_step="Write it as age=0:120.")
    return ranges


def with_ranges(variables: Sequence[Variable], ranges: Mapping[str, tuple[float, float]]) -> tuple[Variable, ...]:
    unknown = ranges.keys() - {v.name for v in variables}
    if unknown:
        raise Invalid(f"A range is given for '{sorted(unknown)[0]}', which the analysis does not read.")
    return tuple(
        replace(v, low=ranges[v.name][0], high=ranges[v.name][1]) if v.name in ranges else v for v in variables
    )


def _column(table: Table, name: str) -> Floats | list[str | None]:
    column = table[name]
    if isinstance(column, list):
        if all(text is None or text == "" for text in column):
            return np.full(len(column), np.nan)  # an empty column has no type
        return column
    numbers = np.asarray(column, dtype=np.float64)
    if np.isinf(numbers).any():
        raise HasInfinite(name)
    return numbers


def _absent(column: Floats | list[str | None]) -> NDArray[np.bool_]:
    if isinstance(column, list):
        return np.array([text is None or text == "" for text in column], dtype=np.bool_)
    return np.asarray(np.isnan(column))


def _check_range(column: Floats, variable: Variable) -> None:
    if variable.low is None or variable.high is None:
        return
    if ((column < variable.low) | (column > variable.high)).any():
        raise OutOfRange(variable.name)


def _labels(column: Floats | list[str | None]) -> Codes:
    absent = _absent(column)
    values = np.array([str(value) for value in column])
    return np.where(absent, -1, np.unique(values, return_inverse=True)[1]).astype(np.intp)


def _codes(name: str, texts: Sequence[str | None], levels: Levels) -> Codes:
    known: dict[str | None, int] = {level: code for code, level in enumerate(levels)}
    known[None] = -1
    try:
        return np.array([known[text] for text in texts], dtype=np.intp)
    except KeyError:
        raise UnknownLevel(name) from None


def _sent(layout: Layout) -> dict[str, Any]:
    return {"names": list(layout), "levels": [None if v is None else list(v) for v in layout.values()]}


def _received(sent: Mapping[str, Any]) -> dict[str, Levels | None]:
    return {
        name: None if levels is None else tuple(levels)
        for name, levels in zip(sent["names"], sent["levels"], strict=True)
    }
