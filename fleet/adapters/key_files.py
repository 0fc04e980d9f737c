"""Private keys as files: Ed25519 in PKCS#8 PEM, readable by their owner alone, encrypted on request.

For: making, reading and using them; the form is the one that `openssl pkey` reads.
Not for: which key may do what (`wire.roots`), or where keys lie (`fleet.adapters.keychain`).
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fleet.keys import KeysError
from wire.roots import keyid

FILE_BYTES_MAX = 64 * 1024
PASSPHRASE = "SHALLOP_PASSPHRASE"  # noqa: S105 - the name of the environment's variable


class KeyPair:
    """A private key in memory; fulfils `wire.trust.Signer`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return self._private.public_key().public_bytes_raw()

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key, hexadecimal."""
        return keyid(self.public)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._private.sign(message)

    def pem(self, passphrase: str | None) -> bytes:
        """PKCS#8, encrypted (PBES2 with AES-256) where a passphrase is given."""
        how = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def generate() -> KeyPair:
    """A new key pair."""
    return KeyPair(Ed25519PrivateKey.generate())


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message`; fulfils `wire.trust.SignatureCheck`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except Exception:  # noqa: BLE001 - a key or signature of any shape is only false
        return False
    return True


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that only its owner reads, makes it last, and replaces nothing.

    Raises:
        KeysError: `key_exists` or `key_unwritable`.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeysError("key_exists", f"{path} is there already and is not replaced") from None
    except OSError as error:
        raise KeysError("key_unwritable", f"{path} cannot be written: {error}") from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, passphrase: str | None = None) -> KeyPair:
    """The key in a file.

    Raises:
        KeysError: `key_unreadable`, `passphrase_needed`, `passphrase_wrong` or `wrong_key_kind`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise KeysError("key_unreadable", f"the key {path} cannot be read: {error}") from None
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in data
    if encrypted and not passphrase:
        raise KeysError(
            "passphrase_needed", f"the key {path} is encrypted; give --passphrase or SHALLOP_PASSPHRASE"
        )
    try:
        private = load_pem_private_key(data, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        code = "passphrase_wrong" if encrypted else "key_unreadable"
        raise KeysError(code, f"the key {path} cannot be opened: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeysError("wrong_key_kind", f"{path} holds another kind of key; Shallop signs with Ed25519")
    return KeyPair(private)
