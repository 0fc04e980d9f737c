"""What a rollout needs to know, read from the store within a transaction.

For: `Facts` for `fleet.rollout.advance`, and the rollout's JSON form.
Not for: deciding anything.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
from msgspec.structs import replace

from fleet.ports import NotFoundError, RolloutRow, Tx
from fleet.publish.content import manifest_of
from fleet.rollout import DesiredNow, Facts, ReleaseFacts, Rollout, release_facts

_ROLLOUT = msgspec.json.Decoder(Rollout)


def read_rollout(row: RolloutRow) -> Rollout:
    """The pure rollout of a row."""
    return _ROLLOUT.decode(row.doc)


def with_rollout(row: RolloutRow, rollout: Rollout) -> RolloutRow:
    """The row with another state of its rollout."""
    return replace(row, state=rollout.state.value, doc=msgspec.json.encode(rollout))


@lru_cache(maxsize=64)
def _release_facts(digest: str, manifest: bytes) -> ReleaseFacts:
    return release_facts(digest, manifest_of(manifest))


def facts_of(tx: Tx, model: str, digest: str) -> Facts:
    """The world for a rollout of that release.

    Raises:
        NotFoundError: `unknown_release`.
    """
    release = tx.release(digest)
    if release is None:
        raise NotFoundError("unknown_release", f"there is no release {digest}")
    shut_out = tx.revocations()
    return Facts(
        devices={device.id: device for device in tx.devices() if device.id not in shut_out},
        desired={
            row.device: DesiredNow(order=row.entry.order, rollout=row.rollout)
            for row in tx.desired_of_model(model)
        },
        release=_release_facts(digest, release.manifest),
    )
