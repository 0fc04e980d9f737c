"""PURE. The topic tree, written once and mapped both ways.

For: every topic of the contract with its retain flag, QoS and size cap, which belong to the channel and
never to the call site.
Not for: payloads (`wire.messages`), or talking to a broker.

>>> topics = Topics()
>>> topics.topic(REPORTED, device="roof-17")
'shallop/v1/device/roof-17/up/reported'
>>> topics.parse("shallop/v1/device/roof-17/up/reported") == (REPORTED, {"device": "roof-17"})
True
>>> topics.filter(REPORTED)
'shallop/v1/device/+/up/reported'
>>> topics.parse("shallop/v2/device/roof-17/up/reported") is None
True
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from wire.bundle import MANIFEST_BYTES_MAX

ROOT_DEFAULT = "shallop/v1"

_WORD = {
    "device": r"[a-z0-9][a-z0-9-]{0,62}",
    "group": r"[a-z0-9][a-z0-9-]{0,62}",
    "digest": r"[0-9a-f]{64}",
    "number": r"[1-9][0-9]{0,8}",
    "id": r"[A-Za-z0-9_-]{1,64}",
}


class Channel(Struct, frozen=True, kw_only=True):
    """One kind of topic.

    Attributes:
        name: as the protocol's table calls it.
        pattern: below the root, parameters in braces.
        retain: whether the broker keeps the last message.
        qos: to publish with.
        qos_subscribe: to subscribe with.
        size_bytes_max: larger payloads are refused before they are parsed.
        sender: who may publish on it.
        kind: of the message inside (inside the envelope, where there is one); None for raw content.
        enveloped: whether the payload is a signed envelope.
    """

    name: str
    pattern: str
    retain: bool
    qos: Literal[0, 1]
    qos_subscribe: Literal[0, 1] = 1
    size_bytes_max: int
    sender: Literal["agent", "fleet"]
    kind: str | None
    enveloped: bool = False


_KIB = 1024
_ENVELOPED = MANIFEST_BYTES_MAX * 4 // 3 + 16 * _KIB

STATUS = Channel(
    name="status", pattern="device/{device}/up/status", retain=True, qos=1,
    size_bytes_max=4 * _KIB, sender="agent", kind="status",
)  # fmt: skip
IDENTITY = Channel(
    name="identity", pattern="device/{device}/up/identity", retain=True, qos=1,
    size_bytes_max=64 * _KIB, sender="agent", kind="identity",
)  # fmt: skip
REPORTED = Channel(
    name="reported", pattern="device/{device}/up/reported", retain=True, qos=1,
    size_bytes_max=256 * _KIB, sender="agent", kind="reported",
)  # fmt: skip
REPORT = Channel(
    name="report", pattern="device/{device}/up/report", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="agent", kind="report",
)  # fmt: skip
REPLY = Channel(
    name="reply", pattern="device/{device}/up/reply/{id}", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="agent", kind="reply",
)  # fmt: skip
RENEWAL = Channel(
    name="renewal", pattern="device/{device}/up/renewal", retain=False, qos=1,
    size_bytes_max=4 * _KIB, sender="agent", kind="renewal",
)  # fmt: skip
CERTIFICATE = Channel(
    name="certificate", pattern="device/{device}/down/certificate", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="fleet", kind="certificate", enveloped=True,
)  # fmt: skip
CERTIFICATE_REFUSED = Channel(
    name="certificate_refused", pattern="device/{device}/down/certificate-refused", retain=False, qos=1,
    size_bytes_max=4 * _KIB, sender="fleet", kind="certificate_refused",
)  # fmt: skip
DESIRED = Channel(
    name="desired", pattern="device/{device}/down/desired", retain=True, qos=1,
    size_bytes_max=512 * _KIB, sender="fleet", kind="desired", enveloped=True,
)  # fmt: skip
COMMAND = Channel(
    name="command", pattern="device/{device}/down/command", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="fleet", kind="command", enveloped=True,
)  # fmt: skip
COMMAND_GROUP = Channel(
    name="command_group", pattern="group/{group}/down/command", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="fleet", kind="command", enveloped=True,
)  # fmt: skip
COMMAND_ALL = Channel(
    name="command_all", pattern="all/down/command", retain=False, qos=1,
    size_bytes_max=64 * _KIB, sender="fleet", kind="command", enveloped=True,
)  # fmt: skip
RELEASE = Channel(
    name="release", pattern="release/{digest}", retain=True, qos=1,
    size_bytes_max=_ENVELOPED, sender="fleet", kind="release", enveloped=True,
)  # fmt: skip
BLOB = Channel(
    name="blob", pattern="blob/{digest}", retain=True, qos=1, qos_subscribe=0,
    size_bytes_max=256 * _KIB, sender="fleet", kind=None,
)  # fmt: skip
ACK = Channel(
    name="ack", pattern="device/{device}/down/ack", retain=False, qos=1,
    size_bytes_max=4 * _KIB, sender="fleet", kind="ack",
)  # fmt: skip
SEED = Channel(
    name="seed", pattern="system/seed", retain=True, qos=1,
    size_bytes_max=4 * _KIB, sender="fleet", kind="seed",
)  # fmt: skip
ROOT = Channel(
    name="root", pattern="root/{number}", retain=True, qos=1,
    size_bytes_max=128 * _KIB, sender="fleet", kind="root", enveloped=True,
)  # fmt: skip
BARS = Channel(
    name="bars", pattern="system/bars", retain=True, qos=1,
    size_bytes_max=128 * _KIB, sender="fleet", kind="bars", enveloped=True,
)  # fmt: skip

CHANNELS: tuple[Channel, ...] = (
    STATUS, IDENTITY, REPORTED, REPORT, REPLY, RENEWAL, DESIRED, COMMAND, COMMAND_GROUP, COMMAND_ALL,
    RELEASE, BLOB, ACK, SEED, ROOT, BARS, CERTIFICATE, CERTIFICATE_REFUSED,
)  # fmt: skip


def _matcher(channel: Channel) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", channel.pattern)
    text = "".join(f"(?P<{part}>{_WORD[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(text)


_MATCHERS = tuple((channel, _matcher(channel)) for channel in CHANNELS)


class Topics:
    """The tree below one broker root.

    Raises:
        ValueError: a root that is empty, absolute or holds a wildcard.
    """

    def __init__(self, root: str = ROOT_DEFAULT) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+){0,7}", root):
            raise ValueError(
                f"broker root {root!r} must be words of letters, digits, '.', '_' and '-' between slashes"
            )
        self.root = root

    def topic(self, channel: Channel, **params: str) -> str:
        """The topic of `channel` for these parameters.

        Raises:
            ValueError: a parameter that is missing or is not a word of its kind.
        """
        for name in re.findall(r"\{(\w+)\}", channel.pattern):
            value = params.get(name, "")
            if not re.fullmatch(_WORD[name], value):
                raise ValueError(f"{value!r} is no {name} for the topic {channel.pattern}")
        return f"{self.root}/{channel.pattern.format(**params)}"

    def filter(self, channel: Channel, **params: str) -> str:
        """A subscription to `channel`; a parameter left out matches anything."""
        names = re.findall(r"\{(\w+)\}", channel.pattern)
        given = {name: params.get(name, "+") for name in names}
        return f"{self.root}/{channel.pattern.format(**given)}"

    def parse(self, topic: str) -> tuple[Channel, dict[str, str]] | None:
        """Which channel a topic is and its parameters; None for a topic of somebody else."""
        prefix = f"{self.root}/"
        if not topic.startswith(prefix):
            return None
        rest = topic[len(prefix) :]
        for channel, matcher in _MATCHERS:
            found = matcher.fullmatch(rest)
            if found:
                return channel, found.groupdict()
        return None
