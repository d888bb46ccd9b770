"""Typed, bounded access to the fields of a decoded map: one wrong type or range, one clear error."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from flame.model.errors import Malformed

MAX_INTEGER = 2**53 - 1  # so that every number also survives JSON and SQL


@dataclass(frozen=True, slots=True)
class Fields:
    """A map with exactly the given keys; each getter checks type and bounds (Malformed)."""

    of: str
    values: dict[str, object]

    @classmethod
    def exactly(cls, of: str, value: object, keys: Set[str]) -> Fields:
        if not isinstance(value, dict):
            raise Malformed(f"The {of} is not a map.")
        if value.keys() != keys:
            raise Malformed(f"The {of} must have exactly these keys: {', '.join(sorted(keys))}.")
        return cls(of, value)

    def octets(self, name: str, length: int) -> bytes:
        value = self.values[name]
        if not isinstance(value, bytes) or len(value) != length:
            raise Malformed(f"{self.of}.{name} must be {length} bytes.", field=name)
        return value

    def number(self, name: str, *, most: int = MAX_INTEGER, least: int = 0) -> int:
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Malformed(f"{self.of}.{name} must be an integer from {least} to {most}.", field=name)
        return value

    def token(self, name: str, *, most: int) -> str:
        """Printable ASCII, 1 to `most` characters: names that are compared and logged."""
        value = self.values[name]
        if not isinstance(value, str) or not 1 <= len(value) <= most or not _printable(value):
            raise Malformed(f"{self.of}.{name} must be 1 to {most} printable ASCII characters.", field=name)
        return value

    def items(self, name: str, *, most: int) -> list[object]:
        value = self.values[name]
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise Malformed(f"{self.of}.{name} must be a list of 1 to {most} entries.", field=name)
        return value


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable()
