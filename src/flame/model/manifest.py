"""The manifest: the one document that is approved. Typed, validated, and nothing in it is optional by accident.

A manifest is written by ``flame.protocol.freeze`` and read from bytes whose digest was signed. Reading is strict: an
unknown key, a missing key or a value of another type is Malformed, and the message names where it stands.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from flame.model.errors import Malformed

Role = Literal["default", "aggregator"]
ReleaseKind = Literal["sum", "table", "counts", "model", "object", "log", "final"]

VERSION = 1
MAX_FILES = 2000
MAX_PARTICIPANTS = 64
MAX_TEXT = 4096
MAX_RUNTIME_SECONDS = 366 * 24 * 3600
"""Nothing waits longer, so that every clock and time-out can hold it."""
_MAX_RESOURCES = {"cpu": 4096, "memory_bytes": 1 << 50, "disk_bytes": 1 << 50, "processes": 1 << 20}
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Json = Any


@dataclass(frozen=True, slots=True)
class CodeFile:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Environment:
    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class Participant:
    node: str
    name: str
    role: Role
    organisation: str
    member: str
    """Fingerprint (hex) of the member's first key."""


@dataclass(frozen=True, slots=True)
class DataRequest:
    node: str
    """A node id, or ``*`` for every data node."""
    source: str
    kind: Literal["table"]
    columns: tuple[str, ...]
    """Empty: every column of the source."""
    min_rows: int


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Literal["number", "integer", "text", "flag", "list"]
    default: Json
    options: tuple[Json, ...]
    """Values that a start order may choose from; empty: the default only."""
    range: tuple[Json, ...] = ()
    """Lowest and highest value that a start order may choose; empty: none but the default and the options."""

    def in_range(self, value: Json) -> bool:
        return len(self.range) == 2 and _fits(self.type, value) and bool(self.range[0] <= value <= self.range[1])


@dataclass(frozen=True, slots=True)
class Release:
    name: str
    """A name, or ``*`` for any name of this kind."""
    kind: ReleaseKind
    max_bytes: int
    rounds_max: int
    protection: Literal["clear"]
    release: Literal["auto", "hold"]


@dataclass(frozen=True, slots=True)
class Resources:
    cpu: float
    memory_bytes: int
    disk_bytes: int
    processes: int
    runtime_seconds: int


@dataclass(frozen=True, slots=True)
class Recipient:
    id: str
    name: str
    result_key: str
    """Fingerprint (hex) of the key that results are sealed to."""


@dataclass(frozen=True, slots=True)
class Researcher:
    id: str
    name: str
    key: str
    """Fingerprint (hex) of the key that signs the manifest and the start orders."""


@dataclass(frozen=True, slots=True)
class Manifest:
    version: int
    analysis: str
    project: str
    title: str
    purpose: str
    created: str
    expires: str
    code: tuple[CodeFile, ...]
    entrypoint: str
    arguments: tuple[str, ...]
    environment: Environment
    participants: tuple[Participant, ...]
    runs_max: int
    data: tuple[DataRequest, ...]
    parameters: tuple[Parameter, ...]
    releases: tuple[Release, ...]
    resources: Resources
    recipients: tuple[Recipient, ...]
    researcher: Researcher

    def __post_init__(self) -> None:
        _check(self)

    def participant(self, node: str) -> Participant | None:
        return next((p for p in self.participants if p.node == node), None)

    @property
    def data_nodes(self) -> tuple[Participant, ...]:
        return tuple(p for p in self.participants if p.role == "default")

    @property
    def aggregator(self) -> Participant:
        return next(p for p in self.participants if p.role == "aggregator")

    def sources_of(self, node: str) -> tuple[DataRequest, ...]:
        """What a node is asked for. An aggregator is given nothing unless the manifest names it."""
        member = self.participant(node)
        anyone = member is not None and member.role == "default"
        return tuple(d for d in self.data if d.node == node or (anyone and d.node == "*"))

    def release(self, kind: ReleaseKind, name: str) -> Release | None:
        """The declaration under which something may leave; None: it may not."""
        same_kind = [r for r in self.releases if r.kind == kind]
        return next((r for r in same_kind if r.name == name), next((r for r in same_kind if r.name == "*"), None))

    def document(self) -> dict[str, Json]:
        """The manifest as JSON, ready for its canonical form."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_document(cls, document: Json) -> Manifest:
        """Read a parsed document strictly. Raises Malformed naming the place."""
        manifest: Manifest = _read(cls, document, "manifest")
        return manifest


def check_path(path: str) -> str:
    """A path of a program: relative, plain, NFC, no way out of its folder. Raises Malformed."""
    parts = path.split("/")
    bad = (
        not path
        or any(unicodedata.category(c) in _UNSEEN for c in path)
        or len(path.encode()) > 512
        or path != unicodedata.normalize("NFC", path)
        or path.startswith("/")
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or "\\" in path
    )
    if bad:
        raise Malformed(
            f"The file name {path[:200]!r} is not allowed.", next_step="Use plain relative names without '..'."
        )
    return path


def check_text(text: str, where: str) -> str:
    """A text that a steward reads: bounded, and nothing in it that a screen hides or rearranges. Raises Malformed."""
    _require(len(text) <= MAX_TEXT, where, f"is longer than {MAX_TEXT} characters.")
    unseen = next((c for c in text if unicodedata.category(c) in _UNSEEN and c not in _SEEN), None)
    _require(unseen is None, where, f"holds the character U+{ord(unseen or ' '):04X}, which cannot be seen.")
    return text


def parse_time(text: str) -> datetime:
    """A time of a document, in its one spelling: ``2026-11-23T10:00:00Z``. Raises Malformed."""
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        moment = None
    if moment is None or format_time(moment) != text:
        raise Malformed(f"{text[:40]!r} is not a time such as 2026-11-23T10:00:00Z.")
    return moment


def format_time(moment: datetime) -> str:
    """The one spelling of a time: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(_TIME)


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, marks that turn the direction of writing, lone surrogates, what no standard assigns."""
_SEEN = "\n\t\u200c\u200d"
"""Allowed all the same: lines, and the joiners that some scripts are written with."""
_HEX64 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise Malformed(f"{where} {what}")


def _check(m: Manifest) -> None:
    _require(m.version == VERSION, "manifest.version", f"is {m.version}; this release reads {VERSION}.")
    for where, value in (("analysis", m.analysis), ("project", m.project), ("researcher.id", m.researcher.id)):
        _check_uuid(value, where)
    for where, text in (("title", m.title), ("purpose", m.purpose), ("researcher.name", m.researcher.name)):
        check_text(text, where)
    _require(parse_time(m.created) <= parse_time(m.expires), "expires", "is before the manifest was made.")
    for argument in m.arguments:
        check_text(argument, "arguments")
    check_text(m.environment.reference, "environment.reference")
    _check_code(m)
    _require(bool(_DIGEST.fullmatch(m.environment.digest)), "environment.digest", "is not sha256:<64 hex digits>.")
    _check_participants(m)
    for what, names in (
        ("parameters", [p.name for p in m.parameters]),
        ("releases", [f"{r.kind}/{r.name}" for r in m.releases]),
    ):
        _require(len(set(names)) == len(names), what, "names something twice.")
    for parameter in m.parameters:
        _require(
            bool(_NAME.fullmatch(parameter.name)),
            f"parameter {parameter.name[:64]!r}",
            "has a name that is not allowed.",
        )
        for value in (parameter.default, *parameter.options, *parameter.range):
            _require(
                _fits(parameter.type, value),
                f"parameter '{parameter.name}'",
                f"has the value {str(value)[:64]!r}, which is not of the type {parameter.type}.",
            )
        low, high = parameter.range if len(parameter.range) == 2 else (None, None)
        ordered = parameter.type in ("number", "integer") and low is not None and low <= parameter.default <= high
        _require(
            not parameter.range or bool(ordered),
            f"parameter '{parameter.name}'",
            "has a range that is not two numbers with the default between them.",
        )
    for release in m.releases:
        _require(
            release.name == "*" or bool(_NAME.fullmatch(release.name)),
            f"release {release.name[:64]!r}",
            "has a name that is not allowed.",
        )
        _require(
            release.max_bytes > 0 and release.rounds_max > 0,
            f"releases: the release '{release.name}' of the kind '{release.kind}'",
            "has a cap (max_bytes, rounds_max) that is not positive.",
        )
    for recipient in m.recipients:
        _check_uuid(recipient.id, "recipients.id")
        check_text(recipient.name, "recipients.name")
        _require(bool(_HEX64.fullmatch(recipient.result_key)), "recipients.result_key", "is not a fingerprint.")
    _require(bool(_HEX64.fullmatch(m.researcher.key)), "researcher.key", "is not a fingerprint.")
    for name, most in {**_MAX_RESOURCES, "runtime_seconds": MAX_RUNTIME_SECONDS}.items():
        value = getattr(m.resources, name)
        _require(0 < value <= most, f"resources.{name}", f"is {value}; more than 0 and at most {most} is possible.")
    _require(1 <= m.runs_max <= 1000, "runs_max", "is not between 1 and 1000.")


def _check_code(m: Manifest) -> None:
    _require(0 < len(m.code) <= MAX_FILES, "code", f"holds {len(m.code)} files; between 1 and {MAX_FILES} are allowed.")
    folded = [unicodedata.normalize("NFC", check_path(f.path).casefold()) for f in m.code]
    _require(len(set(folded)) == len(folded), "code", "holds two files whose names differ in case only.")
    names = set(folded)
    for path in folded:
        parents = {path[:i] for i, c in enumerate(path) if c == "/"}
        _require(not parents & names, "code", f"holds '{path[:200]}' below another file.")
    _require([f.path for f in m.code] == sorted(f.path for f in m.code), "code", "is not sorted by path.")
    for file in m.code:
        _require(
            file.size >= 0 and bool(_HEX64.fullmatch(file.sha256)),
            f"code {file.path}",
            "has no valid size and SHA-256.",
        )
    _require(
        any(f.path == m.entrypoint for f in m.code), "entrypoint", f"'{m.entrypoint[:200]}' is not among the code."
    )


def _check_participants(m: Manifest) -> None:
    nodes = [p.node for p in m.participants]
    members = [p.member for p in m.participants]
    _require(
        2 <= len(nodes) <= MAX_PARTICIPANTS,
        "participants",
        f"are {len(nodes)}; between 2 and {MAX_PARTICIPANTS} are allowed.",
    )
    _require(
        len(set(nodes)) == len(nodes) and len(set(members)) == len(members),
        "participants",
        "name a node or a key twice.",
    )
    _require(nodes == sorted(nodes), "participants", "are not sorted by node id.")
    _require(sum(p.role == "aggregator" for p in m.participants) == 1, "participants", "need exactly one aggregator.")
    _require(any(p.role == "default" for p in m.participants), "participants", "need at least one data node.")
    for p in m.participants:
        _check_uuid(p.node, "participants.node")
        check_text(p.name, "participants.name")
        check_text(p.organisation, "participants.organisation")
        _require(bool(_HEX64.fullmatch(p.member)), f"participant {p.name[:64]}", "has no fingerprint of its member.")
    asked: set[tuple[str, str]] = set()
    for request in m.data:
        _require(request.node == "*" or request.node in nodes, "data.node", "asks a node that does not take part.")
        _require(request.min_rows >= 0, "data.min_rows", "is negative.")
        for text in (request.source, *request.columns):
            check_text(text, "data")
        everyone = [p.node for p in m.participants if p.role == "default"]
        for node in everyone if request.node == "*" else [request.node]:
            _require((node, request.source) not in asked, "data", f"asks for the source '{request.source}' twice.")
            asked.add((node, request.source))


def _fits(type_: str, value: Json) -> bool:
    """Whether a parameter's value is of its type; a list holds numbers, texts and flags."""
    if type_ == "flag":
        return isinstance(value, bool)
    if type_ == "integer":
        return type(value) is int
    if type_ == "number":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if type_ == "text":
        return isinstance(value, str) and len(value) <= MAX_TEXT
    return isinstance(value, list | tuple) and all(any(_fits(t, v) for t in ("flag", "number", "text")) for v in value)


def _check_uuid(value: str, where: str) -> None:
    try:
        ok = str(UUID(value)) == value
    except ValueError:
        ok = False
    _require(ok, where, "is not an identifier.")


def _plain(value: object) -> Json:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
    return value


_PARTS: Mapping[str, type] = {
    "code": CodeFile,
    "participants": Participant,
    "data": DataRequest,
    "parameters": Parameter,
    "releases": Release,
    "recipients": Recipient,
    "environment": Environment,
    "resources": Resources,
    "researcher": Researcher,
}
_CHOICES: Mapping[tuple[str, str], Sequence[str]] = {
    ("Participant", "role"): ("default", "aggregator"),
    ("DataRequest", "kind"): ("table",),
    ("Parameter", "type"): ("number", "integer", "text", "flag", "list"),
    ("Release", "kind"): ("sum", "table", "counts", "model", "object", "log", "final"),
    ("Release", "protection"): ("clear",),
    ("Release", "release"): ("auto", "hold"),
}
_NUMBERS = {
    "size",
    "min_rows",
    "max_bytes",
    "rounds_max",
    "memory_bytes",
    "disk_bytes",
    "processes",
    "runtime_seconds",
    "runs_max",
    "version",
}
_TEXT_LISTS = {"arguments", "columns"}


def _read(kind: Any, document: Json, where: str) -> Any:
    if not isinstance(document, dict):
        raise Malformed(f"{where} is not an object.")
    names = [f.name for f in fields(kind)]
    if unknown := sorted(set(document) - set(names)):
        raise Malformed(f"{where} has the unknown key '{unknown[0][:64]}'.")
    if missing := [name for name in names if name not in document]:
        raise Malformed(f"{where} lacks the key '{missing[0]}'.")
    return kind(**{name: _read_field(kind, name, document[name], f"{where}.{name}") for name in names})


def _read_field(kind: Any, name: str, value: Json, where: str) -> Any:
    if kind is Manifest and name in _PARTS:
        part = _PARTS[name]
        if name in ("environment", "resources", "researcher"):
            return _read(part, value, where)
        return tuple(_read(part, item, f"{where}[{i}]") for i, item in enumerate(_list(value, where)))
    if name in _TEXT_LISTS:
        return tuple(_text(item, where) for item in _list(value, where))
    if kind is Parameter and name in ("options", "range"):
        return tuple(_list(value, where))
    if kind is Parameter and name == "default":
        return value
    if name in _NUMBERS:
        _require(type(value) is int, where, "is not a whole number.")
        return value
    if name == "cpu":
        _require(type(value) in (int, float), where, "is not a number.")
        _require(math.isfinite(value), where, "is not a number.")
        return float(value) if float(value) != int(value) else int(value)
    choices = _CHOICES.get((kind.__name__, name))
    text = _text(value, where)
    _require(choices is None or text in choices, where, f"is '{text[:64]}'; allowed are {', '.join(choices or ())}.")
    return text


def _list(value: Json, where: str) -> list[Json]:
    _require(isinstance(value, list), where, "is not a list.")
    return value  # type: ignore[no-any-return]


def _text(value: Json, where: str) -> str:
    _require(
        isinstance(value, str) and len(value) <= MAX_TEXT, where, f"is not a text of at most {MAX_TEXT} characters."
    )
    return value  # type: ignore[no-any-return]
