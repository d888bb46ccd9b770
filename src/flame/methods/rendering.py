"""A result as tables: numbers and texts first, then each list of records as a table of its fields."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

MAX_ROWS = 40
"""Rows of a long table that a terminal shows; HTML and CSV have them all."""


@dataclass(frozen=True)
class Sheet:
    """One table of a result."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


def sheets(result: Any) -> Iterator[Sheet]:
    """``result`` is a dataclass of plain values, records (dataclasses) and tuples of records."""
    facts: list[tuple[Any, ...]] = []
    tables: list[Sheet] = []
    for field in dataclasses.fields(result):
        value, title = getattr(result, field.name), _words(field.name)
        if _is_record(value):
            value = (value,)
        if isinstance(value, tuple) and value and _is_record(value[0]):
            names = [f.name for f in dataclasses.fields(value[0])]
            names = [name for name in names if any(getattr(record, name) is not None for record in value)]
            rows = tuple(tuple(getattr(record, name) for name in names) for record in value)
            tables.append(Sheet(title, tuple(map(_words, names)), rows))
        elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
            width = len(value[0])
            tables.append(Sheet(title, tuple(str(j + 1) for j in range(width)), value))
        elif value is not None and value != ():
            facts.append((title, value))
    yield Sheet("", ("", ""), tuple(facts))
    yield from tables


def as_text(result: Any) -> str:
    parts = []
    for sheet in sheets(result):
        shown = [[_cell(value) for value in row] for row in sheet.rows]
        cut = len(shown) - MAX_ROWS
        if cut > 1:
            shown = shown[:MAX_ROWS]
        lines = [sheet.title[:1].upper() + sheet.title[1:]] if sheet.title else []
        header = [list(sheet.columns)] if sheet.title else []
        lines += _aligned(header + shown, [_is_number(column) for column in zip(*sheet.rows, strict=True)])
        if cut > 1:
            lines.append(f"… {cut} more rows")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_html(result: Any) -> str:
    return "\n".join(_html(sheet) for sheet in sheets(result))


def as_csv(sheet: Sheet) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(sheet.columns)
    writer.writerows([_plain(value) for value in row] for row in sheet.rows)
    return out.getvalue()


def _html(sheet: Sheet) -> str:
    parts = ["<table>"]
    if sheet.title:
        parts.append(f"<caption>{escape(sheet.title)}</caption>")
        parts.append("<tr>" + "".join(f"<th>{escape(column)}</th>" for column in sheet.columns) + "</tr>")
    for row in sheet.rows:
        parts.append("<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row) + "</tr>")
    parts.append("</table>")
    return "".join(parts)


def _aligned(rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    if not rows:
        return []
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    right = list(numeric) or [False] * len(widths)
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _is_number(column: Sequence[Any]) -> bool:
    return any(type(value) in (int, float) for value in column)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(_cell(item) for item in value)
    if _is_record(value):
        return ", ".join(f"{_words(f.name)} {_cell(getattr(value, f.name))}" for f in dataclasses.fields(value))
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, tuple | list):
        return " ".join(str(_plain(item)) for item in value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value  # a spreadsheet would read it as a formula
    return value


def _words(name: str) -> str:
    return name.replace("_", " ")
