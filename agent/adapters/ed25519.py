"""Ed25519 through PyNaCl (libsodium).

For: fulfilling `wire.trust.SignatureCheck` on the device.
Not for: making keys or signing.

Weighed on x86-64 above paho, msgspec and ssl (`docs/adr/0012-trust.md`): PyNaCl 1.2 MiB of PSS and 3 ms to
import, cryptography 8.1 MiB and 6 ms. The bindings are imported and not `nacl.signing`, which brings the
encoders and their exceptions with it.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

SIGNATURE_BYTES = 64
PUBLIC_BYTES = 32


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message`."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except CryptoError:
        return False
    return True
