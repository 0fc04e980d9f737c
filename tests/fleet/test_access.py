"""Who may do what: scopes, tokens, the guard before every route, and the CLI at the machine."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

from fleet import cli_people
from fleet.adapters.broker_process import free_port
from fleet.adapters.client import Client, TokenInClearError
from fleet.attempts import FAILURES_MAX, REMEMBERED_MAX, WINDOW_S, Attempts
from fleet.audit import AuditHead, By
from fleet.cli import main
from fleet.ports import ConflictError, RegistryError
from fleet.scopes import ANYONE, READING, ROUTES, UNRECORDED, Scope, implied, needed
from fleet.tokens import FORM, AccessError, TokenAsk
from tests.fleet.processes import RegistryProcess
from tests.fleet.site import Site
from wire.trust import seal

ROOT = By(who="local:root")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.harness.store.close()


def served(site: Site) -> set[tuple[str, str]]:
    """Every route that the application answers."""
    return {
        (method, route.path)
        for route in site.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }


# --- the table


def test_the_table_names_every_route_and_no_other(site: Site) -> None:
    assert served(site) == set(ROUTES)
    assert UNRECORDED.keys() <= ROUTES.keys()


def test_what_each_scope_brings() -> None:
    """Written out anew, as people read it in docs/adr/0014."""
    view, publish, operate, administer = Scope.VIEW, Scope.PUBLISH, Scope.OPERATE, Scope.ADMINISTER
    assert implied([view]) == {view}
    assert implied([publish]) == {publish, view}
    assert implied([operate]) == {operate, view}
    assert implied([publish, operate]) == {publish, operate, view}
    assert implied([administer]) == {view, publish, operate, administer}
    assert implied([]) == frozenset()


def test_nobody_changes_anything_with_view_and_only_administrators_touch_tokens() -> None:
    for (method, path), scope in ROUTES.items():
        if method not in READING:
            assert scope not in {None, Scope.VIEW}, path
        if path.startswith("/api/tokens"):
            assert scope is Scope.ADMINISTER
        if "bundles" in path:
            assert scope is Scope.PUBLISH


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/health", None),
        ("HEAD", "/api/devices", Scope.VIEW),
        ("GET", "/api/devices/roof-1", Scope.VIEW),
        ("DELETE", "/api/devices/roof-1", Scope.OPERATE),
        ("POST", "/api/rollouts/ro-1/abort", Scope.OPERATE),
        ("GET", "/api/rollouts/ro-1/rollback-payload", Scope.OPERATE),
        # What nobody thought of is closed, however near it comes.
        ("GET", "/api/health/", Scope.ADMINISTER),
        ("GET", "/api/health\n", Scope.ADMINISTER),
        ("POST", "/api/health", Scope.ADMINISTER),
        ("GET", "/api/devices/", Scope.ADMINISTER),
        ("GET", "/api/devices/a/b", Scope.ADMINISTER),
        ("GET", "/api/rollouts//rollback-payload", Scope.ADMINISTER),
        ("PATCH", "/api/devices/roof-1", Scope.ADMINISTER),
        ("GET", "//api/devices", Scope.ADMINISTER),
        ("GET", "/api/{device}", Scope.ADMINISTER),
        ("GET", "/", Scope.ADMINISTER),
    ],
)
def test_the_scope_of_a_request(method: str, path: str, scope: Scope | None) -> None:
    assert needed(method, path) is scope


@given(st.lists(st.text("abc/{}.%\n", max_size=6), max_size=5).map("/".join))
def test_the_router_never_finds_what_the_table_lets_through_unnamed(path: str) -> None:
    """Where the table asks for less than `administer`, the request is one of its own patterns."""
    patterns = [re.sub(r"\{\w+\}", "[^/]+", pattern) for method, pattern in ROUTES if method == "GET"]
    for whole in (path, f"/api/{path}", f"/api/devices/{path}"):
        if needed("GET", whole) is not Scope.ADMINISTER:
            assert any(re.fullmatch(pattern, whole) for pattern in patterns)


# --- tokens


def test_a_registry_without_tokens_is_open_and_says_so(site: Site) -> None:
    status, health = site.ask("GET", "/api/health")
    assert (status, health["access"], health["registry_id"]) == (200, "open", "a" * 32)
    assert site.ask("GET", "/api/devices")[0] == 200
    assert site.code("POST", "/api/tokens", json={"name": "eve", "scopes": ["administer"]}) == (
        409,
        "first_token_at_machine",
    )
    site.token = "shf_" + "0" * 16 + "_" + "A" * 43
    assert site.code("GET", "/api/devices") == (401, "token_refused"), "a token that is nobody's is no pass"


def test_one_token_closes_the_registry(site: Site) -> None:
    token = site.made("ada", Scope.VIEW)
    assert site.code("GET", "/api/devices") == (401, "token_needed")
    assert site.ask("GET", "/api/health") == (200, {"status": "ok", "access": "tokens"})
    assert site.get("GET", "/api/devices").headers["WWW-Authenticate"].startswith("Bearer")
    site.token = token
    assert site.ask("GET", "/api/devices")[0] == 200
    assert site.ask("GET", "/api/health")[1]["registry_id"] == "a" * 32
    site.tokens.revoke("ada", ROOT)
    assert site.code("GET", "/api/devices") == (401, "token_revoked")
    site.token = None
    assert site.code("GET", "/api/devices") == (401, "token_needed"), "it never opens again"
    assert Site(site.harness).code("GET", "/api/devices") == (401, "token_needed"), "nor by a restart"


@pytest.mark.parametrize("scope", Scope)
def test_every_route_against_every_scope(site: Site, scope: Scope) -> None:
    """A missing scope is 403 by name, and nothing happens; with it the request reaches the verb."""
    site.token = site.made("ada", scope)
    before = len(site.entries())
    for (method, path), need in ROUTES.items():
        if need is None:
            continue
        where = re.sub(r"\{\w+\}", "nobody-1", path)
        answer = site.get(method, where, content=b"")
        if need in implied([scope]):
            assert answer.status_code not in {401, 403}, (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path, answer.text)
            error = answer.json()["error"]
            assert error["code"] == "scope_missing"
            assert f"--scope {need}" in error["message"]
    assert len(site.entries()) == before


def test_a_token_is_kept_as_a_hash_only(site: Site) -> None:
    token = site.made("ada", Scope.ADMINISTER)
    assert FORM.fullmatch(token)
    with site.harness.store.inner.begin() as tx:
        dump = "\n".join(
            str(tuple(row))
            for table in ("tokens", "audit")
            for row in tx.connection.exec_driver_sql(f"SELECT * FROM {table}")
        )
    secret = token.split("_", 2)[2]
    assert secret not in dump
    assert "ada" in dump
    assert secret not in json.dumps(
        site.ask("GET", "/api/tokens", headers={"Authorization": f"bearer {token}"})[1]
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"),
        lambda t: t[:-1],
        lambda t: t + "A",
        lambda t: t.replace("shf_", "shf-"),
        lambda t: "shf_" + "f" * 16 + t[20:],
        lambda t: t.upper(),
        lambda _: "",
        lambda _: "%00",
        lambda t: t.split("_")[2],
    ],
)
def test_a_token_that_is_nearly_right_is_refused(site: Site, spoil: object) -> None:
    token = site.made("ada", Scope.ADMINISTER)
    with pytest.raises(AccessError) as caught:
        site.tokens.caller(spoil(token))  # type: ignore[operator]
    assert caught.value.code == "token_refused"
    assert site.tokens.caller(token).name == "ada"


def test_a_token_expires(site: Site) -> None:
    site.token = site.made("ci", Scope.PUBLISH, expires_s=100.0)
    assert site.ask("GET", "/api/releases")[0] == 200
    site.harness.clock.time += 99.0
    assert site.ask("GET", "/api/releases")[0] == 200
    site.harness.clock.time += 1.0
    assert site.code("GET", "/api/releases") == (401, "token_expired")
    assert [view.state for view in site.tokens.tokens()] == ["expired"]


def test_the_last_use_is_written_once_in_a_while(site: Site) -> None:
    site.token = site.made("ada", Scope.VIEW)
    start = site.harness.clock.time
    assert site.tokens.tokens()[0].used_at is None
    for seconds, used in ((0.0, 0.0), (59.0, 0.0), (2.0, 61.0)):
        site.harness.clock.time += seconds
        site.ask("GET", "/api/releases")
        assert site.tokens.tokens()[0].used_at == start + used


def test_tokens_by_the_api_and_who_made_them(site: Site) -> None:
    site.token = site.made("ada", Scope.ADMINISTER)
    status, made = site.ask(
        "POST",
        "/api/tokens",
        json={"name": "bob", "scopes": ["operate", "view"]},
        headers={"Shallop-Why": "new%20here"},
    )
    assert status == 200
    assert (made["view"]["created_by"], made["view"]["scopes"]) == ("ada", ["view", "operate"])
    assert site.tokens.caller(made["token"]).name == "bob"
    assert {token["name"] for token in site.ask("GET", "/api/tokens")[1]} == {"ada", "bob"}
    assert site.code("POST", "/api/tokens/carl/revoke") == (404, "unknown_token")
    assert site.ask("POST", "/api/tokens/bob/revoke")[0] == 200
    assert site.code("POST", "/api/tokens/bob/revoke") == (404, "unknown_token")
    said = [(e.who, e.what, e.why, e.details.get("name")) for e in site.entries()]
    assert said == [
        ("local:root", "token.create", "", "ada"),
        ("ada", "token.create", "new here", "bob"),
        ("ada", "token.revoke", "", "bob"),
    ]


@pytest.mark.parametrize("name", ["", "a b", "registry", "Anybody", "local:root", "x" * 64, "a\n", "ü"])
def test_names_that_would_mislead_are_refused(site: Site, name: str) -> None:
    with pytest.raises(RegistryError, match=r"token|name"):
        site.tokens.create(TokenAsk(name=name), ROOT)


def test_whoever_is_nobody_makes_no_token(site: Site) -> None:
    with pytest.raises(ConflictError, match="at the registry's machine"):
        site.tokens.create(TokenAsk(name="eve"), By())


# --- floods


def test_a_flood_of_wrong_tokens_waits_and_the_right_one_passes(site: Site) -> None:
    good = site.made("ada", Scope.VIEW)
    site.token = good
    assert site.ask("GET", "/api/releases")[0] == 200
    for n in range(FAILURES_MAX):
        site.token = f"shf_{n:016x}_{'A' * 43}"
        assert site.code("GET", "/api/releases") == (401, "token_refused")
    assert site.code("GET", "/api/releases") == (429, "too_many_attempts")
    assert int(site.get("GET", "/api/releases").headers["Retry-After"]) <= WINDOW_S
    site.token = good
    assert site.ask("GET", "/api/releases")[0] == 200, "it was good from there a moment ago"


def test_nobodys_requests_are_not_failures(site: Site) -> None:
    site.made("ada", Scope.VIEW)
    for _ in range(FAILURES_MAX + 2):
        assert site.code("GET", "/api/releases") == (401, "token_needed")


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["good", "bad"]), st.floats(0, 30)),
        max_size=80,
    )
)
def test_no_address_fails_more_often_than_the_window_allows(steps: list[tuple[str, str, float]]) -> None:
    attempts, now, looked = Attempts(), 0.0, list[tuple[float, str]]()
    for address, token, pause in steps:
        now += pause
        wait = attempts.wait_s(address, token, now)
        assert 0.0 <= wait <= WINDOW_S
        if wait == 0.0 and token == "bad":
            looked.append((now, address))
            attempts.failed(address, now)
    for at, address in looked:
        near = [t for t, other in looked if other == address and at <= t < at + WINDOW_S]
        assert len(near) <= 2 * FAILURES_MAX, "a fixed window lets at most two windows' worth through"


def test_an_address_waits_until_its_window_ends_and_begins_anew() -> None:
    attempts = Attempts()
    for n in range(FAILURES_MAX):
        assert attempts.wait_s("a", "t", float(n)) == 0.0
        attempts.failed("a", float(n))
    assert attempts.wait_s("a", "t", 10.0) == WINDOW_S - 10.0
    assert attempts.wait_s("b", "t", 10.0) == 0.0
    assert attempts.wait_s("a", "t", WINDOW_S) == 0.0
    assert attempts.wait_s("a", "t", WINDOW_S + 5.0) == 0.0
    attempts.failed("a", WINDOW_S)
    assert attempts.wait_s("a", "t", WINDOW_S + 1.0) == 0.0, "one failure in the new window"


def test_who_fails_now_and_then_never_waits() -> None:
    attempts = Attempts()
    for n in range(100):
        assert attempts.wait_s("a", "t", n * 10.0) == 0.0
        attempts.failed("a", n * 10.0)


def test_what_is_remembered_of_floods_is_bounded() -> None:
    attempts = Attempts()
    for n in range(REMEMBERED_MAX + 50):
        attempts.failed(f"10.0.{n // 256}.{n % 256}", float(n))
        attempts.passed(f"10.0.{n // 256}.{n % 256}", "t", float(n))
    assert len(attempts._failures) == len(attempts._good) == REMEMBERED_MAX


# --- the command line


def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(main, list(arguments), env=env)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    made = RegistryProcess(tmp_path_factory.mktemp("registry") / "data", free_port(), "--insecure-unsigned")
    made.data.mkdir()
    made.start()
    yield made
    assert made.stop() == 0, made.log.read_text()
    assert "Traceback" not in made.log.read_text()


def test_a_real_registry_is_closed_while_it_runs(registry: RegistryProcess, tmp_path: Path) -> None:
    """The first token at the machine, the next ones by it, and one taken back."""
    server = {"SHALLOP_SERVER": registry.url}
    assert json.loads(run("health", "--json", env=server).stdout)["access"] == "open"
    assert "open: no token was ever made" in registry.log.read_text()
    assert "[audit_empty]" in run("audit", "verify", code=2, env=server).output
    kept = AuditHead(registry_id="a" * 32, number=3, sha256="0" * 64, at_ms=0)
    (tmp_path / "head.json").write_bytes(seal("audit_head", msgspec.json.encode(kept)))
    said = run("audit", "verify", "--head", str(tmp_path / "head.json"), code=2, env=server).output
    assert "entry 1 is missing: a head says that the log went on to entry 3" in said
    assert "[first_token_at_machine]" in run("tokens", "create", "eve", code=2, env=server).output
    first = run("tokens", "create", "ada", "--scope", "administer", "--data", str(registry.data), "--json")
    ada = {**server, "SHALLOP_TOKEN": json.loads(first.stdout)["token"]}
    assert "[token_needed]" in run("devices", code=2, env=server).output
    run("devices", "--json", env=ada)
    made = run("tokens", "create", "bob", "--scope", "view", "--why", "reads along", env=ada)
    file = tmp_path / "bob.token"
    file.write_text(made.stdout)
    file.chmod(0o600)
    run("releases", "--token-file", str(file), env=server)
    refused = run("rollback", "camera", "--all", "--token-file", str(file), code=2, env=server)
    assert "[scope_missing]" in refused.output
    listed = json.loads(run("tokens", "list", "--json", env=ada).stdout)
    assert [(t["name"], t["state"], t["scopes"]) for t in listed] == [
        ("ada", "good", ["administer"]),
        ("bob", "good", ["view"]),
    ]
    assert "bob" in run("tokens", "list", "--data", str(registry.data)).output
    run("tokens", "revoke", "bob", "--data", str(registry.data), "--why", "left")
    assert "[token_revoked]" in run("releases", "--token-file", str(file), code=2, env=server).output
    page = run("audit", "list", env=ada).output
    assert "reads along" in page
    assert "local:" in page


def test_a_token_file_must_be_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert "[token_file_unreadable]" in run("releases", "--token-file", str(file), code=2).output
    file.write_text("shf_x\n")
    file.chmod(0o604)
    assert "[token_file_open]" in run("releases", "--token-file", str(file), code=2).output
    file.chmod(0o600)
    file.write_bytes(b"\xff\xfe")
    assert "[token_file_unreadable]" in run("releases", "--token-file", str(file), code=2).output
    file.write_text("  \n")
    assert "[token_file_unreadable]" in run("releases", "--token-file", str(file), code=2).output


@pytest.mark.parametrize(
    "server", ["http://fleet.example:8470", "http://10.0.0.1", "ftp://127.0.0.2.example"]
)
def test_a_token_is_not_sent_where_others_read_it(server: str) -> None:
    with pytest.raises(TokenInClearError, match="https"):
        Client(server, "shf_x")
    Client(server).close()


@pytest.mark.parametrize(
    "server", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "https://fleet.example"]
)
def test_a_token_is_sent_where_it_is_safe(server: str) -> None:
    Client(server, "shf_x").close()


def test_beyond_loopback_a_registry_without_tokens_does_not_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    said = run("serve", "--data", str(data), "--listen", "0.0.0.0:0", "--insecure-unsigned", code=2).output
    assert "[tokens_missing]" in said
    assert f"--data {data}" in said


def test_who_logged_in_before_sudo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps who it was, where there is somebody."""
    account = pwd.getpwuid(os.getuid()).pw_name
    login = tmp_path / "loginuid"
    monkeypatch.setattr(cli_people, "LOGIN", login)
    said = {}
    for name, text in (("other", str(pwd.getpwnam("daemon").pw_uid)), ("same", str(os.getuid())),
                       ("nobody", "4294967295"), ("junk", "x"), ("huge", "9" * 40)):  # fmt: skip
        login.write_text(text)
        made = run("tokens", "create", name, "--data", str(tmp_path), "--json")
        said[name] = json.loads(made.stdout)["view"]["created_by"]
    login.unlink()
    said["none"] = json.loads(run("tokens", "create", "none", "--data", str(tmp_path), "--json").stdout)[
        "view"
    ]["created_by"]
    assert said.pop("other") == f"local:{account} (daemon)"
    assert set(said.values()) == {f"local:{account}"}


def test_a_database_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert "[other_owner]" in run("tokens", "create", "ada", "--data", str(tmp_path), code=2).output
    assert list(tmp_path.iterdir()) == []


def test_what_each_scope_opens_is_decided_and_not_only_consistent() -> None:
    """Written down once more: a route that moves to a lower scope opens a door."""
    by_scope = {
        scope: {route for route, need in ROUTES.items() if need is scope} for scope in (*Scope, ANYONE)
    }
    assert by_scope[ANYONE] == {("GET", "/api/health")}
    assert by_scope[Scope.ADMINISTER] == {
        ("GET", "/api/tokens"), ("POST", "/api/tokens"), ("POST", "/api/tokens/{token}/revoke"),
        ("POST", "/api/enrolments"),
    }  # fmt: skip
    assert by_scope[Scope.PUBLISH] == {
        ("PUT", "/api/bundles"), ("PUT", "/api/bundles/{release}/blobs/{digest}"),
        ("POST", "/api/bundles/{release}/finish"), ("POST", "/api/bars"),
    }  # fmt: skip
    assert {method for method, _ in by_scope[Scope.VIEW]} == {"GET"}
    # Whoever has a ready rollback's bytes can send them.
    assert {path for method, path in by_scope[Scope.OPERATE] if method == "GET"} == {
        "/api/rollouts/{id}/rollback-payload"
    }
