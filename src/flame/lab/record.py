"""What the hub handled, from the bytes that it recorded: counted, and searched for anything that should not be readable.

A canary is a piece of plaintext that exists at a hospital only: a row of its file, a number's eight bytes, a result. It is
looked for as it is, and in the forms that a careless program would give it: base64 at each alignment, hexadecimal, and
inside gzip and zlib streams.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

SHORTEST = 7
"""Bytes of a canary: shorter ones occur by chance."""
MOST_FROM_A_FILE = 400

_COMPRESSED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")
_MOST_INFLATED = 64 << 20


def count_record(directory: Path, canaries: Iterable[bytes] = ()) -> dict[str, int]:
    """messages, sealed_bytes, control_bytes, code_bytes as the hub counted them, and payload_readable found here."""
    counts = json.loads((directory / "counts.json").read_text())
    readable = sum(len(found) for found in find(directory, canaries).values())
    names = ("messages", "sealed_bytes", "control_bytes", "code_bytes")
    return {**{name: int(counts[name]) for name in names}, "payload_readable": readable}


def find(directory: Path, canaries: Iterable[bytes]) -> dict[str, list[bytes]]:
    """Which canaries occur in which file below a directory."""
    wanted = {canary: list(forms(canary)) for canary in set(canaries) if len(canary) >= SHORTEST}
    beginnings = {form[:SHORTEST] for every in wanted.values() for form in every}
    found: dict[str, list[bytes]] = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        content = path.read_bytes()
        texts = [(text, _seen(text, beginnings)) for text in [content, *_inflated(content)]]
        hits = [
            canary
            for canary, every in wanted.items()
            if any(form[:SHORTEST] in seen and form in text for text, seen in texts for form in every)
        ]
        if hits:
            found[path.relative_to(directory).as_posix()] = hits
    return found


def _seen(text: bytes, beginnings: set[bytes]) -> set[bytes]:
    """Which of them occur anywhere: one pass over the text for all, instead of one for each."""
    return beginnings.intersection(text[at : at + SHORTEST] for at in range(len(text) - SHORTEST + 1))


def forms(canary: bytes) -> Iterator[bytes]:
    """A canary as it is, in hexadecimal, and in base64 wherever it may begin in a stream."""
    yield canary
    yield canary.hex().encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + canary).rstrip(b"=")
        start = (shift * 8 + 5) // 6
        inner = encoded[start : len(encoded) - 1]
        if len(inner) >= SHORTEST:
            yield inner
            yield inner.replace(b"+", b"-").replace(b"/", b"_")


def canaries_of_table(path: Path) -> list[bytes]:
    """Pieces of a CSV file that nobody but its hospital has: its rows, and its numbers as eight bytes."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    rows = rows[:: max(1, len(rows) // MOST_FROM_A_FILE)]
    lines = [",".join(row).encode() for row in rows]
    return lines + [struct.pack("<d", value) for row in rows for value in _distinctive(row)]


def _distinctive(row: Iterable[str]) -> Iterator[float]:
    """Numbers whose eight bytes do not occur by chance: those that are no short binary fraction."""
    for cell in row:
        try:
            value = float(cell)
        except ValueError:
            continue
        if struct.pack("<d", value)[:2] != b"\0\0":
            yield value


def _inflated(content: bytes) -> Iterator[bytes]:
    budget = _MOST_INFLATED
    for match in _COMPRESSED.finditer(content):
        try:
            text = zlib.decompressobj(wbits=47).decompress(content[match.start() :], budget)
        except zlib.error:
            continue
        if len(text) >= SHORTEST:
            budget = max(1, budget - len(text))
            yield text
