"""Targets: what brokers and servers send the host, and agents; and models that are handed over.

For: packets of a broker through paho as the registry and the agent use it, where nothing may raise; a
registry's answers to its own client; a model's file as `inspect` describes it, before a runtime.
Not for: what messages mean (`tests.fuzz.targets_fleet`, `tests.fuzz.targets_wire`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from random import Random

import httpx
import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.mqtt import _Bounded
from converter.look import Job, Look
from fleet.adapters.client import Client, RefusedError
from fleet.adapters.mqtt_bounded import BoundedClient
from fleet.audit import follow, genesis
from fleet.views import BundleView
from tests.fuzz.corpus_files import kept
from tests.fuzz.mutate import bent_json, havoc
from tests.fuzz.places import filed
from tests.fuzz.target import Target

# --- packets


class _Wire:
    """A socket from which these bytes come, and into which anything goes."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def recv(self, size: int) -> bytes:
        found, self._left = bytes(self._left[:size]), self._left[size:]
        return found

    def send(self, data: bytes) -> int:
        return len(data)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing is held."""


def _packets(make: Callable[[], mqtt.Client], data: bytes) -> object:
    """What came through, until the client would end the connection."""
    client, heard, said = make(), [], list[int]()
    client.on_message = lambda _client, _data, message: heard.append((message._topic, len(message.payload)))
    client._sock = _Wire(data)  # type: ignore[assignment] # it has what paho calls
    while not said or said[-1] in {mqtt.MQTT_ERR_SUCCESS, mqtt.MQTT_ERR_AGAIN}:
        said.append(client._packet_read())
    client._sock = None
    return said, heard


def _registrys() -> mqtt.Client:
    return BoundedClient("registry")


def _agents() -> mqtt.Client:
    return _Bounded(
        CallbackAPIVersion.VERSION2, client_id="roof-17", clean_session=False, protocol=mqtt.MQTTv311
    )


_PIECES = (
    b"\x20\x02\x00\x00",
    b"\x30\xff\xff\xff\x7f",
    b"\xd0\x00",
    b"\x62\x02\x00\x09",
    b"\xff\xff\xff\xff\xff",
)


def _session() -> dict[str, bytes]:
    accepted, subscribed = b"\x20\x02\x00\x00", b"\x90\x03\x00\x01\x01"
    message = b"\x32\x0a\x00\x04mark\x00\x07hi" + b"\x31\x07\x00\x04mark!"
    rest = b"\x40\x02\x00\x01" + b"\xb0\x02\x00\x02" + b"\xd0\x00" + b"\x50\x02\x00\x03" + b"\x70\x02\x00\x03"
    return {"session": accepted + subscribed + message + rest, "refused": b"\x20\x02\x00\x05"}


def _bent_packets(random: Random, data: bytes) -> bytes:
    return havoc(random, data, _PIECES)


# --- answers


class _Registry(httpx.BaseTransport):
    """Answers with what it is given."""

    status, body = 200, b""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, stream=httpx.ByteStream(self.body), request=request)


@cache
def _asking() -> tuple[Client, _Registry]:
    client, registry = Client("http://127.0.0.1:1"), _Registry()
    client._http.close()
    client._http = httpx.Client(transport=registry, base_url="http://127.0.0.1:1")
    return client, registry


def _answered(status: int, ask: Callable[[Client], object], data: bytes) -> object:
    client, registry = _asking()
    registry.status, registry.body = status, data
    return ask(client)


def _refused(client: Client) -> str:
    try:
        return str(client.releases())
    except RefusedError as error:
        return f"{error.code} {error.status}"


def _first(client: Client) -> object:
    return next(client.audit(), None)


def _client(name: str, status: int, ask: Callable[[Client], object], honest: object) -> Target:
    return Target(
        name=f"fleet.client.{name}",
        run=partial(_answered, status, ask),
        seeds=lambda: {"honest": msgspec.json.encode(honest)},
        mutate=bent_json,
        weight=60,
    )


_ENTRY = follow(0, genesis("a" * 32), at=1.0, who="kim", what="x", subject="r1", why="", details={"a": 1})
_BUNDLE = BundleView(digest="ab" * 32, model="camera", release="v1", state="uploading", missing=["cd" * 32])

# --- models


def _described(name: str, data: bytes) -> object:
    return Look(Job(path=str(filed(name, data)), name=name)).described()


def _written() -> dict[str, bytes]:
    return {n: data for n, data in kept("models.tflite_walk").items() if n in {"images", "int8", "float32"}}


TARGETS: tuple[Target, ...] = (
    Target(
        name="fleet.broker_packets", run=partial(_packets, _registrys), seeds=_session, mutate=_bent_packets,
        memory_bytes_max=16 * 1024**2,
    ),
    Target(
        name="agent.broker_packets", run=partial(_packets, _agents), seeds=_session, mutate=_bent_packets,
        memory_bytes_max=16 * 1024**2,
    ),
    _client("devices", 200, Client.devices, []),
    _client("audit", 200, _first, [_ENTRY]),
    _client("bundle", 200, lambda client: client._ask("PUT", "/api/bundles", BundleView), _BUNDLE),
    _client("error", 409, _refused, {"error": {"code": "rollout_open", "message": "wait"}}),
    Target(
        name="converter.look_onnx",
        run=partial(_described, "look.onnx"),
        seeds=lambda: kept("models.onnx_walk"),
        mutate=havoc,
        weight=100,
    ),
    Target(
        name="converter.look_tflite",
        run=partial(_described, "look.tflite"),
        seeds=_written,
        mutate=havoc,
        weight=40,
    ),
)  # fmt: skip
