"""Home Assistant's discovery: what it is told, what its templates make of our documents, and its removal.

`home_assistant_discovery.json` went through Home Assistant's own schemas and template engine (2024.3, the
last for Python 3.11, to which only `options` was new, and the schema of the whole document as core has had it
since 2024.12).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import paho.mqtt.client as paho
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec.structs import replace
from paho.mqtt.enums import CallbackAPIVersion

from agent.adapters.ambient import AmbientReader
from agent.config import parse
from agent.deployment import Deployment
from agent.errors import ConfigError
from agent.home_assistant import (
    Ambient,
    HomeAssistantConfig,
    Shown,
    discovery,
    discovery_topic,
    document,
    state_topic,
)
from agent.home_assistant_link import FILE, HomeAssistantLink, remembered
from agent.install import Install
from agent.journal import Journal, JournalFile
from agent.uplink import Self, Uplink
from tests import device_trees
from tests.agent.rig import DEVICE, MACHINE
from tests.agent.test_status import config_in, start
from tests.agent.twins import TOPICS, MemoryBroker, TestClock, until
from tests.agent.world import VARIANTS, summary
from tests.brokers import Mosquitto
from wire import codec
from wire.measures import Latency, Measure, Source
from wire.messages import (
    ModelState,
    OrderOutcome,
    Phase,
    Reason,
    Reported,
    Slot,
    Status,
    TrialSummary,
)

GOLDEN = Path(__file__).with_name("home_assistant_discovery.json")
CONFIG = HomeAssistantConfig(enabled=True)
SHOWN = Shown(device=DEVICE, agent_version="0.1.0", board="Raspberry Pi 5", topics=TOPICS)
DISCOVERY, STATE = discovery_topic("homeassistant", DEVICE), state_topic("homeassistant", DEVICE)
SLOT = Slot(digest="a" * 64, release="spring", variant=VARIANTS[0], order=3)


def trial(**figures: object) -> TrialSummary:
    one = summary(VARIANTS[0])
    return replace(one, result=replace(one.result, **figures))


FIGURES = trial(
    latency=Latency(ms_p50=7.1, ms_p95=8.2, ms_p99=9.0, n=10), accuracy=Measure(value=0.91),
    energy_mj=Measure(value=12.5), temperature_c_after=51.0, power_watts_load=3.5,
)  # fmt: skip
RUNS = ModelState(active=SLOT, order=3, outcome=OrderOutcome.ACTIVE, trial=FIGURES)
NONE = ("latency_p50", "latency_p95", "accuracy", "temperature", "power", "energy")


def rendered(state: ModelState | None, name: str = "digits") -> dict[str, str]:
    """What Home Assistant would show for a model: its templates over our document as we encode it."""
    models = {} if state is None else {name: state}
    payload = codec.encode(Reported(device=DEVICE, install_id="a" * 32, number=1, models=models))
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    found = {}
    for key, component in discovery(CONFIG, SHOWN, [name]).items():
        model, separator, what = key.partition(":")
        if separator:
            assert model == name
            for kind in ("value_template", "json_attributes_template"):
                if kind in component:
                    template = environment.from_string(str(component[kind]))
                    suffix = "" if kind == "value_template" else "+"
                    found[what + suffix] = template.render(value_json=json.loads(payload))
    return found


# --- what it is told --------------------------------------------------------------------------------


def test_the_document_is_the_one_that_home_assistant_accepted() -> None:
    made = document(SHOWN, discovery(CONFIG, SHOWN, ["digits", "a.b_c-d"]), {"old:phase": "sensor"})
    assert json.loads(made) == json.loads(GOLDEN.read_text())


def test_ids_are_unique_over_devices_and_models() -> None:
    other = replace(SHOWN, device="roof-18")
    ids = [
        component["unique_id"]
        for shown in (SHOWN, other)
        for component in discovery(CONFIG, shown, ["digits", "temperature", "a.b", "a_b"]).values()
    ]
    assert len(ids) == len(set(ids))


def test_an_unknown_board_is_left_out() -> None:
    made = json.loads(document(replace(SHOWN, board="unknown"), {}, {}))
    assert "mdl" not in made["dev"]


def test_what_runs() -> None:
    found = rendered(RUNS)
    attributes = json.loads(found.pop("problem+"))
    assert found == {
        "release": "spring", "variant": VARIANTS[0], "phase": "idle", "problem": "OFF", "latency_p50": "7.1",
        "latency_p95": "8.2", "accuracy": "0.91", "temperature": "51.0", "power": "3.5", "energy": "12.5",
    }  # fmt: skip
    assert attributes == {"outcome": "active", "order": 3, "degraded": False, "reason": None}


@pytest.mark.parametrize(
    "state",
    [
        replace(RUNS, trial=None),
        replace(RUNS, trial=trial()),
        replace(RUNS, outcome=OrderOutcome.FAILED),
        replace(RUNS, outcome=OrderOutcome.EVALUATED),
        replace(RUNS, outcome=None, phase=Phase.FETCHING),
        replace(RUNS, active=replace(SLOT, variant=VARIANTS[1])),
        replace(RUNS, active=None),
        ModelState(),
    ],
)
def test_figures_that_are_not_those_of_what_runs_are_unknown(state: ModelState) -> None:
    found = rendered(state)
    assert {found[key] for key in NONE} == {"None"}


def test_an_estimate_is_not_shown_as_a_measurement() -> None:
    guess = trial(energy_mj=Measure(value=12.5, source=Source.ESTIMATED), power_watts_load=3.5)
    assert rendered(replace(RUNS, trial=guess))["energy"] == "None"


def test_nothing_runs_and_nothing_is_known() -> None:
    found = rendered(ModelState())
    assert (found["release"], found["variant"], found["phase"]) == ("None", "None", "idle")
    gone = rendered(None)
    assert (gone["release"], gone["phase"], gone["problem"]) == ("None", "None", "None")


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (replace(RUNS, outcome=OrderOutcome.FAILED), "ON"),
        (replace(RUNS, outcome=OrderOutcome.FELL_BACK), "ON"),
        (replace(RUNS, degraded=True), "ON"),
        (replace(RUNS, outcome=OrderOutcome.ROLLED_BACK), "OFF"),
        (replace(RUNS, outcome=OrderOutcome.SUPERSEDED), "OFF"),
        (replace(RUNS, outcome=None), "OFF"),
    ],
)
def test_a_problem_is_one_that_somebody_must_look_at(state: ModelState, problem: str) -> None:
    assert rendered(state)["problem"] == problem


def test_the_reason_comes_through_whatever_it_holds() -> None:
    reason = Reason(code="model_load_failed", detail="it's <b>\"}}{% raise %}\\ ü\n")
    found = rendered(replace(RUNS, reason=reason, outcome=OrderOutcome.FAILED))
    assert json.loads(found["problem+"])["reason"]["detail"] == reason.detail


def test_models_names_are_safe_in_templates() -> None:
    assert rendered(RUNS, "a.b_c-d")["release"] == "spring"


def test_availability_and_the_state_document() -> None:
    made = json.loads(document(SHOWN, discovery(CONFIG, SHOWN, []), {}))
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)

    def render(template: str, value: object) -> str:
        return environment.from_string(template).render(value_json=msgspec.to_builtins(value))

    for online, word in ((True, "online"), (False, "offline")):
        status = Status(device=DEVICE, install_id="a" * 32, number=1, online=online, agent_version="1")
        assert render(made["availability"][0]["value_template"], status) == word
    templates = {key: component["value_template"] for key, component in made["cmps"].items()}
    unknown = {key: render(template, Ambient()) for key, template in templates.items()}
    assert unknown == dict.fromkeys(("temperature", "power", "disk_free", "throttled"), "None")
    known = Ambient(temperature_c=48.5, throttled=False, power_w=0.0, disk_free_bytes=5)
    assert {key: render(template, known) for key, template in templates.items()} == {
        "temperature": "48.5", "throttled": "OFF", "power": "0.0", "disk_free": "5",
    }  # fmt: skip
    assert render(templates["throttled"], Ambient(throttled=True)) == "ON"


@pytest.mark.parametrize(
    "text",
    [
        "{prefix: 'a/+'}",
        "{prefix: ''}",
        "{prefix: /a}",
        "{interval_s: 1}",
        "{enable: true}",
        "{prefix: 'a b'}",
    ],
)
def test_a_configuration_that_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(f"home_assistant: {text}")


# --- when it is told, and taken back ----------------------------------------------------------------


def link(
    tmp_path: Path, broker: MemoryBroker, *, enabled: bool = True, prefix: str = "homeassistant"
) -> HomeAssistantLink:
    config = HomeAssistantConfig(enabled=enabled, prefix=prefix)
    return HomeAssistantLink(config, SHOWN, broker, tmp_path)


def test_nothing_is_said_unless_it_is_asked_for(tmp_path: Path) -> None:
    broker = MemoryBroker()
    quiet = link(tmp_path, broker, enabled=False)
    assert not quiet.needed
    quiet.greeted()
    quiet.reported(["digits"])
    quiet.tell(Ambient())
    assert broker.said == []
    assert not (tmp_path / FILE).exists()


def test_it_is_said_on_each_connection_and_for_each_new_model_only(tmp_path: Path) -> None:
    broker, clock = MemoryBroker(), TestClock()
    one = link(tmp_path, broker)
    me = Self(device=DEVICE, agent_version="1", hardware=MACHINE.hardware)
    uplink = Uplink(broker, TOPICS, me, Install(tmp_path), clock, one)
    models = {"digits": Deployment(model="digits")}

    def said() -> int:
        return sum(topic == DISCOVERY for topic, _ in broker.said)

    uplink.send_identity(None)
    uplink.send_reported(models)
    uplink.send_reported(models)
    assert said() == 1
    uplink.send_reported(models | {"faces": Deployment(model="faces")})
    assert said() == 2
    assert "faces:phase" in json.loads(broker.retained[DISCOVERY])["cmps"]
    one.tell(Ambient(temperature_c=40.0))
    broker.retained.clear()
    uplink.send_identity(None)
    uplink.send_reported(models)
    assert said() == 3
    assert json.loads(broker.retained[STATE])["temperature_c"] == 40.0
    # The model that is gone is a platform alone, by which Home Assistant removes it.
    assert json.loads(broker.retained[DISCOVERY])["cmps"]["faces:phase"] == {"p": "sensor"}


def test_an_onlooker_that_fails_keeps_nothing_back(tmp_path: Path) -> None:
    class Fails:
        def greeted(self) -> None:
            raise ValueError("a mistake")

        def reported(self, models: Iterable[str]) -> None:
            raise ValueError(models)

    broker, me = MemoryBroker(), Self(device=DEVICE, agent_version="1", hardware=MACHINE.hardware)
    uplink = Uplink(broker, TOPICS, me, Install(tmp_path), TestClock(), Fails())
    assert uplink.send_identity(None)
    assert uplink.send_reported({})
    assert len(broker.said) == 2


def test_what_could_not_be_sent_is_sent_later(tmp_path: Path) -> None:
    broker = MemoryBroker()
    one = link(tmp_path, broker)
    broker.up = False
    one.reported(["digits"])
    broker.up = True
    one.reported(["digits"])
    assert DISCOVERY in broker.retained


def test_switched_off_it_is_taken_back_once_and_for_all(tmp_path: Path) -> None:
    broker = MemoryBroker()
    one = link(tmp_path, broker)
    one.reported(["digits"])
    one.tell(Ambient())
    off = link(tmp_path, broker, enabled=False)
    assert off.needed
    off.tell(Ambient())
    assert (tmp_path / FILE).exists(), "nothing was removed yet"
    off.greeted()
    assert (broker.retained[DISCOVERY], broker.retained[STATE]) == (b"", b"")
    # Not sure yet that the broker has it: the connection may break at once.
    broker.up = False
    off.tell(Ambient())
    assert (tmp_path / FILE).exists()
    broker.up = True
    off.greeted()
    off.tell(Ambient())
    assert not (tmp_path / FILE).exists()
    count = len(broker.said)
    off.greeted()
    assert len(broker.said) == count
    assert not link(tmp_path, broker, enabled=False).needed


def test_under_another_prefix_the_old_document_goes(tmp_path: Path) -> None:
    broker = MemoryBroker()
    link(tmp_path, broker).reported(["digits"])
    link(tmp_path, broker, prefix="ha").reported(["digits"])
    assert broker.retained[DISCOVERY] == b""
    assert json.loads(broker.retained[discovery_topic("ha", DEVICE)])["cmps"]
    found = remembered(tmp_path)
    assert found is not None
    assert found.discovery_topic == discovery_topic("ha", DEVICE)


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"x"}', b"\xff"])
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert remembered(tmp_path) is None
    broker = MemoryBroker()
    link(tmp_path, broker).reported(["digits"])
    assert remembered(tmp_path) is not None


def test_what_cannot_be_remembered_is_not_shown(tmp_path: Path) -> None:
    broker = MemoryBroker()
    link(tmp_path / "not-there", broker).reported(["digits"])
    assert broker.said == []


# --- readings ---------------------------------------------------------------------------------------


def test_a_reading_of_a_raspberry_pi(tmp_path: Path) -> None:
    root = device_trees.build(tmp_path / "root", "rpi5")
    reader = AmbientReader(lambda _: None, 10.0, tmp_path, root)
    found = reader.read()
    assert found.temperature_c == pytest.approx(48.55)
    assert found.throttled is False
    assert found.power_w == pytest.approx(device_trees.PMIC_WATTS)
    assert found.disk_free_bytes
    bare = AmbientReader(lambda _: None, 10.0, tmp_path / "none", tmp_path / "empty").read()
    assert bare == Ambient()


def test_readings_go_on_after_a_mistake(tmp_path: Path) -> None:
    told: list[Ambient] = []

    def tell(ambient: Ambient) -> None:
        told.append(ambient)
        raise ValueError("a mistake")

    reader = AmbientReader(tell, 0.01, tmp_path, tmp_path)
    reader.start()
    until(lambda: len(told) > 2, "three readings")
    reader.stop()


# --- a real broker ----------------------------------------------------------------------------------


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as one:
        yield one


@pytest.mark.broker
def test_a_real_agent_shows_itself_and_is_gone_once_switched_off(
    tmp_path: Path, mosquitto: Mosquitto
) -> None:
    path, state = config_in(tmp_path, mosquitto.port), tmp_path / "state"
    plain = path.read_text()
    state.mkdir()
    d = Deployment(model="digits", order=3, order_highest=3, outcome=OrderOutcome.FAILED, desired=None)
    JournalFile(state).save(Journal(models={"digits": d}))
    heard: dict[str, bytes] = {}
    onlooker = paho.Client(CallbackAPIVersion.VERSION2, client_id="home-assistant")
    onlooker.on_message = lambda _client, _userdata, message: heard.update(
        {message.topic: bytes(message.payload)}
    )
    onlooker.connect(mosquitto.host, mosquitto.port)
    onlooker.subscribe([("homeassistant/#", 0), ("shallop/#", 0)])
    onlooker.loop_start()
    try:
        for enabled in (True, False):
            path.write_text(plain + f"home_assistant: {{enabled: {str(enabled).lower()}, interval_s: 10}}\n")
            agent = start(path)
            try:
                await_documents(heard, present=enabled)
                if enabled:
                    check(heard)
            finally:
                agent.terminate()
                assert agent.wait(20) == 0
    finally:
        onlooker.disconnect()
        onlooker.loop_stop()


def await_documents(heard: dict[str, bytes], *, present: bool) -> None:
    topics = (DISCOVERY, STATE)
    until(lambda: all(t in heard and bool(heard[t]) is present for t in topics), "both documents")


def check(heard: dict[str, bytes]) -> None:
    """Every topic that the document names is one that the agent speaks on."""
    made: dict[str, Any] = json.loads(heard[DISCOVERY])
    named = {component["state_topic"] for component in made["cmps"].values()}
    named |= {one["topic"] for one in made["availability"]}
    assert named <= set(heard)
    assert "digits:problem" in made["cmps"]
    state = msgspec.json.decode(heard[STATE], type=Ambient)
    assert state.disk_free_bytes
