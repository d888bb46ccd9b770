"""``policy.toml``: what this hospital allows whatever a manifest asks for. An absent file is the strict default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from flame.model.errors import Invalid
from flame.node._toml import line_of, read_toml, refuse_unknown
from flame.privacy.release import MAX_ERRORS, MAX_LINES, Caps

FILE: Final = "policy.toml"
MIB: Final = 1 << 20

Isolation = Literal["full", "no-network-own-files", "none"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of policy.toml, each with its strict default."""

    host_environments: bool = False
    """Whether runs on real data may use an environment made of this host's own Python."""
    require_isolation: Isolation = "no-network-own-files"
    """The least isolation that a run on real data needs."""
    public_data: bool = False
    """Whether this node offers public data only; what protects patients then warns instead of refusing."""
    autostart: bool = True
    """Whether an approved run starts by itself when its start order comes."""
    unsigned_submissions: Literal["ask", "refuse"] = "ask"
    """What to do with an analysis that no researcher's key has signed."""
    release_final: Literal["manifest", "auto", "hold"] = "manifest"
    """Whether a final result waits for a steward: as the manifest says, never, or always."""
    max_release_bytes: int = 64 * MIB
    """The largest single release."""
    max_rounds: int = 1000
    """How often anything may be released under one declaration."""
    max_log_lines: int = MAX_LINES
    max_errors: int = MAX_ERRORS
    confirm_hub_approvals: tuple[str, ...] = ()
    """Users of the hub whose approval there this node signs by itself."""
    results_keep_days: int = 90
    """How long a sealed result is kept at the aggregator's node."""

    @property
    def caps(self) -> Caps:
        return Caps(self.max_release_bytes, self.max_rounds, self.max_log_lines, self.max_errors)


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "require_isolation": ("full", "no-network-own-files", "none"),
    "unsigned_submissions": ("ask", "refuse"),
    "release_final": ("manifest", "auto", "hold"),
}
_RANGES: Final[dict[str, tuple[int, int]]] = {
    "max_release_bytes": (1, 4 << 30),
    "max_rounds": (1, 1_000_000),
    "max_log_lines": (0, MAX_LINES),
    "max_errors": (0, MAX_ERRORS),
    "results_keep_days": (0, 3650),
}


def read_policy(path: Path) -> Policy:
    """Raises Invalid for anything but known keys with allowed values, naming the line."""
    table, text = read_toml(path)
    known = [field.name for field in fields(Policy)]
    refuse_unknown(path.name, text, table, known)
    values = {key: _checked(key, value, path.name, text) for key, value in table.items()}
    return Policy(**values)


def _checked(key: str, value: Any, file: str, text: str) -> Any:
    where = f"{file}, line {line_of(text, key)}: {key}"
    if key == "confirm_hub_approvals":
        if not isinstance(value, list) or not all(isinstance(name, str) and 0 < len(name) <= 128 for name in value):
            raise Invalid(f"{where} is {_shown(value)}.", next_step='Write a list of user names: ["ada"].', key=key)
        return tuple(value)
    if key in _CHOICES:
        if value not in _CHOICES[key] or not isinstance(value, str):
            raise Invalid(
                f"{where} is {_shown(value)}.",
                next_step=f"Write one of {', '.join(_CHOICES[key])}, in quotes.",
                key=key,
            )
    elif key in _RANGES:
        low, high = _RANGES[key]
        if type(value) is not int or not low <= value <= high:
            raise Invalid(
                f"{where} is {_shown(value)}.", next_step=f"Write a whole number from {low} to {high}.", key=key
            )
    elif type(value) is not bool:
        raise Invalid(f"{where} is {_shown(value)}.", next_step="Write true or false, without quotes.", key=key)
    return value


def _shown(value: Any) -> str:
    return repr(value)[:64]
