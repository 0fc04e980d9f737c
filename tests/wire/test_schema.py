"""The generated schemas are in step with the types, valid, and describe the real payloads."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

import wire.schema
from tests.wire.samples import MANIFEST, MESSAGES
from wire import codec, messages, topics
from wire.bundle import Manifest
from wire.schema import render

FOLDER = Path(wire.schema.__file__).parent


@pytest.mark.parametrize("name", sorted(render()))
def test_the_file_is_in_step(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == render()[name], "run: python -m wire.schema"


def test_no_file_is_left_over() -> None:
    assert {p.name for p in FOLDER.glob("*.json")} == set(render())


@pytest.mark.parametrize("message", [*MESSAGES, MANIFEST], ids=lambda m: codec.kind_of(type(m)))
def test_a_real_payload_satisfies_its_schema(message: messages.Message | Manifest) -> None:
    schema = json.loads(render()[f"{codec.kind_of(type(message))}.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(codec.encode(message)), schema)


def test_a_wrong_payload_does_not() -> None:
    schema = json.loads(render()["ack.schema.json"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"kind": "ack", "version": 1, "install_id": "x", "number": 1}, schema)


def test_asyncapi_names_every_channel_with_its_qos() -> None:
    page = json.loads(render()["asyncapi.json"])
    assert set(page["channels"]) == {c.name for c in topics.CHANNELS}
    for channel in topics.CHANNELS:
        operation = page["operations"][f"{channel.sender}_publishes_{channel.name}"]
        assert operation["bindings"]["mqtt"] == {"qos": channel.qos, "retain": channel.retain}
