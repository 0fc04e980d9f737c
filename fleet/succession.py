"""PURE. What a running registry does when the files of its keys change: rest, wait, or read them.

For: telling a change that is over from one that is under way, trying again what could not be taken up, and
which chain of roots may follow the one that is held.
Not for: looking at files or reading them (`fleet.adapters.following`), or what is in them.

A set of files is read when two looks in a row saw the same: whoever writes several of them is done by then,
or is slower than that, and then what does not fit together is refused, named, and read again when it
changes. What was refused is tried again once in a while too, because its cause may lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from fleet.keys import KeysError

AGAIN_S = 30.0

Stamp = tuple[int, ...]
"""By which a file that was changed is told from one that was not: inode, size, times."""
Stamps = Mapping[str, Stamp]


class Step(StrEnum):
    """What to do after a look."""

    REST = "rest"
    WAIT = "wait"
    READ = "read"


class Watched(Struct, frozen=True, kw_only=True):
    """What is known of a set of files.

    Attributes:
        taken: how they were when they were last taken up.
        seen: how they were at the last look.
        refused: how they were when they could not be taken up; None if that was not so since.
        again_at: when that is tried again, in the seconds of `looked`.
    """

    taken: Stamps
    seen: Stamps
    refused: Stamps | None = None
    again_at: float = 0.0


def begun(stamps: Stamps) -> Watched:
    """At the start: what lies there was just read."""
    return Watched(taken=stamps, seen=stamps)


def looked(watched: Watched, stamps: Stamps, now_s: float, *, asked: bool = False) -> tuple[Watched, Step]:
    """A look at the files, and what follows.

    Args:
        watched: what was known before.
        stamps: how the files are now; one that is not there has no entry.
        now_s: seconds of a clock that does not jump.
        asked: a person wants them to be read whatever they look like.
    """
    after = replace(watched, seen=stamps)
    if asked:
        return after, Step.READ
    if stamps != watched.seen:
        return after, Step.WAIT
    if stamps == watched.taken:
        return replace(after, refused=None), Step.REST
    if stamps == watched.refused and now_s < watched.again_at:
        return after, Step.REST
    return after, Step.READ


def taken_up(watched: Watched, stamps: Stamps) -> Watched:
    """They were read as they were at that look, and are used from now on."""
    return replace(watched, taken=stamps, refused=None)


def refused(watched: Watched, stamps: Stamps, now_s: float) -> Watched:
    """They were read as they were at that look, and cannot be used."""
    return replace(watched, refused=stamps, again_at=now_s + AGAIN_S)


def require_successor(held: Sequence[bytes], found: Sequence[bytes]) -> None:
    """Returns if a chain of roots may take the place of the one that is held: the same, or grown.

    Requires: both were checked root by root. That is not enough here: each fleet's chain is whole in itself.

    Args:
        held: signed roots, oldest first, under which the registry signs; none where it has no keys.
        found: those that lie there now.

    Raises:
        KeysError: `another_fleet` or `root_went_back`.
    """
    for number, (ours, theirs) in enumerate(zip(held, found, strict=False), start=1):
        if ours != theirs:
            raise KeysError(
                "another_fleet",
                f"root-{number}.json is not the one under which this registry signs, so what follows it is "
                "another fleet's chain; put the fleet's own files back",
            )
    if len(found) < len(held):
        raise KeysError(
            "root_went_back",
            f"root-{len(found) + 1}.json is gone, and devices trust root {len(held)}, under which this "
            "registry signs; put it back",
        )
