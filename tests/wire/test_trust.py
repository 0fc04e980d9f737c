"""What may be believed: envelopes, roles and order numbers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import trust
from wire.errors import ShallopError, TrustError, WireError

CAP = 10_000
UNSIGNED = trust.Policy(insecure_unsigned=True)


class Key:
    """A symmetric stand-in for a key pair: real signatures, one secret."""

    def __init__(self, keyid: str, role: trust.Role) -> None:
        self.keyid = keyid
        self.role = role

    def sign(self, message: bytes) -> bytes:
        return hmac.digest(self.keyid.encode(), message, hashlib.sha256)


class Ring:
    """Verifies against the keys of a role."""

    def __init__(self, *keys: Key) -> None:
        self.keys = keys

    def verify(self, role: trust.Role, message: bytes, signatures: Sequence[tuple[str, bytes]]) -> None:
        for keyid, signature in signatures:
            for key in self.keys:
                if key.keyid == keyid and key.role is role and key.sign(message) == signature:
                    return
        raise TrustError("bad_signature", f"no trusted {role} key signed this")


ORDER = Key("order-1", trust.Role.ORDER)
RELEASE = Key("release-1", trust.Role.RELEASE)
RING = trust.Policy(verifier=Ring(ORDER, RELEASE))


def test_the_pre_authentication_encoding_is_dsses() -> None:
    # protocol.md of DSSE: "DSSEv1" SP len(type) SP type SP len(body) SP body
    assert trust.pae("command", b"hello") == b"DSSEv1 39 application/vnd.shallop.command.v1+json 5 hello"


@given(st.binary(max_size=200))
def test_a_payload_comes_back_exactly(payload: bytes) -> None:
    sealed = trust.seal("desired", payload)
    assert trust.open_envelope(sealed, "desired", UNSIGNED, CAP) == payload


def test_unsigned_is_refused_unless_the_configuration_says_so() -> None:
    with pytest.raises(TrustError, match="insecure_unsigned") as caught:
        trust.open_envelope(trust.seal("desired", b"x"), "desired", trust.Policy(), CAP)
    assert caught.value.code == "unsigned"


def test_missing_trust_state_never_means_unsigned() -> None:
    with pytest.raises(TrustError) as caught:
        trust.open_envelope(trust.seal("desired", b"x", [ORDER]), "desired", trust.Policy(), CAP)
    assert caught.value.code == "no_trust_state"


def test_trusted_keys_do_not_make_unsigned_believed() -> None:
    with pytest.raises(TrustError) as caught:
        trust.open_envelope(trust.seal("desired", b"x"), "desired", RING, CAP)
    assert caught.value.code == "unsigned"


def test_the_right_role_is_believed() -> None:
    assert trust.open_envelope(trust.seal("command", b"x", [ORDER]), "command", RING, CAP) == b"x"
    assert trust.open_envelope(trust.seal("release", b"x", [RELEASE]), "release", RING, CAP) == b"x"


@pytest.mark.parametrize(("kind", "key"), [("release", ORDER), ("desired", RELEASE), ("command", RELEASE)])
def test_the_wrong_role_is_refused(kind: str, key: Key) -> None:
    with pytest.raises(TrustError) as caught:
        trust.open_envelope(trust.seal(kind, b"x", [key]), kind, RING, CAP)
    assert caught.value.code == "bad_signature"


def test_a_signature_is_over_the_type_too() -> None:
    document = json.loads(trust.seal("command", b"x", [ORDER]))
    document["payloadType"] = trust.payload_type("desired")
    with pytest.raises(TrustError) as caught:
        trust.open_envelope(json.dumps(document).encode(), "desired", RING, CAP)
    assert caught.value.code == "bad_signature"


def test_a_changed_payload_is_refused() -> None:
    document = json.loads(trust.seal("command", b"x", [ORDER]))
    document["payload"] = base64.b64encode(b"y").decode()
    with pytest.raises(TrustError) as caught:
        trust.open_envelope(json.dumps(document).encode(), "command", RING, CAP)
    assert caught.value.code == "bad_signature"


def test_another_kinds_envelope_is_refused() -> None:
    with pytest.raises(TrustError, match="desired") as caught:
        trust.open_envelope(trust.seal("desired", b"x"), "command", UNSIGNED, CAP)
    assert caught.value.code == "wrong_type"


def test_the_envelope_is_capped_before_parsing() -> None:
    with pytest.raises(WireError) as caught:
        trust.open_envelope(trust.seal("desired", b"x" * 100), "desired", UNSIGNED, 50)
    assert caught.value.code == "oversized"


@pytest.mark.parametrize(
    "change", [{"payload": "!!"}, {"payload": 3}, {"signatures": [{"keyid": "a", "sig": "é"}]}]
)
def test_what_is_no_envelope_is_refused(change: dict[str, object]) -> None:
    document = json.loads(trust.seal("desired", b"x")) | change
    with pytest.raises(WireError) as caught:
        trust.open_envelope(json.dumps(document).encode(), "desired", UNSIGNED, CAP)
    assert caught.value.code == "malformed"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes) -> None:
    with pytest.raises(ShallopError):
        trust.open_envelope(data, "desired", UNSIGNED, CAP)


def test_an_error_says_its_code_and_its_message() -> None:
    assert str(TrustError("unsigned", "no signature")) == "no signature [unsigned]"
