"""Power, throttling and hardware on trees like those of real boards (FACTS.md, section 5)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import hardware
from agent.adapters.power import find_sensor
from agent.adapters.power_linux import EnergyCounter
from agent.adapters.power_rpi import pmic_watts
from agent.adapters.thermal import Throttling, throttled_between, throttling
from agent.measure import Window, energy_per_inference_mj


def put(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def ina3221(root: Path, bus: str, hwmon: str, rails: list[tuple[str, int, int]]) -> None:
    folder = f"sys/bus/i2c/drivers/ina3221/{bus}/hwmon/{hwmon}"
    for number, (label, millivolts, milliamperes) in enumerate(rails, 1):
        put(root, f"{folder}/in{number}_label", f"{label}\n")
        put(root, f"{folder}/in{number}_input", f"{millivolts}\n")
        put(root, f"{folder}/curr{number}_input", f"{milliamperes}\n")
    put(root, f"{folder}/in7_label", "sum of shunt voltages\n")
    put(root, f"{folder}/in7_input", "0\n")


def watts(root: Path) -> float | None:
    sensor = find_sensor(root)
    return None if sensor is None else sensor.watts()


def test_orin_nano_reads_its_input_rail_alone(tmp_path: Path) -> None:
    ina3221(
        tmp_path,
        "1-0040",
        "hwmon1",
        [("VDD_IN", 5000, 900), ("VDD_CPU_GPU_CV", 5000, 110), ("VDD_SOC", 5000, 300)],
    )
    assert watts(tmp_path) == pytest.approx(4.5)


def test_agx_orin_sums_its_three_inputs_and_no_other(tmp_path: Path) -> None:
    ina3221(
        tmp_path,
        "1-0040",
        "hwmon3",
        [("VDD_GPU_SOC", 20000, 120), ("VDD_CPU_CV", 20000, 20), ("VIN_SYS_5V0", 5000, 800)],
    )
    ina3221(tmp_path, "1-0041", "hwmon4", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 60), ("NC", 0, 0)])
    assert watts(tmp_path) == pytest.approx(2.4 + 0.4 + 4.0)


def test_jetson_nano_reads_milliwatts(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for number, (rail, milliwatts) in enumerate(
        [("POM_5V_IN", 2637), ("POM_5V_GPU", 81), ("POM_5V_CPU", 608)]
    ):
        put(tmp_path, f"{folder}/rail_name_{number}", rail)
        put(tmp_path, f"{folder}/in_power{number}_input", str(milliwatts))
    assert watts(tmp_path) == pytest.approx(2.637)


def test_a_jetson_whose_total_rail_is_unknown_has_no_sensor(tmp_path: Path) -> None:
    ina3221(tmp_path, "1-0040", "hwmon1", [("VDD_SOMETHING", 5000, 900)])
    assert find_sensor(tmp_path) is None


def test_a_rail_that_does_not_answer_makes_the_total_unknown(tmp_path: Path) -> None:
    ina3221(tmp_path, "1-0040", "hwmon1", [("VDD_IN", 5000, 900)])
    put(tmp_path, "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input", "")
    assert watts(tmp_path) is None


PMIC = """  VDD_CORE_A current(7)=0.75000000A
   3V3_SYS_A current(1)=0.10000000A
  VDD_CORE_V volt(15)=0.72000000V
   3V3_SYS_V volt(9)=3.30000000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""


def vcgencmd(root: Path, throttling: str) -> None:
    tool = root / "usr/bin/vcgencmd"
    put(
        root,
        "usr/bin/vcgencmd",
        f'#!/bin/sh\ncase "$1" in\npmic_read_adc) cat <<E\n{PMIC}E\n;;\n'
        f"get_throttled) echo {throttling};;\nesac\n",
    )
    tool.chmod(0o755)


def test_the_pi_5_pairs_currents_with_voltages(tmp_path: Path) -> None:
    vcgencmd(tmp_path, "throttled=0x50000")
    assert watts(tmp_path) == pytest.approx(0.75 * 0.72 + 0.1 * 3.3)
    sensor = find_sensor(tmp_path)
    assert sensor is not None
    assert sensor.name == "rpi5_pmic"


@pytest.mark.parametrize(
    ("said", "expected"), [("0x50000", False), ("0x0", False), ("0x4", True), ("0x50005", True)]
)
def test_throttling_is_what_holds_now_not_what_held_once(tmp_path: Path, said: str, expected: bool) -> None:
    vcgencmd(tmp_path, f"throttled={said}")
    look = throttling(tmp_path)
    assert look is not None
    assert look.now is expected


def test_the_pi_4_has_no_sensor_and_its_alarm_is_found_by_name(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert find_sensor(tmp_path) is None
    look = throttling(tmp_path)
    assert look is not None
    assert look.now


def test_an_empty_tree_knows_nothing(tmp_path: Path) -> None:
    assert find_sensor(tmp_path) is None
    assert throttling(tmp_path) is None
    assert throttled_between(None, None) is None


def test_a_generic_sensor_gives_microwatts(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "ina226\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/power1_input", "4321000\n")
    assert watts(tmp_path) == pytest.approx(4.321)


def test_a_battery_counts_only_while_it_discharges(tmp_path: Path) -> None:
    for name, text in {
        "type": "Battery",
        "status": "Discharging",
        "voltage_now": "11400000",
        "current_now": "1250000",
    }.items():
        put(tmp_path, f"sys/class/power_supply/BAT0/{name}", text)
    assert watts(tmp_path) == pytest.approx(14.25)
    put(tmp_path, "sys/class/power_supply/BAT0/status", "Charging")
    assert find_sensor(tmp_path) is None


def test_rapl_gives_nothing_first_and_survives_its_wrap(tmp_path: Path) -> None:
    counter, times = tmp_path / "energy_uj", iter([10.0, 12.0, 14.0])
    counter.write_text("900")
    sensor = EnergyCounter(counter, 1000.0, lambda: next(times))
    assert sensor.watts() is None
    counter.write_text("950")
    assert sensor.watts() == pytest.approx(25e-6)
    counter.write_text("50")
    assert sensor.watts() == pytest.approx(50e-6)


def test_a_counter_that_steps_back_without_a_range_says_nothing(tmp_path: Path) -> None:
    counter, times = tmp_path / "energy_uj", iter([10.0, 12.0])
    counter.write_text("900")
    sensor = EnergyCounter(counter, None, lambda: next(times))
    sensor.watts()
    counter.write_text("50")
    assert sensor.watts() is None


def test_pmic_output_of_another_shape_is_unknown() -> None:
    assert pmic_watts('error=1 error_msg="Command not registered"') is None


@given(
    st.floats(0.5, 20),
    st.lists(st.floats(0, 30), min_size=5, max_size=9),
    st.integers(1, 10_000),
    st.floats(0.1, 60),
)
def test_net_is_gross_less_idle(idle: float, extra: list[float], inferences: int, seconds: float) -> None:
    loads = [Window(seconds=seconds, watts=(idle + e,), inferences=inferences) for e in extra]
    energy = energy_per_inference_mj(Window(seconds=seconds, watts=(idle, idle)), loads, throttled=None)
    assert energy is not None
    share = 1000 * idle * seconds / inferences
    assert energy.gross.value - energy.net.value == pytest.approx(share, rel=1e-6)
    assert energy.net.low is not None
    assert energy.net.low <= energy.net.value


@pytest.mark.parametrize(
    ("idle", "load"),
    [
        (Window(seconds=1, watts=()), Window(seconds=1, watts=(3.0,), inferences=4)),
        (Window(seconds=1, watts=(2.0,)), Window(seconds=1, watts=(), inferences=4)),
        (Window(seconds=1, watts=(2.0,)), Window(seconds=1, watts=(3.0,), inferences=0)),
    ],
)
def test_a_window_without_readings_or_inferences_gives_no_figure(idle: Window, load: Window) -> None:
    assert energy_per_inference_mj(idle, [load] * 5, throttled=False) is None


def test_hardware_of_a_pi(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    put(tmp_path, "proc/device-tree/serial-number", "10000000abcdef01\0")
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n")
    put(tmp_path, "proc/meminfo", "MemTotal:        8245000 kB\n")
    put(tmp_path, "etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    found = hardware.detect(tmp_path, arch="aarch64")
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.cpu_features == ("asimd", "asimddp", "fp")
    assert found.memory_bytes == 8245000 * 1024
    assert hardware.device_id(tmp_path) == "board-10000000abcdef01"
    assert hardware.operating_system(tmp_path) == "Debian GNU/Linux 12 (bookworm)"


def test_hardware_of_nothing(tmp_path: Path) -> None:
    found = hardware.detect(tmp_path, arch="x86_64")
    assert (found.cpu, found.board, found.cpu_features) == ("unknown", "unknown", ())
    assert hardware.device_id(tmp_path) is None
    assert hardware.operating_system(tmp_path) == "unknown"


def test_a_serial_of_zeros_is_no_serial(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "Serial\t\t: 0000000000000000\n")
    put(tmp_path, "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    found = hardware.device_id(tmp_path)
    assert found is not None
    assert found.startswith("machine-")
    # machine-id(5): the id itself is confidential and must not leave the machine.
    assert "0123456789abcdef" not in found


def test_runtimes_are_found_without_importing_them() -> None:
    assert "onnxruntime" in {runtime.name for runtime in hardware.runtimes()}


def test_throttling_that_came_and_went_between_two_looks_is_seen() -> None:
    cool, later = Throttling(now=False, past=(0,)), Throttling(now=False, past=(1,))
    assert throttled_between(cool, later) is True
    assert throttled_between(later, later) is False
    assert throttled_between(cool, Throttling(now=True, past=(0,))) is True
