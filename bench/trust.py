"""What trust costs a device: memory, start, verification, bytes of metadata; before and after in one run.

For: `python -m bench trust`. The same agent three times on one machine, measured side by side: believing
unsigned words, checking signatures, and enrolled (signatures, TLS 1.3, a certificate of its own); a rollout
of a real bundle to each, whose metadata is counted as the broker holds it.
Not for: asserting anything; the load stands beside the figures.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.adapters.ed25519 import verify
from agent.trust import Trust
from bench.agent_environment import Environment, made
from bench.processes import Idle, idle
from examples.demo.house import House, Process, wait_for
from fleet.adapters import keychain
from fleet.adapters.broker_tls import client_context
from tests.integration.bundles import make_bundle
from tests.integration.enrolled_fleet import EnrolledFleet
from wire import topics as wt
from wire import trust
from wire.enrolment import write_token
from wire.figures import percentile
from wire.topics import Topics

MODEL = "tiny"
TOPICS = Topics()

_VERIFYING = """
import json, sys, time
from agent.adapters.ed25519 import verify
from agent.trust import Trust
from pathlib import Path
from wire import trust
state, times = Path(sys.argv[1]), int(sys.argv[2])
policy = Trust(state, verify).policy(insecure_unsigned=False)
open_ = trust.Policy(insecure_unsigned=True)
told = {}
for kind, name in (("desired", "desired"), ("release", "release")):
    data = (state.parent / name).read_bytes()
    bare = trust.seal(kind, trust.open_envelope(data, kind, policy, 10**8))
    for way, envelope, using in (("signed", data, policy), ("unsigned", bare, open_)):
        took = []
        for _ in range(times):
            began = time.perf_counter()
            trust.open_envelope(envelope, kind, using, 10**8)
            took.append((time.perf_counter() - began) * 1000)
        took.sort()
        told[f"{kind}_{way}_ms_p50"] = round(took[len(took) // 2], 4)
print(json.dumps(told))
"""


class Length(Struct, frozen=True, kw_only=True):
    """How much is measured."""

    starts: int = 10
    warm_up_s: float = 20.0
    window_s: float = 60.0
    verifications: int = 2000


LENGTHS = {
    "quick": Length(starts=3, warm_up_s=3, window_s=4, verifications=200),
    "default": Length(),
    "full": Length(starts=30, warm_up_s=300, window_s=600),
}


class Way(Struct, frozen=True, kw_only=True):
    """One manner of trusting: a fleet of its own with one device.

    Attributes:
        name: of the manner.
        device: its id.
        agent: its process.
        state: its state directory.
        fleet: `shallop-fleet ARGUMENTS --json`, parsed.
        broker_port: on this machine.
        tls: with which a client is taken in by the broker.
        stop: ends all of it.
    """

    name: str
    device: str
    agent: Process
    state: Path
    fleet: Callable[..., Any]
    broker_port: int
    tls: ssl.SSLContext | None = None
    stop: Callable[[], None]


def trust_figures(length: Length, say: Callable[[str], None] = lambda _what: None) -> dict[str, Any]:
    """All figures of this module, as JSON-able values; `say` hears what is being done."""
    folder = Path(tempfile.mkdtemp(prefix="shallop-bench-"))
    load_before = os.getloadavg()[0]
    ways: list[Way] = []
    try:
        say("an environment like a device's")
        environment = made(folder)
        for name, build in WAYS.items():
            say(f"a house that is {name}")
            ways.append(build(folder / name, environment))
        metadata = {way.name: _updated(way, folder) for way in ways}
        say(f"{length.starts} starts of each, in turn")
        starts = _starts(ways, length.starts)
        say("verifications")
        verification = _verification(ways[1], environment, length.verifications)
        say(f"idling: {length.warm_up_s + length.window_s:.0f} s for each, in turn")
        resting = {way.name: _idle(way, length) for way in ways}
    finally:
        for way in ways:
            way.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "idle": {name: asdict(one) | {"memory_mib": asdict(one.memory_mib)} for name, one in resting.items()},
        "start": starts,
        "verification": verification,
        "metadata_bytes": metadata,
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
    }


# --- the ways -----------------------------------------------------------------------------------------


def _unsigned(folder: Path, environment: Environment) -> Way:
    house = House(folder)
    house.start()
    return _in_house(house, "unsigned", environment)


def _signed(folder: Path, environment: Environment) -> Way:
    house = House(folder)
    keys = folder / "registry" / "keys"
    house.fleet("keys", "init", "--keys", str(keys), "--root-keys", str(folder / "offline"))
    house.start()
    state = house.state("bench-signed")
    state.mkdir(parents=True)
    chain = keychain.load_chain(keys)
    Trust(state, verify).pin(chain.envelopes[-1], chain.last_sha256)
    return _in_house(house, "signed", environment)


def _in_house(house: House, name: str, environment: Environment) -> Way:
    device = f"bench-{name}"
    agent = house.agent(device, str(environment.agent), trial=_trial(house.folder, environment))
    way = Way(
        name=name, device=device, agent=agent, state=house.state(device), fleet=house.fleet,
        broker_port=house.broker_port, stop=house.stop,
    )  # fmt: skip
    _online(way)
    return way


def _enrolled(folder: Path, environment: Environment) -> Way:
    device, state = "bench-enrolled", folder / "devices" / "bench-enrolled"
    fleet = EnrolledFleet(folder)
    fleet.start()
    state.mkdir(parents=True)
    config = folder / "agent.yaml"
    config.write_bytes(
        msgspec.yaml.encode(
            {
                "state_dir": str(state),
                "trial": _trial(folder, environment),
                "transfer": {"reconnect_spread_s": 0.5},
            }
        )
    )
    token = write_token(fleet.token(device))
    command = [str(environment.agent), "-m", "agent.cli"]
    subprocess.run([*command, "enrol", token, "--config", config], check=True, capture_output=True)
    agent = Process(device, [*command, "run", "--config", str(config)], folder)
    agent.start()
    # In the device's name, whose session it takes for a moment: nobody else may read what it desires.
    looking, key = fleet.broker.device(device)

    def stop() -> None:
        agent.stop()
        fleet.stop()

    way = Way(
        name="enrolled", device=device, agent=agent, state=state, fleet=fleet.ask,
        broker_port=fleet.broker.port, tls=client_context(fleet.keys / "ca.pem", looking, key), stop=stop,
    )  # fmt: skip
    _online(way)
    return way


WAYS: Mapping[str, Callable[[Path, Environment], Way]] = {
    "unsigned": _unsigned, "signed": _signed, "enrolled": _enrolled,
}  # fmt: skip


def _trial(folder: Path, environment: Environment) -> dict[str, Any]:
    return {
        "python": str(environment.trial), "warmup": 1, "latency_runs": 10,
        "lock_file": str(folder / "trial.lock"),
    }  # fmt: skip


def _online(way: Way) -> None:
    def there() -> bool:
        return any(v["online"] and v["device"] == way.device for v in way.fleet("devices"))

    wait_for(f"{way.device} online", there)


# --- the figures ----------------------------------------------------------------------------------------


def _updated(way: Way, folder: Path) -> dict[str, int]:
    """Rolls a release out, and counts the metadata of it as the device gets it."""
    bundle = folder / "bundle"
    if not bundle.exists():
        make_bundle(bundle, ballast_bytes=1_000_000)
    digest = str(way.fleet("publish", str(bundle))["digest"])
    way.fleet("rollout", "start", f"{MODEL}@1", "--waves", "100%", "--soak", "0", "--wait")
    wanted = {
        "release": TOPICS.topic(wt.RELEASE, digest=digest),
        "desired": TOPICS.topic(wt.DESIRED, device=way.device),
    }
    payloads = {name: _retained(way, topic) for name, topic in wanted.items()}
    for name, payload in payloads.items():
        (way.state.parent / name).write_bytes(payload)
    sizes = {f"{name}_envelope": len(payload) for name, payload in payloads.items()}
    told = {name: len(trust.unwrap(payload, name, 10**8)[0]) for name, payload in payloads.items()}
    bare = {name: len(trust.seal(name, bytes(size))) for name, size in told.items()}
    return {
        **sizes,
        **{f"{name}_payload": size for name, size in told.items()},
        "signatures": sum(len(payloads[name]) - bare[name] for name in payloads),
        "per_update": sum(sizes.values()),
    }


def _retained(way: Way, topic: str) -> bytes:
    found: list[bytes] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
    client.on_message = lambda _client, _data, message: found.append(bytes(message.payload))
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    if way.tls is not None:
        client.tls_set_context(way.tls)
    client.connect("localhost", way.broker_port)
    client.loop_start()
    try:
        wait_for(f"what is retained on {topic}", lambda: found or None, 20)
    finally:
        client.disconnect()
        client.loop_stop()
    return found[0]


def _starts(ways: list[Way], times: int) -> dict[str, Any]:
    """From starting the program to its log's word that it is connected; in turn, so that load is shared."""
    took_ms: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(times):
        for way in ways:
            agent = way.agent
            agent.stop()
            at = agent.log.stat().st_size
            began = time.perf_counter()
            agent.start()
            while b"connected as" not in agent.log.read_bytes()[at:]:
                time.sleep(0.002)
            took_ms[way.name].append((time.perf_counter() - began) * 1000)
    p50 = {name: round(percentile(found, 0.5), 1) for name, found in took_ms.items()}
    first = p50[ways[0].name]
    return {"n": times, "ms_p50": p50, "ratio": {name: round(ms / first, 3) for name, ms in p50.items()}}


def _verification(way: Way, environment: Environment, times: int) -> dict[str, Any]:
    """In a process of the device's environment: opening real envelopes, signatures checked or not."""
    state = way.state
    said = subprocess.run(
        [environment.agent, "-c", _VERIFYING, state, str(times)], check=True, capture_output=True, text=True
    )
    return {"n": times, **json.loads(said.stdout)}


def _idle(way: Way, length: Length) -> Idle:
    return idle(way.agent.pid, length.warm_up_s, length.window_s)
