"""Queries about devices and what they reported.

For: views with labels and groups, reports and how far they are complete.
Not for: folding messages into views (`fleet.inventory`).
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace
from sqlalchemy import ColumnElement, and_, bindparam, delete, func, select

from fleet.adapters import tables as t
from fleet.adapters.sql_base import SqlPart, json_text
from fleet.inventory import Device, labelled
from wire.messages import Report

_VIEW = msgspec.json.Decoder(Device)
# Built once, since a message from a device asks all of these: building a statement costs more than
# running it.
_VIEW_OF = select(t.devices.c.view).where(t.devices.c.device == bindparam("of"))
_LABELS_OF = select(t.labels.c.key, t.labels.c.value).where(t.labels.c.device == bindparam("of"))
_GROUPS_OF = select(t.groups.c.name).where(t.groups.c.device == bindparam("of"))
_MARK_OF = select(t.report_marks.c.contiguous, t.report_marks.c.gap_since).where(
    t.report_marks.c.device == bindparam("of"), t.report_marks.c.install_id == bindparam("install")
)
_REPORT = msgspec.json.Decoder(Report)


class SqlDevices(SqlPart):
    """The device tables of one transaction."""

    def device(self, device: str) -> Device | None:
        """One device with its labels and groups."""
        named = {"of": device}
        row = self.connection.execute(_VIEW_OF, named).first()
        if row is None:
            return None
        labels = self.connection.execute(_LABELS_OF, named)
        groups = self.connection.execute(_GROUPS_OF, named)
        return labelled(
            _VIEW.decode(row.view), {r.key: r.value for r in labels}, [group.name for group in groups]
        )

    def devices(self) -> list[Device]:
        """All devices by id."""
        labels: dict[str, dict[str, str]] = {}
        for row in self.connection.execute(select(t.labels)):
            labels.setdefault(row.device, {})[row.key] = row.value
        groups: dict[str, list[str]] = {}
        for row in self.connection.execute(select(t.groups)):
            groups.setdefault(row.device, []).append(row.name)
        rows = self.connection.execute(select(t.devices.c.view).order_by(t.devices.c.device))
        views = [_VIEW.decode(row.view) for row in rows]
        return [labelled(v, labels.get(v.id, {}), groups.get(v.id, [])) for v in views]

    def device_count(self) -> int:
        """How many are known."""
        return self.connection.execute(select(func.count()).select_from(t.devices)).scalar_one()

    def save_device(self, device: Device) -> None:
        """Writes the view; labels and groups are written by `save_labels`."""
        bare = replace(device, labels_own={}, groups=())
        self.put(
            t.devices,
            {
                "device": device.id,
                "online": device.online,
                "seen_at": device.seen_at or 0.0,
                "install_id": device.install_id,
                "view": json_text(bare),
            },
        )

    def save_labels(self, device: Device) -> None:
        """Writes the registry's labels and groups of a device."""
        self.connection.execute(delete(t.labels).where(t.labels.c.device == device.id))
        self.connection.execute(delete(t.groups).where(t.groups.c.device == device.id))
        for key, value in device.labels_own.items():
            self.put(t.labels, {"device": device.id, "key": key, "value": value})
        for name in device.groups:
            self.put(t.groups, {"device": device.id, "name": name})

    def forget_device(self, device: str) -> None:
        """Deletes everything about a device; unknown ones are ignored."""
        of_device = (t.devices, t.labels, t.groups, t.reports, t.report_marks, t.desired, t.rollbacks)
        for table in of_device:
            self.connection.execute(delete(table).where(table.c.device == device))

    def add_report(self, report: Report, now: float) -> bool:
        """Keeps a report and moves the mark of completeness; False if it was already there."""
        device, install_id, number = report.device, report.install_id, report.number
        mark, gap_since = self._report_mark(device, install_id)
        values = {
            "device": device,
            "install_id": install_id,
            "number": number,
            "order": report.order,
            "received_at": now,
            "doc": json_text(report),
        }
        if number <= mark or not self.put_new(t.reports, values):
            return False
        if gap_since is None:
            # Nothing lies beyond the mark: the usual case needs no look at the other reports.
            follows = number == mark + 1
            self._set_mark(device, install_id, number if follows else mark, None if follows else now)
            return True
        reached = self._reach(device, install_id, mark)
        beyond = self._highest(device, install_id) > reached
        since = (gap_since if reached == mark else now) if beyond else None
        self._set_mark(device, install_id, reached, since)
        return True

    def contradicts(self, report: Report) -> bool:
        """Whether another report of the same install has its number."""
        kept = self.connection.execute(
            select(t.reports.c.doc).where(
                self._of(report.device, report.install_id), t.reports.c.number == report.number
            )
        ).scalar_one_or_none()
        return kept is not None and kept != json_text(report)

    def contiguous(self, device: str, install_id: str) -> int:
        """Highest number up to which every report is here; 0 if none is."""
        return self._report_mark(device, install_id)[0]

    def skip_gaps(self, older_than: float) -> list[tuple[str, str, int]]:
        """Gives up on reports missing since before `older_than`: (device, install id, new mark)."""
        stuck = self.connection.execute(
            select(t.report_marks).where(t.report_marks.c.gap_since < older_than)
        ).all()
        skipped = []
        for row in stuck:
            after = self.connection.execute(
                select(func.min(t.reports.c.number)).where(
                    self._of(row.device, row.install_id), t.reports.c.number > row.contiguous
                )
            ).scalar_one()
            reached = self._reach(row.device, row.install_id, after - 1)
            beyond = self._highest(row.device, row.install_id) > reached
            self._set_mark(row.device, row.install_id, reached, row.gap_since if beyond else None)
            skipped.append((row.device, row.install_id, reached))
        return skipped

    def reports(self, device: str, limit: int) -> list[Report]:
        """The newest reports of a device, newest first."""
        rows = self.connection.execute(
            select(t.reports.c.doc)
            .where(t.reports.c.device == device)
            .order_by(t.reports.c.received_at.desc(), t.reports.c.number.desc())
            .limit(limit)
        )
        return [_REPORT.decode(row.doc) for row in rows]

    def reports_of_order(self, order: int) -> list[Report]:
        """All devices' reports about an order, oldest first."""
        rows = self.connection.execute(
            select(t.reports.c.doc)
            .where(t.reports.c.order == order)
            .order_by(t.reports.c.received_at, t.reports.c.device, t.reports.c.number)
        )
        return [_REPORT.decode(row.doc) for row in rows]

    def prune_reports(self, received_before: float) -> int:
        """Deletes reports older than that which their device was told to forget; how many."""
        acknowledged = (
            select(t.report_marks.c.contiguous)
            .where(
                t.report_marks.c.device == t.reports.c.device,
                t.report_marks.c.install_id == t.reports.c.install_id,
            )
            .scalar_subquery()
        )
        old = t.reports.c.received_at < received_before
        return self.connection.execute(
            delete(t.reports).where(old, t.reports.c.number <= acknowledged)
        ).rowcount

    def _report_mark(self, device: str, install_id: str) -> tuple[int, float | None]:
        row = self.connection.execute(_MARK_OF, {"of": device, "install": install_id}).first()
        return (0, None) if row is None else (row.contiguous, row.gap_since)

    def _reach(self, device: str, install_id: str, mark: int) -> int:
        """The end of the unbroken run of numbers that begins after `mark`."""
        numbers = self.connection.execute(
            select(t.reports.c.number)
            .where(self._of(device, install_id), t.reports.c.number > mark)
            .order_by(t.reports.c.number)
        ).scalars()
        for number in numbers:
            if number != mark + 1:
                break
            mark = number
        return mark

    def _highest(self, device: str, install_id: str) -> int:
        value = self.connection.execute(
            select(func.max(t.reports.c.number)).where(self._of(device, install_id))
        ).scalar_one()
        return value or 0

    def _set_mark(self, device: str, install_id: str, contiguous: int, gap_since: float | None) -> None:
        values = {
            "device": device,
            "install_id": install_id,
            "contiguous": contiguous,
            "gap_since": gap_since,
        }
        self.put(t.report_marks, values)

    @staticmethod
    def _of(device: str, install_id: str) -> ColumnElement[bool]:
        return and_(t.reports.c.device == device, t.reports.c.install_id == install_id)
