"""Real workers with real models: what they measure, and that none of them harms anybody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.adapters.trial_process import TrialProcess, installed_runtimes
from agent.errors import AgentError, Cancelled, FinalError, RetryError
from agent.worker.job import TrialSuccess, WorkerOrder, read_outcome, write_file
from agent.worker.limits import WorkerLimits
from tests.agent.models import (
    gluttonous,
    good_job,
    hanging,
    job_of,
    samples,
    save_shard,
    scores,
    shard_arrays,
)

REPOSITORY = Path(__file__).parent.parent.parent
LIMITS = WorkerLimits(wall_s_max=60.0)


def never() -> threading.Event:
    return threading.Event()


def script(path: Path, body: str) -> str:
    """An executable that stands where the interpreter is expected: `-m agent.worker.trial JOB` follow."""
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    return str(path)


def until(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.05)


def stat_of(pid: int) -> tuple[str, int] | None:
    """State and parent of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def alive(pid: int) -> bool:
    stat = stat_of(pid)
    return stat is not None and stat[0] != "Z"


def children(pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [p for p in pids if (stat := stat_of(p)) is not None and stat[1] == pid]


def test_a_trial_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    result = TrialProcess(scratch, LIMITS).run(good_job(tmp_path), never())
    assert result.accuracy is not None
    assert result.accuracy.value == 1.0
    assert result.latency is not None
    assert result.latency.n == 20
    assert list(scratch.iterdir()) == []


def test_what_a_killed_daemon_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "trial-abandoned"
    left.mkdir(parents=True)
    (left / "log").write_text("old")
    TrialProcess(tmp_path / "scratch", LIMITS).run(good_job(tmp_path), never())
    assert not left.exists()


def test_the_workers_own_reason_is_raised(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    Path(job.candidate.model_path).write_bytes(b"no model at all")
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS).run(job, never())
    assert raised.value.code == "model_malformed"
    assert "not opened" in str(raised.value)


@pytest.mark.slow
def test_a_model_that_hangs_is_killed_at_the_wall_limit(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    hanging(Path(job.candidate.model_path))
    limits, before = WorkerLimits(wall_s_max=4.0), set(children(os.getpid()))
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", limits).run(job, never())
    assert raised.value.code == "trial_timeout"
    assert set(children(os.getpid())) <= before
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_a_model_that_hangs_runs_out_of_processor_time(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    hanging(Path(job.candidate.model_path))
    limits = WorkerLimits(cpu_s_max=3, wall_s_max=110.0)
    with pytest.raises(FinalError, match="processor time") as raised:
        TrialProcess(tmp_path / "scratch", limits).run(job, never())
    assert raised.value.code == "trial_timeout"


def test_a_model_that_eats_memory_is_stopped_by_the_limit(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    gluttonous(Path(job.candidate.model_path))
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS).run(job, never())
    assert raised.value.code == "trial_out_of_memory"


@pytest.mark.parametrize("memory_mib_max", [64, 96, 128])
def test_a_limit_too_small_for_the_libraries_is_named_as_memory(tmp_path: Path, memory_mib_max: int) -> None:
    limits = WorkerLimits(memory_bytes_max=memory_mib_max * 1024**2, wall_s_max=60.0)
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", limits).run(good_job(tmp_path), never())
    assert raised.value.code == "trial_out_of_memory"


def test_a_worker_that_prints_without_end_fills_no_disk(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    loud = script(
        tmp_path / "loud",
        f"""
        import os, pathlib, sys
        from agent.worker.job import read_order
        from agent.worker.limits import restrict
        order = read_order(pathlib.Path(sys.argv[3]))
        restrict(order.limits, order.parent_pid)
        written = 0
        try:
            while written < 2**30:
                written += os.write(1, b"out " * 4096)
                os.write(2, b"noise " * 4096)
        except OSError:
            pass
        open({str(seen)!r}, "w").write(str(os.fstat(2).st_size))
        sys.exit(3)
        """,
    )
    limits = WorkerLimits(file_bytes_max=1024**2, wall_s_max=60.0)
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", limits, loud).run(good_job(tmp_path), never())
    assert raised.value.code == "trial_crashed"
    assert "exit code 3" in str(raised.value)
    assert "noise noise" in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert int(seen.read_text()) == 1024**2


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "trial_crashed", "SIGSEGV"),
        ("import sys; sys.exit('bad weather')", "trial_crashed", "bad weather"),
        ("import os; os.kill(os.getpid(), 9)", "trial_out_of_memory", "want of memory"),
        (
            'import sys; sys.stderr.write("what(): std::bad_alloc"); sys.exit(1)',
            "trial_out_of_memory",
            "bad_alloc",
        ),
        ("", "trial_crashed", "exit code 0"),
    ],
)
def test_a_worker_that_dies_is_told_by_how(tmp_path: Path, body: str, code: str, words: str) -> None:
    python = script(tmp_path / "dies", body)
    with pytest.raises(FinalError, match=words) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS, python).run(good_job(tmp_path), never())
    assert raised.value.code == code


def test_half_a_result_of_a_worker_that_died_is_told_by_how_it_died(tmp_path: Path) -> None:
    body = """
    import os, pathlib, sys
    (pathlib.Path(sys.argv[3]).parent / "result.json").write_bytes(b'{"type": "succ')
    os.kill(os.getpid(), 7)
    """
    with pytest.raises(FinalError, match="SIGBUS") as raised:
        TrialProcess(tmp_path / "scratch", LIMITS, script(tmp_path / "dies", body)).run(
            good_job(tmp_path), never()
        )
    assert raised.value.code == "trial_crashed"


@pytest.mark.parametrize(
    ("left", "code"),
    [
        ("b'{'", "trial_result_invalid"),
        ("b'[]'", "trial_result_invalid"),
        ("b'\\xff\\xfe'", "trial_result_invalid"),
        ('b\'{"type": "success", "result": {}}\'', "trial_result_invalid"),
        ("b' ' * (2 * 1024**2)", "trial_file_oversized"),
    ],
)
def test_a_result_that_is_none_is_refused(tmp_path: Path, left: str, code: str) -> None:
    body = f"""
    import pathlib, sys
    (pathlib.Path(sys.argv[3]).parent / "result.json").write_bytes({left})
    """
    with pytest.raises(AgentError) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS, script(tmp_path / "lies", body)).run(
            good_job(tmp_path), never()
        )
    assert raised.value.code == code


def test_an_interpreter_that_is_not_there_may_come_later(tmp_path: Path) -> None:
    with pytest.raises(RetryError) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS, str(tmp_path / "nowhere")).run(good_job(tmp_path), never())
    assert raised.value.code == "trial_not_started"


def test_calling_off_kills_the_worker_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    busy = script(
        tmp_path / "busy",
        f"""
        import os, subprocess, time
        child = subprocess.Popen(["sleep", "1000"])
        part = {str(pids)!r} + ".part"
        open(part, "w").write(f"{{os.getpid()}} {{child.pid}}")
        os.rename(part, {str(pids)!r})
        time.sleep(1000)
        """,
    )
    cancel = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            TrialProcess(tmp_path / "scratch", LIMITS, busy).run(good_job(tmp_path), cancel)
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(pids.exists, "the worker's own child")
    cancel.set()
    thread.join(30)
    assert len(raised) == 1
    for pid in map(int, pids.read_text().split()):
        until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]


def test_the_worker_dies_with_its_daemon(tmp_path: Path) -> None:
    """The daemon is killed with -9; the worker is by then deep in the runtime."""
    job = good_job(tmp_path)
    hanging(Path(job.candidate.model_path))
    (tmp_path / "job").write_bytes(msgspec.json.encode(job))
    daemon = script(
        tmp_path / "daemon",
        f"""
        import pathlib, sys, threading
        sys.path.insert(0, {str(REPOSITORY)!r})
        import msgspec
        from agent.adapters.trial_process import TrialProcess
        from agent.worker.job import TrialJob
        from agent.worker.limits import WorkerLimits
        job = msgspec.json.decode(pathlib.Path({str(tmp_path / "job")!r}).read_bytes(), type=TrialJob)
        TrialProcess(pathlib.Path({str(tmp_path / "scratch")!r}), WorkerLimits()).run(job, threading.Event())
        """,
    )
    with subprocess.Popen([daemon]) as parent:
        try:
            until(lambda: len(children(parent.pid)) == 1, "the worker")
            worker = children(parent.pid)[0]
            until(
                lambda: "onnxruntime" in Path(f"/proc/{worker}/maps").read_text(), "the runtime in the worker"
            )
        finally:
            parent.send_signal(signal.SIGKILL)
    until(lambda: not alive(worker), "the worker's end")


def test_a_worker_whose_daemon_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    order = WorkerOrder(job=good_job(tmp_path), result_path=str(result), parent_pid=2**22)
    write_file(tmp_path / "job.json", order)
    done = by_hand(tmp_path / "job.json", tmp_path / "home")
    assert done.returncode == 1
    assert b"gone" in done.stderr
    assert not result.exists()


def by_hand(order: Path, home: Path) -> subprocess.CompletedProcess[bytes]:
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "agent.worker.trial", str(order)],
        cwd=REPOSITORY, env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, check=False,
    )  # fmt: skip


def test_by_hand_the_worker_needs_no_daemon_and_sends_no_telemetry(tmp_path: Path) -> None:
    home, result = tmp_path / "home", tmp_path / "result.json"
    write_file(tmp_path / "job.json", WorkerOrder(job=good_job(tmp_path), result_path=str(result)))
    done = by_hand(tmp_path / "job.json", home)
    assert done.returncode == 0, done.stderr
    assert isinstance(read_outcome(result), TrialSuccess)
    assert list(home.rglob("*")) == []


def test_without_a_job_the_worker_says_how_it_is_called() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.worker.trial"], cwd=REPOSITORY, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"usage" in done.stderr


def test_the_daemons_side_loads_neither_numpy_nor_a_runtime() -> None:
    code = (
        "import sys, agent.adapters.trial_process, agent.adapters.power, agent.adapters.thermal;"
        "sys.exit(bool({'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_the_runtimes_of_another_interpreter_are_asked_for(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    broken = script(tmp_path / "broken", "import sys; sys.exit(1)")
    assert "onnxruntime" in {runtime.name for runtime in installed_runtimes()}
    assert (
        installed_runtimes(script(tmp_path / "other", 'print(\'{"onnxruntime-gpu": "1.2.3"}\')'))[0].version
        == "1.2.3"
    )
    assert installed_runtimes(broken) == ()
    assert installed_runtimes(str(tmp_path / "nowhere")) == ()


def test_a_shard_too_many_is_the_workers_reason_too(tmp_path: Path) -> None:
    job = good_job(tmp_path)
    x = samples(5)
    arrays = shard_arrays(x, scores(Path(job.candidate.model_path), x))
    arrays["labels"] = arrays["labels"][:3]
    broken = save_shard(tmp_path / "broken.npz", arrays)
    with pytest.raises(FinalError) as raised:
        TrialProcess(tmp_path / "scratch", LIMITS).run(
            job_of(Path(job.candidate.model_path), broken), never()
        )
    assert raised.value.code == "shard_unreadable"


def test_two_first_trials_at_once_leave_each_others_folders_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed daemon left is removed before any trial has a folder, however long that takes."""
    (tmp_path / "trial-left").mkdir()
    removing, may_go_on = threading.Event(), threading.Event()
    remove = shutil.rmtree

    def slowly(path: Path, *, ignore_errors: bool) -> None:
        first = not removing.is_set()
        removing.set()
        assert not first or may_go_on.wait(20)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    trials = TrialProcess(tmp_path, WorkerLimits())
    threads = [threading.Thread(target=trials._sweep) for _ in range(2)]
    threads[0].start()
    assert removing.wait(20)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive(), "it would make a folder that the first one still removes"
    may_go_on.set()
    for thread in threads:
        thread.join(20)
    assert list(tmp_path.iterdir()) == []
