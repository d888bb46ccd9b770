"""The child that reads a source: ``python -m flame.node.data.reader FILE_DESCRIPTOR TARGET_DESCRIPTOR``, job on stdin.

It writes the snapshot into the target and one JSON line to stdout: a Snapshot (status 0) or a ReadError (status 3).
Errors name columns and rows, never a value.
"""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, NoReturn

import msgspec

from flame.model.errors import Exhausted, FlameError, Invalid, RunFailed
from flame.node.data.snapshot import ReadError, ReadJob, Snapshot
from flame.node.data.table import MISSING, Column, type_name, typed_column

SMALL_CSV: Final = 16 << 20
"""Bytes up to which the standard library parses a CSV faster than PyArrow can be imported and used."""
MAX_COLUMNS: Final = 4000
MAX_CELLS: Final = 2_000_000_000

_ARROW_RAGGED: Final = re.compile(r"CSV parse error:(?: Row #(\d+):)? Expected (\d+) columns, got (\d+)")
_RAGGED: Final = "Give every row as many fields as the header; put a field that holds the separator into double quotes."


def main(arguments: Sequence[str]) -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(1 << 20), type=ReadJob)
    _limit(job)
    gc.disable()  # millions of small objects and no cycles
    try:
        snapshot = read(job, int(arguments[0]), int(arguments[1]))
    except FlameError as error:
        return _tell(ReadError(error.code, error.message[:1].upper() + error.message[1:], error.next_step), 3)
    except MemoryError:
        return _tell(
            ReadError(
                Exhausted.code, f"{_source(job)} needs more memory than is allowed.", "Offer fewer columns or rows."
            ),
            3,
        )
    return _tell(snapshot, 0)


def read(job: ReadJob, data: int, target: int) -> Snapshot:
    """Read the open file ``data`` and write the snapshot into the open file ``target``. Raises FlameError."""
    from flame.wire.values import encode

    with os.fdopen(data, "rb", closefd=False) as file:
        digest = _digest(file, job)
        file.seek(0)
        columns = _chosen(job, _parquet(job, file) if job.kind == "parquet" else _csv(job, file))
    rows = len(next(iter(columns.values())))
    if rows < job.min_rows:
        raise RunFailed(
            f"{_source(job)} has fewer rows than the {job.min_rows} that the analysis demands.",
            next_step="This hospital cannot take part with these data; tell the researcher.",
        )
    try:
        parts = encode(columns)
    except Invalid as error:
        raise Exhausted(
            f"{_source(job)} cannot be handed to a program: {error.message}",
            next_step="Offer fewer or shorter text columns.",
        ) from None
    written = hashlib.sha256()
    with os.fdopen(target, "wb", closefd=False) as out:
        if sum(map(len, parts)) > job.snapshot_bytes:
            raise Exhausted(
                f"{_source(job)} takes more than {job.snapshot_bytes} bytes.", next_step="Offer fewer columns or rows."
            )
        for part in parts:
            written.update(part)
            out.write(part)
    types = {name: type_name(column) for name, column in columns.items()}
    return Snapshot(rows, types, digest, written.hexdigest())


def _limit(job: ReadJob) -> None:
    """Bounds that the kernel holds, and no core file: it would hold the data."""
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, job.memory_bytes),
        (resource.RLIMIT_CPU, job.cpu_seconds),
        (resource.RLIMIT_FSIZE, job.snapshot_bytes),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _digest(file: BinaryIO, job: ReadJob) -> str:
    """SHA-256 of the whole file. Raises Exhausted when it grew beyond the limit since it was opened."""
    digest, seen = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        seen += len(block)
        if seen > job.file_bytes:
            raise Exhausted(
                f"The file of {_source(job)} is larger than {job.file_bytes} bytes.",
                next_step="Offer fewer columns or rows.",
            )
        digest.update(block)
    return digest.hexdigest()


def _chosen(job: ReadJob, found: dict[str, Column]) -> dict[str, Column]:
    """The declared columns in their declared order; all of them when none are declared."""
    return {name: found[name] for name in job.columns} if job.columns else found


def _wanted(job: ReadJob, header: Sequence[str]) -> list[str]:
    """The names to read. Raises Invalid for a header that cannot be used and for a column that is not there."""
    if len(header) > MAX_COLUMNS:
        raise Invalid(
            f"{_source(job)} has {len(header)} columns; at most {MAX_COLUMNS} are read.",
            next_step="Offer fewer columns.",
        )
    for place, name in enumerate(header, start=1):
        if not name or name.startswith("$") or len(name) > 256 or not name.isprintable():
            raise Invalid(
                f"Column {place} of {_source(job)} has no usable name.",
                next_step="Give every column a plain name in the first row.",
            )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise Invalid(f"{_source(job)} has two columns named '{twice[0]}'.", next_step="Rename one of them.")
    for name in job.columns:
        if name not in header:
            raise Invalid(
                f"{_source(job)} has no column '{name[:64]}'.",
                next_step=f"It has: {', '.join(header[:200])}. Name columns of it in flame.toml, or add the column.",
            )
    return job.columns or list(header)


# --- CSV ------------------------------------------------------------------------------------------------------------


def _csv(job: ReadJob, file: BinaryIO) -> dict[str, Column]:
    first = _first_line(job, file)
    separator = _separator(first)
    size = os.fstat(file.fileno()).st_size
    file.seek(3 if first.startswith("\ufeff") else 0)
    return _csv_large(job, file, separator) if size > SMALL_CSV else _csv_small(job, file, separator)


def _first_line(job: ReadJob, file: BinaryIO) -> str:
    line = file.readline(1 << 20)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise _not_text(job, 1) from None
    if not text.strip("\ufeff \t\r\n"):
        raise Invalid(
            f"The first row of {_source(job)} is empty.", next_step="Write the names of the columns into the first row."
        )
    return text


def _separator(header: str) -> str:
    """A comma; a semicolon or tab only where the header has those and no comma."""
    if "," in header:
        return ","
    return ";" if ";" in header else "\t" if "\t" in header else ","


def _csv_small(job: ReadJob, file: BinaryIO, separator: str) -> dict[str, Column]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    csv.field_size_limit(1 << 20)
    rows = csv.reader(text, delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(rows)]
        wanted = _wanted(job, header)
        records = list(_records(job, rows, len(header)))
    except csv.Error:
        raise Invalid(
            f"Row {rows.line_num} of {_source(job)} has a stray double quote or an over-long field.", next_step=_RAGGED
        ) from None
    except UnicodeDecodeError:
        raise _not_text(job, rows.line_num + 1) from None
    finally:
        text.detach()
    if not records:
        raise _no_rows(job)
    fields = dict(zip(header, zip(*records, strict=True), strict=True))
    return {name: typed_column([field.strip(" \t") for field in fields[name]]) for name in wanted}


def _records(job: ReadJob, rows: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for number, row in enumerate(rows, start=2):
        if not row:
            continue  # a blank line
        if len(row) != width:
            raise _ragged(job, f"Row {number}", len(row), width)
        if any("\0" in field for field in row):
            raise Invalid(
                f"Row {number} of {_source(job)} holds a zero byte.", next_step="Export the data again as text."
            )
        yield row


def _csv_large(job: ReadJob, file: BinaryIO, separator: str) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    header = [name.strip() for name in next(csv.reader([_header_text(file)], delimiter=separator))]
    wanted = _wanted(job, header)
    try:
        table = arrow_csv.read_csv(
            file,
            read_options=arrow_csv.ReadOptions(column_names=header, block_size=8 << 20, use_threads=True),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                include_columns=wanted,
                strings_can_be_null=False,
                check_utf8=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _arrow_refused(job, error) from None
    if not table.num_rows:
        raise _no_rows(job)
    return {name: _typed_arrow_text(table.column(name)) for name in wanted}


def _header_text(file: BinaryIO) -> str:
    return file.readline(1 << 20).decode("utf-8").rstrip("\r\n")


def _arrow_refused(job: ReadJob, error: Exception) -> Invalid:
    """PyArrow's own words quote the row, so nothing but their numbers is repeated."""
    text = str(error)
    if found := _ARROW_RAGGED.match(text):
        row, expected, actual = found.groups()
        return _ragged(job, f"Row {row}" if row else "A row", int(actual), int(expected))
    if "UTF8" in text[:80]:
        return _not_text(job, None)
    return Invalid(f"{_source(job)} cannot be read as CSV.", next_step=_RAGGED)


def _typed_arrow_text(column: Any) -> Column:
    """The same rules as ``typed_column``, on Arrow's own memory where the column is one of numbers."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from flame.node.data.table import FALSE, INTEGER, NUMBER, TRUE

    column = pc.utf8_trim(column, characters=" \t")
    missing = pc.is_in(column, pa.array(sorted(MISSING)))
    present = pc.if_else(missing, pa.scalar(None, pa.string()), column)
    complete = not pc.any(missing).as_py()
    some = not pc.all(missing).as_py()
    if some and pc.all(pc.is_in(present, pa.array(sorted(TRUE | FALSE | {""}))).filter(pc.invert(missing))).as_py():
        flags = pc.if_else(missing, pa.scalar(None, pa.bool_()), pc.is_in(present, pa.array(sorted(TRUE))))
        return flags.to_numpy() if complete else pc.cast(pc.cast(flags, pa.int8()), pa.float64()).to_numpy()
    if some and complete and _all_match(present, INTEGER):
        return np.ascontiguousarray(pc.cast(pc.replace_substring_regex(present, r"^\+", ""), pa.int64()).to_numpy())
    if _all_match(present, NUMBER):
        try:
            numbers = pc.cast(pc.replace_substring_regex(present, r"^\+", ""), pa.float64()).to_numpy()
        except pa.ArrowInvalid:  # beyond what a float64 holds; Python's own reading decides, as for small files
            return typed_column(["" if field is None else field for field in present.to_pylist()])
        if not np.isinf(numbers).any():
            return np.ascontiguousarray(numbers)
    return present.to_pylist()


def _all_match(column: Any, pattern: str) -> bool:
    import pyarrow.compute as pc

    return pc.all(pc.match_substring_regex(column, f"^(?:{pattern})$")).as_py() is not False


# --- Parquet --------------------------------------------------------------------------------------------------------


def _parquet(job: ReadJob, file: BinaryIO) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
        header = list(opened.schema_arrow.names)
        _check_parquet_size(job, opened.metadata)
        wanted = _wanted(job, header)
        table = opened.read(columns=wanted, use_threads=True)
    except (pa.ArrowException, OSError):
        raise Invalid(
            f"{_source(job)} cannot be read as Parquet.", next_step="Write the file again; look whether it is complete."
        ) from None
    if not table.num_rows:
        raise _no_rows(job)
    return {name: _typed_arrow(job, name, table.column(name)) for name in wanted}


def _check_parquet_size(job: ReadJob, metadata: Any) -> None:
    """What the file says it unpacks to; what it does not say, the memory limit holds."""
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if unpacked > job.memory_bytes // 2 or metadata.num_rows * max(1, metadata.num_columns) > MAX_CELLS:
        raise Exhausted(f"{_source(job)} unpacks to more than is allowed.", next_step="Offer fewer columns or rows.")


def _typed_arrow(job: ReadJob, name: str, column: Any) -> Column:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.to_pylist()
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        return pc.cast(column, pa.string()).to_pylist()
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise Invalid(
            f"Column '{name}' of {_source(job)} is of the type {kind}, which is not read.",
            next_step="Write it as number, text, date or truth value.",
        )
    if pa.types.is_boolean(kind):
        return (
            np.array(column.to_numpy(), dtype="?")
            if not column.null_count
            else pc.cast(pc.cast(column, pa.int8()), pa.float64()).to_numpy()
        )
    wide = pa.int64() if pa.types.is_integer(kind) and not column.null_count else pa.float64()
    try:
        return np.ascontiguousarray(pc.cast(column, wide, safe=wide == pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        raise Invalid(
            f"Column '{name}' of {_source(job)} holds a number of more than 63 bits.", next_step="Write it as text."
        ) from None


# --- what is said ---------------------------------------------------------------------------------------------------


def _source(job: ReadJob) -> str:
    return f"source '{job.source}'"


def _ragged(job: ReadJob, row: str, has: int, expected: int) -> Invalid:
    return Invalid(f"{row} of {_source(job)} has {has} fields; the header has {expected}.", next_step=_RAGGED)


def _no_rows(job: ReadJob) -> Invalid:
    return Invalid(f"{_source(job)} has a header and no rows.", next_step="Export the data again.")


def _not_text(job: ReadJob, row: int | None) -> Invalid:
    where = f"Row {row} of {_source(job)}" if row else f"{_source(job)}"
    return Invalid(f"{where} is not UTF-8.", next_step="Save the file as UTF-8 (in Excel: 'CSV UTF-8').")


def _tell(message: Snapshot | ReadError, status: int) -> int:
    sys.stdout.buffer.write(msgspec.json.encode(message))
    sys.stdout.buffer.flush()
    return status


def _run() -> NoReturn:
    raise SystemExit(main(sys.argv[1:]))


if __name__ == "__main__":
    _run()
