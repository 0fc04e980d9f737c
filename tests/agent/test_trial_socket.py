"""Trials by a worker behind a real socket, and everything that may become of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import app, config
from agent.adapters.trial_process import TrialProcess
from agent.adapters.trial_socket import TrialSocket
from agent.errors import Cancelled, FinalError, RetryError
from agent.worker.job import ORDER_BYTES_MAX, TrialFailure, TrialJob, TrialOrder, encoded, outcome_of
from agent.worker.limits import WorkerLimits
from tests.agent.inetd import SERVE, listening
from tests.agent.models import gluttonous, good_job, hanging, model_of
from tests.agent.test_mqtt import Fleet, daemon
from tests.brokers import Mosquitto
from wire.measures import TrialResult

LIMITS = WorkerLimits(wall_s_max=60.0)


def tried(
    folder: Path,
    job: TrialJob,
    command: tuple[str, ...] = SERVE,
    limits: WorkerLimits = LIMITS,
    grace_s: float = 20.0,
) -> TrialResult:
    """One trial by `command`, which leaves nothing behind."""
    with listening(folder / "s", folder / "tmp", command) as inetd:
        try:
            return TrialSocket(folder / "s", limits, grace_s).run(job, threading.Event())
        finally:
            for process in inetd.started:
                process.wait(30)
            assert list((folder / "tmp").iterdir()) == []


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else True


def test_a_trial_behind_the_socket_is_the_same_trial(tmp_path: Path) -> None:
    result = tried(tmp_path, good_job(tmp_path))
    own = TrialProcess(tmp_path / "scratch", LIMITS).run(good_job(tmp_path), threading.Event())
    assert result.accuracy == own.accuracy
    assert result.conformance == own.conformance
    assert result.notes == own.notes
    assert result.latency is not None


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda path: path.write_bytes(b"no model"), "model_malformed"),
        (gluttonous, "trial_out_of_memory"),
    ],
)
def test_what_the_worker_found_is_raised_here(
    tmp_path: Path, harm: Callable[[Path], object], code: str
) -> None:
    job = good_job(tmp_path)
    harm(model_of(job))
    with pytest.raises(FinalError) as raised:
        tried(tmp_path, job)
    assert raised.value.code == code


def test_a_model_that_hangs_is_told_by_the_worker_itself(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    hanging(model_of(job))
    with pytest.raises(FinalError, match="within 2 s") as raised:
        tried(tmp_path, job, limits=WorkerLimits(wall_s_max=2.0))
    assert raised.value.code == "trial_timeout"


@pytest.mark.parametrize(
    ("script", "error", "code"),
    [
        ("exit 1", RetryError, "trial_not_started"),
        ("echo; exit 1", FinalError, "trial_crashed"),
        ("echo; kill -9 $$", FinalError, "trial_crashed"),
        ("echo; echo '{}'; sleep 1", FinalError, "trial_result_invalid"),
        ("echo; printf '\\377\\376\\n'; sleep 1", FinalError, "trial_result_invalid"),
        ("echo; yes | tr -d '\\n'", FinalError, "trial_file_oversized"),
        ('echo; echo \'{"type":"failure","code":"c","lasting":"retry"}\'', RetryError, "c"),
    ],
)
def test_a_worker_that_says_something_else(
    tmp_path: Path, script: str, error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as raised:
        tried(tmp_path, good_job(tmp_path), shell(script))
    assert getattr(raised.value, "code", None) == code


def test_silence_ends_at_the_wall_time(tmp_path: Path) -> None:
    with listening(tmp_path / "s", tmp_path / "tmp", shell("exec sleep 1000")) as inetd:
        runner = TrialSocket(tmp_path / "s", WorkerLimits(wall_s_max=0.1), grace_s=0.2)
        with pytest.raises(FinalError) as raised:
            runner.run(good_job(tmp_path), threading.Event())
        assert raised.value.code == "trial_timeout"
        assert len(inetd.started) == 1


@pytest.mark.parametrize("there", ["nothing", "file", "deaf"])
def test_a_socket_that_nobody_serves_may_be_served_later(tmp_path: Path, there: str) -> None:
    path = tmp_path / "s"
    if there == "file":
        path.write_text("")
    with socket.socket(socket.AF_UNIX) as bound:
        if there == "deaf":
            bound.bind(str(path))
        with pytest.raises(RetryError, match=r"systemctl status shallop-worker\.socket") as raised:
            TrialSocket(path, LIMITS).run(good_job(tmp_path), threading.Event())
    assert raised.value.code == "trial_not_started"
    assert str(path) in str(raised.value)


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(RetryError, match="too long"):
        TrialSocket(tmp_path / ("s" * 120), LIMITS).run(good_job(tmp_path), threading.Event())


def test_an_order_too_large_is_not_sent(tmp_path: Path) -> None:
    job = replace(good_job(tmp_path), shards=("x" * ORDER_BYTES_MAX,))
    with pytest.raises(FinalError) as raised:
        TrialSocket(tmp_path / "s", LIMITS).run(job, threading.Event())
    assert raised.value.code == "trial_file_oversized"


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.mark.broker
@pytest.mark.slow
def test_a_real_daemon_has_its_trials_behind_the_socket(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """A good release, one that hangs, and one while nobody answers at the socket."""
    fleet, path = Fleet(mosquitto), tmp_path / "s"
    current = tmp_path / "state/models/tiny/current/model.onnx"
    try:
        good = fleet.publish(tmp_path / "1", seed=1)
        bad = fleet.publish(tmp_path / "2", seed=2, release="2", harm="hang")
        later = fleet.publish(tmp_path / "3", seed=3, release="3")
        with daemon(tmp_path, mosquitto, f", socket: {path}, wall_s_max: 10"):
            with listening(path, tmp_path / "tmp") as inetd:
                fleet.order(1, good)
                state = fleet.wait(1, "active")
                assert state.trial is not None
                assert state.trial.result.accuracy is not None
                before = current.read_bytes()
                fleet.order(2, bad)
                state = fleet.wait(2, "failed")
                assert state.reason is not None
                assert state.reason.code == "trial_timeout"
                assert (state.active and state.active.digest) == good
                assert current.read_bytes() == before
                assert len(inetd.started) == 2
            fleet.order(3, later)
            until(
                lambda: (why := fleet.reported[-1].reason) is not None and why.code == "trial_not_started",
                "why it waits",
            )
            path.unlink()
            with listening(path, tmp_path / "tmp"):
                assert fleet.wait(3, "active").active is not None
    finally:
        fleet.close()


def workers_of(pid: int) -> list[int]:
    """Children of the process behind the socket."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize("how", ["cancel", "hang up", "kill"])
def test_whoever_leaves_ends_the_worker(tmp_path: Path, how: str) -> None:
    """The model hangs in the runtime; calling off, a dead daemon and a killed unit all end it."""
    job = good_job(tmp_path)
    hanging(model_of(job))
    cancel, ended = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            TrialSocket(tmp_path / "s", LIMITS).run(job, cancel)
        except (Cancelled, FinalError) as error:
            ended.append(error)

    with listening(tmp_path / "s", tmp_path / "tmp") as inetd:
        if how == "hang up":
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(str(tmp_path / "s"))
            peer.sendall(encoded(TrialOrder(job=job)) + b"\n")
        else:
            thread = threading.Thread(target=run)
            thread.start()
        until(lambda: len(inetd.started) == 1, "the worker's unit")
        served = inetd.started[0]
        until(lambda: len(workers_of(served.pid)) == 1, "the worker")
        worker = workers_of(served.pid)[0]
        until(lambda: "onnxruntime" in Path(f"/proc/{worker}/maps").read_text(), "the runtime")
        if how == "cancel":
            cancel.set()
        elif how == "hang up":
            peer.close()
        else:
            served.send_signal(signal.SIGKILL)
        until(lambda: gone(worker), "the worker's end")
        served.wait(30)
        if how != "hang up":
            thread.join(30)
            assert [type(error) for error in ended] == [Cancelled if how == "cancel" else FinalError]
        if how != "kill":
            assert list((tmp_path / "tmp").iterdir()) == []


def exchanged(folder: Path, said: bytes, *, close: bool = False) -> tuple[bytes, int]:
    """What a served process answers to these bytes, and how it ends."""
    with (
        listening(folder / "s", folder / "tmp") as inetd,
        socket.socket(socket.AF_UNIX) as peer,
    ):
        peer.settimeout(60.0)
        peer.connect(str(folder / "s"))
        peer.sendall(said)
        if close:
            peer.shutdown(socket.SHUT_WR)
        heard = b""
        while part := peer.recv(65536):
            heard += part
        return heard, inetd.started[0].wait(30)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"kind":"delta"}', b"\xff\xfe", b"[" * 5000])
def test_an_order_that_is_none_is_answered(tmp_path: Path, line: bytes) -> None:
    heard, code = exchanged(tmp_path, line + b"\n")
    outcome = outcome_of(heard)
    assert isinstance(outcome, TrialFailure)
    assert (outcome.code, outcome.lasting, code) == ("order_invalid", "final", 0)


def test_half_an_order_ends_without_an_answer(tmp_path: Path) -> None:
    assert exchanged(tmp_path, b'{"kind":', close=True) == (b"\n", 1)


def test_the_configuration_says_where_the_worker_is(tmp_path: Path) -> None:
    given = config.parse(f"state_dir: {tmp_path}\ntrial: {{socket: /run/shallop/worker.sock}}\n")
    assert isinstance(app._trial_runner(given, tmp_path), TrialSocket)
    assert isinstance(app._trial_runner(config.Config(state_dir=str(tmp_path)), tmp_path), TrialProcess)
