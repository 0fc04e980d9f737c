"""The fleet's certificate authority: kept, followed by another, and what its certificates may be used for.

OpenSSL, which broker and devices use, judges what the authority signed; nothing here trusts our own reading.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet.adapters.authority import DAY_S, Authority, read_certificate
from fleet.adapters.x509_parts import revoked_serials
from fleet.broker_rules import REGISTRY
from fleet.keys import KeysError
from wire.errors import ShallopError

NOW = 1_800_000_000.0
SECRET = "correct horse"

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="apt-get install openssl")


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ShallopError) as caught:
        act()
    return caught.value.code


def key() -> bytes:
    return Ed25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "keys", "Test fleet", None, NOW)


def openssl_accepts(folder: Path, authority: Authority, pem: str, purpose: str, *more: str) -> bool:
    (folder / "cas.pem").write_text(authority.certificates_pem)
    (folder / "one.pem").write_text(pem)
    judged = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", str(folder / "cas.pem"), "-purpose", purpose, *more,
         str(folder / "one.pem")],
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    return judged.returncode == 0


# --- keeping ------------------------------------------------------------------------------------------


def test_an_authority_is_loaded_as_it_was_made(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "keys", "Test fleet", SECRET, NOW)
    loaded = Authority.load(tmp_path / "keys", SECRET)
    assert loaded.certificates_pem == made.certificates_pem
    assert loaded.sha256 == made.sha256
    assert len(loaded.sha256) == 64
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / "ca-key.pem").stat().st_mode) == 0o600
    assert b"ENCRYPTED" in (tmp_path / "keys" / "ca-key.pem").read_bytes()


def test_every_reason_not_to_load_has_its_name(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert code_of(lambda: Authority.load(keys)) == "no_ca"
    Authority.create(keys, "Test fleet", SECRET, NOW)
    assert code_of(lambda: Authority.create(keys, "Test fleet", SECRET, NOW)) == "ca_exists"
    assert code_of(lambda: Authority.load(keys)) == "passphrase_needed"
    assert code_of(lambda: Authority.load(keys, "wrong")) == "passphrase_wrong"
    Authority.create(tmp_path / "other", "Test fleet", None, NOW)
    shutil.copy(tmp_path / "other" / "ca-key.pem", keys / "ca-key.pem")
    assert code_of(lambda: Authority.load(keys, SECRET)) == "ca_key_missing"
    (keys / "ca.pem").write_text("nothing")
    assert code_of(lambda: Authority.load(keys, SECRET)) == "ca_unreadable"


def test_a_crash_between_the_two_files_is_made_good(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    first = Authority.create(keys, "Test fleet", None, NOW)
    (keys / "ca.pem").unlink()
    second = Authority.create(keys, "Test fleet", None, NOW)
    assert second.sha256 != first.sha256
    second.with_next("Test fleet", NOW + 1).save(keys, None)
    (keys / "ca.pem").write_text(second.certificates_pem)
    assert Authority.load(keys).sha256s == second.sha256s


# --- certificates -------------------------------------------------------------------------------------


def test_a_devices_certificate_says_who_it_is_and_for_what(authority: Authority) -> None:
    public = key()
    issued = authority.issue_device("roof-17", public, NOW, 90 * DAY_S)
    said = x509.load_pem_x509_certificate(issued.pem.encode())
    held = said.public_key()
    assert isinstance(held, Ed25519PublicKey)
    assert held.public_bytes_raw() == public
    assert [a.value for a in said.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["roof-17"]
    assert list(said.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert (issued.not_before, issued.not_after) == (NOW - 3600.0, NOW + 90 * DAY_S)
    assert issued.serial == said.serial_number > 2**64


def test_nothing_lives_longer_than_the_authority(authority: Authority) -> None:
    ends = authority.not_after
    assert authority.issue_device("roof-17", key(), NOW, 1e10).not_after == ends
    assert authority.issue_server(["broker"], NOW, 1e10).issued.not_after == ends


def test_a_life_that_ends_before_it_begins_is_refused(authority: Authority) -> None:
    for now in (NOW - 10 * DAY_S, authority.not_after + 2 * DAY_S):
        assert code_of(partial(authority.issue_device, "roof-17", key(), now, DAY_S)) == "no_life"
    assert code_of(lambda: authority.issue_server(["broker"], NOW, -DAY_S)) == "no_life"


@needs_openssl
def test_openssl_takes_each_for_its_purpose_alone(tmp_path: Path, authority: Authority) -> None:
    device = authority.issue_device("roof-17", key(), NOW, DAY_S).pem
    registry = authority.issue_client(REGISTRY, NOW, DAY_S).issued.pem
    server = authority.issue_server(["broker.example", "192.0.2.7", "::1"], NOW, DAY_S).issued.pem
    at = ("-attime", str(int(NOW)))
    for pem, client, served in ((device, True, False), (registry, True, False), (server, False, True)):
        assert openssl_accepts(tmp_path, authority, pem, "sslclient", *at) is client
        assert openssl_accepts(tmp_path, authority, pem, "sslserver", *at) is served
    assert openssl_accepts(
        tmp_path, authority, server, "sslserver", *at, "-verify_hostname", "broker.example"
    )
    assert openssl_accepts(tmp_path, authority, server, "sslserver", *at, "-verify_ip", "192.0.2.7")
    assert openssl_accepts(tmp_path, authority, server, "sslserver", *at, "-verify_ip", "::1")
    assert not openssl_accepts(tmp_path, authority, server, "sslserver", *at, "-verify_hostname", "example")
    late = ("-attime", str(int(NOW + DAY_S + 1)))
    assert not openssl_accepts(tmp_path, authority, device, "sslclient", *late)


@needs_openssl
def test_a_device_with_an_old_clock_takes_a_new_server_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    renewed = authority.issue_server(["broker"], NOW + 400 * DAY_S, DAY_S).issued.pem
    assert openssl_accepts(tmp_path, authority, renewed, "sslserver", "-attime", str(int(NOW)))
    device = authority.issue_device("roof-17", key(), NOW + 400 * DAY_S, DAY_S).pem
    assert not openssl_accepts(tmp_path, authority, device, "sslclient", "-attime", str(int(NOW)))


@pytest.mark.parametrize("name", ["fleet.registry", "Roof", "", "-a", "a/b", "+", "a\n", "a" * 64, "%u"])
def test_no_device_is_called_that(authority: Authority, name: str) -> None:
    assert code_of(lambda: authority.issue_device(name, key(), NOW, DAY_S)) == "bad_name"


@pytest.mark.parametrize("name", ["roof-17", "fleet.", "fleet", "fleet.A", "fleet.a\n", "xfleet.a"])
def test_no_program_of_the_fleet_is_called_that(authority: Authority, name: str) -> None:
    assert code_of(lambda: authority.issue_client(name, NOW, DAY_S)) == "bad_name"


@pytest.mark.parametrize("host", ["", "a b", "-x", "a..b", "*", "broker:8883", "a\n", "ä", "a" * 254])
def test_no_server_is_called_that(authority: Authority, host: str) -> None:
    assert code_of(lambda: authority.issue_server([host], NOW, DAY_S)) == "bad_host"


def test_a_server_without_a_name_gets_nothing(authority: Authority) -> None:
    assert code_of(lambda: authority.issue_server([], NOW, DAY_S)) == "bad_host"


def test_a_key_of_another_kind_gets_nothing(authority: Authority) -> None:
    assert code_of(lambda: authority.issue_device("roof-17", b"short", NOW, DAY_S)) == "device_key"


def test_a_certificate_is_read_from_its_file(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue_device("roof-17", key(), NOW, DAY_S)
    (tmp_path / "one.pem").write_text(issued.pem + authority.certificates_pem)
    assert read_certificate(tmp_path / "one.pem") == issued
    (tmp_path / "one.pem").write_text("nothing")
    assert code_of(lambda: read_certificate(tmp_path / "one.pem")) == "certificate_unreadable"


# --- revocation ---------------------------------------------------------------------------------------


@needs_openssl
def test_openssl_refuses_what_the_list_names(tmp_path: Path, authority: Authority) -> None:
    two = authority.with_next("Test fleet", NOW).switched()
    old = [authority.issue_device("roof-17", key(), NOW, DAY_S) for _ in range(2)]
    new = [two.issue_device("roof-17", key(), NOW, DAY_S) for _ in range(2)]
    revoked = {old[0].serial: NOW, new[0].serial: NOW + 1}
    (tmp_path / "crl.pem").write_bytes(two.revocation_list(revoked, NOW, NOW + DAY_S))
    checked = ("-crl_check", "-CRLfile", str(tmp_path / "crl.pem"))
    at, late = ("-attime", str(int(NOW + 2))), ("-attime", str(int(NOW + DAY_S + 1)))
    judged = [openssl_accepts(tmp_path, two, one.pem, "sslclient", *at, *checked) for one in (*old, *new)]
    assert judged == [False, True, False, True]
    assert not openssl_accepts(tmp_path, two, old[1].pem, "sslclient", *late, *checked)


def test_what_a_list_names_is_read_back(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "crl.pem"
    two = authority.with_next("Test fleet", NOW)
    path.write_bytes(two.revocation_list({5: NOW, 2**158: NOW}, NOW, NOW + DAY_S))
    assert revoked_serials(path) == {5, 2**158}
    # What one of two lists does not name is let in by that one.
    path.write_bytes(authority.revocation_list({5: NOW}, NOW, NOW + DAY_S) + path.read_bytes())
    assert revoked_serials(path) == {5}
    for bad in (b"", b"nothing", path.read_bytes().replace(b"M", b"N")):
        path.write_bytes(bad)
        assert code_of(lambda: revoked_serials(path)) == "list_unreadable"


# --- one follows another ------------------------------------------------------------------------------


def test_the_steps_from_one_authority_to_the_next(tmp_path: Path, authority: Authority) -> None:
    assert code_of(authority.switched) == "no_next_ca"
    assert code_of(authority.dropped) == "no_old_ca"
    both = authority.with_next("Test fleet", NOW + 10)
    assert both.sha256 == authority.sha256
    assert code_of(both.dropped) == "ca_not_switched"
    switched = both.switched()
    assert set(switched.sha256s) == set(both.sha256s)
    assert switched.sha256 == both.sha256s[1]
    assert code_of(switched.switched) == "no_next_ca"
    assert switched.dropped().sha256s == (switched.sha256,)
    switched.save(tmp_path / "keys", SECRET)
    assert Authority.load(tmp_path / "keys", SECRET).sha256s == switched.sha256s


def test_two_authorities_of_one_second_follow_each_other(authority: Authority) -> None:
    both = authority.with_next("Test fleet", NOW)
    assert both.switched().sha256 == both.sha256s[1]
    assert both.switched().dropped().sha256s == (both.sha256s[1],)


def test_authorities_do_not_pile_up(authority: Authority) -> None:
    several = authority
    for _ in range(3):
        several = several.with_next("Test fleet", NOW)
    assert code_of(lambda: several.with_next("Test fleet", NOW)) == "too_many_cas"


@needs_openssl
def test_while_one_follows_another_both_kinds_of_certificate_are_accepted(
    tmp_path: Path, authority: Authority
) -> None:
    before = authority.issue_device("roof-17", key(), NOW, DAY_S).pem
    both = authority.with_next("Test fleet", NOW + 10).switched()
    after = both.issue_device("roof-17", key(), NOW + 20, DAY_S).pem
    at = ("-attime", str(int(NOW + 30)))
    accepted = [
        [openssl_accepts(tmp_path, these, pem, "sslclient", *at) for pem in (before, after)]
        for these in (authority, both, both.dropped())
    ]
    assert accepted == [[True, False], [True, True], [False, True]]


def test_a_list_of_authorities_that_is_cut_off_is_never_a_shorter_one(tmp_path: Path) -> None:
    """But at the very end of one, where nothing shows it."""
    Authority.create(tmp_path, "Test", None, NOW).with_next("Test", NOW).save(tmp_path, None)
    path = tmp_path / "ca.pem"
    whole = path.read_bytes()
    first = whole.index(b"-----END CERTIFICATE-----") + len(b"-----END CERTIFICATE-----")
    for end in [*range(1, len(whole) - 1, 7), first + 2, first + 5, first + 9, first + 12, first + 28]:
        path.write_bytes(whole[:end])
        with pytest.raises(KeysError) as caught:
            Authority.load(tmp_path)
        assert caught.value.code == "ca_unreadable", end
    path.write_bytes(whole[: first - 3] + whole[first:])
    with pytest.raises(KeysError):
        Authority.load(tmp_path)
    path.write_bytes(whole.rstrip())
    assert len(Authority.load(tmp_path).sha256s) == 2
