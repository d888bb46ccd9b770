"""Speaks to the node that runs on this machine: what the commands and tests use. Standard library only."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from flame.model import errors
from flame.model.errors import FlameError, Invalid, Malformed, NotAuthenticated, Unavailable
from flame.node.local.stewards import LOCAL_TOKEN

RUNNING: Final = "node.json"
TOKEN_VARIABLE: Final = "FLAME_NODE_TOKEN"  # noqa: S105 - the name of a variable
SECONDS: Final = 60.0

_KINDS: Final[dict[str, type[FlameError]]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlameError)
}


class LocalClient:
    """Asks the node whose directory is given; its address stands in DIR/node.json while it runs.

    Errors of the node are raised as what they are; Unavailable when no node runs there.
    """

    def __init__(self, directory: Path, token_file: Path | None = None) -> None:
        self._address = _address(directory)
        self._token = _token(directory, token_file)

    def get(self, *path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, *path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", path, body or {})

    def _ask(self, method: str, path: tuple[str, ...], body: dict[str, Any] | None) -> Any:
        target = "/api/" + "/".join(quote(part, safe="") for part in path)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(*self._address, timeout=SECONDS)
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"The node does not answer: {error}.",
                next_step="Start it with `flame node serve`, or look into its log.",
            ) from None
        finally:
            connection.close()
        return _result(response.status, data)


def _result(status: int, data: bytes) -> Any:
    try:
        document = json.loads(data)
    except ValueError:
        raise Malformed(
            f"What answers at the node's address is not the node (status {status}).",
            next_step="Look who uses its port.",
        ) from None
    if status < 400:
        return document
    if not isinstance(document, dict):
        raise Malformed(f"The node answered with status {status} and no reason.")
    kind = _KINDS.get(str(document.get("code")), FlameError)
    raise kind(str(document.get("message", "The node refused.")), next_step=str(document.get("nextStep", "")))


def _address(directory: Path) -> tuple[str, int]:
    path = directory / RUNNING
    try:
        url = urlsplit(json.loads(path.read_text(encoding="utf-8"))["url"])
        host, port = url.hostname, url.port
    except FileNotFoundError:
        raise Unavailable(
            f"No node runs in {directory}.",
            next_step="Start it with `flame node serve --dir …`, or name its directory with --dir.",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Invalid(f"{path} cannot be read.", next_step="Restart the node; it writes the file anew.") from None
    if host not in ("127.0.0.1", "localhost", "::1") or port is None:  # a token is shown to this machine alone
        raise Invalid(
            f"{path} names an address that is not on this machine.",
            next_step="Restart the node; it writes the file anew.",
        )
    return host, port


def _token(directory: Path, token_file: Path | None) -> str:
    if token_file is None and (given := os.environ.get(TOKEN_VARIABLE)):
        return _checked(given, f"${TOKEN_VARIABLE}")
    path = token_file or directory / LOCAL_TOKEN
    try:
        return _checked(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        raise NotAuthenticated(
            f"No token can be read from {path}.",
            next_step=f"Use --token-file or ${TOKEN_VARIABLE}; `flame node steward add NAME` makes an account.",
        ) from None


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise NotAuthenticated(f"{where} holds no token.", next_step="A token is one word; ask for a new account.")
    return token
