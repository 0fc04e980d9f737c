"""Power, temperature and throttling, read from trees of machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.power import find_sensor
from agent.adapters.power_linux import EnergyCounter, rapl
from agent.adapters.power_rpi import pmic_watts
from agent.adapters.sensors import read_number, vcgencmd
from agent.adapters.thermal import (
    Throttling,
    temperature_c,
    temperatures_c,
    throttled_between,
    throttling,
)
from tests.device_trees import PMIC, PMIC_WATTS, TREES, build, hwmon, ina3221, write
from tests.device_trees import vcgencmd as install_vcgencmd

WATTS = {
    "jetson_nano": ("ina3221x", 2.637),
    "jetson_orin_nano": ("ina3221", 4.984 * 0.912),
    "jetson_agx_orin": ("ina3221", 20.0 * 0.120 + 20.0 * 0.020 + 5.0 * 0.806),
    "rpi5": ("rpi5_pmic", PMIC_WATTS),
    "battery": ("battery", 11.4 * 1.25),
    "monitor": ("hwmon_ina226", 4.321),
}


@pytest.mark.parametrize("name", sorted(TREES))
def test_each_machines_total_or_unknown(tmp_path: Path, name: str) -> None:
    sensor = find_sensor(build(tmp_path, name))
    if name == "x86":
        assert sensor is not None
        assert sensor.name == "rapl_package"
        return
    if name not in WATTS:
        assert sensor is None
        return
    expected, watts = WATTS[name]
    assert sensor is not None
    assert sensor.name == expected
    assert sensor.watts() == pytest.approx(watts)


def test_a_machine_without_anything_has_no_sensor(tmp_path: Path) -> None:
    assert find_sensor(tmp_path) is None
    assert find_sensor(tmp_path / "nowhere") is None


def test_rails_without_a_known_total_are_never_added_up(tmp_path: Path) -> None:
    ina3221(tmp_path, "1-0040", 0, (("GPU", 19000, 100), ("CPU", 19000, 200), ("SOC", 19000, 300)))
    assert find_sensor(tmp_path) is None


def test_half_of_a_total_is_unknown(tmp_path: Path) -> None:
    build(tmp_path, "jetson_agx_orin")
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    next(tmp_path.rglob("in3_input")).unlink()
    assert sensor.watts() is None
    assert find_sensor(tmp_path) is None


@pytest.mark.parametrize("content", ["", "nan", "inf", "Resource temporarily unavailable", "0x10"])
def test_a_reading_that_is_no_number_is_unknown(tmp_path: Path, content: str) -> None:
    build(tmp_path, "jetson_orin_nano")
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    next(tmp_path.rglob("curr1_input")).write_text(content)
    assert sensor.watts() is None


def test_zero_is_a_reading(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina219", power1_input=0)
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    assert sensor.watts() == 0.0


def test_hwmon_is_known_by_name_and_not_by_number(tmp_path: Path) -> None:
    hwmon(tmp_path, 7, "ina226", power1_input=2_000_000)
    hwmon(tmp_path, 0, "nvme", power1_input=5_000_000)
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    assert sensor.watts() == 2.0


def test_of_several_monitors_the_one_on_the_input_counts(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226", power1_input=1_000_000, power1_label="VDD_CPU")
    hwmon(tmp_path, 1, "ina226", power1_input=9_000_000, power1_label="VDD_IN")
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    assert sensor.watts() == 9.0


def test_of_several_monitors_without_an_input_none_counts(tmp_path: Path) -> None:
    hwmon(tmp_path, 0, "ina226", power1_input=1_000_000, power1_label="VDD_CPU")
    hwmon(tmp_path, 1, "ina226", power1_input=9_000_000)
    assert find_sensor(tmp_path) is None


def test_a_battery_on_the_mains_says_nothing(tmp_path: Path) -> None:
    build(tmp_path, "battery")
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    write(tmp_path, "sys/class/power_supply/BAT0/status", "Charging")
    assert sensor.watts() is None
    assert find_sensor(tmp_path) is None


def test_a_battery_that_gives_power_itself(tmp_path: Path) -> None:
    build(tmp_path, "battery")
    write(tmp_path, "sys/class/power_supply/BAT0/power_now", -8_500_000)
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    assert sensor.watts() == 8.5


# --- the power chip of the Raspberry Pi 5


def test_a_current_without_a_voltage_makes_the_sum_unknown() -> None:
    assert pmic_watts(PMIC) == pytest.approx(PMIC_WATTS)
    assert pmic_watts(PMIC.replace("VDD_CORE_V", "VDD_GONE_V")) is None


@pytest.mark.parametrize("said", ["", "error=1", "VDD_CORE_A current(7)=0.7.5A\nVDD_CORE_V volt(15)=1V\n"])
def test_an_answer_that_names_no_rails_is_unknown(said: str) -> None:
    assert pmic_watts(said) is None


@given(st.text(max_size=200))
def test_the_chips_words_may_be_anything(said: str) -> None:
    watts = pmic_watts(said)
    assert watts is None or watts >= 0


def test_a_tool_that_fails_or_is_no_tool_is_unknown(tmp_path: Path) -> None:
    tool = install_vcgencmd(tmp_path, pmic=None, throttled="0x0")
    assert find_sensor(tmp_path) is None
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert vcgencmd(tmp_path, "get_throttled") is None
    tool.chmod(0o644)
    assert vcgencmd(tmp_path, "get_throttled") is None


# --- the processor's counter


class Ticks:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@given(
    start=st.integers(0, 10**9 - 1),
    used=st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=8),
    dt=st.floats(0.01, 100),
)
def test_the_counter_may_wrap_between_any_two_readings(
    tmp_path_factory: pytest.TempPathFactory, start: int, used: list[int], dt: float
) -> None:
    path, clock, wrap_uj = tmp_path_factory.mktemp("rapl") / "energy_uj", Ticks(), 10**9
    counter = EnergyCounter(path, float(wrap_uj), clock)
    total = start
    path.write_text(f"{total}\n")
    assert counter.watts() is None
    for microjoules in used:
        total += microjoules
        clock.s += dt
        path.write_text(f"{total % wrap_uj}\n")
        watts = counter.watts()
        assert watts == pytest.approx(microjoules / 1e6 / dt, rel=1e-6, abs=1e-6)


def test_a_step_back_without_a_known_range_is_unknown(tmp_path: Path) -> None:
    path, clock = tmp_path / "energy_uj", Ticks()
    counter = EnergyCounter(path, None, clock)
    path.write_text("1000")
    counter.watts()
    clock.s += 1
    path.write_text("10")
    assert counter.watts() is None
    clock.s += 1
    path.write_text("2000010")
    assert counter.watts() == pytest.approx(2.0)


def test_a_counter_that_stops_answering_begins_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "energy_uj", Ticks()
    counter = EnergyCounter(path, 1e9, clock)
    path.write_text("0")
    counter.watts()
    path.unlink()
    clock.s += 1
    assert counter.watts() is None
    path.write_text("500")
    clock.s += 1
    assert counter.watts() is None


def test_packages_are_added_and_what_lies_inside_them_is_not(tmp_path: Path) -> None:
    build(tmp_path, "x86")
    write(tmp_path, "sys/class/powercap/intel-rapl:1/name", "package-1")
    write(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", 0)
    clock = Ticks()
    sensor = rapl(tmp_path, clock)
    assert sensor is not None
    assert sensor.watts() is None
    clock.s += 2.0
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", 5_999_999)  # wrapped: 6 J since
    write(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", 4_000_000)
    assert sensor.watts() == pytest.approx((6.0 + 4.0) / 2.0)


def test_a_counter_that_may_not_be_read_is_no_sensor(tmp_path: Path) -> None:
    """A directory in its place refuses even root, whom no file mode stops."""
    build(tmp_path, "x86")
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.unlink()
    counter.mkdir()
    assert find_sensor(tmp_path) is None


# --- heat


TEMPERATURES = {
    "jetson_nano": 35.5,  # its PMIC always says 100
    "jetson_orin_nano": 48.625,
    "jetson_agx_orin": None,
    "rpi4": 52.095,
    "rpi5": 48.55,
    "rk3588": None,
    "x86": 61.0,
    "battery": None,
    "monitor": None,
}


@pytest.mark.parametrize("name", sorted(TREES))
def test_the_processors_temperature_or_unknown(tmp_path: Path, name: str) -> None:
    assert temperature_c(build(tmp_path, name)) == TEMPERATURES[name]


def test_a_zone_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    assert set(temperatures_c(build(tmp_path, "jetson_orin_nano"))) == {
        "cpu-thermal",
        "gpu-thermal",
        "tj-thermal",
    }


THROTTLING = {
    "rpi4": Throttling(now=False),
    "rpi5": Throttling(now=False, past=(0x50000,)),
    "x86": Throttling(now=False, past=(4, 9, 4, 9)),
}


@pytest.mark.parametrize("name", sorted(TREES))
def test_throttling_or_unknown(tmp_path: Path, name: str) -> None:
    assert throttling(build(tmp_path, name)) == THROTTLING.get(name)


@pytest.mark.parametrize("bit", range(4))
def test_each_of_the_firmwares_bits_is_being_held_back(tmp_path: Path, bit: int) -> None:
    build(tmp_path, "rpi5")
    write(tmp_path, "usr/bin/said_get_throttled", f"throttled={1 << bit:#x}")
    look = throttling(tmp_path)
    assert look is not None
    assert look.now


def test_the_supplys_alarm_counts_where_the_tool_is_missing(tmp_path: Path) -> None:
    build(tmp_path, "rpi4")
    write(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    assert throttling(tmp_path) == Throttling(now=True)


def test_words_of_the_tool_that_are_no_bits_are_not_believed(tmp_path: Path) -> None:
    build(tmp_path, "rpi5")
    write(tmp_path, "usr/bin/said_get_throttled", "throttled=often")
    assert throttling(tmp_path) == Throttling(now=False)  # the kernel's alarm is asked instead


CALM = Throttling(now=False, past=(4, 9))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, None, None),
        (CALM, CALM, False),
        (CALM, None, False),
        (CALM, Throttling(now=False, past=(4, 10)), True),
        (CALM, Throttling(now=True, past=(4, 9)), True),
        (Throttling(now=True, past=(4, 9)), CALM, True),
        (None, Throttling(now=True), True),
    ],
)
def test_between_two_looks(before: Throttling | None, after: Throttling | None, expected: object) -> None:
    assert throttled_between(before, after) is expected


def test_a_file_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    path.write_text("1" + " " * 10**6 + "2")
    assert read_number(path) == 1.0
