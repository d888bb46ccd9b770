"""Who may do what at the hub. Default deny; the only module that knows the rules.

One rule, two forms: `may` judges one thing from facts about it; the predicates below say the same in SQL, for lists.
A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, and_, false, or_, select, true

from flame.hub.analyses.tables import analyses, analysis_buckets, analysis_nodes, runs
from flame.hub.audit.tables import leaves
from flame.hub.identity.permissions import DECISIONS, IN_A_REALM
from flame.hub.identity.permissions import ROLES as ROLES
from flame.hub.identity.tables import (
    client_permissions,
    client_roles,
    client_scopes,
    clients,
    permissions,
    policies,
    realms,
    role_permissions,
    roles,
    scopes,
    sessions,
    user_attributes,
    user_keys,
    user_permissions,
    user_roles,
    users,
)
from flame.hub.nodes.tables import nodes
from flame.hub.objects.tables import bucket_files, buckets
from flame.hub.projects.tables import project_members, project_nodes, projects
from flame.hub.registry.tables import registry_projects
from flame.hub.telemetry.tables import events
from flame.model.errors import NotAllowed


class Action(StrEnum):
    READ = "read"
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    COMMAND = "command"
    SIGN = "sign"
    DECIDE = "decide"
    DECIDE_SIGNED = "decide with a signature"
    REPORT = "report"
    UPLOAD = "upload"


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes, or no with the reason in words."""

    allowed: bool
    reason: str = ""
    next_step: str = ""

    def __bool__(self) -> bool:
        return self.allowed


YES: Final = Decision(True)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is asking. `node` is set for a node's client, `analysis` for an analysis' client."""

    kind: Literal["user", "client"]
    id: str
    name: str
    realm: str
    roles: frozenset[str] = frozenset()
    node: str | None = None
    analysis: str | None = None
    permissions: frozenset[str] = frozenset()

    def has(self, *names: str) -> bool:
        return self.kind == "user" and not self.roles.isdisjoint(names)

    def can(self, *names: str) -> bool:
        """Whether one of these permissions is held. It reaches what is one's own, and the own realm; see `may`."""
        return not self.permissions.isdisjoint(names)

    def governs(self, realm: str | None) -> bool:
        """Whether the actor administers this realm: what they may do, they may do to everything in it."""
        return self.is_admin or (self.kind == "user" and realm == self.realm and self.can("realm_update"))

    @property
    def is_admin(self) -> bool:
        return self.has("admin")


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub itself: administration that belongs to no realm. permission: what lets somebody else than an admin do it."""

    permission: str | None = None


Kind = Literal[
    "realm", "user", "client", "role", "permission", "policy", "scope", "session", "user_attribute", "node", "project",
    "role_permission", "user_permission", "client_permission", "user_role", "client_role", "client_scope",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Realm:
    """Something that belongs to a realm (None: to the hub): a person, a client, a node, what one of them holds.

    owner: whose it is, where it is somebody's.
    """

    id: str | None
    kind: Kind = "realm"
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """Rights of somebody in a realm that are to be given, taken or administered (a new password is as good as a gift).

    holders: who has them afterwards. everything: the role `admin` is among them.
    """

    realm: str | None
    permissions: frozenset[str]
    holders: frozenset[str] = frozenset()
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    id: str
    realm: str
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    realm: str
    creator: str | None
    members: Mapping[str, str] = field(default_factory=dict)
    """user id -> editor or reader"""
    asked: Mapping[str, str] = field(default_factory=dict)
    """node id -> realm, of the project's nodes"""


@dataclass(frozen=True, slots=True)
class Analysis:
    id: str
    project: Project
    creator: str | None
    nodes: Mapping[str, str] = field(default_factory=dict)
    """node id -> realm"""


@dataclass(frozen=True, slots=True)
class Membership:
    """A node's place in a project or an analysis: what a hospital decides about."""

    node: str
    node_realm: str
    creators: frozenset[str]
    """Who asked: whoever created project and analysis."""
    self_approval: bool = False
    subject: Literal["project", "analysis"] = "analysis"
    rehearsal: bool = False
    """The hub skips approvals, for tests: an administrator stands in for nodes in what the hub shows."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket: of an analysis (with its type), or somebody's own."""

    owner: str
    realm: str
    type: Literal["CODE", "RESULT", "TEMP"] | None = None
    analysis: Analysis | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    """node id -> default or aggregator, of the analysis' nodes"""


@dataclass(frozen=True, slots=True)
class Key:
    """A person's public key."""

    owner: Realm
    asks: frozenset[str] = frozenset()
    """The nodes that the person's projects ask."""


Resource = Hub | Realm | Rights | Node | Project | Analysis | Membership | Bucket | Key


def may(actor: Actor, action: Action, resource: Resource) -> Decision:
    """Whether `actor` may do `action` with `resource`; a no says why."""
    match resource:
        case Hub():
            named = resource.permission is not None and actor.can(resource.permission)
            return _yes(actor.is_admin or named, "Only an administrator of the hub may do this.")
        case Realm():
            return _realm(actor, action, resource)
        case Rights():
            return _rights(actor, resource)
        case Key() if actor.kind == "client" and not actor.is_admin:
            return _yes(action is Action.READ and actor.node in resource.asks, "This key is not visible to you.")
        case Key():
            return may(actor, action, resource.owner)
        case Node():
            return _node(actor, action, resource)
        case Project():
            return _project(actor, action, resource)
        case Analysis():
            return _analysis(actor, action, resource)
        case Membership():
            return _membership(actor, action, resource)
        case Bucket():
            return _bucket(actor, action, resource)


def demand(actor: Actor, action: Action, resource: Resource) -> None:
    """Raises NotAllowed, with the reason, unless `may`."""
    decision = may(actor, action, resource)
    if not decision:
        raise NotAllowed(decision.reason, next_step=decision.next_step)


def _yes(condition: bool, otherwise: str, next_step: str = "") -> Decision:
    return YES if condition else Decision(False, otherwise, next_step)


_OPEN_IN_A_REALM: Final = frozenset({"realm", "role", "permission", "policy", "scope", "role_permission"})
"""What everybody in a realm sees of it."""
_OPEN_TO_PEOPLE: Final = frozenset({"user", "user_role"})


def _realm(actor: Actor, action: Action, thing: Realm) -> Decision:
    if actor.is_admin:
        return YES
    inside = thing.id == actor.realm
    if action is Action.READ:
        seen = inside and _reads_in_own_realm(actor, thing.kind)
        shared = thing.id is None and thing.kind in _OPEN_IN_A_REALM
        return _yes(seen or shared or thing.owner == actor.id, "This is not visible to you.")
    if thing.kind == "realm":
        return _yes(actor.governs(thing.id), "Only an administrator of this realm may do this.")
    needed = f"{thing.kind}_{action.value}"
    return _yes(inside and actor.can(needed), f"This needs the permission '{needed}' in its realm.")


def _reads_in_own_realm(actor: Actor, kind: str) -> bool:
    if kind in _OPEN_IN_A_REALM or (kind in _OPEN_TO_PEOPLE and actor.kind == "user"):
        return True
    return actor.can(f"{kind}_read")


def _rights(actor: Actor, rights: Rights) -> Decision:
    """Nobody hands on what is not theirs; who administers a realm hands out what stays in it, and not to themselves."""
    if actor.is_admin:
        return YES
    if rights.realm != actor.realm:
        return Decision(False, "This belongs to another realm.")
    theirs = actor.permissions | (IN_A_REALM if actor.governs(rights.realm) else frozenset())
    beyond = sorted(rights.permissions - theirs)
    if rights.everything or beyond:
        shown = ", ".join(beyond[:3]) or "everything"
        return Decision(False, f"You cannot decide about rights that you do not hold: {shown}.")
    if actor.id in rights.holders and not rights.permissions <= actor.permissions:
        return Decision(False, "Nobody gives rights to themselves.", "Ask another administrator.")
    return YES


def _node(actor: Actor, action: Action, node: Node) -> Decision:
    if action is Action.READ:
        visible = not node.hidden or node.realm == actor.realm or node.id == actor.node
        return _yes(actor.is_admin or visible, "This node is not visible to you.")
    return may(actor, action, Realm(node.realm, "node"))


def _project(actor: Actor, action: Action, project: Project) -> Decision:
    if action is Action.READ:
        return _yes(_sees(actor, project), "This project is not visible to you.")
    needed = "analysis_create" if action is Action.CREATE else f"project_{action.value}"
    return _yes(_edits(actor, project), _NOT_YOURS) if actor.can(needed) else _lacks(needed)


_NOT_YOURS: Final = "Only the project's creator, its editors and administrators may do this."


def _lacks(permission: str) -> Decision:
    return Decision(
        False, f"This needs the permission '{permission}'.", "Ask an administrator of your realm for a role with it."
    )


def _sees(actor: Actor, project: Project) -> bool:
    if actor.kind == "client":
        return actor.node is not None and actor.node in project.asked
    return (
        actor.is_admin
        or actor.governs(project.realm)
        or actor.id == project.creator
        or actor.id in project.members
        or (actor.can(*OVERSEES) and actor.realm in project.asked.values())
    )


def _edits(actor: Actor, project: Project) -> bool:
    if actor.kind != "user":
        return False
    mine = actor.id == project.creator or project.members.get(actor.id) == "editor"
    return mine or actor.governs(project.realm)


OVERSEES: Final = (*sorted(DECISIONS), "event_read")
"""Permissions that show the projects which ask a node of the own realm: a steward's, an auditor's."""


def _analysis(actor: Actor, action: Action, analysis: Analysis) -> Decision:
    if action is Action.READ:
        if actor.kind == "client":
            seen = actor.analysis == analysis.id or (actor.node is not None and actor.node in analysis.nodes)
        else:
            seen = actor.id == analysis.creator or _sees(actor, analysis.project)
        return _yes(seen, "This analysis is not visible to you.")
    if action is Action.SIGN:
        return _yes(actor.kind == "user" and actor.id == analysis.creator, "Only the analysis' creator signs for it.")
    needed = "analysis_delete" if action is Action.DELETE else "analysis_update"
    if not actor.can(needed):
        return _lacks(needed)
    mine = actor.kind == "user" and actor.id == analysis.creator
    return _yes(
        mine or _edits(actor, analysis.project), "Only the analysis' creator and the project's editors may do this."
    )


def _membership(actor: Actor, action: Action, place: Membership) -> Decision:
    own = actor.node is not None and actor.node == place.node
    if action is Action.REPORT:
        stands_in = place.rehearsal and actor.is_admin
        return _yes(own or stands_in, "Only the node itself reports how its run goes on.")
    if action is Action.DECIDE_SIGNED:
        return _yes(own, "Only the node itself hands in a signed decision.")
    if action is not Action.DECIDE:
        return Decision(False, "This is not possible here.")
    steward = actor.kind == "user" and actor.can(f"{place.subject}_approve") and actor.realm == place.node_realm
    if steward and actor.id in place.creators and not place.self_approval:
        return Decision(False, "Who asks for an analysis does not approve it.", "Ask another steward of the hospital.")
    stands_in = place.rehearsal and actor.is_admin
    return _yes(own or steward or stands_in, "Only the node itself, or a steward of its realm, decides for it.")


def _bucket(actor: Actor, action: Action, bucket: Bucket) -> Decision:
    analysis = bucket.analysis
    if analysis is None:
        mine = actor.id == bucket.owner or actor.governs(bucket.realm)
        return _yes(mine, "This bucket is not yours.")
    if actor.kind == "client":
        return _bucket_for_node(actor, action, bucket)
    if action is Action.READ:
        if bucket.type == "CODE":
            return _yes(may(actor, Action.READ, analysis).allowed, "This bucket is not visible to you.")
        people = actor.id == analysis.creator or actor.id in analysis.project.members or _edits(actor, analysis.project)
        return _yes(people and actor.can("analysis_result_read"), "Results are for the project's people.")
    if bucket.type != "CODE":
        return Decision(False, "Only nodes write here.")
    return may(actor, Action.UPDATE, analysis)


def _bucket_for_node(actor: Actor, action: Action, bucket: Bucket) -> Decision:
    if action is Action.READ and bucket.analysis is not None and actor.analysis == bucket.analysis.id:
        return YES
    role = bucket.roles.get(actor.node or "")
    if role is None:
        return Decision(False, "This node does not take part in the analysis.")
    if action is Action.READ:
        return YES
    if bucket.type == "RESULT":
        return _yes(role == "aggregator", "Only the aggregator hands in results.")
    return _yes(bucket.type == "TEMP", "Nodes do not change a program.")


# ---------------------------------------------------------------------------------------------- the same rules in SQL


def _readable(
    actor: Actor, kind: Kind, realm: ColumnElement[Any], owner: ColumnElement[Any] | None = None
) -> ColumnElement[bool]:
    """What belongs to a realm (`Realm`)."""
    if actor.is_admin:
        return true()
    rules: list[ColumnElement[bool]] = [] if owner is None else [owner == actor.id]
    if kind in _OPEN_IN_A_REALM:
        rules.append(realm.is_(None))
    if _reads_in_own_realm(actor, kind):
        rules.append(realm == actor.realm)
    return or_(false(), *rules)


def readable_realms(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "realm", realms.c.id)


def readable_users(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "user", users.c.realm_id, users.c.id)


def readable_clients(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "client", clients.c.realm_id, clients.c.id)


def readable_roles(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "role", roles.c.realm_id)


def readable_permissions(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "permission", permissions.c.realm_id)


def readable_policies(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "policy", policies.c.realm_id)


def readable_scopes(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "scope", scopes.c.realm_id)


def readable_role_permissions(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "role_permission", role_permissions.c.role_realm_id)


def readable_user_permissions(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "user_permission", user_permissions.c.user_realm_id, user_permissions.c.user_id)


def readable_user_roles(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "user_role", user_roles.c.user_realm_id, user_roles.c.user_id)


def readable_client_permissions(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "client_permission", client_permissions.c.client_realm_id, client_permissions.c.client_id)


def readable_client_roles(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "client_role", client_roles.c.client_realm_id, client_roles.c.client_id)


def readable_client_scopes(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "client_scope", client_scopes.c.client_realm_id, client_scopes.c.client_id)


def readable_user_attributes(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "user_attribute", user_attributes.c.realm_id, user_attributes.c.user_id)


def readable_sessions(actor: Actor) -> ColumnElement[bool]:
    return _readable(actor, "session", sessions.c.realm_id, sessions.c.subject)


def readable_user_keys(actor: Actor) -> ColumnElement[bool]:
    """Public keys: one's own, those of the own realm, and for a node those of whoever asks it."""
    if actor.is_admin:
        return true()
    if actor.kind == "client":
        asked = select(project_nodes.c.project_id).where(project_nodes.c.node_id == actor.node)
        return user_keys.c.user_id.in_(select(projects.c.user_id).where(projects.c.id.in_(asked)))
    return user_keys.c.user_id.in_(select(users.c.id).where(readable_users(actor)))


def readable_nodes(actor: Actor) -> ColumnElement[bool]:
    if actor.is_admin:
        return true()
    return or_(nodes.c.hidden.is_(False), nodes.c.realm_id == actor.realm, nodes.c.id == actor.node)


def readable_projects(actor: Actor) -> ColumnElement[bool]:
    if actor.is_admin:
        return true()
    if actor.kind == "client":
        asked = select(project_nodes.c.project_id).where(project_nodes.c.node_id == actor.node)
        return projects.c.id.in_(asked) if actor.node else false()
    rules = [
        projects.c.user_id == actor.id,
        projects.c.id.in_(select(project_members.c.project_id).where(project_members.c.user_id == actor.id)),
    ]
    if actor.governs(actor.realm):
        rules.append(projects.c.realm_id == actor.realm)
    if actor.can(*OVERSEES):
        here = select(project_nodes.c.project_id).where(project_nodes.c.node_realm_id == actor.realm)
        rules.append(projects.c.id.in_(here))
    return or_(*rules)


def readable_project_nodes(actor: Actor) -> ColumnElement[bool]:
    return project_nodes.c.project_id.in_(select(projects.c.id).where(readable_projects(actor)))


def readable_analyses(actor: Actor) -> ColumnElement[bool]:
    if actor.kind == "client":
        part = select(analysis_nodes.c.analysis_id).where(analysis_nodes.c.node_id == actor.node)
        return or_(analyses.c.id == actor.analysis, analyses.c.id.in_(part))
    seen = analyses.c.project_id.in_(select(projects.c.id).where(readable_projects(actor)))
    return or_(analyses.c.user_id == actor.id, seen)


def part_of_readable(column: ColumnElement[str], actor: Actor) -> ColumnElement[bool]:
    """What belongs to an analysis is as visible as the analysis."""
    return column.in_(select(analyses.c.id).where(readable_analyses(actor)))


def readable_analysis_buckets(actor: Actor) -> ColumnElement[bool]:
    seen = part_of_readable(analysis_buckets.c.analysis_id, actor)
    if actor.kind == "client":
        return seen
    mine = [analyses.c.user_id == actor.id]
    own_projects = [
        projects.c.user_id == actor.id,
        projects.c.id.in_(select(project_members.c.project_id).where(project_members.c.user_id == actor.id)),
    ]
    if actor.is_admin:
        own_projects.append(true())
    if actor.governs(actor.realm):
        own_projects.append(projects.c.realm_id == actor.realm)
    mine.append(analyses.c.project_id.in_(select(projects.c.id).where(or_(*own_projects))))
    if not actor.can("analysis_result_read"):
        return and_(seen, analysis_buckets.c.type == "CODE")
    results = analysis_buckets.c.analysis_id.in_(select(analyses.c.id).where(or_(*mine)))
    return and_(seen, or_(analysis_buckets.c.type == "CODE", results))


def readable_buckets(actor: Actor) -> ColumnElement[bool]:
    of_analysis = select(analysis_buckets.c.bucket_id)
    seen = select(analysis_buckets.c.bucket_id).where(readable_analysis_buckets(actor))
    own = buckets.c.actor_id == actor.id
    if actor.is_admin:
        own = true()
    elif actor.governs(actor.realm):
        own = or_(own, buckets.c.realm_id == actor.realm)
    return or_(buckets.c.id.in_(seen), and_(buckets.c.id.not_in(of_analysis), own))


def readable_bucket_files(actor: Actor) -> ColumnElement[bool]:
    return bucket_files.c.bucket_id.in_(select(buckets.c.id).where(readable_buckets(actor)))


PUBLIC_ENTRIES: Final = ("enrolment", "confirmation", "endorsement", "rotation", "revocation")
"""Types of log entries that everybody who has logged in may read: whose key is whose is nobody's secret."""


def readable_log(actor: Actor) -> ColumnElement[bool]:
    """Entries of the log: about oneself, about what one may read, about keys. Everybody may have the hashes of all."""
    if actor.is_admin:
        return true()
    part = select(runs.c.id).where(part_of_readable(runs.c.analysis_id, actor))
    rules: list[ColumnElement[bool]] = [
        leaves.c.type.in_(PUBLIC_ENTRIES),
        leaves.c.subject.in_(select(analyses.c.id).where(readable_analyses(actor))),
        leaves.c.subject.in_(part),
    ]
    if actor.kind == "client":
        own = select(nodes.c.id).where(nodes.c.id == actor.node)
        return or_(*rules, leaves.c.subject == actor.id, leaves.c.subject.in_(own))
    rules.append(leaves.c.project_id.in_(select(projects.c.id).where(readable_projects(actor))))
    rules.append(leaves.c.subject == actor.id)
    if actor.can("log_read", *DECISIONS):
        rules.append(leaves.c.subject.in_(select(nodes.c.id).where(nodes.c.realm_id == actor.realm)))
    if actor.can("log_read"):
        rules.append(leaves.c.subject == actor.realm)
        rules.append(leaves.c.subject.in_(select(users.c.id).where(users.c.realm_id == actor.realm)))
    return or_(*rules)


def everyone(actor: Actor) -> ColumnElement[bool]:
    """Images, and registries without their secrets: every actor who has logged in."""
    return true()


def manages_registries(actor: Actor) -> bool:
    return may(actor, Action.UPDATE, Hub("registry_manage")).allowed


def manages_registry_projects(actor: Actor) -> bool:
    return may(actor, Action.UPDATE, Hub("registry_project_manage")).allowed


def readable_events(actor: Actor) -> ColumnElement[bool]:
    """What happened to something that one may read; who may read events, all that happened in the own realm."""
    if actor.is_admin:
        return true()
    seen = {
        "project": select(projects.c.id).where(readable_projects(actor)),
        "projectNode": select(project_nodes.c.id).where(readable_project_nodes(actor)),
        "analysis": select(analyses.c.id).where(readable_analyses(actor)),
        "analysisNode": select(analysis_nodes.c.id).where(part_of_readable(analysis_nodes.c.analysis_id, actor)),
    }
    rules: list[ColumnElement[bool]] = [
        and_(events.c.ref_type == kind, events.c.ref_id.in_(ids)) for kind, ids in seen.items()
    ]
    if actor.kind == "user" and actor.can("event_read"):
        rules.append(events.c.realm_id == actor.realm)
    return or_(*rules)


def readable_registry_projects(actor: Actor) -> ColumnElement[bool]:
    if actor.is_admin:
        return true()
    return or_(registry_projects.c.realm_id.is_(None), registry_projects.c.realm_id == actor.realm)


# ------------------------------------------------------------------------------------------------------ facts from SQL


def project_facts(connection: Connection, project_id: str) -> Project:
    row = connection.execute(select(projects).where(projects.c.id == project_id)).one()
    members = connection.execute(
        select(project_members.c.user_id, project_members.c.role).where(project_members.c.project_id == project_id)
    )
    asked = connection.execute(
        select(project_nodes.c.node_id, project_nodes.c.node_realm_id).where(project_nodes.c.project_id == project_id)
    )
    return Project(
        row.id,
        row.realm_id,
        row.user_id,
        {m.user_id: m.role for m in members},
        {a.node_id: a.node_realm_id for a in asked},
    )


def analysis_facts(connection: Connection, analysis_id: str) -> Analysis:
    row = connection.execute(select(analyses).where(analyses.c.id == analysis_id)).one()
    part = connection.execute(
        select(analysis_nodes.c.node_id, analysis_nodes.c.node_realm_id).where(
            analysis_nodes.c.analysis_id == analysis_id
        )
    )
    return Analysis(
        row.id, project_facts(connection, row.project_id), row.user_id, {p.node_id: p.node_realm_id for p in part}
    )


def bucket_facts(connection: Connection, bucket_id: str) -> Bucket:
    row = connection.execute(select(buckets).where(buckets.c.id == bucket_id)).one()
    link = connection.execute(
        select(analysis_buckets.c.type, analysis_buckets.c.analysis_id).where(analysis_buckets.c.bucket_id == bucket_id)
    ).first()
    if link is None:
        return Bucket(row.actor_id, row.realm_id)
    part = connection.execute(
        select(analysis_nodes.c.node_id, nodes.c.type)
        .join(nodes, nodes.c.id == analysis_nodes.c.node_id)
        .where(analysis_nodes.c.analysis_id == link.analysis_id)
    )
    facts = analysis_facts(connection, link.analysis_id)
    return Bucket(row.actor_id, row.realm_id, link.type, facts, {p.node_id: p.type for p in part})
