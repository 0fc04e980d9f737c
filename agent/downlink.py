"""PURE. What came from the fleet, from bytes to a believed and typed value, or refused by name.

For: the edge: size, envelope, authority, shape, and whether the message is for this device at all.
Not for: what follows from it (`agent.runner`, `agent.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Collection

from wire import codec, trust
from wire.bundle import MANIFEST_BYTES_MAX, Manifest, check
from wire.chunks import digest as sha256
from wire.errors import ContentError, TrustError
from wire.messages import Ack, Command, Desired, Status, ToAll, ToDevice, ToGroup
from wire.topics import (
    ACK,
    COMMAND,
    COMMAND_ALL,
    COMMAND_GROUP,
    DESIRED,
    RELEASE,
    REPLY,
    STATUS,
    Channel,
    Topics,
)


def desired(payload: bytes, device: str, policy: trust.Policy) -> Desired | None:
    """The desired document; None where it was cleared.

    Raises:
        WireError: not a desired document of this contract.
        TrustError: not shown to be the fleet's, or `wrong_device`.
    """
    if codec.is_cleared(payload):
        return None
    inner = trust.open_envelope(payload, "desired", policy, DESIRED.size_bytes_max)
    document = codec.decode(inner, Desired, DESIRED.size_bytes_max)
    if document.device != device:
        raise TrustError("wrong_device", f"the desired document is for {document.device}, this is {device}")
    return document


def command(payload: bytes, channel: Channel, policy: trust.Policy) -> Command:
    """A command.

    Raises:
        WireError: not a command of this contract.
        TrustError: not shown to be the fleet's.
    """
    inner = trust.open_envelope(payload, "command", policy, channel.size_bytes_max)
    return codec.decode(inner, Command, channel.size_bytes_max)


def check_target(
    asked: Command, channel: Channel, params: dict[str, str], device: str, groups: Collection[str]
) -> None:
    """Whether the command is for this device and came where it says it should.

    Raises:
        TrustError: `wrong_target`.
    """
    to = asked.to
    if isinstance(to, ToDevice):
        fits = channel is COMMAND and to.device == device and params.get("device") == device
    elif isinstance(to, ToGroup):
        fits = channel is COMMAND_GROUP and params.get("group") == to.group and to.group in groups
    else:
        fits = channel is COMMAND_ALL and isinstance(to, ToAll)
    if not fits:
        raise TrustError("wrong_target", f"command {asked.id} on {channel.name} is not for this device")


def reply_topic(asked: Command, device: str, topics: Topics) -> str | None:
    """Where the answer goes; None where none is asked for.

    Raises:
        TrustError: `wrong_reply_topic`: not this device's own reply topic.
    """
    if asked.reply_to is None:
        return None
    named = asked.reply_to.replace("{device}", device)
    found = topics.parse(f"{topics.root}/{named}")
    if found is None or found[0] is not REPLY or found[1]["device"] != device:
        raise TrustError("wrong_reply_topic", f"{asked.reply_to[:80]!r} is not this device's reply topic")
    return f"{topics.root}/{named}"


def ack(payload: bytes) -> Ack:
    """An acknowledgement.

    Raises:
        WireError: not one.
    """
    return codec.decode(payload, Ack, ACK.size_bytes_max)


def status(payload: bytes) -> Status:
    """This device's own retained status.

    Raises:
        WireError: not one.
    """
    return codec.decode(payload, Status, STATUS.size_bytes_max)


def release(payload: bytes, named: str, policy: trust.Policy) -> bytes:
    """The exact bytes of the manifest named by its digest.

    Raises:
        WireError: not a release of this contract.
        TrustError: not shown to be the fleet's.
        ContentError: `hash_mismatch`: another manifest.
    """
    inner = trust.open_envelope(payload, "release", policy, RELEASE.size_bytes_max)
    if sha256(inner) != named:
        raise ContentError("hash_mismatch", f"what lies at release/{named[:12]}... is another manifest")
    return inner


def manifest(data: bytes, model: str) -> Manifest:
    """What a manifest's bytes say, once it is coherent and for this model.

    Raises:
        WireError: not a manifest of this contract.
        ContentError: `manifest_incoherent` or `wrong_model`.
        LimitsError: its SLA cannot be judged.
    """
    parsed = check(codec.decode(data, Manifest, MANIFEST_BYTES_MAX))
    if parsed.model != model:
        raise ContentError("wrong_model", f"the release is for model {parsed.model}, ordered for {model}")
    return parsed
