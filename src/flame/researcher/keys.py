"""A researcher's keys: one signs, one opens results. They stay on the researcher's machine, under a passphrase.

In a directory, one file for each key and generation: ``sign-1.json``, ``result-1.json``, after a rotation ``sign-2.json``
and so on. The fingerprint of the first names the member. Older result keys stay: they open what was sealed to them.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from flame.crypto.keyfile import read_keyfile, read_public, write_keyfile
from flame.crypto.keys import HybridKey, HybridPublicKey, IdentityKey, PublicKey
from flame.model.errors import Conflict, FlameError, NotFound
from flame.model.manifest import format_time
from flame.protocol.documents import MemberKind, Revocation, Rotation
from flame.protocol.roster import Statement, sign_statement
from flame.researcher.api import Api

Use = Literal["sign", "result"]
USES: Final[tuple[Use, ...]] = ("sign", "result")
_KIND: Final[dict[Use, MemberKind]] = {"sign": "researcher", "result": "result"}
_FILE: Final = re.compile(r"(sign|result)-([1-9][0-9]{0,3})\.json")


@dataclass(frozen=True)
class KeyInfo:
    """What is known of a key without opening it."""

    use: Use
    number: int
    path: Path
    public: bytes
    protected: bool

    @property
    def fingerprint(self) -> str:
        if self.use == "sign":
            return PublicKey.from_bytes(self.public).fingerprint.hex()
        return HybridPublicKey(self.public).key_id.hex()

    @property
    def registered(self) -> str:
        """As the hub stores it."""
        if self.use == "sign":
            return PublicKey.from_bytes(self.public).hex_pem
        return base64.b64encode(self.public).decode()


@dataclass(frozen=True)
class Keys:
    """A researcher's opened keys: those in use, and older result keys."""

    sign: IdentityKey
    result: HybridKey
    sign_member: str = ""
    result_member: str = ""
    older: tuple[HybridKey, ...] = field(default=(), repr=False)
    earlier_sign: tuple[PublicKey, ...] = ()

    @classmethod
    def make(cls, directory: Path, passphrase: str = "") -> Keys:
        """New keys in a directory, protected by a passphrase. Without one the files are protected by their mode alone.

        Raises Conflict when there are keys already.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if found := list_keys(directory):
            raise Conflict(
                f"There are keys in {directory} already ({found[0].path.name}).",
                next_step="Use them, replace them with `flame keys rotate`, or end them with `flame keys revoke`.",
            )
        for use in USES:
            _write(directory, use, 1, passphrase)
        return cls.load(directory, passphrase)

    @classmethod
    def load(cls, directory: Path, passphrase: str = "") -> Keys:
        """Raises NotFound without keys, Refused for a wrong passphrase."""
        signing, opening = (chain_of(directory, use) for use in USES)
        sign = IdentityKey.from_private_bytes(read_keyfile(signing[-1].path, passphrase).private)
        results = [HybridKey.from_private_bytes(read_keyfile(k.path, passphrase).private) for k in opening]
        earlier = tuple(PublicKey.from_bytes(k.public) for k in signing[:-1])
        return cls(sign, results[-1], signing[0].fingerprint, opening[0].fingerprint, tuple(results[:-1]), earlier)

    @property
    def sign_fingerprint(self) -> str:
        """What names the researcher: the first signing key's fingerprint."""
        return self.sign_member or self.sign.public.fingerprint.hex()

    @property
    def result_fingerprint(self) -> str:
        return self.result_member or self.result.key_id.hex()


def list_keys(directory: Path) -> list[KeyInfo]:
    """All keys of a directory, by use and generation."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if named := _FILE.fullmatch(path.name):
            _, public, protected = read_public(path)
            use: Use = "sign" if named[1] == "sign" else "result"
            found.append(KeyInfo(use, int(named[2]), path, public, protected))
    return sorted(found, key=lambda key: (key.use != "sign", key.number))


def chain_of(directory: Path, use: Use) -> list[KeyInfo]:
    """The generations of one key, the last in use. Raises NotFound without any."""
    found = [key for key in list_keys(directory) if key.use == use]
    if not found or [key.number for key in found] != list(range(1, len(found) + 1)):
        raise NotFound(f"There are no keys in {directory}.", next_step="Make them with `flame keys new`.")
    return found


def _write(directory: Path, use: Use, number: int, passphrase: str) -> KeyInfo:
    path = directory / f"{use}-{number}.json"
    key = IdentityKey.generate() if use == "sign" else HybridKey.generate()
    public = key.public.raw
    write_keyfile(path, use, key.private_bytes, public, passphrase, allow_unprotected=not passphrase)
    return KeyInfo(use, number, path, public, bool(passphrase))


def register(api: Api, directory: Path) -> None:
    """Tell the hub the public halves; a hospital believes them only once a steward has confirmed them."""
    for use in USES:
        api.post("/core/user-keys", {"kind": use, "publicKey": chain_of(directory, use)[0].registered})


def rotate(api: Api, directory: Path, use: Use, passphrase: str) -> KeyInfo:
    """Make the next key and have the hub carry the statement. One that the hub did not take is taken up again."""
    keys = Keys.load(directory, passphrase)
    chain = chain_of(directory, use)
    at_hub = _at_hub(api, chain[0].fingerprint)
    if at_hub < len(chain):
        following, chain = chain[-1], chain[:-1]
        signer = keys.sign if use == "result" else _open_sign(chain[-1].path, passphrase)
    else:
        signer = keys.sign
        following = _write(directory, use, len(chain) + 1, passphrase)
    said = Rotation(
        member=chain[0].fingerprint,
        kind=_KIND[use],
        number=len(chain),
        previous=chain[-1].fingerprint,
        signer=signer.public.fingerprint.hex(),
        next_key=following.registered,
        time=format_time(datetime.now(UTC)),
    )
    _hand_in(api, sign_statement(signer, said))
    return following


def revoke(api: Api, directory: Path, passphrase: str, reason: Literal["stolen", "lost", "left", "other"]) -> Path:
    """End both keys for good, everywhere; the files are put aside, so that old results can still be opened."""
    keys = Keys.load(directory, passphrase)
    for use in reversed(USES):  # the result key's end is signed by the signing key, which goes last
        said = Revocation(
            member=chain_of(directory, use)[0].fingerprint,
            kind=_KIND[use],
            signer=keys.sign.public.fingerprint.hex(),
            reason=reason,
            time=format_time(datetime.now(UTC)),
        )
        _hand_in(api, sign_statement(keys.sign, said))
    aside = directory / f"revoked-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    aside.mkdir(mode=0o700)
    for key in list_keys(directory):
        key.path.rename(aside / key.path.name)
    return aside


def _open_sign(path: Path, passphrase: str) -> IdentityKey:
    return IdentityKey.from_private_bytes(read_keyfile(path, passphrase).private)


def _hand_in(api: Api, statement: Statement) -> None:
    api.post("/core/key-statements", msgspec.to_builtins(statement))


def _at_hub(api: Api, member: str) -> int:
    """How many keys of a member the hub knows. Raises NotFound for one that is not registered."""
    rows = api.get(f"/core/roster?members={member}")["data"]
    if not rows:
        raise NotFound("The hub does not know this key yet.", next_step="Register it: `flame keys register`.")
    if rows[0].get("revokedAt"):
        raise Conflict("This key was revoked.", next_step="Make new keys: `flame keys revoke` puts these aside.")
    return 1 + sum(_is_rotation(row) for row in rows[0]["statements"])


def _is_rotation(row: dict[str, str]) -> bool:
    try:
        return isinstance(Statement(row["document"], row["signature"]).read(), Rotation)
    except FlameError:
        return False
