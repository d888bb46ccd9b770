"""Nobody sees what is not theirs, and no query widens it."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from world import HubProcess, Study, World

from flame.hub import authorisation as rules
from flame.hub.analyses.tables import analyses, analysis_buckets
from flame.hub.authorisation import Action, Actor, may
from flame.hub.identity.sessions import _client, _user
from flame.hub.identity.tables import clients, users
from flame.hub.nodes.tables import nodes
from flame.hub.objects.tables import buckets
from flame.hub.projects.tables import projects
from flame.storage.engine import Database


@pytest.fixture(scope="module")
def studies(world: World) -> tuple[Study, Study]:
    found = Study.set_up(world), Study.set_up(world)
    for study in found:
        study.submit()
    return found


def ids(rows: list[dict[str, object]]) -> set[object]:
    return {row["id"] for row in rows}


def test_each_sees_their_own_study_and_no_other(studies: tuple[Study, Study]) -> None:
    for mine, other in (studies, studies[::-1]):
        for who in (mine.researcher, *mine.stewards, *mine.nodes):
            assert ids(who.get("/core/analyses")) == {mine.analysis}
            assert ids(who.get("/core/projects")) == {mine.project}
            assert {row["analysisId"] for row in who.get("/core/analysis-nodes")} == {mine.analysis}
            assert {row["projectId"] for row in who.get("/core/project-nodes")} == {mine.project}
            assert {row["analysisId"] for row in who.get("/core/analysis-bucket-files")} == {mine.analysis}
            for path in (f"/core/analyses/{other.analysis}", f"/core/projects/{other.project}"):
                who.refused(404, "GET", path)
            who.refused(404, "GET", f"/core/analyses/{other.analysis}/manifest")
            who.refused(404, "GET", f"/core/projects/{other.project}/proposal")


def test_files_of_others_can_be_neither_read_nor_written(studies: tuple[Study, Study]) -> None:
    mine, other = studies
    bucket = other.bucket("CODE")
    file = other.researcher.get("/storage/bucket-files", **{"filter[bucketId]": bucket})[0]
    for who in (mine.researcher, mine.stewards[0], mine.nodes[0]):
        who.refused(404, "GET", f"/storage/bucket-files/{file['id']}")
        who.refused(404, "GET", f"/storage/bucket-files/{file['id']}/stream")
        who.refused(404, "GET", f"/storage/buckets/{bucket}/stream")
        who.refused(404, "DELETE", f"/storage/bucket-files/{file['id']}")
        parts = [("f", ("evil.py", b"x"))]
        who.refused(404, "POST", f"/storage/buckets/{bucket}/upload", files=parts)
        assert all(row["bucketId"] != bucket for row in who.get("/storage/bucket-files"))
    other.stewards[0].refused(403, "POST", f"/storage/buckets/{bucket}/upload", files=[("f", ("evil.py", b"x"))])


def test_belonging_to_a_realm_shows_no_project(studies: tuple[Study, Study], world: World) -> None:
    mine = studies[0]
    realm = mine.researcher.get(f"/core/projects/{mine.project}")["realmId"]
    colleague = world.person(realm, "researcher")
    assert colleague.get("/core/projects") == [] and colleague.get("/core/analyses") == []
    colleague.refused(404, "POST", f"/core/analyses/{mine.analysis}/command", json={"command": "configurationLock"})
    mine.researcher.make("/core/project-members", projectId=mine.project, userId=colleague.id, role="reader")
    assert ids(colleague.get("/core/analyses")) == {mine.analysis}
    colleague.refused(403, "POST", f"/core/analyses/{mine.analysis}/command", json={"command": "configurationLock"})
    colleague.refused(403, "POST", f"/core/analyses/{mine.analysis}", json={"description": "mine"})


def test_a_filter_on_a_relation_is_no_peephole(studies: tuple[Study, Study]) -> None:
    mine, other = studies
    name = other.researcher.get(f"/core/projects/{other.project}")["name"]
    found = mine.researcher.get("/core/analyses", **{"filter[project.name]": name})
    assert found == []
    assert ids(other.researcher.get("/core/analyses", **{"filter[project.name]": name})) == {other.analysis}


def test_hidden_nodes_are_hidden(studies: tuple[Study, Study], world: World) -> None:
    realm = world.realm("secretive")
    hidden = world.admin.make("/core/nodes", name="hidden-node", realmId=realm, hidden=True)["id"]
    studies[0].researcher.refused(404, "GET", f"/core/nodes/{hidden}")
    assert world.person(realm, "steward").get(f"/core/nodes/{hidden}")["id"] == hidden


def test_list_and_single_rule_agree(studies: tuple[Study, Study], hub: HubProcess) -> None:
    """For every actor and every thing in the hub: what the predicate lists is what `may` allows."""
    assert studies
    database = Database(hub.dir / "hub.db")
    compared = 0
    try:
        with database._reader.begin() as c:
            actors: list[Actor] = [
                _user(c, key) for key in c.execute(select(users.c.id).where(users.c.active)).scalars()
            ]
            actors += [_client(c, key) for key in c.execute(select(clients.c.id)).scalars()]
            things = {
                projects: (rules.readable_projects, rules.project_facts),
                analyses: (rules.readable_analyses, rules.analysis_facts),
                nodes: (rules.readable_nodes, lambda c, key: _node(c, key)),
            }
            for table, (listed, facts) in things.items():
                known = {key: facts(c, key) for key in c.execute(select(table.c.id)).scalars()}
                for actor in actors:
                    seen = set(c.execute(select(table.c.id).where(listed(actor))).scalars())
                    assert seen == {key for key, fact in known.items() if may(actor, Action.READ, fact)}, actor
                    compared += len(known)
            links = select(buckets.c.id).join(analysis_buckets, analysis_buckets.c.bucket_id == buckets.c.id)
            known = {key: rules.bucket_facts(c, key) for key in c.execute(links).scalars()}
            for actor in actors:
                if actor.analysis:
                    continue
                seen = set(c.execute(select(buckets.c.id).where(rules.readable_buckets(actor))).scalars()) & set(known)
                assert seen == {key for key, fact in known.items() if may(actor, Action.READ, fact)}, actor
                compared += len(known)
    finally:
        database.close()
    assert compared > 100


def _node(c: object, key: str) -> rules.Node:
    row = c.execute(select(nodes).where(nodes.c.id == key)).one()  # type: ignore[attr-defined]
    return rules.Node(row.id, row.realm_id, row.hidden)


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ("filter[nonsense]=1", ["filter", "nonsense"]),
        ("filter[project_id]=1", ["filter", "project_id"]),
        ("sort=nonsense", ["sort", "nonsense"]),
        ("include=nonsense", ["include", "nonsense"]),
        ("fields=secret", ["fields", "secret"]),
        ("page[limit]=many", ["page", "limit"]),
        ("filter[project.description]=x", ["filter", "project", "description"]),
        ("nonsense=1", ["nonsense"]),
        ("filter[__proto__]=1", ["filter", "__proto__"]),
    ],
)
def test_what_a_query_does_not_know_it_refuses_by_name(
    studies: tuple[Study, Study], query: str, place: list[str]
) -> None:
    answer = studies[0].researcher.refused(400, "GET", f"/core/analyses?{query}")
    assert answer["issues"][0]["path"] == place


def test_the_query_language(world: World) -> None:
    realm = world.realm("query")
    names = [f"alpha-{realm[:8]}", f"beta-{realm[:8]}", f"gamma-{realm[:8]}"]
    for name in names:
        world.admin.make("/core/nodes", name=name, realmId=realm, hidden=name.startswith("g"))

    def found(**params: str) -> list[str]:
        return [
            row["name"] for row in world.admin.get("/core/nodes", **{"filter[realmId]": realm, "sort": "name"} | params)
        ]

    assert found() == names
    assert found(sort="-name") == names[::-1]
    assert found(**{"filter[name]": "beta~"}) == names[1:2]
    assert found(**{"filter[name]": f"~{realm[:8]}"}) == names
    assert found(**{"filter[name]": "~eta~"}) == names[1:2]
    assert found(**{"filter[name]": f"!{names[0]}"}) == names[1:]
    assert found(**{"filter[name]": ",".join(names[:2])}) == names[:2]
    assert found(**{"filter[hidden]": "true"}) == names[2:]
    assert found(**{"page[limit]": "1", "page[offset]": "1"}) == names[1:2]
    answer = world.admin("GET", "/core/nodes", 200, params={"filter[realmId]": realm, "page[limit]": "2"})
    assert (answer["meta"]["total"], answer["meta"]["limit"], len(answer["data"])) == (3, 2, 2)
    assert answer["meta"]["schema"]["name"] == "node"
    assert set(world.admin.get("/core/nodes", fields="id,name")[0]) >= {"id", "name"}
    assert "realmId" not in world.admin.get("/core/nodes", fields="id,name")[0]
    assert "email" not in world.admin.get("/auth/users")[0]
    assert "email" in world.admin.get("/auth/users", fields="+email")[0]


def test_includes_bring_the_record(studies: tuple[Study, Study]) -> None:
    study = studies[0]
    row = study.researcher.get(
        "/core/analysis-nodes", include="analysis,node", **{"filter[nodeId]": study.nodes[0].id}
    )[0]
    assert row["analysis"]["id"] == study.analysis and row["node"]["id"] == study.nodes[0].id
    row = study.nodes[0].get(f"/core/analyses/{study.analysis}", include="registry,project,masterImage")
    assert (
        row["project"]["id"] == study.project
        and row["masterImage"]["virtualPath"] == "python/base"
        and row["registry"] is None
    )


def test_a_created_record_is_the_one_read_back(studies: tuple[Study, Study]) -> None:
    made = studies[0].researcher.make("/core/projects", name=f"Again-{studies[0].project[:8]}")
    assert made["name"] == made["name"].lower()
    assert studies[0].researcher.get(f"/core/projects/{made['id']}") == made
    assert made in studies[0].researcher.get("/core/projects")
    studies[0].researcher("DELETE", f"/core/projects/{made['id']}", 202)


def test_hostile_uploads_are_refused_and_leave_nothing(studies: tuple[Study, Study], hub: HubProcess) -> None:
    study = studies[0]
    before = sorted(p.name for p in (hub.dir / "objects").rglob("*"))
    for path in ("../up.py", "/abs.py", "a//b.py", "a/./b.py", "x" * 600):
        answer = study.upload(study.researcher, "CODE", {"good.py": b"1", path: b"x"}, 400)
        assert "not allowed" in answer["message"]
    bucket = study.bucket("CODE")
    headers = {"content-type": "multipart/form-data; boundary=b"}
    for body in (
        b"",
        b"--b\r\n",
        b"rubbish",
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nhalf',
    ):
        study.researcher.refused(400, "POST", f"/storage/buckets/{bucket}/upload", content=body, headers=headers)
    assert sorted(p.name for p in (hub.dir / "objects").rglob("*")) == before


def test_a_buckets_archive_is_plain_ustar(studies: tuple[Study, Study]) -> None:
    import io
    import tarfile

    study = studies[0]
    data = study.nodes[0]("GET", f"/storage/buckets/{study.bucket('CODE')}/stream", 200)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
        assert all(m.pax_headers == {} for m in archive.getmembers())
    assert found == {"main.py": b"print('hello')\n", "lib/more.py": b"x = 1\n"}


def test_what_is_not_decided_is_not_approved_either(studies: tuple[Study, Study]) -> None:
    """In SQL a missing value is unequal to nothing; for a person, "not approved" holds what waits."""
    study = studies[0]
    who = study.researcher
    project = who.make("/core/projects", name=f"waiting-{study.project[:8]}")["id"]
    place = who.make("/core/project-nodes", projectId=project, nodeId=study.nodes[0].id)["id"]

    def found(value: str) -> set[object]:
        return ids(who.get("/core/project-nodes", **{"filter[projectId]": project, "filter[approvalStatus]": value}))

    assert found("!approved") == found("null") == found("approved,null") == found("!~pro~") == {place}
    assert found("approved") == found("!null") == found("rejected,approved") == found("!approved,null") == set()
    who("DELETE", f"/core/projects/{project}", 202)


def test_fields_are_chosen_also_of_what_is_included(studies: tuple[Study, Study]) -> None:
    who, analysis = studies[0].researcher, studies[0].analysis
    row = who.get(f"/core/analyses/{analysis}", include="project", fields="id,name", **{"fields[project]": "name"})
    assert set(row) == {"id", "name", "projectId", "project"} and set(row["project"]) == {"id", "name"}
    answer = who.refused(400, "GET", f"/core/analyses/{analysis}?include=project&fields[project]=nonsense")
    assert answer["issues"][0]["path"] == ["fields", "project", "nonsense"]
