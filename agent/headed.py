"""One header line before a body: what kind of state it is, of which version, and the SHA-256 of the rest.

For: the files that a device's memory rests on (`agent.journal`, `agent.trust`), so that damage and a newer
program's work are told from what this program wrote.
Not for: reading or replacing files (`agent.durable`), or what a body means.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from agent.errors import UNREADABLE, StateError
from wire.chunks import digest
from wire.types import Digest


class _Header(Struct, frozen=True, kw_only=True):
    kind: str
    version: int
    sha256: Digest


_HEADER = msgspec.json.Decoder(_Header)


def headed(kind: str, version: int, body: bytes) -> bytes:
    """The body below its header."""
    header = _Header(kind=f"agent-{kind}", version=version, sha256=digest(body))
    return msgspec.json.encode(header) + b"\n" + body


def body_of(data: bytes, kind: str, version: int, name: str) -> bytes:
    """The body, as it was written.

    Args:
        data: of the file.
        kind: what it should be.
        version: the highest that this program reads.
        name: of the file, for the error's words.

    Raises:
        StateError: `KIND_damaged`, or `KIND_version` where a newer program wrote it.
    """
    head, _, body = data.partition(b"\n")
    try:
        header = _HEADER.decode(head)
    except UNREADABLE as error:
        raise StateError(f"{kind}_damaged", f"{name} has no readable header: {error}") from None
    if header.kind != f"agent-{kind}":
        raise StateError(f"{kind}_damaged", f"{name} says that it is {header.kind[:40]!r}")
    if not 1 <= header.version <= version:
        text = f"{name} has version {header.version}, this program reads {version}; install the newer one"
        raise StateError(f"{kind}_version", text)
    if digest(body) != header.sha256:
        raise StateError(f"{kind}_damaged", f"the checksum of {name} does not match its content")
    return body
