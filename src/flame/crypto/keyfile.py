"""Passphrase-protected key files: how a researcher keeps a signing key and a result key.

JSON, mode 0600. The private key is AES-256-GCM under Argon2id of the passphrase (64 MiB, 3 passes, 4 lanes); everything
else in the file is authenticated with it.
"""

from __future__ import annotations

import binascii
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flame.crypto._private_file import read_private, write_private
from flame.crypto.canonical import canonical, parse_canonical
from flame.model.errors import Invalid, Malformed, Refused

FORMAT = "flame-keyfile"
VERSION = 1
MEMORY_KIB = 64 * 1024
PASSES = 3
LANES = 4

_MAX_BYTES = 16 * 1024
_ARGON2ID: dict[str, object] = {"name": "argon2id", "memory_kib": MEMORY_KIB, "passes": PASSES, "lanes": LANES}
_NONE: dict[str, object] = {"name": "none"}


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file holds. `protected` says whether a passphrase guards it."""

    kind: str
    private: bytes = field(repr=False)
    public: bytes
    protected: bool


def write_keyfile(
    path: Path, kind: str, private: bytes, public: bytes, passphrase: str, *, allow_unprotected: bool = False
) -> None:
    """Write a new key file, durably. `kind` says what for ("signing", "result").

    Raises Conflict when the file exists, Invalid for an empty passphrase unless allow_unprotected is given.
    """
    if not passphrase and not allow_unprotected:
        raise Invalid(
            "A key file needs a passphrase.",
            next_step="Give one, or say explicitly that the key may be stored unprotected.",
            field="passphrase",
        )
    head: dict[str, object] = {"format": FORMAT, "version": VERSION, "kind": kind, "public": public.hex()}
    document = _protected(head, private, passphrase) if passphrase else {**head, "kdf": _NONE, "sealed": private.hex()}
    write_private(path, canonical(document) + b"\n")


def read_keyfile(path: Path, passphrase: str) -> KeyFile:
    """Open a key file. Raises NotFound, Malformed, or Refused (others can read it, or wrong passphrase)."""
    document = _document(path)
    sealed, kdf = _octets(document, "sealed"), document["kdf"]
    if kdf == _NONE:
        return KeyFile(_text(document, "kind"), sealed, _octets(document, "public"), protected=False)
    if not isinstance(kdf, dict) or {**kdf, "salt": None, "nonce": None} != {**_ARGON2ID, "salt": None, "nonce": None}:
        raise Malformed(f"{path} asks for a derivation of its key that this version does not know.")
    salt, nonce = _octets(kdf, "salt", 16), _octets(kdf, "nonce", 12)
    head = {name: value for name, value in document.items() if name != "sealed"}
    try:
        private = AESGCM(_derive(passphrase, salt)).decrypt(nonce, sealed, canonical(head))
    except InvalidTag as error:
        raise Refused(
            "The key file does not open: the passphrase is wrong, or the file was changed.",
            next_step="Type the passphrase again. There is no way around a lost one: make and register new keys.",
        ) from error
    return KeyFile(_text(document, "kind"), private, _octets(document, "public"), protected=True)


def read_public(path: Path) -> tuple[str, bytes, bool]:
    """Kind, public key, and whether a passphrase guards the file: what is known without opening it.

    Nobody vouches for it before the file is opened. Raises as `read_keyfile` does.
    """
    document = _document(path)
    return _text(document, "kind"), _octets(document, "public"), document["kdf"] != _NONE


def _protected(head: dict[str, object], private: bytes, passphrase: str) -> dict[str, object]:
    salt, nonce = os.urandom(16), os.urandom(12)
    head = {**head, "kdf": {**_ARGON2ID, "salt": salt.hex(), "nonce": nonce.hex()}}
    sealed = AESGCM(_derive(passphrase, salt)).encrypt(nonce, private, canonical(head))
    return {**head, "sealed": sealed.hex()}


def _derive(passphrase: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # only those who open key files load it

    secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
    return Argon2id(salt=salt, length=32, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB).derive(secret)


def _document(path: Path) -> dict[str, object]:
    data = read_private(path, max_bytes=_MAX_BYTES)
    document = parse_canonical(data.rstrip(b"\n"))
    keys = {"format", "version", "kind", "public", "kdf", "sealed"}
    if not isinstance(document, dict) or document.keys() != keys:
        raise Malformed(f"{path} is not a key file.")
    if (document["format"], document["version"]) != (FORMAT, VERSION):
        raise Malformed(f"{path} is not a key file of version {VERSION}.", next_step="Use a newer version of flame.")
    return document


def _text(document: dict[str, object], name: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise Malformed(f"The field {name} of the key file must be text.", field=name)
    return value


def _octets(document: dict[str, object], name: str, length: int | None = None) -> bytes:
    try:
        value = binascii.unhexlify(_text(document, name))
    except (KeyError, ValueError) as error:
        raise Malformed(f"The field {name} of the key file must be hexadecimal.", field=name) from error
    if length is not None and len(value) != length:
        raise Malformed(f"The field {name} of the key file must be {length} bytes.", field=name)
    return value
