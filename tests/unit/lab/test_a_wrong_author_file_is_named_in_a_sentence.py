"""What the hub says about an analysis that it cannot freeze becomes a sentence about the author's own file."""

from __future__ import annotations

import pytest

from flame.model.errors import Conflict, Invalid
from flame.researcher.session import not_frozen


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "The analysis cannot be locked: manifest.releases[0].kind is 'total'; allowed are sum, table.",
            "flame.toml: [[releases]] number 1, key kind is 'total'; allowed are sum, table.",
        ),
        (
            "The analysis cannot be locked: resources.cpu is 9999; more than 0 and at most 4096 is possible.",
            "flame.toml: resources.cpu is 9999; more than 0 and at most 4096 is possible.",
        ),
        (
            "flame.toml has the unknown table 'bla'. Known: analysis.",
            "flame.toml has the unknown table 'bla'. Known: analysis.",
        ),
        (
            "flame.toml: analysis.days is 0; between 1 and 3650 are allowed.",
            "flame.toml: analysis.days is 0; between 1 and 3650 are allowed.",
        ),
    ],
)
def test_a_wrong_author_file_is_invalid_input(reason: str, said: str) -> None:
    error = not_frozen([reason])
    assert isinstance(error, Invalid)
    assert error.message == said
    assert "flame.toml" in error.next_step


def test_what_others_have_to_add_is_a_conflict() -> None:
    error = not_frozen(["Node 'Mainz' has no enrolled key."])
    assert isinstance(error, Conflict)
    assert "Mainz" in error.message
