"""Every verb that changes something leaves its entry, with who and why; so do the registry's own acts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet.adapters.broker_process import free_port
from fleet.audit import REGISTRY, checked
from fleet.cli import main
from fleet.publish.upload import read_bundle
from fleet.scopes import READING, ROUTES, UNRECORDED, Scope
from tests.fleet.bundles import write_bundle
from tests.fleet.enrolment import Registry as EnrolmentRegistry
from tests.fleet.processes import RegistryProcess
from tests.fleet.site import Site

WHY = {"Shallop-Why": "because%20of%20%C3%BC"}


class Scene:
    """A site with a device and a release, on which every verb can be tried."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder
        site.token = site.made("ada", Scope.ADMINISTER)
        site.harness.device("dev-0")
        write_bundle(folder / "v1", "v1", size_bytes=20_000)
        site.harness.publish(folder / "v1")
        site.harness.settle()

    def do(self, method: str, path: str, **more: object) -> None:
        status, body = self.site.ask(method, path, headers=WHY, **more)
        assert status == 200, body

    def rollout(self) -> str:
        ask = {"model": "camera", "release": "v1", "waves": "1,100%"}
        return str(self.site.ask("POST", "/api/rollouts", json=ask)[1]["id"])

    def uploaded(self) -> str:
        """A second release whose blobs are here and that is not finished."""
        write_bundle(self.folder / "v2", "v2", size_bytes=20_000, seed=2)
        bundle = read_bundle(self.folder / "v2")
        _, missing = self.site.harness.intake.begin(bundle.data)
        for digest in missing:
            self.site.harness.intake.blob(bundle.digest, digest, iter([bundle.blob(digest)]))
        return bundle.digest

    # --- one for each route that changes something

    def bundle_begin(self) -> None:
        write_bundle(self.folder / "v3", "v3", size_bytes=20_000, seed=3)
        self.do("PUT", "/api/bundles", content=(self.folder / "v3" / "manifest.json").read_bytes())

    def bundle_finish(self) -> None:
        digest = self.uploaded()
        self.do("POST", f"/api/bundles/{digest}/finish")

    def forget(self) -> None:
        self.do("DELETE", "/api/devices/dev-0")

    def label(self) -> None:
        self.do("PUT", "/api/devices/dev-0/labels", json={"site": "roof"})

    def group(self) -> None:
        self.do("PUT", "/api/devices/dev-0/groups", json={"groups": ["north"]})

    def clear_duplicate(self) -> None:
        self.do("POST", "/api/devices/dev-0/clear-duplicate")

    def start(self) -> None:
        self.do("POST", "/api/rollouts", json={"model": "camera", "release": "v1"})

    def abort(self) -> None:
        self.do("POST", f"/api/rollouts/{self.rollout()}/abort")

    def pause(self) -> None:
        self.do("POST", f"/api/rollouts/{self.rollout()}/pause")

    def resume(self) -> None:
        rollout = self.rollout()
        self.site.ask("POST", f"/api/rollouts/{rollout}/pause")
        self.do("POST", f"/api/rollouts/{rollout}/resume")

    def held(self) -> str:
        """A rollout that bob started and that waits for somebody else."""
        ada, self.site.token = self.site.token, self.site.made("bob", Scope.OPERATE)
        self.site.harness.device("dev-1")
        ask = {"model": "camera", "release": "v1", "waves": "1,100%", "soak_s": 0, "approval": True}
        rollout = str(self.site.ask("POST", "/api/rollouts", json=ask)[1]["id"])
        self.site.harness.settle()
        self.site.token = ada
        return rollout

    def approve(self) -> None:
        self.do("POST", f"/api/rollouts/{self.held()}/approve")

    def reject(self) -> None:
        self.do("POST", f"/api/rollouts/{self.held()}/reject")

    def roll_back(self) -> None:
        ask = {"model": "camera", "release": "v1", "waves": "100%", "soak_s": 0}
        self.site.ask("POST", "/api/rollouts", json=ask)
        self.site.harness.settle()
        self.do("POST", "/api/rollbacks", json={"model": "camera", "all": True})

    def bar(self) -> None:
        self.do("POST", "/api/bars", json={"bar": ["d" * 64]})

    def unbar(self) -> None:
        self.site.ask("POST", "/api/bars", json={"bar": ["d" * 64], "why": "x"})
        self.do("POST", "/api/bars", json={"unbar": ["d" * 64]})

    def sign_bars(self) -> None:
        self.do("POST", "/api/bars", json={})

    def token_create(self) -> None:
        self.do("POST", "/api/tokens", json={"name": "bob"})

    def token_revoke(self) -> None:
        self.site.made("carl", Scope.VIEW)
        self.do("POST", "/api/tokens/carl/revoke")


VERBS: dict[tuple[str, str], tuple[tuple[str, Callable[[Scene], None]], ...]] = {
    ("PUT", "/api/bundles"): (("release.upload", Scene.bundle_begin),),
    ("POST", "/api/bundles/{release}/finish"): (("release.publish", Scene.bundle_finish),),
    ("DELETE", "/api/devices/{device}"): (("device.forget", Scene.forget),),
    ("PUT", "/api/devices/{device}/labels"): (("device.label", Scene.label),),
    ("PUT", "/api/devices/{device}/groups"): (("device.group", Scene.group),),
    ("POST", "/api/devices/{device}/clear-duplicate"): (("device.clear-duplicate", Scene.clear_duplicate),),
    ("POST", "/api/rollouts"): (("rollout.start", Scene.start),),
    ("POST", "/api/rollouts/{id}/{verb}"): (
        ("rollout.pause", Scene.pause),
        ("rollout.resume", Scene.resume),
        ("rollout.abort", Scene.abort),
        ("rollout.approve", Scene.approve),
        ("rollout.reject", Scene.reject),
    ),
    ("POST", "/api/rollbacks"): (("rollback.start", Scene.roll_back),),
    ("POST", "/api/bars"): (
        ("release.bar", Scene.bar),
        ("release.unbar", Scene.unbar),
        ("release.bars-signed", Scene.sign_bars),
    ),
    ("POST", "/api/tokens"): (("token.create", Scene.token_create),),
    ("POST", "/api/tokens/{token}/revoke"): (("token.revoke", Scene.token_revoke),),
}


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.harness.store.close()


def test_every_route_that_changes_something_is_tried_here() -> None:
    """A new one is added above, or to `fleet.scopes.UNRECORDED` with the reason."""
    changing = {(method, path) for method, path in ROUTES if method not in READING}
    assert changing == VERBS.keys() | ENROLMENT.keys() | UNRECORDED.keys()


@pytest.mark.parametrize(
    ("what", "act"),
    [pair for pairs in VERBS.values() for pair in pairs],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_verb_writes_its_entry(site: Site, tmp_path: Path, what: str, act: Callable[[Scene], None]) -> None:
    scene = Scene(site, tmp_path)
    before = len(site.entries())
    act(scene)
    entries = site.entries()
    (entry,) = [e for e in entries[before:] if e.what == what and e.why == "because of ü"]
    assert (entry.who, entry.why) == ("ada", "because of ü")
    assert entry.subject
    assert checked(entries, "a" * 32).broken is None


def test_a_ready_rollback_that_is_given_out_is_in_the_log(site: Site, tmp_path: Path) -> None:
    rollout = Scene(site, tmp_path).rollout()
    assert site.get("GET", f"/api/rollouts/{rollout}/rollback-payload", params={"device": "dev-0"}).content
    entry = site.entries()[-1]
    assert (entry.what, entry.who, entry.subject) == ("rollout.rollback-payload", "ada", rollout)
    assert entry.details == {"device": "dev-0"}


def test_a_verb_that_is_refused_leaves_no_entry(site: Site, tmp_path: Path) -> None:
    Scene(site, tmp_path)
    before = len(site.entries())
    for method, path, body in (
        ("POST", "/api/rollouts", {"model": "camera", "release": "v9"}),
        ("POST", "/api/rollouts/ro-0/abort", {}),
        ("DELETE", "/api/devices/nobody", None),
        ("PUT", "/api/devices/dev-0/labels", {"bad key": "x"}),
        ("POST", "/api/rollbacks", {"model": "other", "all": True}),
    ):
        assert site.ask(method, path, json=body)[0] in {400, 404}
    assert len(site.entries()) == before


def test_a_why_may_stand_in_the_body_of_a_verb(site: Site, tmp_path: Path) -> None:
    scene = Scene(site, tmp_path)
    rollout = scene.rollout()
    site.ask("POST", f"/api/rollouts/{rollout}/pause", json={"why": "lunch"})
    assert (site.entries()[-1].what, site.entries()[-1].why) == ("rollout.pause", "lunch")


def test_what_people_say_moves_no_terminal(site: Site, tmp_path: Path) -> None:
    rollout = Scene(site, tmp_path).rollout()
    why = "x\x1b[2Jy\x00z" + "w" * 1990
    view = site.ask("POST", f"/api/rollouts/{rollout}/pause", json={"why": why})[1]
    assert view["reason"].startswith("x [2Jy z")
    site.ask("POST", f"/api/rollouts/{rollout}/resume", headers={"Shallop-Why": "%1B%5B2J%FF%zz"})
    assert site.entries()[-1].why == " [2J\ufffd%zz"


def acts(site: Site) -> list[tuple[str, object, object]]:
    return [(e.what, e.details["from"], e.details["wave"]) for e in site.entries() if e.who == REGISTRY]


def test_the_registrys_own_acts_are_in_the_log(site: Site, tmp_path: Path) -> None:
    scene = Scene(site, tmp_path)
    site.harness.device("dev-1")
    site.harness.settle()
    ask = {"model": "camera", "release": "v1", "waves": "1,100%", "soak_s": 0}
    rollout = site.ask("POST", "/api/rollouts", json=ask)[1]["id"]
    site.harness.settle()
    assert site.ask("GET", f"/api/rollouts/{rollout}")[1]["rollout"]["state"] == "completed"
    assert acts(site) == [
        ("rollout.running", "pending", 0),
        ("rollout.wave", "running", 1),
        ("rollout.completed", "running", 1),
    ]
    assert {e.subject for e in site.entries() if e.who == REGISTRY} == {rollout}
    assert scene.site.entries()[-1].why == "2 devices were reached, 0 were left out"


def test_a_gates_halt_and_whom_it_took_back_is_in_the_log(site: Site, tmp_path: Path) -> None:
    scene = Scene(site, tmp_path)
    write_bundle(tmp_path / "bad", "bad", size_bytes=20_000, seed=9)
    site.harness.publish(tmp_path / "bad")
    site.harness.broker.devices[0].refuses |= {"bad"}
    first = {"model": "camera", "release": "v1", "waves": "100%", "soak_s": 0}
    site.ask("POST", "/api/rollouts", json=first)
    site.harness.settle()
    site.ask("POST", "/api/rollouts", json={**first, "release": "bad"})
    site.harness.settle()
    (halt,) = [e for e in scene.site.entries() if e.what == "rollout.halted"]
    assert (halt.who, halt.details["from"], halt.details["taken_back"]) == (REGISTRY, "running", ["dev-0"])
    assert "1 failed" in halt.why


# --- the command line


def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(main, list(arguments), env=env)
    assert result.exit_code == code, result.output
    return result


def test_a_log_is_listed_exported_and_verified(tmp_path: Path) -> None:
    """With real keys: a head that was kept is signed by the order key and shows what was cut off."""
    keys = tmp_path / "data" / "keys"
    run("keys", "init", "--keys", str(keys), "--root-keys", str(tmp_path / "offline"))
    registry = RegistryProcess(tmp_path / "data", free_port())
    registry.start()
    env = {"SHALLOP_SERVER": registry.url}
    try:
        whole = json.loads(run("audit", "verify", "--json", env=env).stdout)
        assert (whole["whole"], whole["entries"], whole["signatures"]) == (True, 1, "not checked")
        write_bundle(tmp_path / "b", "v1", size_bytes=20_000)
        run("publish", str(tmp_path / "b"), "--why", "first", env=env)
        (tmp_path / "head.json").write_text(run("audit", "head", env=env).stdout)
        begun = run("rollout", "start", "camera@v1", "--why", "try it", "--json", env=env)
        rollout = json.loads(begun.stdout)["id"]
        listed = json.loads(run("audit", "list", "--subject", rollout, "--json", env=env).stdout)
        assert [(e["what"], e["who"], e["why"]) for e in listed] == [("rollout.start", "anybody", "try it")]
        kept = ["--head", str(tmp_path / "head.json"), "--keys", str(keys)]
        said = run("audit", "verify", *kept, env=env).output
        assert "4 entries are whole" in said
        assert "2 head(s); signatures checked" in said
        (tmp_path / "log.jsonl").write_text(run("audit", "export", env=env).stdout)
    finally:
        registry.stop()
    file = ["--file", str(tmp_path / "log.jsonl")]
    assert "4 entries are whole" in run("audit", "verify", *file, *kept).output
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for name, spoiled, said in (
        ("cut off", lines[:2], "entry 3 is missing"),
        ("changed", [lines[0], lines[1].replace("anybody", "nobody!"), *lines[2:]], "entry 2 is changed"),
        ("taken out", [lines[0], *lines[2:]], "entry 2 is missing"),
    ):
        spoilt = tmp_path / f"{name}.jsonl"
        spoilt.write_text("\n".join(spoiled) + "\n")
        assert said in run("audit", "verify", "--file", str(spoilt), *kept, code=2).output
    forged = tmp_path / "forged.json"
    forged.write_text((tmp_path / "head.json").read_text().replace('"sig":"', '"sig":"AAAA'))
    assert "[bad_signature]" in run("audit", "verify", *file, "--head", str(forged), *kept[2:], code=2).output
    forged.write_text("{}")
    assert "[malformed]" in run("audit", "verify", *file, "--head", str(forged), code=2).output
    assert "[file_unreadable]" in run("audit", "verify", "--file", str(tmp_path / "none"), code=2).output


def _make(site: Site) -> None:
    assert site.ask("POST", "/api/enrolments", headers=WHY, json={"devices": ["dev-9"]})[0] == 200


def _cancel(site: Site) -> None:
    _make(site)
    assert site.ask("POST", "/api/enrolments/dev-9/cancel", headers=WHY)[0] == 200


def _revoke(site: Site) -> None:
    site.harness.device("dev-9")
    site.harness.settle()
    assert site.ask("POST", "/api/devices/dev-9/revoke", headers=WHY)[0] == 200


ENROLMENT: dict[tuple[str, str], tuple[str, Callable[[Site], None]]] = {
    ("POST", "/api/enrolments"): ("enrol.make", _make),
    ("POST", "/api/enrolments/{which}/cancel"): ("enrol.cancel", _cancel),
    ("POST", "/api/devices/{device}/revoke"): ("device.revoke", _revoke),
}
"""On a registry that has keys and an authority."""


@pytest.mark.parametrize(("what", "act"), ENROLMENT.values(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_verb_about_joining_writes_its_entry(
    tmp_path: Path, what: str, act: Callable[[Site], None]
) -> None:
    site = Site(EnrolmentRegistry(tmp_path).harness)
    site.token = site.made("ada", Scope.ADMINISTER)
    act(site)
    (entry,) = [e for e in site.entries() if e.what == what]
    assert (entry.who, entry.why, entry.subject) == ("ada", "because of ü", "dev-9")
