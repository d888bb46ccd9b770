"""A small client of the hub's and of a node's HTTP interface, for people's programs: errors come back as FLAME's own."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, BinaryIO

import httpx2

from flame.model.errors import (
    Conflict,
    Exhausted,
    FlameError,
    Invalid,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    Refused,
    Unavailable,
)

_BY_STATUS: dict[int, type[FlameError]] = {
    400: Invalid,
    401: NotAuthenticated,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    503: Unavailable,
    507: Exhausted,
}


class Api:
    """One origin and one bearer. ``renew``: makes another bearer of one that the hub does not take any more."""

    def __init__(self, url: str, bearer: str = "", renew: Callable[[str], str] | None = None) -> None:
        self._bearer, self._renew = bearer, renew
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        self.url = url.rstrip("/")
        self._client = httpx2.Client(
            base_url=self.url, headers=headers, timeout=60, trust_env=not self.url.startswith("http://127.")
        )
        weakref.finalize(self, self._client.close)  # whoever drops it has closed it

    @classmethod
    def login(cls, url: str, username: str, password: str) -> Api:
        """With a password, as FLAME's clients do. Raises NotAuthenticated or Invalid for wrong credentials."""
        answer = cls(url).post("/auth/token", {"grant_type": "password", "username": username, "password": password})
        return cls(url, str(answer["access_token"]))

    def get(self, path: str, **query: str) -> Any:
        return self._send("GET", path, params=query or None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._send("POST", path, json=body if body is not None else {})

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        return self._send("DELETE", path)

    def form(self, path: str, fields: dict[str, str]) -> Any:
        return self._send("POST", path, data=fields)

    def upload(self, path: str, files: dict[str, bytes]) -> Any:
        """Several files as multipart; the names may hold folders."""
        parts = [
            (f"file{i}", (name, content, "application/octet-stream")) for i, (name, content) in enumerate(files.items())
        ]
        return self._send("POST", path, files=parts)

    def download(self, path: str) -> bytes:
        response = self._exchange("GET", path, {})
        return bytes(response.content)

    def save(self, path: str, target: BinaryIO) -> None:
        """Write an answer of any size into a file, a piece at a time."""
        try:
            with self._client.stream("GET", path) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _problem(response)
                for piece in response.iter_bytes(1 << 18):
                    target.write(piece)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} cannot be reached: {error}.", next_step="Try again.") from None

    def close(self) -> None:
        self._client.close()

    def _send(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._exchange(method, path, arguments)
        return response.json() if response.content else None

    def _exchange(self, method: str, path: str, arguments: dict[str, Any]) -> httpx2.Response:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"{self.url} cannot be reached: {error}.", next_step="Check that it runs, and the address."
            ) from None
        if response.status_code == 401 and (renew := self._renew) is not None:
            self._renew = None  # once: a fresh token that is not taken is not renewed again
            try:
                self._bearer = renew(self._bearer)
                self._client.headers["Authorization"] = f"Bearer {self._bearer}"
                return self._exchange(method, path, arguments)
            finally:
                self._renew = renew
        if response.status_code >= 400:
            raise _problem(response)
        return response


def _problem(response: httpx2.Response) -> FlameError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    kind = _BY_STATUS.get(response.status_code, Unavailable if response.status_code >= 500 else Refused)
    message = str(body.get("message") or f"HTTP {response.status_code} for {response.request.url.path}")
    return kind(
        message, next_step=str(body.get("nextStep") or ""), issues=body.get("issues", []), error=body.get("error")
    )
