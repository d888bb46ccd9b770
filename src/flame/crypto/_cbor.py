"""Deterministic CBOR (RFC 8949, 4.2.1), restricted to what signed heads need.

Unsigned integers, byte strings, text, arrays and maps with text keys; nothing else. The reader takes the
deterministic form only: a general decoder would also run tags, shared references and indefinite lengths of a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass

import cbor2

from flame.model.errors import Malformed

_MAX_DEPTH = 4
_UINT, _BYTES, _TEXT, _ARRAY, _MAP = 0, 2, 3, 4, 5


def encode(value: object) -> bytes:
    """The deterministic CBOR form of our own value."""
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes) -> object:
    """The value of a deterministic CBOR item; Malformed for anything else, trailing bytes included."""
    reader = _Reader(data)
    value = reader.item(0)
    if reader.position != len(data):
        raise Malformed("Bytes follow the end of the CBOR item.")
    return value


@dataclass(slots=True)
class _Reader:
    data: bytes
    position: int = 0

    def item(self, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise Malformed(f"The CBOR item is nested deeper than {_MAX_DEPTH} levels.")
        major, argument = self._head()
        if major == _UINT:
            return argument
        if major == _BYTES:
            return self._take(argument)
        if major == _TEXT:
            return self._text(argument)
        if major == _ARRAY:
            return self._array(argument, depth)
        if major == _MAP:
            return self._map(argument, depth)
        raise Malformed("The CBOR item holds a type that has no place here (negative, tag, float or simple value).")

    def _array(self, count: int, depth: int) -> list[object]:
        self._check_count(count)
        return [self.item(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, object]:
        self._check_count(count)
        found: dict[str, object] = {}
        before = b""
        for _ in range(count):
            start = self.position
            key = self.item(depth + 1)
            encoded = self.data[start : self.position]
            if not isinstance(key, str) or encoded <= before:
                raise Malformed("The keys of a CBOR map must be text, unique, and in deterministic order.")
            found[key] = self.item(depth + 1)
            before = encoded
        return found

    def _check_count(self, count: int) -> None:
        if count > len(self.data) - self.position:  # each item takes a byte at least
            raise Malformed("The CBOR item announces more than it holds.")

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed("Text in the CBOR item is not UTF-8.") from error

    def _head(self) -> tuple[int, int]:
        first = self._take(1)[0]
        major, short = first >> 5, first & 0x1F
        if short < 24:
            return major, short
        if short > 27:
            raise Malformed("The CBOR item uses an indefinite or reserved length.")
        width = 1 << (short - 24)
        argument = int.from_bytes(self._take(width), "big")
        shortest = 24 if width == 1 else 1 << (4 * width)
        if argument < shortest:
            raise Malformed("The CBOR item spells a number longer than needed; only the deterministic form is read.")
        return major, argument

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise Malformed("The CBOR item ends early.")
        taken = self.data[self.position : end]
        self.position = end
        return taken
