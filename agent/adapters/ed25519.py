"""Ed25519 through PyNaCl (libsodium).

For: fulfilling `wire.trust.SignatureCheck` on the device, and `agent.ports.Keys` for its own key pair.
Not for: keeping keys (`agent.identities`).

Weighed on x86-64 above paho, msgspec and ssl (`docs/adr/0012-trust.md`): PyNaCl 1.2 MiB of PSS and 3 ms to
import, cryptography 8.1 MiB and 6 ms. The bindings are imported and not `nacl.signing`, which brings the
encoders and their exceptions with it.
"""

from __future__ import annotations

import os

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

SIGNATURE_BYTES = 64
PUBLIC_BYTES = 32
SEED_BYTES = 32


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message`."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except CryptoError:
        return False
    return True


def new_seed() -> bytes:
    """A private key, by the operating system's chance (RFC 8032, section 5.1.5)."""
    return os.urandom(SEED_BYTES)


def public_of(seed: bytes) -> bytes:
    """The public key of a private one."""
    return crypto_sign_seed_keypair(seed)[0]


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature, 64 bytes."""
    return crypto_sign(message, crypto_sign_seed_keypair(seed)[1])[:SIGNATURE_BYTES]
