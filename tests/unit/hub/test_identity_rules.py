"""The pure parts of identity: who may hand on what, what a code proves, where a log-in may lead, where a request is from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from flame.hub.authorisation import Action, Actor, Membership, Rights, may
from flame.hub.identity.clients import _checked_place
from flame.hub.identity.codes import typed, verifies
from flame.hub.identity.permissions import DECISIONS, HELD, IN_A_REALM, KNOWN, ROLES
from flame.hub.limits import source_of
from flame.model.errors import Invalid

HOME, AWAY = "realm-home", "realm-away"


def actor(role: str, realm: str = HOME, *extra: str) -> Actor:
    return Actor(
        "user", f"the {role}", role, realm, frozenset({role}), permissions=HELD.get(role, frozenset()) | set(extra)
    )


def test_no_administrator_decides_for_a_hospital() -> None:
    assert set(HELD) == set(ROLES) and all(held <= KNOWN for held in HELD.values())
    assert not HELD["admin"] & DECISIONS and not HELD["realm_admin"] & DECISIONS and not HELD["node"] & DECISIONS


def test_an_administrator_of_a_realm_holds_nothing_that_reaches_beyond_it() -> None:
    beyond = {"realm_create", "realm_delete", "permission_create", "master_image_manage", "registry_manage"}
    assert not IN_A_REALM & beyond


@given(
    st.sampled_from(sorted(set(ROLES) - {"admin"})),
    st.frozensets(st.sampled_from(sorted(KNOWN)), max_size=4),
    st.booleans(),
)
def test_nobody_but_an_admin_hands_on_what_they_neither_hold_nor_administer(
    role: str, wanted: frozenset[str], everything: bool
) -> None:
    who = actor(role)
    allowed = bool(may(who, Action.CREATE, Rights(HOME, wanted, everything=everything)))
    theirs = who.permissions | (IN_A_REALM if role == "realm_admin" else frozenset())
    assert allowed == (wanted <= theirs and not everything)
    assert not may(who, Action.CREATE, Rights(AWAY, wanted)) and not may(who, Action.CREATE, Rights(None, wanted))
    to_oneself = may(who, Action.CREATE, Rights(HOME, wanted, frozenset({who.id})))
    assert not to_oneself or wanted <= who.permissions
    assert may(actor("admin"), Action.CREATE, Rights(AWAY, wanted, everything=everything))


@pytest.mark.parametrize("subject", ["project", "analysis"])
def test_who_asks_does_not_approve_unless_the_operator_allows_it(subject: str) -> None:
    both = Actor(
        "user", "both", "both", HOME, frozenset({"researcher", "steward"}),
        permissions=HELD["researcher"] | HELD["steward"],
    )  # fmt: skip
    asked = frozenset({"both"})
    place = Membership("node", HOME, asked, subject=subject)  # type: ignore[arg-type]
    refused = may(both, Action.DECIDE, place)
    assert not refused and "does not approve" in refused.reason and refused.next_step
    assert may(both, Action.DECIDE, Membership("node", HOME, frozenset({"other"}), subject=subject))  # type: ignore[arg-type]
    assert may(both, Action.DECIDE, Membership("node", HOME, asked, True, subject))  # type: ignore[arg-type]
    assert not may(both, Action.DECIDE, Membership("node", AWAY, asked, True, subject))  # type: ignore[arg-type]


def test_a_steward_for_projects_alone_decides_about_no_analysis() -> None:
    half = actor("nobody", HOME, "project_approve")
    assert may(half, Action.DECIDE, Membership("node", HOME, frozenset(), subject="project"))
    assert not may(half, Action.DECIDE, Membership("node", HOME, frozenset(), subject="analysis"))


def test_pkce_is_the_one_of_the_standard() -> None:
    """RFC 7636, appendix B."""
    challenge, verifier = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert verifies(challenge, verifier)
    for other in ("", challenge, verifier[:-1], verifier + "=", verifier[:42], "ä" * 43):
        assert not verifies(challenge, other)


@given(st.text(max_size=60))
def test_a_typed_code_is_letters_in_one_form(text: str) -> None:
    assert all("A" <= letter <= "Z" for letter in typed(text)) and len(typed(text)) <= 32
    assert typed(" bcdf-ghjk\n") == "BCDFGHJK"


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.org/", "javascript:alert(1)", "https://", "https://u@example.org/", "https://*.example.org/",
        "https://example.org/#f", "data:text/html,x", "//example.org/", "https://example.org/;x", "https://exämple.org/",
        "http://127.0.0.1.example.org/", "flame://x", "https://example.org:0/", "https://[::1/",
    ],
)  # fmt: skip
def test_a_log_in_leads_to_no_other_kind_of_place(uri: str) -> None:
    with pytest.raises(Invalid):
        _checked_place(uri)


def test_a_log_in_leads_to_https_or_to_this_machine() -> None:
    for uri in ("https://example.org/back?x=1", "http://127.0.0.1:8080/", "http://[::1]:1/x", "http://localhost/"):
        assert _checked_place(uri) == uri


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)  # fmt: skip
def test_one_machine_is_one_source(address: str, source: str) -> None:
    assert source_of(Request({"type": "http", "client": (address, 1)})) == source
    assert source_of(Request({"type": "http", "client": None})) == "unknown"
