"""A delta in a process of its own: real processes, a real small codec, and every way to end badly."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.adapters.delta_process import DeltaProcess
from agent.errors import AgentError, Cancelled, RetryError
from agent.worker.delta_job import OUTCOME_BYTES_MAX, DeltaOrder, DeltaOutcome, main, read_outcome
from agent.worker.limits import WorkerLimits
from tests.agent import plain_delta
from wire.errors import ContentError

OLD = random.Random(1).randbytes(50_000)
NEW = OLD[:1000] + b"new" + OLD[1003:]
LIMITS = WorkerLimits(wall_s_max=60.0, cpu_s_max=30)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    base, delta = tmp_path / "base", tmp_path / "delta"
    base.write_bytes(OLD)
    delta.write_bytes(plain_delta.encode(OLD, NEW))
    return base, delta, tmp_path / "output"


def process(tmp_path: Path, module: str = "tests.agent.plain_delta", **limits: float) -> DeltaProcess:
    return DeltaProcess(tmp_path / "scratch", replace(LIMITS, **limits), module=module)


def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> DeltaProcess:
    """A worker whose `apply` is that code; the daemon's own import path leads to it."""
    package = tmp_path / "workers"
    package.mkdir()
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (package / "bad_delta.py").write_text(
        "import sys, os\nfrom agent.worker import delta_job\n"
        f"def apply(base, delta, output, size_bytes):\n{lines}"
        "sys.exit(delta_job.main(sys.argv[1:], lambda: apply))\n"
    )
    root = Path(plain_delta.__file__).parents[2]
    monkeypatch.setattr("agent.adapters.worker_process._PACKAGE_ROOT", _Both(f"{root}{os.pathsep}{package}"))
    return process(tmp_path, "bad_delta")


class _Both(str):
    """Two directories where the adapter names one."""

    __slots__ = ()
    name = "checkout"


def test_a_delta_is_applied_and_nothing_is_left_behind(
    tmp_path: Path, files: tuple[Path, Path, Path]
) -> None:
    base, delta, output = files
    process(tmp_path).apply(base, delta, output, len(NEW), threading.Event())
    assert output.read_bytes() == NEW
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.abort()", "delta_crashed"),
        ("os._exit(0)", "delta_crashed"),
        ("raise KeyError('a mistake')", "delta_crashed"),
        ("import no_such_numpy", "delta_no_numpy"),
        ("raise MemoryError", "delta_out_of_memory"),
        ("bytearray(8 * 1024**4)", "delta_out_of_memory"),
        ("raise OSError(28, 'no space left on device')", "disk_full"),
        ("raise OSError(5, 'input/output error')", "delta_io"),
        ("open(output, 'wb').write(bytes(2 * 1024 * 1024))", "delta_io"),
        ("from wire.errors import ContentError\nraise ContentError('delta_odd', 'odd')", "delta_odd"),
    ],
)
def test_a_worker_that_fails_has_a_name_for_it(
    tmp_path: Path, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, body: str, code: str
) -> None:
    with pytest.raises(AgentError) as failed:
        bad(tmp_path, monkeypatch, body).apply(*files, len(NEW), threading.Event())
    assert failed.value.code == code
    assert isinstance(failed.value, RetryError) == (code == "disk_full")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_worker_that_hangs_is_killed(
    tmp_path: Path, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = bad(
        tmp_path, monkeypatch, f"open('{tmp_path}/pid', 'w').write(str(os.getpid()))\nwhile True: pass"
    )
    worker._limits = replace(worker._limits, wall_s_max=1.5)
    with pytest.raises(AgentError) as failed:
        worker.apply(*files, len(NEW), threading.Event())
    assert failed.value.code == "delta_timeout"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_worker_is_called_off(
    tmp_path: Path, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = bad(tmp_path, monkeypatch, f"open('{tmp_path}/on', 'w').close()\nwhile True: pass")
    cancel = threading.Event()

    def call_off() -> None:
        while not (tmp_path / "on").exists():
            time.sleep(0.01)
        cancel.set()

    threading.Thread(target=call_off).start()
    with pytest.raises(Cancelled):
        worker.apply(*files, len(NEW), cancel)


def test_an_interpreter_that_is_not_there_is_a_matter_of_the_machine(
    tmp_path: Path, files: tuple[Path, Path, Path]
) -> None:
    worker = DeltaProcess(tmp_path / "scratch", LIMITS, python=str(tmp_path / "none"))
    with pytest.raises(RetryError) as failed:
        worker.apply(*files, len(NEW), threading.Event())
    assert failed.value.code == "delta_not_started"


def test_a_worker_may_leave_anything_as_its_outcome(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for junk in (b"", b"{", b'{"code": "Not A Code"}', b" " * (OUTCOME_BYTES_MAX + 1)):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match=r"."):
            read_outcome(path)
    path.write_bytes(msgspec.json.encode(DeltaOutcome()))
    assert read_outcome(path).code is None


def test_the_worker_says_how_it_is_called() -> None:
    assert main([], lambda: plain_delta.apply) == 2


def test_a_worker_started_by_hand_follows_its_order(tmp_path: Path, files: tuple[Path, Path, Path]) -> None:
    base, delta, output = files
    delta.write_bytes(b"junk")
    order = DeltaOrder(
        base=str(base), delta=str(delta), output=str(output), size_bytes=5, result_path=str(tmp_path / "r")
    )
    (tmp_path / "order").write_bytes(msgspec.json.encode(order))
    command = [sys.executable, "-m", "tests.agent.plain_delta", str(tmp_path / "order")]
    subprocess.run(command, check=True, timeout=60, cwd=Path(plain_delta.__file__).parents[2])
    assert read_outcome(tmp_path / "r").code == "delta_malformed"
    with pytest.raises(ContentError):
        plain_delta.apply(base, delta, output, 5)
