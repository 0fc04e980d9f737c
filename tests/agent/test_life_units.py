"""The soak of a whole agent in memory, and its adapters: systemd's answers and the kernel's flags."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from agent.adapters import units as adapter
from agent.adapters.system import boot_id
from agent.adapters.thermal import raised_flags
from agent.adapters.units import SystemdUnits, parse_show
from agent.config_life import HookConfig
from agent.soak import UnitState
from tests.agent.rig import DEVICE, ONE, TWO, Rig, deploy, running
from tests.agent.test_life_hooks import fake_systemctl
from tests.agent.twins import until
from wire.messages import OrderOutcome, Phase

UP = UnitState(active="active", result="success", restarts=0, invocation="a")


def soaking(rig: Rig) -> None:
    """Release 2 has been switched to and soaks for long."""
    deploy(rig)
    rig.broker.hold(TWO)
    rig.broker.desire(DEVICE, {"digits": TWO.order(2, soak_s=600.0)})
    until(lambda: rig.deployment.phase is Phase.SOAKING, "the soak")


def fell_back(rig: Rig, code: str) -> str:
    """The detail of the reason for which release 1 runs again."""
    state = rig.wait(2, OrderOutcome.FELL_BACK)
    assert rig.running == ONE.digest
    assert state.reason is not None
    assert state.reason.code == code
    return state.reason.detail


def test_a_crash_loop_of_the_unit_brings_the_last_release_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.units.units["digits"] = UP
        soaking(rig)
        rig.units.units["digits"] = UnitState(active="active", result="signal", restarts=3, invocation="d")
        assert "3 times" in fell_back(rig, "unit_crash_loop")


def test_a_unit_that_failed_brings_the_last_release_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.units.units["digits"] = UP
        soaking(rig)
        rig.units.units["digits"] = UnitState(active="failed", result="exit-code", invocation="d")
        assert "exit-code" in fell_back(rig, "unit_crash_loop")


def test_a_rising_flag_brings_the_last_release_back(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.flags = ("under_voltage",)
        soaking(rig)
        rig.flags = ("under_voltage", "throttled")
        detail = fell_back(rig, "throttled")
        assert "throttled" in detail
        assert "under_voltage" not in detail


def test_a_restart_in_the_soak_remembers_what_was_before_the_switch(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        soaking(rig)
        rig.stop()
        rig.flags = ("throttled",)  # raised by the release while the daemon was away
        rig.start()
        fell_back(rig, "throttled")
        assert rig.deployment.baseline is None, "the baseline is the soak's alone"


def test_a_start_of_the_machine_in_the_soak_is_where_its_flags_begin_anew(tmp_path: Path) -> None:
    """A weak supply raises under-voltage whenever the machine starts: that is no release's fault."""
    with running(tmp_path) as rig:
        rig.units.units["digits"] = UnitState(active="active", restarts=40)
        soaking(rig)
        rig.stop()
        rig.boot, rig.flags = "another start", ("under_voltage",)
        rig.units.units["digits"] = UnitState(active="active", restarts=1)
        rig.start()
        looks = rig.hooks.looks
        until(lambda: rig.hooks.looks > looks + 3, "looks after the start")
        assert rig.deployment.phase is Phase.SOAKING
        rig.units.units["digits"] = UnitState(active="active", restarts=3)
        fell_back(rig, "unit_crash_loop")


def test_a_unit_that_only_guards_and_is_unknown_is_named_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as rig:
        rig.units.units["digits"] = "systemd has no usable unit my-app.service"
        deploy(rig)
    assert "will not see a crash loop" in caplog.text
    assert "my-app.service" in caplog.text


def test_a_unit_that_must_be_told_and_is_unknown_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path) as rig:
        rig.units.units["digits"] = "systemd has no usable unit my-app.service"
        rig.units.by_unit.add("digits")
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})

        def waits() -> bool:
            reason = rig.runner.models["digits"].reason if "digits" in rig.runner.models else None
            return reason is not None and (reason.code, reason.lasting) == ("unit_unknown", "retry")

        until(waits, "the reason to wait")
        assert rig.broker.fetched == [], "something was fetched that cannot be used"
        rig.units.units["digits"] = UP
        rig.wait(1, OrderOutcome.ACTIVE)


# --- systemd's answers ------------------------------------------------------------------------------


def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> SystemdUnits:
    fake_systemctl(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return SystemdUnits({"digits": HookConfig(unit="my-app.service"), "other": HookConfig()})


LOADED = "LoadState=loaded\nActiveState=active\nResult=success\nNRestarts=4\nInvocationID=abc\n"


def test_the_unit_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f'echo "$@" > {tmp_path}/asked; printf "{LOADED}"'
    units = answering(tmp_path, monkeypatch, script)
    assert units.state("digits") == UnitState(active="active", result="success", restarts=4, invocation="abc")
    assert units.problem("digits") is None
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--no-pager show --property=")
    assert asked.endswith("-- my-app.service\n")
    assert units.state("other") is None
    assert units.problem("unheard-of") is None
    assert not units.activates("digits")


def test_an_old_systemd_counts_no_restarts() -> None:
    found = parse_show("a.service", "LoadState=loaded\nActiveState=active\n")
    assert found == UnitState(active="active", restarts=None)


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ("echo System has not been booted with systemd >&2; exit 1", "not been booted"),
        ("echo LoadState=not-found; echo ActiveState=inactive", "LoadState is not-found"),
        ("echo LoadState=masked; echo ActiveState=inactive", "LoadState is masked"),
        ("echo ActiveState=inactive", "LoadState is unknown"),
        ("true", "did not name its ActiveState"),
        ("head -c 9000000 /dev/zero", "did not name its ActiveState"),
        ("exec sleep 60", "did not answer"),
    ],
)
def test_who_cannot_tell_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, named: str
) -> None:
    monkeypatch.setattr(adapter, "ANSWER_S_MAX", 0.5 if "sleep" in script else 20.0)
    units = answering(tmp_path, monkeypatch, script)
    problem = units.problem("digits")
    assert problem is not None
    assert named in problem


def test_a_machine_without_systemctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    units = SystemdUnits({"digits": HookConfig(unit="my-app.service")})
    with caplog.at_level(logging.WARNING):
        assert [units.state("digits") for _ in range(3)] == [None, None, None]
    assert caplog.text.count("systemctl cannot be started") == 1, "a line for every look"


def test_a_start_of_the_machine_has_an_id(tmp_path: Path) -> None:
    assert len(boot_id(Path("/"))) == 36
    assert boot_id(tmp_path) == ""


# --- flags ------------------------------------------------------------------------------------------


def vcgencmd(root: Path, answer: str) -> None:
    path = root / "usr/bin/vcgencmd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        ("throttled=0x0", ()),
        ("throttled=0x50005", ("under_voltage", "throttled")),
        ("throttled=0x50000", ("under_voltage", "throttled")),
        ("throttled=0x8", ("soft_temperature_limit",)),
        ("throttled=0x20000", ("frequency_capped",)),
        ("throttled=0xfff0fff0", ()),
    ],
)
def test_the_firmwares_bits_have_names(tmp_path: Path, answer: str, flags: tuple[str, ...]) -> None:
    vcgencmd(tmp_path, answer)
    assert raised_flags(tmp_path) == flags


def test_the_kernels_alarm_and_the_cores_events_are_flags_too(tmp_path: Path) -> None:
    assert raised_flags(tmp_path) is None
    count = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("0\n")
    assert raised_flags(tmp_path) == ()
    count.write_text("7\n")
    assert raised_flags(tmp_path) == ("core_throttled",)
    alarm = tmp_path / "sys/class/hwmon/hwmon3"
    alarm.mkdir(parents=True)
    (alarm / "name").write_text("rpi_volt\n")
    (alarm / "in0_lcrit_alarm").write_text("1\n")
    assert raised_flags(tmp_path) == ("under_voltage",)
