"""Bytes to messages: everything valid comes back, everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.keys import root_of
from tests.wire.samples import MANIFEST, MESSAGES
from wire import codec, messages, topics
from wire.bundle import Manifest
from wire.errors import WireError
from wire.roots import Root

CAP = 100_000
EVERY = (*MESSAGES, MANIFEST, root_of())


def by_kind(kind: str) -> messages.Message | Manifest | Root:
    return next(m for m in EVERY if codec.kind_of(type(m)) == kind)


@pytest.mark.parametrize("message", EVERY, ids=lambda m: codec.kind_of(type(m)))
def test_a_message_comes_back_equal(message: messages.Message | Manifest | Root) -> None:
    assert codec.decode(codec.encode(message), type(message), CAP) == message


@pytest.mark.parametrize("message", EVERY, ids=lambda m: codec.kind_of(type(m)))
def test_kind_and_version_stand_in_every_payload(message: messages.Message | Manifest | Root) -> None:
    payload = json.loads(codec.encode(message))
    assert payload["kind"] == codec.kind_of(type(message))
    assert payload["version"] == 1


@pytest.mark.parametrize("message", EVERY, ids=lambda m: codec.kind_of(type(m)))
def test_unknown_fields_are_ignored(message: messages.Message | Manifest | Root) -> None:
    payload = json.loads(codec.encode(message)) | {"from_the_future": {"x": 1}}
    assert codec.decode(json.dumps(payload).encode(), type(message), CAP) == message


@pytest.mark.parametrize("message", EVERY, ids=lambda m: codec.kind_of(type(m)))
def test_every_truncation_is_refused_by_name(message: messages.Message | Manifest | Root) -> None:
    whole = codec.encode(message)
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        with pytest.raises(WireError) as caught:
            codec.decode(whole[:length], type(message), CAP)
        assert caught.value.code == "malformed"


@pytest.mark.parametrize("message", EVERY, ids=lambda m: codec.kind_of(type(m)))
def test_a_newer_major_version_is_refused_by_name(message: messages.Message | Manifest | Root) -> None:
    payload = json.loads(codec.encode(message)) | {"version": 2}
    with pytest.raises(WireError, match="version 2") as caught:
        codec.decode(json.dumps(payload).encode(), type(message), CAP)
    assert caught.value.code == "unsupported_version"


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(WireError, match="'ack'") as caught:
        codec.decode(codec.encode(by_kind("ack")), messages.Status, CAP)
    assert caught.value.code == "unknown_kind"


def test_size_is_capped_before_parsing() -> None:
    with pytest.raises(WireError, match="at most 10") as caught:
        codec.decode(b"x" * 11, messages.Ack, 10)
    assert caught.value.code == "oversized"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "../etc"),
        ("device", "Roof"),
        ("device", "roof\n"),
        ("device", "a" * 64),
        ("install_id", "short"),
        ("number", -1),
        ("number", 2**60),
        ("number", "4"),
        ("online", "yes"),
    ],
)
def test_wrong_fields_are_refused_and_named(field: str, value: object) -> None:
    payload = json.loads(codec.encode(by_kind("status"))) | {field: value}
    with pytest.raises(WireError, match=field) as caught:
        codec.decode(json.dumps(payload).encode(), messages.Status, CAP)
    assert caught.value.code == "invalid_field"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_wire_error(data: bytes) -> None:
    for message in MESSAGES:
        with pytest.raises(WireError):
            codec.decode(data, type(message), CAP)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(EVERY), st.data())
def test_a_bent_field_is_decoded_or_refused_never_a_crash(
    message: messages.Message | Manifest | Root, data: st.DataObject
) -> None:
    payload: dict[str, Any] = json.loads(codec.encode(message))
    field = data.draw(st.sampled_from(sorted(payload)))
    payload[field] = data.draw(_JSON)
    raw = json.dumps(payload).encode()
    try:
        decoded = codec.decode(raw, type(message), CAP)
    except WireError as error:
        refused: WireError | None = error
    else:
        refused = None
    if refused is not None:
        assert refused.code in {"malformed", "invalid_field", "unknown_kind", "unsupported_version"}
    else:
        assert codec.decode(codec.encode(decoded), type(message), CAP) == decoded


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        codec.decode(b'{"kind":"ack","version":1,"x":' + b"[" * 50_000, messages.Ack, CAP)
    assert caught.value.code == "malformed"


def test_empty_is_cleared_and_nothing_else_is() -> None:
    assert codec.is_cleared(b"")
    assert not codec.is_cleared(b"{}")


def test_every_channel_with_a_kind_has_a_message_of_it() -> None:
    kinds = {codec.kind_of(type(m)) for m in EVERY}
    assert {c.kind for c in topics.CHANNELS if c.kind is not None} == kinds


def test_what_is_no_message_has_no_kind() -> None:
    with pytest.raises(TypeError, match="Envelope"):
        codec.kind_of(__import__("wire.trust", fromlist=["Envelope"]).Envelope)


def test_the_zeros_of_an_older_agent_decode_and_unknown_is_null() -> None:
    payload = json.loads(codec.encode(by_kind("identity")))
    payload |= {"disk_free_bytes": 0, "hardware": {"arch": "x86_64", "cores": 0, "memory_bytes": 0}}
    old = codec.decode(json.dumps(payload).encode(), messages.Identity, CAP)
    assert (old.hardware.cores, old.hardware.memory_bytes, old.disk_free_bytes) == (0, 0, 0)
    new = messages.Hardware(arch="x86_64")
    assert (new.cores, new.memory_bytes) == (None, None)
