"""The release rules: what a run's declarations allow, and how much of it is used up. Pure.

A program may release what its manifest declares, as often and as large as declared there, and never more than the
hospital's own caps. Whatever is asked for is charged first and sent afterwards: a crash in between leaves it spent.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from flame.model.errors import Invalid, Malformed, ReleaseRefused
from flame.model.manifest import Release, ReleaseKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LINES: Final = 200
MAX_ERRORS: Final = 20
MAX_LINE_BYTES: Final = 1000
MAX_ENTRIES: Final = 4096
MAX_ROUND: Final = 2**31
MAX_ENTRY_NAME: Final = 200

_SUMMABLE: Final = frozenset("iuf")


@dataclass(frozen=True, slots=True)
class Caps:
    """What a hospital allows whatever a manifest declares."""

    max_bytes: int = 2**63 - 1
    """Bytes of one release."""
    max_rounds: int = 2**63 - 1
    """Releases under one declaration."""
    max_lines: int = MAX_LINES
    max_errors: int = MAX_ERRORS


@dataclass(frozen=True, slots=True)
class Used:
    """What has left under one declaration."""

    releases: int = 0
    bytes: int = 0
    rounds: Mapping[str, int] = field(default_factory=dict)
    """The newest round of each name that is counted in rounds."""

    def document(self) -> dict[str, Any]:
        return {"releases": self.releases, "bytes": self.bytes, "rounds": dict(self.rounds)}


class ReleaseBook:
    """What may still leave in one run. Safe to use from several threads.

    counts: what an earlier book of the same run had used up (its ``counts``).
    """

    def __init__(
        self,
        releases: Sequence[Release],
        counts: Mapping[str, Mapping[str, Any]] | None = None,
        caps: Caps | None = None,
    ) -> None:
        self._caps = caps or Caps()
        self._declared = {(release.kind, release.name): release for release in releases}
        self._used = {key: _restored(key, value) for key, value in (counts or {}).items()}
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """What is used up, as JSON: ``{"sum/beta": {"releases": 3, "bytes": 1200, "rounds": {"beta": 2}}}``."""
        with self._lock:
            return {key: used.document() for key, used in self._used.items()}

    @property
    def max_body(self) -> int:
        """The largest body that any declared release may have, in bytes."""
        bodies = [r.max_bytes for r in self._declared.values() if r.kind != "log"]
        return min(max(bodies, default=0), self._caps.max_bytes)

    def declaration(self, kind: ReleaseKind, name: str) -> Release | None:
        return self._declared.get((kind, name)) or self._declared.get((kind, "*"))

    def charge(self, kind: ReleaseKind, name: str, size: int, round: int | None = None) -> Release:
        """Count one release and return the declaration that allows it.

        round: for what is released once a round; it must be newer than the last of this name.
        Raises ReleaseRefused (nothing is counted) with the fields rule, limit and name.
        """
        release = self.declaration(kind, name)
        if release is None:
            raise _refused(
                "declared",
                kind,
                name,
                0,
                f"The manifest declares no release of the kind '{kind}' named '{name[:128]}'.",
                f'Add [[releases]] with kind = "{kind}" and name = "{name[:128]}" to flame.toml and submit again.',
            )
        key = f"{release.kind}/{release.name}"
        with self._lock:
            used = self._used.get(key, Used())
            self._check_size(release, name, size)
            self._check_rounds(release, name, used, round)
            rounds = used.rounds if round is None else {**used.rounds, name: round}
            self._used[key] = replace(used, releases=used.releases + 1, bytes=used.bytes + size, rounds=rounds)
        return release

    def charge_line(self, size: int) -> Release:
        """Count one log line of ``size`` bytes. Raises ReleaseRefused."""
        if size > MAX_LINE_BYTES:
            raise _refused(
                "line length",
                "log",
                "*",
                MAX_LINE_BYTES,
                f"A log line of {size} bytes is longer than the {MAX_LINE_BYTES} that may leave.",
                "Shorten the line.",
            )
        return self._charge_text("log", "lines", self._caps.max_lines, size)

    def charge_error(self, size: int) -> None:
        """Count one error report. Raises ReleaseRefused."""
        self._charge("error/*", "errors", self._caps.max_errors, size)

    def _charge_text(self, kind: ReleaseKind, what: str, limit: int, size: int) -> Release:
        release = self.declaration(kind, "*") or next((r for r in self._declared.values() if r.kind == kind), None)
        if release is None:
            raise _refused(
                "declared",
                kind,
                "*",
                0,
                f"The manifest declares no release of the kind '{kind}'; such text stays at the node.",
                f'Add [[releases]] with kind = "{kind}" to flame.toml and submit the analysis again.',
            )
        self._charge(f"{kind}/*", what, min(limit, release.rounds_max), size)
        return release

    def _charge(self, key: str, what: str, limit: int, size: int) -> None:
        with self._lock:
            used = self._used.get(key, Used())
            if used.releases >= limit:
                raise _refused(
                    what,
                    key.partition("/")[0],
                    "*",
                    limit,
                    f"A run may release {limit} {what}; all of them are used up.",
                    "Further ones stay at the node.",
                )
            self._used[key] = replace(used, releases=used.releases + 1, bytes=used.bytes + size)

    def _check_size(self, release: Release, name: str, size: int) -> None:
        limit = min(release.max_bytes, self._caps.max_bytes)
        if size > limit:
            raise _refused(
                "max_bytes",
                release.kind,
                name,
                limit,
                f"'{name}' is {size} bytes long; {_whose(limit, release.max_bytes)} allows {limit}.",
                _advice(
                    "Send less at once, or declare a higher max_bytes in flame.toml and submit again.",
                    limit,
                    release.max_bytes,
                ),
            )

    def _check_rounds(self, release: Release, name: str, used: Used, round: int | None) -> None:
        limit = min(release.rounds_max, self._caps.max_rounds)
        if used.releases >= limit:
            raise _refused(
                "rounds_max",
                release.kind,
                name,
                limit,
                f"'{name}' was released {used.releases} times; {_whose(limit, release.rounds_max)} allows no more.",
                _advice(
                    "Use fewer rounds, or declare a higher rounds_max in flame.toml and submit again.",
                    limit,
                    release.rounds_max,
                ),
            )
        if round is None:
            return
        if not 0 <= round < MAX_ROUND:
            raise _refused(
                "round",
                release.kind,
                name,
                MAX_ROUND,
                f"Round {round} of '{name}' is no round.",
                "Count rounds from 0.",
            )
        last = used.rounds.get(name, -1)
        if round <= last:
            raise _refused(
                "round",
                release.kind,
                name,
                last + 1,
                f"Round {round} of '{name}' has been released before (the newest is {last}); a round is released once.",
                "Contribute to a later round.",
            )


def check_summary(entries: Mapping[str, NDArray[Any]]) -> int:
    """Check that a summary can be summed: named arrays of finite numbers. Returns their bytes.

    Raises Invalid for what cannot be summed and ReleaseRefused for a number that is not finite; both name the entry.
    """
    import numpy as np

    if not entries:
        raise Invalid("The summary is empty.", next_step="Put at least one array or number into it.")
    if len(entries) > MAX_ENTRIES:
        raise Invalid(
            f"The summary has {len(entries)} entries; at most {MAX_ENTRIES} are allowed.",
            next_step="Stack them into arrays.",
        )
    for name, array in entries.items():
        if len(name) > MAX_ENTRY_NAME:
            raise Invalid(
                f"The entry '{name[:40]}…' has a name of more than {MAX_ENTRY_NAME} characters.", entry=name[:40]
            )
        if array.dtype.kind not in _SUMMABLE:
            raise Invalid(
                f"'{name}' is an array of {array.dtype}, which cannot be summed.",
                next_step="Convert it to numbers.",
                entry=name,
            )
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise ReleaseRefused(
                f"'{name}' holds a number that is not finite (NaN or infinite); such a number would spoil the sum.",
                next_step="Look for missing values or a division by zero before the summary is made.",
                rule="finite",
                entry=name,
            )
    return sum(array.nbytes for array in entries.values())


def _whose(limit: int, declared: int) -> str:
    return "the manifest" if limit == declared else "this hospital's policy"


def _advice(author: str, limit: int, declared: int) -> str:
    return author if limit == declared else "Ask the data steward of this node; the limit stands in its policy.toml."


def _refused(rule: str, kind: str, name: str, limit: int, message: str, next_step: str) -> ReleaseRefused:
    return ReleaseRefused(message, next_step=next_step, rule=rule, kind=kind, name=name, limit=limit)


def _restored(key: str, value: Mapping[str, Any]) -> Used:
    try:
        used = Used(value["releases"], value["bytes"], dict(value["rounds"]))
        numbers = [used.releases, used.bytes, *used.rounds.values()]
    except (KeyError, TypeError, ValueError):
        raise Malformed(f"The stored counters of '{key}' cannot be read.") from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise Malformed(f"The stored counters of '{key}' cannot be read.")
    return used
