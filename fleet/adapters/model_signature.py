"""An OpenSSF model signature over a bundle's directory, by the library `model-signing`.

For: `shallop-fleet export-signature`: a signature that others' tools verify, beside our own. The library is
an extra (`shallop[signature]`) and needs a host: 33 MB, and 66 MB of memory to verify.
Not for: the signature that devices believe, which is the release's envelope (`wire.trust`).

It signs with elliptic-curve keys on NIST's curves and not with Ed25519, so the fleet's release keys cannot
be used; the key is one of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fleet.adapters.durable import fsync_directory
from wire.errors import ShallopError

CURVES = ("secp256r1", "secp384r1", "secp521r1")
KEY_BYTES_MAX = 64 * 1024
_MAKE_ONE = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out signing.pem`"


class SignatureExportError(ShallopError):
    """A model signature could not be made; no file was written."""


def sign_directory(directory: Path, listed: Collection[str], key: Path, passphrase: str | None) -> bytes:
    """The signature, a Sigstore bundle as JSON, over these files of a directory and no others.

    Args:
        directory: whose name becomes the model's name in the signature.
        listed: paths below it.
        key: PEM file of an EC private key on P-256, P-384 or P-521.
        passphrase: of the key, where it is encrypted.

    Raises:
        SignatureExportError: `model_signing_missing`, or `not_signed`: the library refused, its words follow.
    """
    hashing, signing = _library()
    with tempfile.TemporaryDirectory(prefix="shallop-signature-") as folder:
        place = Path(folder) / "model.sig"
        try:
            config = signing.Config().use_elliptic_key_signer(
                private_key=key,
                # The library hands it on to `cryptography`, which takes bytes.
                password=passphrase.encode() if passphrase else None,
            )
            hashed = hashing.Config().set_ignored_paths(paths=_others(directory, listed))
            config.set_hashing_config(hashed).sign(directory, place)
            return place.read_bytes()
        except Exception as error:  # the library raises whatever its parts do
            raise SignatureExportError("not_signed", f"model-signing refused: {error}") from error


def _library() -> tuple[Any, Any]:
    """The library's modules; an extra, and half a second to import."""
    try:
        return import_module("model_signing.hashing"), import_module("model_signing.signing")
    except ImportError as error:
        raise SignatureExportError(
            "model_signing_missing",
            f"the library is not here ({error}); install it with `pip install 'shallop[signature]'`",
        ) from None


def require_able(key: Path, passphrase: str | None, out: Path) -> None:
    """Returns if a signature can be made with this key and written there.

    Raises:
        SignatureExportError: `model_signing_missing`, `key_unreadable`, `wrong_key_kind`,
            `passphrase_needed`, `out_exists`.
    """
    _library()
    _require_key(key, passphrase)
    if out.exists():
        raise SignatureExportError("out_exists", f"{out} is there already and is not replaced")


def _others(directory: Path, listed: Collection[str]) -> list[Path]:
    """Files of the directory that are not the release's, such as its report; as the library takes them."""
    found = [path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir()]
    return [path for path in found if path.as_posix() not in listed]


def _require_key(path: Path, passphrase: str | None) -> None:
    """Refuses by name what the library would refuse in other words."""
    try:
        with path.open("rb") as file:
            data = file.read(KEY_BYTES_MAX)
        key = load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError as error:
        # cryptography's way to say that a passphrase is missing, or one too many.
        raise SignatureExportError(
            "passphrase_needed", f"{path}: {error}; the passphrase is read from SHALLOP_PASSPHRASE"
        ) from None
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureExportError("key_unreadable", f"the key {path} cannot be opened: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise SignatureExportError(
            "wrong_key_kind",
            f"{path} holds another kind of key; model-signing takes EC keys on P-256, P-384 or P-521, and no "
            f"Ed25519: {_MAKE_ONE}",
        )


def write_new(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and replaces nothing.

    Raises:
        SignatureExportError: `out_exists`, `out_unwritable`.
    """
    try:
        fd, part = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            Path(part).chmod(0o644)
            os.link(part, path)
        finally:
            Path(part).unlink()
        fsync_directory(path.parent)
    except FileExistsError:
        raise SignatureExportError("out_exists", f"{path} is there already and is not replaced") from None
    except OSError as error:
        raise SignatureExportError("out_unwritable", f"{path} cannot be written: {error}") from None
