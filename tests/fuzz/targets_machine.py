"""Targets: what the machine says of itself: sysfs, procfs, the firmware's tool, systemd.

For: power, temperature and throttling on files of hostile text; a board's identity; `vcgencmd` and
`systemctl show`. A figure is a finite number or None.
Not for: files of our own (`tests.fuzz.targets_state`).
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from agent import hardware
from agent.adapters import power, power_linux, readiness, sensors, thermal
from agent.adapters.power_rpi import pmic_watts
from agent.adapters.units import parse_show
from tests import device_trees as trees
from tests.fuzz.formats import bent_tree_of_files
from tests.fuzz.mutate import text_of
from tests.fuzz.places import emptied
from tests.fuzz.target import Target
from wire import codec
from wire.messages import Identity

_NUMBERS = (
    b"", b"0", b"-1", b"1e308", b"-1e308", b"1e999", b"nan", b"inf", b"0x10", b"1_000", b"9" * 400,
    b"9" * 5000, b"\xff\xfe",
    b"12\n13", b" 7 ", b"\xc2\xb2", b"\xd9\xa3", b"Discharging", b"Battery", b"package-0", b"ina226",
    b"VDD_IN",
    b"MemTotal: " + b"9" * 5000 + b" kB", b"CPU part : 0x" + b"f" * 6000, b"cpu MHz\t\t: 9.9.9", b"0-99999",
    b"1-0,5",
    b"cpu  1 2 3 4 5 6 7 8", b"cpu  " + b"9" * 4000 + b" -" + b"9" * 4000 + b" 1 1 1 1 1 1",
    b"cpu  9 9 9 9 9 9 9 9",
)  # fmt: skip
PMIC = b"""     3V7_WL_SW_A current(0)=0.00195184A
       3V3_SYS_A current(1)=0.07026624A
     3V7_WL_SW_V volt(8)=3.70501200V
       3V3_SYS_V volt(9)=3.31018900V
        EXT5V_V volt(24)=5.14973000V
          BATT_V volt(25)=0.00976800V
"""


def _tree(data: bytes) -> Path:
    """A tree of the files that the text lists."""
    root = emptied("tree")
    for part in data.split(b"\n>")[:200]:
        path, _, content = part.partition(b"\n")
        name = path.lstrip(b">/").decode("ascii", "replace")
        place = root / name
        if ".." in name or not name or len(name) > 200 or "\0" in name or place.is_dir():
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        except OSError:
            continue
    return root


def _read(data: bytes) -> object:
    root = _tree(data)
    sensor, model = power.find_sensor(root), power.find_model(root)
    ticks = iter(range(1, 100))
    rapl = power_linux.rapl(root, lambda: float(next(ticks)))
    figures = [one.watts() for one in (sensor, model, rapl) if one is not None for _ in range(2)]
    figures += [thermal.temperature_c(root), thermal.cpu_mhz(root), *thermal.temperatures_c(root).values()]
    charges = [one.percent for one in readiness.supplies(root) or ()]
    assert all(percent is None or 0.0 <= percent <= 100.0 for percent in charges), charges
    figures += charges
    for figure in figures:
        assert figure is None or math.isfinite(figure), f"a figure that is no number: {figure}"
    found = hardware.detect(root, arch="aarch64")
    identity = Identity(
        device="roof-17",
        install_id="a" * 32,
        number=1,
        agent_version="1",
        hardware=found,
        os=hardware.operating_system(root),
    )
    told = codec.decode(codec.encode(identity), Identity, 2**20)
    assert told.hardware == found
    name = hardware.device_id(root)
    if name is not None:
        msgspec.convert(name, codec._DECODERS and hardware_device())
    return thermal.throttling(root), thermal.raised_flags(root), found, name


def hardware_device() -> object:
    """The type of a device's id."""
    from wire.types import DeviceId  # noqa: PLC0415 - an annotation, named where it is used

    return DeviceId


def _trees() -> dict[str, bytes]:
    found = {}
    for make in (trees.rpi4, trees.rpi5, trees.jetson_nano, trees.jetson_orin_nano, trees.jetson_agx_orin):
        root = emptied("made")
        make(root)
        found[make.__name__] = _listed(root)
    laptop = {
        "sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/status": "Discharging",
        "sys/class/power_supply/BAT0/voltage_now": "12000000",
        "sys/class/power_supply/BAT0/current_now": "500000",
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": "123456",
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850", "etc/machine-id": "ab" * 16,
        "sys/class/hwmon/hwmon3/name": "ina226", "sys/class/hwmon/hwmon3/power1_input": "5000000",
        "proc/cpuinfo": "processor: 0\ncpu MHz\t\t: 2400.1\nflags: avx2",
        "etc/os-release": 'PRETTY_NAME="Debian"',
        "proc/meminfo": "MemTotal:  16000 kB",
    }  # fmt: skip
    found["laptop"] = b"\n".join(b">%s\n%s" % (k.encode(), v.encode()) for k, v in laptop.items())
    return found


def _listed(root: Path) -> bytes:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return b"\n".join(
        b">%s\n%s" % (str(path.relative_to(root)).encode(), path.read_bytes()) for path in files
    )


def _firmware(data: bytes) -> object:
    said = data[: sensors.FILE_BYTES_MAX].decode("utf-8", "replace")
    watts = pmic_watts(said)
    assert watts is None or math.isfinite(watts)
    before = list(sensors._elsewhere)
    sensors.ask_elsewhere(lambda _question: said)
    try:
        root = emptied("firmware")
        return watts, thermal.throttling(root), thermal.raised_flags(root)
    finally:
        sensors._elsewhere[:] = before


def _unit(data: bytes) -> object:
    return parse_show("camera.service", data.decode("utf-8", "replace"))


_SHOWN = b"LoadState=loaded\nActiveState=active\nResult=success\nNRestarts=3\nInvocationID=ab\n"

TARGETS: tuple[Target, ...] = (
    Target(name="machine.tree", run=_read, seeds=_trees, mutate=bent_tree_of_files(_NUMBERS), weight=6,
    guided=True),
    Target(
        name="machine.vcgencmd", run=_firmware, weight=40, guided=True,
        seeds=lambda: {"pmic": PMIC, "throttled": b"throttled=0x50005\n"},
        mutate=text_of(*_NUMBERS, b"throttled=0x", b"_A current(0)=", b"_V volt(1)=", b"1.2.3A", b"A" * 3000),
    ),
    Target(
        name="machine.systemctl", run=_unit, seeds=lambda: {"shown": _SHOWN}, weight=40,
        mutate=text_of(*_NUMBERS, b"NRestarts=", b"LoadState=loaded", b"="),
    ),
)  # fmt: skip
