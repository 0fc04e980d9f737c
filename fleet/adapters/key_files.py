"""Private keys as files: Ed25519 in PKCS#8 PEM, readable by their owner alone, encrypted on request.

For: making, reading and using them; the form is the one that `openssl pkey` reads.
Not for: which key may do what (`wire.roots`), or where keys lie (`fleet.adapters.keychain`).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
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

from fleet.adapters.durable import fsync_directory, give_directory, owner_in
from fleet.keys import KeysError
from wire.roots import keyid

_LOG = logging.getLogger("shallop.fleet.keys")

FILE_BYTES_MAX = 64 * 1024
_ENCRYPTED = b"BEGIN ENCRYPTED PRIVATE KEY"
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
    """Writes a file that only its owner reads, whole or not at all, makes it last, and replaces nothing.

    Made by root it is the directory's owner's: the registry is not root, and reads its keys. Half a root
    document would stand in the way of every later one, so it gets its name when it is whole.

    Raises:
        KeysError: `key_exists` or `key_unwritable`.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            owner = owner_in(path.parent)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _name_anew(draft, path)
        fsync_directory(path.parent)
    except FileExistsError:
        raise KeysError("key_exists", f"{path} is there already and is not replaced") from None
    except OSError as error:
        raise KeysError("key_unwritable", f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)


def _name_anew(draft: Path, path: Path) -> None:
    """Gives a file its name, which nobody has; a medium such as a USB stick's FAT knows no second names."""
    try:
        path.hardlink_to(draft)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        if path.exists():
            raise FileExistsError(path) from None
        draft.rename(path)


def make_directory(path: Path) -> None:
    """A directory for keys, its owner's alone, with what is above it; one that is there is left as it is.

    Made by root it belongs to who owns the directory around it.

    Raises:
        KeysError: `key_unwritable`.
    """
    try:
        if path.is_dir():
            return
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        give_directory(path, owner_in(path.parent), 0o700)
    except OSError as error:
        raise KeysError(
            "key_unwritable", f"the directory {path} cannot be made: {error.strerror or error}; name another"
        ) from None


def is_encrypted(path: Path) -> bool:
    """Whether the key in a file asks for a passphrase; not so where no file can be read."""
    try:
        with path.open("rb") as file:
            return _ENCRYPTED in file.read(FILE_BYTES_MAX)
    except OSError:
        return False


def load(path: Path, passphrase: str | None = None) -> KeyPair:
    """The key in a file.

    Raises:
        KeysError: `key_unreadable`, `passphrase_needed`, `passphrase_wrong` or `wrong_key_kind`.
    """
    try:
        with path.open("rb") as file:
            data, mode = file.read(FILE_BYTES_MAX), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise KeysError(
            "key_unreadable",
            f"the key {path} cannot be read: {error.strerror or error}; run this as its owner, or name "
            "another file",
        ) from None
    encrypted = _ENCRYPTED in data
    if mode & 0o007 and not encrypted:
        # Not refused: a medium such as a USB stick's FAT knows no owners.
        _LOG.warning("everybody on this machine may read the key %s; chmod 600 it", path)
    if encrypted and not passphrase:
        raise KeysError(
            "passphrase_needed", f"the key {path} is encrypted; set {PASSPHRASE} to its passphrase"
        )
    try:
        private = load_pem_private_key(data, passphrase.encode() if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise KeysError(
                "passphrase_wrong", f"the key {path} cannot be opened: {error}; see {PASSPHRASE}"
            ) from None
        raise KeysError(
            "key_unreadable", f"{path} holds no private key in PEM (PKCS#8); put it back from a backup"
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeysError("wrong_key_kind", f"{path} holds another kind of key; Shallop signs with Ed25519")
    return KeyPair(private)
