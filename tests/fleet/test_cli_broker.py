"""`shallop-fleet broker`: what it writes and with which modes, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet.adapters.authority import DAY_S, Authority, read_certificate
from fleet.adapters.broker_files import BrokerFiles, due
from fleet.adapters.x509_parts import revoked_serials
from fleet.broker_rules import HOME
from fleet.cli import main

SECRET = {"SHALLOP_PASSPHRASE": "correct horse"}
HOST = ("--host", "broker.example", "--host", "192.0.2.7")


class Commands:
    """`shallop-fleet broker` on one pair of directories."""

    def __init__(self, root: Path) -> None:
        self.keys, self.out = root / "keys", root / "out"
        self.files = BrokerFiles(self.out, self.keys)

    def run(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
        where = ["--keys", str(self.keys)]
        if arguments[:2] != ("ca", "show"):
            where += ["--out", str(self.out)]
        result = CliRunner().invoke(main, ["broker", *arguments, *where], env=env)
        assert result.exit_code == code, result.output
        return result

    def contents(self) -> dict[str, bytes]:
        found = [path for folder in (self.keys, self.out) for path in folder.glob("*")]
        return {str(path): path.read_bytes() for path in found}


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    made = Commands(tmp_path)
    made.run("init", *HOST)
    return made


def test_a_dry_run_names_every_file_and_writes_none(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    said = commands.run("init", *HOST, "--dry-run").output
    assert not commands.keys.exists()
    assert not commands.out.exists()
    commands.run("init", *HOST)
    for path in commands.contents():
        assert Path(path).name in said, path


def test_init_makes_what_it_says_with_modes_that_keep_keys_apart(commands: Commands) -> None:
    modes = {Path(path).name: stat.S_IMODE(Path(path).stat().st_mode) for path in commands.contents()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        "ca-key.pem", "registry.pem", "watch.pem", "probe.pem", "canary.pem"
    }  # fmt: skip
    assert modes["server.pem"] == modes["access.acl"] == 0o640
    assert modes["ca.pem"] == modes["crl.pem"] == 0o644
    assert stat.S_IMODE(commands.out.stat().st_mode) == 0o2750
    assert stat.S_IMODE(commands.keys.stat().st_mode) == 0o700
    assert f"certfile {commands.out}/server.pem" in (commands.out / "mosquitto.conf").read_text()
    assert not (commands.keys / "home-assistant.pem").exists()


def test_init_again_keeps_the_authority_and_who_was_revoked(commands: Commands) -> None:
    before = Authority.load(commands.keys).sha256
    registry = (commands.keys / "registry.pem").read_bytes()
    ends = read_certificate(commands.keys / "registry.pem").not_after
    commands.files.refuse("roof-17", {123: ends}, Authority.load(commands.keys), ends - DAY_S)
    commands.run("init", "--host", "other.example", "--home-assistant", "homeassistant", "--root", "a/b")
    assert Authority.load(commands.keys).sha256 == before
    assert (commands.keys / "registry.pem").read_bytes() == registry
    assert commands.files.setup.hosts == ("other.example",)
    assert set(commands.files.revoked.devices) == {"roof-17"}
    text = (commands.out / "access.acl").read_text()
    assert "user roof-17\ntopic deny #" in text
    assert "pattern write homeassistant/" in text
    assert not due(commands.files.program(HOME), ends - 300 * DAY_S)


def test_the_authoritys_key_is_encrypted_on_request(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    assert "passphrase_needed" in commands.run("init", *HOST, "--encrypt", code=2).output
    commands.run("init", *HOST, "--encrypt", env=SECRET)
    assert b"ENCRYPTED" in (commands.keys / "ca-key.pem").read_bytes()
    assert "passphrase_needed" in commands.run("renew", code=2).output
    commands.run("renew", env=SECRET)
    commands.run("ca", "rotate", env=SECRET)
    assert (commands.keys / "ca-key.pem").read_bytes().count(b"BEGIN ENCRYPTED") == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("init", "--host", "a b"), "bad_host"),
        (("init", "--host", "broker", "--root", "shallop/#"), "bad_root"),
        (("init", "--host", "broker", "--home-assistant", "a/#"), "bad_setup"),
        (("renew",), "no_broker"),
        (("check",), "no_broker"),
        (("ca", "show"), "no_ca"),
        (("ca", "switch"), "no_ca"),
    ],
)
def test_what_is_refused_has_its_name(tmp_path: Path, arguments: tuple[str, ...], code: str) -> None:
    commands = Commands(tmp_path)
    assert code in commands.run(*arguments, code=2).output
    assert not (commands.out / "setup.json").exists()


def test_a_damaged_record_of_revoked_devices_is_not_an_empty_one(commands: Commands) -> None:
    (commands.out / "revoked.json").write_text("{")
    before = commands.contents()
    assert "broker_files_unreadable" in commands.run("init", *HOST, code=2).output
    assert commands.contents() == before


def test_a_lost_record_of_revoked_devices_is_not_an_empty_one(commands: Commands) -> None:
    (commands.out / "revoked.json").unlink()
    before = commands.contents()
    assert "record_lost" in commands.run("init", *HOST, code=2).output
    assert "broker_files_unreadable" in commands.run("ca", "rotate", code=2).output
    assert commands.contents() == before
    commands.run("init", *HOST, "--forget-revoked")
    assert commands.files.revoked.devices == {}


def test_renew_makes_new_certificates_of_the_same_names(commands: Commands) -> None:
    names = ("keys/registry.pem", "keys/watch.pem", "keys/probe.pem", "out/server.pem")
    paths = [commands.keys.parent / name for name in names]
    before = [read_certificate(path).serial for path in paths]
    said = commands.run("renew", "--dry-run").output
    assert [read_certificate(path).serial for path in paths] == before
    assert "399 days" in said or "400 days" in said
    commands.run("renew")
    assert not set(before) & {read_certificate(path).serial for path in paths}


def test_one_authority_follows_another(commands: Commands) -> None:
    first = Authority.load(commands.keys).sha256
    assert "no_next_ca" in commands.run("ca", "switch", code=2).output
    before = commands.contents()
    commands.run("ca", "rotate", "--dry-run")
    assert commands.contents() == before
    commands.run("ca", "rotate")
    shown = json.loads(commands.run("ca", "show", "--json").output)
    assert [one["signs"] for one in shown] == [True, False]
    assert shown[0]["sha256"] == first
    # The broker accepts both, and has a list of revoked ones of both.
    assert (commands.out / "ca.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert (commands.out / "crl.pem").read_text().count("BEGIN X509 CRL") == 2
    server = read_certificate(commands.out / "server.pem").serial
    commands.run("ca", "switch")
    assert Authority.load(commands.keys).sha256 == shown[1]["sha256"]
    assert read_certificate(commands.out / "server.pem").serial != server
    commands.run("ca", "drop")
    assert Authority.load(commands.keys).sha256s == (shown[1]["sha256"],)
    assert (commands.out / "ca.pem").read_text().count("BEGIN CERTIFICATE") == 1


def test_certificates_are_renewed_at_two_thirds_of_their_life(commands: Commands) -> None:
    path = commands.keys / "registry.pem"
    issued = read_certificate(path)
    at = issued.not_before + (issued.not_after - issued.not_before) * 2 / 3
    assert not due(path, at - 60.0)
    assert due(path, at + 60.0)
    assert due(path.with_name("missing.pem"), 0.0)
    assert not commands.files.server_due(at - DAY_S)
    assert commands.files.server_due(at + DAY_S)


def test_an_ended_certificate_leaves_the_list_and_a_name_stays(commands: Commands) -> None:
    authority = Authority.load(commands.keys)
    now = read_certificate(commands.keys / "registry.pem").not_before + DAY_S
    commands.files.refuse("roof-17", {17: now + DAY_S}, authority, now)
    commands.files.refuse("roof-18", {18: now + 9 * DAY_S}, authority, now + 1)
    assert set(commands.files.revoked.certificates) == {f"{17:x}", f"{18:x}"}
    commands.files.refuse("roof-19", {}, authority, now + 2 * DAY_S)
    assert set(commands.files.revoked.certificates) == {f"{18:x}"}
    assert set(commands.files.revoked.devices) == {"roof-17", "roof-18", "roof-19"}
    commands.files.allow("roof-18", authority, now + 2 * DAY_S)
    assert set(commands.files.revoked.certificates) == {f"{18:x}"}
    assert set(commands.files.revoked.devices) == {"roof-17", "roof-19"}


def test_asked_again_the_lists_stay_as_they_are(commands: Commands) -> None:
    authority, files = Authority.load(commands.keys), commands.files
    now = read_certificate(commands.keys / "registry.pem").not_before + DAY_S
    assert files.refuse("roof-17", {17: now + DAY_S}, authority, now)
    before = commands.contents()
    assert not files.refuse("roof-17", {17: now + DAY_S}, authority, now + 1)
    assert not files.mend(authority, now + 2)
    assert not files.allow("roof-18", authority, now + 3)
    assert commands.contents() == before
    files.show_again()
    assert commands.contents() == before
    assert files.refuse("roof-17", {18: now + DAY_S}, authority, now + 4)
    assert files.allow("roof-17", authority, now + 5)
    assert revoked_serials(commands.out / "crl.pem") >= {17, 18}


@pytest.mark.parametrize("lost", ["out/crl.pem", "out/access.acl", "keys/canary.pem"])
def test_a_power_cut_between_the_record_and_a_list_is_mended(commands: Commands, lost: str) -> None:
    """Each file is replaced whole, so that after a power cut each is its old or its new self."""
    authority, files = Authority.load(commands.keys), commands.files
    now = read_certificate(commands.keys / "registry.pem").not_before + DAY_S
    path = commands.keys.parent / lost
    old = path.read_bytes()
    files.refuse("roof-17", {17: now + DAY_S}, authority, now)
    path.write_bytes(old)
    assert files.mend(authority, now + 1)
    assert 17 in revoked_serials(commands.out / "crl.pem")
    assert read_certificate(commands.keys / "canary.pem").serial in revoked_serials(commands.out / "crl.pem")
    assert "user roof-17\ntopic deny #" in (commands.out / "access.acl").read_text()
    path.write_bytes(b"")
    assert files.mend(authority, now + 2)
    assert not files.mend(authority, now + 3)


def test_what_root_makes_is_the_directorys_owners(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 4711, 4712)
    commands = Commands(data)
    commands.run("init", *HOST)
    commands.run("ca", "rotate")
    owners = {(Path(path).name, Path(path).stat().st_uid) for path in commands.contents()}
    assert {uid for _, uid in owners} == {4711}
    assert commands.keys.stat().st_uid == commands.out.stat().st_uid == 4711


@pytest.mark.parametrize("host", ["bad host", "a/+#", "*.example", "a\nb"])
def test_a_dry_run_promises_nothing_that_would_be_refused(tmp_path: Path, host: str) -> None:
    commands = Commands(tmp_path)
    assert "[bad_host]" in commands.run("init", "--host", host, "--dry-run", code=2).output
    assert "[bad_host]" in commands.run("init", "--host", host, code=2).output
    assert not commands.contents()


@pytest.mark.parametrize("option", ["--bind", "--directory"])
def test_no_option_writes_a_line_of_its_own_into_mosquittos_configuration(
    tmp_path: Path, option: str
) -> None:
    commands = Commands(tmp_path)
    for text in ("127.0.0.1\nallow_anonymous true", "127.0.0.1\n", ""):
        if text or option == "--bind":
            assert "[bad_setup]" in commands.run("init", *HOST, option, text, code=2).output, text
    assert not commands.contents()


def test_the_key_of_an_authority_that_is_there_is_encrypted_on_request_too(commands: Commands) -> None:
    before = Authority.load(commands.keys).sha256
    commands.run("init", *HOST, "--encrypt", env=SECRET)
    assert b"ENCRYPTED" in (commands.keys / "ca-key.pem").read_bytes()
    assert Authority.load(commands.keys, SECRET["SHALLOP_PASSPHRASE"]).sha256 == before


@pytest.mark.parametrize("step", ["rotate", "switch", "drop"])
def test_no_authority_changes_where_the_brokers_files_are_not(commands: Commands, step: str) -> None:
    """By another --out the broker would go on with the old one, and refuse every device that renewed."""
    before = commands.contents()
    commands.out.rename(commands.out.with_name("elsewhere"))
    assert "[no_broker]" in commands.run("ca", step, code=2).output
    commands.out.with_name("elsewhere").rename(commands.out)
    assert commands.contents() == before
