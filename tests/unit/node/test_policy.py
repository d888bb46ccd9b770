"""The policy of a hospital is strict by default and read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.errors import Invalid
from flame.node.egress.policy import Policy, read_policy


def written(tmp_path, text):
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def test_without_a_file_everything_is_strict(tmp_path):
    policy = read_policy(tmp_path / "policy.toml")
    assert policy == Policy()
    assert not policy.host_environments
    assert not policy.public_data
    assert policy.require_isolation == "no-network-own-files"
    assert policy.unsigned_submissions == "ask"
    assert policy.release_final == "manifest"


def test_what_is_written_holds(tmp_path):
    policy = written(tmp_path, 'public_data = true\nrelease_final = "hold"\nmax_rounds = 7\n"autostart" = false\n')
    assert policy == Policy(public_data=True, release_final="hold", max_rounds=7, autostart=False)
    assert policy.caps.max_rounds == 7


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# a comment\nautostart = true\nautostrat = true\n", 3),
        ("autostart = true\n\n[nested]\nautostart = true\n", 3),
        ('autostart = "yes"\n', 1),
        ("\nmax_rounds = true\n", 2),
        ("max_rounds = 0\n", 1),
        ("max_release_bytes = 99999999999\n", 1),
        ('\n\nrelease_final = "always"\n', 3),
        ("release_final = 3\n", 1),
        ("max_log_lines = 201\n", 1),
        ("autostart = 1\n", 1),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path, text, line):
    with pytest.raises(Invalid, match=rf"policy\.toml, line {line}:") as refused:
        written(tmp_path, text)
    assert refused.value.next_step


@pytest.mark.parametrize("text", ["autostart = \n", "autostart = true\nautostart = false\n", "[[x"])
def test_what_is_no_toml_says_where(tmp_path, text):
    with pytest.raises(Invalid, match="line"):
        written(tmp_path, text)


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "policy.toml").write_bytes(b"autostart = true\n# \xe4\n")
    with pytest.raises(Invalid, match="line 2: this is not UTF-8"):
        read_policy(tmp_path / "policy.toml")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_loosens_anything_by_accident(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("policy")
    try:
        policy = written(folder, text.replace("\r", ""))
    except (Invalid, UnicodeEncodeError):
        return
    assert policy == Policy()  # only comments and blanks
