"""A node's directory: where everything lies, and the small file that says who the node is."""

from __future__ import annotations

import os
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from flame.model.errors import Invalid, NotFound

_FILE = "node.toml"


@dataclass(frozen=True)
class Enrolled:
    """What enrolment settled; written once by ``flame node init``."""

    hub: str
    hub_key: str
    """The hub's public key, hex of its PEM text: signs tree heads and receipts."""
    node: str
    client: str
    name: str
    role_hint: str
    """What the hub calls the node's type; a manifest decides the role."""


@dataclass(frozen=True)
class Layout:
    """Paths below the node's directory."""

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "keys" / "identity.pem"

    @property
    def next_identity(self) -> Path:
        """While the key is being rotated: the one that follows."""
        return self.root / "keys" / "identity.next.pem"

    @property
    def first_key(self) -> Path:
        """After a rotation: the node's first public key, which names it."""
        return self.root / "keys" / "first-key"

    @property
    def storage_key(self) -> Path:
        return self.root / "keys" / "storage.key"

    @property
    def database(self) -> Path:
        return self.root / "node.db"

    @property
    def run_keys(self) -> Path:
        """Keys of runs, in a database of their own that back-ups leave out."""
        return self.root / "keys" / "runs.db"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def policy(self) -> Path:
        return self.root / "policy.toml"

    @property
    def sources(self) -> Path:
        return self.root / "sources.toml"

    @property
    def environments(self) -> Path:
        return self.root / "environments"

    @property
    def running(self) -> Path:
        """Address and process id while the node runs."""
        return self.root / "node.json"

    @property
    def log(self) -> Path:
        return self.root / "node.log"

    def create(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for folder in (self.identity.parent, self.runs, self.environments):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)


def write_enrolled(layout: Layout, enrolled: Enrolled) -> None:
    lines = [f"{key} = {_quoted(value)}" for key, value in asdict(enrolled).items()]
    path = layout.root / _FILE
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_enrolled(layout: Layout) -> Enrolled:
    path = layout.root / _FILE
    if not path.is_file():
        raise NotFound(
            f"{layout.root} is not a node's directory: it has no {_FILE}.",
            next_step="Make one with `flame node init --dir DIR --hub URL --token TOKEN`.",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError("every setting in it is a text")
        return Enrolled(**values)
    except (ValueError, TypeError) as error:
        raise Invalid(
            f"{path} cannot be read: {error}", next_step="`flame node init` wrote it; put it back from a copy."
        ) from None


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in escaped):
        raise Invalid("A setting holds a character that cannot be written.", next_step="Use plain text.")
    return f'"{escaped}"'
