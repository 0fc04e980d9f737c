"""What machine it is, read from trees of machines."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import hardware
from agent.hardware import compatible
from tests.device_trees import A72_FLAGS, TREES, X86_FLAGS, build, write
from wire.bundle import Requirements
from wire.messages import Hardware, RuntimeInfo
from wire.types import DeviceId

REPOSITORY = Path(__file__).parent.parent.parent

MACHINES = {
    "jetson_nano": ("NVIDIA Jetson Nano Developer Kit", "Cortex-A57", 4, 4059264),
    "jetson_orin_nano": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "Cortex-A78AE",
        6,
        7802940,
    ),
    "jetson_agx_orin": ("NVIDIA Jetson AGX Orin Developer Kit", "Cortex-A78AE", 12, 0),
    "rpi4": ("Raspberry Pi 4 Model B Rev 1.5", "Cortex-A72", 4, 3884368),
    "rpi5": ("Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", 4, 8245776),
    "rk3588": ("Radxa ROCK 5B", "Cortex-A55 + Cortex-A76", 8, 0),
    "x86": ("Imagined Server", "Imagined Xeon", 2, 0),
}


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_each_machine_is_told_as_it_is(tmp_path: Path, name: str) -> None:
    found = hardware.detect(build(tmp_path, name), arch="aarch64")
    board, cpu, cores, kib = MACHINES[name]
    assert (found.board, found.cpu, found.cores) == (board, cpu, cores)
    assert found.memory_bytes == (kib * 1024 if kib else None)


def test_features_are_those_of_the_processor(tmp_path: Path) -> None:
    assert set(hardware.detect(build(tmp_path / "a", "rpi4")).cpu_features) == set(A72_FLAGS.split())
    assert set(hardware.detect(build(tmp_path / "b", "x86")).cpu_features) == set(X86_FLAGS.split())
    assert "asimddp" in hardware.detect(build(tmp_path / "c", "rpi5")).cpu_features


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    found = hardware.detect(tmp_path, arch="riscv64")
    assert found == Hardware(arch="riscv64")
    assert (found.cpu, found.board) == ("unknown", "unknown")
    assert (found.cores, found.memory_bytes) == (None, None)
    assert hardware.operating_system(tmp_path) == "unknown"
    assert hardware.device_id(tmp_path) is None


def test_a_core_that_is_not_known_keeps_its_numbers(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "CPU implementer\t: 0x51\nCPU part\t: 0x804\n")
    assert hardware.cpu(tmp_path) == "implementer 0x51 part 0x804"


def test_cores_that_are_switched_off_do_not_count(tmp_path: Path) -> None:
    build(tmp_path, "rk3588")
    write(tmp_path, "sys/devices/system/cpu/online", "0-1,4,6-7")
    assert hardware.detect(tmp_path).cores == 5


@given(data=st.binary(max_size=300))
def test_any_bytes_in_proc_are_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    root = tmp_path_factory.mktemp("odd")
    for path in ("proc/cpuinfo", "proc/meminfo", "proc/device-tree/model", "sys/devices/system/cpu/online"):
        write(root, path, "").write_bytes(data)
    write(root, "etc/os-release", "").write_bytes(b"PRETTY_NAME=" + data)
    found = hardware.detect(root, arch="x86_64")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Hardware) == found
    assert len(hardware.operating_system(root)) <= hardware.NAME_CHARS_MAX


def test_this_machine() -> None:
    found = hardware.detect()
    assert found.arch != "unknown"
    assert found.cores is not None
    assert found.memory_bytes is not None
    assert min(found.cores, found.memory_bytes) > 0
    assert found.cpu_features


def test_the_distributions_name(tmp_path: Path) -> None:
    assert hardware.operating_system(build(tmp_path, "x86")) == "Debian GNU/Linux 12 (bookworm)"


# --- identity


def test_the_boards_serial_number_comes_first(tmp_path: Path) -> None:
    build(tmp_path, "rpi5")
    write(tmp_path, "etc/machine-id", "0" * 31 + "1")
    assert hardware.device_id(tmp_path) == "board-c1a2b3c4d5e6f708"


def test_the_serial_number_may_stand_in_cpuinfo(tmp_path: Path) -> None:
    assert hardware.device_id(build(tmp_path, "rpi4")) == "board-10000000abcdef12"


def test_a_serial_number_of_zeros_is_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/serial-number", "0000000000000000\0")
    assert hardware.device_id(tmp_path) is None


def test_the_machine_id_is_told_by_its_digest_only(tmp_path: Path) -> None:
    build(tmp_path, "x86")
    first = hardware.device_id(tmp_path)
    assert first is not None
    assert re.fullmatch("machine-[0-9a-f]{32}", first)
    assert "0123456789abcdef" not in first
    assert hardware.device_id(tmp_path) == first
    write(tmp_path, "etc/machine-id", "1123456789abcdef0123456789abcdef")
    assert hardware.device_id(tmp_path) not in {None, first}


@pytest.mark.parametrize("content", ["", "uninitialized", "short"])
def test_a_machine_id_that_is_none_yet(tmp_path: Path, content: str) -> None:
    write(tmp_path, "etc/machine-id", content)
    assert hardware.device_id(tmp_path) is None


@pytest.mark.parametrize("name", sorted(TREES))
def test_an_id_is_always_a_device_id(tmp_path: Path, name: str) -> None:
    found = hardware.device_id(build(tmp_path, name))
    assert found is None or msgspec.convert(found, DeviceId) == found


# --- runtimes


def test_the_runtime_that_is_installed_here() -> None:
    assert [runtime.name for runtime in hardware.runtimes()].count("onnxruntime") == 1


def test_a_distribution_with_another_name_brings_the_same_runtime() -> None:
    assert hardware.runtimes_of({"onnxruntime-gpu": "1.20.0"}) == (
        RuntimeInfo(name="onnxruntime", version="1.20.0"),
    )
    both = hardware.runtimes_of({"onnxruntime-gpu": "1.20.0", "onnxruntime": "1.31.1", "abacus": "1"})
    assert both == (RuntimeInfo(name="onnxruntime", version="1.31.1"),)


@pytest.mark.parametrize(
    ("suffix", "installed", "runtime"),
    [
        (".onnx", (), "onnxruntime"),
        (".tflite", (), "ai-edge-litert"),
        (".tflite", ("onnxruntime", "tflite-runtime"), "tflite-runtime"),
        (".tflite", ("tflite-runtime", "ai-edge-litert"), "ai-edge-litert"),
        (".onnx", ("tflite-runtime",), "onnxruntime"),
        (".txt", ("onnxruntime",), None),
    ],
)
def test_who_runs_a_file_is_who_is_installed(
    suffix: str, installed: tuple[str, ...], runtime: str | None
) -> None:
    found = tuple(RuntimeInfo(name=name, version="1") for name in installed)
    assert hardware.runtime_for(suffix, found) == runtime


def test_every_runtime_has_an_extra_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert set(hardware.EXTRA_OF) == set(hardware.RUNTIME_OF.values())
    for runtime, extra in hardware.EXTRA_OF.items():
        brings = [line.split(";")[0] for line in project["optional-dependencies"][extra]]
        assert any(line.startswith(f"{runtime}>=") for line in brings)


def test_looking_for_runtimes_imports_none() -> None:
    code = (
        "import sys\nfrom agent import hardware\nassert hardware.runtimes()\nhardware.detect()\n"
        "sys.exit(bool({'numpy', 'onnxruntime', 'ai_edge_litert'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


# --- requirements

PI = Hardware(arch="aarch64", cpu_features=("asimd", "fp"))


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        (Requirements(), None),
        (Requirements(arch=("aarch64", "armv7l")), None),
        (Requirements(arch=("x86_64",)), "made for x86_64, this machine is aarch64"),
        (Requirements(cpu_any=("asimd", "avx2")), None),
        (Requirements(cpu_any=("asimddp",)), "none of asimddp"),
        (Requirements(cpu_none=("asimddp",)), None),
        (Requirements(cpu_none=("fp", "asimd", "sve")), "with asimd, fp"),
        (Requirements(arch=("aarch64",), cpu_any=("fp",), cpu_none=("sve",)), None),
    ],
)
def test_requirements(requires: Requirements, reason: str | None) -> None:
    said = compatible(requires, PI)
    assert said is None if reason is None else said is not None and reason in said


@pytest.mark.parametrize("requires", [Requirements(cpu_any=("fp",)), Requirements(cpu_none=("sve",))])
def test_features_that_are_unknown_speak_against_it(requires: Requirements) -> None:
    said = compatible(requires, Hardware(arch="aarch64"))
    assert said is not None
    assert "unknown" in said


NAMES = st.sets(st.sampled_from(["a", "b", "c", "d"]), max_size=4)


@given(arch=NAMES, any_of=NAMES, none_of=NAMES, features=NAMES)
def test_requirements_are_what_their_words_say(
    arch: set[str], any_of: set[str], none_of: set[str], features: set[str]
) -> None:
    requires = Requirements(arch=tuple(arch), cpu_any=tuple(any_of), cpu_none=tuple(none_of))
    fits = (
        (not arch or "a" in arch)
        and (not any_of or bool(any_of & features))
        and not none_of & features
        and (bool(features) or not none_of)
    )
    assert (compatible(requires, Hardware(arch="a", cpu_features=tuple(features))) is None) == fits
