"""The bracket query language of FLAME's clients, parsed strictly: what is not known is refused, never dropped.

``filter[name]=~x~  filter[analysis.projectId]=…  page[limit]=50  page[offset]=0  sort=-updatedAt,name
include=node,project  fields=%2Bemail  fields=id,name``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from flame.hub.problems import issue
from flame.model.errors import Invalid

MAX_LIMIT: Final = 50
_KEY = re.compile(r"(filter|page|fields|filters)\[([A-Za-z0-9_.]{1,64})\]|(sort|include|fields|page|filter)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(\.[A-Za-z][A-Za-z0-9]*)?")

Operator = Literal["eq", "in", "contains", "starts", "ends", "lt", "le", "gt", "ge"]


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition. `path` is a field, or relation.field."""

    path: str
    operator: Operator
    values: tuple[str | None, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a resource lets itself be asked."""

    fields: frozenset[str]
    filters: frozenset[str] = frozenset()
    sorts: frozenset[str] = frozenset()
    includes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Relation -> what may be filtered by there."""
    related: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Relation -> which fields of it may be asked for."""
    limit: int = MAX_LIMIT


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields are asked for: `added` to the usual ones, or `only` these."""

    added: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Query:
    filters: tuple[Filter, ...] = ()
    sort: tuple[tuple[str, bool], ...] = ()
    """(field, descending)"""
    include: tuple[str, ...] = ()
    added: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    related: Mapping[str, Fields] = field(default_factory=dict)
    """Relation -> the fields asked for of what is included."""
    limit: int = MAX_LIMIT
    offset: int = 0

    def value(self, path: str) -> str | None:
        """The value of a plain equality filter, if there is one."""
        return next(
            (f.values[0] for f in self.filters if f.path == path and f.operator == "eq" and not f.negated), None
        )


def parse(items: Iterable[tuple[str, str]], known: Vocabulary) -> Query:
    """Read a query string's pairs. Raises Invalid with an entry in `issues` for each key that is not known."""
    reader = _Reader(known)
    for key, value in items:
        reader.take(key, value)
    return reader.query()


class _Reader:
    def __init__(self, known: Vocabulary) -> None:
        self.known = known
        self.issues: list[dict[str, Any]] = []
        self.filters: list[Filter] = []
        self.sort: list[tuple[str, bool]] = []
        self.include: list[str] = []
        self.fields: dict[str, tuple[set[str], set[str]]] = {}
        """Relation, or "" for the resource itself -> (added, only)."""
        self.limit, self.offset = known.limit, 0

    def query(self) -> Query:
        if self.issues:
            names = ", ".join(".".join(i["path"]) for i in self.issues)
            raise Invalid(f"The query is not understood: {names}.", issues=self.issues)
        chosen = {
            relation: Fields(frozenset(added), frozenset(only | added) if only else None)
            for relation, (added, only) in self.fields.items()
        }
        own = chosen.pop("", Fields())
        return Query(
            tuple(self.filters),
            tuple(self.sort),
            tuple(dict.fromkeys(self.include)),
            own.added,
            own.only,
            chosen,
            self.limit,
            self.offset,
        )

    def take(self, key: str, value: str) -> None:
        match = _KEY.fullmatch(key)
        if not match or len(value) > 4096 or "\0" in value:
            self._refuse(key[:64].replace("\0", ""), "is not known")
            return
        bracket, name, plain = match.groups()
        if bracket in ("filter", "filters"):
            self._filter(name, value)
        elif bracket == "page":
            self._page(name, value)
        elif bracket == "fields" or plain == "fields":
            self._fields(name, value)
        elif plain == "sort":
            self._sort(value)
        elif plain == "include":
            self._include(value)
        else:
            self._refuse(key, "needs a name in brackets")

    def _filter(self, name: str, value: str) -> None:
        relation, _, inner = name.rpartition(".")
        allowed = self.known.includes.get(relation, frozenset()) if relation else self.known.filters
        if not _NAME.fullmatch(name) or (inner if relation else name) not in allowed:
            self._refuse(f"filter.{name}", "cannot be filtered by")
            return
        self.filters.append(_condition(name, value))

    def _page(self, name: str, value: str) -> None:
        if name not in ("limit", "offset") or not re.fullmatch(r"[0-9]{1,9}", value):
            self._refuse(f"page.{name}", "is not a whole number called limit or offset")
        elif name == "limit":
            self.limit = min(int(value), self.known.limit) or self.known.limit
        else:
            self.offset = int(value)

    def _sort(self, value: str) -> None:
        for part in filter(None, value.split(",")):
            name = part.lstrip("-")
            if name in self.known.sorts:
                self.sort.append((name, part.startswith("-")))
            else:
                self._refuse(f"sort.{name[:64]}", "cannot be sorted by")

    def _include(self, value: str) -> None:
        for name in filter(None, value.split(",")):
            if name in self.known.includes:
                self.include.append(name)
            else:
                self._refuse(f"include.{name[:64]}", "cannot be included")

    def _fields(self, relation: str | None, value: str) -> None:
        if relation is not None and relation not in self.known.includes:
            self._refuse(f"fields.{relation}", "cannot be included")
            return
        allowed = self.known.fields if relation is None else self.known.related.get(relation, frozenset())
        added, only = self.fields.setdefault(relation or "", (set(), set()))
        for part in filter(None, value.split(",")):
            name = part.lstrip("+").strip()
            if name not in allowed:
                self._refuse(f"fields.{relation + '.' if relation else ''}{name[:64]}", "is not a field")
            else:
                (added if part.startswith(("+", " ")) else only).add(name)

    def _refuse(self, path: str, why: str) -> None:
        self.issues.append(issue(path, f"'{path}' {why}.", "unknown"))


def _condition(path: str, value: str) -> Filter:
    negated = value.startswith("!")
    text = value[1:] if negated else value
    for sign, name in (("<=", "le"), (">=", "ge"), ("<", "lt"), (">", "gt")):
        if text.startswith(sign):
            return Filter(path, name, (text[len(sign) :],), negated)  # type: ignore[arg-type]
    if len(text) > 1 and text.startswith("~") and text.endswith("~"):
        return Filter(path, "contains", (text[1:-1],), negated)
    if text.startswith("~"):
        return Filter(path, "ends", (text[1:],), negated)
    if text.endswith("~"):
        return Filter(path, "starts", (text[:-1],), negated)
    values = tuple(None if part == "null" else part for part in text.split(","))
    return Filter(path, "in" if len(values) > 1 else "eq", values, negated)
