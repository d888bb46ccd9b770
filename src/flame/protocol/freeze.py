"""How the locked state of an analysis becomes its manifest: one function, used by the hub and by whoever signs.

Both sides feed it what they see; a signature is given only when the two documents are the same bytes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flame.model.errors import Invalid, Malformed
from flame.model.manifest import (
    VERSION,
    CodeFile,
    DataRequest,
    Environment,
    Manifest,
    Parameter,
    Participant,
    Recipient,
    Release,
    Researcher,
    Resources,
    check_path,
    format_time,
    parse_time,
)

__all__ = ["AUTHOR_FILE", "LockedState", "format_time", "freeze", "parse_time", "read_author_file"]

AUTHOR_FILE = "flame.toml"
DEFAULT_DAYS = 90
MIB = 1 << 20
MAX_AUTHOR_FILE = MIB

DEFAULT_RELEASES = (
    Release("*", "object", 8 * MIB, 1000, "clear", "auto"),
    Release("*", "log", MIB, 1000, "clear", "auto"),
    Release("*", "final", 64 * MIB, 16, "clear", "hold"),
)
"""What a program without ``flame.toml`` may ask for; its final result waits for a steward."""

_TABLES = {"analysis", "data", "parameters", "releases", "resources", "recipients"}


@dataclass(frozen=True)
class LockedState:
    """What an analysis is made of at the moment it is locked."""

    analysis: str
    project: str
    title: str
    created: str
    """ISO 8601, UTC, seconds, ``Z``."""
    code: Sequence[CodeFile]
    entrypoint: str
    arguments: Sequence[str]
    environment: Environment
    participants: Sequence[Participant]
    researcher: Researcher
    people: Mapping[str, Recipient] = field(default_factory=dict)
    """Possible recipients by user name; the researcher's own name is among them."""
    author_file: bytes | None = None
    """The content of ``flame.toml``, if the program has one."""


def freeze(state: LockedState) -> Manifest:
    """The manifest of a locked analysis.

    Raises Invalid for an author's file that says something impossible, naming table and key.
    """
    author = _parse(state.author_file)
    analysis = _table(author, "analysis", {"purpose", "days", "runs_max", "title"})
    try:
        manifest = Manifest(
            version=VERSION,
            analysis=state.analysis,
            project=state.project,
            title=_typed(analysis, "analysis", "title", str, state.title),
            purpose=_typed(analysis, "analysis", "purpose", str, ""),
            created=state.created,
            expires=_expiry(state.created, _typed(analysis, "analysis", "days", int, DEFAULT_DAYS)),
            code=tuple(sorted(state.code, key=lambda f: f.path)),
            entrypoint=check_path(state.entrypoint),
            arguments=tuple(state.arguments),
            environment=state.environment,
            participants=tuple(sorted(state.participants, key=lambda p: p.node)),
            runs_max=_typed(analysis, "analysis", "runs_max", int, 1),
            data=_data(author),
            parameters=_parameters(author),
            releases=_releases(author),
            resources=_resources(author),
            recipients=_recipients(author, state),
            researcher=state.researcher,
        )
        return Manifest.from_document(manifest.document())  # what no node would read is not locked either
    except Malformed as error:
        raise Invalid(f"The analysis cannot be locked: {error.message}", next_step=error.next_step) from None


def read_author_file(content: bytes) -> dict[str, Any]:
    """``flame.toml`` parsed; raises Invalid with line and column."""
    return _parse(content)


def _parse(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    if len(content) > MAX_AUTHOR_FILE:
        raise Invalid(f"{AUTHOR_FILE} has {len(content)} bytes; at most {MAX_AUTHOR_FILE} are read.")
    try:
        parsed = tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise Invalid(f"{AUTHOR_FILE} is nested too deeply.") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise Invalid(f"{AUTHOR_FILE} cannot be read: {error}") from None
    if unknown := sorted(set(parsed) - _TABLES):
        raise Invalid(
            f"{AUTHOR_FILE} has the unknown table '{unknown[0]}'.", next_step=f"Known: {', '.join(sorted(_TABLES))}."
        )
    return parsed


def _table(author: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    table = author.get(name, {})
    if not isinstance(table, dict):
        raise Invalid(f"{AUTHOR_FILE}: '{name}' is not a table.")
    return _known(table, name, known)


def _rows(author: Mapping[str, Any], name: str, known: set[str]) -> list[Mapping[str, Any]] | None:
    if name not in author:
        return None
    rows = author[name]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Invalid(f"{AUTHOR_FILE}: '{name}' is written as [[{name}]].")
    return [_known(row, name, known) for row in rows]


def _known(table: Mapping[str, Any], where: str, known: set[str]) -> Mapping[str, Any]:
    if unknown := sorted(set(table) - known):
        raise Invalid(
            f"{AUTHOR_FILE}: '{where}' has the unknown key '{unknown[0]}'.",
            next_step=f"Known: {', '.join(sorted(known))}.",
        )
    return table


def _typed(table: Mapping[str, Any], where: str, key: str, kind: Any, default: Any) -> Any:
    value = table.get(key, default)
    if value is None:
        raise Invalid(f"{AUTHOR_FILE}: {where}.{key} is missing.", next_step=f"Set '{key}' in [[{where}]].")
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        raise Invalid(f"{AUTHOR_FILE}: {where}.{key} is {value!r}, which is not of the right type.")
    return value


def _texts(table: Mapping[str, Any], where: str, key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        name = f"{where}.{key}" if where else key
        raise Invalid(f"{AUTHOR_FILE}: {name} is not a list of texts.", next_step=f'Write {key} = ["...", "..."].')
    return tuple(value)


def _expiry(created: str, days: int) -> str:
    if not 1 <= days <= 3650:
        raise Invalid(f"{AUTHOR_FILE}: analysis.days is {days}; between 1 and 3650 are allowed.")
    try:
        return format_time(parse_time(created) + timedelta(days=days))
    except OverflowError:
        raise Invalid(f"{AUTHOR_FILE}: analysis.days is {days}; the calendar ends before.") from None


def _data(author: Mapping[str, Any]) -> tuple[DataRequest, ...]:
    rows = _rows(author, "data", {"node", "source", "kind", "columns", "min_rows"})
    if rows is None:
        return (DataRequest("*", "data", "table", (), 0),)
    return tuple(
        DataRequest(
            _typed(row, "data", "node", str, "*"),
            _typed(row, "data", "source", str, "data"),
            _typed(row, "data", "kind", str, "table"),
            _texts(row, "data", "columns"),
            _typed(row, "data", "min_rows", int, 0),
        )
        for row in rows
    )


def _parameters(author: Mapping[str, Any]) -> tuple[Parameter, ...]:
    rows = _rows(author, "parameters", {"name", "type", "default", "options", "range"}) or []
    return tuple(
        Parameter(
            _typed(row, "parameters", "name", str, None),
            _typed(row, "parameters", "type", str, "text"),
            _default(row),
            _list_of(row, "options"),
            _list_of(row, "range"),
        )
        for row in rows
    )


def _default(row: Mapping[str, Any]) -> Any:
    if "default" not in row:
        raise Invalid(
            f"{AUTHOR_FILE}: parameters.default of '{row.get('name')}' is missing.",
            next_step="A run that sets no value needs one.",
        )
    return row["default"]


def _list_of(row: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    values = row.get(key, [])
    if not isinstance(values, list):
        raise Invalid(f"{AUTHOR_FILE}: parameters.{key} of '{row.get('name')}' is not a list.")
    return tuple(values)


def _releases(author: Mapping[str, Any]) -> tuple[Release, ...]:
    rows = _rows(author, "releases", {"name", "kind", "max_bytes", "rounds_max", "protection", "release"})
    if rows is None:
        return DEFAULT_RELEASES
    return tuple(
        Release(
            _typed(row, "releases", "name", str, "*"),
            _typed(row, "releases", "kind", str, None),
            _typed(row, "releases", "max_bytes", int, MIB),
            _typed(row, "releases", "rounds_max", int, 100),
            _typed(row, "releases", "protection", str, "clear"),
            _typed(row, "releases", "release", str, "hold" if row.get("kind") in ("final", "object") else "auto"),
        )
        for row in rows
    )


def _resources(author: Mapping[str, Any]) -> Resources:
    table = _table(author, "resources", {"cpu", "memory_mb", "disk_mb", "processes", "runtime_minutes"})
    cpu = table.get("cpu", 1)
    if isinstance(cpu, bool) or not isinstance(cpu, int | float):
        raise Invalid(f"{AUTHOR_FILE}: resources.cpu is not a number.")
    return Resources(
        cpu,
        _typed(table, "resources", "memory_mb", int, 1024) * MIB,
        _typed(table, "resources", "disk_mb", int, 256) * MIB,
        _typed(table, "resources", "processes", int, 64),
        _typed(table, "resources", "runtime_minutes", int, 60) * 60,
    )


def _recipients(author: Mapping[str, Any], state: LockedState) -> tuple[Recipient, ...]:
    names = _texts(author, "", "recipients") or (state.researcher.name,)
    if unknown := [name for name in names if name not in state.people]:
        raise Invalid(
            f"{AUTHOR_FILE} names the recipient '{unknown[0]}', who has no result key at the hub.",
            next_step="Ask them to run `flame keys new`, or take the name out.",
        )
    return tuple(state.people[name] for name in sorted(set(names)))
