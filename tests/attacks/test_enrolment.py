"""Attacks on the way into the fleet: on the line, with a token, with a stolen device's certificate."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from agent import tls
from agent.adapters import ed25519
from agent.identity import Home, Identity
from fleet.adapters import key_files
from fleet.adapters.authority import Authority
from fleet.adapters.key_files import KeyPair
from fleet.cli import main
from fleet.keys import KeysError
from tests.conftest import ROOT
from tests.integration.enrolled_fleet import EnrolledFleet, HandDevice
from wire.certificates import CertificateRefused
from wire.enrolment import Enrolled, Token, write_token

pytestmark = [pytest.mark.broker, pytest.mark.slow]
ESCAPES = b"\x1b]0;stolen\x07\x1b[2J"
NO_DEVICES = [
    "../../etc/passwd",
    "a/b",
    "+",
    "#",
    "$SYS",
    "*.example",
    "a\x00b",
    "a\n",
    "r\u043eof-1",
    "fleet.registry",
    "A",
    "",
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnrolledFleet]:
    before = os.umask(0)  # as careless as can be
    try:
        made = EnrolledFleet(tmp_path_factory.mktemp("fleet"))
        made.start()
    finally:
        os.umask(before)
    yield made
    made.stop()


@pytest.mark.parametrize(
    "said", [ESCAPES + b" no HTTP\r\n\r\n", b"HTTP/1.1 999" + ESCAPES + b"\r\n\r\n"], ids=["line", "status"]
)
def test_a_stranger_who_answers_in_escapes(tmp_path: Path, said: bytes) -> None:
    """Whoever sits on the line answers before anything is checked; a person reads what is said."""
    key = key_files.generate()
    now = time.time()
    theirs = Authority.create(tmp_path / "theirs", "Theirs", None, now)
    identity = theirs.issue_server(["127.0.0.1"], now, 3600.0)
    own = tmp_path / "own.pem"
    own.touch(0o600)
    own.write_bytes(identity.issued.pem.encode() + identity.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    config = tmp_path / "agent.yaml"
    config.write_text(f"state_dir: {tmp_path / 'state'}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        token = Token(
            url=f"https://127.0.0.1:{listener.getsockname()[1]}", device="roof-1", ca_sha256=key.public,
            root_sha256=key.public, secret=bytes(20), issued_at=int(now), expires_at=int(now) + 3600,
        )  # fmt: skip
        words = [sys.executable, "-m", "agent.cli", "enrol", write_token(token), "--config", str(config)]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as enrolling:
            with context.wrap_socket(listener.accept()[0], server_side=True) as link:
                link.recv(4096)
                link.sendall(said)
            printed = b"".join(enrolling.communicate(timeout=60))
        assert enrolling.returncode == 1, printed
    assert b"[registry_failed]" in printed
    assert b"stolen" in printed
    assert not set(b"\x1b\x07") & set(printed)


def test_two_machines_with_one_token_at_one_moment(fleet: EnrolledFleet, tmp_path: Path) -> None:
    """Eight at once, each with a key of its own: one belongs to the fleet, and no other ever did."""
    token, together = fleet.token("roof-1"), threading.Barrier(8)

    def one(number: int) -> tuple[KeyPair, Enrolled | CertificateRefused]:
        device = HandDevice("roof-1", tmp_path / str(number))
        together.wait(30)
        return device.key, device.enrol(token)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(8)))
    (winner,) = [key for key, answer in answers if isinstance(answer, Enrolled)]
    refusals = [answer.code for _, answer in answers if isinstance(answer, CertificateRefused)]
    assert refusals == ["token_used"] * 7
    assert isinstance(HandDevice("roof-1", tmp_path / "again").enrol(token, key=winner), Enrolled)
    used = [entry for entry in fleet.ask("audit", "list") if entry["what"] == "enrol.use"]
    assert len(used) == 1


def test_a_stolen_devices_certificate_makes_no_broker(fleet: EnrolledFleet, tmp_path: Path) -> None:
    """A device may be called as the broker's machine is; its certificate is good for a client and no more."""
    name = "localhost"
    thief = HandDevice(name, tmp_path / "thief")
    assert isinstance(thief.enrol(fleet.token(name)), Enrolled)
    assert thief.certificate is not None
    own = tmp_path / "own.pem"
    own.touch(0o600)
    own.write_text(thief.certificate.pem + thief.key.pem(None).decode())
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(own)
    refusals = [
        why
        for check_name in (True, False)
        if (why := _refused(theirs, _honest(fleet), check_name=check_name))
    ]
    assert len(refusals) == 2
    assert "unsuitable certificate purpose" in refusals[1].lower()


def _honest(fleet: EnrolledFleet) -> ssl.SSLContext:
    """As an honest device of this fleet speaks TLS."""
    authority, seed = Authority.load(fleet.keys), ed25519.new_seed()
    public = ed25519.public_of(seed)
    issued = authority.issue_device("roof-2", public, time.time(), 86_400.0)
    identity = Identity(
        device="roof-2", seed=seed, public=public.hex(), pem=issued.pem,
        authorities_pem=authority.certificates_pem, not_before_s=issued.not_before,
        not_after_s=issued.not_after, home=Home(url="", host="localhost", port=8883, root="shallop/v1"),
    )  # fmt: skip
    return tls.of_identity(identity, time.time)


def _refused(theirs: ssl.SSLContext, ours: ssl.SSLContext, *, check_name: bool) -> str:
    """Why a connection to who shows that certificate did not come about; empty where it did."""
    ours.check_hostname = check_name
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                theirs.wrap_socket(listener.accept()[0], server_side=True).close()
            except OSError:
                return

        served = threading.Thread(target=serve)
        served.start()
        try:
            with socket.create_connection(listener.getsockname(), 10) as plain:
                ours.wrap_socket(plain, server_hostname="localhost").close()
        except ssl.SSLCertVerificationError as error:
            return str(error)
        finally:
            served.join(10)
    return ""


@pytest.mark.parametrize("name", NO_DEVICES)
def test_a_name_that_is_no_devices(fleet: EnrolledFleet, name: str) -> None:
    """In topics, in the access list, as paths and for the eye a device is what its name says, and no more."""
    asked = httpx.post(f"{fleet.registry.url}/api/enrolments", json={"devices": [name]}, trust_env=False)
    assert (asked.status_code, asked.json()["error"]["code"]) == (400, "body_malformed")
    typed = CliRunner().invoke(main, ["enrol", "make", "--", name])
    assert (typed.exit_code, "[no_device_id]" in typed.output) == (2, True), typed.output
    with pytest.raises(KeysError) as refused:
        Authority.load(fleet.keys).issue_device(name, os.urandom(32), time.time(), 3600.0)
    assert refused.value.code == "bad_name"


def test_another_user_of_the_registrys_machine(fleet: EnrolledFleet) -> None:
    """An order that lies ready is nobody else's, and so is a key, whatever the umask."""
    data, public = fleet.registry.data, {"ca.pem"}
    assert {"fleet.db", "rollbacks", "lock"} <= {path.name for path in data.iterdir()}
    private = [data, *data.rglob("*"), *(p for p in fleet.keys.rglob("*") if p.name not in public)]
    assert [path for path in private if stat.S_IMODE(path.stat().st_mode) & 0o007] == []
    server_key = fleet.broker.out / "server.pem"
    assert stat.S_IMODE(server_key.stat().st_mode) == 0o640
