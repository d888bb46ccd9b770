"""``flame keys …``: the researcher's own two keys."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors
from flame.cli.people import KeyDir, PassphraseFd, PassphraseFile, key_dir, passphrase_for, read_passphrase
from flame.model.errors import Invalid

app = typer.Typer(help="Your own keys: one signs what you submit, one opens your results.", no_args_is_help=True)

Hex = "The hospitals' stewards confirm these fingerprints. Read them out by telephone, or send them by letter."


@app.command()
def new(
    unprotected: Annotated[bool, typer.Option("--unprotected", help="No passphrase: for tests and machines.")] = False,
    no_register: Annotated[bool, typer.Option("--no-register", help="Do not tell the hub yet.")] = False,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Make a signing key and a result key here, under a passphrase, and register their public halves at the hub."""
    with told_errors(json):
        from flame.researcher.keys import Keys, register
        from flame.researcher.login import open_api

        api = None if no_register else open_api()
        directory = key_dir(keys)
        passphrase = "" if unprotected else read_passphrase(passphrase_file, passphrase_fd, new=True)
        Keys.make(directory, passphrase)
        if api is not None:
            register(api, directory)
        shown = _fingerprints(directory)
        Output(json).document({"keys": shown, "registered": api is not None}, Hex)


@app.command()
def register(keys: KeyDir = None, json: Json = False) -> None:
    """Tell the hub the public halves of keys that were made with --no-register, or for another hub."""
    with told_errors(json):
        from flame.researcher import keys as own
        from flame.researcher.login import open_api

        own.register(open_api(), key_dir(keys))
        Output(json).done("The hub knows your keys.", {"keys": _fingerprints(key_dir(keys))})


@app.command("list")
def list_keys(keys: KeyDir = None, json: Json = False) -> None:
    """Every key here, older ones too: they open what was sealed to them."""
    with told_errors(json):
        from flame.crypto.keys import fingerprint_words
        from flame.researcher import keys as own

        found = own.list_keys(key_dir(keys))
        last = {key.use: key.number for key in found}
        rows = [
            {
                "use": key.use,
                "number": key.number,
                "in use": last[key.use] == key.number,
                "protected": key.protected,
                "words": fingerprint_words(bytes.fromhex(key.fingerprint)),
                "fingerprint": key.fingerprint,
                "path": str(key.path),
            }
            for key in found
        ]
        columns = ("use", "number", "in use", "protected", "words")  # the digits, whole: `flame keys fingerprint`
        Output(json).rows(rows, columns, "There are no keys here. Make them with `flame keys new`.")


@app.command()
def fingerprint(keys: KeyDir = None, json: Json = False) -> None:
    """What to read out to a steward: the fingerprints that name you, in words and digits."""
    with told_errors(json):
        Output(json).document({"keys": _fingerprints(key_dir(keys))}, Hex)


@app.command()
def rotate(
    use: Annotated[str, typer.Argument(metavar="sign|result|both", help="Which key.")] = "both",
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """Replace a key by a new one that the present one vouches for. No approval and no confirmation is lost."""
    with told_errors(json):
        from flame.researcher import keys as own
        from flame.researcher.login import open_api

        if use not in ("sign", "result", "both"):
            raise Invalid(f"'{use[:40]}' is no key.", next_step="Use sign, result or both.")
        api, directory = open_api(), key_dir(keys)
        passphrase = passphrase_for(directory, passphrase_file, passphrase_fd)
        wanted = ("sign", "result") if use == "both" else (use,)
        made = [own.rotate(api, directory, cast("own.Use", one), passphrase) for one in wanted]
        rows = [{"use": key.use, "number": key.number, "fingerprint": key.fingerprint} for key in made]
        Output(json).document(
            {"rotated": rows}, "In use from now on. Your name stays the fingerprint of the first key."
        )


@app.command()
def revoke(
    reason: Annotated[str, typer.Option("--reason", help="stolen, lost, left or other.")] = "other",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    keys: KeyDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    json: Json = False,
) -> None:
    """End both keys, everywhere and for good. Every hospital confirms new ones anew."""
    with told_errors(json):
        from flame.researcher import keys as own
        from flame.researcher.login import open_api

        if reason not in ("stolen", "lost", "left", "other"):
            raise Invalid(f"'{reason[:40]}' is no reason.", next_step="Use stolen, lost, left or other.")
        if not yes and not typer.confirm("Revoke your keys? This cannot be taken back.", err=True):
            raise typer.Exit(1)
        api, directory = open_api(), key_dir(keys)
        passphrase = passphrase_for(directory, passphrase_file, passphrase_fd)
        aside = own.revoke(api, directory, passphrase, cast("Any", reason))
        Output(json).done(f"Revoked. The files are in {aside}: they still open old results.", {"aside": str(aside)})


def _fingerprints(directory: Any) -> list[dict[str, str]]:
    from flame.crypto.keys import fingerprint_words
    from flame.researcher.keys import USES, chain_of

    found = []
    for use in USES:
        first = chain_of(directory, use)[0].fingerprint
        kind = "researcher" if use == "sign" else "result"
        found.append({"use": use, "kind": kind, "fingerprint": first, "words": fingerprint_words(bytes.fromhex(first))})
    return found
