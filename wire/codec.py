"""PURE. Bytes to message and back, once, at the edge.

For: turning a payload into a typed value or refusing it by name, with its size capped first.
Not for: signatures: what arrives in an envelope goes through `wire.trust.open_envelope` first.

An empty retained payload means *cleared*, not corrupt: callers ask `is_cleared` before decoding.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import msgspec

from wire.bundle import Manifest
from wire.errors import WireError
from wire.messages import VERSION, Message
from wire.roots import Root

M = TypeVar("M", bound=Message | Manifest | Root)


class _Header(msgspec.Struct):
    kind: str
    version: int


# Made here, by the thread that imports this: msgspec 0.22 crashes where two threads decode into a type for
# the first time at once, and threads decode in agent and registry (tests/crash/test_first_decode.py).
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (*get_args(Message), Manifest, Root)
}
_HEADER = msgspec.json.Decoder(_Header)
_ENCODER = msgspec.json.Encoder(order="deterministic")


def is_cleared(payload: bytes) -> bool:
    """Whether a retained payload says that there is nothing any more."""
    return not payload


def kind_of(expected: type[M]) -> str:
    """The `kind` that messages of this type carry."""
    tag = expected.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{expected.__name__} is no message: it has no kind")
    return tag


def encode(message: Message | Manifest | Root) -> bytes:
    """The message as UTF-8 JSON; equal messages give equal bytes."""
    return _ENCODER.encode(message)


def decode(payload: bytes, expected: type[M], size_bytes_max: int) -> M:
    """One message of the expected type.

    Raises:
        WireError: `oversized`, `malformed`, `unknown_kind`, `unsupported_version` or `invalid_field`;
            the message names the field and what was expected.
    """
    if len(payload) > size_bytes_max:
        raise WireError(
            "oversized", f"{len(payload)} bytes, at most {size_bytes_max} are read; refused unread"
        )
    kind = kind_of(expected)
    try:
        header = _HEADER.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError("malformed", f"not a message with kind and version: {error}") from None
    if header.kind != kind:
        raise WireError("unknown_kind", f"kind {header.kind[:40]!r} where {kind!r} is expected")
    if header.version != VERSION:
        raise WireError(
            "unsupported_version",
            f"{kind} version {header.version}, this program speaks {VERSION}; update the older side",
        )
    try:
        found: M = _DECODERS[expected].decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError("invalid_field", f"{kind} cannot be read: {error}") from None
    return found
