"""Bundles of FHIR resources as tables, in the way of FLAME's original SDK."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from flame.model.errors import Invalid

RESOURCES = ("Observation", "QuestionnaireResponse")
MAX_PAGES = 100_000


def fhir_to_csv(
    fhir_data: Mapping[str, Any],
    col_key_seq: str,
    value_key_seq: str,
    input_resource: str,
    row_key_seq: str | None = None,
    row_id_filters: Sequence[str] | None = None,
    col_id_filters: Sequence[str] | None = None,
    row_col_name: str = "",
    separator: str = ",",
    output_type: Literal["file", "dict"] = "file",
    *,
    following: Callable[[str], Mapping[str, Any]] | None = None,
) -> io.StringIO | dict[str, dict[str, Any]]:
    """One row for each row id, one column for each column id, the value where they meet.

    A key sequence is a path through a resource: ``code.coding.code``, or ``subject.reference``; lists are gone through.
    Of an Observation it is taken as it is; of a QuestionnaireResponse, column and value are looked up in each item, and
    the row in the response. Without ``row_key_seq`` the resource's id is the row. The filters keep ids that hold one of
    the texts. Pages are followed with ``following`` (the search of the next page, to its bundle). ``file``: a text
    stream of CSV, quoted where it must be; ``dict``: row id to column id to value. Raises Invalid.
    """
    if input_resource not in RESOURCES:
        raise Invalid(f"fhir_to_csv reads {' and '.join(RESOURCES)}, not {input_resource!r}.")
    if output_type not in ("file", "dict"):
        raise Invalid(f"output_type is 'file' or 'dict', not {output_type!r}.")
    table: dict[str, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for resource in _resources(fhir_data, following):
        if resource.get("resourceType") != input_resource:
            continue
        row = _first(resource, row_key_seq) if row_key_seq else resource.get("id")
        if row is None or not _passes(str(row), row_id_filters):
            continue
        for part in [resource] if input_resource == "Observation" else _items(resource):
            column, value = _first(part, col_key_seq), _first(part, value_key_seq)
            if column is None or not _passes(str(column), col_id_filters):
                continue
            columns[str(column)] = None
            table.setdefault(str(row), {})[str(column)] = "" if value is None else value
    if output_type == "dict":
        return table
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow([row_col_name, *columns])
    for row, cells in table.items():
        writer.writerow([row, *(cells.get(column, "") for column in columns)])
    out.seek(0)
    return out


def _resources(
    bundle: Mapping[str, Any], following: Callable[[str], Mapping[str, Any]] | None
) -> Iterator[Mapping[str, Any]]:
    for _ in range(MAX_PAGES):
        for entry in bundle.get("entry", []):
            yield entry["resource"]
        urls = [str(link["url"]) for link in bundle.get("link", []) if link.get("relation") == "next"]
        if not urls or following is None:
            return
        bundle = following(urls[0].partition("/fhir/")[2])
    raise Invalid(f"The search has more than {MAX_PAGES} pages.")


def _items(resource: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All items of a response, those inside others too."""
    for item in resource.get("item", []):
        yield item
        yield from _items(item)


def _first(value: Any, path: str) -> Any:
    """The first value at the end of a path."""
    for found in _walk(value, path.split(".")):
        return found
    return None


def _walk(value: Any, steps: Sequence[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, steps)
    elif not steps:
        if value is not None and not isinstance(value, Mapping):
            yield value
    elif isinstance(value, Mapping) and steps[0] in value:
        yield from _walk(value[steps[0]], steps[1:])


def _passes(text: str, filters: Sequence[str] | None) -> bool:
    return not filters or any(wanted in text for wanted in filters)
