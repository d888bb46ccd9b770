"""Text that leaves is chosen, not written, by the program: what may be said is fixed by the approved code."""

from __future__ import annotations

import ast
import builtins
import io
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from flame.model import errors
from flame.model.errors import FlameError, RunFailed, UnfitData
from flame.model.manifest import Manifest, check_path

MAX_SOURCE: Final = 1 << 20
"""Bytes of one file that are parsed; a larger one is data, and its literals do not count."""
MAX_LITERAL: Final = 1000

STANDARD_ERRORS: Final = frozenset(
    """
    _csv.Error binascii.Error csv.Error concurrent.futures._base.CancelledError decimal.DivisionByZero
    decimal.InvalidOperation json.decoder.JSONDecodeError pickle.PicklingError pickle.UnpicklingError
    _pickle.PicklingError _pickle.UnpicklingError queue.Empty _queue.Empty queue.Full re.error shutil.Error
    sqlite3.DatabaseError sqlite3.OperationalError statistics.StatisticsError struct.error
    subprocess.CalledProcessError subprocess.TimeoutExpired threading.BrokenBarrierError zipfile.BadZipFile
    zlib.error numpy.linalg.LinAlgError numpy.exceptions.AxisError numpy.exceptions.DTypePromotionError
    numpy._core._exceptions._ArrayMemoryError numpy._core._exceptions._UFuncNoLoopError
    pandas.errors.EmptyDataError pandas.errors.MergeError scipy.optimize._optimize.BracketError
    sklearn.exceptions.NotFittedError msgspec.ValidationError msgspec.DecodeError
    """.split()  # noqa: SIM905 - forty quoted names read worse
)
"""Errors of the standard library and of environments, by the names under which programs see them. A closed list:
to look a name up would mean importing what the program names."""


@dataclass(frozen=True, slots=True)
class CodeText:
    """What the approved code says: its text literals, and how many lines each file has."""

    literals: frozenset[str]
    lines: Mapping[str, int]


def read_code(folder: Path, manifest: Manifest) -> CodeText:
    """Parse the program's files once. ``folder``: where they lie, checked against the manifest before.

    Raises RunFailed when a file of the manifest is not there.
    """
    literals: set[str] = set()
    lines: dict[str, int] = {}
    for file in manifest.code:
        try:
            data = (folder / check_path(file.path)).read_bytes()
        except OSError as error:
            raise RunFailed(
                f"The file {file.path} of the program is missing: {error.strerror}.",
                next_step="Fetch the program again.",
            ) from None
        lines[file.path] = data.count(b"\n") + 1
        if file.path.endswith(".py") and len(data) <= MAX_SOURCE:
            literals.update(literals_of(data))
    return CodeText(frozenset(literals), lines)


def literals_of(source: bytes) -> Iterable[str]:
    """The text literals of a Python file of at most MAX_LITERAL characters; none of one that does not parse."""
    try:
        tree = ast.parse(io.BytesIO(source).read(), type_comments=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) <= MAX_LITERAL
    ]


def one_line(text: str) -> str:
    """Text without line breaks, controls and invisible characters, so that it stays one line of a log."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") else c for c in text)


def error_type(name: str) -> str:
    """The name of a known error; ``Exception`` for what a program could have made up."""
    name = name.removeprefix("builtins.")
    return name if name in STANDARD_ERRORS or name in _builtin_errors() or name in _flame_errors() else "Exception"


def error_code(code: str) -> str:
    """The code of an error of ours, else nothing."""
    return code if code in {kind.code for kind in _flame_errors().values()} else ""


def unfit_data(code: str) -> type[UnfitData] | None:
    """The kind of unfit data that has this code: its words are the platform's own."""
    kinds = (kind for kind in _flame_errors().values() if issubclass(kind, UnfitData))
    return next((kind for kind in kinds if kind.code == code), None)


@cache
def _builtin_errors() -> frozenset[str]:
    return frozenset(
        name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
    )


@cache
def _flame_errors() -> dict[str, type[FlameError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlameError)]
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in found}
