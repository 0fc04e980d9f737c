"""PURE. What Home Assistant is told about this device by MQTT discovery.

For: one retained discovery document a device (`PREFIX/device/shallop-ID/config`; Home Assistant 2024.12 and
newer), whose entities read our own retained status and reported documents by templates, and one small state
document for what those do not hold. A figure that was not measured renders as `None`, which Home Assistant
shows as unknown. Documentation: https://www.home-assistant.io/integrations/mqtt/#discovery-messages.
Not for: sending anything (`agent.home_assistant_link`), or commands: Home Assistant only looks on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from wire.messages import Phase
from wire.topics import REPORTED, STATUS, Topics

Entity = dict[str, object]


class HomeAssistantConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration's section `home_assistant`.

    Attributes:
        enabled: whether this device shows itself; switched off again, it takes back what it had shown.
        prefix: Home Assistant's own discovery prefix.
        interval_s: between two readings of temperature, throttling, power and free disk.
    """

    enabled: bool = False
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,63}(/[A-Za-z0-9_-]{1,63}){0,3}(?!\n)$")] = (
        "homeassistant"
    )
    interval_s: Annotated[float, Meta(ge=10.0, le=86400.0)] = 60.0


class Shown(Struct, frozen=True, kw_only=True):
    """Who is shown.

    Attributes:
        device: its id.
        agent_version: of this program.
        board: its name, or "unknown".
        topics: of our own documents.
    """

    device: str
    agent_version: str
    board: str
    topics: Topics


class Ambient(Struct, frozen=True, kw_only=True):
    """The state document; None is unknown."""

    temperature_c: float | None = None
    throttled: bool | None = None
    power_w: float | None = None
    disk_free_bytes: int | None = None


def discovery_topic(prefix: str, device: str) -> str:
    """Where the discovery document goes.

    >>> discovery_topic("homeassistant", "roof-17")
    'homeassistant/device/shallop-roof-17/config'
    """
    return f"{prefix}/device/shallop-{device}/config"


def state_topic(prefix: str, device: str) -> str:
    """Where the state document goes: beside it, so that one line of an access list allows both."""
    return f"{prefix}/device/shallop-{device}/state"


def discovery(config: HomeAssistantConfig, shown: Shown, models: Iterable[str]) -> dict[str, Entity]:
    """The components of the discovery document, by their key.

    Args:
        config: prefix and interval.
        shown: who.
        models: names of the models on the device.
    """
    found = _device_entities(config, shown)
    for model in sorted(models):
        found |= _model_entities(shown, model)
    return found


def document(shown: Shown, components: Mapping[str, Entity], gone: Mapping[str, str]) -> bytes:
    """The discovery document.

    Args:
        shown: who.
        components: what there is.
        gone: platform by key of what was shown once; a component with a platform alone removes itself.
    """
    stubs = {key: {"p": platform} for key, platform in sorted(gone.items()) if key not in components}
    device: Entity = {
        "ids": [f"shallop_{shown.device}"],
        "name": shown.device,
        "mf": "Shallop",
        "sw": shown.agent_version,
    }
    if shown.board != "unknown":
        device["mdl"] = shown.board
    availability: Entity = {
        "topic": shown.topics.topic(STATUS, device=shown.device),
        "value_template": "{{ 'online' if value_json.online else 'offline' }}",
    }
    whole: Entity = {
        "dev": device,
        "o": {"name": "shallop-agent", "sw": shown.agent_version},
        "availability": [availability],
        "cmps": {**components, **stubs},
    }
    return msgspec.json.encode(whole, order="sorted")


# --- entities ---------------------------------------------------------------------------------------


def _device_entities(config: HomeAssistantConfig, shown: Shown) -> dict[str, Entity]:
    shared: Entity = {
        "state_topic": state_topic(config.prefix, shown.device),
        # Readings that no longer come are unknown, however fresh they look.
        "expire_after": int(3 * config.interval_s),
        "entity_category": "diagnostic",
    }
    throttled = "{{ 'None' if value_json.throttled is none else 'ON' if value_json.throttled else 'OFF' }}"
    kinds: dict[str, Entity] = {
        "temperature": {
            "name": "Temperature", "device_class": "temperature", "unit_of_measurement": "°C",
            "state_class": "measurement", "suggested_display_precision": 1,
            "value_template": "{{ value_json.temperature_c }}",
        },
        "power": {
            "name": "Power", "device_class": "power", "unit_of_measurement": "W",
            "state_class": "measurement", "suggested_display_precision": 2,
            "value_template": "{{ value_json.power_w }}",
        },
        "disk_free": {
            "name": "Free disk", "device_class": "data_size", "unit_of_measurement": "B",
            "state_class": "measurement", "value_template": "{{ value_json.disk_free_bytes }}",
        },
        "throttled": {
            "p": "binary_sensor", "name": "Throttled", "device_class": "problem", "value_template": throttled,
        },
    }  # fmt: skip
    return {
        key: {"p": "sensor", **shared, **kind, "unique_id": _unique(shown, key)}
        for key, kind in kinds.items()
    }


_FIGURES = (
    ("latency_p50", "latency p50", "(t.get('latency') or {}).get('ms_p50')", "ms", "duration", 2),
    ("latency_p95", "latency p95", "(t.get('latency') or {}).get('ms_p95')", "ms", "duration", 2),
    # The metric is the release's own: a fraction, an error, a score. It has no unit that is always right.
    ("accuracy", "accuracy", "(t.get('accuracy') or {}).get('value')", None, None, 4),
    ("temperature", "temperature in the trial", "t.get('temperature_c_after')", "°C", "temperature", 1),
    ("power", "power in the trial", "t.get('power_watts_load')", "W", "power", 2),
    # Home Assistant's device class `energy` is for meters that count up.
    ("energy", "energy per inference", "e.get('value')", "mJ", None, 2),
)  # fmt: skip
"""Key, name, expression over the trial's result `t` and its energy `e`, unit, device class, decimals."""


def _model_entities(shown: Shown, model: str) -> dict[str, Entity]:
    topic = shown.topics.topic(REPORTED, device=shown.device)
    # Models' names hold nothing that could end this string (wire.types.ModelName).
    state = f"{{% set m = value_json.models.get('{model}', {{}}) %}}"
    active = "{% set a = m.get('active') or {} %}"
    # A trial's figures are those of what runs only where its order ended with that very variant active.
    trial = (
        "{% set r = (m.get('trial') or {}).get('result') or {} %}"
        "{% set t = r if m.get('outcome') == 'active' and r.get('variant') == a.get('variant') else {} %}"
        "{% set e = t.get('energy_mj') or {} %}"
        "{% set e = e if e.get('source') == 'measured' else {} %}"
    )
    kinds: dict[str, Entity] = {
        "release": {
            "name": f"{model} release", "value_template": f"{state}{active}{{{{ a.get('release') }}}}",
        },
        "variant": {
            "name": f"{model} variant", "value_template": f"{state}{active}{{{{ a.get('variant') }}}}",
        },
        "phase": {
            "name": f"{model} phase", "device_class": "enum", "options": [str(phase) for phase in Phase],
            "value_template": f"{state}{{{{ m.get('phase') }}}}",
        },
        "problem": {"p": "binary_sensor", "name": f"{model} problem", "device_class": "problem"} | _problem(
            state, topic
        ),
    }  # fmt: skip
    for key, name, expression, unit, device_class, decimals in _FIGURES:
        kinds[key] = {
            "name": f"{model} {name}", "state_class": "measurement", "suggested_display_precision": decimals,
            "value_template": f"{state}{active}{trial}{{{{ {expression} }}}}",
        }  # fmt: skip
        if unit is not None:
            kinds[key]["unit_of_measurement"] = unit
        if device_class is not None:
            kinds[key]["device_class"] = device_class
    return {
        f"{model}:{key}": {
            "p": "sensor", "state_topic": topic, **kind, "unique_id": _unique(shown, f"model_{model}_{key}"),
        }
        for key, kind in kinds.items()
    }  # fmt: skip


def _problem(state: str, topic: str) -> Entity:
    """On where the last order failed or fell back, or what runs is second choice; why, as attributes."""
    bad = "m.get('outcome') in ['failed', 'fell_back'] or m.get('degraded')"
    why = (
        "{{ {'outcome': m.get('outcome'), 'order': m.get('order'), "
        "'degraded': m.get('degraded'), 'reason': m.get('reason')} | tojson }}"
    )
    return {
        "value_template": f"{state}{{{{ 'None' if not m else 'ON' if {bad} else 'OFF' }}}}",
        "json_attributes_topic": topic,
        "json_attributes_template": f"{state}{why}",
    }


def _unique(shown: Shown, key: str) -> str:
    return f"shallop_{shown.device}_{key}"
