"""The soak's look at a unit and its activation with a real systemd: a crash loop, and the way out of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
ROOT = Path(__file__).parents[2]

UNIT = """[Unit]
StartLimitIntervalSec=60
StartLimitBurst=5
[Service]
ExecStart=/bin/sh -c 'test -e /run/good && exec sleep infinity; sleep 0.2; exit 7'
Restart=on-failure
RestartSec=0.1
"""

PROBE = """
import json, sys, threading, time
from pathlib import Path
from msgspec import to_builtins
from agent import soak
from agent.adapters.hooks import CommandHooks
from agent.adapters.units import SystemdUnits
from agent.config_life import HookConfig

hooks = {
    "app": HookConfig(unit="camera.service", activate_unit="restart"),
    "gone": HookConfig(unit="no.service"),
}
units, commands, good = SystemdUnits(hooks), CommandHooks(hooks), Path("/run/good")
said = {"unknown": units.problem("gone"), "before": to_builtins(units.state("app"))}

def activate():
    commands.activate("app", Path("/x"), threading.Event())

def settle(active):
    end_s = time.monotonic() + 20
    while units.state("app").active != active and time.monotonic() < end_s:
        time.sleep(0.05)
    return to_builtins(units.state("app"))

good.touch()
activate()
baseline = soak.Baseline(unit=units.state("app"))
said["well"] = to_builtins(baseline.unit)
good.unlink()
activate()
watch, verdicts = soak.begin(baseline), []
while not verdicts or verdicts[-1].word == "go_on":
    watch, verdict = soak.look(watch, soak.Look(left_s=9.0, unit=units.state("app")), soak.Rules())
    verdicts.append(verdict)
    time.sleep(0.1)
said["reason"] = to_builtins(verdicts[-1].reason)
said["worn out"] = settle("failed")
good.touch()
activate()
said["back"] = settle("active")
print(json.dumps(said))
"""


def test_a_crash_loop_is_seen_and_left_again(bare: Machine) -> None:
    bare.write("/etc/systemd/system/camera.service", UNIT)
    bare.run("systemctl", "daemon-reload")
    probe = bare.run(sys.executable, "-c", PROBE, PYTHONPATH=str(ROOT))
    bare.run("systemctl", "stop", "camera")
    said = json.loads(probe.stdout)
    assert "LoadState is not-found" in said["unknown"]
    assert said["before"]["active"] == "inactive"
    assert (said["well"]["active"], said["well"]["restarts"]) == ("active", 0)
    assert said["reason"]["code"] == "unit_crash_loop"
    assert "exit-code" in said["reason"]["detail"]
    assert said["worn out"]["active"] == "failed"
    assert said["worn out"]["restarts"] >= 3
    assert (said["back"]["active"], said["back"]["restarts"]) == ("active", 0), (
        "its start limit was not lifted"
    )
    assert said["back"]["invocation"] != said["well"]["invocation"]
