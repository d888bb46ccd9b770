"""``import flame`` and what hangs on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flame
from flame.sdk import connect


def test_connect_is_found_by_name() -> None:
    assert flame.connect is connect
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = flame.conect  # type: ignore[attr-defined]


def test_type_checkers_are_told_the_same_names() -> None:
    stub = Path(flame.__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
    told = {*re.findall(r"import \w+ as (\w+)", stub), *re.findall(r"^(\w+):", stub, re.MULTILINE)}
    assert told == set(flame.__all__)
