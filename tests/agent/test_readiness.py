"""Orders that wait for charge, coolness or a window: read from trees, and lived through by a whole agent."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from unittest import mock

import pytest

from agent import statusing
from agent.adapters import doctor
from agent.adapters.readiness import SUPPLIES_MAX, Readiness, supplies
from agent.config import parse
from agent.doctor.finding import Status
from agent.errors import NotYetError
from agent.metering import Hours, LocalTime
from agent.preconditions import Rules, Supply
from agent.status_view import model_picture
from agent.statusing import Board
from tests import device_trees
from tests.agent.rig import DEVICE, ONE, TWO, Rig, command, deploy, running
from tests.agent.test_mqtt import Fleet, daemon
from tests.agent.twins import FixedRandom, MemoryTrials, TestClock, release, until
from tests.brokers import Mosquitto
from tests.device_trees import write, zones
from wire.messages import OrderOutcome, Phase, Rollback

CHARGE = Rules(battery_percent_min=40.0)
HEAT = Rules(temperature_c_max=75.0)
WINDOW = Rules(window=(Hours(120, 300),))
NOON, NIGHT = LocalTime(minute=720, synchronised=True), LocalTime(minute=150, synchronised=True)
SUPPLY = "sys/class/power_supply"


def battery(root: Path, percent: object = 23, name: str = "BAT0", **fields: object) -> None:
    told = {"type": "Battery", "status": "Discharging", "capacity": percent, **fields}
    for key, value in told.items():
        write(root, f"{SUPPLY}/{name}/{key}", str(value))


def mains(root: Path, online: int, kind: str = "Mains") -> None:
    write(root, f"{SUPPLY}/feed/type", kind)
    write(root, f"{SUPPLY}/feed/online", online)


def looking(root: Path, rules: Rules, clock: TestClock | None = None, signed_at: str = "") -> Readiness:
    return Readiness(rules, clock or TestClock(), lambda: signed_at, root)


# --- what is read ------------------------------------------------------------------------------------


def test_a_battery_and_its_feed(tmp_path: Path) -> None:
    battery(tmp_path)
    mains(tmp_path, 0, "USB")
    found = supplies(tmp_path)
    assert found == (
        Supply(name="BAT0", kind="Battery", percent=23.0, status="Discharging"),
        Supply(name="feed", kind="USB", online=False),
    )
    readiness = looking(tmp_path, CHARGE)
    with pytest.raises(NotYetError) as held:
        readiness.require()
    assert held.value.code == "battery_low"
    mains(tmp_path, 1, "USB")
    readiness.require()
    mains(tmp_path, 0)
    battery(tmp_path, 40)
    readiness.require()


def test_what_is_no_battery_of_this_machine(tmp_path: Path) -> None:
    battery(tmp_path, 3, "hidpp_battery_0", scope="Device")
    battery(tmp_path, 0, "BAT1", present=0)
    assert supplies(tmp_path) == ()
    looking(tmp_path, CHARGE).require()
    battery(tmp_path, 3, "BAT0", scope="System", present=1)
    with pytest.raises(NotYetError):
        looking(tmp_path, CHARGE).require()


@pytest.mark.parametrize("percent", ["", "full", "101", "-1", "nan", "inf", "9" * 400])
def test_a_charge_that_is_none_is_unknown_and_holds_nothing_up(
    tmp_path: Path, percent: str, caplog: pytest.LogCaptureFixture
) -> None:
    battery(tmp_path, percent)
    readiness = looking(tmp_path, CHARGE)
    with caplog.at_level(logging.WARNING):
        readiness.require()
        readiness.require()
    assert [one.holds for one in readiness.judged()] == [None]
    (line,) = caplog.messages
    assert "battery_percent_min" in line
    assert "BAT0 does not tell its charge" in line


def test_a_folder_without_end_is_read_to_a_bound(tmp_path: Path) -> None:
    for number in range(SUPPLIES_MAX + 3):
        battery(tmp_path, "9" * 200_000, f"b{number:03d}" + "x" * 60, status="y" * 200_000)
    found = supplies(tmp_path)
    assert found is not None
    assert len(found) == SUPPLIES_MAX
    assert {(len(one.name), len(one.status), one.percent) for one in found} == {(40, 40, None)}


def test_what_cannot_be_listed_is_unknown_and_what_is_not_there_has_no_battery(tmp_path: Path) -> None:
    assert supplies(tmp_path) == ()
    write(tmp_path, SUPPLY, "a file where a folder should be")
    assert supplies(tmp_path) is None
    looking(tmp_path, CHARGE).require()


def test_a_supply_without_a_type_may_be_a_battery(tmp_path: Path) -> None:
    write(tmp_path, f"{SUPPLY}/gauge/capacity", 12)
    with pytest.raises(NotYetError):
        looking(tmp_path, CHARGE).require()


@pytest.mark.parametrize("name", sorted(device_trees.TREES))
def test_the_devices_at_hand_are_ready(tmp_path: Path, name: str) -> None:
    """The only battery among them has a gauge without a percentage."""
    root = device_trees.build(tmp_path, name)
    judged = looking(root, Rules(battery_percent_min=40.0, temperature_c_max=75.0)).judged()
    assert [one.holds for one in judged] == [
        None if name == "battery" else True,
        True if list(root.glob("sys/class/thermal/*/temp")) else None,
    ]


def test_the_processors_zone_is_what_counts(tmp_path: Path) -> None:
    zones(tmp_path, (("cpu-thermal", 75100), ("PMIC-Die", 100000)))
    with pytest.raises(NotYetError, match=r"75\.1 degrees"):
        looking(tmp_path, HEAT).require()
    zones(tmp_path, (("cpu-thermal", 75000), ("PMIC-Die", 100000)))
    looking(tmp_path, HEAT).require()


def test_a_clock_below_the_highest_signed_time_opens_no_window(tmp_path: Path) -> None:
    clock = TestClock()
    clock.day = NIGHT
    looking(tmp_path, WINDOW, clock, "2026-01-01T00:00:00+00:00").require()
    with pytest.raises(NotYetError) as held:
        looking(tmp_path, WINDOW, clock, "2026-06-01T00:00:00+00:00").require()
    assert held.value.code == "clock_unsynchronised"


def test_what_is_not_asked_is_not_read(tmp_path: Path) -> None:
    class NoClock(TestClock):
        def local(self) -> LocalTime:
            raise AssertionError("it asked for the time of day")

    battery(tmp_path, 1)
    zones(tmp_path, (("cpu-thermal", 99000),))
    assert looking(tmp_path, Rules(), NoClock()).judged() == ()
    assert [one.code for one in looking(tmp_path, HEAT, NoClock()).judged()] == ["too_hot"]
    assert [one.code for one in looking(tmp_path, CHARGE, NoClock()).judged()] == ["battery_low"]


# --- a whole agent -----------------------------------------------------------------------------------


def waits(rig: Rig, code: str) -> None:
    """Until the fleet was told so, too."""
    until(lambda: (s := rig.reported()) and s.reason and s.reason.code == code, code)
    state = rig.reported()
    assert state is not None
    assert state.phase is Phase.ADMITTING
    assert state.reason is not None
    assert state.reason.lasting == "retry"


def until_noted(rig: Rig) -> statusing.Noted:
    """What `shallop-agent status` reads once a try waits."""
    found: list[statusing.Noted] = []

    def look() -> bool:
        noted = statusing.read(rig.root)
        found[:] = [noted] if noted is not None and noted.retries else []
        return bool(found)

    until(look, "a try that waits")
    return found[0]


def asks(rig: Rig, rules: Rules) -> None:
    rig.require_ready = Readiness(rules, rig.clock, lambda: rig.signed_at, rig.root.parent / "tree").require


def test_an_order_waits_for_a_charged_battery_and_says_so(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    battery(tree)
    mains(tree, 0)
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, CHARGE)) as rig:
        rig.runner._board = Board(rig.root, rig.clock)
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        waits(rig, "battery_low")
        noted = until_noted(rig)
        retry = statusing.retry_in(noted, "digits", rig.clock.boot_s())
        picture = model_picture(rig.deployment, retry, None)
        assert picture.retry_in_s is not None
        assert picture.retry_reason is not None
        assert picture.retry_reason.code == "battery_low"
        assert "BAT0 is at 23% (Discharging)" in picture.retry_reason.detail
        assert rig.broker.fetched == []
        assert rig.running is None
        battery(tree, 40)
        rig.wait(1, OrderOutcome.ACTIVE)
        assert rig.running == ONE.digest


def test_an_order_waits_for_a_cool_processor(tmp_path: Path) -> None:
    zones(tmp_path / "tree", (("cpu-thermal", 80000),))
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, HEAT)) as rig:
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        waits(rig, "too_hot")
        zones(tmp_path / "tree", (("cpu-thermal", 60000),))
        rig.wait(1, OrderOutcome.ACTIVE)


@pytest.mark.parametrize(
    ("day", "code"),
    [(NOON, "outside_window"), (LocalTime(minute=150, synchronised=False), "clock_unsynchronised")],
)
def test_an_order_waits_for_its_window_and_a_rollback_meanwhile_does_not(
    tmp_path: Path, day: LocalTime, code: str
) -> None:
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig:
        rig.clock.day = NIGHT
        deploy(rig, ONE, 1)
        deploy(rig, TWO, 2)
        rig.clock.day = day
        three = release("3", changes=b"three")
        rig.broker.hold(three)
        rig.broker.desire(DEVICE, {"digits": three.order(3)})
        waits(rig, code)
        assert rig.running == TWO.digest
        command(rig, Rollback(model="digits", from_=TWO.digest, order=4))
        until(lambda: rig.running == ONE.digest, "the way back")
        rig.broker.desire(DEVICE, {"digits": three.order(5)})
        waits(rig, code)
        assert rig.running == ONE.digest
        rig.clock.day = NIGHT
        rig.wait(5, OrderOutcome.ACTIVE)
        assert rig.running == three.digest


def test_the_agents_own_way_back_waits_for_nothing(tmp_path: Path) -> None:
    """The window closes and the application falls ill during the soak."""
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig:
        rig.clock.day = NIGHT
        deploy(rig, ONE, 1)
        rig.broker.hold(TWO)
        rig.broker.desire(DEVICE, {"digits": TWO.order(2, soak_s=60.0)})
        until(lambda: rig.deployment.phase is Phase.SOAKING, "the soak")
        rig.clock.day = NOON
        rig.hooks.ill = "no answer"
        rig.wait(2, OrderOutcome.FELL_BACK)
        assert rig.running == ONE.digest


def test_a_newer_order_supersedes_one_that_waits(tmp_path: Path) -> None:
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig:
        rig.clock.day = NOON
        rig.broker.hold(ONE, TWO)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        waits(rig, "outside_window")
        rig.broker.desire(DEVICE, {"digits": TWO.order(2)})
        until(lambda: rig.deployment.order == 2, "the newer one")
        waits(rig, "outside_window")
        rig.clock.day = NIGHT
        rig.wait(2, OrderOutcome.ACTIVE)
        assert rig.running == TWO.digest
        assert {job.candidate.digest for job in rig.trials.jobs} == {TWO.digest}


def test_the_orders_deadline_bounds_the_wait_and_names_its_reason(tmp_path: Path) -> None:
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig:
        rig.clock.day = NOON
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=3600.0)})
        waits(rig, "outside_window")
        rig.clock.ahead_s += 3601.0
        reason = rig.wait(1, OrderOutcome.FAILED).reason
        assert reason is not None
        assert reason.code == "outside_window"
        assert "deadline" in reason.detail


def test_an_order_that_waits_goes_on_waiting_after_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig,
    ):
        rig.clock.day = NOON
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=86400.0)})
        waits(rig, "outside_window")
        for _ in range(6):
            rig.stop()
            looks = rig.deployment.attempts
            rig.start()
            until(lambda looks=looks: rig.deployment.attempts > looks, "a look of this start")  # type: ignore[misc]
        assert len([line for line in caplog.messages if " waits: " in line]) == 7, "one line for each start"
        rig.clock.day = NIGHT
        rig.wait(1, OrderOutcome.ACTIVE)


def test_an_order_that_this_machine_can_never_meet_is_refused_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig:
        rig.clock.day = NOON
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, variants=("onnxruntime/no_such",))})
        reason = rig.wait(1, OrderOutcome.FAILED).reason
        assert reason is not None
        assert reason.code == "no_variant"


def test_who_would_wait_long_is_there_when_the_window_opens(tmp_path: Path) -> None:
    """Each wait is drawn as five minutes, and the window opens in one."""
    with (
        mock.patch.object(FixedRandom, "unit", return_value=1000.0),
        running(tmp_path / "agent", prepare=lambda rig: asks(rig, WINDOW)) as rig,
    ):
        rig.runner._board = Board(rig.root, rig.clock)
        rig.clock.day = LocalTime(minute=119, synchronised=True)
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1, deadline_s=3600.0)})
        retry = statusing.retry_in(until_noted(rig), "digits", rig.clock.boot_s())
        assert retry is not None
        assert retry[0] <= 60.1
        rig.clock.day = LocalTime(minute=120, synchronised=True)
        rig.clock.ahead_s += 61.0
        rig.wait(1, OrderOutcome.ACTIVE)


def test_a_wait_is_logged_once_for_each_cause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    battery(tmp_path / "tree")
    rules = Rules(battery_percent_min=40.0, window=WINDOW.window)
    with (
        caplog.at_level(logging.INFO),
        running(tmp_path / "agent", prepare=lambda rig: asks(rig, rules)) as rig,
    ):
        rig.clock.day = NOON
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        waits(rig, "battery_low")
        until(lambda: rig.deployment.attempts >= 3, "three looks")
        mains(tmp_path / "tree", 1)
        waits(rig, "outside_window")
        rig.clock.day = NIGHT
        rig.wait(1, OrderOutcome.ACTIVE)
    said = [line for line in caplog.messages if " waits: " in line]
    assert [line.split(": ")[1] for line in said] == ["battery_low", "outside_window"]
    assert not [line for line in caplog.messages if "failed" in line]


@pytest.mark.broker
def test_a_real_daemon_waits_as_it_is_told_and_goes_on_when_it_is_not(tmp_path: Path) -> None:
    """Its window is hours away; this machine's clock decides by which name it waits."""
    begin = time.localtime(time.time() + 3 * 3600).tm_hour
    asked = f'admission: {{battery_percent_min: 1, window: ["{begin:02d}:00-{begin:02d}:01"]}}\n'
    with Mosquitto(tmp_path / "broker") as broker:
        fleet = Fleet(broker)
        try:
            one = fleet.publish(tmp_path / "1", seed=1)
            with daemon(tmp_path, broker, more=asked):
                fleet.order(1, one)
                until(lambda: (s := fleet.reported) and s[-1].reason, "a reason", 60)
                state = fleet.reported[-1]
                assert state.reason is not None
                assert state.reason.code in {"outside_window", "clock_unsynchronised"}
                assert (state.phase, state.active) == (Phase.ADMITTING, None)
            with daemon(tmp_path, broker):
                fleet.wait(1, "active")
        finally:
            fleet.close()


# --- the doctor ----------------------------------------------------------------------------------------


def test_the_doctor_shows_what_is_asked_and_whether_it_holds(tmp_path: Path) -> None:
    root = tmp_path / "root"
    battery(root)
    zones(root, (("cpu-thermal", 80000),))
    text = f"state_dir: {tmp_path}/state\nbroker: {{port: 1}}\n"
    asked = f'{text}admission: {{battery_percent_min: 40, temperature_c_max: 75, window: ["00:00-24:00"]}}\n'

    def admission(text: str) -> dict[str, tuple[Status, str, str]]:
        visit = doctor.Doctor(parse(text), tmp_path / "a.yaml", "d1", MemoryTrials(), tmp_path, root)
        (look,) = [look for name, _, look in visit.probes() if name == "admission"]
        return {f.name: (f.status, f.detail, f.remedy) for f in look()}

    assert admission(text) == {}
    found = admission(asked)
    assert list(found) == [
        "admission:battery", "admission:temperature", "admission:window"
    ]  # fmt: skip
    status, detail, remedy = found["admission:battery"]
    assert (status, detail[:27]) == (Status.WARNING, "battery_low: BAT0 is at 23%")
    assert "charge it" in remedy
    assert found["admission:temperature"][0] is Status.WARNING
    assert "too_hot: 80.0 degrees" in found["admission:temperature"][1]
    assert found["admission:window"][0] in {Status.OK, Status.WARNING}, "by this machine's own clock"
    battery(root, "")
    zones(root, (("cpu-thermal", 60000),))
    found = admission(asked)
    assert found["admission:battery"][0] is Status.UNKNOWN
    assert found["admission:temperature"] == (
        Status.OK, "60.0 degrees Celsius, admission.temperature_c_max is 75", ""
    )  # fmt: skip
