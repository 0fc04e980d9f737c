"""What is left for a person after a registry's database went back, in words for `health`.

For: lines that go away one by one as they are done; all but two of them are read from the database each time.
Not for: finding out (`fleet.recall`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from fleet.bars import KIND, UNKNOWN_REMEDY, UNKNOWN_WORDS, lists_unknown
from fleet.facts import read_rollout
from fleet.orders import Desk
from fleet.ports import Tx
from fleet.rollout import RolloutState
from wire import topics as wt
from wire.codec import decode
from wire.errors import ShallopError
from wire.messages import Bars
from wire.trust import open_envelope

PAUSED_WHY = (
    "paused by the registry, whose database is older than it was: it cannot know how this went on; look at "
    "the devices, then resume or abort"
)
NAMES_MAX = 20
"""Names in one line for a person."""
SETTLE_S = 20.0
"""After a connection, before a device that was not heard counts as silent: retained messages come at once."""


class RestoredHealth(Struct, frozen=True, kw_only=True):
    """What a person should know of a database that went back.

    Attributes:
        at: when it was found out, RFC 3339; empty where only something unsigned says so.
        entry: number of the audit log's entry; 0 where there is none.
        found: how.
        left: what could not be taken up, and what to do; empty once all of it is done.
    """

    at: str
    entry: int
    found: str
    left: tuple[str, ...]


def names_of(names: Iterable[str]) -> str:
    """In one line, the first of many."""
    every = sorted(names)
    more = f" and {len(every) - NAMES_MAX} more" if len(every) > NAMES_MAX else ""
    return ", ".join(every[:NAMES_MAX]) + more


def lists_left(tx: Tx, claims: Mapping[str, tuple[int, str]]) -> list[str]:
    """About the list of barred releases that is published now, where devices know another.

    Args:
        tx: the database.
        claims: by device, the number of our list that it refused, and its words.
    """
    number = tx.mark().bars
    these = {name: words for name, (about, words) in claims.items() if about == number}
    if these:
        line = (
            f"{names_of(these)} refuse our list {number} of barred releases ({next(iter(these.values()))}): "
            "what was barred since is not known here; bar it again, with --above and the number of theirs"
        )
        return [line]
    return [f"{UNKNOWN_WORDS}: {UNKNOWN_REMEDY}"] if lists_unknown(tx) else []


def devices_left(tx: Tx, heard: Collection[str], *, authority: bool, settled: bool) -> list[str]:
    """Devices that somebody else knows, or nobody any more.

    Args:
        tx: the database.
        heard: devices of which the broker held something, or that spoke.
        authority: whether every device should have a certificate.
        settled: whether what the broker holds has come by now.
    """
    lines, shut_out = [], tx.revocations()
    devices = {d.id: d for d in tx.devices() if d.id not in shut_out}
    certificates = tx.newest_certificates() if authority else {}
    strangers = [name for name in devices if authority and name in heard and name not in certificates]
    if strangers:
        lines.append(
            f"{names_of(strangers)}: the certificate is not known here, so it cannot be renewed; before it "
            "ends `shallop-fleet enrol` each, or revoke it if it is none of yours"
        )
    silent = [name for name, d in devices.items() if name not in heard and d.install is not None]
    if settled and silent:
        lines.append(
            f"{names_of(silent)}: known here, and the broker holds nothing of it, as of a device that was "
            "revoked or forgotten since; if it was revoked, revoke it again"
        )
    return lines


def database_left(tx: Tx, desk: Desk) -> list[str]:
    """What the database itself shows."""
    return [*_unsigned(tx, desk), *_paused(tx), *_unknown_releases(tx)]


def _unsigned(tx: Tx, desk: Desk) -> list[str]:
    envelope = tx.bars_envelope()
    if envelope is None:
        return []
    try:
        inner = open_envelope(envelope, KIND, desk.policy, wt.BARS.size_bytes_max)
        signed = set(decode(inner, Bars, wt.BARS.size_bytes_max).digests)
    except ShallopError:
        signed = set()
    if signed == {row.digest for row in tx.barred()}:
        return []
    return ["the list of barred releases lacks a signature: `shallop-fleet bars --sign --release-key FILE`"]


def _paused(tx: Tx) -> list[str]:
    rows = tx.rollouts((RolloutState.PAUSED.value,))
    ids = [row.id for row in rows if read_rollout(row).reason == PAUSED_WHY]
    return [f"{names_of(ids)}: {PAUSED_WHY}"] if ids else []


def _unknown_releases(tx: Tx) -> list[str]:
    unknown = sorted(tx.desired_digests() - {row.digest for row in tx.releases()})
    if not unknown:
        return []
    digests = names_of([digest[:12] for digest in unknown])
    return [f"devices are to run releases that are not known here: {digests}; publish their bundles again"]
