"""Sample /sys, /proc and /etc trees of small machines, built below a directory.

For: tests of whatever reads hardware and takes the root of the tree as an argument. The figures are those
of such machines as documentation and reports show them (FACTS.md section 5); none of them was at hand.
Not for: behaviour over time; a test that needs a reading to change writes it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

X86_FLAGS = "fpu sse2 avx2 avx512bw avx512_vnni"
A72_FLAGS = "fp asimd evtstrm crc32 cpuid"
A76_FLAGS = f"{A72_FLAGS} aes atomics asimdrdm lrcpc dcpop asimddp"


def write(root: Path, path: str, content: str | int) -> Path:
    """One file of the tree; text ends as the kernel ends it."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = str(content)
    file.write_text(text if text.endswith(("\n", "\0")) or not text else f"{text}\n")
    return file


def device_tree(root: Path, model: str, serial: str | None = None) -> None:
    write(root, "proc/device-tree/model", f"{model}\0")
    if serial is not None:
        write(root, "proc/device-tree/serial-number", f"{serial}\0")


def arm_cpus(root: Path, parts: Sequence[str], flags: str, tail: str = "") -> None:
    blocks = [
        f"processor\t: {i}\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for i, part in enumerate(parts)
    ]
    write(root, "proc/cpuinfo", "\n".join([*blocks, tail]))
    write(root, "sys/devices/system/cpu/online", f"0-{len(parts) - 1}")


def memory(root: Path, kib: int) -> None:
    write(root, "proc/meminfo", f"MemTotal:       {kib} kB\nMemFree:        1000 kB")


def zones(root: Path, temperatures: Sequence[tuple[str, int | str]]) -> None:
    for number, (kind, millidegrees) in enumerate(temperatures):
        write(root, f"sys/class/thermal/thermal_zone{number}/type", kind)
        write(root, f"sys/class/thermal/thermal_zone{number}/temp", millidegrees)


def hwmon(root: Path, number: int, name: str, **files: str | int) -> Path:
    write(root, f"sys/class/hwmon/hwmon{number}/name", name)
    for file, content in files.items():
        write(root, f"sys/class/hwmon/hwmon{number}/{file}", content)
    return root / f"sys/class/hwmon/hwmon{number}"


def ina3221(root: Path, address: str, number: int, rails: Sequence[tuple[str, int, int]]) -> None:
    """One chip as JetPack 5 and newer show it; the seventh channel is the chip's own sum."""
    base = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number}"
    write(root, f"{base}/name", "ina3221")
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        write(root, f"{base}/in{channel}_label", label)
        write(root, f"{base}/in{channel}_input", millivolts)
        write(root, f"{base}/curr{channel}_input", milliamperes)
        write(root, f"{base}/in{channel}_enable", 1)
    write(root, f"{base}/in7_label", "sum of shunt voltages")
    write(root, f"{base}/in7_input", 0)


def jetson_nano(root: Path) -> None:
    """JetPack 4."""
    device_tree(root, "NVIDIA Jetson Nano Developer Kit", "1421019048311")
    arm_cpus(root, ["0xd07"] * 4, "fp asimd evtstrm aes crc32")
    memory(root, 4059264)
    base = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for rail, (name, milliamperes) in enumerate(
        (("POM_5V_IN", 520), ("POM_5V_GPU", 16), ("POM_5V_CPU", 120))
    ):
        write(root, f"{base}/rail_name_{rail}", name)
        write(root, f"{base}/in_voltage{rail}_input", 5072)
        write(root, f"{base}/in_current{rail}_input", milliamperes)
        write(root, f"{base}/in_power{rail}_input", 5072 * milliamperes // 1000)
    zones(
        root,
        (("AO-therm", 43500), ("CPU-therm", 35500), ("GPU-therm", 34500), ("PMIC-Die", 100000),
         ("thermal-fan-est", 35000)),
    )  # fmt: skip


def jetson_orin_nano(root: Path) -> None:
    """JetPack 6; a zone without power refuses to be read."""
    device_tree(root, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "1420524012345")
    arm_cpus(root, ["0xd42"] * 6, A76_FLAGS)
    memory(root, 7802940)
    ina3221(root, "1-0040", 1, (("VDD_IN", 4984, 912), ("VDD_CPU_GPU_CV", 4984, 112), ("VDD_SOC", 4984, 296)))
    zones(root, (("cpu-thermal", 47687), ("gpu-thermal", 48625), ("cv0-thermal", ""), ("tj-thermal", 48625)))


def jetson_agx_orin(root: Path) -> None:
    """Two chips and no rail that is the total; the second chip's rail is part of the first's."""
    device_tree(root, "NVIDIA Jetson AGX Orin Developer Kit")
    arm_cpus(root, ["0xd42"] * 12, A76_FLAGS)
    first = (("VDD_GPU_SOC", 20000, 120), ("VDD_CPU_CV", 20000, 20), ("VIN_SYS_5V0", 5000, 806))
    ina3221(root, "1-0040", 3, first)
    ina3221(root, "1-0041", 4, (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 60), ("NC", 0, 0)))


def rpi4(root: Path) -> None:
    """No power sensor at all; the control group of memory is switched off, as Raspberry Pi OS has it."""
    device_tree(root, "Raspberry Pi 4 Model B Rev 1.5")
    tail = "Revision\t: c03115\nSerial\t\t: 10000000abcdef12\nModel\t\t: Raspberry Pi 4 Model B Rev 1.5"
    arm_cpus(root, ["0xd08"] * 4, A72_FLAGS, tail)
    memory(root, 3884368)
    zones(root, (("cpu-thermal", 52095),))
    hwmon(root, 0, "cpu_thermal", temp1_input=52095)
    hwmon(root, 1, "rpi_volt", in0_lcrit_alarm=0)
    processor_ticks(root, busy=2500, idle=100_000)
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1_800_000)
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", 1_800_000)
    write(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids")


def processor_ticks(root: Path, *, busy: int, idle: int) -> None:
    """How long all cores have worked and waited, in hundredths of a second (proc(5))."""
    write(root, "proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0")


PMIC = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=0.75012000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.72000000V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
PMIC_WATTS = (
    0.06245952 * 3.306322 + 0.1610285 * 1.798289 + 0.00780744 * 1.102929 + 0.1756674 * 1.104394
    + 0.3279125 * 0.8025633 + 0.75012 * 0.72 + 0.0003663 * 3.304942 + 0.00042735 * 3.302194
    + 0.00579975 * 0.7973619 + 0.0136752 * 5.07056
)  # fmt: skip
"""Twelve rails, two of which carry nothing at the moment."""


def vcgencmd(root: Path, *, pmic: str | None, throttled: str) -> Path:
    """The firmware's tool, as a script that reads what it says from files beside it."""
    tool = write(
        root,
        "usr/bin/vcgencmd",
        '#!/bin/sh\nhere=$(dirname "$0")\n'
        'if [ -f "$here/said_$1" ]; then exec cat "$here/said_$1"; fi\n'
        "echo 'error=1 error_msg=\"Command not registered\"'\n",
    )
    tool.chmod(0o755)
    write(root, "usr/bin/said_get_throttled", f"throttled={throttled}")
    if pmic is not None:
        write(root, "usr/bin/said_pmic_read_adc", pmic)
    return tool


def rpi5(root: Path) -> None:
    """Was short of power once since it started (bits 16 and 18), is not now."""
    device_tree(root, "Raspberry Pi 5 Model B Rev 1.0", "c1a2b3c4d5e6f708")
    arm_cpus(root, ["0xd0b"] * 4, A76_FLAGS)
    memory(root, 8245776)
    zones(root, (("cpu-thermal", 48550),))
    for number, name in enumerate(("cpu_thermal", "rp1_adc", "pwmfan")):
        hwmon(root, number, name)
    hwmon(root, 3, "rpi_volt", in0_lcrit_alarm=0)
    vcgencmd(root, pmic=PMIC, throttled="0x50000")


def rk3588(root: Path) -> None:
    """Two kinds of cores."""
    device_tree(root, "Radxa ROCK 5B")
    arm_cpus(root, ["0xd05"] * 4 + ["0xd0b"] * 4, A76_FLAGS)


def x86(root: Path) -> None:
    """A server's processor with a counter that is about to wrap."""
    write(
        root,
        "proc/cpuinfo",
        "\n".join(f"processor\t: {i}\nmodel name\t: Imagined Xeon\nflags\t\t: {X86_FLAGS}\n" for i in (0, 1)),
    )
    write(root, "sys/class/dmi/id/product_name", "Imagined Server")
    write(root, "etc/machine-id", "0123456789abcdef0123456789abcdef")
    write(root, "etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"')
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")):
        write(root, f"sys/class/powercap/{zone}/name", name)
        write(root, f"sys/class/powercap/{zone}/energy_uj", 262143328849)
        write(root, f"sys/class/powercap/{zone}/max_energy_range_uj", 262143328850)
    zones(root, (("acpitz", 27800), ("x86_pkg_temp", 61000)))
    for core in (0, 1):
        throttle = f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        write(root, f"{throttle}/core_throttle_count", 4)
        write(root, f"{throttle}/package_throttle_count", 9)


def battery(root: Path) -> None:
    """Microvolts and microamperes."""
    base = "sys/class/power_supply/BAT0"
    for file, content in (
        ("type", "Battery"), ("status", "Discharging"), ("voltage_now", 11400000), ("current_now", 1250000),
    ):  # fmt: skip
        write(root, f"{base}/{file}", content)
    write(root, "sys/class/power_supply/AC/type", "Mains")


def monitor(root: Path) -> None:
    """A power monitor on the supply, beside a graphics card with a sensor of its own."""
    hwmon(root, 0, "amdgpu", power1_input=30_000_000)
    hwmon(root, 1, "ina226", power1_input=4_321_000, power1_label="VIN")


TREES: dict[str, Callable[[Path], None]] = {
    "jetson_nano": jetson_nano,
    "jetson_orin_nano": jetson_orin_nano,
    "jetson_agx_orin": jetson_agx_orin,
    "rpi4": rpi4,
    "rpi5": rpi5,
    "rk3588": rk3588,
    "x86": x86,
    "battery": battery,
    "monitor": monitor,
}


def build(root: Path, name: str) -> Path:
    """The tree of that name below `root`; the root itself."""
    TREES[name](root)
    return root
