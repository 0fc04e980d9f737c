"""PURE. The record of who changed what: entries in a chain of hashes, and whether a chain is whole.

For: the form of an entry, the hash that binds it to the one before it, the head that says how far a log
went, and `checked`, which names the first entry that is not what it was.
Not for: keeping entries (`tx.audit` of `fleet.ports.Tx` writes them in the transaction of the change), or
signing heads (`fleet.audit_heads`).

What it proves: docs/adr/0014-people.md. Each entry's hash is SHA-256 over the JSON array

    ["shallop-audit-1", number, at_ms, who, what, subject, why, details, previous]

in UTF-8 without white space, the keys of `details` sorted; `previous` is the hash of the entry before it,
and of the first one `genesis(registry_id)`. Whoever can read JSON can check a log without this program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

FORM = "shallop-audit-1"

REGISTRY = "registry"
"""Who the registry's own acts are by: a gate's halt, a wave that opens."""

ANYBODY = "anybody"
"""Who a request is by while no token was ever made and everybody at the machine may do everything."""

WHY_HEADER = "Shallop-Why"
"""In which a request says why; percent-encoded UTF-8."""

WHO_CHARS_MAX = 100
WHAT_CHARS_MAX = 64
SUBJECT_CHARS_MAX = 200
WHY_CHARS_MAX = 2000

_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]
_Natural = Annotated[int, Meta(ge=1, le=2**53 - 1)]


class By(Struct, frozen=True, kw_only=True):
    """Who does something, and why.

    Attributes:
        who: a token's name, `local:USER` at the machine, `registry`, or `anybody`.
        why: in their words; empty where they said nothing.
    """

    who: str = ANYBODY
    why: str = ""


NOBODY_SAID = By()
"""A request on a registry without tokens that gives no reason."""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One change.

    Attributes:
        number: from 1, without a gap.
        at_ms: milliseconds since 1970 by the registry's clock; information, the numbers give the order.
        who: see `By`.
        what: the verb, such as `rollout.start`.
        subject: what was changed: an id, or MODEL@RELEASE.
        why: in the words of who did it.
        details: what else one needs to know.
        previous: hash of the entry before it.
        sha256: its own hash.
    """

    number: int
    at_ms: int
    who: str
    what: str
    subject: str = ""
    why: str = ""
    details: dict[str, object] = {}
    previous: str
    sha256: str


class AuditHead(Struct, frozen=True, kw_only=True, tag_field="kind", tag="audit_head"):
    """How far a log went at a moment; kept elsewhere, it shows that entries were cut off or written anew.

    Attributes:
        registry_id: whose log.
        number: of the last entry.
        sha256: its hash.
        at_ms: when this was said.
        root: number of the root whose order keys signed it; 0 where nothing is signed.
    """

    version: int = 1
    registry_id: str
    number: _Natural
    sha256: _Sha256
    at_ms: int
    root: int = 0


class Broken(Struct, frozen=True, kw_only=True):
    """The first entry that is not what it was, and how one sees that."""

    number: int
    how: str


class Checked(Struct, frozen=True, kw_only=True):
    """What became of a check.

    Attributes:
        entries: that are sound, from the first.
        sha256: hash of the last of them; `genesis` where there is none.
        broken: None where all is as it was, as far as the heads tell.
    """

    entries: int
    sha256: str
    broken: Broken | None = None


def genesis(registry_id: str) -> str:
    """What the first entry of a registry's log follows; so no log passes for another registry's."""
    return hashlib.sha256(f"{FORM} {registry_id}".encode()).hexdigest()


def entry_sha256(entry: AuditEntry) -> str:
    """The hash that an entry must carry."""
    content = [
        FORM, entry.number, entry.at_ms, entry.who, entry.what, entry.subject, entry.why, entry.details,
        entry.previous,
    ]  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def follow(  # noqa: PLR0913 - the fields of an entry
    number: int, previous: str, *, at: float, who: str, what: str, subject: str, why: str,
    details: dict[str, object],
) -> AuditEntry:  # fmt: skip
    """The entry after the one with that number and hash, its texts cleaned and cut to their limits.

    Args:
        number: of the last entry; 0 where there is none.
        previous: its hash, or `genesis`.
        at: seconds since 1970.
        who: see AuditEntry, as for all that follow.
        what: the verb.
        subject: what was changed.
        why: in their words.
        details: plain JSON values.
    """
    bare = AuditEntry(
        number=number + 1,
        at_ms=round(at * 1000),
        who=clean(who, WHO_CHARS_MAX),
        what=clean(what, WHAT_CHARS_MAX),
        subject=clean(subject, SUBJECT_CHARS_MAX),
        why=clean(why, WHY_CHARS_MAX),
        # As it will be read back: what the hash covers is plain JSON.
        details=msgspec.json.decode(msgspec.json.encode(details)),
        previous=previous,
        sha256="",
    )
    return msgspec.structs.replace(bare, sha256=entry_sha256(bare))


def clean(text: str, chars_max: int) -> str:
    """The text without what a terminal or a database could trip over: control characters, half characters."""
    return "".join(c if c.isprintable() else " " for c in text[:chars_max])


def checked(entries: Iterable[AuditEntry], registry_id: str, heads: Collection[AuditHead] = ()) -> Checked:
    """Whether a log, from its first entry to its last, is whole and unchanged.

    Args:
        entries: all of them in order, read once.
        registry_id: whose log it is said to be.
        heads: heads believed by whoever asks, kept elsewhere; without any, a log whose end was cut off, or
            that was written anew as a whole, looks whole.
    """
    last, before = 0, genesis(registry_id)
    wanted: dict[int, list[AuditHead]] = {}
    for head in heads:
        wanted.setdefault(head.number, []).append(head)
        if head.registry_id != registry_id:
            return _broken(last, before, 1, f"the head of entry {head.number} is of another registry")
    for entry in entries:
        how = _wrong(entry, last, before) or _unlike(entry, wanted.get(entry.number, ()))
        if how:
            return _broken(last, before, max(1, min(last + 1, entry.number)), how)
        last, before = entry.number, entry.sha256
    highest = max(wanted, default=0)
    if highest > last:
        return _broken(
            last, before, last + 1, f"missing: a head says that the log went on to entry {highest}"
        )
    return Checked(entries=last, sha256=before)


def _broken(last: int, sha256: str, number: int, how: str) -> Checked:
    return Checked(entries=last, sha256=sha256, broken=Broken(number=number, how=how))


def _wrong(entry: AuditEntry, last: int, before: str) -> str:
    """What is wrong with an entry that follows number `last` with hash `before`; empty if nothing is."""
    if entry.number != last + 1:
        return f"missing: entry {entry.number} follows entry {last}"
    if entry.sha256 != entry_sha256(entry):
        return "changed: its content is not what its hash says"
    if entry.previous != before:
        return "put in anew: it does not follow the entry before it"
    return ""


def _unlike(entry: AuditEntry, heads: Collection[AuditHead]) -> str:
    if any(head.sha256 != entry.sha256 for head in heads):
        return "written anew: a head that was kept says another hash for it, so it or one before it changed"
    return ""
