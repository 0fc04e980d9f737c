"""Hooks that misbehave: they flood, hang, ignore signals, leave daemons, or must not know what we know."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from agent.adapters import hooks as module
from agent.adapters.hooks import OUTPUT_BYTES_MAX, CommandHooks
from agent.config import parse
from agent.config_life import HookConfig
from agent.errors import Cancelled, ConfigError, FinalError
from tests.agent.twins import until

ROOT = Path(__file__).parents[2]
SURE = threading.Event()
CURRENT = Path("/x/current")


def health(script: str, timeout_s: float = 20.0) -> str | None:
    hooks = CommandHooks({"digits": HookConfig(timeout_s=timeout_s, health=("sh", "-c", script))})
    return hooks.healthy("digits", CURRENT, SURE)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_flood_is_read_and_forgotten_but_for_its_end() -> None:
    ill = health("yes 'no news' | head -c 30000000; echo; echo the camera is gone >&2; exit 9")
    assert ill is not None
    assert ill.startswith("exit code 9: ")
    assert ill.endswith("the camera is gone")
    assert len(ill) <= OUTPUT_BYTES_MAX + 20


def test_an_endless_flood_ends_with_its_time() -> None:
    assert health("exec yes", 0.3) == "no answer within 0.3 s"


def test_a_hook_that_closes_its_output_is_waited_for() -> None:
    assert health("exec >&- 2>&-; sleep 0.2; exit 4") == "exit code 4: "


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    ill = health(r"printf 'bad \377 byte'; exit 1")
    assert ill == "exit code 1: bad � byte"


def test_a_hook_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {pid_file}; while true; do sleep 0.05; done"
    assert health(script, 0.4) == "no answer within 0.4 s"
    assert not alive(int(pid_file.read_text()))


def test_a_hook_that_is_called_off_may_tidy_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TERM_GRACE_S", 20.0)
    tidied, ready, cancel = tmp_path / "tidied", tmp_path / "ready", threading.Event()
    script = f"trap 'echo yes > {tidied}; exit 0' TERM; echo > {ready}; while true; do sleep 0.02; done"
    hooks = CommandHooks({"digits": HookConfig(timeout_s=60, activate=("sh", "-c", script))})

    def call_off() -> None:
        until(ready.exists, "the hook's start")
        cancel.set()

    helper = threading.Thread(target=call_off)
    helper.start()
    with pytest.raises(Cancelled):
        hooks.activate("digits", CURRENT, cancel)
    helper.join()
    assert tidied.read_text() == "yes\n"


def test_what_a_hook_leaves_in_its_group_ends_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert health(f"sleep 60 & echo $! > {pid_file}; exit 0") is None
    until(lambda: not alive(int(pid_file.read_text())), "the end of what was left behind")


def test_a_daemon_that_left_the_group_lives_on_and_holds_nobody_up(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "import os, sys, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        f"open({str(pid_file)!r} + '.part', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(pid_file)!r} + '.part', {str(pid_file)!r})\n"
        "time.sleep(60)\n"
    )
    # The hook itself waits until the daemon left the group: the race is the daemon's, and not asked here.
    wait = f'{sys.executable} -c "$1"; while ! test -f {pid_file}; do sleep 0.02; done'
    command = ("sh", "-c", wait, "hook", program)
    CommandHooks({"digits": HookConfig(activate=command)}).activate("digits", CURRENT, SURE)
    pid = int(pid_file.read_text())
    try:
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_hook_does_not_inherit_what_systemd_gave_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("MY_CAMERA", "front")
    said = health('echo "$NOTIFY_SOCKET|$WATCHDOG_USEC|$MY_CAMERA|$SHALLOP_MODEL|$SHALLOP_CURRENT"; exit 1')
    assert said == "exit code 1: ||front|digits|/x/current"


def test_a_hook_inherits_no_open_file(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        said = health("ls -l /proc/self/fd; exit 1")
    assert said is not None
    assert "secret" not in said


PRIVILEGED = """
import logging, sys, threading
from pathlib import Path
from agent.adapters import hooks
from agent.adapters import hooks as module
from agent.adapters.hooks import CommandHooks
from agent.config_life import HookConfig
hooks.KILL_S_MAX = 0.2
logging.basicConfig()
script = "import os, time; os.setuid(0); time.sleep(float(%r)); raise SystemExit(3)"
for sleep_s, timeout_s in (("0", 20.0), ("4", 0.3)):
    health = (sys.argv[1], "-I", "-S", "-c", script % sleep_s)
    made = CommandHooks({"digits": HookConfig(timeout_s=timeout_s, health=health)})
    print(made.healthy("digits", Path("/x"), threading.Event()))
"""


def test_a_hook_that_took_other_rights_ends_or_is_left_alone(tmp_path: Path) -> None:
    """As `sudo` does: the agent may not signal it, not even to see that it is a zombie."""
    if os.geteuid() != 0:
        pytest.skip("a program that takes root's rights is made by root only: sudo make test")
    base = Path(tempfile.mkdtemp(prefix="shallop-", dir="/tmp"))
    base.chmod(0o755)
    try:
        setuid = Path(shutil.copy(os.path.realpath("/usr/bin/python3"), base / "python-as-root"))
        setuid.chmod(0o4755)
        run = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", PRIVILEGED,
             str(setuid)],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )  # fmt: skip
    finally:
        shutil.rmtree(base)
    assert run.stdout.splitlines() == ["exit code 3: ", "no answer within 0.3 s"]
    assert "left alone" in run.stderr


# --- activation by unit -----------------------------------------------------------------------------


def fake_systemctl(folder: Path, script: str) -> None:
    """A `systemctl` for the front of PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "systemctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_systemd_is_asked_to_reload_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_systemctl(tmp_path / "bin", f'echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    config = parse("hooks: {digits: {unit: my-app.service, activate_unit: reload-or-restart}}")
    CommandHooks(config.hooks).activate("digits", CURRENT, SURE)
    said = (tmp_path / "asked").read_text()
    assert said.splitlines() == [
        "--no-pager --no-ask-password reset-failed -- my-app.service",
        "--no-pager --no-ask-password reload-or-restart -- my-app.service",
    ]


def test_a_unit_that_need_not_be_forgiven_is_reloaded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_systemctl(tmp_path / "bin", f'case "$*" in *reset-failed*) exit 1;; esac; touch {tmp_path}/reloaded')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    hooks = CommandHooks({"digits": HookConfig(unit="my-app.service", activate_unit="reload")})
    hooks.activate("digits", CURRENT, SURE)
    assert (tmp_path / "reloaded").exists()


def test_a_unit_that_cannot_be_restarted_fails_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_systemctl(tmp_path / "bin", "echo Access denied >&2; exit 4")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    hooks = CommandHooks({"digits": HookConfig(unit="my-app.service", activate_unit="restart")})
    with pytest.raises(FinalError, match="exit code 4: Access denied") as failed:
        hooks.activate("digits", CURRENT, SURE)
    assert failed.value.code == "activate_failed"


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        ("{activate_unit: restart}", "unit"),
        ("{unit: a.service, activate_unit: restart, activate: [x]}", "activate"),
        ("{unit: --force.service}", "unit"),
        ("{unit: a.timer}", "unit"),
        ("{unit: a/b.service}", "unit"),
        ("{unit: a.service, activate_unit: stop}", "activate_unit"),
    ],
)
def test_a_unit_that_makes_no_sense_is_refused_with_the_key(hook: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(f"hooks: {{digits: {hook}}}")
    assert refused.value.code == "config_malformed"
    assert named in str(refused.value)
