"""A rollback without the daemon: the same table, the same order of persist and act, no threads.

For: `shallop-agent rollback` on a machine whose daemon is stopped.
Not for: anything that needs a broker.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.deployment import Bounds, Deployment, Done, RollbackAsked
from agent.errors import StateError
from agent.lifecycle import step
from wire.messages import OrderRefused


def roll_back(
    d: Deployment,
    asked: RollbackAsked,
    switch: Callable[[Deployment], None],
    save: Callable[[Deployment], None],
    bounds: Bounds,
) -> Deployment:
    """Leaves the active release for the previous one.

    Args:
        d: as it was saved; what it has to report stays in it for the daemon.
        asked: which release to leave.
        switch: makes `current` what `restore` says.
        save: persists.
        bounds: the lifecycle's limits.

    Raises:
        StateError: with the refusal's code, such as `no_previous`.
        FinalError: the application's hook failed; `current` is the previous release by then.
    """
    after, work = step(d, asked, bounds)
    new = after.notices[len(d.notices) :]
    refusal = next((n.event for n in new if isinstance(n.event, OrderRefused)), None)
    if refusal is not None:
        raise StateError(refusal.reason.code, refusal.reason.detail)
    save(after)
    if work is None:
        return after
    switch(after)
    ended, _ = step(after, Done(serial=work.serial), bounds)
    save(ended)
    return ended
