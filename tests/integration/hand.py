"""The registry's side of the conversation, spoken by hand.

For: tests and benchmarks of the agent alone against a real broker: publish a bundle, write a desired
document, send a command or junk, and watch what the device says.
Not for: testing the registry; nothing here keeps a truth.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from examples.demo.house import wait_for
from wire import bundle, chunks, codec, messages, topics, trust


class Hand:
    """A client that publishes as the registry and records what devices say.

    Args:
        port: the broker's, on this machine.
        root: of the topics.
        acknowledges: whether reports are acknowledged; not where a registry runs that does.
    """

    def __init__(self, port: int, root: str = topics.ROOT_DEFAULT, *, acknowledges: bool = True) -> None:
        self._acknowledges = acknowledges
        self.topics = topics.Topics(root)
        self.seen: list[tuple[str, bytes]] = []
        self.reported: dict[str, messages.Reported] = {}
        self.reported_so_far: list[messages.Reported] = []
        self.status: dict[str, messages.Status] = {}
        self.reports: list[messages.Report] = []
        self.replies: list[messages.Reply] = []
        self._ready = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        self._client.max_inflight_messages_set(100)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(20):
            raise RuntimeError(f"no broker answered on port {port}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:  # noqa: ANN401 - paho's callback
        client.subscribe(f"{self.topics.root}/device/+/up/#", qos=1)
        self._ready.set()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        payload = bytes(message.payload)
        self.seen.append((message.topic, payload))
        parsed = self.topics.parse(message.topic)
        if parsed is None or not payload:
            return
        channel, params = parsed
        if channel is topics.REPORTED:
            said = codec.decode(payload, messages.Reported, channel.size_bytes_max)
            self.reported[params["device"]] = said
            self.reported_so_far.append(said)
        elif channel is topics.STATUS:
            self.status[params["device"]] = codec.decode(payload, messages.Status, channel.size_bytes_max)
        elif channel is topics.REPORT:
            report = codec.decode(payload, messages.Report, channel.size_bytes_max)
            self.reports.append(report)
            if not self._acknowledges:
                return
            ack = messages.Ack(install_id=report.install_id, number=report.number)
            self._client.publish(self.topics.topic(topics.ACK, **params), codec.encode(ack), qos=1)
        elif channel is topics.REPLY:
            self.replies.append(codec.decode(payload, messages.Reply, channel.size_bytes_max))

    def raw(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Publishes and waits for the broker's acknowledgement."""
        self._client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(30)

    def throw(self, topic: str, payload: bytes) -> None:
        """Publishes and waits for nothing."""
        self._client.publish(topic, payload, qos=0)

    def settle(self) -> None:
        """Waits until the broker has all that was thrown."""
        self.raw(f"{self.topics.root}/nothing", b"")

    def publish_bundle(self, folder: Path, *, leave_out: int = 0) -> str:
        """Publishes blobs (all but the last `leave_out`), then the release; gives the digest."""
        raw = (folder / "manifest.json").read_bytes()
        manifest = codec.decode(raw, bundle.Manifest, bundle.MANIFEST_BYTES_MAX)
        blobs: dict[str, bytes] = {}
        for file in manifest.all_files():
            data, offset = (folder / file.path).read_bytes(), 0
            for chunk in file.chunks:
                blobs[chunk.sha256] = data[offset : offset + chunk.size_bytes]
                offset += chunk.size_bytes
        kept = list(blobs.items())[: len(blobs) - leave_out]
        waiting = [
            self._client.publish(self.topics.topic(topics.BLOB, digest=name), data, qos=1, retain=True)
            for name, data in kept
        ]
        for sent in waiting:
            sent.wait_for_publish(60)
        digest = chunks.digest(raw)
        self.raw(self.topics.topic(topics.RELEASE, digest=digest), trust.seal("release", raw), retain=True)
        return digest

    def desire(
        self,
        device: str,
        model: str,
        digest: str,
        order: int,
        release: str = "1",
        **more: Any,  # noqa: ANN401
    ) -> None:
        """Writes the device's desired document with this one model."""
        wanted = messages.DesiredModel(
            **{"order": order, "digest": digest, "release": release, "soak_s": 0.0, **more}
        )
        document = codec.encode(messages.Desired(device=device, models={model: wanted}))
        topic = self.topics.topic(topics.DESIRED, device=device)
        self.raw(topic, trust.seal("desired", document), retain=True)

    def rollback(self, device: str, model: str, digest: str, order: int, ident: str = "rb") -> None:
        """Sends the rollback command for one device."""
        command = messages.Command(
            id=ident,
            to=messages.ToDevice(device=device),
            action=messages.Rollback(model=model, from_=digest, order=order),
            reply_to=f"device/{{device}}/up/reply/{ident}",
        )
        topic = self.topics.topic(topics.COMMAND, device=device)
        self.raw(topic, trust.seal("command", codec.encode(command)))

    def state(self, device: str, model: str) -> messages.ModelState | None:
        """What the device last reported of a model."""
        said = self.reported.get(device)
        return None if said is None else said.models.get(model)

    def wait_state(
        self, device: str, model: str, what: Callable[[messages.ModelState], bool], timeout_s: float = 60.0
    ) -> messages.ModelState:
        """Waits until the reported state of a model satisfies `what`."""

        def look() -> messages.ModelState | None:
            state = self.state(device, model)
            return state if state is not None and what(state) else None

        return wait_for(f"{device}/{model}; last state: {self.state(device, model)}", look, timeout_s)

    def wait_ended(self, device: str, model: str, order: int, timeout_s: float = 60.0) -> messages.ModelState:
        """Waits until `order` has an outcome."""
        return self.wait_state(device, model, lambda s: s.order == order and s.outcome is not None, timeout_s)
