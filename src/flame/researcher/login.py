"""Being logged in at a hub: the device flow (RFC 8628) or name and password; tokens in a file of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from flame.model.errors import FlameError, Invalid, NotAuthenticated, NotFound, Refused
from flame.researcher.api import Api
from flame.researcher.place import config_dir, locked, read_private_json, write_private_json

FILE: Final = "login.json"
CLIENT: Final = "flame-cli"
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
EARLY_SECONDS: Final = 30
"""A token that ends so soon is renewed before it is used."""


@dataclass(frozen=True)
class Login:
    hub: str
    username: str
    access: str
    refresh: str
    until: float
    """Seconds since 1970."""
    client: str = ""
    """The client that the tokens are for: the command line's, after a login in the browser."""


@dataclass(frozen=True)
class Device:
    """What the person types where they are logged in already."""

    code: str
    user_code: str
    url: str
    url_complete: str
    expires: float
    interval: float


def by_password(hub: str, username: str, password: str) -> Login:
    """Raises Invalid or NotAuthenticated for wrong credentials."""
    asked = {"grant_type": "password", "username": username, "password": password}
    return _keep(hub, username, Api(hub).post("/auth/token", asked))


def begin_device(hub: str) -> Device:
    """Ask the hub for a code. Raises NotFound from a hub that has no such flow."""
    try:
        answer = Api(hub).form("/auth/device_authorization", {"client_id": CLIENT, "scope": "global"})
    except NotFound:
        raise NotFound(
            "This hub offers no login in the browser.", next_step="Log in with `flame login --username NAME`."
        ) from None
    return Device(
        code=str(answer["device_code"]),
        user_code=str(answer["user_code"]),
        url=str(answer["verification_uri"]),
        url_complete=str(answer.get("verification_uri_complete") or answer["verification_uri"]),
        expires=time.monotonic() + float(answer.get("expires_in") or 600),
        interval=float(answer.get("interval") or 5),
    )


def finish_device(hub: str, device: Device, sleep: Callable[[float], None] = time.sleep) -> Login:
    """Wait until the person has confirmed. Raises Refused when they have not, or not in time."""
    interval = device.interval
    while time.monotonic() < device.expires:
        sleep(interval)
        try:
            asked = {"grant_type": DEVICE_GRANT, "device_code": device.code, "client_id": CLIENT}
            return _keep(hub, "", Api(hub).form("/auth/token", asked))
        except FlameError as error:
            said = str(error.fields.get("error") or error.fields.get("code") or error.message)
            if "slow_down" in said:
                interval += 5
            elif "authorization_pending" not in said:
                raise
    raise Refused("Nobody has confirmed the login in time.", next_step="Repeat `flame login`.")


def _keep(hub: str, username: str, answer: dict[str, Any]) -> Login:
    login = _login(hub, username, answer)
    if not username:
        info = Api(hub, login.access).get("/auth/userinfo")
        name = str(info.get("preferred_username") or info.get("sub_name") or info.get("name"))
        login = replace(login, username=name, client=CLIENT)
    path = config_dir() / FILE
    with locked(path):
        write_private_json(path, asdict(login))
    return login


def _login(hub: str, username: str, answer: dict[str, Any]) -> Login:
    until = time.time() + float(answer.get("expires_in") or 60)
    return Login(hub.rstrip("/"), username, str(answer["access_token"]), str(answer.get("refresh_token") or ""), until)


def forget() -> Login | None:
    """End the session at the hub as far as it can be reached, and remove the tokens."""
    path = config_dir() / FILE
    login = _read(path)
    if login is None:
        return None
    try:
        Api(login.hub, login.access).post("/auth/token/revoke")
    except FlameError:
        pass  # the tokens go from here in any case
    path.unlink(missing_ok=True)
    return login


def current() -> Login:
    """Raises NotAuthenticated when nobody is logged in."""
    login = _read(config_dir() / FILE)
    if login is None:
        raise NotAuthenticated("Nobody is logged in here.", next_step="Log in with `flame login --hub URL`.")
    return login


def _read(path: Path) -> Login | None:
    found = read_private_json(path)
    if found is None:
        return None
    try:
        return Login(**found)
    except TypeError:
        raise Invalid(f"{path} cannot be read.", next_step="Remove it, and log in again.") from None


def open_api() -> Api:
    """The hub as whoever is logged in. Tokens are renewed as needed, by one process at a time."""
    login = current()
    if login.until - time.time() < EARLY_SECONDS:
        login = renew(login.access)
    return Api(login.hub, login.access, renew=lambda old: renew(old).access)


def renew(spent: str) -> Login:
    """Another access token for a spent one; a refresh token counts once. Raises NotAuthenticated."""
    path = config_dir() / FILE
    with locked(path):
        login = current()
        if login.access != spent:
            return login  # another process was quicker
        try:
            asked = {"grant_type": "refresh_token", "refresh_token": login.refresh}
            answer = Api(login.hub).form("/auth/token", asked | ({"client_id": login.client} if login.client else {}))
        except (Invalid, NotAuthenticated):
            raise NotAuthenticated(
                "The login has ended.", next_step=f"Log in again: `flame login --hub {login.hub}`."
            ) from None
        login = replace(_login(login.hub, login.username, answer), client=login.client)
        write_private_json(path, asdict(login))
        return login
