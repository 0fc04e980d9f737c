"""What is looked at once in a while: content that nobody needs on the broker, old reports, lost reports.

For: keeping the broker's and the database's memory bounded, conservatively: whatever any device might
still need stays.
Not for: deleting releases or blobs from the registry's own disk; a cleared release can come back.
"""

from __future__ import annotations

import logging

from msgspec.structs import replace

from fleet.config import Config
from fleet.ports import ReleaseRow, Tx
from fleet.publish.content import blob_sizes, clearing, manifest_of, releases_of
from fleet.publish.shelf import DeltaShelf, clearable
from fleet.rollout import ENDS
from wire import topics as wt
from wire.topics import Topics

_LOG = logging.getLogger("shallop.fleet.upkeep")

_ENDED = tuple(state.value for state in ENDS)


def upkeep(
    tx: Tx, topics: Topics, now: float, config: Config, deltas: DeltaShelf | None = None
) -> dict[tuple[str, str], int]:
    """Clears, prunes and gives up on lost reports; the acknowledgements that follow from the last."""
    clear_ended(tx, topics, deltas)
    tx.prune_reports(now - config.reports_keep_s)
    skipped = tx.skip_gaps(now - config.report_gap_s)
    for device, install, number in skipped:
        _LOG.error("report_gap: reports of %s (%s) below %d never came", device, install, number)
    return {(device, install): number for device, install, number in skipped}


def clear_ended(tx: Tx, topics: Topics, deltas: DeltaShelf | None = None) -> int:
    """After a rollout's end, clears content that only releases name which nobody needs; how many posts.

    A release is needed while a desired entry, an open rollout, or any device's active, previous or
    arriving slot names it; one that was published and never rolled out is needed too.
    """
    ended = tx.rollouts(_ENDED)
    if all(row.cleared for row in ended):
        return 0
    needed = tx.desired_digests() | {row.release for row in tx.rollouts() if row.state not in _ENDED}
    for device in tx.devices():
        for state in device.models.values():
            needed |= releases_of(state)
    rolled_out = {row.release for row in ended}
    releases = tx.releases()
    dropped = [r for r in releases if r.digest in rolled_out and r.digest not in needed]
    kept = [r for r in releases if r not in dropped]
    old = clearable(topics, deltas, [manifest_of(release.manifest) for release in kept])
    posts = _clearings(tx, topics, dropped, kept, old)
    tx.post([clearing(topic) for topic in posts])
    for row in ended:
        if not row.cleared:
            tx.save_rollout(replace(row, cleared=True))
    return len(posts)


def _clearings(
    tx: Tx, topics: Topics, dropped: list[ReleaseRow], kept: list[ReleaseRow], deltas: set[str]
) -> list[str]:
    """Topics that the broker holds for us and that only dropped releases name."""
    shared = {blob for release in kept for blob in blob_sizes(manifest_of(release.manifest))}
    only = {b for release in dropped for b in blob_sizes(manifest_of(release.manifest))} - shared
    wanted = {topics.topic(wt.RELEASE, digest=release.digest) for release in dropped}
    wanted |= {topics.topic(wt.BLOB, digest=blob) for blob in only}
    wanted |= deltas - {topics.topic(wt.BLOB, digest=blob) for blob in shared}
    held = tx.retained_topics(f"{topics.root}/release/") | tx.retained_topics(f"{topics.root}/blob/")
    return sorted(wanted & held)
