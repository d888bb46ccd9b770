"""A source is read once, typed, bounded, and its errors never show a value."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import random
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.model.errors import Exhausted, FlameError, Invalid, NotFound, RunFailed, Unavailable
from flame.model.manifest import DataRequest
from flame.node.data import ReadLimits, reader, take_snapshot
from flame.node.data.snapshot import ReadJob
from flame.node.data.sources import make_source
from flame.wire.values import decode

CSV = b"id,age,score,code,flag\n1,30,1.5,01067,true\n2,NA,2,99999,false\n3,41,-3e2,00001,true\n"
SECRET = "Miller4711"


def source(path):
    return make_source("data", "d1", path, ("*",), False)


def request(columns=(), min_rows=0):
    return DataRequest("*", "data", "table", tuple(columns), min_rows)


def written(tmp_path, data, name="cohort.csv"):
    path = tmp_path / name
    path.write_bytes(data)
    return source(path)


def taken(tmp_path, data, columns=(), min_rows=0, limits=None, name="cohort.csv"):
    target = tmp_path / "snapshot"
    found = take_snapshot(written(tmp_path, data, name), request(columns, min_rows), target, limits)
    return found, decode(target.read_bytes())


def in_process(data, columns=(), small=True):
    """The reader without its process: for properties, which need many readings."""
    job = ReadJob("data", "csv", list(columns), 0, 1 << 30, 1 << 30, 1 << 32, 60)
    file, target = os.memfd_create("data"), os.memfd_create("target")
    before, reader.SMALL_CSV = reader.SMALL_CSV, (1 << 40) if small else -1
    try:
        os.write(file, data)
        found = reader.read(job, file, target)
        return found, decode(os.pread(target, 1 << 26, 0))
    finally:
        reader.SMALL_CSV = before
        os.close(file)
        os.close(target)


def test_columns_come_typed_and_in_order(tmp_path):
    found, columns = taken(tmp_path, CSV)
    assert found.rows == 3
    assert found.columns == {"id": "int64", "age": "float64", "score": "float64", "code": "text", "flag": "bool"}
    assert columns["id"].tolist() == [1, 2, 3]
    assert np.isnan(columns["age"]).tolist() == [False, True, False]
    assert columns["code"] == ["01067", "99999", "00001"]
    assert columns["flag"].tolist() == [True, False, True]
    assert found.file_sha256 == hashlib.sha256(CSV).hexdigest()
    assert found.snapshot_sha256 == hashlib.sha256((tmp_path / "snapshot").read_bytes()).hexdigest()
    assert (tmp_path / "snapshot").stat().st_mode & 0o777 == 0o600


def test_only_the_declared_columns_are_handed_on_in_their_order(tmp_path):
    found, columns = taken(tmp_path, CSV, ("score", "id"))
    assert list(found.columns) == ["score", "id"]
    assert set(columns) == {"score", "id"}
    assert b"01067" not in (tmp_path / "snapshot").read_bytes()


def test_the_same_file_gives_the_same_snapshot(tmp_path):
    digests = set()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        digests.add(taken(folder, CSV)[0].snapshot_sha256)
    assert len(digests) == 1


@pytest.mark.parametrize(
    "data",
    [
        CSV.replace(b",", b";"),
        CSV.replace(b",", b"\t"),
        b"\xef\xbb\xbf" + CSV,
        CSV.replace(b"\n", b"\r\n"),
        CSV.rstrip(),
    ],
)
def test_the_usual_dialects_give_the_same_table(tmp_path, data):
    plain = in_process(CSV)[0].snapshot_sha256
    assert in_process(data)[0].snapshot_sha256 == plain
    assert in_process(data, small=False)[0].snapshot_sha256 == plain
    assert taken(tmp_path, data)[0].snapshot_sha256 == plain


NAMES = st.lists(
    st.text(alphabet="abcxyz_é ", min_size=1, max_size=5).map(str.strip).filter(bool),
    min_size=1,
    max_size=4,
    unique=True,
)
CELLS = st.one_of(
    st.integers(-100, 100).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["", "NA", "true", "false", "007", "a b", 'say "x"', "a,b", "two\nlines", "é"]),
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=6),
)


@st.composite
def tables(draw):
    names = draw(NAMES)
    columns = [draw(st.sampled_from([CELLS, st.integers().map(str), st.sampled_from(["1", "2.5", ""])])) for _ in names]
    return names, draw(st.lists(st.tuples(*columns), min_size=1, max_size=6))


def as_csv(names, rows):
    text = io.StringIO(newline="")
    out = csv.writer(text, quoting=csv.QUOTE_ALL)
    out.writerow(names)
    out.writerows(rows)
    return text.getvalue().encode()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_what_is_written_as_csv_is_read_back_by_both_readers(table):
    names, rows = table
    data = as_csv(names, rows)
    small, columns = in_process(data)
    large, _ = in_process(data, small=False)
    assert small == large
    assert small.rows == len(rows)
    for place, name in enumerate(names):
        for row, found in zip(rows, columns[name], strict=True):
            field = row[place].strip(" \t")
            if small.columns[name] == "text":
                assert found == field or (found is None and field in reader.MISSING)
            elif small.columns[name] == "int64":
                assert found == int(field)
            elif (
                small.columns[name] == "float64"
                and field not in reader.MISSING
                and field.lower() not in ("true", "false")
            ):
                assert found == float(field)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=120).map(lambda tail: b"a,b\n" + tail))
def test_no_bytes_break_the_reader_and_no_error_repeats_them(data):
    for small in (True, False):
        try:
            in_process(data, small=small)
        except FlameError as error:
            assert error.next_step


def test_a_large_file_and_a_parquet_file_give_the_same_columns_as_a_small_one(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    numbers = random.Random(1)
    rows = [(i, numbers.random() if i % 7 else "", numbers.choice(["a", "b", ""])) for i in range(2000)]
    data = as_csv(("i", "x", "t"), rows)
    small, columns = in_process(data)
    assert in_process(data, small=False)[0] == small
    table = pa.table(
        {
            "i": columns["i"],
            "x": pa.array([row[1] or None for row in rows], pa.float64()),
            "t": pa.array(columns["t"], pa.string()),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    found = take_snapshot(source(tmp_path / "t.parquet"), request(), tmp_path / "snapshot")
    assert found.snapshot_sha256 == small.snapshot_sha256
    assert found.columns == small.columns


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\n", "first row"),
        (b"a,b\n", "no rows"),
        (b"a,a\n1,2\n", "two columns named 'a'"),
        (b"a,\n1,2\n", "Column 2"),
        (b"$a,b\n1,2\n", "Column 1"),
        (f"a,b\n1,2\n3,4,{SECRET}\n".encode(), "Row 3 "),
        (f"a,b\n1,2\n{SECRET}\n".encode(), "Row 3 "),
        (f'a,b\n1,2\n"{SECRET}" x,4\n'.encode(), "Row 3 "),
        (f'a,b\n1,2\n"{SECRET},4\n'.encode(), "double quote"),
        (f"a,b\n1,2\n{SECRET}\xe4,4\n".encode("latin-1"), "UTF-8"),
        (f"a\xe4,b\n1,2\n{SECRET}\n".encode("latin-1"), "UTF-8"),
        (f"a,b\n1,2\n{SECRET}\0,4\n".encode(), "Row 3 "),
    ],
)
def test_what_cannot_be_read_says_where_and_what_to_do_and_no_value(tmp_path, data, said):
    with pytest.raises(Invalid, match=said) as refused:
        taken(tmp_path, data)
    assert SECRET not in str(refused.value)
    assert refused.value.next_step
    assert not (tmp_path / "snapshot").exists()


def test_a_large_file_that_is_ragged_shows_no_value_either():
    data = b"a,b\n" + b"1,2\n" * 100 + f"3,4,{SECRET}\n".encode()
    with pytest.raises(Invalid) as refused:
        in_process(data, small=False)
    assert SECRET not in str(refused.value)
    assert "3 fields" in str(refused.value)


def test_a_missing_column_is_answered_with_those_that_are_there(tmp_path):
    with pytest.raises(Invalid, match="'weight'") as refused:
        taken(tmp_path, CSV, ("age", "weight"))
    assert "id, age, score, code, flag" in refused.value.next_step


def test_too_few_rows_end_the_run_without_telling_how_many_there_are(tmp_path):
    with pytest.raises(RunFailed, match="fewer rows than the 10") as refused:
        taken(tmp_path, CSV, min_rows=10)
    assert "3" not in str(refused.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(NotFound, match="not there"):
        take_snapshot(source(tmp_path / "gone.csv"), request(), tmp_path / "snapshot")


def test_links_devices_pipes_and_folders_are_refused(tmp_path):
    (tmp_path / "real.csv").write_bytes(CSV)
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, said in (
        ("link.csv", "symbolic link"),
        ("pipe.csv", "not a plain file"),
        ("folder.csv", "not a plain file"),
    ):
        with pytest.raises(Invalid, match=said):
            take_snapshot(source(tmp_path / name), request(), tmp_path / "snapshot")
    assert not (tmp_path / "snapshot").exists()


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with pytest.raises(Exhausted, match="bytes"):
        taken(tmp_path, CSV, limits=ReadLimits(file_bytes=10))


def test_a_snapshot_above_the_limit_is_not_written(tmp_path):
    with pytest.raises(Exhausted):
        taken(tmp_path, CSV, limits=ReadLimits(snapshot_bytes=100))


def test_a_reader_without_memory_ends_alone(tmp_path):
    wide = b"a\n" + b"some longer text here\n" * 400_000
    with pytest.raises(Exhausted):
        taken(tmp_path, wide, limits=ReadLimits(memory_bytes=64 << 20))
    assert not (tmp_path / "snapshot").exists()


def test_a_reader_that_takes_too_long_is_stopped(tmp_path):
    with pytest.raises(Unavailable, match="longer than"):
        taken(tmp_path, CSV, limits=ReadLimits(seconds=0.001))
    assert not (tmp_path / "snapshot").exists()


@pytest.mark.parametrize("data", [b"PAR1", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_only_calls_itself_parquet_is_refused(tmp_path, data):
    with pytest.raises(Invalid, match="Parquet"):
        taken(tmp_path, data, name="x.parquet")


def test_a_snapshot_is_never_written_over(tmp_path):
    (tmp_path / "snapshot").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        taken(tmp_path, CSV)
    assert (tmp_path / "snapshot").read_bytes() == b"precious"


def test_nothing_of_the_nodes_environment_reaches_the_reader(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("FLAME_NODE_TOKEN", SECRET)
    seen = {}
    original = subprocess.run

    def watching(*arguments, **options):
        seen.update(options["env"])
        return original(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", watching)
    taken(tmp_path, CSV)
    assert SECRET not in seen.values()
    assert set(seen) <= {"PATH", "LANG", "OPENBLAS_NUM_THREADS", "ARROW_USER_SIMD_LEVEL"}
