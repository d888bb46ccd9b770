"""Canonical JSON (RFC 8785): one value, one sequence of bytes, one digest.

Whatever is signed is read back from the very bytes that were signed. A document whose bytes are not their own
canonical form is refused, so that two readers can never see two different documents under one digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import NoReturn

import rfc8785

from flame.model.errors import Malformed

MAX_DEPTH = 32
MAX_SAFE_INTEGER = 2**53 - 1
_EXPONENT_FORM_FROM = 1e21  # below it RFC 8785 writes a float as an integer, which I-JSON cannot carry beyond 2**53 - 1


def canonical(value: object) -> bytes:
    """The RFC 8785 form of a JSON value (dict, list, tuple, str, int, float, bool, None).

    Raises Malformed for anything that `parse_canonical` would not read back: other types, keys that are not text,
    NaN, infinities, integers beyond 2**53 - 1, lone surrogates, more than 32 levels.
    """
    _check(value, 0)
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # _check has just established the type
    except ValueError as error:  # CanonicalizationError, and UnicodeEncodeError from a key
        raise Malformed(f"This value has no canonical JSON form: {error}.") from error


def parse_canonical(data: bytes, *, max_bytes: int = 1 << 20) -> object:
    """The value of a canonical JSON document; refuses (Malformed) bytes that are not their own RFC 8785 form.

    Refused so: more than max_bytes, invalid UTF-8, a byte order mark, duplicate keys, NaN, numbers beyond I-JSON,
    more than 32 levels, other spacing, key order, escapes or spelling of numbers.
    """
    if len(data) > max_bytes:
        raise Malformed(f"The document has {len(data)} bytes; at most {max_bytes} are read.", limit=max_bytes)
    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_int=_bounded_integer,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise Malformed(f"The document is nested deeper than {MAX_DEPTH} levels.") from error
    except ValueError as error:
        raise Malformed(f"The document is not JSON: {error}.") from error
    if canonical(value) != data:
        raise Malformed(
            "The document is JSON, but not in its canonical form (RFC 8785).",
            next_step="Write it with canonical JSON: sorted keys, no spaces, shortest numbers, and sign those bytes.",
        )
    return value


def digest(data: bytes) -> bytes:
    """SHA-256 of the bytes, 32 bytes."""
    return hashlib.sha256(data).digest()


def document_digest(value: object) -> bytes:
    """SHA-256 of the canonical form of a JSON value, 32 bytes."""
    return digest(canonical(value))


def _check(value: object, depth: int) -> None:
    match value:
        case None | bool() | str():
            return
        case int():
            _check_integer(value)
        case float():
            _check_float(value)
        case dict() | list() | tuple():
            _check_depth(depth + 1)
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                raise Malformed("A key of a JSON object must be text.")
            for item in value.values() if isinstance(value, dict) else value:
                _check(item, depth + 1)
        case _:
            raise Malformed(f"A value of type {type(value).__name__} has no JSON form.")


def _check_integer(value: int) -> None:
    if abs(value) > MAX_SAFE_INTEGER:
        raise Malformed("An integer lies beyond 2**53 - 1, where JSON numbers are no longer exact (I-JSON, RFC 7493).")


def _check_float(value: float) -> None:
    if MAX_SAFE_INTEGER < abs(value) < _EXPONENT_FORM_FROM:
        raise Malformed("A number between 2**53 and 1e21 would be written as an integer that I-JSON cannot carry.")


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Malformed(f"The document is nested deeper than {MAX_DEPTH} levels.")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("An object of the document names a key twice.")
    return found


def _bounded_integer(text: str) -> int:
    if len(text) > 17:  # sign and 16 digits: longer ones cannot be safe, and need not be converted to find out
        raise Malformed("The document holds an integer beyond 2**53 - 1.")
    return int(text)


def _refuse_constant(text: str) -> NoReturn:
    raise Malformed(f"{text} is not a JSON number.")
