"""Showing this device to Home Assistant, and taking that back.

For: publishing the discovery document on each connection and when a model comes or goes, the state document
now and then, and removing both where the option was switched off. `home_assistant.json` in the state
directory remembers what was shown, so that it can be removed by an agent that was started long after.
Not for: what the documents say (`agent.home_assistant`), or reading sensors (`agent.adapters.ambient`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.durable import write_file
from agent.errors import UNREADABLE
from agent.home_assistant import (
    Ambient,
    HomeAssistantConfig,
    Shown,
    discovery,
    discovery_topic,
    document,
    state_topic,
)
from agent.ports import Transport

log = logging.getLogger(__name__)

FILE = "home_assistant.json"
FILE_BYTES_MAX = 4 * 1024 * 1024
GONE_MAX = 2000
QOS = 1


class Remembered(Struct, frozen=True, kw_only=True, tag_field="kind", tag="agent-home-assistant"):
    """What was shown, and where.

    Attributes:
        discovery_topic: of the discovery document.
        state_topic: of the state document.
        components: platform by key, those of models that are gone included.
    """

    version: int = 1
    discovery_topic: str
    state_topic: str
    components: dict[str, str] = {}


# Made by the thread that imports this, as in `wire.codec`.
_REMEMBERED = msgspec.json.Decoder(Remembered)


def remembered(state_dir: Path) -> Remembered | None:
    """What an earlier agent here has shown; None where it has shown nothing."""
    try:
        with (state_dir / FILE).open("rb") as file:
            return _REMEMBERED.decode(file.read(FILE_BYTES_MAX))
    except (OSError, *UNREADABLE):
        return None


class HomeAssistantLink:
    """Any thread may call it."""

    def __init__(
        self, config: HomeAssistantConfig, shown: Shown, transport: Transport, state_dir: Path
    ) -> None:
        self._config, self._shown, self._transport = config, shown, transport
        self._path = state_dir / FILE
        self._before = remembered(state_dir)
        self._told: frozenset[str] | None = None
        self._removed = False
        self._ambient: Ambient | None = None
        self._lock = threading.Lock()

    @property
    def needed(self) -> bool:
        """Whether there is anything to show, or to take back."""
        return self._config.enabled or self._before is not None

    def greeted(self) -> None:
        """A new connection: what was said on an earlier one may never have arrived."""
        with self._lock:
            self._told, self._removed = None, False
            if not self._config.enabled and self._before is not None:
                self._removed = self._clear(self._before)
        if self._ambient is not None:
            self.tell(self._ambient)

    def reported(self, models: Iterable[str]) -> None:
        """The state of these models has just been reported."""
        names = frozenset(models)
        with self._lock:
            if not self._config.enabled or names == self._told:
                return
            if self._show(names):
                self._told = names

    def tell(self, ambient: Ambient) -> None:
        """Publishes the state document, or makes sure of a removal."""
        if self._config.enabled:
            self._ambient = ambient
            topic = state_topic(self._config.prefix, self._shown.device)
            self._transport.publish(topic, msgspec.json.encode(ambient), qos=0, retain=True)
            return
        with self._lock:
            # The connection outlived the removal for a while, so the broker has it.
            if self._removed and self._transport.connected:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
                self._before = None

    def _clear(self, what: Remembered) -> bool:
        """An empty retained payload makes the broker forget the document, and Home Assistant the device."""
        topics = (what.discovery_topic, what.state_topic)
        sent = [self._transport.publish(topic, b"", qos=QOS, retain=True) for topic in topics]
        return all(sent)

    def _show(self, names: frozenset[str]) -> bool:
        topic = discovery_topic(self._config.prefix, self._shown.device)
        components = discovery(self._config, self._shown, names)
        before = self._before
        if before is not None and before.discovery_topic != topic:
            self._clear(before)
            before = None
        gone = dict(list(before.components.items())[:GONE_MAX]) if before else {}
        kept = gone | {key: str(component["p"]) for key, component in components.items()}
        now = Remembered(
            discovery_topic=topic,
            state_topic=state_topic(self._config.prefix, self._shown.device),
            components=kept,
        )
        try:
            if now != self._before:
                write_file(self._path, msgspec.json.encode(now))
        except OSError as error:
            # What is not remembered could not be taken back.
            log.warning("cannot remember what Home Assistant is shown, so it is not shown: %s", error)
            return False
        self._before = now
        return self._transport.publish(topic, document(self._shown, components, gone), qos=QOS, retain=True)
