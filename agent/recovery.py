"""Starting from what the disk holds: the journal, or what the slots say when it is lost.

For: loading the journal, and rebuilding deployments from the symlinks when no copy of it can be used.
Not for: re-entering a phase (`agent.lifecycle`).
"""

from __future__ import annotations

import logging

from agent.deployment import Deployment
from agent.errors import StateError
from agent.journal import Journal, JournalFile
from agent.slots import Slots
from wire.messages import Reason

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
    named = [slots.pointed(model, link) for link in ("current", "previous")]
    active, previous = (slots.info(model, name) if name else None for name in named)
    highest = max((info.order for info in (active, previous) if info), default=0)
    return Deployment(
        model=model,
        active=active.slot if active else None,
        previous=previous.slot if previous else None,
        order=active.order if active else 0,
        order_highest=highest,
        reason=Reason(code="journal_lost", detail=why[:1000]),
    )
