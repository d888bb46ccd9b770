"""The catalogue's reference, written from its entries and badges: ``python scripts/methods_reference.py > docs/reference/methods.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from flame.methods.catalogue import CATALOGUE, Badge, Entry, Parameter, badges_of

HEAD = """\
# Methods

Written by `python scripts/methods_reference.py`; a test compares the two. `flame methods list` and
`flame methods show NAME` tell the same.

Each method is *local summary → sum → update*: hospitals answer with sums over their patients, and only those leave.
The program `flame.methods.programs.catalogue_method` runs any of them: its parameter `method` is the name, the others
are those below. In a program of your own: `flame.methods.named.method(name, parameters)` and `flame.methods.run.run`.

**Before the first sum** the hospitals agree on the type of each column and on the levels of categories, by a sum that
tells which levels there are and not who has which. A column that is not there, text where others have numbers, values
outside a plausible range: the hospital's own error names the column. Incomplete rows are left out and counted.
Event times in survival methods are published as one set of all hospitals; `bin_width` rounds them, and
`strata=site` in Cox regression needs none.

**A hospital that leaves** in mid-run makes the method begin anew with those who stay: the result is exact for them, and
says how many they were.

**Formulas** are read by formulaic: `died ~ age + C(sex) * bmi + log(crp)`. Allowed are columns, `C(column)` with
treatment, sum, Helmert or polynomial contrasts, arithmetic in `I(…)`, and log, log10, log2, log1p, exp, sqrt, abs.
Functions that look at a whole column first (center, scale, splines) are refused: each hospital would do so for itself.

**Badges** say how far a method was from an independent reference on the pooled data, at most, over all splits and in
fixed point as secure sums use it. They are measured by `tests/conformance/test_methods.py`, which writes them; a
deviation is rounded up to a power of ten, and 1e-14 is the last digit.
"""


def render() -> str:
    parts = [HEAD]
    families = dict.fromkeys(entry.family for entry in CATALOGUE.values())
    for family in families:
        parts.append(f"## {family[:1].upper()}{family[1:]}\n")
        for entry in CATALOGUE.values():
            if entry.family == family:
                parts += _entry(entry)
    return "\n".join(parts)


def _entry(entry: Entry) -> Iterator[str]:
    yield f"### `{entry.name}`: {entry.title}\n\n{entry.description}\n"
    yield "| Parameter | Type | |\n|---|---|---|\n" + "\n".join(map(_parameter, entry.parameters)) + "\n"
    badges = badges_of(entry.name)
    if badges:
        head = "| Data | Compared | Hospitals | Reference | Deviation | Tolerance |\n|---|---|---|---|---|---|\n"
        yield head + "\n".join(map(_badge, badges)) + "\n"


def _parameter(parameter: Parameter) -> str:
    kind = f"list of {parameter.of}s" if parameter.type == "list" else parameter.type
    text = parameter.description.replace("|", "\\|")
    if parameter.options:
        text += " One of " + ", ".join(f"`{option}`" for option in parameter.options) + "."
    if parameter.required:
        text += " Required."
    if parameter.default is not None and parameter.default != ():
        default = parameter.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        text += f" Default: `{shown.lower() if isinstance(default, bool) else shown}`."
    return f"| `{parameter.name}` | {kind} | {text} |"


def _badge(badge: Badge) -> str:
    sites = ", ".join(map(str, badge.sites))
    deviation = f"{badge.deviation:.0e}" if badge.deviation else "none"
    tolerance = f"{badge.tolerance:.0e}" if badge.tolerance else "exact"
    return f"| {badge.data} | {badge.quantity} | {sites} | {badge.oracle} | {deviation} | {tolerance} |"


if __name__ == "__main__":
    sys.stdout.write(render())
