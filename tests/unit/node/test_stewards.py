"""An account is worth its token, and the token is kept nowhere."""

from __future__ import annotations

import json

import pytest

from flame.model.errors import Conflict, Invalid, NotFound
from flame.node.local.stewards import Accounts, write_local_token


@pytest.fixture
def accounts(tmp_path):
    return Accounts(tmp_path / "stewards.json")


def test_a_token_finds_its_account_and_nothing_else_does(accounts, tmp_path):
    token = accounts.add("Ada", "steward")
    other = accounts.add("Bob", "admin")
    found = accounts.find(token)
    assert found is not None
    assert (found.name, found.role) == ("Ada", "steward")
    assert token != other
    for wrong in ("", token[:-1], token + "x", token.upper(), found.sha256, "\ud800"):
        assert accounts.find(wrong) is None
    text = (tmp_path / "stewards.json").read_text()
    assert token not in text
    assert (tmp_path / "stewards.json").stat().st_mode & 0o777 == 0o600


def test_what_another_process_changes_is_seen_at_once(accounts, tmp_path):
    token = accounts.add("Ada")
    elsewhere = Accounts(tmp_path / "stewards.json")
    assert elsewhere.find(token) is not None
    accounts.remove("Ada")
    assert elsewhere.find(token) is None
    with pytest.raises(NotFound):
        accounts.remove("Ada")


def test_names_are_taken_once(accounts):
    accounts.add("Ada")
    with pytest.raises(Conflict):
        accounts.add("ADA")


@pytest.mark.parametrize(
    ("name", "role"), [("", "steward"), ("a\nb", "steward"), ("x" * 100, "steward"), (" a", "steward"), ("Ada", "root")]
)
def test_what_is_no_account_is_refused(accounts, name, role):
    with pytest.raises(Invalid):
        accounts.add(name, role)
    assert accounts.all() == ()


@pytest.mark.parametrize(
    "text", ["", "{}x", "[1]", '[{"name": "x"}]', '[{"name":"x","role":"root","sha256":"","created":""}]']
)
def test_a_spoiled_file_lets_nobody_in(accounts, tmp_path, text):
    (tmp_path / "stewards.json").write_text(text)
    with pytest.raises(Invalid):
        accounts.find("x")


def test_the_local_token_is_readable_by_its_owner_alone(accounts, tmp_path):
    path = write_local_token(tmp_path, accounts, "local")
    assert path.stat().st_mode & 0o777 == 0o600
    found = accounts.find(path.read_text().strip())
    assert found is not None
    assert found.name == "local"
    assert [row["name"] for row in json.loads((tmp_path / "stewards.json").read_text())] == ["local"]
