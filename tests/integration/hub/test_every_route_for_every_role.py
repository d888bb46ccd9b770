"""Every route of the hub, asked by every role about things of its own and of others: as the table in the docs says.

The world is made over HTTP by a real hub process. Then that hub's directory is opened here, and each request runs
through the whole application; what it would change is undone, so that the next one finds the same world.
``python tests/integration/hub/test_every_route_for_every_role.py`` prints the table as the hub is.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from sqlalchemy import Connection
from starlette.routing import Route
from world import PASSWORD, Actor, HubProcess, Person, Study, World

from flame.crypto.keys import IdentityKey
from flame.hub.app import ROUTES, make_app, open_hub
from flame.hub.described import About
from flame.hub.identity.permissions import ROLES
from flame.hub.settings import Settings

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "permissions.md"
COLUMNS = ("admin", "realm_admin", "researcher", "steward", "auditor", "node", "no role", "nobody")
HEADING = "## Every route"
MAY, REFUSED, NOT_THERE, LOG_IN = "✓", "✗", "·", "–"


# ------------------------------------------------------------------------------------------------------------ the world


@dataclass
class Place:
    """A realm with people of every role, two nodes, a project, an analysis: the ids of everything in it."""

    who: dict[str, Actor]
    study: Study
    ids: dict[str, str]


def make_place(world: World, shared: dict[str, str]) -> Place:
    admin, realm = world.admin, world.realm("place")
    who: dict[str, Actor] = {
        role: world.person(realm, role) for role in ("admin", "realm_admin", "steward", "auditor")
    }  # fmt: skip
    researcher = world.person(realm, "researcher", keys=True)
    plain, target = world.person(realm), world.person(realm, "researcher")
    nodes = [world.node(realm), world.node(realm, "aggregator")]
    steward = who["steward"]
    assert isinstance(steward, Person)
    study = Study(world, researcher, [steward], nodes)
    ids = shared | {"realms": realm, "users": target.id, "nodes": nodes[0].id, "aggregator": nodes[1].id}
    ids["projects"] = study.project = researcher.make("/core/projects", name=f"p-{secrets.token_hex(4)}")["id"]
    for node in nodes:
        row = researcher.make("/core/project-nodes", projectId=study.project, nodeId=node.id)
        ids.setdefault("project-nodes", row["id"])
        study.approve_project(node, row["id"])
    body = {"projectId": study.project, "masterImageId": shared["master-images"], "name": f"a-{secrets.token_hex(4)}"}
    ids["analyses"] = study.analysis = researcher.make("/core/analyses", **body)["id"]
    study.submit()
    who |= {"researcher": researcher, "no role": plain, "node": nodes[0]}
    _find_ids(admin, study, ids)
    _lock_another(study, body | {"name": f"b-{secrets.token_hex(4)}"}, ids)
    waiting = world.node(realm, confirmed=False)
    ids["waiting"], ids["fingerprint"] = waiting.id, waiting.key.public.fingerprint.hex()
    ids["order"] = study.order("0" * 64)  # type: ignore[assignment]
    _make_identity(admin, realm, target, shared, ids)
    return Place(who, study, ids)


def _lock_another(study: Study, body: dict[str, str], ids: dict[str, str]) -> None:
    """A second analysis of the project, locked and approved: what there is to decide and to sign about."""
    other = Study(study.world, study.researcher, study.stewards, study.nodes, study.project)
    other.analysis = ids["locked"] = study.researcher.make("/core/analyses", **body)["id"]
    other.submit()
    other.command("configurationLock")
    other.approve()
    ids["analysis-nodes"] = other.place(study.nodes[0])["id"]
    ids["digest"] = other.manifest()["digest"]
    found = study.world.admin.get("/core/analysis-node-events", **{"filter[analysisId]": other.analysis})
    ids["analysis-node-events"] = found[0]["id"]


def _find_ids(admin: Actor, study: Study, ids: dict[str, str]) -> None:
    mine = {"filter[analysisId]": study.analysis}
    ids["buckets"] = study.bucket("CODE")
    ids["analysis-buckets"] = admin.get("/core/analysis-buckets", **mine | {"filter[type]": "CODE"})[0]["id"]
    ids["analysis-bucket-files"] = admin.get("/core/analysis-bucket-files", **mine)[0]["id"]
    ids["bucket-files"] = admin.get("/storage/bucket-files", **{"filter[bucketId]": ids["buckets"]})[0]["id"]
    ids["user-keys"] = study.researcher.get("/core/user-keys", **{"filter[kind]": "sign"})[0]["id"]


def _make_identity(admin: Actor, realm: str, target: Person, shared: dict[str, str], ids: dict[str, str]) -> None:
    ids["clients"] = admin.make("/auth/clients", name="helper", realmId=realm)["id"]
    for kind in ("roles", "permissions", "scopes"):
        ids[kind] = admin.make(f"/auth/{kind}", name=f"own-{secrets.token_hex(4)}", realmId=realm)["id"]
    ids["another-role"] = admin.make("/auth/roles", name="another", realmId=realm)["id"]
    ids["user-attributes"] = admin.make("/auth/user-attributes", userId=target.id, name="note")["id"]
    pairs = {
        "role-permissions": {"roleId": ids["roles"], "permissionId": ids["permissions"]},
        "user-permissions": {"userId": target.id, "permissionId": ids["permissions"]},
        "client-permissions": {"clientId": ids["clients"], "permissionId": ids["permissions"]},
        "user-roles": {"userId": target.id, "roleId": ids["roles"]},
        "client-roles": {"clientId": ids["clients"], "roleId": ids["roles"]},
        "client-scopes": {"clientId": ids["clients"], "scopeId": ids["scopes"]},
    }
    for kind, body in pairs.items():
        ids[kind] = admin.make(f"/auth/{kind}", **body)["id"]
    ids["sessions"] = admin.get("/auth/sessions", **{"filter[subject]": target.id})[0]["id"]
    registry = {"registryId": shared["registries"], "type": "node", "name": f"of-{realm[:8]}"}
    ids["registry-projects"] = admin.make(
        "/core/registry-projects", externalName=f"of-{realm[:8]}", **registry
    )["id"]  # fmt: skip
    found = admin.get("/telemetry/events", **{"filter[refId]": ids["projects"]})
    ids["events"] = found[0]["id"]


def make_shared(world: World) -> dict[str, str]:
    """What belongs to no realm."""
    admin = world.admin
    image = admin.make("/core/master-images", virtualPath="python/base", digest="sha256:" + "0" * 64)
    registry = admin.make(
        "/core/registries", name=f"r-{secrets.token_hex(4)}", host=f"{secrets.token_hex(4)}.example",
        accountName="a", accountSecret="a secret",
    )  # fmt: skip
    wanted = {"filter[name]": "project_create,analysis_self_storage_use"}
    known = {row["name"]: row["id"] for row in admin.get("/auth/permissions", **wanted)}
    scope = admin.get("/auth/scopes", **{"filter[name]": "global"})[0]["id"]
    roles = {row["name"]: row["id"] for row in admin.get("/auth/roles", **{"filter[builtIn]": "true"})}
    return {
        "master-images": image["id"], "master-image-groups": admin.get("/core/master-image-groups")[0]["id"],
        "registries": registry["id"], "policies": admin.get("/auth/policies")[0]["id"],
        "known-permission": known["project_create"], "auditor-role": roles["auditor"], "global-scope": scope,
        "own-storage": known["analysis_self_storage_use"],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the requests


def body_of(method: str, path: str, place: Place) -> dict[str, Any]:
    """What is sent along: something that would do what the route is for, to this place's things."""
    ids = place.ids
    new = f"new-{secrets.token_hex(4)}"
    digest = {"digest": ids["digest"], "signature": "0" * 128}
    bodies: dict[str, Any] = {
        "POST /auth/realms": {"name": new},
        "POST /auth/users": {"name": new, "realmId": ids["realms"]},
        "POST /auth/users/{id}": {"active": False},
        "POST /auth/user-attributes": {"userId": ids["users"], "name": new},
        "POST /auth/clients": {"name": new, "realmId": ids["realms"]},
        "POST /auth/clients/{id}": {"displayName": "new"},
        "POST /auth/roles": {"name": new, "realmId": ids["realms"]},
        "POST /auth/permissions": {"name": new, "realmId": ids["realms"]},
        "POST /auth/scopes": {"name": new, "realmId": ids["realms"]},
        "POST /auth/role-permissions": {"roleId": ids["roles"], "permissionId": ids["known-permission"]},
        "POST /auth/user-permissions": {"userId": ids["users"], "permissionId": ids["known-permission"]},
        "POST /auth/client-permissions": {"clientId": ids["clients"], "permissionId": ids["known-permission"]},
        "POST /auth/user-roles": {"userId": ids["users"], "roleId": ids["auditor-role"]},
        "POST /auth/client-roles": {"clientId": ids["clients"], "roleId": ids["another-role"]},
        "POST /auth/client-scopes": {"clientId": ids["clients"], "scopeId": ids["global-scope"]},
        "POST /core/user-keys": {"kind": "sign", "publicKey": IdentityKey.generate().public.hex_pem},
        "POST /core/nodes": {"name": new, "realmId": ids["realms"]},
        "POST /core/nodes/{id}": {"hidden": True},
        "POST /core/nodes/{id}/enrolment/confirm": {"fingerprint": ids["fingerprint"]},
        "POST /core/projects": {"name": new},
        "POST /core/projects/{id}": {"displayName": "new"},
        "POST /core/project-nodes": {"projectId": ids["projects"], "nodeId": ids["nodes"]},
        "POST /core/project-nodes/{id}": {"approvalStatus": "rejected"},
        "POST /core/project-members": {"projectId": ids["projects"], "userId": ids["users"], "role": "reader"},
        "POST /core/analyses": {"projectId": ids["projects"], "name": new},
        "POST /core/analyses/{id}": {"description": "new"},
        "POST /core/analyses/{id}/command": {"command": "configurationLock"},
        "POST /core/analyses/{id}/client/permissions": {"permissionId": ids["own-storage"]},
        "PUT /core/analyses/{id}/manifest/signature": digest,
        "POST /core/analyses/{id}/runs": ids["order"],
        "POST /core/analysis-nodes": {"analysisId": ids["analyses"], "nodeId": ids["nodes"]},
        "POST /core/analysis-nodes/{id}": {"approvalStatus": "rejected"},
        "POST /core/analysis-buckets": {
            "type": "CODE", "bucketId": ids["buckets"], "analysisId": ids["analyses"],
        },
        "POST /core/analysis-bucket-files": {
            "bucketFileId": ids["bucket-files"], "bucketId": ids["buckets"],
            "analysisBucketId": ids["analysis-buckets"],
        },
        "POST /core/analysis-bucket-files/{id}": {"root": True},
        "POST /core/master-images/command": {"command": "sync"},
        "POST /core/master-images": {"virtualPath": "python/new"},
        "POST /core/registries": {"name": new, "host": f"{new}.example"},
        "POST /core/registry-projects": {
            "name": new, "type": "node", "registryId": ids["registries"], "externalName": new,
        },
        "POST /core/services/registry/command": {"command": "setup", "id": ids["registries"]},
        "POST /storage/buckets": {"name": new},
        "POST /storage/buckets/{id}": {"region": "new"},
        "PUT /storage/projects/{id}/limits": {"keepDays": 30},
        "POST /telemetry/events": {"refType": "project", "name": "seen", "refId": ids["projects"]},
        "POST /telemetry/logs": {"message": "a line", "labels": {"analysisId": ids["analyses"]}},
        "POST /core/analysis-node-logs": {
            "analysisId": ids["analyses"], "nodeId": ids["nodes"], "message": "a line", "level": "info",
        },
        "POST /messenger/hello": {"version": 1, "release": "test"},
        "POST /messenger/messages": {"messages": []},
        "POST /messenger/messages/ack": {"seqs": []},
        "POST /core/key-statements": {"document": "{}", "signature": "0" * 128},
        "POST /core/audit/events": {"event": "{}", "signature": "0" * 128},
        "POST /core/enrolments": {"token": "x", "publicKey": "00", "signature": "00"},
    }  # fmt: skip
    key = f"{'POST' if method == 'PATCH' else method} {path}"
    if path.endswith("/upload"):
        return {"files": [("f", ("new.py", b"x = 1\n"))]}
    if method == "PUT" and path.startswith("/messenger"):
        return {"content": b"FE2E"}
    if key in bodies or method in ("POST", "PATCH", "PUT"):
        return {"json": bodies.get(key, {})}
    return {}


QUERIES = {
    "/core/analysis-logs": "filter[analysisId]={analyses}",
    "/core/analysis-node-logs": "filter[analysisId]={analyses}&filter[nodeId]={nodes}",
    "/telemetry/logs": "filter[analysisId]={analyses}",
    "/core/roster": "members=" + "0" * 64,
    "/core/analyses/{id}/watch": "wait=0",
    "/messenger/messages": "wait=0",
    "/core/audit/leaves": "from=0&to=1",
    "/core/audit/consistency": "old=1&new=1",
    "/core/audit/inclusion": "index=0&size=1",
}
NO_MATTER_WHOSE = re.compile(
    r"/core/master-image|/core/registr(ies|y)|/core/services|/core/audit|/messenger|/auth/polic|/openapi"
)
"""Not of a realm: asked once."""


INSTEAD = {
    "/core/nodes/{id}/enrolment": "waiting",
    "/core/nodes/{id}/enrolment/confirm": "waiting",
    "/core/analyses/{id}/manifest": "locked",
    "/core/analyses/{id}/manifest/signature": "locked",
}
"""Routes that ask for a thing in another state."""


def target_of(path: str, place: Place) -> str:
    """The path with the ids of this place."""
    kind = path.split("/")[2] if path.count("/") > 1 else ""
    values = {
        "id": place.ids.get(INSTEAD.get(path, kind), "0" * 8), "permission": place.ids["own-storage"], "run": "0" * 64,
        "index": "0",
        "sender": place.ids["nodes"], "msg_id": "0" * 32,
    }  # fmt: skip
    query = QUERIES.get(path, "").format(**{name: value for name, value in place.ids.items() if name.isidentifier()})
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda m: values[m[1]], path) + (f"?{query}" if query else "")


class _Undone(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


@contextmanager
def nothing_lasts(hub: Any) -> Iterator[None]:
    """Every write runs in its transaction, which then ends as if it had not been."""
    submit = hub.database._submit

    def undone(operation: Any, label: str | None) -> Future[Any]:
        def run(connection: Connection) -> Any:
            raise _Undone(operation(connection))

        reply: Future[Any] = Future()

        def tell(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, _Undone):
                reply.set_result(error.value)
            elif error is not None:
                reply.set_exception(error)
            else:
                reply.set_result(done.result())

        submit(run, None).add_done_callback(tell)
        return reply

    hub.database._submit = undone
    try:
        yield
    finally:
        hub.database._submit = submit


# -------------------------------------------------------------------------------------------------------------- the walk


def marked(answer: httpx2.Response) -> str:
    if answer.status_code in (401, 403, 404):
        return {401: LOG_IN, 403: REFUSED, 404: NOT_THERE}[answer.status_code]
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    told = answer.json() if is_json and answer.status_code >= 400 else {}
    if told.get("code") == "entity_relation_invalid":
        return NOT_THERE
    assert answer.status_code < 500, (answer.request.method, answer.request.url, answer.text[:300])
    return MAY


class Walk:
    """All routes, all roles, own and foreign."""

    def __init__(self, app: Any, own: Place, foreign: Place) -> None:
        self.places = (own, foreign)
        self.tokens = {name: who.http.headers["authorization"] for name, who in own.who.items()}
        self.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://hub")
        self.good: set[str] = set()

    async def ask(self, column: str, method: str, path: str, place: Place) -> str:
        headers = {"authorization": self.tokens[column]} if column in self.tokens else {}
        if method == "GET" and (kind := self._kind_of_list(path)):
            return await self._listed(path, headers, place.ids[kind])
        sent = body_of(method, path, place)
        answer = await self.http.request(method, target_of(path, place), headers=headers, timeout=60, **sent)
        if answer.status_code < 300:
            self.good.add(f"{method} {path}")
        return marked(answer)

    def _kind_of_list(self, path: str) -> str:
        kind = path.rpartition("/")[2]
        return kind if path.count("/") == 2 and kind in self.places[0].ids and "logs" not in kind else ""

    async def _listed(self, path: str, headers: dict[str, str], wanted: str) -> str:
        """Whether the list holds it."""
        offset = 0
        while True:
            answer = await self.http.get(f"{path}?page[offset]={offset}", headers=headers)
            if answer.status_code != 200:
                return marked(answer)
            self.good.add(f"GET {path}")
            told = answer.json()
            if any(row["id"] == wanted for row in told["data"]):
                return MAY
            offset += 50
            if offset >= told["meta"]["total"]:
                return NOT_THERE

    async def row(self, method: str, path: str) -> tuple[str, ...]:
        cells = []
        for column in COLUMNS:
            own = await self.ask(column, method, path, self.places[0])
            once = column == "nobody" or NO_MATTER_WHOSE.match(path)
            foreign = own if once else await self.ask(column, method, path, self.places[1])
            cells.append(own if own == foreign else f"{own} {foreign}")
        return tuple(cells)

    async def table(self) -> dict[str, tuple[str, ...]]:
        found = {}
        for method, path in all_routes():
            found[f"{method} {path}"] = await self.row(method, path)
        await self.http.aclose()
        return found


def all_routes() -> list[tuple[str, str]]:
    """Methods and paths of the application; what is ASGI of another kind (the WebSocket) has tests of its own."""
    routes = [route for route in ROUTES if isinstance(route, Route)]
    return [(method, route.path) for route in routes for method in sorted((route.methods or set()) - {"HEAD"})]


def walked(directory: Path) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    hub = HubProcess(directory, admin_password=PASSWORD)
    world = World(hub)
    shared = make_shared(world)
    own, foreign = make_place(world, shared), make_place(world, shared)
    world.close()
    hub.stop()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # the hub's lines are of no interest
    state, _ = open_hub(Settings(dir=directory))
    try:
        with nothing_lasts(state):
            walk = Walk(make_app(state), own, foreign)

            async def all_of_it() -> dict[str, tuple[str, ...]]:
                found = await walk.table()
                await state.settle()
                return found

            return asyncio.run(all_of_it()), walk.good
    finally:
        state.database.close()
        structlog.reset_defaults()


# ----------------------------------------------------------------------------------------------------------- the table


def written() -> dict[str, tuple[str, ...]]:
    """The table of the docs."""
    text = DOCS.read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    found: dict[str, tuple[str, ...]] = {}
    for first, *cells in rows:
        methods, path = first.strip("`").rsplit(" ", 1)
        for method in methods.split(" "):
            assert f"{method} {path}" not in found, first
            found[f"{method} {path}"] = tuple(cells)
    return found


def shown(table: dict[str, tuple[str, ...]]) -> str:
    """The table as it is written."""
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, cells in table.items():
        method, path = name.split(" ")
        merged.setdefault((path, cells), []).append(method)
    lines = [f"| Route | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| `{' '.join(methods)} {path}` | {' | '.join(cells)} |" for (path, cells), methods in merged.items()]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    return walked(tmp_path_factory.mktemp("walk"))


def test_every_route_answers_every_role_as_the_docs_say(walk: tuple[dict[str, tuple[str, ...]], set[str]]) -> None:
    found, expected = walk[0], written()
    assert set(found) == set(expected), "a route came or went: see this test's head"
    wrong = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
    assert wrong == {}


def test_each_route_was_really_done_by_somebody(walk: tuple[dict[str, tuple[str, ...]], set[str]]) -> None:
    """A mark that says 'may' because of a mistake in the request would prove nothing."""
    never = {f"{method} {path}" for method, path in all_routes()} - walk[1]
    assert never - set(NEVER) == set()


NEVER = {
    "DELETE /auth/realms/{id}": "both have nodes",
    "DELETE /core/projects/{id}": "both have analyses",
    "DELETE /core/nodes/{id}": "both take part in an analysis",
    "DELETE /storage/buckets/{id}": "both belong to an analysis",
    "DELETE /core/master-image-groups/{id}": "it holds images",
    "DELETE /core/master-images/{id}": "analyses use it",
    "POST /core/analysis-buckets": "each analysis has its three",
    "POST /auth/token": "no credentials are sent",
    "POST /auth//token": "no credentials are sent",
    "POST /auth/device_authorization": "no client is named",
    "GET /auth/authorize": "no client is named",
    "POST /auth/authorize": "no client is named",
    "POST /auth/device": "the form is from nowhere",
    "POST /core/enrolments": "what is sent is signed by nobody",
    "POST /core/key-statements": "what is sent is signed by nobody",
    "POST /core/audit/events": "what is sent is signed by nobody",
    "PUT /core/analyses/{id}/manifest/signature": "what is sent is signed by nobody",
    "POST /core/analyses/{id}/runs": "what is sent is signed by nobody",
    "GET /core/analyses/{id}/image": "neither is built",
    "GET /core/audit/starts/{run}": "there is no such run",
    "PUT /messenger/messages": "there is no such run",
    "GET /messenger/messages/{sender}/{msg_id}": "there is no such message",
    "PUT /messenger/uploads/{msg_id}": "there is no such message",
    "GET /messenger/uploads/{msg_id}": "there is no such message",
    "POST /messenger/messages": "none is sent",
}
"""Routes that nobody brings to an end here, and why; who may ask is judged before that."""


def test_the_table_has_every_role_and_no_doubt(walk: tuple[dict[str, tuple[str, ...]], set[str]]) -> None:
    assert set(COLUMNS) >= set(ROLES)
    public = {
        f"{m} {route.path}"
        for route in ROUTES
        if isinstance(route, Route)
        for m in route.methods or ()
        if _public(route)
    }
    for name, cells in walk[0].items():
        if name not in public:
            assert cells[-1] == LOG_IN, f"{name} asks for no log-in"
        assert all(
            re.fullmatch(f"[{MAY}{REFUSED}{NOT_THERE}{LOG_IN}]( [{MAY}{REFUSED}{NOT_THERE}])?", c) for c in cells
        )


def _public(route: Route) -> bool:
    about = getattr(route, "about", None)
    return isinstance(about, About) and about.public


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        table, done = walked(Path(folder))
        print(shown(table))
        print("never:", sorted({f"{m} {p}" for m, p in all_routes()} - done))
