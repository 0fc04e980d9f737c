"""Targets: what crosses between the programs. The list of channels is walked, so that a new one is here too.

For: every channel's payload, bare and in its envelope; manifests with their rules; chunks; topics; root
documents with signatures that stand; the words of enrolment.
Not for: what follows from a message (`tests.fuzz.targets_fleet`, `tests.fuzz.targets_state`).
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from agent import believing, downlink
from agent.adapters import ed25519
from fleet.publish.content import read_manifest
from tests import keys
from tests.fuzz.mutate import bent_json, bytes_with
from tests.fuzz.target import Target
from tests.wire.samples import MANIFEST, MESSAGES
from tests.wire.test_enrolment import ENROL, ENROLLED, RENEWAL, TOKEN
from wire import codec, encodings, enrolment, topics, trust
from wire.bundle import DEFLATE, Chunk
from wire.errors import ContentError, TrustError
from wire.messages import Desired
from wire.topics import CHANNELS, Channel, Topics
from wire.trust import Policy

KINDS: dict[str, Any] = {codec.kind_of(kind): kind for kind in codec._DECODERS}
HONEST: tuple[Any, ...] = (*MESSAGES, MANIFEST, keys.root_of())
UNSIGNED = Policy(insecure_unsigned=True)
_DEVICE = "roof-17"
_CHUNK_BYTES = 64 * 1024
_HONEST = {"text": b"a" * _CHUNK_BYTES, "one": b"a", "some": hashlib.sha256(b"a").digest() * 40}
_CONTENTS = {len(content): hashlib.sha256(content).hexdigest() for content in _HONEST.values()}


def honest(kind: str | None) -> dict[str, bytes]:
    """Messages of that kind, as the program writes them."""
    found = [one for one in HONEST if codec.kind_of(type(one)) == kind]
    return {f"{kind}-{i}": codec.encode(one) for i, one in enumerate(found)}


def _decode(channel: Channel, data: bytes) -> object:
    assert channel.kind is not None
    return codec.decode(data, KINDS[channel.kind], channel.size_bytes_max)


def _payload(channel: Channel) -> Target:
    return Target(
        name=f"wire.{channel.name}",
        run=partial(_decode, channel),
        seeds=partial(honest, channel.kind),
        mutate=bent_json,
        again=codec.encode,
    )


def _opened(channel: Channel, data: bytes) -> object:
    assert channel.kind is not None
    try:
        trust.open_envelope(data, channel.kind, Policy(), channel.size_bytes_max)
    except TrustError as error:
        refused = error.code
    inner = trust.open_envelope(data, channel.kind, UNSIGNED, channel.size_bytes_max)
    return refused, codec.decode(inner, KINDS[channel.kind], channel.size_bytes_max)


def _sealed(channel: Channel) -> dict[str, bytes]:
    assert channel.kind is not None
    return {
        f"{name}-{how}": trust.seal(channel.kind, data, signers)
        for name, data in honest(channel.kind).items()
        for how, signers in (("bare", ()), ("signed", (keys.ORDER, keys.RELEASE)))
    }


def _enveloped(channel: Channel) -> Target:
    return Target(
        name=f"wire.envelope.{channel.name}",
        run=partial(_opened, channel),
        seeds=partial(_sealed, channel),
        mutate=bent_json,
        weight=40,
    )


def _of_channels() -> list[Target]:
    found = []
    for channel in CHANNELS:
        if channel.kind is None:
            found.append(_chunk(channel))
            continue
        found.append(_payload(channel))
        if channel.enveloped:
            found.append(_enveloped(channel))
    return found


# --- chunks


def _unpacked(data: bytes) -> object:
    """As a manifest that knows everything but the bytes would have it: bombs, ends and tails."""
    size = len(data)
    for announced in sorted({size or 1, _CHUNK_BYTES, 1, 32 * 40}):
        chunk = Chunk(
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=size or 1,
            encoding=DEFLATE,
            content_bytes=announced,
            content_sha256=_CONTENTS.get(announced, "ab" * 32),
        )
        try:
            found = encodings.decoded(data, chunk)
        except ContentError as error:
            last = error
        else:
            assert len(found) == announced
            return found
    raise last


def _chunk(channel: Channel) -> Target:
    def seeds() -> dict[str, bytes]:
        return {name: _deflated(content) for name, content in {**_HONEST, "bomb": bytes(2**24)}.items()}

    return Target(
        name=f"wire.{channel.name}",
        run=_unpacked,
        seeds=seeds,
        mutate=bytes_with(b"\x03\x00", b"\x00\x00\x00\xff\xff", b"\x01\x05\x00\xfa\xffaaaaa"),
        memory_bytes_max=2 * 1024**2,
    )


def _deflated(content: bytes) -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return pack.compress(content) + pack.flush()


# --- manifests


def _checked(data: bytes) -> object:
    manifest = downlink.manifest(data, MANIFEST.model)
    read_manifest(data)
    return manifest


def _manifest() -> Target:
    return Target(
        name="wire.manifest",
        run=_checked,
        seeds=partial(honest, "release"),
        mutate=bent_json,
        again=codec.encode,
    )


# --- what the agent makes of it


def _desired(data: bytes) -> object:
    return downlink.desired(trust.seal("desired", data), _DEVICE, UNSIGNED)


def _command(data: bytes) -> object:
    asked = downlink.command(trust.seal("command", data), topics.COMMAND, UNSIGNED)
    for channel in (topics.COMMAND, topics.COMMAND_GROUP, topics.COMMAND_ALL):
        try:
            downlink.check_target(asked, channel, {"device": _DEVICE, "group": "north"}, _DEVICE, {"north"})
        except TrustError:
            continue
    return asked, downlink.reply_topic(asked, _DEVICE, Topics())


def _rotation(data: bytes) -> object:
    """The root that `data` is, signed by everybody, after a root that is trusted."""
    everybody = (keys.ROOT_1, keys.ROOT_2, keys.ROOT_3, keys.ORDER, keys.RELEASE)
    envelope = trust.seal("root", data, everybody)
    state = believing.pinned(
        keys.sealed_root(keys.root_of()), keys.root_sha256(keys.root_of()), ed25519.verify
    )
    pinned = believing.pinned(envelope, hashlib.sha256(data).hexdigest(), ed25519.verify)
    return pinned, believing.rotated(state, envelope, ed25519.verify)


def _rotations() -> dict[str, bytes]:
    roots = {
        "next": keys.root_of(2),
        "two": keys.root_of(2, root=(keys.ROOT_1, keys.ROOT_2), threshold=2),
        "epoch": keys.root_of(2, order=(keys.ORDER_2,), epoch=1),
    }
    return {name: codec.encode(root) for name, root in roots.items()}


def _obeyed(data: bytes) -> object:
    document = codec.decode(data, Desired, topics.DESIRED.size_bytes_max)
    state = believing.TrustState(root=keys.root_of(), document=0)
    return believing.obeyed(state, document)


def _of_the_agent() -> list[Target]:
    return [
        Target(name="agent.desired", run=_desired, seeds=partial(honest, "desired"), mutate=bent_json),
        Target(name="agent.command", run=_command, seeds=partial(honest, "command"), mutate=bent_json),
        Target(name="agent.rotation", run=_rotation, seeds=_rotations, mutate=bent_json, weight=40),
        Target(name="agent.obeyed", run=_obeyed, seeds=partial(honest, "desired"), mutate=bent_json),
    ]


# --- topics


def _topic(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    tree = Topics()
    found = tree.parse(text)
    if found is not None:
        assert tree.topic(found[0], **found[1]) == text
    return found


def _topics() -> dict[str, bytes]:
    words = {"device": _DEVICE, "group": "north", "digest": "ab" * 32, "number": "12", "id": "c1"}
    tree = Topics()
    return {
        channel.name: tree.topic(channel, **{k: v for k,
        v in words.items() if f"{{{k}}}" in channel.pattern}).encode()
        for channel in CHANNELS
    }  # fmt: skip


# --- enrolment


def _word(name: str, read: Callable[[bytes], Any], seeds: Callable[[], dict[str, bytes]]) -> Target:
    return Target(name=f"enrolment.{name}", run=read, seeds=seeds, mutate=bent_json, again=enrolment.encode)


def _token(data: bytes) -> object:
    """The token whose packed bytes these are, with its checksum, so that its fields are read."""
    checked = data + hashlib.sha256(data).digest()[:4]
    text = base64.urlsafe_b64encode(checked).decode().rstrip("=")
    return enrolment.read_token("shallop1." + text)


def _pasted(data: bytes) -> object:
    return enrolment.read_token(data.decode("utf-8", "replace"))


def _of_enrolment() -> list[Target]:
    answers = {"enrolled": enrolment.encode(ENROLLED)}
    return [
        _word("enrol", enrolment.read_enrol, lambda: {"enrol": enrolment.encode(ENROL)}),
        _word("renewal", enrolment.read_renewal, lambda: {"renewal": enrolment.encode(RENEWAL)}),
        _word("answer", enrolment.read_answer, lambda: answers),
        Target(
            name="enrolment.token", run=_token, seeds=lambda: {"token": msgspec.msgpack.encode(TOKEN)},
            mutate=bytes_with(b"https://a:1", b"\xdd\xff\xff\xff\xff", b"\xc7"),
        ),
        Target(
            name="enrolment.pasted", run=_pasted, mutate=bytes_with(b"shallop1.", b" ", b"\n", b"="),
            seeds=lambda: {"token": enrolment.write_token(TOKEN).encode()}, weight=40,
        ),
    ]  # fmt: skip


TARGETS: tuple[Target, ...] = (
    *_of_channels(),
    _manifest(),
    *_of_the_agent(),
    *_of_enrolment(),
    Target(
        name="wire.topic", run=_topic, seeds=_topics, guided=True,
        mutate=bytes_with(b"/", b"+", b"#", b"\n", b"device", b"shallop/v1/"),
    ),
)  # fmt: skip
