"""What the doctor's probes find: in trees of eight devices, real state directories, a real worker."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import helper

from agent import cli
from agent.adapters import doctor, probe_machine, probe_places, probe_runtimes, probe_sensors
from agent.adapters.locks import StateLock, state_lock_held
from agent.adapters.trial_process import TrialProcess
from agent.config import Config, parse
from agent.config_life import HookConfig
from agent.doctor.finding import Finding, Status, ok
from agent.journal import JournalFile
from agent.worker.limits import WorkerLimits
from tests import device_trees
from tests.agent.rig import ONE, TWO, deploy, running
from tests.agent.test_trust import enrol
from tests.agent.twins import MemoryTrials
from wire.messages import RuntimeInfo

ROOT = Path(__file__).parents[2]

MOUNTS = """\
22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw,nobarrier
23 22 0:21 / /proc rw - proc proc rw
31 22 179:1 / /boot/firmware rw - vfat /dev/mmcblk0p1 rw
40 22 0:40 / /var/lib/with\\040space rw - tmpfs tmpfs rw
41 22 0:41 / /mnt rw - ext4 /dev/sda1 rw
42 41 0:42 / /mnt ro - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/shallop", "ext4"), ("/boot/firmware/x", "vfat"), ("/boot", "ext4"), ("/", "ext4"),
        ("/var/lib/with space/x", "tmpfs"), ("/mnt/x", "overlay"), ("/mnt2", "ext4"),
    ],
)  # fmt: skip
def test_the_mount_that_holds_a_path(path: str, kind: str) -> None:
    assert probe_machine.mount_of(Path(path), MOUNTS)[0] == kind


def test_the_options_of_a_mount() -> None:
    assert "nobarrier" in probe_machine.mount_of(Path("/var"), MOUNTS)[1]
    assert probe_machine.mount_of(Path("/var"), "nonsense\n1 2 - \n") == (None, ())


def test_the_disk_is_that_of_the_nearest_directory(tmp_path: Path) -> None:
    facts = probe_machine.disk(tmp_path / "not" / "yet", 1000)
    assert facts.path == str(tmp_path)
    assert 0 < facts.free_bytes <= facts.total_bytes
    assert facts.largest_bytes is None
    assert facts.kind
    release = tmp_path / "models" / "m" / "releases" / "one"
    release.mkdir(parents=True)
    (release / "model.onnx").write_bytes(bytes(5000))
    assert probe_machine.disk(tmp_path, 1000).largest_bytes == 5000


def test_memory_of_a_raspberry_pi(tmp_path: Path) -> None:
    assert probe_machine.memory(tmp_path).controllers is None
    device_trees.write(tmp_path, "proc/cmdline", "coherent_pool=1M cgroup_disable=memory rootwait")
    device_trees.write(tmp_path, "boot/firmware/cmdline.txt", "rootwait")
    device_trees.write(tmp_path, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids")
    device_trees.write(
        tmp_path, "proc/cgroups", "#subsys_name hierarchy num_cgroups enabled\nmemory\t0\t1\t0"
    )
    facts = probe_machine.memory(tmp_path)
    assert facts.controllers == ("cpuset", "cpu", "io", "pids")
    assert facts.v1_memory is False
    assert facts.boot_file == "/boot/firmware/cmdline.txt"
    assert "cgroup_disable=memory" in facts.cmdline


def test_clock_and_kernel_of_this_machine(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for path, time_s in ((new, 2e9), (old, 1e9)):
        path.touch()
        os.utime(path, (time_s, time_s))
    facts = probe_machine.clock([old, new, tmp_path / "none"])
    assert facts.newest_s == 2e9
    assert abs(facts.now_s - time.time()) < 60
    assert facts.synchronised in {True, False, None}
    kernel = probe_machine.kernel()
    assert kernel.release == os.uname().release
    assert kernel.landlock_abi >= 0


SENSORS = {
    "rpi4": (None, 52.095, False, None), "rpi5": ("rpi5_pmic", 48.55, False, True),
    "jetson_nano": ("ina3221x_POM_5V_IN", 35.5, None, None), "battery": ("battery", None, None, None),
    "x86": ("rapl_package", 61.0, False, True), "rk3588": (None, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(device_trees.TREES))
def test_sensors_of_eight_devices(tmp_path: Path, name: str) -> None:
    """What is found is what a trial would use: the readers are the same and have tests of their own."""
    root = device_trees.build(tmp_path, name)
    facts = probe_sensors.sensors(root)
    if name in SENSORS:
        sensor, temperature, now, before = SENSORS[name]
        assert (facts.power_sensor is None) == (sensor is None)
        assert facts.temperature_c == (None if temperature is None else pytest.approx(temperature))
        assert (facts.throttled, facts.throttled_before) == (now, before)
    if facts.power_sensor is not None and name != "x86":
        assert facts.watts is not None
        assert facts.watts > 0
    assert (facts.firmware_bits == 0x50000) == (name == "rpi5")


# --- places -----------------------------------------------------------------------------------------


def test_paths_of_a_configuration(tmp_path: Path) -> None:
    script = tmp_path / "reload"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o644)
    config = Config(
        state_dir=str(tmp_path / "state"),
        hooks={"digits": HookConfig(activate=(str(script),), health=("sh", "-c", "true"))},
        broker=replace(Config().broker, password_file=str(tmp_path / "secret")),
    )
    found = {
        (facts.role, facts.label): facts for facts in probe_places.paths(config, tmp_path / "agent.yaml")
    }
    assert found["config", ""].error == "missing"
    assert found["secret", ""].error == "missing"
    assert stat.S_IMODE(found["hook", "digits/activate"].mode) == 0o644
    assert found["hook", "digits/health"].path == "/usr/bin/sh"
    assert found["lock_dir", ""].mode & 0o1000


def test_a_state_directory_that_is_sound(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
    facts = probe_places.state(tmp_path)
    (slot,) = facts.slots
    assert (slot.model, slot.pointed, slot.readable, slot.whole) == ("digits", slot.expected, True, True)
    assert slot.expected is not None
    assert slot.expected.startswith(TWO.digest)
    assert (facts.leftovers, facts.notes, facts.error, facts.busy) == ((), (), "", False)


def test_a_state_directory_that_is_not(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
    model = tmp_path / "models" / "digits"
    (model / "releases" / f"{ONE.digest}-x.part").mkdir()
    (tmp_path / "blobs").mkdir(exist_ok=True)
    (tmp_path / "blobs" / ("c" * 64)).write_bytes(bytes(100))
    (model / "current" / "model.onnx").write_bytes(b"spoilt")
    facts = probe_places.state(tmp_path)
    assert facts.slots[0].whole is False
    assert [name for name, _ in facts.leftovers] == [
        f"models/digits/releases/{ONE.digest}-x.part", f"blobs/{'c' * 64}",
    ]  # fmt: skip
    (model / "current").unlink()
    (model / "current").symlink_to(f"releases/{ONE.digest}-x.part")
    assert probe_places.state(tmp_path).slots[0].pointed == f"{ONE.digest}-x.part"
    (tmp_path / "journal.json").write_text("torn")
    assert probe_places.state(tmp_path).notes != ()
    (tmp_path / "journal.1").write_text("torn")
    assert probe_places.state(tmp_path).error_code == "journal_lost"
    assert not probe_places.state(tmp_path / "none").exists


def test_looking_takes_no_lock_and_sees_it(tmp_path: Path) -> None:
    assert state_lock_held(tmp_path) is False
    lock = StateLock(tmp_path)
    lock.acquire()
    assert state_lock_held(tmp_path) is True
    assert probe_places.person(tmp_path).uid == os.geteuid()
    JournalFile(tmp_path).load()
    lock.release()
    assert state_lock_held(tmp_path) is False
    assert state_lock_held(tmp_path, proc=tmp_path / "no-proc") is None


# --- runtimes ---------------------------------------------------------------------------------------


def test_the_tiny_models_run_in_the_real_worker(tmp_path: Path) -> None:
    runner = TrialProcess(tmp_path / "trials", WorkerLimits(wall_s_max=30.0))
    facts = probe_runtimes.runtimes(None, runner, tmp_path)
    assert facts.error == ""
    assert facts.packages["numpy"] == np.__version__
    tried = {one.name: one for one in facts.tries}
    assert set(tried) >= {"onnxruntime", "ai-edge-litert"}
    for one in facts.tries:
        assert one.load_ms is not None, one


def test_the_tiny_onnx_model_is_what_its_comment_says() -> None:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "t", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    model.producer_name = ""
    assert base64.b64decode(probe_runtimes._ONNX) == model.SerializeToString()
    assert zlib.decompress(base64.b64decode(probe_runtimes._TFLITE))[4:8] == b"TFL3"


def test_the_shard_is_what_numpy_reads(tmp_path: Path) -> None:
    probe_runtimes._write_shard(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz", allow_pickle=False) as shard:
        assert shard["input/x"].tolist() == [[-1, 0, 1, 2]]
        assert shard["input/x"].dtype == np.float32


def test_a_runtime_that_does_not_run_says_why(tmp_path: Path) -> None:
    tight = TrialProcess(tmp_path / "trials", WorkerLimits(wall_s_max=30.0, memory_bytes_max=100 * 1024**2))
    info = RuntimeInfo(name="onnxruntime", version="1")
    one = probe_runtimes.try_runtime(info, tight, tmp_path)
    assert (one.load_ms, one.code) == (None, "trial_out_of_memory")
    silent = probe_runtimes.runtimes(str(tmp_path / "no-python"), tight, tmp_path)
    assert "no-python" in silent.error


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(f"device: roof-17\nstate_dir: {tmp_path}/state\nbroker: {{port: 1}}\n")
    path.chmod(0o640)
    return path


def test_the_command_before_the_agent_ever_ran(config_file: Path) -> None:
    """As a process of its own, with nothing there: it changes nothing."""
    command = [sys.executable, "-m", "agent", "doctor", "--json", "--config", str(config_file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert run.returncode == 3, run.stderr
    found = {row["name"]: row for row in json.loads(run.stdout)}
    assert found["broker"]["status"] == "problem"
    assert "Connection refused" in found["broker"]["detail"]
    assert found["device_id"]["status"] == "ok"
    assert found["journal"]["status"] == "unknown"
    assert set(found["clock"]) == {"name", "status", "detail", "remedy"}
    assert not (config_file.parent / "state").exists()


def test_a_bad_configuration_is_no_problem_of_the_machine(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text("nonsense: 1\n")
    assert cli.main(["doctor", "--config", str(config_file)]) == 2
    assert "nonsense" in capsys.readouterr().err


def visit(tmp_path: Path, config: Config, root: Path = Path("/")) -> doctor.Doctor:
    return doctor.Doctor(config, tmp_path / "agent.yaml", "roof-17", MemoryTrials(), tmp_path, root)


@pytest.mark.parametrize("name", sorted(device_trees.TREES))
def test_a_visit_to_each_of_eight_devices(tmp_path: Path, name: str) -> None:
    """Every probe answers, whatever the tree lacks, and every finding has its words."""
    root = device_trees.build(tmp_path / "root", name)
    device_trees.write(root, "proc/cmdline", "cgroup_disable=memory root=/dev/mmcblk0p2")
    device_trees.write(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids")
    device_trees.write(root, "proc/self/mountinfo", MOUNTS)
    config = parse(f"state_dir: {tmp_path}/state\nbroker: {{port: 1}}\n")
    found = {f.name: f for f in visit(tmp_path, config, root).examine()}
    assert not [f for f in found.values() if "could not be looked at" in f.detail]
    assert found["memory_cgroup"].status is Status.WARNING
    assert found["file_system"].status is Status.WARNING, "mounted without barriers"
    assert found["systemd"].status is Status.UNKNOWN
    if name == "rpi5":
        assert f"rpi5_pmic reads {device_trees.PMIC_WATTS:.2f} W" in found["power"].detail
        assert "under-voltage, throttled" in found["throttling"].detail
        assert found["throttling"].status is Status.WARNING
    if name == "rpi4":
        assert "Raspberry Pi 4" in found["power"].detail
        assert found["power"].status is Status.UNKNOWN


def test_a_probe_that_hangs_or_breaks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Finding]:
        raise OSError("stale file handle")

    def hangs() -> list[Finding]:
        time.sleep(3600)
        return []

    looks = (("disk", 0.1, hangs), ("clock", 5.0, broken), ("trust", 5.0, lambda: [ok("trust", "yes")]))
    monkeypatch.setattr(doctor.Doctor, "probes", lambda _: looks)
    found = visit(tmp_path, Config()).examine()
    assert [(f.name, f.status) for f in found] == [
        ("disk", Status.UNKNOWN), ("clock", Status.UNKNOWN), ("trust", Status.OK),
    ]  # fmt: skip
    assert "no answer" in found[0].detail
    assert "stale file handle" in found[1].detail


def test_a_secret_that_cannot_be_read_is_a_problem_and_not_the_end(tmp_path: Path) -> None:
    config = parse(f"state_dir: {tmp_path}\nbroker: {{port: 1, password_file: {tmp_path}/none}}\n")
    found = {f.name: f for f in visit(tmp_path, config).examine()}
    assert found["broker"].status is Status.PROBLEM
    assert "password_file" in found["broker"].detail
    assert found["permissions:secret"].status is Status.PROBLEM


def test_whom_a_real_state_directory_believes(tmp_path: Path) -> None:
    look = visit(tmp_path, parse(f"state_dir: {tmp_path}"))
    assert look._trust().enrolled is False
    enrol(tmp_path)
    assert (look._trust().enrolled, look._trust().root) == (True, 1)
    (tmp_path / "trust.json").write_bytes(b"torn")
    assert "trust.json" in look._trust().error


def test_every_probe_has_a_limit(tmp_path: Path) -> None:
    limits = [limit_s for _, limit_s, _ in visit(tmp_path, Config()).probes()]
    assert all(0 < limit_s <= 60 for limit_s in limits)
