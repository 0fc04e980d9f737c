"""The units by themselves: spelt right, closed to what they need not, and in step with the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent.config import Config, TrialConfig, load
from agent.runner import Pace
from agent.worker.limits import WorkerLimits
from fleet.config import load as load_fleet
from tests.systemd.units import ALL, EXPOSURE_MAX, ROOT, SERVICES, SYSTEMD, UNITS, analyze, values


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)s?", text)
    assert found is not None, text
    return float(found[1])


def staged(folder: Path) -> Path:
    """Copies of the units, whose programs are there: what they start is installed in a real machine only."""
    shutil.copytree(UNITS, folder / "units")
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in (folder / "units").glob("*.service"):
        path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", path.read_text()))
    return folder / "units"


def verified(folder: Path, unit: str) -> str:
    # Its exit code is 0 on a misspelt key, which only its standard error tells.
    return analyze("verify", "--man=no", "--recursive-errors=no", str(folder / unit)).stderr


@pytest.mark.parametrize("unit", ALL)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: str, tmp_path: Path) -> None:
    assert verified(staged(tmp_path), unit) == ""


def test_a_misspelt_key_would_be_found(tmp_path: Path) -> None:
    folder = staged(tmp_path)
    path = folder / "shallop-agent.service"
    path.write_text(path.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in verified(folder, path.name)


@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_is_exposed_little(unit: str) -> None:
    found = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", str(UNITS / unit))
    assert found.returncode == 0, found.stdout[-1000:]
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", found.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= EXPOSURE_MAX
    told = re.search(rf"\| `{re.escape(unit)}` \| ([\d.]+)", (ROOT / "docs" / "install.md").read_text())
    assert told is not None
    # Another version of systemd weighs a little differently.
    assert abs(float(told[1]) - float(exposure[1])) <= 0.3


@pytest.mark.parametrize("unit", ["shallop-agent.service", "shallop-fleet.service"])
def test_a_daemon_is_never_given_up(unit: str) -> None:
    assert values(unit, "Restart") == ["always"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert seconds(values(unit, "RestartSec")[0]) >= 1


def test_a_trial_or_a_busy_socket_leaves_nothing_dead_behind() -> None:
    assert values("shallop-worker@.service", "CollectMode") == ["inactive-or-failed"]
    assert values("shallop-worker@.service", "StartLimitIntervalSec") == ["0"]
    assert values("shallop-worker.socket", "TriggerLimitIntervalSec") == ["0"]


def test_the_watchdog_waits_several_times_as_long_as_the_loop_sleeps() -> None:
    assert seconds(values("shallop-agent.service", "WatchdogSec")[0]) >= 4 * Pace().idle_s


def test_the_daemon_may_end_in_order() -> None:
    assert seconds(values("shallop-agent.service", "TimeoutStopSec")[0]) >= 5 * Pace().stop_s


def test_the_units_limits_lie_above_those_that_the_agent_sets_by_itself() -> None:
    limits, unit = WorkerLimits(), "shallop-worker@.service"
    assert int(values(unit, "LimitAS")[0].removesuffix("G")) * 1024**3 >= limits.memory_bytes_max
    assert int(values(unit, "LimitFSIZE")[0].removesuffix("M")) * 1024**2 >= limits.file_bytes_max
    assert int(values(unit, "LimitCPU")[0]) >= limits.cpu_s_max
    assert seconds(values(unit, "RuntimeMaxSec")[0]) > TrialConfig().wall_s_max


def test_the_state_directory_is_the_configurations() -> None:
    assert [f"/var/lib/{name}" for name in values("shallop-agent.service", "StateDirectory")] == [
        Config().state_dir
    ]


def test_the_configurations_that_are_installed_can_be_read() -> None:
    assert load(SYSTEMD / "config" / "agent.yaml").broker.host == "127.0.0.1"
    assert load_fleet(SYSTEMD / "config" / "fleet.yaml", {}).data == "/var/lib/shallop-fleet"


@pytest.mark.parametrize("name", ["agent", "fleet"])
def test_what_is_commented_out_can_be_used_too(name: str, tmp_path: Path) -> None:
    text = (SYSTEMD / "config" / f"{name}.yaml").read_text()
    path = tmp_path / "all.yaml"
    path.write_text(re.sub(r"(?m)^(\s*)# (?=( *)[a-z_]+:)", r"\1", text))
    if name == "agent":
        config = load(path)
        assert config.device == "roof-17"
        assert config.insecure_unsigned
        assert config.broker.password_file
        assert config.hooks["digits"].activate[0] == "systemctl"
    else:
        assert load_fleet(path, {}).insecure_unsigned


def test_the_brokers_drop_in_names_what_is_installed_and_roots() -> None:
    """A missing file would be passed over; from a folder of anybody else OpenSSL would load their library."""
    drop_in = (UNITS / "mosquitto.service.d" / "shallop.conf").read_text()
    (named,) = re.findall(r"^Environment=OPENSSL_CONF=(\S+)$", drop_in, re.MULTILINE)
    script = (SYSTEMD / "install.sh").read_text()
    assert f"\nOPENSSL={named}\n" in script
    assert 'install -m 644 "$HERE/mosquitto/openssl.cnf" "$OPENSSL"' in script
    assert Path(named).parent == Path("/etc/mosquitto")
