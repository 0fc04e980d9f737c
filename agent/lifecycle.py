"""PURE. The lifecycle of a deployment: `step(deployment, event) -> (deployment, work)`.

For: deciding what follows from an event, as one table. A phase is one idempotent piece of work; entering
it means persist, then do. Crash recovery is the row of the event `Booted`: do the saved phase again.
Not for: doing the work (`agent.jobs`), keeping time or persisting (`agent.runner`).

`python -m agent.lifecycle` prints the table as a mermaid diagram; docs/lifecycle.md holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from agent import outcomes, repair, steering
from agent.deployment import (
    BEFORE_SWITCH,
    Admitted,
    Booted,
    Bounds,
    Cancelled,
    Damaged,
    DeadlinePassed,
    Deployment,
    Done,
    Event,
    Failed,
    Ordered,
    Progressed,
    RollbackAsked,
    Ticked,
    Trialed,
)
from agent.errors import LifecycleError
from agent.moves import Step
from wire.messages import Phase

IDLE, ADMITTING, FETCHING, VERIFYING = Phase.IDLE, Phase.ADMITTING, Phase.FETCHING, Phase.VERIFYING
TRIALING, SWITCHING = Phase.TRIALING, Phase.SWITCHING
SOAKING, REVERTING = Phase.SOAKING, Phase.REVERTING


def step(deployment: Deployment, event: Event, bounds: Bounds = Bounds()) -> Step:  # noqa: B008 - frozen
    """What `event` makes of `deployment`, and the piece of work that begins now, if one does.

    An outcome of a piece of work that is no longer the current one changes nothing.

    Raises:
        LifecycleError: `unexpected_event`: the table has no row for this phase and event.
    """
    serial = getattr(event, "serial", None)
    if serial is not None and serial != deployment.serial:
        return deployment, None
    row = TABLE.get((deployment.phase, type(event)))
    if row is None:
        raise LifecycleError(
            "unexpected_event", f"{type(event).__name__} in phase {deployment.phase} is not in the table"
        )
    after, work = row.handler(deployment, event, bounds)
    if after.phase is not deployment.phase and after.phase not in row.targets:
        raise LifecycleError(
            "undeclared_transition",
            f"{type(event).__name__} led from {deployment.phase} to {after.phase}, which its row lacks",
        )
    return after, work


# --- the table --------------------------------------------------------------------------------------


class Row(Struct, frozen=True):
    """What handles an event in a phase, and which other phases it may lead to."""

    handler: Callable[[Deployment, Any, Bounds], Step]
    targets: tuple[Phase, ...] = ()


# An order that ends may let a waiting one begin, which may already be what runs.
_OVER = (IDLE, ADMITTING)
_REFUSED = (FETCHING, IDLE)

TABLE: dict[tuple[Phase, type], Row] = {
    (IDLE, Ordered): Row(steering.ordered_idle, (ADMITTING,)),
    (IDLE, Cancelled): Row(steering.cancel_nothing),
    (IDLE, RollbackAsked): Row(steering.asked(steering.rollback_idle), (REVERTING,)),
    (IDLE, Booted): Row(outcomes.booted_idle),
    (IDLE, Damaged): Row(repair.damaged_idle, (REVERTING,)),
    **{(phase, Damaged): Row(repair.damaged_busy) for phase in Phase if phase is not IDLE},
    **{(phase, Ordered): Row(steering.ordered_before_switch, _OVER) for phase in BEFORE_SWITCH},
    **{(phase, Cancelled): Row(steering.cancel_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    **{
        (phase, RollbackAsked): Row(steering.asked(steering.rollback_before_switch), (REVERTING, IDLE))
        for phase in BEFORE_SWITCH
    },
    **{(phase, Booted): Row(outcomes.booted_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    **{(phase, Ticked): Row(outcomes.ticked) for phase in BEFORE_SWITCH},
    **{(phase, DeadlinePassed): Row(outcomes.late_before_switch, (IDLE,)) for phase in BEFORE_SWITCH},
    (ADMITTING, Progressed): Row(outcomes.progressed),
    (ADMITTING, Admitted): Row(outcomes.admitted, _REFUSED),
    (ADMITTING, Failed): Row(outcomes.failed_order, (IDLE,)),
    (FETCHING, Progressed): Row(outcomes.progressed),
    (FETCHING, Done): Row(outcomes.fetched, (VERIFYING,)),
    (FETCHING, Failed): Row(outcomes.failed_variant, _REFUSED),
    (VERIFYING, Done): Row(outcomes.verified, (TRIALING,)),
    (VERIFYING, Failed): Row(outcomes.failed_verifying, _REFUSED),
    (TRIALING, Trialed): Row(outcomes.trialed, (SWITCHING, *_REFUSED)),
    (TRIALING, Failed): Row(outcomes.failed_trialing, _REFUSED),
    (SWITCHING, Ordered): Row(steering.ordered_switching),
    (SWITCHING, Cancelled): Row(steering.cancel_switching),
    (SWITCHING, RollbackAsked): Row(steering.asked(steering.rollback_switching)),
    (SWITCHING, Done): Row(outcomes.switched, (SOAKING, REVERTING)),
    (SWITCHING, Failed): Row(outcomes.failed_switching, (REVERTING,)),
    (SWITCHING, Booted): Row(outcomes.booted_switching, (REVERTING,)),
    (SWITCHING, Ticked): Row(outcomes.ticked),
    (SWITCHING, DeadlinePassed): Row(outcomes.late_switching),
    (SOAKING, Ordered): Row(steering.ordered_soaking, (REVERTING,)),
    (SOAKING, Cancelled): Row(steering.cancel_soaking, (REVERTING,)),
    (SOAKING, RollbackAsked): Row(steering.asked(steering.rollback_soaking), (REVERTING,)),
    (SOAKING, Done): Row(outcomes.soaked, (IDLE,)),
    (SOAKING, Failed): Row(outcomes.failed_running, (REVERTING,)),
    (SOAKING, Booted): Row(outcomes.booted_soaking, (REVERTING,)),
    (SOAKING, Ticked): Row(outcomes.ticked_soaking),
    (SOAKING, DeadlinePassed): Row(outcomes.late_soaking, (REVERTING,)),
    (REVERTING, Ordered): Row(steering.ordered_reverting),
    (REVERTING, Cancelled): Row(steering.cancel_reverting),
    (REVERTING, RollbackAsked): Row(steering.asked(steering.rollback_reverting)),
    (REVERTING, Done): Row(outcomes.reverted, _OVER),
    (REVERTING, Failed): Row(outcomes.retry),
    (REVERTING, Booted): Row(outcomes.booted_reverting),
    (REVERTING, Ticked): Row(outcomes.ticked),
    (REVERTING, DeadlinePassed): Row(outcomes.late_reverting),
}


def diagram() -> str:
    """The table as a mermaid state diagram; events that lead the same way share an arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), row in TABLE.items():
        for target in row.targets:
            if target is not phase:
                arrows.setdefault((phase, target), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {IDLE}"]
    lines += [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(diagram())
