"""A run's sources as the original SDK reads them: every source answers S3 listings and objects, and FHIR searches.

A program asks all of its sources for what it wants; so a source that has nothing of a kind says that it has none, and
never that there is no such thing.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from flame.model.errors import FlameError, NotFound
from flame.node.contract.fhir import FhirFolder, outcome
from flame.node.gateway.http import Response
from flame.wire.values import decode

if TYPE_CHECKING:
    from flame.node.data.folder import FolderSnapshot
    from flame.node.supervisor.side import Snapshot

MAX_KEYS: Final = 1000
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Object:
    size: int
    pieces: Callable[[], Iterator[bytes]]


class Sources:
    """The sources of one run, by name."""

    def __init__(self, tables: Mapping[str, Snapshot], folders: Mapping[str, FolderSnapshot], host: str) -> None:
        self._tables, self._folders, self._host = tables, folders, host

    def listed(self) -> list[dict[str, Any]]:
        """As the hub adapter lists a project's data stores."""
        return [
            {
                "id": name,
                "name": name,
                "host": self._host,
                "port": 80,
                "protocol": "http",
                "path": f"/kong/{name}",
                "paths": [f"http://{self._host}/kong/{name}"],
                "type": "s3" if name in self._tables or not self._folders[name].resources else "fhir",
            }
            for name in sorted({*self._tables, *self._folders})
        ]

    def answer(self, name: str, rest: str, query: str) -> Response:
        """GET /kong/{name}/{rest}?{query}."""
        name = unquote(name)
        if name not in self._tables and name not in self._folders:
            raise NotFound("This run has no such source.", next_step="Ask for the list of sources.")
        kind, _, inside = rest.partition("/")
        if kind == "s3" and not inside:
            return self._list(name, query)
        if kind == "s3":
            return self._object(name, unquote(inside))
        if kind == "fhir":
            return self._fhir(name, inside + (f"?{query}" if query else ""))
        raise NotFound("A source answers under /s3 and /fhir.", next_step="Use the SDK's methods.")

    def _objects(self, name: str) -> list[str]:
        return self._folders[name].objects if name in self._folders else [f"{name}.csv"]

    def _list(self, name: str, query: str) -> Response:
        """ListObjectsV2, as much of it as clients of this contract use."""
        asked = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        prefix = asked.get("prefix", "")
        after = asked.get("continuation-token") or asked.get("start-after", "")
        limit = min(MAX_KEYS, int(asked["max-keys"])) if asked.get("max-keys", "").isdecimal() else MAX_KEYS
        keys = [key for key in self._objects(name) if key.startswith(prefix) and key > after]
        page, more = keys[:limit], len(keys) > limit
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{self._size(name, key)}</Size></Contents>" for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more and page else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{escape(name)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{limit}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        )
        return Response(200, text.encode(), "application/xml")

    def _size(self, name: str, key: str) -> int:
        return self._folders[name].files[key].size if name in self._folders else len(self._table(name))

    def _object(self, name: str, key: str) -> Response:
        known = self._objects(name)
        if key not in known and html.unescape(key) in known:
            key = html.unescape(key)  # a client that takes keys out of the listing as they are written there
        if key not in known:
            raise NotFound("This source has no such object.", next_step="List the source's objects first.")
        if name in self._tables:
            return Response(200, self._table(name), "text/csv")
        folder = self._folders[name]
        file = folder.open(key)

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(_PIECE):
                    yield piece

        return Response(200, content_type="application/octet-stream", pieces=pieces(), length=folder.files[key].size)

    def _fhir(self, name: str, query: str) -> Response:
        try:
            if name not in self._folders:
                raise NotFound("This source holds no FHIR resources.", next_step="Ask it for its objects.")
            base = f"http://{self._host}/kong/{name}/fhir"
            return Response(200, FhirFolder(self._folders[name]).answer(query, base), "application/fhir+json")
        except FlameError as error:
            return Response(error.status, outcome(error), "application/fhir+json")

    def _table(self, name: str) -> bytes:
        """A table as CSV, with the columns that the manifest names."""
        import csv

        snapshot = self._tables[name]
        columns = decode(snapshot.read())
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(snapshot.columns)
        plain = [columns[c] if isinstance(columns[c], list) else columns[c].tolist() for c in snapshot.columns]
        for row in zip(*plain, strict=True):
            writer.writerow(
                ["" if cell is None or cell != cell else int(cell) if isinstance(cell, bool) else cell for cell in row]
            )
        return out.getvalue().encode()
