"""What the researcher's commands share: where the keys are, how a passphrase comes in, who is logged in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from flame.model.errors import Invalid, NotFound

if TYPE_CHECKING:
    from flame.researcher.session import ResearcherSession

MAX_PASSPHRASE: Final = 4096

KeyDir = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="DIR", help="Where the keys lie. (default: keys, beside the login)", show_default=False
    ),
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="The first line is the keys' passphrase.")
]
PassphraseFd = Annotated[
    int | None, typer.Option("--passphrase-fd", metavar="N", help="An open file descriptor to read it from.")
]


def key_dir(given: Path | None) -> Path:
    from flame.researcher.place import config_dir

    return given.expanduser() if given is not None else config_dir() / "keys"


def read_passphrase(file: Path | None, descriptor: int | None, *, new: bool = False) -> str:
    """From a file, an inherited descriptor or a prompt; never from the command line or the environment.

    Raises Invalid when nobody is there to be asked, NotFound for a file that is not there.
    """
    if file is not None and descriptor is not None:
        raise Invalid("Give the passphrase in one way.", next_step="Leave out --passphrase-file or --passphrase-fd.")
    if file is not None:
        return _first_line(_read_file(file))
    if descriptor is not None:
        try:
            with os.fdopen(descriptor, "rb", closefd=True) as stream:
                return _first_line(stream.read(MAX_PASSPHRASE + 1))
        except OSError:
            raise Invalid(f"The file descriptor {descriptor} cannot be read.") from None
    if not sys.stdin.isatty():
        raise Invalid(
            "Nobody is there to be asked for the passphrase.",
            next_step="Use --passphrase-file FILE or --passphrase-fd N.",
        )
    question = "New passphrase for your keys" if new else "Passphrase of your keys"
    return str(typer.prompt(question, hide_input=True, confirmation_prompt=new, err=True))


def _read_file(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()[: MAX_PASSPHRASE + 1]
    except OSError:
        raise NotFound(f"The passphrase file {path} cannot be read.", next_step="Check the path.") from None


def _first_line(content: bytes) -> str:
    try:
        line = content.decode("utf-8").split("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        raise Invalid("The passphrase is not UTF-8 text.") from None
    if not line or len(content) > MAX_PASSPHRASE:
        raise Invalid("The passphrase is empty, or its file is larger than a passphrase.")
    return line


def passphrase_for(directory: Path, file: Path | None, descriptor: int | None) -> str:
    """Asked for only when a key needs one."""
    from flame.researcher.keys import list_keys

    if not any(key.protected for key in list_keys(directory)):
        return ""
    return read_passphrase(file, descriptor)


def open_session(keys: Path | None, file: Path | None, descriptor: int | None) -> ResearcherSession:
    """Whoever is logged in, with their keys open. Raises NotAuthenticated, NotFound, Refused (wrong passphrase)."""
    from flame.researcher.keys import Keys
    from flame.researcher.login import open_api
    from flame.researcher.session import ResearcherSession

    api = open_api()
    directory = key_dir(keys)
    return ResearcherSession(api, Keys.load(directory, passphrase_for(directory, file, descriptor)))
