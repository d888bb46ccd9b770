"""``sources.toml``: which files this hospital offers, under which name, to which projects. By default: to none.

[[source]]
name = "data"                  # what an analysis asks for
id = "breast-cancer-2026"      # what an approval fixes; NAME-FILE if left out
path = "/srv/flame/cohort.csv" # a .csv or .parquet file, or a folder (for programs that read files or FHIR)
projects = ["<project id>"]    # or "*": every project
public = false
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from flame.model.errors import Conflict, Invalid, NotAllowed, NotFound
from flame.node._toml import line_of, read_toml, refuse_unknown

FILE: Final = "sources.toml"
ANY: Final = "*"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_KEYS: Final = ("name", "id", "path", "projects", "public")
_KINDS: Final[dict[str, Literal["csv", "parquet", "folder"]]] = {".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    id: str
    path: Path
    kind: Literal["csv", "parquet", "folder"]
    projects: tuple[str, ...]
    """Ids of projects; ``*`` alone: every project."""
    public: bool
    """Public demonstration data: what protects patients then warns instead of refusing."""

    def is_for(self, project: str) -> bool:
        return ANY in self.projects or project in self.projects


@dataclass(frozen=True, slots=True)
class Sources:
    """All sources of a node."""

    all: tuple[Source, ...]

    def granted(self, name: str, project: str) -> Source:
        """The source that a project gets under a name; one granted to it by its id goes before one for everybody.

        Raises NotFound (no source of that name), NotAllowed (not granted to the project).
        """
        named = [source for source in self.all if source.name == name]
        if not named:
            raise NotFound(
                f"This node has no source named '{name[:64]}'.",
                next_step="Add it with `flame node data add`, then repeat the request.",
                source=name,
            )
        found = [s for s in named if project in s.projects] or [s for s in named if ANY in s.projects]
        if not found:
            raise NotAllowed(
                f"The source '{name[:64]}' is not granted to this project.",
                next_step=f"If it should be: `flame node data grant {name[:64]} {project}`.",
                source=name,
            )
        return found[0]


def read_sources(path: Path) -> Sources:
    """Raises Invalid for anything but [[source]] with known keys, naming the line; Conflict for what is said twice."""
    table, text = read_toml(path)
    refuse_unknown(path.name, text, table, ["source"])
    rows = table.get("source", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Invalid(f"{path.name}, line {line_of(text, 'source')}: sources are written as [[source]].")
    sources = tuple(_source(row, nth, path, text) for nth, row in enumerate(rows))
    _check_unique(sources, path.name)
    return Sources(sources)


def write_sources(path: Path, sources: Sources) -> None:
    """Write the file anew; it is replaced at once or not at all. Raises Invalid, Conflict before anything is written."""
    for source in sources.all:
        make_source(source.name, source.id, source.path, source.projects, source.public)
    _check_unique(sources.all, path.name)
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(_row(source) for source in sources.all), encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)


def make_source(name: str, id: str, path: Path, projects: tuple[str, ...], public: bool) -> Source:
    """A checked source. Raises Invalid with the fields key and what to write."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"The source's name {name[:64]!r} is not allowed.",
            next_step="Use letters, digits, '.', '_', '-'.",
            key="name",
        )
    if not _ID.fullmatch(id):
        raise Invalid(
            f"The source's id {id[:64]!r} is not allowed.", next_step="Use letters, digits, '.', '_', '-'.", key="id"
        )
    kind = "folder" if path.is_dir() else _KINDS.get(path.suffix.lower())
    if kind is None:
        raise Invalid(
            f"The file of source '{name}' ends in neither .csv nor .parquet.",
            next_step="Export it to one of them, or name a folder of files.",
            key="path",
        )
    if not path.is_absolute() or ".." in PurePosixPath(path).parts or not str(path).isprintable():
        raise Invalid(
            f"The path of source '{name}' is not absolute and plain.",
            next_step="Write the whole path without '..'.",
            key="path",
        )
    if (ANY in projects and len(projects) > 1) or not all(p == ANY or _ID.fullmatch(p) for p in projects):
        raise Invalid(
            f"The projects of source '{name}' are not a list of ids.",
            next_step='Write ids, or "*" alone.',
            key="projects",
        )
    return Source(name, id, path, kind, projects, public)


def default_id(name: str, path: Path) -> str:
    """The id of a source that was given none: the same for the same name and file."""
    return f"{name}-{path.stem}"


def _source(row: dict[str, Any], nth: int, path: Path, text: str) -> Source:
    refuse_unknown(path.name, text, row, _KEYS, nth)
    place = f"{path.name}, [[source]] number {nth + 1}"
    if isinstance(row.get("name"), str) and isinstance(row.get("path"), str):
        row = {"id": default_id(row["name"], Path(row["path"])), **row}
    for key in ("name", "id", "path"):
        if not isinstance(row.get(key), str):
            raise Invalid(f"{place}: '{key}' is missing or no text.", next_step=f'Write {key} = "…".', key=key)
    projects = row.get("projects", [])
    listed = [projects] if projects == ANY else projects
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise Invalid(
            f"{place}: 'projects' is no list of ids.",
            next_step='Write projects = ["…"], or projects = "*".',
            key="projects",
        )
    public = row.get("public", False)
    if not isinstance(public, bool):
        raise Invalid(f"{place}: 'public' is not true or false.", next_step="Write it without quotes.", key="public")
    try:
        return make_source(row["name"], row["id"], Path(row["path"]), tuple(listed), public)
    except Invalid as error:
        raise Invalid(f"{place}: {error.message}", next_step=error.next_step, **error.fields) from None


def _check_unique(sources: tuple[Source, ...], file: str) -> None:
    ids: set[str] = set()
    grants: set[tuple[str, str]] = set()
    for source in sources:
        if source.id in ids:
            raise Conflict(
                f"{file} has two sources with the id '{source.id}'.", next_step="Give one of them another id."
            )
        ids.add(source.id)
        for grant in ((source.name, project) for project in source.projects):
            if grant in grants:
                raise Conflict(
                    f"{file} grants two sources named '{grant[0]}' to the project {grant[1]}.",
                    next_step="Take one grant out.",
                )
            grants.add(grant)


def _row(source: Source) -> str:
    import json  # a JSON text without escaped surrogates is a TOML text too

    projects = json.dumps(ANY) if source.projects == (ANY,) else json.dumps(list(source.projects))
    return (
        f"[[source]]\nname = {json.dumps(source.name)}\nid = {json.dumps(source.id)}\n"
        f"path = {json.dumps(str(source.path), ensure_ascii=False)}\nprojects = {projects}\npublic = {str(source.public).lower()}\n"
    )
