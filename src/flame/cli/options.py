"""Options that several verbs share, and how their texts become what they mean."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flame.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from flame.lab.federation import Site

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_SHORTEST: Final = 3  # a node's name at the hub, by FLAME's API


def read_sites(texts: Sequence[str], endings: Sequence[str] = (".csv",), *, folders: bool = False) -> tuple[Site, ...]:
    """``NAME=PATH``, repeated; a folder stands for the one table in it. Raises Invalid, NotFound.

    A name of one or two characters becomes ``site-NAME``.
    """
    from flame.lab.federation import Site

    sites = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise Invalid(
                f"--site {text[:100]!r} is not NAME=PATH.",
                next_step="A name has 1 to 64 letters, digits, '-' and '_', as in --site Mainz=mainz.csv.",
            )
        named = name if len(name) >= _SHORTEST else f"site-{name}"
        sites.append(Site(named, _data(name, Path(path).expanduser(), endings, folders).absolute()))
    for number, site in enumerate(sites):
        same = [other.name for other in sites[:number] if other.name.lower() == site.name.lower()]
        if same:
            raise Invalid(
                f"Two --site have the same name: '{same[0]}' and '{site.name}' (capitals make no difference).",
                next_step="Give each hospital a name of its own.",
            )
        if site.name.lower() in ("aggregator", "hub"):
            raise Invalid(
                f"--site {site.name} has the name of another part of the federation.",
                next_step="Choose a name other than 'aggregator' and 'hub'.",
            )
    return tuple(sites)


def _data(name: str, path: Path, endings: Sequence[str], folders: bool) -> Path:
    return path if folders and path.is_dir() else _table(name, path, endings)


def read_interpreters(texts: Sequence[str]) -> dict[str, Path]:
    """``NAME=PYTHON`` as names of environments and their interpreters. Raises Invalid."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in found:
            raise Invalid(
                f"--environment {text[:100]!r} is not NAME=PYTHON, each name once.",
                next_step="Write old=/srv/env/bin/python.",
            )
        found[name] = Path(path).expanduser().absolute()
    return found


def _table(name: str, path: Path, endings: Sequence[str]) -> Path:
    if not path.exists():
        raise NotFound(f"The data of {name} are not there: {path} does not exist.", next_step="Check the path.")
    known = " or ".join(endings)
    if path.is_dir():
        tables = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and file.is_file())
        if len(tables) != 1:
            raise Invalid(
                f"The folder {path} of {name} holds {len(tables)} tables ({known}); one is needed.",
                next_step="Name the file itself.",
            )
        return tables[0]
    if path.suffix.lower() not in endings:
        raise Invalid(f"The data of {name} are not a {known} file: {path}.", next_step="Save the table in that form.")
    return path


def read_columns(text: str | None) -> tuple[str, ...]:
    """``A,B,C`` as names of columns. Raises Invalid for an empty one."""
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise Invalid(f"The list of columns {text[:100]!r} has an empty name.", next_step="Write A,B,C.")
    return names


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A polite end (SIGTERM, SIGHUP) is answered like Ctrl-C: everything that was started is ended first."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in former.items():
            signal.signal(number, action)
