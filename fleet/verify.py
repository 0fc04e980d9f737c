"""PURE. What a check of a release finds: rows, and whether what was checked holds.

For: the four outcomes, the verdict over them, and the checks of trust: the chain of roots, the signature
over the manifest, the manifest against its name.
Not for: fetching anything (`fleet.verification`), content (`fleet.verify_content`), or where a release
comes from (`fleet.verify_origin`).

The checks are the device's own (`wire.roots`, `wire.trust`), made again by somebody else: nothing is taken
from the registry but bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from fleet.publish.content import read_manifest
from wire.bundle import Manifest
from wire.chunks import digest
from wire.codec import decode
from wire.errors import ShallopError, TrustError
from wire.roots import Root, checked, require_signatures, require_successor
from wire.topics import RELEASE, ROOT
from wire.trust import Role, SignatureCheck, pae, unwrap

SHORT = 12
"""Characters of a digest in words."""


class Outcome(StrEnum):
    """How a check ended; only `failed` is a fault."""

    OK = "ok"
    FAILED = "failed"
    NOT_RECORDED = "not recorded"
    NOT_CHECKED = "not checked"


class Row(Struct, frozen=True, kw_only=True):
    """One check: what was looked at, how it ended, and why."""

    check: str
    outcome: Outcome
    reason: str


class Fault(Struct, frozen=True, kw_only=True):
    """Why something could not be had, or is not what it should be."""

    code: str
    message: str


class Verification(Struct, frozen=True, kw_only=True):
    """All checks of one release.

    Attributes:
        subject: what was asked for.
        digest: of its manifest; None where there is none.
        holds: see `holds`.
    """

    subject: str
    digest: str | None
    holds: bool
    rows: tuple[Row, ...]


def holds(rows: Sequence[Row]) -> bool:
    """Whether all that was checked holds: nothing failed, and something was checked."""
    outcomes = {row.outcome for row in rows}
    return Outcome.FAILED not in outcomes and Outcome.OK in outcomes


def fault_of(error: ShallopError) -> Fault:
    """The fault that an error tells of."""
    return Fault(code=error.code, message=str(error.args[0]))


def ok(check: str, reason: str) -> Row:
    """A check that holds."""
    return Row(check=check, outcome=Outcome.OK, reason=reason)


def failed(check: str, reason: str) -> Row:
    """A check that does not hold."""
    return Row(check=check, outcome=Outcome.FAILED, reason=reason)


def not_checked(check: str, reason: str) -> Row:
    """A check that was not made, and what it would take."""
    return Row(check=check, outcome=Outcome.NOT_CHECKED, reason=reason)


def not_recorded(check: str, reason: str) -> Row:
    """A check for which the release says nothing."""
    return Row(check=check, outcome=Outcome.NOT_RECORDED, reason=reason)


# --- the chain of roots ----------------------------------------------------------------------------


class Chain(Struct, frozen=True, kw_only=True):
    """The roots that are believed, oldest first, and the row that says so; empty where none is."""

    row: Row
    roots: tuple[Root, ...] = ()


def follow(before: Root | None, envelope: bytes, verify: SignatureCheck) -> tuple[Root, bytes]:
    """The next root of a chain, checked as a device does, and its payload.

    Raises:
        WireError, TrustError: it cannot be read, or may not follow.
    """
    payload, signatures = unwrap(envelope, "root", ROOT.size_bytes_max)
    root = checked(decode(payload, Root, ROOT.size_bytes_max))
    message = pae("root", payload)
    if before is not None:
        require_successor(before, root)
        require_signatures(before, Role.ROOT, message, signatures, verify)
    require_signatures(root, Role.ROOT, message, signatures, verify)
    return root, payload


def chain_of(envelopes: Sequence[bytes], pin: str | None, verify: SignatureCheck) -> Chain:
    """Follows the chain root by root.

    Args:
        envelopes: the signed roots, oldest first.
        pin: SHA-256 of the root that is trusted beforehand; the chain is followed from there. None: from its
            own beginning, which proves that it is coherent and not whose it is.
        verify: checks one signature.
    """
    if not envelopes:
        return Chain(row=_rootless(pin))
    if pin is not None:
        start = next((i for i, one in enumerate(envelopes) if _payload_sha256(one) == pin), None)
        if start is None:
            words = f"none of the {len(envelopes)} roots has the pinned digest {pin[:SHORT]}"
            return Chain(row=failed("roots", f"{words}: this is another fleet's chain, or a forged one"))
        envelopes = envelopes[start:]
    roots: list[Root] = []
    first = ""
    for envelope in envelopes:
        try:
            root, payload = follow(roots[-1] if roots else None, envelope, verify)
        except ShallopError as error:
            after = f"after root {roots[-1].number}" if roots else "at its beginning"
            return Chain(row=failed("roots", f"the chain breaks {after}: {error}"))
        first = first or digest(payload)
        roots.append(root)
    return Chain(row=ok("roots", _followed(roots, first, pinned=pin is not None)), roots=tuple(roots))


def _rootless(pin: str | None) -> Row:
    if pin is None:
        return not_checked("roots", "there is no root here: this registry was started without keys")
    return failed("roots", f"there is no root here, and {pin[:SHORT]} is pinned")


def root_sha256(envelope: bytes) -> str:
    """What pins a root document: the digest of the payload in its envelope, none of it believed yet.

    Raises:
        WireError, TrustError: not the envelope of a root.
    """
    return digest(unwrap(envelope, "root", ROOT.size_bytes_max)[0])


def _payload_sha256(envelope: bytes) -> str | None:
    try:
        return root_sha256(envelope)
    except ShallopError:
        return None


def _followed(roots: Sequence[Root], first: str, *, pinned: bool) -> str:
    last = roots[-1].number
    way = f"root {last} stands" if len(roots) == 1 else f"roots {roots[0].number} to {last}, one by one"
    if pinned:
        return f"{way}, from the pinned root {first[:SHORT]}"
    return f"{way}, from the chain's own beginning; nothing is pinned: --root-sha256 {first}"


# --- the signature and the manifest ----------------------------------------------------------------


def signature_row(
    envelope: bytes | Fault, manifest: bytes, roots: Sequence[Root], verify: SignatureCheck
) -> Row:
    """Whether the manifest is signed by enough release keys of the last root.

    Args:
        envelope: the signed release, or why there is none.
        manifest: the bytes that everything else is checked with.
        roots: that are believed, oldest first.
        verify: checks one signature.
    """
    opened = _opened(envelope, manifest)
    if isinstance(opened, str):
        return failed("signature", opened)
    if not roots:
        return failed("signature", "it is signed, and no root is believed that says whose keys count")
    payload, signatures = opened
    message = pae("release", payload)
    try:
        require_signatures(roots[-1], Role.RELEASE, message, signatures, verify)
    except TrustError as error:
        return failed("signature", f"{error}{_signed_by(roots, message, signatures, verify)}")
    signers = _signers(roots[-1], Role.RELEASE, message, signatures, verify)
    names = ", ".join(name[:SHORT] for name in signers)
    return ok("signature", f"signed by release key {names} under root {roots[-1].number}")


def _opened(envelope: bytes | Fault, manifest: bytes) -> tuple[bytes, list[tuple[str, bytes]]] | str:
    """Payload and signatures of the envelope of this manifest, or why there are none."""
    if isinstance(envelope, Fault):
        return f"there is no signed release: {envelope.message} [{envelope.code}]"
    try:
        payload, signatures = unwrap(envelope, "release", RELEASE.size_bytes_max)
    except ShallopError as error:
        return f"the envelope cannot be used: {error}"
    if payload != manifest:
        return "what is signed is another manifest than the one that was given out"
    return (payload, signatures) if signatures else "nobody signed it [unsigned]"


def _signers(
    root: Root, role: Role, message: bytes, signatures: Sequence[tuple[str, bytes]], verify: SignatureCheck
) -> list[str]:
    keys = root.of(role).keyids
    return sorted(
        {name for name, one in signatures if name in keys and verify(root.keys[name].raw, message, one)}
    )


def _signed_by(
    roots: Sequence[Root], message: bytes, signatures: Sequence[tuple[str, bytes]], verify: SignatureCheck
) -> str:
    """Whose signature it is instead, for a person who has to find out."""
    for root in reversed(roots):
        for role in Role:
            found = _signers(root, role, message, signatures, verify)
            if found and (role is not Role.RELEASE or root is not roots[-1]):
                return f"; {role} key {found[0][:SHORT]} of root {root.number} did"
    return ""


class Named(Struct, frozen=True, kw_only=True):
    """Under which name a release was asked for; None where it has none, as in a directory."""

    digest: str | None = None
    model: str | None = None
    release: str | None = None


def manifest_row(data: bytes, named: Named) -> tuple[Row, Manifest | None]:
    """Whether a manifest is what its name says and coherent; and the manifest, where it can be used."""
    found = digest(data)
    if named.digest is not None and found != named.digest:
        words = f"its digest is {found[:SHORT]}, the release is {named.digest[:SHORT]}"
        return failed("manifest", f"{words}: these are other bytes"), None
    try:
        manifest = read_manifest(data)
    except ShallopError as error:
        return failed("manifest", f"it cannot be used: {error}"), None
    if named.model not in {None, manifest.model} or named.release not in {None, manifest.release}:
        words = f"it is of {manifest.model}@{manifest.release}, not of {named.model}@{named.release}"
        return failed("manifest", words), None
    if named.digest is None:
        return ok(
            "manifest", f"coherent; a directory has no other name than its digest {found[:SHORT]}"
        ), manifest
    return ok("manifest", f"its digest is the release's name {found[:SHORT]}, and it is coherent"), manifest
