"""The devices' HTTPS with real TLS: what it answers, and what strangers cannot do to it."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.adapters.authority import AUTHORITY_LIFE_S, Authority
from fleet.adapters.enrol_server import (
    AT_ONCE_PER_ADDRESS,
    CERTIFICATE_LIFE_S,
    EnrolServer,
    Limits,
    address_name,
)
from fleet.api.enrol_door import Answer, Door
from fleet.keys import KeysError
from fleet.ports import ConflictError
from tests.fleet.enrolment import Registry, enrol_word, renewal_word
from tests.fleet.processes import wait_for
from tests.keys import Key
from wire.certificates import CertificateRefused
from wire.enrolment import CA_PATH, ENROL_PATH, RENEW_PATH, Enrolled, encode, read_answer
from wire.errors import WireError

FIRST, SECOND = Key("one"), Key("two")
LIMITS = Limits(connections_max=50, request_s=1.0, connections_per_minute=1000, failures_per_minute=1000)


class House:
    """A registry whose door stands open."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.now = time.time()
        self.registry = Registry(folder / "keys", self.now)
        self.door = Door(self.registry.enrolling, lambda: self.registry.authority.certificates_pem)
        self.server = EnrolServer(
            ("127.0.0.1", 0), ("localhost", "127.0.0.1"), self.registry.authority, limits, lambda: self.now
        )
        self.server.start(self.door.answer)
        self.context = ssl.create_default_context(cadata=self.registry.authority.certificates_pem)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request of an honest client."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.server.port, context=self.context, timeout=20
        )
        with closing(connection):
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def code(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Status and reason of a refusal."""
        status, said = self.ask(method, path, body)
        answer = read_answer(said)
        assert isinstance(answer, CertificateRefused)
        return status, answer.code

    def plain(self) -> socket.socket:
        """A connection without TLS."""
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def secured(self) -> ssl.SSLSocket:
        """A connection with TLS."""
        return self.context.wrap_socket(self.plain(), server_hostname="localhost")


@contextmanager
def opened(folder: Path, limits: Limits = LIMITS) -> Iterator[House]:
    house = House(folder, limits)
    try:
        yield house
    finally:
        house.server.stop()
        house.registry.harness.store.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(tmp_path) as made:
        yield made


def rest(connection: socket.socket) -> bytes:
    """What still comes, to the end of the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except (ConnectionError, ssl.SSLError):
        pass
    return data


# --- what it answers ----------------------------------------------------------------------------------


def test_the_authorities_and_an_enrolment(house: House) -> None:
    status, pem = house.ask("GET", CA_PATH)
    assert (status, pem.decode()) == (200, house.registry.authority.certificates_pem)
    token = house.registry.token()
    status, body = house.ask("POST", ENROL_PATH, encode(enrol_word(token, FIRST)))
    answer = read_answer(body)
    assert status == 200
    assert isinstance(answer, Enrolled)
    assert house.registry.certificate(answer).public == FIRST.public.public
    status, body = house.ask("POST", RENEW_PATH, encode(renewal_word("roof-17", SECOND, FIRST)))
    answer = read_answer(body)
    assert status == 200
    assert isinstance(answer, Enrolled)
    assert answer.roots == (), "it knows root 1"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/", b"", 404, "no_such_path"),
        ("GET", "/api/health", b"", 404, "no_such_path"),
        ("GET", f"{CA_PATH}/", b"", 404, "no_such_path"),
        ("GET", f"{CA_PATH}?x", b"", 404, "no_such_path"),
        ("POST", CA_PATH, b"", 405, "no_such_method"),
        ("GET", ENROL_PATH, b"", 405, "no_such_method"),
        ("POST", ENROL_PATH, b"", 400, "malformed"),
        ("POST", ENROL_PATH, b"\xff" * 4096, 400, "malformed"),
        ("POST", RENEW_PATH, b"[" * 4096, 400, "malformed"),
        ("POST", ENROL_PATH, b"x" * 4097, 413, "oversized"),
        ("POST", RENEW_PATH, b"x" * 8_000, 413, "oversized"),
    ],
)
def test_everything_else_is_refused_by_name(
    house: House, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    assert house.code(method, path, body) == (status, code)
    assert house.server.refused[code] == 1
    assert house.ask("GET", CA_PATH)[0] == 200, "and the next one is answered"


def test_a_refused_device_hears_why(house: House) -> None:
    token = house.registry.token()
    assert house.code("POST", ENROL_PATH, encode(enrol_word(token, FIRST, signer=SECOND))) == (
        403,
        "bad_proof",
    )
    assert house.code("POST", RENEW_PATH, encode(renewal_word("x", SECOND, FIRST))) == (403, "unknown_device")


def test_a_registry_that_fails_says_so_and_lives(tmp_path: Path) -> None:
    with opened(tmp_path) as house:
        token = house.registry.token()
        house.registry.harness.store.inner._engine.dispose()

        def broken(*_arguments: object) -> None:
            raise ZeroDivisionError

        house.registry.harness.store.before_commit = broken
        status, said = house.ask("POST", ENROL_PATH, encode(enrol_word(token, FIRST)))
        assert status == 503
        with pytest.raises(WireError):
            read_answer(said)  # no word of the contract, so that the device tries again
        assert house.ask("GET", CA_PATH)[0] == 200


def test_no_bytes_bring_more_than_a_refusal(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "keys")
    door = Door(registry.enrolling, lambda: registry.authority.certificates_pem)
    registry.enrolled(FIRST)
    whole = (
        encode(enrol_word(registry.token(), SECOND, signer=FIRST)),
        encode(renewal_word("x", SECOND, FIRST)),
    )
    bodies = st.binary(max_size=300) | st.builds(
        lambda word, at, new: word[:at] + new + word[at + len(new) :],
        st.sampled_from(whole), st.integers(0, 600), st.binary(max_size=3),
    )  # fmt: skip

    @given(st.sampled_from([ENROL_PATH, RENEW_PATH, CA_PATH, "/"]), st.sampled_from(["GET", "POST"]), bodies)
    def ask(path: str, method: str, body: bytes) -> None:
        answer = door.answer(method, path, body)
        if (method, path) == ("GET", CA_PATH):
            assert answer.status == 200
            return
        refused = read_answer(answer.body)
        assert isinstance(refused, CertificateRefused)
        assert (answer.status // 100, answer.code) == (4, refused.code)

    ask()
    assert sorted(row.state for row in registry.enrolling.tokens()) == ["unused", "used"]
    assert set(registry.harness.conductor.failures) == set()
    registry.harness.store.close()


# --- TLS ----------------------------------------------------------------------------------------------


def test_it_speaks_tls_1_3_and_nothing_older(house: House) -> None:
    with house.secured() as connection:
        assert connection.version() == "TLSv1.3"
    house.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        house.secured()


def test_plain_http_is_not_answered(house: House) -> None:
    with house.plain() as connection:
        connection.sendall(b"POST /enrol/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b"HTTP" not in rest(connection)
    wait_for("the connection to be counted", lambda: house.server.refused["no_tls"] == 1)
    assert house.ask("GET", CA_PATH)[0] == 200


def test_the_certificate_is_for_its_hosts_and_renews_itself(house: House) -> None:
    def serial() -> str:
        with house.secured() as connection:
            found = connection.getpeercert()
        assert found is not None
        return str(found["serialNumber"])

    first = serial()
    house.now += 0.6 * CERTIFICATE_LIFE_S
    assert not house.server.renew_certificate()
    assert serial() == first
    house.now += 0.1 * CERTIFICATE_LIFE_S
    assert house.server.renew_certificate()
    assert serial() != first
    house.context.check_hostname = True
    with pytest.raises(ssl.SSLCertVerificationError), house.plain() as plain:
        house.context.wrap_socket(plain, server_hostname="another.example")


def test_another_authority_is_shown_from_the_next_handshake_on(house: House, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "x", None, house.now)
    context = ssl.create_default_context(cadata=other.certificates_pem)
    with house.secured() as connection:
        house.server.follow(other)
        with house.plain() as plain, context.wrap_socket(plain, server_hostname="localhost") as new:
            assert new.version() == "TLSv1.3"
        # A conversation that had begun goes on.
        connection.sendall(f"GET {CA_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"200" in rest(connection)
    house.now += 0.7 * CERTIFICATE_LIFE_S
    assert house.server.renew_certificate()
    with house.plain() as plain, context.wrap_socket(plain, server_hostname="localhost") as new:
        assert new.version() == "TLSv1.3"


def test_one_that_can_sign_nothing_is_not_followed(house: House, tmp_path: Path) -> None:
    ended = Authority.create(tmp_path / "other", "x", None, house.now - 2 * AUTHORITY_LIFE_S)
    with pytest.raises(KeysError) as caught:
        house.server.follow(ended)
    assert caught.value.code == "no_life"
    assert house.ask("GET", CA_PATH)[0] == 200
    house.now += 0.7 * CERTIFICATE_LIFE_S
    assert house.server.renew_certificate(), "by the one before"


def test_an_address_that_is_taken_is_named(house: House, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "other", "x", None, time.time())
    with pytest.raises(ConflictError, match="enrol_listen"):
        EnrolServer(("127.0.0.1", house.server.port), ("localhost",), authority, LIMITS)


# --- strangers ----------------------------------------------------------------------------------------

Stranger = Callable[[House], socket.socket]


def _silent(house: House) -> socket.socket:
    return house.plain()


def _half_a_hello(house: House) -> socket.socket:
    connection = house.plain()
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    return connection


def _no_request(house: House) -> socket.socket:
    return house.secured()


def _half_a_head(house: House) -> socket.socket:
    connection = house.secured()
    connection.sendall(b"POST /enrol/v1/enrol HTTP/1.1\r\nHost: x\r\n")
    return connection


def _half_a_body(house: House) -> socket.socket:
    connection = house.secured()
    connection.sendall(b"POST /enrol/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    return connection


@pytest.mark.parametrize("stranger", [_silent, _half_a_hello, _no_request, _half_a_head, _half_a_body])
def test_whoever_is_slow_is_cut_off(tmp_path: Path, stranger: Stranger) -> None:
    limits = Limits(connections_max=5, request_s=0.3, connections_per_minute=1000, failures_per_minute=1000)
    with opened(tmp_path, limits) as house:
        with stranger(house) as connection:
            assert b"200" not in rest(connection)
        wait_for("it to be counted", lambda: house.server.refused["too_slow"] == 1)
        assert house.ask("GET", CA_PATH)[0] == 200


def test_a_byte_now_and_then_does_not_buy_time(tmp_path: Path) -> None:
    limits = Limits(connections_max=5, request_s=0.5, connections_per_minute=1000, failures_per_minute=1000)
    with opened(tmp_path, limits) as house, house.secured() as connection:
        cut = threading.Event()

        def drip() -> None:
            try:
                while True:
                    connection.sendall(b"G")
                    time.sleep(0.05)
            except OSError:
                cut.set()

        threading.Thread(target=drip, daemon=True).start()
        assert cut.wait(10)
        assert house.server.refused["too_slow"] == 1


def test_a_head_without_end_is_refused(house: House) -> None:
    with house.secured() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert b"431" in (said := rest(connection)) or b"400" in said
    assert house.server.refused["malformed"] == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 50 + b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /enrol/v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /enrol/v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_by_name(house: House, junk: bytes) -> None:
    with house.secured() as connection:
        connection.sendall(junk)
        assert b'"malformed"' in rest(connection)
    assert house.ask("GET", CA_PATH)[0] == 200


def test_connections_are_counted_before_their_handshake(tmp_path: Path) -> None:
    limits = Limits(connections_max=3, request_s=20.0, connections_per_minute=1000, failures_per_minute=1000)
    with opened(tmp_path, limits) as house:
        held = [house.plain() for _ in range(3)]
        wait_for("three to be there", lambda: house.server._open.total() == 3)
        with house.plain() as fourth:
            assert rest(fourth) == b""
        assert house.server.refused["too_many_connections"] == 1
        held.pop().close()
        wait_for("one to be gone", lambda: house.server._open.total() == 2)
        assert house.ask("GET", CA_PATH)[0] == 200
        for connection in held:
            connection.close()


def test_one_address_does_not_take_every_connection(tmp_path: Path) -> None:
    limits = Limits(connections_max=50, request_s=20.0, connections_per_minute=1000, failures_per_minute=1000)
    with opened(tmp_path, limits) as house, ExitStack() as held:
        for _ in range(AT_ONCE_PER_ADDRESS):
            held.enter_context(house.plain())
        wait_for("all to be there", lambda: house.server._open.total() == AT_ONCE_PER_ADDRESS)
        with house.plain() as one_more:
            assert rest(one_more) == b""
        assert house.server.refused["too_many_connections"] == 1


def test_an_address_that_comes_too_often_is_not_let_in(tmp_path: Path) -> None:
    limits = Limits(connections_max=50, request_s=5.0, connections_per_minute=3, failures_per_minute=1000)
    with opened(tmp_path, limits) as house:
        for _ in range(3):
            assert house.ask("GET", CA_PATH)[0] == 200
        with pytest.raises((ConnectionError, ssl.SSLError)):
            house.ask("GET", CA_PATH)
        assert house.server.refused["too_often"] == 1


def test_an_address_that_guesses_waits_whatever_it_says_then(tmp_path: Path) -> None:
    limits = Limits(connections_max=50, request_s=5.0, connections_per_minute=1000, failures_per_minute=2)
    with opened(tmp_path, limits) as house:
        token = house.registry.token()
        wrong = encode(enrol_word(token, FIRST, signer=SECOND))
        assert [house.code("POST", ENROL_PATH, wrong)[1] for _ in range(3)] == ["bad_proof"] * 2 + [
            "too_many"
        ]
        assert house.code("POST", ENROL_PATH, encode(enrol_word(token, FIRST))) == (429, "too_many")
        assert [row.state for row in house.registry.enrolling.tokens()] == ["unused"]


def test_an_answer_that_takes_long_holds_up_nobody_else(tmp_path: Path) -> None:
    with opened(tmp_path) as house:
        free = threading.Event()

        def slow(_method: str, path: str, _body: bytes) -> Answer:
            if path == "/slow":
                free.wait(10)
            return Answer(status=200, content_type="text/plain", body=b"done")

        house.server._answer = slow
        first = threading.Thread(target=lambda: house.ask("GET", "/slow"))
        first.start()
        assert house.ask("GET", "/quick") == (200, b"done")
        free.set()
        first.join(10)


def test_addresses_are_counted_by_what_one_subscriber_has() -> None:
    assert address_name(("192.0.2.7", 5)) == "192.0.2.7"
    assert address_name(("2001:db8:1:2:3::7", 5, 0, 0)) == address_name(("2001:db8:1:2:ffff::1", 9, 0, 0))
    assert address_name(("2001:db8:1:3::7", 5, 0, 0)) != address_name(("2001:db8:1:2::7", 5, 0, 0))
    assert address_name(("::ffff:192.0.2.7", 5, 0, 0)) == "192.0.2.7"
    assert address_name(("fe80::1%eth0", 5, 0, 3)) == "fe80::/64"
    assert address_name(None) == address_name(()) == "unknown"
