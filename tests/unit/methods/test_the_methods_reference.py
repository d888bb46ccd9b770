"""The page about the methods is what the catalogue says, and badges are not edited by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flame.methods.catalogue import CATALOGUE, badges_of
from flame.methods.catalogue.badges import FILE, read_badges, written_badges

ROOT = Path(__file__).parents[3]


def test_the_page_is_written_from_the_catalogue() -> None:
    script = ROOT / "scripts" / "methods_reference.py"
    written = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert written == (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8"), (
        "the catalogue has changed: python scripts/methods_reference.py > docs/reference/methods.md"
    )


def test_a_badge_changed_by_hand_is_found() -> None:
    text = FILE.read_text(encoding="utf-8")
    badges = read_badges(text)
    assert written_badges(badges) == text
    with pytest.raises(ValueError, match="by hand"):
        read_badges(text.replace('"deviation": 1e-11', '"deviation": 1e-15', 1))


def test_every_method_has_a_badge_within_its_tolerance() -> None:
    for name in CATALOGUE:
        assert badges_of(name), name
        assert all(badge.deviation <= max(badge.tolerance, 1e-14) for badge in badges_of(name))
