"""Starting from what the disk holds: the journal, or what the slots say when it is lost.

For: loading the journal, and rebuilding deployments from the symlinks when no copy of it can be used.
Not for: re-entering a phase (`agent.lifecycle`).
"""

from __future__ import annotations

import logging

from agent.deployment import Deployment
from agent.errors import StateError
from agent.installed import damage
from agent.journal import Journal, JournalFile
from agent.slots import Slots
from wire.messages import Reason, Slot

log = logging.getLogger(__name__)


def load(journal: JournalFile, slots: Slots) -> Journal:
    """The saved state.

    A lost journal never means a new device: what `current` and `previous` point to is taken as it is,
    with the highest order number that any release on the disk carries, and the reason `journal_lost`
    stands in the reported state until an order above that number comes.

    Raises:
        StateError: `journal_version`: a newer program wrote it.
    """
    try:
        found = journal.load()
    except StateError as error:
        if error.code != "journal_lost":
            raise
        log.error("%s; rebuilding from the slots", error)  # noqa: TRY400 - the message says all
        return Journal(models={name: _from_slots(name, slots, str(error)) for name in slots.models()})
    for note in journal.notes:
        log.error("the copy of the journal is used: %s", note)
    if found is not None:
        return found
    standing = {name: d for name in slots.models() if (d := _from_slots(name, slots, "no journal")).active}
    if standing:
        log.error("there is no journal, but releases are installed; rebuilding from the slots")
    return Journal(models=standing)


def _from_slots(model: str, slots: Slots, why: str) -> Deployment:
    """What the links name; the release before, where only that one is whole."""
    active, previous = (_named(model, slots, link) for link in ("current", "previous"))
    highest = max((slot.order for slot in (active, previous) if slot), default=0)
    lost = active is None or not _whole(model, slots, active)
    if lost and previous is not None and _whole(model, slots, previous):
        log.error("%s: the active release is damaged, the one before is taken", model)
        active, previous = previous, None
    return Deployment(
        model=model,
        active=active,
        previous=previous,
        order=active.order if active else 0,
        order_highest=highest,
        reason=Reason(code="journal_lost", detail=why[:1000]),
    )


def _named(model: str, slots: Slots, link: str) -> Slot | None:
    name = slots.pointed(model, link)
    return slots.slot(model, name) if name else None


def _whole(model: str, slots: Slots, slot: Slot) -> bool:
    return damage(slots.directory(model, slot), slot) is None
