"""PURE. Whether an OpenSSF model signature speaks of exactly the files of a release.

For: reading back what was signed, before it is given out: the library hashes the files itself, so only this
shows that it hashed those that were checked.
Not for: signing (`fleet.adapters.model_signature`), or verifying a signature, which is the library's.

Format (github.com/sigstore/model-transparency): a Sigstore bundle with a DSSE envelope around an in-toto
statement; its predicate `https://model_signing/signature/v1.0` lists every file with its SHA-256.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from wire.bundle import Manifest
from wire.types import Digest

BUNDLE_BYTES_MAX = 16 * 1024 * 1024
MANIFEST_NAME = "manifest.json"


class _Envelope(Struct):
    payload: str


class _Bundle(Struct, rename="camel"):
    dsse_envelope: _Envelope


class _Resource(Struct):
    name: Annotated[str, Meta(max_length=4096)]
    digest: Digest
    algorithm: str


class _Predicate(Struct):
    resources: list[_Resource]


class _Statement(Struct):
    predicate: _Predicate


_BUNDLE = msgspec.json.Decoder(_Bundle)
_STATEMENT = msgspec.json.Decoder(_Statement)


def expected_files(manifest: Manifest, digest: str) -> dict[str, str]:
    """SHA-256 by path of every file of a release, its manifest among them.

    Args:
        manifest: of the release.
        digest: of the manifest's bytes.
    """
    return {MANIFEST_NAME: digest} | {file.path: file.sha256 for file in manifest.all_files()}


def statement_fault(bundle: bytes, expected: dict[str, str]) -> str:
    """What the signed statement says otherwise than expected; empty where it says the same."""
    if len(bundle) > BUNDLE_BYTES_MAX:
        return f"it has {len(bundle)} bytes, at most {BUNDLE_BYTES_MAX} are read"
    try:
        payload = base64.b64decode(_BUNDLE.decode(bundle).dsse_envelope.payload, validate=True)
        resources = _STATEMENT.decode(payload).predicate.resources
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError, RecursionError, ValueError) as error:
        return f"it cannot be read back: {error}"
    signed = {one.name: one.digest for one in resources if one.algorithm == "sha256"}
    if len(signed) != len(resources):
        return "it lists a file twice, or by another hash than SHA-256"
    odd = sorted(name for name in signed.keys() | expected.keys() if signed.get(name) != expected.get(name))
    return f"it does not say of {odd[0]} what the release says" if odd else ""
