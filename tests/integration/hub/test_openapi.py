"""The published OpenAPI names every route, and the hub answers as it says: no 500, no answer that is not written there."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route, WebSocketRoute
from world import PASSWORD, HubProcess, Study, World

from flame.hub.app import ROUTES
from flame.hub.described import Described

EXAMPLES = 5
"""For each operation and each actor: bounded, because all of it runs in every build."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    more = {}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        more["database_url"] = server.setting(server.fresh())
    hub = HubProcess(tmp_path_factory.mktemp("hub"), admin_password=PASSWORD, **more)
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.anonymous()("GET", "/openapi.json", 200)
    return found


def test_every_route_is_described_and_published(document: dict[str, Any]) -> None:
    assert [route for route in ROUTES if not isinstance(route, Described | WebSocketRoute)] == []
    routes = [route for route in ROUTES if isinstance(route, Route)]
    assert len({operation["operationId"] for path in document["paths"].values() for operation in path.values()}) == sum(
        len(path) for path in document["paths"].values()
    )
    for route in routes:
        assert route.endpoint.__doc__, route
        operations = document["paths"][re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)]
        for method in (route.methods or set()) - {"HEAD"}:
            assert operations[method.lower()]["responses"], route
    assert len(document["paths"]) == len({route.path for route in routes})


def test_the_document_says_what_a_client_must_know(document: dict[str, Any]) -> None:
    analysis = document["components"]["schemas"]["Analysis"]["properties"]
    assert analysis["nodesApproved"]["type"] == ["integer", "null"] or analysis["nodesApproved"]["type"] == "integer"
    assert (
        "manifestMissing" not in analysis
        and "passwordHash" not in str(document)
        and "secretHash" not in str(document).replace("secretHashed", "")
    )
    names = {p["name"] for p in document["paths"]["/core/analyses"]["get"]["parameters"]}
    assert {"filter[projectId]", "filter[project.name]", "page[limit]", "sort", "include", "fields[project]"} <= names
    create = document["paths"]["/core/nodes"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("NewNodeBody")
    assert {"201", "400", "401", "403", "409"} <= set(create["responses"])
    assert document["paths"]["/auth/token"]["post"]["security"] == []


def test_it_is_valid(document: dict[str, Any]) -> None:
    import jsonschema_rs

    for name, schema in document["components"]["schemas"].items():
        try:
            jsonschema_rs.validator_for({**schema, "components": document["components"]})
        except jsonschema_rs.ValidationError as error:
            raise AssertionError(f"{name}: {error}") from None


CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
NOT_CALLED = {
    ("get", "/core/analyses/{id}/watch"): "waits, as it should",
    ("post", "/auth/token/revoke"): "would end the session of the test",
}


def test_the_hub_answers_as_it_says(hub: HubProcess, world: World, document: dict[str, Any]) -> None:
    study = Study.set_up(world)
    study.submit()
    ids = known_ids(study)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=hub.url)
    actors = [study.researcher, world.admin, study.nodes[0]]
    failures: list[str] = []
    called = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if (operation.method, operation.path) in NOT_CALLED:
            continue
        called += 1
        call(operation, actors, ids, failures)
    assert not failures, "\n\n".join(failures)
    assert called > 100


def call(operation: Any, actors: list[Any], ids: dict[str, list[str]], failures: list[str]) -> None:
    examples = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def one(case: Any) -> None:
        nonlocal examples
        examples += 1
        actor = actors[examples % len(actors)]
        if case.path_parameters and examples % 2:
            collection = operation.path.split("/{")[0]
            case.path_parameters |= {"id": secrets.choice(ids[collection])} if ids.get(collection) else {}
        if isinstance((case.query or {}).get("wait"), int | float):
            case.query["wait"] = min(case.query["wait"], 1)  # who asks to be kept waiting is kept waiting
        response = case.call(headers={"authorization": actor.http.headers["authorization"]}, timeout=20)
        try:
            case.validate_response(response, checks=CHECKS)
        except BaseException as error:
            failures.append(f"{operation.method.upper()} {operation.path}: {error}"[:1500])
            raise

    try:
        one()
    except BaseException as error:
        if not failures or operation.path not in failures[-1]:
            failures.append(f"{operation.method.upper()} {operation.path}: {error!r}"[:1500])


def known_ids(study: Study) -> dict[str, list[str]]:
    """Things that are there, so that not every call ends at "not found"."""
    paths = (
        "/core/projects", "/core/project-nodes", "/core/analyses", "/core/analysis-nodes", "/core/analysis-buckets",
        "/core/analysis-bucket-files", "/core/nodes", "/core/master-images", "/storage/buckets", "/storage/bucket-files",
        "/auth/roles", "/auth/realms", "/telemetry/events",
    )  # fmt: skip
    return {path: [row["id"] for row in study.researcher.get(path)] for path in paths}
