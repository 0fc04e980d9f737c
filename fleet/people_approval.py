"""The second person's verbs: approve a held rollout, or reject it.

For: each verb as one transaction, with its entry in the audit log.
Not for: whose word counts (`fleet.approval`).
"""

from __future__ import annotations

from msgspec.structs import replace

from fleet.audit import By
from fleet.bars import require_not_barred
from fleet.current import Current
from fleet.facts import facts_of, read_rollout, with_rollout
from fleet.orders import Desk, give
from fleet.people import rollout_row
from fleet.ports import Clock, RegistryError, Store, Tx
from fleet.rollout import FailureAction, abort, approve
from fleet.rollout_types import Event
from fleet.views import RolloutView, rollout_view


class Approvals:
    """The verbs."""

    def __init__(self, store: Store, clock: Clock, desk: Current[Desk]) -> None:
        self._store = store
        self._clock = clock
        self._desk = desk

    def approve(self, rollout_id: str, by: By) -> RolloutView:
        """Lets a held rollout go beyond its first wave.

        Raises:
            RegistryError: `why_missing`.
            NotFoundError: `unknown_rollout`.
            ConflictError: `release_barred`.
            RolloutError: `illegal_transition`, `same_person` or `approver_unknown`.
        """
        _require_why(by)
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            require_not_barred(tx, row.release)
            rollout = approve(read_rollout(row), by.who, by.why)
            tx.save_rollout(with_rollout(row, rollout))
            self._record(tx, by, "rollout.approve", rollout_id, started_by=rollout.started_by)
            return rollout_view(rollout)

    def reject(self, rollout_id: str, action: FailureAction, by: By) -> RolloutView:
        """Ends a held rollout, with what `action` says for the devices that it reached.

        Whoever started it may reject it too: taking back needs no second person.

        Raises:
            RegistryError: `why_missing`.
            NotFoundError: `unknown_rollout`.
            RolloutError: `illegal_transition`.
        """
        _require_why(by)
        now = self._clock.now()
        with self._store.begin() as tx:
            row = rollout_row(tx, rollout_id)
            facts, said = facts_of(tx, row.model, row.release), f"{by.who}: {by.why}"
            rollout, orders = abort(read_rollout(row), action, facts, now, Event.REJECT, said)
            tx.save_rollout(replace(with_rollout(row, rollout), cleared=False))
            give(tx, self._desk.now, orders, rollout.id, now)
            taken_back = [order.device for order in orders]
            self._record(tx, by, "rollout.reject", rollout_id, action=action, taken_back=taken_back)
            return rollout_view(rollout)

    def _record(self, tx: Tx, by: By, what: str, subject: str, **details: object) -> None:
        now = self._clock.now()
        tx.audit(at=now, who=by.who, what=what, subject=subject, why=by.why, details=details)


def _require_why(by: By) -> None:
    if not by.why.strip():
        raise RegistryError("why_missing", "say why: --why 'the canary ran through the night'")
