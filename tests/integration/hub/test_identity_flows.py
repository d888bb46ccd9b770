"""Ways to a token: codes for pages, codes for devices, refreshing, ending, asking what a token is."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey
from world import PASSWORD, World

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
BACK = "https://app.example.org/back?here=1"


@dataclass
class Browser:
    """What a browser does with a plain page: keeps cookies, sends forms, follows nothing by itself."""

    http: httpx2.Client

    def form(self, page: httpx2.Response, **typed: str) -> dict[str, str]:
        hidden = re.findall(r'<input type=hidden name="([^"]+)" value="([^"]*)">', page.text)
        return {name: unescape(value) for name, value in hidden} | typed


@pytest.fixture
def browser(world: World) -> Any:
    with httpx2.Client(base_url=world.hub.url, trust_env=False) as http:
        yield Browser(http)


@pytest.fixture(scope="module")
def app(world: World) -> dict[str, Any]:
    """A public client of the hub's own, as an operator would set it up."""
    master = world.admin.get("/auth/realms", **{"filter[name]": "master"})[0]["id"]
    return world.admin.make(
        "/auth/clients", name="app", realmId=master, redirectUri=f"{BACK} http://127.0.0.1:9/", isConfidential=False,
        authMethod="none",
    )  # fmt: skip


def pkce() -> tuple[str, str]:
    verifier = secrets.token_urlsafe(48)
    digest = hashlib.sha256(verifier.encode()).digest()
    return verifier, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def asked(app: dict[str, Any], challenge: str, **changed: str) -> dict[str, str]:
    return {
        "client_id": app["id"], "redirect_uri": BACK, "response_type": "code", "code_challenge": challenge,
        "code_challenge_method": "S256", "state": "a&b=<c>", "scope": "global openid", "nonce": "n-1",
    } | changed  # fmt: skip


def log_in(browser: Browser, app: dict[str, Any], challenge: str, **typed: str) -> httpx2.Response:
    page = browser.http.get("/auth/authorize", params=asked(app, challenge))
    assert page.status_code == 200
    fields = {"username": "admin", "password": PASSWORD, "decision": "allow"} | typed
    return browser.http.post("/auth/authorize", data=browser.form(page, **fields))


def code_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 303, answer.text
    return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]


def redeem(world: World, app: dict[str, Any], code: str, verifier: str, expect: int = 200, **changed: str) -> Any:
    body = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier, "redirect_uri": BACK}
    return world.anonymous()("POST", "/auth/token", expect, data=body | {"client_id": app["id"]} | changed)


def test_a_page_logs_in_with_a_code(world: World, browser: Browser, app: dict[str, Any]) -> None:
    verifier, challenge = pkce()
    answer = log_in(browser, app, challenge)
    place = answer.headers["location"]
    assert place.startswith(BACK + "&") and parse_qs(urlsplit(place).query)["state"] == ["a&b=<c>"]
    assert parse_qs(urlsplit(place).query)["iss"] == [f"{world.hub.url}/auth"]
    tokens = redeem(world, app, code_of(answer), verifier)
    assert tokens["scope"] == "global openid" and tokens["refresh_token"]
    keys = world.anonymous()("GET", "/auth/jwks", 200)["keys"]
    told = jwt.decode(tokens["id_token"], OKPKey.import_key(keys[0]), algorithms=["Ed25519"]).claims
    assert (told["aud"], told["nonce"], told["sub"]) == (app["id"], "n-1", world.admin.id)
    headers = {"authorization": f"Bearer {tokens['id_token']}"}
    world.anonymous().refused(400, "GET", "/auth/userinfo", headers=headers)
    headers = {"authorization": f"Bearer {tokens['access_token']}"}
    assert world.anonymous()("GET", "/auth/userinfo", 200, headers=headers)["sub"] == world.admin.id


def test_a_code_counts_once_and_its_copy_ends_what_it_opened(
    world: World, browser: Browser, app: dict[str, Any]
) -> None:
    verifier, challenge = pkce()
    code = code_of(log_in(browser, app, challenge))
    tokens = redeem(world, app, code, verifier)
    assert redeem(world, app, code, verifier, 400)["error"] == "invalid_grant"
    headers = {"authorization": f"Bearer {tokens['access_token']}"}
    world.anonymous().refused(401, "GET", "/auth/userinfo", headers=headers)


@pytest.mark.parametrize("case", ["verifier", "plain", "redirect", "client", "none"])
def test_a_stolen_code_is_worth_nothing(world: World, browser: Browser, app: dict[str, Any], case: str) -> None:
    verifier, challenge = pkce()
    code = code_of(log_in(browser, app, challenge))
    changed = {
        "verifier": {"code_verifier": pkce()[0]},
        "plain": {"code_verifier": challenge},
        "redirect": {"redirect_uri": "http://127.0.0.1:9/"},
        "none": {"code_verifier": ""},
    }.get(case, {})
    if case == "client":
        other = {"name": "other", "isConfidential": False, "authMethod": "none", "redirectUri": BACK}
        changed = {"client_id": world.admin.make("/auth/clients", **other)["id"]}
    assert redeem(world, app, code, verifier, 400, **changed)["error"] == "invalid_grant"
    if case != "client":  # a wrong verifier has spent it
        redeem(world, app, code, verifier, 400)


@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example.org/back", BACK + "&x=1", BACK + "#f", "https://app.example.org.evil.example/back?here=1",
        "https://APP.example.org/back?here=1", "http://app.example.org/back?here=1", "javascript:alert(1)", "",
        f"{BACK} http://127.0.0.1:9/", "http://127.0.0.1:10/",
    ],
)  # fmt: skip
def test_nobody_is_led_to_a_place_that_is_not_registered_exactly(
    browser: Browser, app: dict[str, Any], uri: str
) -> None:
    answer = browser.http.get("/auth/authorize", params=asked(app, pkce()[1], redirect_uri=uri))
    assert answer.status_code == 400 and "location" not in answer.headers


def test_without_s256_there_is_no_code(browser: Browser, app: dict[str, Any]) -> None:
    for changed in (
        {"code_challenge_method": "plain"}, {"code_challenge": ""}, {"response_type": "token"}, {"scope": "everything"},
    ):  # fmt: skip
        answer = browser.http.get("/auth/authorize", params=asked(app, pkce()[1]) | changed)
        query = parse_qs(urlsplit(answer.headers["location"]).query)
        assert answer.status_code == 303 and query["error"] and "code" not in query


def test_a_wrong_password_shows_the_page_again_and_says_so(browser: Browser, app: dict[str, Any]) -> None:
    answer = log_in(browser, app, pkce()[1], password="wrong one")
    assert answer.status_code == 400 and "The user credentials are invalid" in answer.text
    assert "wrong one" not in answer.text
    answer = log_in(browser, app, pkce()[1], decision="deny")
    assert "error=access_denied" in answer.headers["location"]


def test_a_form_from_elsewhere_logs_nobody_in(world: World, browser: Browser, app: dict[str, Any]) -> None:
    page = browser.http.get("/auth/authorize", params=asked(app, pkce()[1]))
    fields = browser.form(page, username="admin", password=PASSWORD, decision="allow")
    with httpx2.Client(base_url=world.hub.url, trust_env=False) as other:
        assert other.post("/auth/authorize", data=fields).status_code == 403
        other.get("/auth/authorize", params=asked(app, pkce()[1]))  # a cookie, but another form's
        assert other.post("/auth/authorize", data=fields).status_code == 403
    origin = {"origin": "https://evil.example"}
    assert browser.http.post("/auth/authorize", data=fields, headers=origin).status_code == 403
    assert browser.http.post("/auth/authorize", data=fields | {"form": ""}).status_code == 403
    assert browser.http.post("/auth/authorize", data=fields, headers={"origin": world.hub.url}).status_code == 303


def test_the_pages_run_nothing_and_nothing_frames_them(browser: Browser, app: dict[str, Any]) -> None:
    hostile = asked(app, pkce()[1], state='"><script>alert(1)</script>{form}', nonce="'><img src=x>")
    for answer in (browser.http.get("/auth/authorize", params=hostile), browser.http.get("/auth/device?user_code=<b>")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY" and answer.headers["cache-control"] == "no-store"
        assert "<script" not in answer.text and "<img" not in answer.text and "<b>" not in answer.text
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
    style = re.search("<style>(.*?)</style>", answer.text)
    assert style and base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy


# ------------------------------------------------------------------------------------------------------------- devices


def start(world: World, **changed: str) -> dict[str, Any]:
    return world.anonymous()("POST", "/auth/device_authorization", 200, data={"client_id": "flame-cli"} | changed)


def ask(world: World, device: dict[str, Any], expect: int) -> Any:
    body = {"grant_type": DEVICE, "client_id": "flame-cli", "device_code": device["device_code"]}
    return world.anonymous()("POST", "/auth/token", expect, data=body)


def decide(browser: Browser, code: str, decision: str = "allow", user: str = "admin") -> httpx2.Response:
    page = browser.http.get("/auth/device", params={"user_code": code})
    page = browser.http.post("/auth/device", data=browser.form(page, user_code=code))
    assert page.status_code == 200, page.text
    typed = {"username": user, "password": PASSWORD, "decision": decision}
    return browser.http.post("/auth/device", data=browser.form(page, **typed))


def test_a_command_line_logs_in_with_a_code_that_a_person_types(world: World, browser: Browser) -> None:
    person = world.person(world.realm("devices"), "researcher")
    name = person("GET", "/auth/userinfo", 200)["name"]
    device = start(world)
    assert re.fullmatch(r"[B-Z]{4}-[B-Z]{4}", device["user_code"]) and device["interval"] == 5
    assert device["verification_uri_complete"].endswith(device["user_code"])
    assert ask(world, device, 400)["error"] == "authorization_pending"
    assert ask(world, device, 400)["error"] == "slow_down"
    assert decide(browser, device["user_code"].lower().replace("-", " "), user=name).status_code == 200
    tokens = ask(world, device, 200)
    headers = {"authorization": f"Bearer {tokens['access_token']}"}
    assert world.anonymous()("GET", "/auth/userinfo", 200, headers=headers)["sub"] == person.id
    assert tokens["refresh_token"]
    assert ask(world, device, 400)["error"] == "invalid_grant"  # yes is said once
    page = browser.http.get("/auth/device")
    again = browser.http.post("/auth/device", data=browser.form(page, user_code=device["user_code"]))
    assert again.status_code == 400 and "No log-in waits" in again.text


def test_a_refused_device_and_a_wrong_password(world: World, browser: Browser) -> None:
    device = start(world)
    assert "not valid" in ask(world, device | {"device_code": "rubbish"}, 400)["message"]
    assert decide(browser, device["user_code"], user="nobody").status_code == 400
    assert ask(world, device, 400)["error"] == "authorization_pending"
    decide(browser, device["user_code"], "deny")
    assert ask(world, device, 400)["error"] == "access_denied"
    body = {"grant_type": DEVICE, "client_id": "flame-web", "device_code": device["device_code"]}
    world.anonymous()("POST", "/auth/token", 400, data=body)
    world.anonymous().refused(401, "POST", "/auth/device_authorization", data={"client_id": "flame-web"})


def test_codes_of_devices_are_not_guessed(world: World, browser: Browser) -> None:
    with httpx2.Client(
        base_url=world.hub.url, transport=httpx2.HTTPTransport(local_address="127.0.0.77"), trust_env=False
    ) as http:
        guesser = Browser(http)
        page = http.get("/auth/device")
        seen = [
            http.post("/auth/device", data=guesser.form(page, user_code=f"BBBB-BB{a}{b}")).status_code
            for a in "BCDF" for b in "BCDF"
        ]  # fmt: skip
    assert seen.count(400) == 10 and seen[10:] == [429] * 6
    device = start(world)  # others are not concerned
    assert decide(browser, device["user_code"]).status_code == 200


# -------------------------------------------------------------------------------------------------- what is open, ended


def test_what_a_token_stands_for(world: World) -> None:
    realm = world.realm("asked")
    person = world.person(realm, "steward")
    bearer = person.http.headers["authorization"].removeprefix("Bearer ")
    for told in (
        world.admin("POST", "/auth/token/introspect", 200, data={"token": bearer}),
        person("GET", "/auth/token/introspect", 200),
    ):
        assert (told["active"], told["sub"], told["sub_kind"], told["realm_id"]) == (True, person.id, "user", realm)
        assert told["sub_name"].startswith("person-") and told["realm_name"].startswith("asked-")
        assert told["scope"] == "global" and told["exp"] > time.time()
        names = [one["name"] for one in told["permissions"]]
        assert names == ["analysis_approve", "project_approve"]
        assert set(told["permissions"][0]) == {"name", "client_id", "realm_id"}
    assert world.admin("POST", "/auth/token/introspect", 200, json={"token": "rubbish"}) == {"active": False}
    world.anonymous().refused(401, "POST", "/auth/token/introspect", json={"token": bearer})
    node = world.node(realm)
    told = node("POST", "/auth/token/introspect", 200)
    assert (told["sub_kind"], told["sub"]) == ("client", node.client)
    assert world.anonymous()("POST", "/auth/token/revoke", 200, data={"token": bearer}) is None
    assert world.admin("POST", "/auth/token/introspect", 200, json={"token": bearer}) == {"active": False}
    person.refused(401, "GET", "/auth/userinfo")


def test_a_refresh_token_is_ended_by_who_holds_it(world: World) -> None:
    body = {"grant_type": "password", "username": "admin", "password": PASSWORD}
    pair = world.anonymous()("POST", "/auth/token", 200, json=body)
    world.anonymous()("POST", "/auth/token/revoke", 200, json={"token": pair["refresh_token"]})
    world.anonymous()("POST", "/auth/token/revoke", 200, json={"token": "rubbish"})
    again = {"grant_type": "refresh_token", "refresh_token": pair["refresh_token"]}
    assert world.anonymous()("POST", "/auth/token", 400, json=again)["error"] == "invalid_grant"


def test_sessions_are_listed_and_ended(world: World) -> None:
    person = world.person(world.realm("sessions"), "researcher")
    other = world.person(world.realm("sessions"), "researcher")
    (mine,) = person.get("/auth/sessions")
    assert mine["subject"] == person.id and "refreshId" not in mine
    other.refused(404, "DELETE", f"/auth/sessions/{mine['id']}")
    person("DELETE", f"/auth/sessions/{mine['id']}", 202)
    person.refused(401, "GET", "/auth/sessions")


def test_where_what_is(world: World) -> None:
    for path in ("/.well-known/openid-configuration", "/auth/.well-known/openid-configuration"):
        told = world.anonymous()("GET", path, 200)
        assert told["issuer"] == f"{world.hub.url}/auth" and told["code_challenge_methods_supported"] == ["S256"]
    for name in ("jwks_uri", "authorization_endpoint", "userinfo_endpoint"):
        assert httpx2.get(told[name], trust_env=False).status_code in (200, 400, 401)
