"""Settings have one order of places, and a misspelt one is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.cli.hub import settings_of
from flame.hub.settings import Settings, from_arguments
from flame.model.errors import Invalid


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.toml"
    file.write_text("port = 1\nstop_seconds = 1\ntoken_seconds = 1\n")
    monkeypatch.setenv("FLAME_HUB_STOP_SECONDS", "2")
    monkeypatch.setenv("FLAME_HUB_TOKEN_SECONDS", "2")
    found = settings_of(tmp_path, file, ["token_seconds=3", "tls_cert=c.pem", "tls_key=k.pem"])
    assert (found.port, found.stop_seconds, found.token_seconds) == (1, 2, 3)
    assert found.tls_cert == Path("c.pem")
    assert settings_of(tmp_path, file, ["port=4"], port=5).port == 5


@pytest.mark.parametrize("text", ["colour=blue", "port", "port=high", "skip_project_approval=perhaps", "=1", ""])
def test_an_argument_that_is_no_setting_is_named(text: str) -> None:
    with pytest.raises(Invalid, match="--set"):
        from_arguments([text])


@pytest.mark.parametrize("name", ["admin_password", "database_url"])
def test_secrets_are_not_taken_from_the_command_line(name: str) -> None:
    with pytest.raises(Invalid, match="can read a command line"):
        from_arguments([f"{name}=secret"])


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="FLAME_HUB_PROT"):
        Settings.from_env({"FLAME_HUB_PROT": "1"}, dir=tmp_path)
