"""TLS judged at a given time: real certificates of any dates, by every way in which the agent connects."""

from __future__ import annotations

import calendar
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import tls
from agent.judged import EXPIRED, NOT_YET_VALID, judge, require_dates
from agent.signed_time import SignedTime, seconds_of, text_of
from tests.agent.certificates import ALWAYS, Authority

PAST = ("20200101000000Z", "20210101000000Z")
GOOD_DATE = "Nov 21 17:39:29 2026 GMT"
FUTURE = ("20300101000000Z", "20310101000000Z")


def at(day: str) -> float:
    return float(calendar.timegm(time.strptime(day, "%Y-%m-%d")))


class Server:
    """Answers `hello` to whoever gets through the handshake, and asks for certificates if told to."""

    def __init__(
        self, pem: Path, key: Path, ca: Path | None = None, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.maximum_version = newest
        self._context.load_cert_chain(pem, key)
        if ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(ca)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            sock.settimeout(5)
            try:
                with self._context.wrap_socket(sock, server_side=True) as secure:
                    secure.recv(1000)
                    secure.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
            except OSError:
                sock.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


class House:
    """An authority, and servers with certificates of different dates."""

    def __init__(self, folder: Path) -> None:
        self.ca = Authority(folder)
        self.pem = self.ca.pem.read_text()
        self.servers = {
            name: Server(*self.ca.sign(name, dates))
            for name, dates in (("past", PAST), ("future", FUTURE), ("always", ALWAYS))
        }
        self.mutual = Server(*self.ca.sign("mutual"), self.ca.pem)
        self.old = Server(*self.ca.sign("old-version"), newest=ssl.TLSVersion.TLSv1_2)

    def close(self) -> None:
        for server in (*self.servers.values(), self.mutual, self.old):
            server.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("tls"))
    yield made
    made.close()


def hello(context: ssl.SSLContext, port: int, way: str) -> bytes:
    """One conversation, as http.client, paho and doctor have theirs."""
    if way == "http":
        connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read()
        finally:
            connection.close()
    with socket.create_connection(("localhost", port), timeout=5) as plain:
        if way == "paho":
            secure = context.wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False)
            secure.settimeout(5)
        else:
            secure = context.wrap_socket(plain, server_hostname="localhost")
        with secure:
            secure.do_handshake()
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: secure.recv(1000), b""))[-5:]


WAYS = ("http", "paho", "doctor")
# The authority's own life begins today and ends in ten years: it decides for 1970 and 2040.
CASES = [
    ("past", "2020-06-01", NOT_YET_VALID),
    ("past", "2026-12-01", EXPIRED),
    ("future", "2027-01-01", NOT_YET_VALID),
    ("future", "2030-06-01", None),
    ("future", "2031-06-01", EXPIRED),
    ("always", "1970-01-02", NOT_YET_VALID),
    ("always", "2027-01-01", None),
    ("always", "2040-01-01", EXPIRED),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("server", "day", "code"), CASES)
def test_certificates_are_judged_at_the_time_that_is_given(
    house: House, server: str, day: str, code: int | None, way: str
) -> None:
    heard = tls.Heard()
    context = tls.verifying(house.pem, lambda: at(day), heard)
    port = house.servers[server].port
    if code is None:
        assert hello(context, port, way) == b"hello"
        return
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        hello(context, port, way)
    assert refused.value.verify_code == code
    assert day in heard.words
    assert heard.words.endswith(("(authority)", f"({server})"))
    assert not heard.certificate


def test_the_clock_of_the_machine_plays_no_part(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    context = tls.verifying(house.pem, lambda: at("2027-01-01"))
    assert hello(context, house.servers["always"].port, "http") == b"hello"


def test_everything_else_is_still_checked(house: House, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        hello(
            tls.verifying(other.pem.read_text(), lambda: at("2027-01-01")),
            house.servers["always"].port,
            "paho",
        )
    assert refused.value.verify_code in {18, 19, 20, 21}
    wrong_name = tls.verifying(house.pem, lambda: at("2027-01-01"))
    with (
        socket.create_connection(("localhost", house.servers["always"].port), timeout=5) as plain,
        pytest.raises(ssl.SSLCertVerificationError) as refused,
    ):
        wrong_name.wrap_socket(plain, server_hostname="elsewhere")
    assert refused.value.verify_code == 62


def test_a_configured_authority_is_judged_at_that_time_too(house: House) -> None:
    config = tls.TlsConfig(ca_file=str(house.ca.pem))
    port = house.servers["always"].port
    context = tls.context(config, lambda: at("2040-01-01"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 asks for more than this authority writes
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        hello(context, port, "paho")
    assert refused.value.verify_code == EXPIRED


@pytest.mark.parametrize(("dates", "says"), [(PAST, "certificate expired"), (None, "certificate required")])
def test_what_the_server_says_of_this_devices_certificate_is_heard(
    house: House, dates: tuple[str, str] | None, says: str
) -> None:
    heard = tls.Heard()
    context = tls.verifying(house.pem, lambda: at("2027-01-01"), heard)
    if dates is not None:
        context.load_cert_chain(*house.ca.sign("old", dates))
    with pytest.raises(OSError):  # noqa: PT011 - a reset, in Python 3.13
        hello(context, house.mutual.port, "paho")
    assert heard == tls.Heard(words=f"it said: {says}", certificate=True)


def test_an_alert_of_another_kind_is_no_word_on_the_certificate(house: House) -> None:
    heard = tls.Heard()
    context = tls.verifying(house.pem, lambda: at("2027-01-01"), heard)
    with pytest.raises(ssl.SSLError):
        hello(context, house.old.port, "paho")
    assert heard == tls.Heard(words="it said: protocol version", certificate=False)


def test_the_numbers_are_openssls() -> None:
    """openssl/x509_vfy.h; `doctor` knows them too."""
    assert (NOT_YET_VALID, EXPIRED) == (9, 10)


def test_a_python_that_shows_no_chain_believes_nobody() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        require_dates([], at("2027-01-01"))


NO_DATES = ["", "soon", "Foo 21 17:39:29 2026 GMT", "Nov 21 17:39:29 2026 CET", "Nov 31 0:0:0 2026 GMT"]


@pytest.mark.parametrize("text", NO_DATES)
def test_a_date_that_cannot_be_read_is_no_life(text: str) -> None:
    for dates in ({"notBefore": text, "notAfter": GOOD_DATE}, {"notBefore": GOOD_DATE, "notAfter": text}):
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            require_dates([dates], at("2026-11-22"))
        assert refused.value.verify_code == 1


def test_whoever_is_not_verified_is_not_judged(house: House) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert hello(judge(context, lambda: 0.0), house.servers["past"].port, "http") == b"hello"


@given(st.integers(0, 4_000_000_000), st.integers(0, 4_000_000_000), st.integers(0, 4_000_000_000))
def test_a_certificate_lives_from_its_first_to_its_last_second(first_s: int, last_s: int, at_s: int) -> None:
    def written(value_s: int) -> str:
        return time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(value_s))

    chain: list[dict[str, object]] = [{"notBefore": written(0), "notAfter": written(5_000_000_000)}, {
        "notBefore": written(first_s), "notAfter": written(last_s), "subject": ((("commonName", "x"),),)
    }]  # fmt: skip
    if first_s <= at_s <= last_s:
        require_dates(chain, at_s)
        return
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        require_dates(chain, at_s)
    assert refused.value.verify_code == (NOT_YET_VALID if at_s < first_s else EXPIRED)


# --- the time itself ----------------------------------------------------------------------------------


class Clocks:
    def __init__(self) -> None:
        self.wall_s = self.boot_s = self.signed_s = 0.0

    def time(self) -> SignedTime:
        return SignedTime(
            wall_s=lambda: self.wall_s, boot_s=lambda: self.boot_s, signed_s=lambda: self.signed_s
        )


def test_the_later_of_clock_and_signed_time_counts() -> None:
    clocks = Clocks()
    judged = clocks.time()
    assert judged.now_s() == 0.0
    clocks.signed_s = at("2026-01-01")
    assert judged.now_s() == at("2026-01-01")
    clocks.wall_s = at("2027-01-01")
    assert judged.now_s() == at("2027-01-01")


def test_time_that_passes_counts_from_the_signed_time_on() -> None:
    clocks = Clocks()
    clocks.signed_s, clocks.boot_s = at("2026-01-01"), 1000.0
    judged = clocks.time()
    assert judged.now_s() == at("2026-01-01")
    assert judged.now_s() == at("2026-01-01")
    clocks.boot_s += 86400.0 * 400
    assert judged.now_s() == at("2026-01-01") + 86400.0 * 400


def test_a_clock_that_stood_too_high_leaves_nothing_behind() -> None:
    clocks = Clocks()
    judged = clocks.time()
    clocks.wall_s, clocks.signed_s = at("2040-01-01"), at("2026-01-01")
    assert judged.now_s() == at("2040-01-01")
    clocks.wall_s = at("2026-11-21")
    assert judged.now_s() == at("2026-11-21")


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e6), st.floats(0, 4e9)), min_size=1, max_size=20))
def test_it_is_never_before_what_is_known(steps: list[tuple[float, float, float]]) -> None:
    """Never below the clock or the highest signed time; where the clock stands still, it never goes back."""
    clocks = Clocks()
    judged, before_s = clocks.time(), 0.0
    for signed_s, passed_s, wall_s in steps:
        clocks.signed_s = max(clocks.signed_s, signed_s)
        clocks.boot_s += passed_s
        clocks.wall_s = wall_s
        assert judged.now_s() >= max(wall_s, clocks.signed_s)
        clocks.wall_s = 0.0
        now_s = judged.now_s()
        assert now_s >= before_s
        before_s = now_s


def test_times_as_text() -> None:
    for at_s in (0.0, 1795280400.0, 253402300799.0):
        assert seconds_of(text_of(at_s)) == at_s
    assert seconds_of("2026-11-21T17:00:00") is None
    assert seconds_of("") is None
