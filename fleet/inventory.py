"""PURE. Folds what devices say into one view per device.

For: `fold()`, which takes a view and one message with the time of its receipt and returns the view that
follows; who is online, what hardware it is, which model is in what state, and whether two machines
answer under one name.
Not for: storing views, acknowledging reports or deciding anything about them (see `fleet.rollout`).

The same message may come twice and messages of one install may come in any order: the view is the same.
Each kind of message carries a number that rises within an install, and a number that is not above the
last one changes nothing, not even the time of the last sign of life. Retained messages that a broker
hands out again are therefore no sign of life.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from wire.messages import (
    MODELS_MAX,
    Hardware,
    Identity,
    LiveMeasured,
    ModelState,
    OrderRefused,
    Reply,
    Report,
    Reported,
    Status,
)

INSTALLS_MAX = 8
"""Installs remembered for one device; the one not seen for longest is dropped first."""

MISSING_MAX = 4096
"""Digests that one device may ask for at a time."""

UpMessage = Status | Identity | Reported | Report | Reply


class LiveSeen(Struct, frozen=True, kw_only=True):
    """The newest live figures of one model.

    Attributes:
        number: of the report.
        digest: of the release that they are about.
        seen_at: when the report came, seconds on the registry's clock.
        figures: what the application claims.
    """

    number: int
    digest: str | None
    seen_at: float
    figures: LiveMeasured


class Install(Struct, frozen=True, kw_only=True):
    """What one state directory said, newest number of each kind.

    Attributes:
        status: of the newest connection; its will (`online` false) follows its birth under one number.
        identity: newest.
        reported: newest; the whole truth of the device's models.
        report_number: highest report seen; -1 before the first.
        reply_number: highest reply seen; -1 before the first.
        live: newest live figures by model.
        seen_at: when its last new message came, seconds on the registry's clock.
    """

    status: Status | None = None
    identity: Identity | None = None
    reported: Reported | None = None
    report_number: int = -1
    reply_number: int = -1
    live: Annotated[dict[str, LiveSeen], Meta(max_length=MODELS_MAX)] = {}
    seen_at: float


class Device(Struct, frozen=True, kw_only=True):
    """One device as the registry knows it.

    Attributes:
        id: of the device.
        labels_own: labels given by the registry's people; they override the agent's suggestions.
        groups: given by the registry's people.
        installs: by install id.
        install_id: of the install that speaks for the device now; None before the first message.
        speakers: per kind of message, the install of the newest one; how alternation is noticed.
        duplicate_identity: two machines answer under this id; stays until a person clears it.
        seen_at: when the last new message of any install came, seconds on the registry's clock;
            None before the first.
        order_highest: highest order number in anything the device ever said.
    """

    id: str
    labels_own: dict[str, str] = {}
    groups: Annotated[tuple[str, ...], Meta(max_length=64)] = ()
    installs: dict[str, Install] = {}
    install_id: str | None = None
    speakers: dict[str, str] = {}
    duplicate_identity: bool = False
    seen_at: float | None = None
    order_highest: int = 0

    @property
    def install(self) -> Install | None:
        """The install that speaks for the device now."""
        return None if self.install_id is None else self.installs.get(self.install_id)

    @property
    def online(self) -> bool:
        """Whether its newest connection stands, as far as the last will tells."""
        install = self.install
        return install is not None and install.status is not None and install.status.online

    @property
    def identity(self) -> Identity | None:
        """What the current install said it is; None is unknown."""
        install = self.install
        return None if install is None else install.identity

    @property
    def hardware(self) -> Hardware | None:
        """The machine as its agent found it; None is unknown."""
        identity = self.identity
        return None if identity is None else identity.hardware

    @property
    def labels(self) -> dict[str, str]:
        """The agent's suggestions, overridden by the registry's own labels."""
        identity = self.identity
        return {**({} if identity is None else identity.labels), **self.labels_own}

    @property
    def models(self) -> dict[str, ModelState]:
        """State of each model as the current install last reported it."""
        install = self.install
        return {} if install is None or install.reported is None else install.reported.models

    @property
    def live(self) -> dict[str, LiveSeen]:
        """Live figures of each model as the current install last reported them."""
        install = self.install
        return {} if install is None else install.live

    @property
    def missing(self) -> tuple[str, ...]:
        """Digests that the device needs and the broker does not hold: publish them again."""
        wanted = {digest for state in self.models.values() for digest in state.missing}
        return tuple(sorted(wanted))[:MISSING_MAX]

    def seen_within(self, seconds: float, now: float) -> bool:
        """Whether it is there: its connection stands, or it said something new `seconds` ago at most."""
        return self.online or (self.seen_at is not None and now - self.seen_at <= seconds)


def labelled(device: Device, labels: dict[str, str], groups: Iterable[str]) -> Device:
    """The device with the registry's own labels and groups replaced."""
    return replace(device, labels_own=dict(labels), groups=tuple(sorted(set(groups))))


def cleared_duplicate(device: Device) -> Device:
    """The device after a person has sorted out which machine carries its id."""
    return replace(device, duplicate_identity=False, speakers={})


def twinned(device: Device) -> Device:
    """The device once two machines are known to carry copies of its state directory, install id and all."""
    return replace(device, duplicate_identity=True)


def fold(device: Device, message: UpMessage, received_at: float) -> Device:
    """The device after `message`; the device itself if the message says nothing new.

    A message of a kind whose number is not above the newest one of its install is ignored, except that
    an order number in it counts: a restored registry must rise above all that was ever given. Alternation
    (install A, B, then something *new* of A on the same kind of message) marks a duplicate identity; a
    late last will is never taken for a sign of life of the older install.

    Args:
        device: the view so far.
        message: decoded, from this device's topic.
        received_at: seconds on the registry's clock; only differences matter.

    Raises:
        ValueError: the message is of another device; the caller routed it wrongly.
    """
    if message.device != device.id:
        raise ValueError(f"a message of {message.device} was folded into {device.id}")
    known = device.installs.get(message.install_id)
    install = _heard(known or Install(seen_at=received_at), message, received_at)
    order_highest = max(device.order_highest, _highest_order(message))
    if install is None:
        return _late(device, message, received_at, order_highest)
    if _is_will(message):
        speaks = device.install_id or message.install_id
        return replace(device, installs=_kept(device, message.install_id, install), install_id=speaks)
    kind = _kind(message)
    speaker = device.speakers.get(kind)
    spoke_before = known is not None and _newest(known, message) is not None
    returned = spoke_before and speaker not in {None, message.install_id}
    return replace(
        device,
        installs=_kept(device, message.install_id, install),
        install_id=_speaking(device, message),
        speakers={**device.speakers, kind: message.install_id},
        duplicate_identity=device.duplicate_identity or returned,
        seen_at=received_at if device.seen_at is None else max(device.seen_at, received_at),
        order_highest=order_highest,
    )


def _heard(install: Install, message: UpMessage, received_at: float) -> Install | None:
    """The install with the message taken in, or None if it is not new."""
    newest = _newest(install, message)
    if newest is not None and _rank(message) <= newest:
        return None
    seen = replace(install, seen_at=max(install.seen_at, received_at))
    match message:
        case Status():
            return replace(seen, status=message)
        case Identity():
            return replace(seen, identity=message)
        case Reported():
            return replace(seen, reported=message)
        case Report():
            return replace(_lived(seen, message, received_at), report_number=message.number)
        case Reply():
            return replace(seen, reply_number=message.number)


def _lived(install: Install, message: UpMessage, received_at: float) -> Install:
    """The install with a report's live figures, where it holds newer ones than are known."""
    if not isinstance(message, Report) or not isinstance(message.event, LiveMeasured) or not message.model:
        return install
    known = install.live.get(message.model)
    if known is not None and known.number >= message.number:
        return install
    seen = LiveSeen(number=message.number, digest=message.digest, seen_at=received_at, figures=message.event)
    live = {**install.live, message.model: seen}
    while len(live) > MODELS_MAX:
        del live[min(live, key=lambda model: live[model].number)]
    return replace(install, live=live)


def _late(device: Device, message: UpMessage, received_at: float, order_highest: int) -> Device:
    """A message that is not new is no sign of life; its live figures may still be their model's newest."""
    known = device.installs.get(message.install_id)
    if known is not None:
        install = _lived(known, message, received_at)
        if install is not known:
            device = replace(device, installs={**device.installs, message.install_id: install})
    return device if order_highest == device.order_highest else replace(device, order_highest=order_highest)


def _newest(install: Install, message: UpMessage) -> tuple[int, bool] | None:
    """Rank of the newest message of the same kind; None before the first."""
    if isinstance(message, Report):
        return (install.report_number, False) if install.report_number >= 0 else None
    if isinstance(message, Reply):
        return (install.reply_number, False) if install.reply_number >= 0 else None
    known: Status | Identity | Reported | None = getattr(install, _kind(message))
    return None if known is None else _rank(known)


def _rank(message: UpMessage) -> tuple[int, bool]:
    """Sorts the messages of one kind; within one connection the will comes after the birth."""
    return message.number, _is_will(message)


def _is_will(message: UpMessage) -> bool:
    return isinstance(message, Status) and not message.online


def _kind(message: UpMessage) -> str:
    return type(message).__name__.lower()


def _speaking(device: Device, message: UpMessage) -> str:
    """The install that speaks for the device from now on.

    A new connection decides. Until the first one is known, the newest message does. A retained report of
    a machine's former life may be read after its new birth, and must not bring the former life back.
    """
    if isinstance(message, Status) or device.install_id is None:
        return message.install_id
    current = device.install
    if current is not None and current.status is not None:
        return device.install_id
    return message.install_id


def _kept(device: Device, install_id: str, install: Install) -> dict[str, Install]:
    """All installs with this one renewed, the one unseen for longest dropped above the limit."""
    installs = {**device.installs, install_id: install}
    while len(installs) > INSTALLS_MAX:
        others = [key for key in installs if key not in {install_id, device.install_id}]
        del installs[min(others, key=lambda key: installs[key].seen_at)]
    return installs


def _highest_order(message: UpMessage) -> int:
    match message:
        case Reported():
            return max((max(s.order, s.order_highest) for s in message.models.values()), default=0)
        case Report():
            refused = message.event.order_highest if isinstance(message.event, OrderRefused) else 0
            return max(message.order, refused)
        case Reply():
            states = message.models.values()
            return max([message.order_highest, *(max(s.order, s.order_highest) for s in states)])
        case _:
            return 0
