"""Who waits for which content topic: chunks and manifests go straight to the job that asked.

For: subscribing to content for several jobs at once, and delivering each message to those that wait.
Not for: orders and commands, which go to the runner's own queue.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable

from agent.ports import Transport

Box = queue.Queue[tuple[str, bytes]]


class Exchange:
    """Reference-counted subscriptions. Any thread may call it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Box]] = {}
        self._qos: dict[str, int] = {}

    def watch(self, topics: Iterable[str], qos: int, box: Box) -> None:
        """Asks for topics; what is retained there comes again even if another job asked before."""
        asked = list(topics)
        with self._lock:
            for topic in asked:
                boxes = self._waiting.setdefault(topic, [])
                if box not in boxes:
                    boxes.append(box)
                self._qos[topic] = qos
        if asked:
            self._transport.subscribe([(topic, qos) for topic in asked])

    def unwatch(self, topics: Iterable[str], box: Box) -> None:
        """`box` waits for these no longer; topics that nobody waits for are unsubscribed."""
        idle: list[str] = []
        with self._lock:
            for topic in topics:
                boxes = self._waiting.get(topic, [])
                if box in boxes:
                    boxes.remove(box)
                    if not boxes:
                        del self._waiting[topic]
                        del self._qos[topic]
                        idle.append(topic)
        if idle:
            self._transport.unsubscribe(idle)

    def deliver(self, topic: str, payload: bytes) -> bool:
        """Gives a message to whoever waits; a full box loses it, and the stall timer asks again.

        Returns:
            Whether anybody waits for this topic.
        """
        with self._lock:
            boxes = list(self._waiting.get(topic, ()))
        for box in boxes:
            try:
                box.put_nowait((topic, payload))
            except queue.Full:
                continue
        return bool(boxes)

    def resubscribe(self) -> None:
        """After a new connection, whose broker may have forgotten everything."""
        with self._lock:
            topics = list(self._qos.items())
        if topics:
            self._transport.subscribe(topics)
