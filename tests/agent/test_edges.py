"""The agent's edges: configuration, command line, hooks, locks, lanes, systemd, and what it loads."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent import app, cli
from agent.adapters.ed25519 import verify
from agent.adapters.hooks import CommandHooks
from agent.adapters.locks import MachineLock, StateLock
from agent.adapters.system import SystemClock, SystemDisk, SystemRandom
from agent.adapters.systemd_notify import SystemdSupervisor
from agent.config import Config, load, parse
from agent.config_life import HookConfig
from agent.deployment import Deployment
from agent.errors import Cancelled, ConfigError, FinalError, StateError
from agent.exchange import Box, Exchange
from agent.journal import Journal, JournalFile
from agent.lanes import Lane
from agent.requests import Requests
from agent.slots import Slots
from agent.trust import Trust
from tests.agent.test_disk import ONE, TWO, assemble
from tests.agent.twins import MemoryBroker, until
from tests.keys import root_of, root_sha256, sealed_root
from wire.messages import Phase

ROOT = Path(__file__).parents[2]
SURE = threading.Event()


# --- configuration ----------------------------------------------------------------------------------


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("") == Config()
    assert parse("").trial.settings().latency_runs == 200


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("devise: x", "devise"),
        ("broker: {hots: x}", "hots"),
        ("broker: {port: 0}", "port"),
        ("broker: {root: 'a/#'}", "wildcard|root"),
        ("device: Roof_17", "device"),
        ("limits: {window_chunks_max: 0}", "window_chunks_max"),
        ("limits: {boots_max: three}", "boots_max"),
        ("hooks: {digits: {activate: systemctl}}", "activate"),
        ("hooks: {'../x': {}}", "hooks"),
        ("state_dir: ''", "state_dir"),
        ("insecure_unsigned: perhaps", "insecure_unsigned"),
        ("a: [", "configuration"),
        ("!!python/object/apply:os.system [true]", "configuration"),
    ],
)
def test_a_configuration_that_cannot_be_kept_is_refused_with_the_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert refused.value.code == "config_malformed"
    assert any(word in str(refused.value) for word in named.split("|"))


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none", None), (tmp_path / "big", "#" * 300_000)):
        if text:
            path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            load(path)
        assert refused.value.code == "config_unreadable"


def test_the_password_is_the_files_first_line(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\nnot this\n")
    assert parse(f"broker: {{password_file: {secret}}}").password() == "hunter2"
    secret.unlink()
    with pytest.raises(ConfigError):
        parse(f"broker: {{password_file: {secret}}}").password()


# --- command line -----------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(f"device: roof-17\nstate_dir: {tmp_path}/state\ninsecure_unsigned: true\n")
    return path


def installed(config_file: Path) -> Path:
    """A state directory in which release 2 runs and 1 was before it."""
    state = config_file.parent / "state"
    state.mkdir()
    slots = Slots(state / "models")
    one, two = assemble(slots, ONE), assemble(slots, TWO)
    slots.activate("digits", two, one)
    d = Deployment(model="digits", active=two, previous=one, order=2, order_highest=2)
    JournalFile(state).save(Journal(models={"digits": d}))
    return state


@pytest.mark.parametrize("command", ["run", "status", "doctor", "adopt", "trust", "rollback"])
def test_every_command_helps_with_an_example_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"shallop-agent {command}" in said
    assert "example:" in said
    assert "exit codes:" in said


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--print-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(command in script for command in ("run", "status", "doctor", "adopt", "trust", "rollback"))
    assert re.search("_shtab_compgen_files" if shell == "bash" else "_files", script), "paths are completed"
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False, timeout=20).returncode == 0


def test_status_shows_what_runs(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--config", str(config_file)]) == 4
    assert "no_state" in capsys.readouterr().err
    installed(config_file)
    assert cli.main(["status", "--config", str(config_file)]) == 0
    assert "runs          2 (" in capsys.readouterr().out
    assert cli.main(["status", "--json", "--config", str(config_file)]) == 0
    assert json.loads(capsys.readouterr().out)["models"]["digits"]["state"]["active"]["release"] == "2"


def test_a_bad_configuration_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("nonsense: 1")
    assert cli.main(["status", "--config", str(bad)]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_rollback_without_the_daemon(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = installed(config_file)
    assert cli.main(["rollback", "digits", "--config", str(config_file)]) == 0
    assert "back at 1" in capsys.readouterr().out
    assert (state / "models" / "digits" / "current").resolve().name.startswith(ONE.digest)
    saved = JournalFile(state).load()
    assert saved is not None
    d = saved.models["digits"]
    assert (d.phase, d.previous, d.blocks(TWO.digest)) == (Phase.IDLE, None, True)
    assert d.notices, "the daemon has to report it later"
    assert cli.main(["rollback", "digits", "--config", str(config_file)]) == 4
    assert "no_previous" in capsys.readouterr().err


def test_a_rollback_with_the_daemon_is_a_request(config_file: Path) -> None:
    state = installed(config_file)
    requests = Requests(state / "requests")
    program = (
        "import signal,sys,time; from pathlib import Path; from agent.adapters.locks import StateLock\n"
        f"signal.signal(signal.SIGHUP, lambda *_: sys.exit(7)); lock = StateLock(Path({str(state)!r}))\n"
        "lock.acquire(); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"locked\n"
        with pytest.raises(StateError, match="no active release of cats"):
            app.rollback(load(config_file), "cats")
        assert "asked the running agent" in app.rollback(load(config_file), "digits")
        assert daemon.wait(20) == 7, "the daemon was not told to look"
    asked: list[str] = []
    assert requests.take(asked.append) == asked == ["digits"]
    assert requests.take(asked.append) == []


def test_adopting_a_file_makes_it_the_first_good_release(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mine.onnx"
    model.write_bytes(b"weights")
    run = ["adopt", "digits", str(model), "--release", "before", "--config", str(config_file)]
    assert cli.main(run) == 0
    assert "runs before (onnxruntime/adopted)" in capsys.readouterr().out
    current = tmp_path / "state" / "models" / "digits" / "current"
    assert (current / "model.onnx").read_bytes() == b"weights"
    saved = JournalFile(tmp_path / "state").load()
    assert saved is not None
    active = saved.models["digits"].active
    assert active is not None
    assert active.adopted
    assert cli.main(run) == 4
    assert "not_empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.onnx", "notes.txt"])
def test_only_model_files_are_adopted(config_file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    assert cli.main(["adopt", "digits", str(tmp_path / name), "--config", str(config_file)]) == 4


def test_adopting_while_the_daemon_runs_says_so(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.onnx").write_bytes(b"weights")
    with app.opened(load(config_file)):
        code = cli.main(["adopt", "digits", str(tmp_path / "mine.onnx"), "--config", str(config_file)])
    assert code == 4
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_under_systemd_a_log_line_carries_its_level() -> None:
    record = logging.LogRecord("agent", logging.WARNING, "", 0, "two\nlines", None, None)
    assert cli._JournalFormatter("%(message)s").format(record) == "<4>two lines"
    try:
        int("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    story = cli._JournalFormatter("%(message)s").format(record).splitlines()
    assert len(story) > 2
    assert all(line.startswith("<4>") for line in story)


# --- hooks ------------------------------------------------------------------------------------------


def hooks(
    timeout_s: float = 10.0, activate: tuple[str, ...] = (), health: tuple[str, ...] = ()
) -> CommandHooks:
    return CommandHooks({"digits": HookConfig(timeout_s=timeout_s, activate=activate, health=health)})


def test_a_hook_is_told_where_the_model_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'echo "$SHALLOP_MODEL $SHALLOP_CURRENT" > {out}'
    hooks(activate=("sh", "-c", script)).activate("digits", Path("/x/current"), SURE)
    assert out.read_text() == "digits /x/current\n"


def test_a_model_without_hooks_is_well() -> None:
    CommandHooks({}).activate("digits", Path("/x"), SURE)
    assert CommandHooks({}).healthy("digits", Path("/x"), SURE) is None


@pytest.mark.parametrize(
    ("command", "timeout_s", "code"),
    [
        (("sh", "-c", "echo broken; exit 3"), 10.0, "activate_failed"),
        (("/does/not/exist",), 10.0, "activate_failed"),
        (("sleep", "60"), 0.1, "activate_timeout"),
    ],
)
def test_a_hook_that_fails_or_hangs_is_named(command: tuple[str, ...], timeout_s: float, code: str) -> None:
    with pytest.raises(FinalError) as failed:
        hooks(timeout_s, activate=command).activate("digits", Path("/x"), SURE)
    assert failed.value.code == code


def test_an_ill_application_says_what_is_wrong() -> None:
    ill = hooks(health=("sh", "-c", "echo no route to camera; exit 1")).healthy("digits", Path("/x"), SURE)
    assert ill == "exit code 1: no route to camera"


def test_a_hook_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    cancel = threading.Event()
    command = ("sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait")
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Cancelled):
        hooks(60.0, activate=command).activate("digits", Path("/x"), cancel)
    child = int(pid_file.read_text())
    until(lambda: not _alive(child), "the death of the hook's child")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# --- locks, lanes, exchange, supervisor -------------------------------------------------------------


def test_a_state_directory_has_one_user(tmp_path: Path) -> None:
    first, second = StateLock(tmp_path), StateLock(tmp_path)
    first.acquire()
    with pytest.raises(StateError) as refused:
        second.acquire()
    assert refused.value.code == "state_locked"
    first.release()
    second.acquire()
    second.release()


def test_one_trial_at_a_time_on_a_machine(tmp_path: Path) -> None:
    lock = MachineLock(tmp_path / "trial.lock")
    cancel = threading.Event()
    entered = threading.Event()

    def wait() -> None:
        with lock.hold(threading.Event()):
            entered.set()

    with lock.hold(cancel):
        other = threading.Thread(target=wait)
        other.start()
        assert not entered.wait(0.5)
        cancel.set()
        with pytest.raises(Cancelled), lock.hold(cancel):
            raise AssertionError("two trials at once")
    assert entered.wait(10)
    other.join()


def test_a_lane_does_one_task_at_a_time_and_calls_the_last_one_off() -> None:
    lane, log = Lane("x"), queue.SimpleQueue[str]()

    def first(cancel: threading.Event) -> None:
        cancel.wait(20)
        log.put("first ended")

    lane.submit(first)
    lane.submit(lambda _: log.put("second"))
    lane.append(lambda _: log.put("third"))
    assert [log.get(timeout=20) for _ in range(3)] == ["first ended", "second", "third"]
    assert lane.close(20)


def test_a_task_that_breaks_does_not_end_its_lane(caplog: pytest.LogCaptureFixture) -> None:
    lane, done = Lane("x"), threading.Event()

    def broken(_: threading.Event) -> None:
        raise ValueError("a mistake")

    lane.submit(broken)
    lane.append(lambda _: done.set())
    assert done.wait(20)
    assert lane.close(20)
    assert "a mistake" in caplog.text


def test_two_jobs_may_wait_for_one_topic() -> None:
    broker = MemoryBroker()
    exchange = Exchange(broker)
    boxes: list[Box] = [queue.Queue(maxsize=1) for _ in range(2)]
    for box in boxes:
        exchange.watch(["t"], 0, box, 100)
    assert exchange.deliver("t", b"1")
    assert exchange.deliver("t", b"2"), "a full box loses the message, and nobody waits"
    assert [box.get_nowait() for box in boxes] == [("t", b"1")] * 2
    exchange.unwatch(["t"], boxes[0])
    assert exchange.deliver("t", b"3")
    exchange.unwatch(["t"], boxes[1])
    assert not exchange.deliver("t", b"4")


def test_systemd_is_told_over_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "1")
        supervisor = SystemdSupervisor()
        supervisor.ready()
        time.sleep(0.001)
        supervisor.alive()
        supervisor.status("well")
        supervisor.stopping()
        said = [listener.recv(100) for _ in range(4)]
    assert said == [b"READY=1", b"WATCHDOG=1", b"STATUS=well", b"STOPPING=1"]
    supervisor.ready()  # nobody listens any more, which harms nobody


def test_the_machines_own_clock_chance_and_disk(tmp_path: Path) -> None:
    clock = SystemClock()
    assert clock.boot_s() <= clock.boot_s()
    assert clock.now_text().endswith("Z")
    assert 0 <= SystemRandom().unit() < 1
    assert SystemDisk().free_bytes(tmp_path) > 0


@pytest.mark.parametrize(("columns", "width"), [("70", 68), ("a few", 78), ("3", 20)])
def test_help_is_as_wide_as_the_terminal(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_terminal() -> None:
        raise OSError("no terminal")

    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(os, "get_terminal_size", no_terminal)
    assert cli._Help("shallop-agent")._width == width


# --- footprint --------------------------------------------------------------------------------------


def test_the_daemon_loads_neither_numpy_nor_a_runtime() -> None:
    program = "import sys, agent.app, agent.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["numpy", "onnxruntime", "onnx", "asyncio", "sqlalchemy", "click", "rich", "shtab", "http.server"]
    result = subprocess.run(
        [sys.executable, "-c", program, *heavy], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_a_root_is_trusted_by_its_digest_only(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "root-1.json"
    document.write_bytes(sealed_root(root_of()))
    run = ["trust", str(document), "--config", str(config_file), "--sha256"]
    assert cli.main([*run, "0" * 64]) != 0
    assert "wrong_root" in capsys.readouterr().err
    assert cli.main([*run, root_sha256(root_of()).upper()]) == 0
    assert "root 1 is trusted" in capsys.readouterr().out
    assert Trust(tmp_path / "state", verify).state.root == root_of()
    assert (
        cli.main(["trust", str(tmp_path / "none"), "--config", str(config_file), "--sha256", "0" * 64]) != 0
    )
    assert "root_unreadable" in capsys.readouterr().err
