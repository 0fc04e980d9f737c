"""PURE. How long to wait before the next attempt to connect, so that a fleet does not come back as one.

For: one rule for a first connection, a lost one and a broker that stays away.
Not for: connecting (`agent.adapters.mqtt`).

A connection that was lost was most likely lost by everybody: a broker restarted, an uplink fell. Then
N agents that spread their first attempts evenly over `spread_s` arrive at N / spread_s a second. Those that
came too early must not become a crowd either: by waiting `spread_s` again, at least, each keeps its
place in the line, so the broker that comes back after any time meets the same rate. A first connection
waits for nobody, and exponential backoff with full jitter stands behind both.
"""

from __future__ import annotations

WAIT_S_MIN = 0.1


def wait_s(*, failures: int, lost: bool, spread_s: float, ceiling_s: float, unit: float) -> float:
    """Seconds until the next attempt.

    Args:
        failures: attempts in a row that failed, since the start or since the connection was lost.
        lost: whether a connection stood before.
        spread_s: over which a fleet comes back.
        ceiling_s: of the exponential backoff.
        unit: a random number in [0, 1).
    """
    backoff_s = unit * min(ceiling_s, 2.0 ** min(failures, 16))
    if lost and spread_s > 0:
        backoff_s = unit * spread_s if failures == 0 else max(spread_s, backoff_s)
    return max(WAIT_S_MIN, backoff_s)
