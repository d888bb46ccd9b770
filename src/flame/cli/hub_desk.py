"""``flame hub user|realm|node``: accounts, realms and nodes from the hub's own machine, beside the running hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flame.cli.options import Json
from flame.cli.output import Output, told_errors

if TYPE_CHECKING:
    from flame.hub.desk import Desk

user = typer.Typer(name="user", help="People: their accounts, roles and passwords.", no_args_is_help=True)
realm = typer.Typer(name="realm", help="Realms: the organisations at this hub.", no_args_is_help=True)
node = typer.Typer(name="node", help="Nodes: make, enrol, confirm and remove them.", no_args_is_help=True)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The hub's directory. (env: FLAME_HUB_DIR)", show_default=False),
]
Realm = Annotated[
    str | None, typer.Option("--realm", metavar="NAME", help="The realm. (default: master)", show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME")]
MASTER = "master"


@contextmanager
def _desk(dir: Path | None, json: bool) -> Iterator[Desk]:
    with told_errors(json):
        from flame.hub.desk import Desk
        from flame.hub.settings import Settings

        with Desk(Settings.from_env(dir=dir)) as desk:
            yield desk


def _realm_id(desk: Desk, name: str | None) -> str:
    return str(desk.one("/auth/realms", "realm", name or MASTER)["id"])


def _in_realm(desk: Desk, name: str | None) -> dict[str, str]:
    return {} if name is None else {"filter[realmId]": _realm_id(desk, name)}


def _user(desk: Desk, name: str, realm_name: str | None) -> dict[str, Any]:
    return desk.one("/auth/users", "user", name, **_in_realm(desk, realm_name))


def _node(desk: Desk, name: str, realm_name: str | None) -> dict[str, Any]:
    return desk.one("/core/nodes", "node", name, **_in_realm(desk, realm_name))


# ---------------------------------------------------------------------------------------------------------------- user


@user.command("list")
def list_users(realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """The accounts, and whether each may log in."""
    with _desk(dir, json) as desk:
        names = {row["id"]: row["name"] for row in desk.all("/auth/realms")}
        rows = [
            {"name": r["name"], "realm": names.get(r["realmId"], r["realmId"]), "active": r["active"], "id": r["id"]}
            for r in desk.all("/auth/users", **_in_realm(desk, realm))
        ]
        Output(json).rows(rows, ("name", "realm", "active", "id"), "There are no users.")


@user.command("add")
def add_user(
    name: Name,
    realm: Realm = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="A role; may be repeated.")] = None,
    dir: Dir = None,
    json: Json = False,
) -> None:
    """Make an account. Its generated password is shown here, once."""
    with _desk(dir, json) as desk:
        from flame.hub.identity.passwords import generated_password

        password = generated_password()
        body = {"name": name, "realmId": _realm_id(desk, realm), "password": password, "roles": role or []}
        made = desk.ask("POST", "/auth/users", body)
        Output(json).document({"name": name, "id": made["id"], "password": password}, "The account is made.")


@user.command("password")
def new_password(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """Give an account a new generated password, shown here once: when it is lost, also the administrator's own."""
    with _desk(dir, json) as desk:
        from flame.hub.identity.passwords import generated_password

        password = generated_password()
        desk.reset_password(_user(desk, name, realm)["id"], password)
        Output(json).document({"name": name, "password": password}, "The account has a new password.")


@user.command("lock")
def lock_user(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """Close an account: its sessions stop at once."""
    with _desk(dir, json) as desk:
        desk.ask("POST", f"/auth/users/{_user(desk, name, realm)['id']}", {"active": False})
        Output(json).done(f"The account {name} is closed.", {"name": name, "active": False})


@user.command("unlock")
def unlock_user(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """Open an account again."""
    with _desk(dir, json) as desk:
        desk.ask("POST", f"/auth/users/{_user(desk, name, realm)['id']}", {"active": True})
        Output(json).done(f"The account {name} is open.", {"name": name, "active": True})


@user.command("remove")
def remove_user(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """Delete an account."""
    with _desk(dir, json) as desk:
        found = _user(desk, name, realm)
        desk.ask("DELETE", f"/auth/users/{found['id']}")
        Output(json).done(f"The account {name} is deleted.", {"name": name, "id": found["id"]})


# --------------------------------------------------------------------------------------------------------------- realm


@realm.command("list")
def list_realms(dir: Dir = None, json: Json = False) -> None:
    """The realms."""
    with _desk(dir, json) as desk:
        rows = [{"name": r["name"], "title": r["displayName"], "id": r["id"]} for r in desk.all("/auth/realms")]
        Output(json).rows(rows, ("name", "title", "id"), "There are no realms.")


@realm.command("add")
def add_realm(
    name: Name,
    title: Annotated[str | None, typer.Option("--title", help="How people call it.", show_default=False)] = None,
    dir: Dir = None,
    json: Json = False,
) -> None:
    """Make a realm for an organisation."""
    with _desk(dir, json) as desk:
        made = desk.ask("POST", "/auth/realms", {"name": name, "displayName": title or name})
        Output(json).done(f"The realm {name} is made.", {"name": name, "id": made["id"]})


@realm.command("remove")
def remove_realm(name: Name, dir: Dir = None, json: Json = False) -> None:
    """Delete a realm and everything in it."""
    with _desk(dir, json) as desk:
        key = _realm_id(desk, name)
        desk.ask("DELETE", f"/auth/realms/{key}")
        Output(json).done(f"The realm {name} is deleted.", {"name": name, "id": key})


# ---------------------------------------------------------------------------------------------------------------- node


@node.command("list")
def list_nodes(realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """The nodes: who is enrolled, who is connected."""
    with _desk(dir, json) as desk:
        names = {row["id"]: row["name"] for row in desk.all("/auth/realms")}
        rows = [
            {
                "name": r["name"], "realm": names.get(r["realmId"], r["realmId"]), "type": r["type"],
                "enrolled": bool(r["publicKey"]), "online": r["online"], "id": r["id"],
            }
            for r in desk.all("/core/nodes", **_in_realm(desk, realm))
        ]  # fmt: skip
        Output(json).rows(rows, ("name", "realm", "type", "enrolled", "online", "id"), "There are no nodes.")


@node.command("add")
def add_node(
    name: Name,
    realm: Realm = None,
    type: Annotated[str, typer.Option("--type", help="default (with data) or aggregator.")] = "default",
    dir: Dir = None,
    json: Json = False,
) -> None:
    """Make a node, and its one-time token for `flame node init`, shown here once."""
    with _desk(dir, json) as desk:
        made = desk.ask("POST", "/core/nodes", {"name": name, "realmId": _realm_id(desk, realm), "type": type})
        token = desk.ask("POST", f"/core/nodes/{made['id']}/enrolment-token")
        shown = {"name": name, "id": made["id"], "token": token["token"], "expires": token["expires"]}
        Output(json).document(shown, "The node is made. Give its administrator the token, and compare fingerprints.")


@node.command("token")
def new_token(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """A new one-time token for a node that has not enrolled; the one before holds no longer."""
    with _desk(dir, json) as desk:
        token = desk.ask("POST", f"/core/nodes/{_node(desk, name, realm)['id']}/enrolment-token")
        Output(json).document({"name": name, "token": token["token"], "expires": token["expires"]})


@node.command("confirm")
def confirm_node(
    name: Name,
    fingerprint: Annotated[
        str, typer.Argument(metavar="FINGERPRINT", help="As the node's administrator reads it out.")
    ],
    realm: Realm = None,
    dir: Dir = None,
    json: Json = False,
) -> None:
    """Confirm the key with which a node has enrolled, after comparing its fingerprint with its administrator."""
    with _desk(dir, json) as desk:
        path = f"/core/nodes/{_node(desk, name, realm)['id']}/enrolment/confirm"
        desk.ask("POST", path, {"fingerprint": "".join(fingerprint.split()).lower()})
        Output(json).done(f"The node {name} is confirmed.", {"name": name, "confirmed": True})


@node.command("remove")
def remove_node(name: Name, realm: Realm = None, dir: Dir = None, json: Json = False) -> None:
    """Delete a node."""
    with _desk(dir, json) as desk:
        found = _node(desk, name, realm)
        desk.ask("DELETE", f"/core/nodes/{found['id']}")
        Output(json).done(f"The node {name} is deleted.", {"name": name, "id": found["id"]})
