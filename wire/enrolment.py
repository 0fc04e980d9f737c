"""PURE. Enrolment: the token that a person carries to a device, and the words spoken over HTTPS with it.

For: how a device that knows nothing yet comes to trust its fleet, and how the fleet comes to know the
device's key. The same words, but the token's, serve a device whose certificate ended while it was off.
Not for: TLS, keys, or issuing certificates; renewal over MQTT is `wire.certificates.Renewal`.

The conversation (docs/protocol.md):

1. A person makes a token at the registry. It holds the address, the digests of the authority's certificate
   and of the root document, a secret that is good once and for a limited time, and when it was made.
2. The device fetches `CA_PATH` over a connection that it does not trust, and goes on only if a certificate's
   digest is the token's. Nothing was told to anybody yet.
3. It makes its key pair, connects again, now checking the server by that authority, and posts `Enrol`.
   The private key never leaves it; `proof` shows that it has it.
4. The answer, `Enrolled`, brings the root documents from the pinned one on and the signed certificate.

The secret is spent only where a certificate was issued for a key; asked again with the *same* key within the
token's time, the registry answers with the same certificate, so that a lost answer costs no second walk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from wire.certificates import VERSION, CertificateRefused, Renewal, SignatureHex
from wire.errors import WireError
from wire.topics import ROOT_DEFAULT
from wire.types import Count, DeviceId, Digest, Name

CA_PATH = "/enrol/v1/authorities"
"""GET: certificates in PEM."""
ENROL_PATH = "/enrol/v1/enrol"
"""POST: `Enrol`, answered by `Enrolled` or `wire.certificates.CertificateRefused`."""
RENEW_PATH = "/enrol/v1/renew"
"""POST: `wire.certificates.Renewal` of a device whose certificate ended; answered likewise."""

ASK_BYTES_MAX = 4 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
TOKEN_BYTES_MAX = 2048
SECRET_BYTES = 20
"""160 random bits."""
ROOTS_MAX = 1000

_PREFIX = "shallop1."
_CHECK_BYTES = 4
_SERVER = re.compile(
    r"https://(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-f:.]{2,45}\]):(?P<port>[0-9]{1,5})",
    re.ASCII,
)


class Token(Struct, frozen=True, kw_only=True, array_like=True):
    """What the token says.

    Attributes:
        url: https://HOST:PORT of the registry's enrolment.
        device: whom it is for.
        ca_sha256: of the authority's certificate (DER), 32 bytes.
        root_sha256: of the root document's payload, 32 bytes.
        secret: see SECRET_BYTES.
        issued_at: seconds since 1970 by the registry's clock: the earliest time that TLS is judged at on a
            device whose clock stands at 1970.
        expires_at: seconds since 1970; the registry decides, by its own clock.
    """

    url: Annotated[str, Meta(max_length=300)]
    device: DeviceId
    ca_sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    root_sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    issued_at: Count
    expires_at: Count


class Enrol(Struct, frozen=True, kw_only=True, tag_field="kind", tag="enrol"):
    """A device asks for its first certificate.

    Attributes:
        secret: of the token, in hexadecimal.
        public: its key, 32 bytes of Ed25519 in hexadecimal.
        proof: by that key over `enrolment_statement`.
    """

    version: int = VERSION
    device: DeviceId
    secret: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}(?!\n)$")]
    public: Digest
    proof: SignatureHex
    agent_version: Name


class BrokerAddress(Struct, frozen=True, kw_only=True):
    """Where the fleet's broker is, by TLS with the device's certificate."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    root: Annotated[str, Meta(max_length=200)] = ROOT_DEFAULT


class Enrolled(Struct, frozen=True, kw_only=True, tag_field="kind", tag="enrolled"):
    """What a device needs to belong to the fleet.

    Attributes:
        roots: root documents in their envelopes, oldest first: to `Enrol`, from the one that the token pins
            on; to `Renewal`, those after its `root_number`.
        certificate: envelope of a `wire.certificates.Certificate`.
        broker: where to connect.
        url: of the enrolment, for a device whose certificate ended.
    """

    version: int = VERSION
    roots: Annotated[tuple[bytes, ...], Meta(max_length=ROOTS_MAX)]
    certificate: bytes
    broker: BrokerAddress
    url: Annotated[str, Meta(max_length=300)]


Word = TypeVar("Word", bound=Enrol | Enrolled | Renewal | CertificateRefused)

# Made by the thread that imports this, as in `wire.codec`.
_TOKEN = msgspec.msgpack.Decoder(Token)
_ASKED = msgspec.json.Decoder(Enrol)
_AGAIN = msgspec.json.Decoder(Renewal)
_ANSWER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Enrolled | CertificateRefused)


# --- the token ----------------------------------------------------------------------------------------


def write_token(token: Token) -> str:
    """The token as text without spaces, some 260 characters."""
    body = msgspec.msgpack.encode(token)
    return _PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def read_token(text: str) -> Token:
    """A token from text, as a person pasted it; spaces and line ends anywhere in it do no harm.

    Raises:
        WireError: `token_malformed`: it is no token, a newer one, or not whole; `token_url`.
    """
    packed = "".join(text.split())
    if not packed.startswith(_PREFIX) or len(packed) > TOKEN_BYTES_MAX:
        raise WireError(
            "token_malformed",
            f"this is no enrolment token; it begins with {_PREFIX!r}: copy the whole line again",
        )
    coded = packed[len(_PREFIX) :]
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        token = _TOKEN.decode(_checked(data))
    except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError) as error:
        raise WireError(
            "token_malformed", f"the enrolment token is not whole ({error}); copy the whole line again"
        ) from None
    server(token.url)
    return token


def _checked(data: bytes) -> bytes:
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if check != _check(body):
        raise ValueError("its checksum does not match")
    return body


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]


def server(url: str) -> tuple[str, int]:
    """Host and port of `https://HOST:PORT`.

    Raises:
        WireError: `token_url`: it is another address.
    """
    found = _SERVER.fullmatch(url)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise WireError("token_url", f"enrolment at {url!r} is not of the form https://HOST:PORT")
    return found["host"].strip("[]"), int(found["port"])


# --- what is signed -----------------------------------------------------------------------------------


def enrolment_statement(device: str, public: str, secret: bytes) -> bytes:
    """What a device's new key signs to show that it is there; bound to the token, used for nothing else."""
    return f"shallop enrolment 1\n{device}\n{public}\n{hashlib.sha256(secret).hexdigest()}\n".encode()


def renewal_statement(device: str, public: str) -> bytes:
    """What the new key and the one before it sign, when a certificate is renewed."""
    return f"shallop renewal 1\n{device}\n{public}\n".encode()


# --- over HTTPS ---------------------------------------------------------------------------------------


def encode(word: Enrol | Enrolled | Renewal | CertificateRefused) -> bytes:
    """A body, UTF-8 JSON."""
    return msgspec.json.encode(word)


def read_enrol(body: bytes) -> Enrol:
    """The body of a POST to ENROL_PATH.

    Raises:
        WireError: `oversized`, `unsupported_version` or `malformed`.
    """
    return _read(body, _ASKED, ASK_BYTES_MAX)


def read_renewal(body: bytes) -> Renewal:
    """The body of a POST to RENEW_PATH.

    Raises:
        WireError: `oversized`, `unsupported_version` or `malformed`.
    """
    return _read(body, _AGAIN, ASK_BYTES_MAX)


def read_answer(body: bytes) -> Enrolled | CertificateRefused:
    """What the registry answers to either.

    Raises:
        WireError: `oversized`, `unsupported_version` or `malformed`.
    """
    answer: Enrolled | CertificateRefused = _read(body, _ANSWER, ANSWER_BYTES_MAX)
    return answer


def _read(body: bytes, decoder: msgspec.json.Decoder[Word], size_bytes_max: int) -> Word:
    if len(body) > size_bytes_max:
        raise WireError("oversized", f"{len(body)} bytes, at most {size_bytes_max} are read")
    try:
        word = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("malformed", f"not a word of enrolment: {error}") from None
    if word.version != VERSION:
        raise WireError(
            "unsupported_version",
            f"version {word.version}, this program speaks {VERSION}; update the older side",
        )
    return word
