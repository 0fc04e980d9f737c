"""Who is refused, held against the broker's own record: after a restore one of the two forgot some.

For: taking up revocations that only the record has, and telling the broker again what only the database has;
once, when the registry starts.
Not for: deciding (`fleet.restored`), the record's file (`fleet.adapters.broker_files`), or telling the broker
(`fleet.doorman`).
"""

from __future__ import annotations

import logging

from fleet.audit import REGISTRY, By
from fleet.enrolling import Enrolling
from fleet.ports import Store, Tx
from fleet.restored import Owed, Refusals, owed

_LOG = logging.getLogger("shallop.fleet.refusals")

WHY = "the broker's record has it, and this database did not: it was revoked after the backup"


def hold_against(store: Store, enrolling: Enrolling, record: Refusals, now: float) -> Owed:
    """Makes both the union of both, in one transaction; the broker is told by the doorman.

    Args:
        store: the database.
        enrolling: shuts devices out.
        record: the broker's.
        now: seconds since 1970.
    """
    with store.begin() as tx:
        found = _owed(tx, record, now)
        for device in found.devices:
            enrolling.shut_out(tx, device, By(who=REGISTRY, why=WHY), record.devices[device])
        # After the devices, whose certificates ended with them.
        ended = tx.revoke_serials(found.serials, now, WHY)
        tx.uncut(found.serials_told, found.devices_told)
        if ended or found.record_forgot:
            details = {"certificates": ended, "told_again": found.devices_told}
            what = "device.refusals-taken-up"
            tx.audit(at=now, who=REGISTRY, what=what, subject="the broker", details=details)
    if found.database_forgot or found.record_forgot:
        _LOG.error(
            "database and broker's record differ: %d devices and %d certificates were revoked after this "
            "database's backup, and are again: %s; %d devices and %d certificates were missing in the "
            "record, and the broker is told again: %s",
            len(found.devices), len(found.serials), ", ".join(found.devices[:20]), len(found.devices_told),
            len(found.serials_told), ", ".join(found.devices_told[:20]),
        )  # fmt: skip
    return found


def _owed(tx: Tx, record: Refusals, now: float) -> Owed:
    held, revocations, lifted = tx.certificate_heads(), tx.revocations(), tx.lifted()
    ended = [one for one in held if one.revoked_at is not None]
    told = {name: row.at for name, row in revocations.items() if row.cut_at is not None}
    return owed(
        record,
        {*revocations, *lifted},
        Refusals(
            devices=told,
            serials=frozenset(one.serial for one in ended if one.cut_at is not None and one.not_after > now),
        ),
        [one.serial for one in held if one.revoked_at is None],
    )
