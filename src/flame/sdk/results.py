"""A result as a file: the same value is the same bytes, everywhere and always."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flame.model.errors import Invalid

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MEDIA_TYPES = {
    "json": "application/json",
    "txt": "text/plain",
    "csv": "text/csv",
    "html": "text/html",
    "md": "text/markdown",
    "png": "image/png",
    "svg": "image/svg+xml",
    "pdf": "application/pdf",
}
_MAX_DEPTH = 64


@dataclass(frozen=True)
class ResultFile:
    name: str
    media_type: str
    data: bytes


def result_file(result: object, filename: str | None = None, *, suffix: str = "") -> ResultFile:
    """Bytes become ``.bin``, text ``.txt``, everything else ``.json``; ``filename`` overrides the name.

    Raises Invalid for a value that JSON cannot hold, or a file name with anything but letters, digits, ``._-``.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        data, usual = bytes(result), ".bin"
    elif isinstance(result, str):
        data, usual = result.encode(), ".txt"
    else:
        data, usual = to_json(result), ".json"
    name = filename or f"result{suffix or usual}"
    if not _FILE_NAME.fullmatch(name):
        raise Invalid(
            f"'{name[:120]}' is not allowed as a file name.",
            next_step="Use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    return ResultFile(name, _MEDIA_TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream"), data)


def to_json(value: object) -> bytes:
    """Deterministic JSON: keys in the order of the program, shortest exact numbers, NaN and infinities as null.

    Takes numbers, text, lists, tuples, mappings with text keys, dataclasses, NumPy arrays and scalars.
    """
    return (json.dumps(_plain(value, "result", 0), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise Invalid(f"{where} is nested deeper than {_MAX_DEPTH} levels.")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_text_key(k, where): _plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _plain(named, where, depth)
    return _plain(_from_numpy(value, where), where, depth + 1)


def _text_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise Invalid(f"{where} has the key {key!r}; keys are text.", next_step="Use str(key).")
    return key


def _from_numpy(value: object, where: str) -> object:
    import numpy as np

    if isinstance(value, np.ndarray | np.bool_ | np.integer | np.floating) and value.dtype.kind in "biuf":
        plain: object = value.astype(np.float64).tolist() if value.dtype.kind == "f" else value.tolist()
        return plain
    raise Invalid(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which has no form as JSON.",
        next_step="Submit numbers, text, lists, dictionaries and arrays, or bytes of your own.",
    )
