"""What a steward may add to an approval: conditions that narrow what runs here, and that the node enforces itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from flame.model.errors import Invalid
from flame.model.manifest import Manifest, Release

KNOWN: Final = {
    "hold": "a final result waits for a steward",
    "rounds_max": "at most so many releases under each declaration",
    "max_bytes": "at most so many bytes in each release",
    "runs_max": "at most so many runs",
    "min_rows": "at least so many rows in each source",
    "runtime_minutes": "at most so many minutes",
}
_MOST: Final = 1 << 40


def parse_conditions(texts: Sequence[str]) -> dict[str, Any]:
    """``hold``, ``rounds_max=10``, … as stewards write them. Raises Invalid: what nobody enforces is no condition."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        found[name] = (int(value) if value.isdigit() else value) if equals else True
    return check_conditions(found)


def check_conditions(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Raises Invalid for one that is not known here, or has no proper value."""
    for name, value in conditions.items():
        if name not in KNOWN:
            said = "; ".join(f"{known}: {means}" for known, means in KNOWN.items())
            raise Invalid(
                f"'{name[:64]}' is no condition that a node can enforce.",
                next_step=f"Known are {said}. Anything else is a comment (--comment).",
                field="conditions",
            )
        right = value is True if name == "hold" else type(value) is int and 1 <= value <= _MOST
        if not right:
            wanted = "hold, without a value" if name == "hold" else f"{name}=NUMBER, from 1"
            raise Invalid(f"The condition '{name}' has no proper value.", next_step=f"Write {wanted}.")
    return dict(conditions)


def narrow(manifest: Manifest, conditions: Mapping[str, Any]) -> Manifest:
    """The manifest as it may run here: in each respect the stricter of what was asked and what the steward allows."""
    if not conditions:
        return manifest
    resources = manifest.resources
    if (minutes := conditions.get("runtime_minutes")) is not None:
        resources = replace(resources, runtime_seconds=min(resources.runtime_seconds, minutes * 60))
    rows = conditions.get("min_rows", 0)
    return replace(
        manifest,
        runs_max=min(manifest.runs_max, conditions.get("runs_max", manifest.runs_max)),
        data=tuple(replace(request, min_rows=max(request.min_rows, rows)) for request in manifest.data),
        releases=tuple(_narrowed(release, conditions) for release in manifest.releases),
        resources=resources,
    )


def _narrowed(release: Release, conditions: Mapping[str, Any]) -> Release:
    hold = release.kind == "final" and conditions.get("hold", False)
    return replace(
        release,
        max_bytes=min(release.max_bytes, conditions.get("max_bytes", release.max_bytes)),
        rounds_max=min(release.rounds_max, conditions.get("rounds_max", release.rounds_max)),
        release="hold" if hold else release.release,
    )
