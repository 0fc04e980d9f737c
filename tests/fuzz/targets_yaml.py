"""Targets: YAML that a person, or somebody for them, wrote.

For: the agent's and the registry's configuration, the SLA, the gate, and a data set's description.
Not for: target profiles, which come with the program and are read from nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent import config as agent_config
from converter import dataset, inputs
from fleet import config as fleet_config
from fleet.gate_limits import parse_gate
from tests.fuzz.mutate import text_of
from tests.fuzz.places import filed
from tests.fuzz.target import Target
from wire.sla import parse_limits

ROOT = Path(__file__).parent.parent.parent

WORDS = (
    b"!!bool maybe", b"!!int ''", b"!!float ''", b"!!timestamp x", b"!!binary =", b"!!set {a}",
    b"!!omap [a: 1]",
    b"!!python/object:os.system x", b"!!null x", b"2026-13-45", b"2026-11-21", b"0b", b"0x", b"1:90:3",
    b"-.inf",
    b".nan", b"1_", b"&a", b"*a", b"<<: *a", b"[*a, *a]", b"&a [*a]", b"? [a]", b"? {a: 1}", b"- -", b"|",
    b">", b"%YAML 9.9",
    b"---", b"...", b"\xef\xbb\xbf", b"\xff\xfe", b"{a: 1, a: 2}", b"? : :", b"'", b'"', b"\\", b"\t", b"#",
    b"@", b"`",
    b"9" * 5000, b"0o9", b"1e999", b"y", b"off", b"~", b"[" * 2000, b"{a: " * 2000, b"- " * 2000,
    b"? " * 1000,
    b"\xc2\x85", b"\xe2\x80\xa8", b"\x00", b"\x07", b"!<tag:yaml.org,2002:int> x", b"=",
)  # fmt: skip

_AGENT = b"""device: roof-17
state_dir: /var/lib/shallop
broker: {host: broker.example, port: 8883, root: shallop/v1, tls: {}}
limits:
  window_chunks_max: 16
transfer:
  metered_hours: ["07:00-22:00"]
admission: {battery_percent_min: 40, temperature_c_max: 75, window: ["02:00-05:00"]}
trial: &trial {threads: 2, warmup: 3}
labels: {site: north}
hooks:
  fashion: {unit: camera.service, activate_unit: reload, health: [/bin/true]}
soak: {restarts_max: 1}
live: {n_min: 100}
"""
_FLEET = b"""listen: 127.0.0.1:8470
broker: mqtt://127.0.0.1:1883
root: shallop/v1
database: postgresql+psycopg://shallop@db/shallop
insecure_unsigned: true
tick_s: 1.0
deltas: on
"""
_SLA = b"""accuracy: {min_fraction_of_baseline: 0.99}
agreement: {min: 0.97}
latency_ms_p95_max: 30
size_bytes_max: 8000000
memory_bytes_max: {max: 200000000, if_unmeasured: accept}
"""
_GATE = b"""min_fraction: 0.9
failures_max: 0
latency_ratio_max: 1.2
silence: {after_s: 600}
proofs: {success_rate: 0.9}
"""
_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b", ".join([b"*%c" % (96 + i)] * 9)) for i in range(1, 9)
)
_MERGE = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {<<: [*%c, *%c]}\n" % (97 + i, 97 + i, 96 + i, 96 + i) for i in range(1, 26)
)


def _agent(data: bytes) -> object:
    return agent_config.load(filed("agent.yaml", data))


def _fleet(data: bytes) -> object:
    return fleet_config.load(filed("fleet.yaml", data), {})


def _gate(data: bytes) -> object:
    return parse_gate(fleet_config.read_mapping(filed("gate.yaml", data)))


def _sla(data: bytes) -> object:
    limits, text = inputs.read_sla(filed("sla.yaml", data))
    parse_limits({})
    return limits, text


def _dataset(data: bytes) -> object:
    return dataset.read_description(filed("dataset.yaml", data))


def _seeds(honest: bytes) -> Callable[[], dict[str, bytes]]:
    return lambda: {"honest": honest, "empty": b"", "laughs": _BOMB, "merges": _MERGE}


def _target(name: str, run: Callable[[bytes], object], honest: bytes) -> Target:
    return Target(
        name=f"yaml.{name}", run=run, seeds=_seeds(honest), mutate=text_of(*WORDS), weight=30
    )  # fmt: skip


TARGETS: tuple[Target, ...] = (
    _target("agent", _agent, _AGENT),
    _target("fleet", _fleet, _FLEET),
    _target("gate", _gate, _GATE),
    _target("sla", _sla, _SLA),
    _target("dataset", _dataset, (ROOT / "examples/fashion/dataset.yaml").read_bytes()),
)
