"""An active hub tries to make a node run what nobody approved. Each attempt is refused, in words that say what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node_world
from flame.crypto.canonical import canonical, digest, parse_canonical
from flame.crypto.keys import IdentityKey
from flame.crypto.signatures import sign_approval, sign_event, sign_manifest, sign_start_order
from flame.model.errors import (
    BadSignature,
    Conflict,
    DoesNotMatchApproval,
    Expired,
    FlameError,
    Malformed,
    NotApproved,
    NotConfirmed,
    Refused,
    Replayed,
)
from flame.model.manifest import Manifest, Parameter, parse_time
from flame.node.egress.policy import Policy
from flame.node.schema import NODE
from flame.node.supervisor import decisions as decisions_module
from flame.node.supervisor.decisions import Decisions
from flame.node.supervisor.events import Events
from flame.node.supervisor.verification import (
    Member,
    Situation,
    check_number,
    read_manifest,
    resolve_parameters,
    verify_order,
    verify_own_approval,
    verify_participants,
    verify_recipients,
    verify_signature,
)
from flame.protocol.documents import Approval, By, Proposal, StartOrder
from flame.storage.journal import Journal

NOW = parse_time("2026-11-10T10:00:00Z")
NODE_ID = node_world.DATA_NODES[0]
NODES = (*node_world.DATA_NODES, node_world.AGGREGATOR)
RESULT_KEY = "a" * 64
KEYS = {node: IdentityKey.generate() for node in NODES}
RESEARCHER, HUB = IdentityKey.generate(), IdentityKey.generate()


def fingerprint(key: IdentityKey) -> str:
    return key.public.fingerprint.hex()


def manifest(**other: Any) -> Manifest:
    base = node_world.manifest()
    values: dict[str, Any] = {
        "participants": tuple(replace(p, member=fingerprint(KEYS[p.node])) for p in base.participants),
        "researcher": replace(base.researcher, key=fingerprint(RESEARCHER)),
        "parameters": (Parameter("alpha", "number", 1, (2, 0.5)), Parameter("strict", "flag", True, ())),
        "runs_max": 2,
    }
    return node_world.manifest(**{**values, **other})


MEMBERS = {
    **{
        fingerprint(key): Member(fingerprint(key), "node", node[:8], key.public.hex_pem)
        for node, key in KEYS.items()
        if node != NODE_ID
    },
    fingerprint(RESEARCHER): Member(fingerprint(RESEARCHER), "researcher", "ada", RESEARCHER.public.hex_pem),
    RESULT_KEY: Member(RESULT_KEY, "result", "ada", ""),
}


@dataclass
class Case:
    """All that a hub can show, and all that the node holds; honest until a test changes it."""

    manifest: bytes
    signature: bytes | None
    order: bytes
    order_signature: bytes | None
    situation: Situation

    def run(self) -> StartOrder:
        """The node's checks, in the order in which it makes them."""
        found = read_manifest(self.manifest)
        verify_participants(found, self.situation)
        verify_recipients(found, self.situation)
        verify_signature(found, self.manifest, self.signature, self.situation)
        verify_own_approval(digest(self.manifest), self.situation)
        return verify_order(found, digest(self.manifest), self.order, self.order_signature, self.situation)


def approval_of(content: bytes, **other: Any) -> tuple[bytes, bytes]:
    values: dict[str, Any] = {
        "subject": "analysis", "manifest": digest(content).hex(), "node": NODE_ID, "decision": "approved",
        "conditions": {}, "comment_sha256": "0" * 64, "time": "2026-11-05T10:00:00Z", "expires": "2026-12-05T10:00:00Z",
        "by": [By("steward", "Grace")],
    }  # fmt: skip
    document = Approval(**{**values, **other}).encoded()
    return document, sign_approval(KEYS[NODE_ID], parse_canonical(document))


def order_of(content: bytes, **other: Any) -> bytes:
    values: dict[str, Any] = {
        "manifest": digest(content).hex(), "number": 1, "parameters": {}, "participants": sorted(NODES),
        "created": "2026-11-10T09:59:00Z", "expires": "2026-11-11T10:00:00Z",
    }  # fmt: skip
    return StartOrder(**{**values, **other}).encoded()


def case(content: bytes | None = None, order: bytes | None = None, **situation: Any) -> Case:
    content = content or canonical(manifest().document())
    order = order or order_of(content)
    document, signature = approval_of(content)
    values: dict[str, Any] = {
        "node": NODE_ID, "own_key": KEYS[NODE_ID].public, "now": NOW, "members": MEMBERS, "approval": document,
        "approval_signature": signature, "unsigned_confirmed": False,
    }  # fmt: skip
    return Case(
        content,
        sign_manifest(RESEARCHER, digest(content)),
        order,
        sign_start_order(RESEARCHER, digest(order)),
        Situation(**{**values, **situation}),
    )


def refused(attempt: Case, error: type[FlameError], *words: str) -> FlameError:
    with pytest.raises(FlameError) as caught:
        attempt.run()
    assert type(caught.value) is error, caught.value
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, Malformed) or caught.value.next_step, "a refusal says what to do next"
    return caught.value


def test_what_was_approved_runs() -> None:
    assert case().run().number == 1


# --- another manifest than the approved one -------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = [p for p in places(manifest().document()) if p]
VALUES = st.one_of(
    st.booleans(), st.integers(-3, 2**40), st.text(max_size=8), st.sampled_from([*NODES, "hold", "auto", "*"])
)


@given(st.sampled_from(PLACES), VALUES)
def test_no_changed_manifest_runs_even_if_the_researcher_signs_it(place: tuple[Any, ...], value: Any) -> None:
    honest = case()
    changed = json.loads(honest.manifest)
    target = changed
    for key in place[:-1]:
        target = target[key]
    if target[place[-1]] == value and type(target[place[-1]]) is type(value):
        return
    target[place[-1]] = value
    content = canonical(changed)
    order = order_of(content)
    attempt = Case(
        content,
        sign_manifest(RESEARCHER, digest(content)),
        order,
        sign_start_order(RESEARCHER, digest(order)),
        honest.situation,
    )
    with pytest.raises((Malformed, DoesNotMatchApproval, NotConfirmed, Refused)):
        attempt.run()


def test_changed_code_is_another_digest() -> None:
    other = canonical(manifest(code={"main.py": b"steal()"}).document())
    attempt = replace(case(other), situation=case().situation)
    refused(attempt, DoesNotMatchApproval, "changed after the approval", "flame node show")


def test_bytes_that_are_not_canonical_are_not_read() -> None:
    content = case().manifest
    for other in (
        content + b" ",
        content.replace(b'"runs_max":2', b'"runs_max":2,"runs_max":9'),
        b"\xef\xbb\xbf" + content,
    ):
        refused(case(other), Malformed)


def test_a_manifest_for_other_nodes_is_refused() -> None:
    refused(case(node=node_world.PERSON), Refused, "not a participant")


# --- keys -----------------------------------------------------------------------------------------------------------


def swapped(node: str, key: IdentityKey) -> bytes:
    people = tuple(replace(p, member=fingerprint(key)) if p.node == node else p for p in manifest().participants)
    return canonical(manifest(participants=people).document())


def test_a_participant_under_a_key_of_the_hub_is_not_confirmed() -> None:
    found = refused(case(swapped(node_world.AGGREGATOR, HUB)), NotConfirmed, "flame node confirm", "--kind node")
    assert found.fields["fingerprint"] == fingerprint(HUB)


def test_this_node_under_another_key_is_refused() -> None:
    refused(case(swapped(NODE_ID, HUB)), DoesNotMatchApproval, "another key for this node")


def test_an_extra_participant_is_not_confirmed() -> None:
    extra = replace(manifest().participants[0], node=node_world.PERSON, name="Extra", member=fingerprint(HUB))
    people = tuple(sorted((*manifest().participants, extra), key=lambda p: p.node))
    refused(case(canonical(manifest(participants=people).document())), NotConfirmed, "Extra")


@pytest.mark.parametrize("kind", ["researcher", "result"])
def test_a_key_confirmed_for_one_purpose_serves_no_other(kind: str) -> None:
    key = fingerprint(KEYS[node_world.AGGREGATOR])
    refused(case(members={**MEMBERS, key: replace(MEMBERS[key], kind=kind)}), NotConfirmed, "--kind node")


def test_a_result_for_somebody_else_is_not_confirmed() -> None:
    recipient = replace(manifest().recipients[0], name="Mallory", result_key="e" * 64)
    content = canonical(manifest(recipients=(recipient,)).document())
    refused(case(content), NotConfirmed, "Mallory", "--kind result")


def test_a_result_for_nobody_is_refused() -> None:
    refused(case(canonical(manifest(recipients=()).document())), Refused, "Nobody could open the result")


def test_a_stored_key_that_does_not_fit_its_fingerprint_is_refused() -> None:
    key = fingerprint(RESEARCHER)
    refused(case(members={**MEMBERS, key: replace(MEMBERS[key], public=HUB.public.hex_pem)}), Malformed)
    refused(case(members={**MEMBERS, key: replace(MEMBERS[key], public="")}), NotConfirmed, "not been seen")


# --- signatures -----------------------------------------------------------------------------------------------------


def test_an_unsigned_manifest_does_not_run() -> None:
    refused(replace(case(), signature=None), BadSignature, "only the hub says", "flame sign")


def test_an_unsigned_order_does_not_run() -> None:
    refused(replace(case(), order_signature=None), BadSignature, "flame start")


def test_a_confirmed_unsigned_submission_runs_and_a_wrong_signature_is_still_wrong() -> None:
    attempt = replace(case(unsigned_confirmed=True), signature=None, order_signature=None)
    assert attempt.run().number == 1
    with pytest.raises(BadSignature):
        replace(attempt, signature=sign_manifest(HUB, digest(attempt.manifest))).run()
    with pytest.raises(BadSignature):
        replace(attempt, order_signature=sign_start_order(HUB, digest(attempt.order))).run()


def test_signatures_of_others_or_for_another_purpose_are_worthless() -> None:
    honest = case()
    content, order = digest(honest.manifest), digest(honest.order)
    for signature in (
        sign_manifest(HUB, content),
        sign_start_order(RESEARCHER, content),
        sign_event(RESEARCHER, content),
        b"",
        bytes(64),
    ):
        with pytest.raises(BadSignature):
            replace(honest, signature=signature).run()
    for signature in (sign_start_order(HUB, order), sign_manifest(RESEARCHER, order), b"", bytes(64)):
        with pytest.raises(BadSignature):
            replace(honest, order_signature=signature).run()


# --- the own approval -----------------------------------------------------------------------------------------------


def with_approval(**other: Any) -> Case:
    content = canonical(manifest().document())
    document, signature = approval_of(content, **other)
    return case(content, approval=document, approval_signature=signature)


def test_without_an_approval_nothing_runs() -> None:
    refused(case(approval=None, approval_signature=b""), NotApproved, "flame node approve")


def test_a_rejection_is_no_approval() -> None:
    refused(with_approval(decision="rejected"), NotApproved, "rejected")


def test_an_expired_approval_is_none() -> None:
    assert with_approval(expires="2026-11-10T10:00:00Z").run()
    refused(with_approval(expires="2026-11-10T09:59:59Z"), Expired, "may approve it again")


@pytest.mark.parametrize("change", [{"subject": "project"}, {"manifest": "f" * 64}, {"node": NODES[1]}], ids=str)
def test_an_approval_of_something_else_is_none(change: dict[str, Any]) -> None:
    refused(with_approval(**change), DoesNotMatchApproval)


def test_an_approval_with_conditions_that_are_not_understood_is_none() -> None:
    refused(with_approval(conditions={"only_on_sundays": True}), Refused, "conditions")


def test_an_approval_is_worth_its_signature() -> None:
    content = canonical(manifest().document())
    document, _ = approval_of(content)
    forged = sign_approval(HUB, parse_canonical(document))
    with pytest.raises(BadSignature):
        case(content, approval=document, approval_signature=forged).run()
    with pytest.raises(BadSignature):
        case(content, approval=document.replace(b"Grace", b"Hubby"), approval_signature=approval_of(content)[1]).run()


# --- the order ------------------------------------------------------------------------------------------------------


def ordered(**other: Any) -> Case:
    content = canonical(manifest().document())
    return case(content, order_of(content, **other))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"manifest": "f" * 64}, DoesNotMatchApproval, "another manifest"),
        ({"number": 0}, Refused, "1 to 2"),
        ({"number": 3}, Refused, "runs_max"),
        ({"number": -1}, Refused, "1 to 2"),
        ({"participants": sorted(NODES)[:-1]}, DoesNotMatchApproval, "other participants"),
        ({"participants": sorted(NODES, reverse=True)}, DoesNotMatchApproval, "other participants"),
        ({"participants": [*sorted(NODES), node_world.PERSON]}, DoesNotMatchApproval, "other participants"),
        ({"parameters": {"alpha": 3}}, Refused, "not approved"),
        ({"parameters": {"alpha": True}}, Refused, "not approved"),
        ({"parameters": {"alpha": "1"}}, Refused, "not approved"),
        ({"parameters": {"strict": 1}}, Refused, "not approved"),
        ({"parameters": {"beta": 1}}, Refused, "no parameter"),
        ({"parameters": {"Alpha": 1}}, Refused, "no parameter"),
        ({"expires": "2026-11-10T09:54:59Z"}, Expired, "flame start"),
        ({"created": "2026-11-10T10:05:01Z"}, Expired, "clocks"),
    ],
    ids=str,
)  # fmt: skip
def test_an_order_that_departs_from_the_manifest_is_refused(
    change: dict[str, Any], error: type[FlameError], words: str
) -> None:
    refused(ordered(**change), error, words)


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "2026-11-10T09:55:00Z"}, {"created": "2026-11-10T10:05:00Z"}, {"expires": "9999-12-31T23:59:59Z"},
        {"number": 2}, {"parameters": {"alpha": 0.5}}, {"parameters": {"alpha": 1, "strict": True}},
    ],
    ids=str,
)  # fmt: skip
def test_an_order_within_its_bounds_runs(change: dict[str, Any]) -> None:
    assert ordered(**change).run()


def test_a_run_that_was_accepted_goes_on_when_its_order_has_expired() -> None:
    late = ordered(expires="2026-11-10T09:00:00Z")
    content, found = digest(late.manifest), read_manifest(late.manifest)
    assert verify_order(found, content, late.order, late.order_signature, late.situation, accepted=True)
    gone = replace(late.situation, now=parse_time("2027-02-01T10:00:00Z"))
    with pytest.raises(Expired, match="manifest"):
        verify_order(found, content, late.order, late.order_signature, gone, accepted=True)


def test_after_the_manifest_has_expired_nothing_starts() -> None:
    content = canonical(manifest(expires="2026-11-10T09:59:59Z").document())
    refused(case(content), Expired, "Submit the analysis again")


def test_an_order_that_is_not_canonical_is_not_read() -> None:
    honest = case()
    for other in (honest.order + b" ", honest.order.replace(b'"number":1', b'"number":1,"number":2'), b"{}"):
        attempt = replace(honest, order=other, order_signature=sign_start_order(RESEARCHER, digest(other)))
        refused(attempt, Malformed)


def test_a_number_counts_once() -> None:
    check_number(None, "a")
    check_number("a", "a")
    with pytest.raises(Replayed) as caught:
        check_number("a", "b")
    assert caught.value.next_step


def test_values_are_the_defaults_unless_the_order_chooses_an_option() -> None:
    assert resolve_parameters(manifest(), {}) == {"alpha": 1, "strict": True}
    assert resolve_parameters(manifest(), {"alpha": 0.5}) == {"alpha": 0.5, "strict": True}


# --- what the node's own book says ----------------------------------------------------------------------------------


class Hub:
    """The hub's answers, as a test wants them."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.roster: list[dict[str, Any]] = []

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        if path.startswith("/core/roster?"):
            return {"data": [row for row in self.roster if row["member"] in path]}
        return self.answers[path]


Steps = Callable[[Decisions], Any]


class Book:
    """A node's decisions over a real journal; no network."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self.hub = Hub()
        self.path, self.policy = path, policy

    def do(self, steps: Callable[[Decisions], Any]) -> Any:
        async def go() -> Any:
            journal = Journal(self.path / "node.db", NODE)
            context = SimpleNamespace(
                journal=journal, node=NODE_ID, identity=KEYS[NODE_ID], policy=self.policy, link=self.hub,
                fingerprint=fingerprint(KEYS[NODE_ID]), member=fingerprint(KEYS[NODE_ID]),
                first_key=KEYS[NODE_ID].public.hex_pem,
            )  # fmt: skip
            events = Events(cast("Any", context))
            try:
                return await steps(Decisions(cast("Any", context), events))
            finally:
                journal.close()

        return asyncio.run(go())

    def show(self, content: bytes, signature: bytes | None) -> None:
        hex_ = signature.hex() if signature else None
        self.do(lambda d: d.take_manifest(node_world.ANALYSIS, node_world.PROJECT, "t", content, hex_))

    def decide(self, decision: str = "approved", **other: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self.do(lambda d: d.decide(node_world.ANALYSIS, decision, "grace", **other)))

    def project(self, decision: str) -> None:
        proposal = Proposal(node_world.PROJECT, "lung", "a study", node_world.ANALYSIS)
        self.hub.answers[f"/core/projects/{node_world.PROJECT}/proposal"] = {
            "data": {"proposal": proposal.encoded().decode()}
        }
        self.do(lambda d: d.decide_project(node_world.PROJECT, decision, "grace"))

    def situation(self, content: bytes) -> Situation:
        return cast("Situation", self.do(lambda d: d.situation(node_world.ANALYSIS, digest(content).hex())))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.setattr(decisions_module, "now", lambda: NOW)
    found = Book(tmp_path, Policy())
    found.project("approved")
    return found


CONTENT = canonical(manifest().document())
SIGNATURE = sign_manifest(RESEARCHER, digest(CONTENT))
OTHER = canonical(manifest(title="Another").document())


def test_an_approval_is_signed_by_the_node_and_lasts(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    answer = book.decide()
    assert answer["expires"] == "2027-02-08T10:00:00Z"
    assert verify_own_approval(digest(CONTENT), book.situation(CONTENT)).by == [By("steward", "grace")]


def test_a_newer_manifest_ends_the_approval_for_good(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.decide()
    book.show(OTHER, SIGNATURE)
    for content in (CONTENT, OTHER):
        with pytest.raises(NotApproved):
            verify_own_approval(digest(content), book.situation(content))
    book.show(CONTENT, SIGNATURE)  # the hub shows the approved one again: the approval is not raised from the dead
    with pytest.raises(NotApproved):
        verify_own_approval(digest(CONTENT), book.situation(CONTENT))


def test_an_unlock_ends_the_approval_for_good(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.decide()
    book.do(lambda d: d.manifest_withdrawn(node_world.ANALYSIS))
    book.show(CONTENT, SIGNATURE)
    with pytest.raises(NotApproved):
        verify_own_approval(digest(CONTENT), book.situation(CONTENT))


def test_the_last_word_counts(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.decide()
    book.decide("rejected")
    with pytest.raises(NotApproved, match="rejected"):
        verify_own_approval(digest(CONTENT), book.situation(CONTENT))
    book.decide()
    assert verify_own_approval(digest(CONTENT), book.situation(CONTENT))


def test_a_manifest_exchanged_under_the_stewards_eyes_is_not_signed(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.show(OTHER, None)
    with pytest.raises(DoesNotMatchApproval, match="changed since it was shown"):
        book.decide(seen_digest=digest(CONTENT).hex(), confirm_unsigned=True)
    assert book.situation(OTHER).approval is None


def test_unsigned_submissions_are_asked_about_or_refused(book: Book) -> None:
    book.show(CONTENT, None)
    with pytest.raises(Refused, match="--confirm-unsigned"):
        book.decide()
    book.decide(confirm_unsigned=True)
    assert book.situation(CONTENT).unsigned_confirmed
    book.policy = Policy(unsigned_submissions="refuse")
    assert not book.situation(CONTENT).unsigned_confirmed, "a stricter policy holds for what was confirmed before"
    with pytest.raises(Refused, match="policy refuses"):
        book.decide(confirm_unsigned=True)


def test_confirming_a_signed_manifest_as_unsigned_allows_no_unsigned_orders(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.decide(confirm_unsigned=True)
    assert not book.situation(CONTENT).unsigned_confirmed


@pytest.mark.parametrize(
    ("said", "named", "signs"),
    [
        ({"approvalStatus": "approved", "approvalBy": "bob"}, ("bob",), True),
        ({"approvalStatus": "approved", "approvalBy": "eve"}, ("bob",), False),
        ({"approvalStatus": "approved", "approvalBy": "bob"}, (), False),
        ({"approvalStatus": "rejected", "approvalBy": "bob"}, ("bob",), False),
        ({"approvalStatus": "approved", "approvalBy": "bob", "approvalSigned": True}, ("bob",), False),
        ({"approvalStatus": None}, ("bob",), False),
    ],
)
def test_a_yes_at_the_hub_is_signed_here_for_whom_the_policy_names_and_for_nobody_else(
    book: Book, said: dict[str, Any], named: tuple[str, ...], signs: bool
) -> None:
    book.policy = Policy(confirm_hub_approvals=named)
    book.show(CONTENT, SIGNATURE)
    path = f"/core/analysis-nodes?filter[analysisId]={node_world.ANALYSIS}&filter[nodeId]={NODE_ID}"
    book.hub.answers[path] = {"data": [{"id": "place", **said}]}
    assert book.do(lambda d: d.confirm_by_policy(node_world.ANALYSIS)) is signs
    if signs:
        assert verify_own_approval(digest(CONTENT), book.situation(CONTENT)).by[0].kind == "policy"
    else:
        with pytest.raises(NotApproved):
            verify_own_approval(digest(CONTENT), book.situation(CONTENT))


def test_a_yes_at_the_hub_overrides_no_stewards_no(book: Book) -> None:
    book.policy = Policy(confirm_hub_approvals=("bob",))
    book.show(CONTENT, SIGNATURE)
    book.decide("rejected")
    assert book.do(lambda d: d.confirm_by_policy(node_world.ANALYSIS)) is False


def confirm_all(book: Book) -> None:
    for key, kind in ((fingerprint(RESEARCHER), "researcher"), (RESULT_KEY, "result")):
        book.do(lambda d, key=key, kind=kind: d.confirm(key, kind, "ada", "grace"))


def test_a_wrong_signature_is_not_approved_over(book: Book) -> None:
    confirm_all(book)
    book.hub.roster = [
        {"member": fingerprint(RESEARCHER), "kind": "researcher", "publicKey": RESEARCHER.public.hex_pem}
    ]
    book.do(lambda d: d.learn_keys(manifest()))
    for wrong in (sign_manifest(HUB, digest(CONTENT)), b"", bytes(64)):
        book.show(CONTENT, wrong or b"\x00")
        with pytest.raises(BadSignature, match="flame sign"):
            book.decide(confirm_unsigned=True)
    book.show(CONTENT, SIGNATURE)
    assert book.do(lambda d: d.analysis(node_world.ANALYSIS))["signatureVerified"]
    assert book.decide()


def test_the_hub_cannot_give_another_key_than_the_confirmed_one(book: Book) -> None:
    confirm_all(book)
    book.hub.roster = [{"member": fingerprint(RESEARCHER), "kind": "researcher", "publicKey": HUB.public.hex_pem}]
    with pytest.raises(DoesNotMatchApproval, match="swapped"):
        book.do(lambda d: d.learn_keys(manifest()))


def test_one_key_is_confirmed_for_one_purpose(book: Book) -> None:
    confirm_all(book)
    with pytest.raises(Conflict, match="researcher"):
        book.do(lambda d: d.confirm(fingerprint(RESEARCHER), "node", "ada", "grace"))
    with pytest.raises(Malformed):
        book.do(lambda d: d.confirm("abc", "node", "ada", "grace"))


def test_nobody_hides_behind_anothers_name(book: Book) -> None:
    """Two participants of one name: confirmed only when both are."""
    first, second, *others = manifest().participants
    people = (replace(first, name="Ulm"), replace(second, name="Ulm"), *others)
    content = canonical(manifest(participants=people).document())
    book.show(content, None)
    assert book.do(lambda d: d.analysis(node_world.ANALYSIS))["confirmed"]["Ulm"] is False
    book.do(lambda d: d.confirm(second.member, "node", "Ulm", "grace"))
    assert book.do(lambda d: d.analysis(node_world.ANALYSIS))["confirmed"]["Ulm"] is True


def test_an_approval_lasts_no_longer_than_it_may(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    for days in (0, -1, 3651):
        with pytest.raises(FlameError, match="days"):
            book.decide(days=days)
    assert book.decide(days=1)["expires"] == "2026-11-11T10:00:00Z"
    late = replace(book.situation(CONTENT), now=NOW + timedelta(days=1, seconds=1))
    with pytest.raises(Expired):
        verify_own_approval(digest(CONTENT), late)


def test_without_the_project_nothing_of_it_is_approved(book: Book) -> None:
    book.show(CONTENT, SIGNATURE)
    book.project("rejected")
    with pytest.raises(NotApproved, match="does not take part in the project"):
        book.decide()
    book.project("approved")
    assert book.decide()["decision"] == "approved"
    book.project("rejected")
    with pytest.raises(NotApproved, match="rejected it"):
        book.do(lambda d: d.require_project(node_world.PROJECT))


def test_a_project_that_nobody_approved_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions_module, "now", lambda: NOW)
    with pytest.raises(NotApproved, match="no steward has approved it"):
        Book(tmp_path, Policy()).do(lambda d: d.require_project(node_world.PROJECT))
