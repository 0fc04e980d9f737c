"""The whole life of a device's certificate, with real TLS, a real Mosquitto and a registry of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.adapters import key_files
from tests.integration.enrolled_fleet import EnrolledFleet, HandDevice, until
from wire import topics as wt
from wire.certificates import CertificateRefused
from wire.codec import encode
from wire.enrolment import Enrolled
from wire.messages import Status

pytestmark = [pytest.mark.broker, pytest.mark.slow]
DEVICE = "roof-17"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrolledFleet]:
    made = EnrolledFleet(tmp_path_factory.mktemp("fleet"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def device(fleet: EnrolledFleet, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[HandDevice]:
    """A device that enrolled and is there, named after its test."""
    name = request.node.name.replace("_", "-")[:40].rstrip("-")
    made = HandDevice(name, tmp_path / "device")
    assert isinstance(made.enrol(fleet.token(name)), Enrolled)
    made.connect()
    until("the registry to see it", lambda: fleet.shown(name)["online"])
    yield made
    made.leave()


def code(answer: object) -> str:
    assert isinstance(answer, CertificateRefused), answer
    return answer.code


def test_who_may_not_enrol_hears_why_and_spends_nothing(fleet: EnrolledFleet, tmp_path: Path) -> None:
    token, device = fleet.token("roof-1"), HandDevice("roof-1", tmp_path / "device")
    stranger = key_files.generate()
    assert code(device.enrol(token, device="roof-2")) == "wrong_device"
    assert code(device.enrol(token, secret="0" * 40)) == "token_unknown"
    assert code(device.enrol(token, public=stranger.public.hex())) == "bad_proof"
    assert isinstance(device.enrol(token), Enrolled)
    assert code(device.enrol(token, key=stranger)) == "token_used"
    assert isinstance(device.enrol(token), Enrolled), "the same key again"
    older, newer = fleet.token("roof-1"), fleet.token("roof-1")
    assert code(device.enrol(older)) == "token_cancelled"
    fleet.ask("enrol", "cancel", "roof-1")
    assert code(device.enrol(newer)) == "token_cancelled"
    refused = fleet.health()["trust"]["refused"]
    assert refused["token_used"] == refused["bad_proof"] == 1


def test_a_certificate_is_renewed_over_the_connection_that_it_made(
    fleet: EnrolledFleet, device: HandDevice
) -> None:
    before = fleet.shown(device.name)["trust"]["certificate"]["serial"]
    device.renew()
    assert fleet.shown(device.name)["trust"]["certificate"]["serial"] != before
    stranger = key_files.generate()
    device.key, own = stranger, device.key
    device.say(wt.RENEWAL, encode(device.renewal(key_files.generate())))
    assert b"bad_proof" in device.hears(wt.CERTIFICATE_REFUSED)
    device.key = own


def test_a_renewal_by_https_is_for_who_has_the_key(fleet: EnrolledFleet, device: HandDevice) -> None:
    assert isinstance(device.renew_by_https(key_files.generate()), Enrolled)
    device.key = key_files.generate()
    assert code(device.renew_by_https(key_files.generate())) == "bad_proof"
    assert fleet.shown(device.name)["online"]


def test_a_device_speaks_under_its_own_name_alone(fleet: EnrolledFleet, device: HandDevice) -> None:
    status = Status(device="roof-99", install_id="2" * 32, number=1, online=True, agent_version="thief")
    device.say(wt.STATUS, encode(status), device="roof-99")
    key = key_files.generate()
    device.say(wt.RENEWAL, encode(device.renewal(key)))
    device.take_certificate(device.hears(wt.CERTIFICATE), key)
    assert "roof-99" not in {one["device"] for one in fleet.ask("devices")}


def test_a_revoked_device_is_out_and_comes_back_by_a_token(fleet: EnrolledFleet, device: HandDevice) -> None:
    name = device.name
    done = fleet.ask("devices", "revoke", name, "--why", "stolen")
    assert done["in_force"], done["detail"]
    until("its session to be over", lambda: not device.online)
    shown = fleet.shown(name)
    assert (shown["online"], shown["trust"]["revoked_why"]) == (False, "stolen")
    assert shown["trust"]["certificate"]["state"] == "revoked"
    assert code(device.renew_by_https(key_files.generate())) == "revoked"
    assert fleet.health()["trust"]["not_in_force"] == []
    device.leave()
    device.key = key_files.generate()
    assert isinstance(device.enrol(fleet.token(name)), Enrolled)
    device.connect()
    until("it to be there again", lambda: fleet.shown(name)["online"])
    whats = [entry["what"] for entry in fleet.ask("audit", "list") if entry["subject"] == name]
    assert whats == ["enrol.make", "enrol.use", "device.revoke", "enrol.make", "enrol.use"]


def test_a_new_token_throws_out_who_has_the_old_key(
    fleet: EnrolledFleet, device: HandDevice, tmp_path: Path
) -> None:
    name = device.name
    mended = HandDevice(name, tmp_path / "mended")
    assert isinstance(mended.enrol(fleet.token(name)), Enrolled)
    until("the old one to be out", lambda: not device.online)
    assert code(device.renew_by_https(key_files.generate())) == "revoked"
    device.leave()
    mended.connect()
    until("the new one to be there", lambda: mended.online and fleet.shown(name)["online"])
    mended.leave()


def test_a_revocation_that_the_broker_missed_is_told_after_a_restart(
    fleet: EnrolledFleet, device: HandDevice
) -> None:
    """The broker's files cannot be written; the registry is killed; when both are well, the device is out."""
    name, record = device.name, fleet.broker.out / "revoked.json"
    kept = record.read_bytes() if record.exists() else None
    record.unlink(missing_ok=True)
    record.mkdir()
    done = fleet.ask("devices", "revoke", name)
    assert not done["in_force"]
    assert "revoked.json" in done["detail"]
    assert name in fleet.health()["trust"]["not_in_force"]
    assert device.online, "the broker knows nothing"
    assert not fleet.shown(name)["online"], "the registry does"
    fleet.registry.kill()
    record.rmdir()
    if kept is not None:
        record.write_bytes(kept)
    fleet.registry.start()
    until("it to be thrown out", lambda: not device.online)
    until("it to be known", lambda: fleet.health()["trust"]["not_in_force"] == [])


def test_many_tokens_come_as_a_table(fleet: EnrolledFleet, tmp_path: Path) -> None:
    listed = tmp_path / "devices"
    listed.write_text("# the east wing\nroof-a\nroof-b  # by the stairs\n\nroof-a\n")
    lines = fleet.command("enrol", "--from", str(listed), "--server", fleet.registry.url).splitlines()
    assert lines[0] == "device,token,expires_at,reinstates"
    assert [line.split(",")[0] for line in lines[1:]] == ["roof-a", "roof-b"]
    text = fleet.command("enrol", "--from", str(listed), "--server", fleet.registry.url, "--json")
    assert [json.loads(line)["device"] for line in text.splitlines()] == ["roof-a", "roof-b"]
    listed.write_text("roof-a\nRoof B\n")
    failed = fleet.attempt("enrol", "--from", str(listed), "--server", fleet.registry.url)
    assert failed.returncode == 2
    assert "line 2" in failed.stderr
