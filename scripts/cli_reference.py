"""The command line's reference, written from the commands themselves: ``python scripts/cli_reference.py > docs/reference/cli.md``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from flame.cli.entry import VERBS, load
from flame.cli.output import EXIT_CODES

HEAD = """\
# The command `flame`

Written by `python scripts/cli_reference.py`; a test compares the two.

Results go to stdout, progress and errors to stderr. With `--json` stdout is one JSON document and nothing else, and an
error is one JSON object `{"code", "message", "nextStep"}` on stderr. Errors say what happened, why, and what to do next.

| Exit code | Means |
|---|---|
| 0 | done |
| 1 | another error; `flame doctor`: something is missing |
"""


def render() -> str:
    rows = "".join(f"| {code} | {_means(kind)} |\n" for kind, code in EXIT_CODES)
    parts = [HEAD + rows + "| 130 | interrupted |\n"]
    for verb in VERBS:
        parts += _command(f"flame {verb}", load(verb))
    return "\n".join(parts)


def _means(kind: type[Exception]) -> str:
    return {
        "Invalid": "the request is wrong (also: wrong usage)",
        "Refused": "a rule said no",
        "NotFound": "there is no such thing",
        "NotAuthenticated": "who are you",
        "Unavailable": "try again later",
        "RunFailed": "an analysis ended without a result",
    }[kind.__name__]


def _command(name: str, command: Any) -> Iterator[str]:
    text = (command.help or "").strip()
    if hasattr(command, "commands"):
        yield f"## `{name}`\n\n{text}\n"
        for sub, child in command.commands.items():
            yield from _command(f"{name} {sub}", child)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *(_upper(p) for p in arguments)])
    heading = "##" if name.count(" ") == 1 else "###"
    yield f"{heading} `{usage}`\n\n{text}\n"
    rows = [_row(p) for p in command.params if not p.hidden]
    if rows:
        yield "| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _upper(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
    shown = ", ".join(f"`{name}`" for name in names) or f"`{_upper(parameter)}`"
    if names and not parameter.is_flag:
        shown += f" `{parameter.metavar or parameter.name.upper()}`"
    text = " ".join((parameter.help or "").split())
    if parameter.envvar:
        text += f" Environment: `{parameter.envvar}`."
    if parameter.required and names:
        text += " Required."
    if parameter.default not in (None, False, "", ()) and not callable(parameter.default) and names:
        text += f" Default: `{parameter.default}`."
    return f"| {shown} | {text.strip().replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    sys.stdout.write(render())
