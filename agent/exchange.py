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
        self._size_max: dict[str, int] = {}

    def watch(self, topics: Iterable[str], qos: int, box: Box, size_bytes_max: int) -> None:
        """Asks for topics; what is retained there comes again even if another job asked before.

        Args:
            topics: exact names.
            qos: to subscribe with.
            box: that gets what comes.
            size_bytes_max: of what is asked for; of a larger message only so much and one byte is kept, so
                that a broker full of junk does not fill this device's memory.
        """
        asked = list(topics)
        with self._lock:
            for topic in asked:
                boxes = self._waiting.setdefault(topic, [])
                if box not in boxes:
                    boxes.append(box)
                self._qos[topic] = qos
                self._size_max[topic] = max(size_bytes_max, self._size_max.get(topic, 0))
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
                        del self._qos[topic], self._size_max[topic]
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
            kept = payload[: self._size_max.get(topic, 0) + 1]
        for box in boxes:
            try:
                box.put_nowait((topic, kept))
            except queue.Full:
                continue
        return bool(boxes)

    def resubscribe(self) -> None:
        """After a new connection, whose broker may have forgotten everything."""
        with self._lock:
            topics = list(self._qos.items())
        if topics:
            self._transport.subscribe(topics)
