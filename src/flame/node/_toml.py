"""The node's own TOML files, read strictly: every error names file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flame.model.errors import Invalid

MAX_BYTES = 1 << 20


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The parsed file and its text; an absent file is an empty one. Raises Invalid with the line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        raise Invalid(
            f"{path.name} cannot be read: {error.strerror}.", next_step="Check the file's owner and mode."
        ) from None
    if len(data) > MAX_BYTES:
        raise Invalid(f"{path.name} is larger than {MAX_BYTES} bytes.")
    try:
        text = data.decode("utf-8")
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Invalid(f"{path.name}, line {line}: this is not UTF-8.", next_step="Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise Invalid(
            f"{path.name} cannot be read: {error}.", next_step="Correct the line; texts stand in quotes."
        ) from None


def refuse_unknown(file: str, text: str, table: Mapping[str, Any], known: Collection[str], nth: int = 0) -> None:
    """Raises Invalid for a key that is not known, with its line. ``nth``: in which of several like tables it stands."""
    for key in table:
        if key not in known:
            raise Invalid(
                f"{file}, line {line_of(text, key, nth)}: the key '{key[:64]}' is not known.",
                next_step=f"Known keys: {', '.join(sorted(known))}.",
                key=key[:64],
            )


def line_of(text: str, key: str, nth: int = 0) -> int:
    """The line on which a key is set (or its table begins), counted from 1; the ``nth`` time if there are several."""
    pattern = re.compile(r"^[ \t]*\[*[ \t]*[\"']?" + re.escape(key) + r"[\"']?[ \t]*(?:[.=\]]|$)", re.MULTILINE)
    found = [match.start() for match in pattern.finditer(text)]
    if not found:
        return 1
    return text.count("\n", 0, found[min(nth, len(found) - 1)]) + 1
