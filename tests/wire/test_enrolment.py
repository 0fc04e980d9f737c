"""The enrolment token and the words spoken with it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.wire.samples import DIGEST, INSTALL, OTHER
from wire import certificates, enrolment
from wire.enrolment import BrokerAddress, Enrol, Enrolled, Token
from wire.errors import WireError

TOKEN = Token(
    url="https://fleet.example:8471", device="roof-17", ca_sha256=b"c" * 32, root_sha256=b"r" * 32,
    secret=b"s" * enrolment.SECRET_BYTES, issued_at=1_700_000_000, expires_at=1_700_086_400,
)  # fmt: skip
ENROL = Enrol(device="roof-17", secret="ab" * 20, public=DIGEST, proof=OTHER * 2, agent_version="0.1.0")
RENEWAL = certificates.Renewal(
    device="roof-17", install_id=INSTALL, public=DIGEST, proof=OTHER * 2, proof_before=OTHER * 2,
    root_number=3,
)  # fmt: skip
ENROLLED = Enrolled(
    roots=(b"root 1", b"\x00\xff"), certificate=b"{}", broker=BrokerAddress(host="broker.example"),
    url=TOKEN.url,
)  # fmt: skip


def test_a_token_comes_back_and_is_one_line_to_copy() -> None:
    text = enrolment.write_token(TOKEN)
    assert enrolment.read_token(text) == TOKEN
    assert text.split() == [text]
    assert len(text) < 300


@given(st.integers(1, 200), st.sampled_from(["\n", " ", "\r\n  ", "\t"]))
def test_a_token_that_was_folded_is_read(at: int, fold: str) -> None:
    text = enrolment.write_token(TOKEN)
    assert enrolment.read_token(f" {text[:at]}{fold}{text[at:]}\n") == TOKEN


@given(st.data())
def test_a_token_with_a_wrong_or_lost_character_is_refused(data: st.DataObject) -> None:
    text = enrolment.write_token(TOKEN)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("Aa0-_").filter(lambda c: c != text[at]))
    for broken in (text[:at] + text[at + 1 :], text[:at] + other + text[at + 1 :], text[:at]):
        if _same_bits(broken, text):
            continue
        with pytest.raises(WireError) as told:
            enrolment.read_token(broken)
        assert told.value.code == "token_malformed"


def _same_bits(one: str, other: str) -> bool:
    """The last character of base64 may carry bits that mean nothing."""
    return len(one) == len(other) and one[:-1] == other[:-1]


@given(
    st.text(max_size=60) | st.binary(max_size=60).map(lambda b: "shallop1." + base64.b64encode(b).decode())
)
def test_what_is_no_token_is_refused_by_name(text: str) -> None:
    with pytest.raises(WireError) as told:
        enrolment.read_token(text)
    assert told.value.code == "token_malformed"


def test_a_token_of_another_size_of_secret_is_refused() -> None:
    text = enrolment.write_token(
        Token(**{name: getattr(TOKEN, name) for name in TOKEN.__struct_fields__} | {"secret": b"short"})
    )
    with pytest.raises(WireError, match="not whole"):
        enrolment.read_token(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://fleet.example:8471", "https://fleet.example", "https://fleet.example:8471/", "https://:8471",
        "https://user@fleet.example:8471", "https://fleet.example:99999", "https://[::1", "file:///etc/passwd",
        "https://fleet.example:8471?x=1", "https://fleet.example:8471#x",
    ],
)  # fmt: skip
def test_an_address_that_is_no_https_server_is_refused(url: str) -> None:
    with pytest.raises(WireError) as told:
        enrolment.server(url)
    assert told.value.code == "token_url"


def test_a_token_whose_address_is_none_is_refused_when_it_is_read() -> None:
    """Before a key is made, and by whoever reads it."""
    with pytest.raises(WireError) as told:
        enrolment.read_token(enrolment.write_token(replace(TOKEN, url="http://fleet.example:8471")))
    assert told.value.code == "token_url"


def test_addresses_may_be_numbers() -> None:
    assert enrolment.server("https://192.0.2.7:8471") == ("192.0.2.7", 8471)
    assert enrolment.server("https://[2001:db8::7]:8471") == ("2001:db8::7", 8471)


def test_the_words_come_back() -> None:
    assert enrolment.read_enrol(enrolment.encode(ENROL)) == ENROL
    assert enrolment.read_renewal(enrolment.encode(RENEWAL)) == RENEWAL
    assert enrolment.read_answer(enrolment.encode(ENROLLED)) == ENROLLED
    refused = certificates.CertificateRefused(code="token_used", detail="it was used")
    assert enrolment.read_answer(enrolment.encode(refused)) == refused


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed"),
        (b"{}", "malformed"),
        (b"[" * 3000, "malformed"),
        (b"\xff", "malformed"),
        (enrolment.encode(RENEWAL), "malformed"),
        (enrolment.encode(ENROL).replace(b'"version":1', b'"version":2'), "unsupported_version"),
        (enrolment.encode(ENROL).replace(b"ab" * 20, b"AB" * 20), "malformed"),
        (b" " * 5000, "oversized"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_by_name(body: bytes, code: str) -> None:
    with pytest.raises(WireError) as told:
        enrolment.read_enrol(body)
    assert told.value.code == code


def test_no_statement_can_be_taken_for_another() -> None:
    enrol = enrolment.enrolment_statement("roof-17", DIGEST, b"secret")
    assert enrol != enrolment.enrolment_statement("roof-17", DIGEST, b"other")
    assert enrol != enrolment.enrolment_statement("roof-18", DIGEST, b"secret")
    assert enrol != enrolment.enrolment_statement("roof-17", OTHER, b"secret")
    assert b"secret" not in enrol
    assert not enrol.startswith(enrolment.renewal_statement("roof-17", DIGEST))
    assert enrolment.renewal_statement("roof-17", DIGEST) != enrolment.renewal_statement("roof-17", OTHER)
