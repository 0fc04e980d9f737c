"""PURE. What a device believes: the trusted root, how far the fleet's word has come, what is barred.

For: the state of trust and the only ways in which it may change, as functions from state to state.
Not for: keeping it (`agent.trust`), or what follows from an order (`agent.lifecycle`).

Freshness comes from numbers that only rise and from the highest time that was signed, never from this
device's clock, which may be wrong in both directions (DESIGN.md section 6).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from wire import roots, trust
from wire.chunks import digest as sha256
from wire.codec import decode
from wire.errors import TrustError
from wire.messages import BARRED_MAX, Bars, Desired
from wire.roots import Root
from wire.topics import ROOT
from wire.trust import Role, SignatureCheck
from wire.types import Count, Digest, Text

_UTC_TIME = re.compile(r"2\d{3}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d\+00:00", re.ASCII)


class TrustState(Struct, frozen=True, kw_only=True):
    """All that trust rests on.

    Attributes:
        root: the trusted root document.
        document: highest number of a desired document that was believed.
        signed_at: highest time that a believed document of this epoch carries, or the root that opened the
            epoch, RFC 3339 in UTC; empty before the first.
        bars: number of the last believed list of barred releases.
        barred: digests of releases that no order may bring here.
    """

    root: Root
    document: Count = 0
    signed_at: Text = ""
    bars: Count = 0
    barred: Annotated[tuple[Digest, ...], Meta(max_length=BARRED_MAX)] = ()


def pinned(data: bytes, root_sha256: str, check: SignatureCheck) -> TrustState:
    """The first state, from a root whose digest is known by another way (the enrolment token).

    Raises:
        WireError: not a root document of this contract.
        TrustError: `wrong_root`: another root than the one that was pinned; `bad_signature`,
            `below_threshold`, `root_incoherent`.
    """
    message, root, signatures = _opened(data)
    found = sha256(message)
    if found != root_sha256:
        raise TrustError(
            "wrong_root", f"the root document has digest {found[:12]}..., {root_sha256[:12]}... is expected"
        )
    roots.require_signatures(root, Role.ROOT, trust.pae("root", message), signatures, check)
    return TrustState(root=root)


def rotated(state: TrustState, data: bytes, check: SignatureCheck) -> TrustState:
    """The state after the next root document.

    Raises:
        WireError: not a root document of this contract.
        TrustError: `root_out_of_order`, `epoch_backwards`, `root_incoherent`, `bad_signature` or
            `below_threshold` (by the keys of the root that is trusted, or by its own).
    """
    message, root, signatures = _opened(data)
    roots.require_successor(state.root, root)
    for signing in (state.root, root):
        roots.require_signatures(signing, Role.ROOT, trust.pae("root", message), signatures, check)
    if root.epoch == state.root.epoch:
        return replace(state, root=root)
    # The order key was retired, so whatever times it signed count no more: they may have been a thief's.
    return replace(state, root=root, signed_at=later_text(root.issued_at))


def enrolled(
    before: TrustState | None, chain: Sequence[bytes], root_sha256: str, check: SignatureCheck
) -> TrustState:
    """The state after an enrolment: the pinned root, and what followed it.

    Enrolled again in the same fleet, a device forgets none of its numbers; in another one they begin anew.

    Args:
        before: what is believed now; None where nothing is.
        chain: root documents in their envelopes, the pinned one first.
        root_sha256: digest of the pinned one.
        check: of signatures.

    Raises:
        WireError, TrustError: as `pinned` and `rotated`; `no_root`: the chain is empty.
    """
    if not chain:
        raise TrustError("no_root", "the registry sent no root document")
    state = pinned(chain[0], root_sha256, check)
    ours = before is not None and before.root == state.root
    for data in chain[1:]:
        state = rotated(state, data, check)
        ours = ours or (before is not None and before.root == state.root)
    return replace(before, root=state.root) if before is not None and ours else state


def _opened(data: bytes) -> tuple[bytes, Root, list[tuple[str, bytes]]]:
    """A root document before it is believed: its signatures are checked by keys that stand inside it."""
    message, signatures = trust.unwrap(data, "root", ROOT.size_bytes_max)
    return message, roots.checked(decode(message, Root, ROOT.size_bytes_max)), signatures


def obeyed(state: TrustState, desired: Desired) -> TrustState:
    """The state after a desired document whose signature stands.

    The same number again is the same document, retained and delivered once more.

    Raises:
        TrustError: `stale_document`: an older one, replayed; `future_epoch`.
    """
    if desired.number < state.document:
        raise TrustError(
            "stale_document",
            f"the desired document has number {desired.number}, {state.document} was believed already",
        )
    roots.require_epoch(state.root, desired.number)
    for entry in desired.models.values():
        roots.require_epoch(state.root, entry.order)
    return replace(
        state, document=desired.number, signed_at=max(state.signed_at, later_text(desired.issued_at))
    )


def barring(state: TrustState, bars: Bars) -> TrustState:
    """The state after a list of barred releases whose signature stands.

    Raises:
        TrustError: `stale_bars`: an older list, replayed.
    """
    if bars.number < state.bars:
        raise TrustError(
            "stale_bars", f"the list of barred releases has number {bars.number}, {state.bars} was believed"
        )
    return replace(state, bars=bars.number, barred=bars.digests)


def require_not_barred(state: TrustState, digest: str) -> None:
    """Returns if orders may bring this release.

    Raises:
        TrustError: `release_barred`.
    """
    if digest in state.barred:
        raise TrustError(
            "release_barred", f"release {digest[:12]}... was barred by its publisher (list {state.bars})"
        )


def later_text(text: str) -> str:
    """A signed time in the one form that compares as text; empty where it is not one.

    The registry writes RFC 3339 in UTC with seconds; anything else is no time to go by.
    """
    return text if _UTC_TIME.fullmatch(text) else ""
