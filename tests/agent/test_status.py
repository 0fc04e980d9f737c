"""`shallop-agent status`: true while the agent works, after it was stopped, and after it was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent import app, cli, statusing
from agent.config import Config, parse
from agent.deployment import Block, Deployment, Notice
from agent.errors import StateError
from agent.install import Install
from agent.journal import Journal, JournalFile
from agent.outbox import Outbox, pending
from agent.status_view import ModelPicture, Picture, duration, model_picture, text
from agent.statusing import Board, Noted, Retry
from agent.uplink import Self, Uplink
from tests.agent.rig import DEVICE, MACHINE, ONE, Rig, deploy, running
from tests.agent.twins import TOPICS, MemoryBroker, TestClock, until
from tests.agent.world import VARIANTS, desired, summary
from tests.brokers import Mosquitto
from wire.messages import OrderOutcome, Phase, PhaseChanged, Reason, Slot

ROOT = Path(__file__).parents[2]
WAITS = Reason(code="broker_silent", detail="no chunk came for 5 s", lasting="retry")


def noted(state: Path) -> Noted:
    found = statusing.read(state)
    assert found is not None
    return found


# --- the notes --------------------------------------------------------------------------------------


def test_the_board_writes_what_changes_and_nothing_else(tmp_path: Path) -> None:
    board, file = Board(tmp_path, TestClock()), tmp_path / statusing.FILE
    assert noted(tmp_path) == Noted(
        pid=os.getpid(), boot_id=statusing.boot_id(), started_at=noted(tmp_path).started_at
    )
    board.connection(up=True)
    assert noted(tmp_path).connected is True
    before = file.stat().st_mtime_ns
    board.connection(up=True)
    board.working("digits")
    assert file.stat().st_mtime_ns == before
    board.waiting("digits", 30.0, WAITS)
    board.waiting("other", 10.0, None)
    assert noted(tmp_path).retries["digits"].reason == WAITS
    board.working("digits")
    assert set(noted(tmp_path).retries) == {"other"}
    board.connection(up=False, detail="refused")
    assert (noted(tmp_path).connected, noted(tmp_path).detail) == (False, "refused")
    assert noted(tmp_path).seen_at == noted(tmp_path).since
    board.trialed("digits")
    at = noted(tmp_path).trialed_at["digits"]
    assert noted(tmp_path).boot_id == statusing.boot_id()
    Board(tmp_path, TestClock())
    assert noted(tmp_path).trialed_at == {"digits": at}
    assert noted(tmp_path).connected is None
    assert noted(tmp_path).retries == {}


def test_a_full_disk_does_not_stop_the_board(tmp_path: Path) -> None:
    board = Board(tmp_path / "state-that-is-not-there", TestClock())
    board.connection(up=True)
    assert statusing.read(tmp_path / "state-that-is-not-there") is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"other"}', b"\xff", b"[" * 100_000])
def test_notes_that_cannot_be_read_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / statusing.FILE).write_bytes(content)
    assert statusing.read(tmp_path) is None
    assert noted_after_restart(tmp_path).connected is None


def noted_after_restart(state: Path) -> Noted:
    Board(state, TestClock())
    return noted(state)


def test_what_was_last_known_of_the_broker() -> None:
    up = Noted(pid=1, connected=True, since="10:00")
    assert statusing.seen_at(up) == "10:00"
    assert statusing.seen_at(replace(up, connected=False, seen_at="11:00", since="11:00")) == "11:00"
    assert statusing.why_not(up, alive=True) == ""
    assert statusing.why_not(up, alive=False) == "the agent ended without a word"
    assert statusing.why_not(None, alive=False) == ""
    assert "since the agent started" in statusing.why_not(Noted(pid=1), alive=True)
    assert statusing.why_not(Noted(pid=1), alive=False) == ""
    assert statusing.why_not(replace(up, connected=False, detail="refused"), alive=True) == "refused"


def test_a_retry_is_only_a_living_agents() -> None:
    note = Noted(pid=1, retries={"digits": Retry(at_boot_s=130.0, reason=WAITS)})
    assert statusing.retry_in(note, "digits", 100.0) == (30.0, WAITS)
    assert statusing.retry_in(note, "other", 100.0) is None
    assert statusing.retry_in(None, "digits", 100.0) is None


def test_the_runner_notes_what_waits_and_what_was_tried(tmp_path: Path) -> None:
    def full(rig: Rig) -> None:
        rig.disk.free = 0

    with running(tmp_path, prepare=full) as rig:
        rig.runner._board = Board(tmp_path, rig.clock)
        rig.broker.hold(ONE)
        rig.broker.desire(DEVICE, {"digits": ONE.order(1)})
        until(lambda: noted(tmp_path).retries, "a try that waits")
        reason = noted(tmp_path).retries["digits"].reason
        assert reason is not None
        assert reason.code == "disk_full"
        rig.disk.free = 10**9
        rig.wait(1, OrderOutcome.ACTIVE)
        until(lambda: not noted(tmp_path).retries, "nothing waiting")
        assert set(noted(tmp_path).trialed_at) == {"digits"}


# --- the words --------------------------------------------------------------------------------------

SLOT = Slot(digest="a" * 64, release="spring", variant=VARIANTS[0], order=3)
SOAKS = Deployment(
    model="digits", active=SLOT, phase=Phase.SOAKING, desired=desired(4, "b" * 64), order=4, left_s=75.0,
    soaked_s=20.0, trial=summary(VARIANTS[0]), boots=1, blocked=(Block(digest="c" * 64, order=3),),
)  # fmt: skip


def shown(model: ModelPicture, **fields: object) -> str:
    picture = Picture(device="roof-17", broker="b:1883", running=True, models={"digits": model})
    return text(msgspec.structs.replace(picture, **fields))


def test_a_model_in_words() -> None:
    said = shown(model_picture(SOAKS, None, "2026-11-21T12:00:00Z"), pid=7, pending_reports=None)
    for words in (
        "spring (onnxruntime/one)", "soaking bbb, order 4, 20 s soaked, 1 min 15 s left",
        "blocked       cccc", "1 starts without progress", "accuracy unknown", "latency unknown",
        "energy unknown", "memory unknown",
        "ended 2026-11-21T12:00:00Z", "reports   unknown", "at work now", "broker    b:1883: unknown",
        "last seen: unknown",
    ):  # fmt: skip
        assert words in said, (words, said)
    assert " 0 " not in said
    assert "last order" not in said, "it has not ended"


def test_a_model_that_waits_says_until_when_and_why() -> None:
    waits = replace(SOAKS, phase=Phase.FETCHING, reason=WAITS, attempts=3)
    said = shown(model_picture(waits, (29.6, WAITS), None))
    assert "next try      in 29 s after 3 failures in a row (broker_silent: no chunk came for 5 s)" in said
    assert "why           broker_silent" in said
    assert "ended unknown" in said


def test_a_model_at_rest() -> None:
    rest = Deployment(model="digits", order=2, outcome=OrderOutcome.FAILED, reason=WAITS)
    picture = model_picture(rest, (5.0, WAITS), "then")
    assert (picture.retry_in_s, picture.left_s, picture.trialed_at) == (None, None, None)
    said = shown(picture, running=False, connected=False, broker_seen_at="11:00", connection_detail="refused")
    assert "runs          nothing" in said
    assert "last order    2 failed" in said
    assert "not running" in said
    assert "not connected (refused), last seen 11:00" in said
    assert "next try" not in said


def test_words_where_there_are_none() -> None:
    bare = replace(SOAKS, phase=Phase.IDLE, reason=Reason(code="cancelled"), trial=None, degraded=True)
    said = shown(model_picture(bare, None, None), journal_notes=("journal.json: torn",), models={})
    assert "journal   journal.json: torn\n\nno models yet" in said
    said = shown(model_picture(bare, None, None))
    assert "why           cancelled: no more is known" in said
    assert "last trial    none is known" in said
    assert "runs          spring (onnxruntime/one), aaaaaaaaaaaa, not the first choice" in said
    assert "missing" not in said
    assert "unknown whether it runs" in shown(model_picture(bare, None, None), running=None)


def test_words_from_outside_cannot_drive_the_terminal() -> None:
    evil = replace(SOAKS, reason=Reason(code="x", detail="\x1b]0;owned\x07\n\r"))
    assert not set("\x1b\x07\r") & set(shown(model_picture(evil, None, None)))


def test_durations() -> None:
    seconds = (-1, 59.9, 60, 75, 3599, 3600, 7300, 86399, 86400, 93_600, 200_000)
    words = ["0 s", "59 s", "1 min 0 s", "1 min 15 s", "59 min 59 s", "1 h 0 min", "2 h 1 min", "23 h 59 min",
             "1 d 0 h", "1 d 2 h", "2 d 7 h"]  # fmt: skip
    assert [duration(s) for s in seconds] == words


# --- counting reports -------------------------------------------------------------------------------


def test_pending_reports_are_counted_without_touching_them(tmp_path: Path) -> None:
    assert pending(tmp_path / "none") is None
    root = tmp_path / "reports"
    me = Self(device=DEVICE, agent_version="1", hardware=MACHINE.hardware)
    uplink = Uplink(MemoryBroker(), TOPICS, me, Install(tmp_path), TestClock())
    outbox = Outbox(root, 100)
    assert pending(root) == 0
    for _ in range(3):
        notice = Notice(event=PhaseChanged(phase=Phase.FETCHING))
        outbox.add(uplink.report(outbox.next_number(), "digits", notice))
    before = sorted(path.name for path in root.iterdir())
    assert pending(root) == 3
    assert sorted(path.name for path in root.iterdir()) == before
    outbox.acknowledge(2)
    assert pending(root) == 1


# --- the command ------------------------------------------------------------------------------------


def config_in(folder: Path, port: int = 1) -> Path:
    path = folder / "agent.yaml"
    where = f"device: {DEVICE}\nstate_dir: {folder}/state\nbroker: {{port: {port}}}\n"
    path.write_text(f"{where}insecure_unsigned: true\ntransfer: {{reconnect_spread_s: 0.2}}\n")
    return path


def test_status_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, state = config_in(tmp_path), tmp_path / "state"
    assert cli.main(["status", "--config", str(path)]) == 4
    with running(state) as rig:
        deploy(rig)
    assert cli.main(["status", "--json", "--config", str(path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["running"], said["connected"], said["device"]) == (False, False, DEVICE)
    assert said["models"]["digits"]["state"]["active"]["digest"] == ONE.digest
    assert said["models"]["digits"]["trialed_at"] is None
    assert cli.main(["status", "--config", str(path)]) == 0
    assert "idle" in capsys.readouterr().out


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    config = parse(config_in(tmp_path).read_text())
    state = tmp_path / "state"
    state.mkdir()
    file = JournalFile(state)
    for order in (1, 2):
        file.save(Journal(models={"digits": Deployment(model="digits", order=order)}))
    (state / "journal.json").write_text("torn")
    assert app.status(config).journal_notes
    assert app.status(config).models["digits"].state.order == 1
    (state / "journal.1").unlink()
    with pytest.raises(StateError):
        app.status(config)


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "inf"])
def test_a_watch_needs_seconds(seconds: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", f"--watch={seconds}", "--config", str(config_in(tmp_path))])
    assert ended.value.code == 2


def start(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "--config", str(path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )


@pytest.mark.broker
def test_status_of_a_real_agent_that_is_connected_cut_off_and_killed(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        path = config_in(tmp_path, broker.port)
        config = parse(path.read_text())
        agent = start(path)
        try:
            until(lambda: state_of(config) is True, "the connection")
            picture = app.status(config)
            assert (picture.running, picture.pid) == (True, agent.pid)
            assert picture.connected_since
            broker.stop()
            until(lambda: state_of(config) is False, "its end")
            assert app.status(config).broker_seen_at
            broker.start()
            until(lambda: state_of(config) is True, "the next connection")
        finally:
            agent.send_signal(signal.SIGKILL)
            agent.wait(10)
        picture = app.status(config)
        assert (picture.running, picture.pid, picture.connected) == (False, None, False)
        assert picture.connected_since is None
        assert picture.connection_detail == "the agent ended without a word"
        seen = picture.broker_seen_at
        assert seen
        agent = start(path)
        until(lambda: state_of(config) is True, "the connection after the kill")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0
        picture = app.status(config)
        assert picture.connection_detail == "the agent was stopped"
        assert picture.broker_seen_at
        assert picture.broker_seen_at > seen


def state_of(config: Config) -> bool | None:
    try:
        return app.status(config).connected
    except StateError:
        return None


@pytest.mark.broker
def test_watching_shows_each_change_once(tmp_path: Path) -> None:
    path = config_in(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    file = JournalFile(state)
    file.save(Journal(models={"digits": Deployment(model="digits", order=1, active=SLOT)}))
    command = [sys.executable, "-m", "agent", "status", "--watch", "0.1", "--config", str(path)]
    with (tmp_path / "out").open("wb") as out:
        watch = subprocess.Popen(command, cwd=ROOT, stdout=out)
    try:
        until(lambda: (tmp_path / "out").read_bytes().count(b"device ") == 1, "the first picture")
        time.sleep(0.5)
        changed = Deployment(model="digits", order=2, active=SLOT, outcome=OrderOutcome.ACTIVE)
        file.save(Journal(models={"digits": changed}))
        until(lambda: b"2 active" in (tmp_path / "out").read_bytes(), "the change")
        assert (tmp_path / "out").read_bytes().count(b"device ") == 2
    finally:
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 0
