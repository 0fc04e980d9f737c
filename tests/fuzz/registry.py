"""All targets, and the inputs that are kept in the repository.

For: one list, and what a run of each begins with.
Not for: what a target does.
"""

from __future__ import annotations

from tests.fuzz import (
    targets_converter,
    targets_fleet,
    targets_host,
    targets_machine,
    targets_models,
    targets_state,
    targets_wire,
    targets_worker,
    targets_yaml,
)
from tests.fuzz.corpus_files import kept
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for room in (
        targets_wire, targets_state, targets_worker, targets_yaml, targets_models, targets_converter,
        targets_machine, targets_fleet, targets_host,
    )
    for target in room.TARGETS
}  # fmt: skip


def saved(target: Target) -> list[bytes]:
    """What a run begins with: what the code writes today, what it wrote once, and what ever failed."""
    return [*target.seeds().values(), *kept(target.name).values()]
