"""The HTTP API: its answers, its refusals by name, and its caps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.api.exchange import JSON_BYTES_MAX
from fleet.api.guard import LOOPBACK, allowed_hosts
from fleet.people import RolloutAsk
from fleet.publish.upload import read_bundle
from tests.fleet.bundles import write_bundle
from tests.fleet.site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.harness.store.close()


def _published(site: Site, tmp_path: Path, release: str = "v1") -> str:
    write_bundle(tmp_path / release, release, size_bytes=20_000)
    return site.harness.publish(tmp_path / release)


def test_a_bundle_is_uploaded_over_http(site: Site, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", "v1", size_bytes=40_000)
    data = (tmp_path / "b" / "manifest.json").read_bytes()
    status, begun = site.ask("PUT", "/api/bundles", content=data)
    assert (status, begun["state"], len(begun["missing"])) == (200, "uploading", 5)
    bundle = read_bundle(tmp_path / "b")
    for digest in begun["missing"]:
        path = f"/api/bundles/{begun['digest']}/blobs/{digest}"
        assert site.ask("PUT", path, content=bundle.blob(digest))[0] == 200
    assert site.woken == 0
    status, done = site.ask("POST", f"/api/bundles/{begun['digest']}/finish")
    assert (status, done["state"], site.woken) == (200, "published", 1)
    assert [release["release"] for release in site.ask("GET", "/api/releases")[1]] == ["v1"]


def test_uploads_that_lie_are_refused_by_name(site: Site, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", "v1", size_bytes=40_000)
    data = (tmp_path / "b" / "manifest.json").read_bytes()
    begun = site.ask("PUT", "/api/bundles", content=data)[1]
    root, first = f"/api/bundles/{begun['digest']}", begun["missing"][0]
    assert site.code("PUT", f"{root}/blobs/{first}", content=b"other bytes") == (400, "hash_mismatch")
    assert site.code("PUT", f"{root}/blobs/{'f' * 64}", content=b"x") == (400, "not_in_manifest")
    assert site.code("PUT", f"{root}/blobs/..%2F..%2Fetc", content=b"x")[0] in {400, 404}
    assert site.code("PUT", f"{root}/blobs/{'F' * 64}", content=b"x") == (400, "digest_malformed")
    assert site.code("PUT", f"{root}/blobs/{first}", content=b"x" * (256 * 1024 + 1)) == (
        413,
        "body_too_large",
    )
    assert site.code("POST", f"{root}/finish") == (400, "blobs_missing")
    assert site.code("POST", f"/api/bundles/{'0' * 64}/finish") == (404, "unknown_release")
    assert site.code("PUT", "/api/bundles", content=b"x" * (4 * 1024 * 1024 + 1)) == (413, "body_too_large")
    assert site.code("PUT", "/api/bundles", content=b"[]") == (400, "malformed")


def test_devices_are_listed_labelled_grouped_and_forgotten(site: Site) -> None:
    for name in ("dev-0", "dev-1"):
        site.harness.device(name)
    site.harness.settle()
    assert [d["device"] for d in site.ask("GET", "/api/devices")[1]] == ["dev-0", "dev-1"]
    put = site.ask("PUT", "/api/devices/dev-0/labels", json={"site": "roof", "x": "y"})[1]
    assert put["labels"] == {"site": "roof", "x": "y"}
    assert site.ask("PUT", "/api/devices/dev-0/labels", json={"x": None})[1]["labels"] == {"site": "roof"}
    assert site.ask("PUT", "/api/devices/dev-0/groups", json={"groups": ["north"]})[1]["groups"] == ["north"]
    chosen = site.ask("GET", "/api/devices", params={"select": "label.site=roof and group=north"})[1]
    assert [d["device"] for d in chosen] == ["dev-0"]
    assert site.ask("GET", "/api/devices/dev-0")[1]["arch"] == "x86_64"
    assert site.ask("DELETE", "/api/devices/dev-0") == (200, {"forgotten": "dev-0"})
    assert site.code("GET", "/api/devices/dev-0") == (404, "unknown_device")
    assert site.code("DELETE", "/api/devices/dev-0") == (404, "unknown_device")


def test_what_is_wrong_with_a_request_is_named(site: Site, tmp_path: Path) -> None:
    _published(site, tmp_path)
    site.harness.device("dev-0")
    site.harness.settle()
    good = {"model": "camera", "release": "v1"}
    for change, code in (
        ({"release": "v9"}, "unknown_release"),
        ({"select": "colour=blue"}, "selector_malformed"),
        ({"waves": "5,1"}, "waves_malformed"),
        ({"gate": {"failurs_max": 1}}, "gate_malformed"),
        ({"soak_s": -1}, "body_malformed"),
        ({"surprise": 1}, "body_malformed"),
        ({"on_failure": "explode"}, "body_malformed"),
        ({"model": 7}, "body_malformed"),
    ):
        assert site.code("POST", "/api/rollouts", json={**good, **change})[1] == code
    assert site.ask("GET", "/api/rollouts")[1] == []
    assert site.code("GET", "/api/devices", params={"select": "("}) == (400, "selector_malformed")
    assert site.code("PUT", "/api/devices/dev-0/labels", json={"bad key": "x"}) == (400, "label_malformed")
    assert site.code("PUT", "/api/devices/dev-0/groups", json={"groups": ["No"]}) == (400, "body_malformed")
    assert site.code("POST", "/api/rollouts", content=b"{") == (400, "body_malformed")
    large = b'"' + b"x" * JSON_BYTES_MAX + b'"'
    assert site.code("POST", "/api/rollouts", content=large) == (413, "body_too_large")
    assert site.code("GET", "/api/nothing") == (404, "no_such_path")
    assert site.code("PATCH", "/api/rollouts") == (405, "no_such_method")


def test_a_rollout_is_shown_with_what_each_device_measured(site: Site, tmp_path: Path) -> None:
    site.harness.device("dev-0")
    _published(site, tmp_path)
    site.harness.settle()
    ask = {"model": "camera", "release": "v1", "waves": "100%", "soak_s": 0}
    begun = site.ask("POST", "/api/rollouts", json=ask)[1]
    assert site.woken == 1
    site.harness.settle()
    show = site.ask("GET", f"/api/rollouts/{begun['id']}")[1]
    assert show["rollout"]["state"] == "completed"
    (line,) = show["devices"]
    assert (line["outcome"], line["phase"]) == ("active", "idle")
    assert (line["latency_ms_p50"], line["latency_ms_p95"]) == (1.5, 2.5)
    assert (line["accuracy"], line["agreement"], line["power_watts"]) == (0.9, 0.99, None)
    assert show["rollback"]["topic"] == "shallop/v1/all/down/command"
    assert site.code("POST", f"/api/rollouts/{begun['id']}/pause") == (400, "illegal_transition")
    assert site.code("POST", f"/api/rollouts/{begun['id']}/dance") == (400, "unknown_verb")
    assert site.code("GET", "/api/rollouts/ro-0") == (404, "unknown_rollout")


def test_the_figures_of_an_order_stay_after_a_newer_one(site: Site, tmp_path: Path) -> None:
    site.harness.device("dev-0")
    first = _published(site, tmp_path, "v1")
    _published(site, tmp_path, "v2")
    ids = []
    for release in ("v1", "v2"):
        ask = RolloutAsk(model="camera", release=release, waves="100%", soak_s=0.0)
        ids.append(site.harness.people.start(ask).id)
        site.harness.settle()
    (line,) = site.ask("GET", f"/api/rollouts/{ids[0]}")[1]["devices"]
    assert (line["outcome"], line["latency_ms_p95"], line["phase"]) == ("active", 2.5, None)
    assert line["active"]["digest"] != first, "what runs now is the newer release"


def test_the_ready_payload_is_given_out_with_its_topic(site: Site, tmp_path: Path) -> None:
    site.harness.device("dev-0")
    _published(site, tmp_path)
    site.harness.settle()
    begun = site.ask("POST", "/api/rollouts", json={"model": "camera", "release": "v1"})[1]
    path = f"/api/rollouts/{begun['id']}/rollback-payload"
    everyone = site.get("GET", path)
    assert everyone.headers["X-Topic"] == "shallop/v1/all/down/command"
    assert everyone.content == site.harness.files.files[begun["id"]]
    one = site.get("GET", path, params={"device": "dev-0"})
    assert one.headers["X-Topic"] == "shallop/v1/device/dev-0/down/command"
    assert site.code("GET", path, params={"device": "dev-9"}) == (404, "unknown_device")


def test_a_rollback_needs_exactly_one_scope(site: Site) -> None:
    site.harness.device("dev-0")
    site.harness.settle()
    for body in ({}, {"all": True, "group": "g"}, {"devices": ["dev-0"], "all": True}):
        assert site.code("POST", "/api/rollbacks", json={"model": "camera", **body}) == (
            400,
            "rollback_scope",
        )
    asked = {"model": "camera", "all": True}
    assert site.code("POST", "/api/rollbacks", json=asked) == (404, "nothing_to_roll_back")
    assert site.code("GET", "/api/rollbacks/rb-0") == (404, "unknown_rollback")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8470", "Host": "127.0.0.1:8470"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example:8470"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "[::1]:8470"}, 200),
        ({"Host": "[::1"}, 403),
    ],
    ids=str,
)
def test_a_page_of_another_site_is_refused(site: Site, headers: dict[str, str], status: int) -> None:
    assert site.ask("GET", "/api/releases", headers=headers)[0] == status


def test_a_registry_beyond_loopback_may_have_any_name() -> None:
    assert allowed_hosts("0.0.0.0") is None
    assert allowed_hosts("127.0.0.1") == allowed_hosts("::1") == LOOPBACK


def test_a_fault_answers_without_its_details(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Any]:
        raise ZeroDivisionError("secret path /root")

    monkeypatch.setattr(site.harness.people, "releases", broken)
    status, body = site.ask("GET", "/api/releases")
    assert (status, body["error"]["code"]) == (500, "internal")
    assert "secret" not in str(body)


def test_a_database_that_fails_is_named(site: Site) -> None:
    with site.harness.store.inner.begin() as tx:
        tx.connection.exec_driver_sql("DROP TABLE rollouts")
    assert site.code("GET", "/api/rollouts") == (503, "database_unusable")
