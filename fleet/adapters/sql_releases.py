"""Queries about releases, blobs, rollouts, desired entries and rollbacks.

For: the tables whose rows the registry itself writes.
Not for: publishing any of it (`fleet.adapters.sql_outbox`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Row, delete, select

from fleet.adapters import tables as t
from fleet.adapters.sql_base import SqlPart, batches, json_text
from fleet.ports import DesiredRow, ReleaseRow, RollbackRow, RolloutRow
from wire.messages import DesiredModel

_ENTRY = msgspec.json.Decoder(DesiredModel)
_OPEN_ROLLBACKS = ("commanded", "by_desired")


class SqlReleases(SqlPart):
    """Those tables of one transaction."""

    def release(self, digest: str) -> ReleaseRow | None:
        """One release."""
        row = self.connection.execute(select(t.releases).where(t.releases.c.digest == digest)).first()
        return None if row is None else _release(row)

    def release_named(self, model: str, name: str) -> ReleaseRow | None:
        """One release by its names."""
        named = (t.releases.c.model == model, t.releases.c.name == name)
        row = self.connection.execute(select(t.releases).where(*named)).first()
        return None if row is None else _release(row)

    def releases(self) -> list[ReleaseRow]:
        """All releases, oldest first."""
        rows = self.connection.execute(
            select(t.releases).order_by(t.releases.c.created_at, t.releases.c.digest)
        )
        return [_release(row) for row in rows]

    def save_release(self, release: ReleaseRow) -> None:
        """Writes a release."""
        self.put(t.releases, msgspec.structs.asdict(release))

    def delete_release(self, digest: str) -> None:
        """Deletes one."""
        self.connection.execute(delete(t.releases).where(t.releases.c.digest == digest))

    def known_blobs(self, digests: Collection[str]) -> set[str]:
        """Which of them are on disk."""
        known: set[str] = set()
        for group in batches(digests):
            rows = self.connection.execute(select(t.blobs.c.sha256).where(t.blobs.c.sha256.in_(group)))
            known.update(rows.scalars())
        return known

    def add_blob(self, digest: str, size_bytes: int, path: str) -> None:
        """Records that a blob is on disk."""
        self.put(t.blobs, {"sha256": digest, "size_bytes": size_bytes, "path": path})

    def lose_blob(self, digest: str) -> None:
        """Records that the disk no longer holds a blob; nothing tries to publish it any more."""
        self.connection.execute(delete(t.blobs).where(t.blobs.c.sha256 == digest))
        self.connection.execute(delete(t.outbox).where(t.outbox.c.blob == digest))

    def rollout(self, rollout_id: str) -> RolloutRow | None:
        """One rollout."""
        row = self.connection.execute(select(t.rollouts).where(t.rollouts.c.id == rollout_id)).first()
        return None if row is None else _rollout(row)

    def rollouts(self, states: Collection[str] | None = None) -> list[RolloutRow]:
        """Rollouts in those states (None: all), oldest first."""
        query = select(t.rollouts).order_by(t.rollouts.c.created_at, t.rollouts.c.id)
        if states is not None:
            query = query.where(t.rollouts.c.state.in_(tuple(states)))
        return [_rollout(row) for row in self.connection.execute(query)]

    def save_rollout(self, row: RolloutRow) -> None:
        """Writes a rollout."""
        self.put(t.rollouts, {**msgspec.structs.asdict(row), "doc": row.doc.decode()})

    def desired(self, device: str) -> dict[str, DesiredRow]:
        """Entries of one device by model."""
        rows = self.connection.execute(select(t.desired).where(t.desired.c.device == device))
        return {row.model: _desired(row) for row in rows}

    def desired_of_model(self, model: str) -> list[DesiredRow]:
        """Entries of one model on all devices."""
        query = select(t.desired).where(t.desired.c.model == model).order_by(t.desired.c.device)
        return [_desired(row) for row in self.connection.execute(query)]

    def desired_devices(self) -> list[str]:
        """Devices that have any entry, by id."""
        query = select(t.desired.c.device).distinct().order_by(t.desired.c.device)
        return list(self.connection.execute(query).scalars())

    def desired_digests(self) -> set[str]:
        """Releases that any desired entry names."""
        return set(self.connection.execute(select(t.desired.c.digest).distinct()).scalars())

    def save_desired(self, row: DesiredRow) -> None:
        """Writes an entry."""
        entry = row.entry
        self.put(
            t.desired,
            {
                "device": row.device,
                "model": row.model,
                "order": entry.order,
                "digest": entry.digest,
                "rollout": row.rollout,
                "doc": json_text(entry),
            },
        )

    def drop_desired(self, device: str, model: str) -> None:
        """Deletes an entry."""
        self.connection.execute(
            delete(t.desired).where(t.desired.c.device == device, t.desired.c.model == model)
        )

    def rollback_rows(self, rollback_id: str | None = None, *, open_only: bool = False) -> list[RollbackRow]:
        """Rollbacks, all devices of one or all that are not ended."""
        query = select(t.rollbacks).order_by(t.rollbacks.c.asked_at, t.rollbacks.c.id, t.rollbacks.c.device)
        if rollback_id is not None:
            query = query.where(t.rollbacks.c.id == rollback_id)
        if open_only:
            query = query.where(t.rollbacks.c.state.in_(_OPEN_ROLLBACKS))
        return [RollbackRow(**row._mapping) for row in self.connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name

    def save_rollback(self, row: RollbackRow) -> None:
        """Writes one."""
        self.put(t.rollbacks, msgspec.structs.asdict(row))


def _release(row: Row[Any]) -> ReleaseRow:
    return ReleaseRow(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name


def _rollout(row: Row[Any]) -> RolloutRow:
    return RolloutRow(**{**row._mapping, "doc": row.doc.encode()})  # noqa: SLF001 - as above


def _desired(row: Row[Any]) -> DesiredRow:
    return DesiredRow(device=row.device, model=row.model, rollout=row.rollout, entry=_ENTRY.decode(row.doc))
