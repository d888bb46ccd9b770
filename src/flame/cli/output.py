"""How the commands speak: tables for people, JSON for programs, and errors that say what happened and what to do next.

What others wrote (titles, comments, output of programs) is printed without control characters, so that no text can
move the cursor, change colours or rewrite what stands above it.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

from flame.model.errors import FlameError, Invalid, NotAuthenticated, NotFound, Refused, RunFailed, Unavailable

EXIT_CODES: Final[tuple[tuple[type[FlameError], int], ...]] = (
    (Invalid, 2),
    (Refused, 3),
    (NotFound, 4),
    (NotAuthenticated, 5),
    (Unavailable, 6),
    (RunFailed, 7),
)
"""What a shell sees; 1 is any other error, 130 an interruption."""


def exit_code(error: FlameError) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def plain(value: object) -> str:
    """A value as text that is safe to print in a terminal: one line, no control characters."""
    return _visible(str(value), "")


def plain_lines(text: str) -> str:
    """The same for text of several lines."""
    return _visible(text, "\n\t")


class Output:
    """Where a command's result goes. ``as_json``: one JSON document on stdout, nothing else."""

    def __init__(self, as_json: bool = False, out: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out

    def document(self, document: Mapping[str, Any], title: str = "") -> None:
        """One thing and its fields, nested ones indented."""
        if self.as_json:
            self._json(document)
            return
        if title:
            self._line(plain(title))
        self._fields(document, "  " if title else "")

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], nothing: str) -> None:
        """Several things of a kind: the ``columns`` that any of them has. ``nothing``: said when there are none."""
        if self.as_json:
            self._json(list(rows))
        elif not rows:
            self._line(nothing)
        else:
            self._table(rows, [column for column in columns if any(column in row for row in rows)])

    def done(self, text: str, document: Mapping[str, Any] | None = None) -> None:
        """What was done, in a sentence; as JSON the document instead."""
        if self.as_json:
            self._json(document or {})
        else:
            self._line(plain(text))

    def text(self, text: str) -> None:
        """Text of others, such as a program's output."""
        if self.as_json:
            self._json({"text": text})
        else:
            self._line(plain_lines(text).rstrip("\n"))

    def _table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(_title(column), overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(row.get(column))) for column in columns))
        Console(file=self._out or sys.stdout, highlight=False).print(table)

    def _fields(self, document: Mapping[str, Any], indent: str) -> None:
        width = max((len(_title(key)) for key in document), default=0)
        for key, value in document.items():
            nested = [value] if isinstance(value, Mapping) else value
            if isinstance(nested, list) and nested and all(isinstance(item, Mapping) for item in nested):
                self._line(f"{indent}{plain(_title(key))}:")
                for number, item in enumerate(nested):
                    if number:
                        self._line("")
                    self._fields(item, indent + "  ")
            else:
                self._line(f"{indent}{plain(_title(key)).ljust(width)}  {_cell(value)}")

    def _json(self, document: object) -> None:
        self._line(json.dumps(document, ensure_ascii=True, indent=2))

    def _line(self, text: str) -> None:
        stream = self._out or sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()


@contextmanager
def told_errors(as_json: bool = False, err: TextIO | None = None) -> Iterator[None]:
    """Turns an error of FLAME into words on stderr and an exit code; anything else is a bug and keeps its traceback."""
    stream = err or sys.stderr
    try:
        yield
    except FlameError as error:
        stream.write(_as_json(error) if as_json else "\n".join(explained(error)) + "\n")
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        stream.write("Interrupted.\n")
        raise SystemExit(130) from None
    except BrokenPipeError:  # `flame … | head`
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - so that the interpreter's own flush at exit has a place
        raise SystemExit(0) from None


def explained(error: FlameError) -> Iterable[str]:
    """An error in up to three lines: what happened and why, what to do next, its code."""
    yield f"Error: {plain(error.message)}"
    if error.next_step:
        yield f"  What to do: {plain(error.next_step)}"
    yield f"  ({error.code})"


def _as_json(error: FlameError) -> str:
    return json.dumps({"code": error.code, "message": error.message, "nextStep": error.next_step}) + "\n"


def _title(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(key)}={_cell(item)}" for key, item in value.items()) or "–"
    return plain(value)


def _visible(text: str, keep: str) -> str:
    return "".join(c if c in keep or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)
