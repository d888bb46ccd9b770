"""FHIR searches over files of resources: ``Patient?_summary=count``, ``Observation?code=…&_count=100``, ``Patient/p1``.

A small subset of the standard, answered exactly. What is not in it is refused, because an answer that ignores a
condition looks like one that keeps it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from flame.model.errors import FlameError, Invalid, Malformed, NotFound

if TYPE_CHECKING:
    from flame.node.data.folder import FolderSnapshot

PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_LINE: Final = 16 << 20
_TYPE: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID: Final = re.compile(r"[A-Za-z0-9.-]{1,64}")
_DATE: Final = re.compile(r"(eq|ne|ge|le|gt|lt)?(\d{4}(?:-\d{2}(?:-\d{2})?)?)")

Resource = dict[str, Any]
Condition = Callable[[Resource], bool]


class FhirFolder:
    """The resources of a folder's ``*.ndjson`` files."""

    def __init__(self, folder: FolderSnapshot) -> None:
        self._folder = folder

    def answer(self, query: str, base: str) -> bytes:
        """The answer to a search or a read. ``base``: the URL under which this source's FHIR is served.

        Raises Invalid (a condition that is not understood), NotFound (no such resource, no FHIR here).
        """
        if not self._folder.resources:
            raise NotFound("This source holds no FHIR resources.", next_step="Ask it for its files.")
        path, _, conditions = query.partition("?")
        kind, _, id_ = path.strip("/").partition("/")
        if kind == "metadata":
            return json.dumps(
                {
                    "resourceType": "CapabilityStatement",
                    "status": "active",
                    "kind": "instance",
                    "fhirVersion": "4.0.1",
                    "format": ["json"],
                }
            ).encode()
        if not _TYPE.fullmatch(kind):
            raise Invalid(f"{kind[:64]!r} is no type of FHIR resources.", next_step="Search as in Patient?_count=10.")
        if id_:
            return msgspec.json.encode(self._read(kind, id_))
        return msgspec.json.encode(self._search(kind, parse_qsl(conditions, keep_blank_values=True), base))

    def _read(self, kind: str, id_: str) -> Resource:
        if not _ID.fullmatch(id_):
            raise Invalid("This is no id of a FHIR resource.")
        for resource in self._of(kind):
            if resource.get("id") == id_:
                return resource
        raise NotFound("There is no such resource.")

    def _search(self, kind: str, asked: list[tuple[str, str]], base: str) -> Resource:
        control = {
            name: value for name, value in asked if name in ("_count", "_offset", "_summary", "_total", "_format")
        }
        summary = control.get("_summary", "false")
        if summary not in ("count", "false"):
            raise Invalid("_summary is 'count' here.", next_step="Leave it out for whole resources.")
        count = _number(control, "_count", PAGE, MAX_PAGE)
        offset = _number(control, "_offset", 0, 1 << 40)
        conditions = [_condition(name, value) for name, value in asked if name not in control]
        counting = summary == "count" or count == 0
        found: list[Resource] = []
        total = 0
        for resource in self._of(kind):
            if all(holds(resource) for holds in conditions):
                if not counting and offset <= total < offset + count:
                    found.append(resource)
                total += 1
        bundle: Resource = {"resourceType": "Bundle", "type": "searchset", "total": total}
        bundle["link"] = [{"relation": "self", "url": _url(base, kind, asked, offset)}]
        if counting:
            return bundle
        if offset + count < total:
            bundle["link"].append({"relation": "next", "url": _url(base, kind, asked, offset + count)})
        bundle["entry"] = [
            {"fullUrl": f"{base}/{kind}/{quote(str(r.get('id', '')))}", "resource": r, "search": {"mode": "match"}}
            for r in found
        ]
        return bundle

    def _of(self, kind: str) -> Iterator[Resource]:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        mark = f'"{kind}"'.encode()
        for name in self._folder.resources:
            with self._folder.open(name) as file:
                for number, line in enumerate(_lines(file), start=1):
                    if mark not in line:
                        continue
                    try:
                        resource = decode(line)
                    except msgspec.DecodeError:
                        raise Malformed(
                            f"Line {number} of '{name}' is no JSON object.", next_step="Export it again."
                        ) from None
                    if resource.get("resourceType") == kind:
                        yield resource


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise Malformed(f"A resource is longer than {MAX_LINE} bytes.")
        if line.strip():
            yield line


def outcome(error: FlameError) -> bytes:
    """An error in FHIR's words."""
    issue = {
        "severity": "error",
        "code": "invalid" if isinstance(error, Invalid) else "not-found",
        "diagnostics": str(error),
    }
    return json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()


def _number(control: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = control.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise Invalid(f"{name} is a whole number.")
    return min(int(text), most)


def _url(base: str, kind: str, asked: Iterable[tuple[str, str]], offset: int) -> str:
    kept = [(name, value) for name, value in asked if name != "_offset"]
    return f"{base}/{kind}?{urlencode([*kept, ('_offset', str(offset))] if offset else kept)}"


def _condition(name: str, value: str) -> Condition:
    wanted = value.split(",")
    match name:
        case "_id":
            return lambda r: str(r.get("id")) in wanted
        case "gender" | "status" | "intent":
            return lambda r: str(r.get(name)) in wanted
        case "active":
            return lambda r: str(r.get("active", "")).lower() in wanted
        case "code" | "category" | "clinical-status" | "verification-status" | "medication":
            field = {
                "clinical-status": "clinicalStatus",
                "verification-status": "verificationStatus",
                "medication": "medicationCodeableConcept",
            }.get(name, name)
            return lambda r: any(_has_code(concept, one) for concept in _each(r.get(field)) for one in wanted)
        case "identifier":
            return lambda r: any(
                _is_token(i.get("system"), i.get("value"), one) for i in _each(r.get("identifier")) for one in wanted
            )
        case "patient" | "subject":
            fields = ("patient", "subject")
            return lambda r: any(_refers(ref, one) for f in fields for ref in _each(r.get(f)) for one in wanted)
        case "questionnaire":
            return lambda r: str(r.get("questionnaire", "")) in wanted
        case "birthdate" | "date" | "onset-date" | "authored":
            dates = [_date(one) for one in wanted]
            names = {"birthdate": ("birthDate",), "onset-date": ("onsetDateTime",), "authored": ("authored",)}.get(
                name, ("effectiveDateTime", "date", "issued", "authored", "recordedDate")
            )
            return lambda r: any(holds(str(r[f])) for f in names if f in r for holds in dates)
    raise Invalid(
        f"The search parameter {name[:64]!r} is not understood here.",
        next_step="Known: _id, _count, _summary=count, code, category, status, gender, birthdate, date, patient, subject, identifier.",
    )


def _each(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)]


def _has_code(concept: Mapping[str, Any], wanted: str) -> bool:
    return any(_is_token(c.get("system"), c.get("code"), wanted) for c in _each(concept.get("coding")))


def _is_token(system: Any, code: Any, wanted: str) -> bool:
    """``code``, ``system|code``, ``|code`` (no system) or ``system|``."""
    if "|" not in wanted:
        return bool(code == wanted)
    in_system, _, with_code = wanted.partition("|")
    return (system == in_system if in_system else system is None) and (not with_code or code == with_code)


def _refers(reference: Mapping[str, Any], wanted: str) -> bool:
    text = str(reference.get("reference", ""))
    return text == wanted or (("/" not in wanted) and text == f"Patient/{wanted}")


def _date(text: str) -> Callable[[str], bool]:
    found = _DATE.fullmatch(text)
    if found is None:
        raise Invalid(f"{text[:32]!r} is no date such as ge2020-01-01.")
    sign, day = found.group(1) or "eq", found.group(2)

    def holds(value: str) -> bool:
        cut = value[: len(day)]  # as precise as was asked
        return {
            "eq": cut == day,
            "ne": cut != day,
            "ge": cut >= day,
            "le": cut <= day,
            "gt": cut > day,
            "lt": cut < day,
        }[sign]

    return holds
