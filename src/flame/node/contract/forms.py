"""Multipart forms, as HTTP clients write them: a part ``file`` and a few short text fields. Read strictly; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flame.model.errors import Malformed

MAX_PARTS: Final = 16
MAX_PART_HEAD: Final = 4096
MAX_FIELD: Final = 4096

_BOUNDARY: Final = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;]{1,70}))', re.IGNORECASE)
_PARAMETER: Final = re.compile(r';\s*([A-Za-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s;]*))')
_MEDIA: Final = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]{0,80}")


@dataclass(frozen=True)
class Form:
    filename: str
    media_type: str
    content: memoryview
    """A view on the request's body."""
    fields: dict[str, str]


def read_form(content_type: str, body: bytearray) -> Form:
    """Raises Malformed for anything but a form with one file."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise _wrong("is not multipart/form-data with a boundary")
    boundary = b"--" + (found.group(1) or found.group(2)).encode("latin-1")
    if not body.startswith(boundary + b"\r\n"):
        raise _wrong("does not begin with its boundary")
    view, fields, file = memoryview(body), dict[str, str](), None
    start = len(boundary) + 2
    for _ in range(MAX_PARTS):
        headers, content_start = _part_head(body, start)
        end = body.find(b"\r\n" + boundary, content_start)
        if end < 0:
            raise _wrong("ends in the middle of a part")
        name, filename = _names(headers.get("content-disposition", ""))
        if filename is not None:
            if file is not None:
                raise _wrong("holds two files")
            media = headers.get("content-type", "").partition(";")[0].strip().lower()
            file = (filename, media if _MEDIA.fullmatch(media) else "application/octet-stream", view[content_start:end])
        else:
            fields[name] = _field(view[content_start:end])
        start = end + 2 + len(boundary)
        if body[start : start + 2] == b"--":
            break
        if body[start : start + 2] != b"\r\n":
            raise _wrong("has something behind a boundary")
        start += 2
    else:
        raise _wrong(f"has more than {MAX_PARTS} parts")
    if file is None:
        raise _wrong("holds no file")
    return Form(*file, fields)


def _part_head(body: bytearray, start: int) -> tuple[dict[str, str], int]:
    end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD)
    if end < 0:
        raise _wrong("has a part without a head")
    headers = {}
    for line in body[start:end].decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers, end + 4


def _names(disposition: str) -> tuple[str, str | None]:
    if not disposition.lower().startswith("form-data"):
        raise _wrong("has a part that is no form data")
    found = {
        m.group(1).lower(): m.group(2) if m.group(2) is not None else m.group(3)
        for m in _PARAMETER.finditer(disposition)
    }
    if not found.get("name"):
        raise _wrong("has a part without a name")
    return found["name"], found.get("filename")


def _field(content: memoryview) -> str:
    if len(content) > MAX_FIELD:
        raise _wrong(f"has a field of more than {MAX_FIELD} bytes")
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong("has a field that is no text") from None


def _wrong(what: str) -> Malformed:
    return Malformed(f"The form {what}.", next_step="Send multipart/form-data with a part named 'file'.")
