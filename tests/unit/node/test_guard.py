"""No byte leaves that the manifest does not declare; text that leaves stands in the approved code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.errors import Invalid, Malformed, NotAllowed, ReleaseRefused, RunFailed
from flame.model.manifest import Release
from flame.node.egress import WITHHELD, CodeText, Guard, Policy, read_code
from flame.wire.gateway import Fail
from flame.wire.values import encode_bytes
from node_world import AGGREGATOR, DATA_NODES, RELEASES, manifest

PROGRAM = b'''
"""Fits."""
import flame
fed.log("fitted {n} rows", n=3)
fed.log(f"patient {name} has it")
fed.log("split " "in two")
'''


def guard(node=DATA_NODES[0], policy=None, releases=RELEASES, code=None):
    return Guard(manifest(releases), node, policy or Policy(), code=code)


def code(tmp_path: Path) -> CodeText:
    files = {
        "main.py": PROGRAM,
        "lib/more.py": b"x = 'other literal'\n",
        "broken.py": b"def (:\n",
        "notes.txt": b"'not code'",
    }
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return read_code(tmp_path, manifest(code=files))


def test_a_declared_contribution_passes_and_is_counted():
    mine = guard()
    body = encode_bytes({"g": np.ones(3), "n": 5})
    assert not mine.check_sum("beta", 0, body).hold
    assert mine.book.counts["sum/beta"] == {"releases": 1, "bytes": len(body), "rounds": {"beta": 0}}


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": np.array([1.0, np.inf])}])
def test_what_is_not_finite_stays_and_is_not_counted(value):
    mine = guard()
    with pytest.raises(ReleaseRefused, match="'x'"):
        mine.check_sum("beta", 0, encode_bytes(value))
    assert mine.book.counts == {}


@pytest.mark.parametrize(
    "value",
    [{"x": "text"}, {"x": [1, 2]}, {"x": {"y": 1}}, {"x": b"free bytes"}, {}, [1], 3, {"x": None}, {"x": 2**63}],
)
def test_only_a_flat_summary_of_numbers_is_a_contribution(value):
    with pytest.raises(Invalid):
        guard().check_sum("beta", 0, encode_bytes(value))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_value_are_refused_and_break_nothing(data):
    mine = guard()
    for check in (lambda: mine.check_sum("beta", 0, data), lambda: mine.check_object("c", data)):
        with pytest.raises(Invalid):
            check()
    assert mine.book.counts == {}


def test_an_undeclared_release_is_refused_for_that_reason():
    with pytest.raises(ReleaseRefused) as refused:
        guard().check_sum("gamma", 0, b"not even a value")
    assert refused.value.fields["rule"] == "declared"


def test_roles_are_kept():
    body = encode_bytes({"x": 1})
    with pytest.raises(NotAllowed):
        guard(AGGREGATOR).check_sum("beta", 0, body)
    with pytest.raises(NotAllowed):
        guard().check_final("result.json", b"{}")
    with pytest.raises(NotAllowed):
        guard("00000008-0000-4000-8000-000000000000")


def test_the_aggregators_messages_are_models_where_declared_and_objects_elsewhere():
    body = encode_bytes({"x": 1})
    aggregator, hospital = guard(AGGREGATOR), guard()
    assert aggregator.check_object("state", body).release.kind == "model"
    assert aggregator.check_object("other", body).release.kind == "object"
    assert hospital.check_object("state", body).release.kind == "object"


def test_messages_have_their_bytes_and_their_number():
    mine = guard()
    with pytest.raises(ReleaseRefused, match="1024"):
        mine.check_object("c", encode_bytes({"x": np.ones(1000)}))
    for _ in range(5):
        mine.check_object("c", encode_bytes(1))
    with pytest.raises(ReleaseRefused):
        mine.check_object("d", encode_bytes(1))


@pytest.mark.parametrize(
    ("declared", "setting", "held"),
    [("hold", "manifest", True), ("auto", "manifest", False), ("auto", "hold", True), ("hold", "auto", False)],
)
def test_the_policy_decides_which_final_result_waits(declared, setting, held):
    final = [Release("*", "final", 100, 1, "clear", declared)]
    mine = guard(AGGREGATOR, Policy(release_final=setting), final)
    assert mine.check_final("result.json", b"{}").hold is held


def test_only_literals_of_the_approved_code_leave_as_text(tmp_path):
    mine = guard(code=code(tmp_path))
    assert mine.check_log("info", "fitted {n} rows") == "fitted {n} rows"
    assert mine.check_log("info", "split in two") == "split in two"
    assert mine.check_log("info", "other literal") == "other literal"
    for said in ("patient Miller has it", "fitted 3 rows", "not code", "fitted {n} rows ", "def (:"):
        assert mine.check_log("info", said) == WITHHELD


def test_without_the_code_no_text_leaves():
    assert guard().check_log("info", "fitted {n} rows") == WITHHELD


def test_a_line_stays_one_line():
    mine = guard(code=CodeText(frozenset({"a\nb\x1b[2Jc\u202e"}), {}))
    line = mine.check_log("info", "a\nb\x1b[2Jc\u202e")
    assert line is not None
    assert line.isprintable()


def test_more_lines_than_allowed_stay():
    mine = guard(policy=Policy(max_log_lines=2))
    assert [mine.check_log("info", "x") for _ in range(4)] == [WITHHELD, WITHHELD, None, None]


def test_where_logs_are_not_declared_not_even_their_number_leaves():
    assert guard(releases=RELEASES[:1]).check_log("info", "x") is None


def test_an_error_says_its_type_and_where_it_stood_and_nothing_else(tmp_path):
    mine = guard(code=code(tmp_path))
    failure = Fail(
        "ValueError",
        [("main.py", 4), ("main.py", 9999), ("main.py", 0), ("/etc/passwd", 1), ("Miller", 3)],
        "value 'Miller' is wrong",
        "refused",
    )
    said = mine.check_failure(failure)
    assert said == {"type": "ValueError", "code": "refused", "frames": [["main.py", 4]]}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ValueError", "ValueError"),
        ("builtins.KeyError", "KeyError"),
        ("json.decoder.JSONDecodeError", "json.decoder.JSONDecodeError"),
        ("numpy.linalg.LinAlgError", "numpy.linalg.LinAlgError"),
        ("flame.model.errors.ReleaseRefused", "flame.model.errors.ReleaseRefused"),
        ("PatientMillerHasIt", "Exception"),
        ("json.PatientMiller", "Exception"),
        ("antigravity.Error", "Exception"),
        ("flame.model.errors.Miller", "Exception"),
        ("print", "Exception"),
        ("", "Exception"),
    ],
)
def test_a_type_that_the_program_made_up_is_an_exception(name, said):
    found = guard().check_failure(Fail(name, code="miller"))
    assert found == {"type": said, "code": "", "frames": []}


def test_errors_end_too():
    mine = guard(policy=Policy(max_errors=1))
    assert mine.check_failure(Fail("ValueError")) is not None
    assert mine.check_failure(Fail("ValueError")) is None


def test_progress_rises_in_steps_of_five():
    mine = guard()
    assert [mine.check_progress(p) for p in (3, 4, 7, 6, 12, 12, 99, 100, 50, 200)] == [
        0,
        None,
        5,
        None,
        10,
        None,
        95,
        100,
        None,
        None,
    ]


def test_a_file_that_is_missing_ends_the_run_in_words(tmp_path):
    with pytest.raises(RunFailed, match=r"main\.py"):
        read_code(tmp_path, manifest())


@pytest.mark.parametrize(
    "source", [b"(" * 5000, b"\x00", b"-" * 100_000 + b"1", b"# coding: nonsense\n'x'", b"'" + b"x" * 2000 + b"'"]
)
def test_code_that_does_not_parse_has_no_literals(tmp_path, source):
    (tmp_path / "main.py").write_bytes(source)
    assert read_code(tmp_path, manifest(code={"main.py": source})).literals == frozenset()


def test_a_value_with_a_spoiled_head_is_malformed():
    with pytest.raises(Malformed):
        guard().check_object("c", encode_bytes({"x": np.ones(2)})[:-64])
