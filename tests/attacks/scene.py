"""One enrolled device as a real process on a real Mosquitto that anybody may write to, and its honest fleet.

For: rows of the attack suite: `with scene.attack(CODE): ...` starts the attack, waits until the device has
reported CODE, and shows that the model that runs is the one that ran, byte by byte, that it still answers,
and that the device obeys the next honest order.
Not for: the registry's side (`tests.attacks.registry`).

Each scene has a topic tree of its own, so that scenes share one broker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
from paho.mqtt import client as mqtt

from agent.adapters.ed25519 import verify
from agent.slots import file_sha256
from agent.trust import Trust
from examples.demo.house import House, HouseError, wait_for
from tests.attacks.cargo import MODEL, Cargo, cargo
from tests.integration.bundles import FEATURES
from tests.integration.hand import Hand
from tests.keys import ORDER, RELEASE, ROOT_1, ROOT_2, ROOT_3, Key, root_of, root_sha256, sealed_root
from wire import messages, topics, trust
from wire.chunks import digest
from wire.codec import encode
from wire.errors import ShallopError
from wire.messages import Command, Desired, DesiredModel, ModelState, OrderEnded, OrderOutcome, PhaseChanged
from wire.roots import Root

DEVICE = "roof-1"
THIEF = Key("a thief's own")
NOISE = np.random.default_rng(5).standard_normal((4, FEATURES)).astype(np.float32)


class Standing(msgspec.Struct, frozen=True):
    """What an application has: where `current` leads, every file's hash, and the model's answers."""

    where: str
    files: dict[str, str]
    answers: list[list[float]]


class Ear(Hand):
    """A hand that lives with junk on the topics that it listens to."""

    def _on_message(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        with contextlib.suppress(ShallopError):
            super()._on_message(client, data, message)


class Scene:
    """A device and the hands at its broker.

    Args:
        folder: for state, logs and configuration.
        port: of a broker that anybody may write to.
        root: the root document that the device was enrolled with.
        config: more of the agent's configuration.
    """

    def __init__(self, folder: Path, port: int, root: Root | None = None, **config: Any) -> None:  # noqa: ANN401
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tree = f"attacks/{digest(str(folder).encode())[:12]}"
        self.client_id = self.tree[-12:]
        self.house = House(folder, broker_port=port)
        self.hand = Ear(port, self.tree)
        self.topics = self.hand.topics
        self.order_key, self.release_key = ORDER, RELEASE
        self.number = 0
        # Several scenes share the broker; with one client id for all they would throw each other out.
        broker = {"host": "127.0.0.1", "port": port, "root": self.tree, "client_id": self.client_id}
        self._config = {"broker": broker, **config}
        self._process_from = 0
        self.first = root or root_of()
        self.state = self.house.state(DEVICE)
        self.state.mkdir(parents=True)
        self.enrol()
        self.one, self.two = cargo("1", 1), cargo("2", 2)
        self.publish(self.one)
        self.publish(self.two)
        self.start()
        self.deploy(self.one)

    def close(self) -> None:
        """Ends every process."""
        self.hand.__exit__(None, None, None)
        self.house.stop()

    # --- the device

    def enrol(self) -> None:
        """Trusts the first root, as enrolment does."""
        signers = [key for key in (ROOT_1, ROOT_2, ROOT_3) if key.keyid in self.first.root.keyids]
        Trust(self.state, verify).pin(sealed_root(self.first, *signers), root_sha256(self.first))

    def start(self) -> None:
        """Starts the daemon, and waits until it is connected."""
        self._process_from, before = len(self.hand.reports), self._connection()
        self.house.agent(DEVICE, **self._config)
        wait_for("the device's connection", lambda: self._connection() > before, 20)

    def _connection(self) -> int:
        status = self.hand.status.get(DEVICE)
        return status.number if status is not None and status.online else 0

    def restart(self, between: Callable[[], object] = lambda: None) -> None:
        """A power cut, and what happens while it is off."""
        self.house.agents[DEVICE].kill()
        wait_for("the device's last will", lambda: not self._connection(), 20)
        between()
        self.start()

    @property
    def trusted(self) -> Trust:
        """What lies on the device's disk."""
        return Trust(self.state, verify)

    def model_state(self) -> ModelState | None:
        """What the device last reported."""
        return self.hand.state(DEVICE, MODEL)

    def standing(self) -> Standing:
        """What runs."""
        current = self.house.current(DEVICE, MODEL)
        assert current is not None
        files = {p.name: file_sha256(p) for p in sorted(current.rglob("*")) if p.is_file()}
        session = ort.InferenceSession(str(current / "model.onnx"), providers=["CPUExecutionProvider"])
        return Standing(current.name, files, session.run(None, {"x": NOISE})[0].tolist())

    @property
    def runs(self) -> Cargo:
        """Which of the two honest releases."""
        name = self.standing().where
        return next(one for one in (self.one, self.two) if name.startswith(one.digest))

    # --- what anybody at the broker may do

    def put(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        """Publishes."""
        self.hand.raw(topic, payload, retain=retain)

    def blobs(self, release: Cargo, leave_out: Sequence[str] = ()) -> None:
        """Publishes a release's blobs."""
        for name, blob in release.blobs.items():
            if name not in leave_out:
                self.put(self.topics.topic(topics.BLOB, digest=name), blob)

    def publish(self, release: Cargo, *keys: Key) -> None:
        """Publishes a release whole, signed by the fleet or by others."""
        self.blobs(release)
        self.envelope(release.digest, release.raw, *keys)

    def envelope(self, named: str, raw: bytes, *keys: Key) -> None:
        """Publishes the bytes of a manifest under any release's name."""
        sealed = trust.seal("release", raw, keys or (self.release_key,))
        self.put(self.topics.topic(topics.RELEASE, digest=named), sealed)

    def sealed(self, release: Cargo) -> bytes:
        """A release as the fleet publishes it."""
        return trust.seal("release", release.raw, [self.release_key])

    def document(self, entry: DesiredModel | None = None, model: str = MODEL, **fields: Any) -> Desired:  # noqa: ANN401
        """The fleet's next desired document; `fields` replace its own."""
        self.number += 1
        given: dict[str, Any] = {"device": DEVICE, "number": self.number, **fields}
        return Desired(models={} if entry is None else {model: entry}, **given)

    def entry(self, release: Cargo, order: int | None = None, **fields: Any) -> DesiredModel:  # noqa: ANN401
        """An order for a release, by default with the fleet's next number."""
        self.number += order is None
        given: dict[str, Any] = {"soak_s": 0.0, "deadline_s": 40.0, **fields}
        name = release.manifest.release
        return DesiredModel(
            order=self.number if order is None else order, digest=release.digest, release=name, **given
        )

    def desire(self, document: Desired, *keys: Key) -> bytes:
        """Publishes a desired document, signed by the fleet or by others."""
        payload = trust.seal("desired", encode(document), keys or (self.order_key,))
        self.put(self.topics.topic(topics.DESIRED, device=DEVICE), payload)
        return payload

    def order(self, release: Cargo, *keys: Key, **fields: Any) -> bytes:  # noqa: ANN401
        """Orders a release."""
        return self.desire(self.document(self.entry(release, **fields)), *keys)

    def command(self, action: Any, *keys: Key, to: Any = None, on: str | None = None, **fields: Any) -> bytes:  # noqa: ANN401
        """Sends a command, signed by the fleet or by others; gives its bytes."""
        given: dict[str, Any] = {"id": "attack", "reply_to": "device/{device}/up/reply/attack", **fields}
        command = Command(to=to or messages.ToDevice(device=DEVICE), action=action, **given)
        payload = trust.seal("command", encode(command), keys or (self.order_key,))
        self.put(on or self.topics.topic(topics.COMMAND, device=DEVICE), payload, retain=False)
        return payload

    def rotate(self, root: Root, *signers: Key) -> None:
        """Publishes a root document."""
        self.put(self.topics.topic(topics.ROOT, number=str(root.number)), sealed_root(root, *signers))

    # --- what must be so

    def told(self, since: int = 0) -> set[str]:
        """Codes of everything that the device refused or gave up, from that report on."""
        codes: set[str] = set()
        for report in self.hand.reports[since:]:
            reasons = [getattr(report.event, "reason", None)]
            reasons += [use.failure for use in getattr(report.event, "deltas", ())]
            codes |= {reason.code for reason in reasons if reason is not None}
        return codes

    def wait_ended(self, order: int) -> ModelState:
        """The model's state once an order has ended."""
        return self.hand.wait_ended(DEVICE, MODEL, order)

    def deploy(self, release: Cargo) -> None:
        """An honest order, carried out to the end."""
        self.order(release)
        order = self.number - 1
        state = self.wait_ended(order)
        assert state.outcome is OrderOutcome.ACTIVE, (state.reason, self.house.agents[DEVICE].tail())
        # Reports have a topic of their own, and come in the order of their numbers.
        wait_for(f"the last report on order {order}", lambda: self._reported_end(order), 20)
        assert self.standing().where.startswith(release.digest)

    def _reported_end(self, order: int) -> bool:
        return any(r.order == order and isinstance(r.event, OrderEnded) for r in self.hand.reports)

    def _numbers(self) -> dict[str, int]:
        """The highest number of the reports so far; what was not acknowledged is said again under its own."""
        return {r.install_id: r.number for r in sorted(self.hand.reports, key=lambda r: r.number)}

    def obeys(self) -> None:
        """The daemon answers a question and carries the next honest order out."""
        assert self.house.agents[DEVICE].alive(), self.house.agents[DEVICE].tail()
        self.deploy(self.two if self.runs is self.one else self.one)

    @contextlib.contextmanager
    def attack(self, *codes: str, begins: bool = False) -> Iterator[None]:
        """An attack in the block is stopped by these names, and nothing that runs is touched.

        The device tells of one kind of refusal on one topic every ten seconds, so a daemon that told of one
        of these already is started anew.

        Args:
            codes: all of them are told.
            begins: an order of the attack has authority and is begun; else no phase is entered by any.
        """
        if set(codes) & self.told(self._process_from):
            self.restart()
        before, since, numbers = self.standing(), len(self.hand.reports), self._numbers()
        yield
        self.stopped(since, *codes)
        assert self.standing() == before
        self.obeys()
        news = [r for r in self.hand.reports[since:] if r.number > numbers.get(r.install_id, 0)]
        begun = {r.order for r in news if isinstance(r.event, PhaseChanged)}
        assert begins or begun == {self.number - 1}, f"orders {begun} were begun"

    def stopped(self, since: int, *codes: str) -> None:
        """Waits until the device has told these names."""
        try:
            wait_for(", ".join(codes), lambda: set(codes) <= self.told(since), 20)
        except HouseError as error:
            said = self.house.agents[DEVICE].tail()
            raise AssertionError(f"{error}; told: {sorted(self.told(since))}; its log:\n{said}") from None
