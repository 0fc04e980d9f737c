"""HTTP/1.1 by uvicorn with bounds for who says nothing: connections at one time, and the time for a head.

For: whoever reaches the API's address without a token: each connection holds a file descriptor, and without
any the registry opens neither its database nor a connection to the broker.
Not for: bodies, which are read only of who showed a token (`fleet.api.guard`, `fleet.api.exchange`).

Tried with uvicorn 0.54: `limit_concurrency` counts nobody who has not asked yet, and half a head was waited
for without end (ADR 0018).
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

CONNECTIONS_MAX = 512
"""Half of what a process may open where nobody raised it."""
HEAD_S_MAX = 10.0


class BoundedProtocol(H11Protocol):
    """One connection."""

    _looked: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refused unread where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone, or was cut off."""
        if self._looked is not None:
            self._looked.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._looked = self.loop.call_later(HEAD_S_MAX, self._look)

    def _look(self) -> None:
        """Cuts it off if no request came since the last look, and none is being answered."""
        cycle: Any = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if not answering and cycle is self._answered:
            self.transport.abort()
            return
        self._answered = cycle
        self._look_again()
