"""Heads of the audit log, opened and believed: what a reader checks a log against.

For: the envelope of `fleet.audit_log.AuditLog.head`, with or without the chain of roots that says whose
signatures count; and the text form of an exported log.
Not for: the check itself (`fleet.audit.checked`).

An export is JSON lines: the entries, oldest first, then the signed head in its envelope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from fleet.audit import AuditEntry, AuditHead
from wire import roots, trust
from wire.errors import TrustError, WireError
from wire.roots import Root
from wire.topics import ROOT
from wire.trust import Role, SignatureCheck

HEAD_KIND = "audit_head"
HEAD_BYTES_MAX = 16 * 1024
WENT_BACK = frozenset({"audit.gap", "registry.restored"})
"""Entries by which a registry puts on record that its database is older than it was."""
LINE_BYTES_MAX = 2 * 1024 * 1024

_HEAD = msgspec.json.Decoder(AuditHead)
_ENTRY = msgspec.json.Decoder(AuditEntry)
_ROOT = msgspec.json.Decoder(Root)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be."""


def read_head(data: bytes) -> AuditHead:
    """The head in an envelope, its signature not looked at: for who knows where it comes from.

    Raises:
        WireError: it is no head of this version.
        TrustError: `wrong_type`: another kind of envelope.
    """
    return _opened(data)[0]


def believed_head(data: bytes, chain: Sequence[bytes], check: SignatureCheck) -> AuditHead:
    """The head in an envelope that the order keys of the root that it names signed.

    Args:
        data: the envelope.
        chain: the fleet's root documents, oldest first and checked already.
        check: verifies one signature.

    Raises:
        WireError: it is no head of this version.
        TrustError: `unknown_root`, `bad_signature` or another name for why it cannot be believed.
    """
    head, payload, signatures = _opened(data)
    if not 1 <= head.root <= len(chain):
        raise TrustError(
            "unknown_root", f"the head was signed under root {head.root}; this chain has {len(chain)}"
        )
    message = trust.pae(HEAD_KIND, payload)
    roots.require_signatures(_root(chain[head.root - 1]), Role.ORDER, message, signatures, check)
    return head


def _opened(data: bytes) -> tuple[AuditHead, bytes, list[tuple[str, bytes]]]:
    payload, signatures = trust.unwrap(data, HEAD_KIND, HEAD_BYTES_MAX)
    try:
        return _HEAD.decode(payload), payload, signatures
    except UNREADABLE as error:
        raise WireError("malformed", f"the head of an audit log cannot be read: {error}") from None


def _root(envelope: bytes) -> Root:
    payload, _ = trust.unwrap(envelope, "root", ROOT.size_bytes_max)
    return _ROOT.decode(payload)


def exported(entries: Iterable[AuditEntry], head: bytes) -> Iterator[bytes]:
    """The lines of an export."""
    for entry in entries:
        yield msgspec.json.encode(entry) + b"\n"
    yield head + b"\n"


def noting(entries: Iterable[AuditEntry], notes: list[AuditEntry]) -> Iterator[AuditEntry]:
    """The entries, those put into `notes` in which the log itself says that its database went back."""
    for entry in entries:
        if entry.what in WENT_BACK:
            notes.append(entry)
        yield entry


def imported(lines: Iterable[bytes], heads: Callable[[bytes], None]) -> Iterator[AuditEntry]:
    """The entries of an export, read as they are asked for.

    Args:
        lines: of the file.
        heads: called with every head's envelope that comes by.

    Raises:
        WireError: `malformed`: a line is neither an entry nor a head.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.startswith(b'{"payloadType"'):
            heads(line.strip())
            continue
        try:
            yield _ENTRY.decode(line)
        except UNREADABLE as error:
            raise WireError("malformed", f"line {number} is no entry of an audit log: {error}") from None
