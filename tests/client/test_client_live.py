"""The client's counter: what it writes, and that it never harms the application that feeds it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop_client import Live, Release
from shallop_client import live as module
from shallop_client.histogram import (
    CONFIDENCE_BUCKETS,
    EXPONENT_MAX,
    EXPONENT_MIN,
    LATENCY_BUCKETS,
    SUB_BUCKETS,
    Counts,
    confidence_bucket,
    latency_bucket,
)

ROOT = Path(__file__).parents[2]


def told(folder: Path) -> dict[str, Any]:
    """The only file's content."""
    (path,) = folder.glob("*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def total(pairs: list[list[int]]) -> int:
    return sum(count for _, count in pairs)


def release(name: str) -> Release:
    return Release(directory=Path("/models/digits/releases") / name, info={})


def test_what_is_counted_is_written(tmp_path: Path) -> None:
    live = Live("digits", tmp_path)
    live.use(release("abc-onnxruntime-x"))
    for _ in range(3):
        live.record(latency_ms=5.0, confidence=0.97)
    live.record(latency_ms=5.0)
    live.record(confidence=1.0)
    live.record()
    live.flush()
    assert told(tmp_path) == {
        "kind": "shallop-live", "version": 1, "model": "digits", "pid": os.getpid(), "epoch": 2,
        "release": "abc-onnxruntime-x", "latency": [[latency_bucket(5.0), 4]],
        "confidence": [[97, 3], [99, 1]], "refused": 0,
    }  # fmt: skip
    assert live.errors == 0


def test_another_release_begins_at_nothing(tmp_path: Path) -> None:
    live = Live("digits", tmp_path)
    live.use(release("one"))
    live.record(latency_ms=5.0)
    live.use(release("one"))
    live.flush()
    assert total(told(tmp_path)["latency"]) == 1, "the same release again is no change"
    epoch = told(tmp_path)["epoch"]
    live.use(release("two"))
    assert (told(tmp_path)["release"], told(tmp_path)["latency"]) == ("two", [])
    assert told(tmp_path)["epoch"] > epoch


def test_it_is_written_by_itself_but_not_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, writes = 1000.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    live = Live("digits", tmp_path, flush_s=10.0)

    def dumps(*_: object, **__: object) -> str:
        writes.append(now_s)
        return "{}"

    monkeypatch.setattr(json, "dumps", dumps)
    for step in range(1000):
        now_s = 1000.0 + step * 0.1
        live.record(latency_ms=1.0)
    assert [round(at) for at in writes] == [1010, 1020, 1030, 1040, 1050, 1060, 1070, 1080, 1090]


@given(st.floats(min_value=2.0**-7, max_value=2.0**17 * 0.999))
def test_a_latency_lies_in_its_bucket(latency_ms: float) -> None:
    bucket = latency_bucket(latency_ms)
    octave, step = divmod(bucket, SUB_BUCKETS)
    low = math.ldexp(0.5 + step / (2 * SUB_BUCKETS), octave + EXPONENT_MIN)
    high = math.ldexp(0.5 + (step + 1) / (2 * SUB_BUCKETS), octave + EXPONENT_MIN)
    assert low <= latency_ms < high
    assert high / low <= 1.126


@given(st.floats())
def test_any_number_is_counted_or_refused(number: float) -> None:
    counts = Counts()
    counts.add(number, number)
    counted = sum(counts.latency) + sum(counts.confidence) + counts.refused
    assert counted == (0 if math.isnan(number) else 2)
    assert sum(counts.latency) == (0.0 < number < math.inf)
    assert sum(counts.confidence) == (0.0 <= number <= 1.0)
    json.dumps(counts.as_json())


def test_the_edges_of_confidence() -> None:
    assert [confidence_bucket(value) for value in (0.0, 0.009, 0.01, 0.999, 1.0)] == [0, 0, 1, 99, 99]
    assert latency_bucket(1e-300) == 0
    assert latency_bucket(1e300) == LATENCY_BUCKETS - 1


@pytest.mark.parametrize("odd", ["fast", None, [1], {}, object(), 1j, Decimal("NaN"), 10**400])
def test_odd_values_harm_nobody(tmp_path: Path, odd: Any) -> None:  # noqa: ANN401
    live = Live("digits", tmp_path)
    live.record(latency_ms=odd, confidence=odd)
    live.record(latency_ms=2.0)
    live.flush()
    assert total(told(tmp_path)["latency"]) == 1


@pytest.mark.parametrize("number", [Decimal("2.5"), Fraction(5, 2), 2, True])
def test_every_kind_of_number_is_a_number(tmp_path: Path, number: Any) -> None:  # noqa: ANN401
    live = Live("digits", tmp_path)
    live.record(latency_ms=number)
    live.flush()
    assert told(tmp_path)["latency"] == [[latency_bucket(float(number)), 1]]


def test_the_file_stays_small_whatever_is_counted(tmp_path: Path) -> None:
    live = Live("d" * 63, tmp_path)
    live.use(release("f" * 200))
    for bucket in range(LATENCY_BUCKETS):
        live._counts.latency[bucket] = 2**53 - 1
    for bucket in range(CONFIDENCE_BUCKETS):
        live._counts.confidence[bucket] = 2**53 - 1
    live._changed = True
    live.flush()
    (path,) = tmp_path.glob("*.json")
    assert path.stat().st_size <= 12 * 1024
    assert (EXPONENT_MAX - EXPONENT_MIN + 1) * SUB_BUCKETS == LATENCY_BUCKETS


# --- trouble ----------------------------------------------------------------------------------------


def test_without_the_directory_nothing_happens(tmp_path: Path) -> None:
    live = Live("digits", tmp_path / "none", flush_s=0.1)
    live._flush_at_s = 0.0
    live.record(latency_ms=1.0)
    live.flush()
    assert live.errors > 0
    (tmp_path / "none").mkdir()
    live.flush()
    assert total(told(tmp_path / "none")["latency"]) == 1, "it is written once the directory is there"


def test_a_full_disk_costs_the_figures_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = Live("digits", tmp_path)
    live._file = Path("/dev/full/x")
    for _ in range(3):
        live.record(latency_ms=1.0)
        live.flush()
    assert live.errors == 3
    assert caplog.text.count("are not written") == 1


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to a directory that all may write to must not choose what we overwrite."""
    live = Live("digits", tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".{live._file.name}.tmp").symlink_to(victim)
    live.record(latency_ms=1.0)
    live.flush()
    assert victim.read_text() == "precious"


def test_a_strict_umask_does_not_hide_it_from_the_agent(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        live = Live("digits", tmp_path)
        live.record(latency_ms=1.0)
        live.flush()
    finally:
        os.umask(old)
    (path,) = tmp_path.glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["", "a/b", "a@b", ".a"])
def test_a_name_that_is_no_models(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no model's name"):
        Live(name, tmp_path)


# --- threads and processes --------------------------------------------------------------------------


def test_threads_lose_no_count(tmp_path: Path) -> None:
    live = Live("digits", tmp_path, flush_s=0.1)

    def work() -> None:
        for _ in range(5000):
            live.record(latency_ms=3.0, confidence=0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live.flush()
    assert total(told(tmp_path)["latency"]) == total(told(tmp_path)["confidence"]) == 20_000


def test_a_signal_handler_may_record_too(tmp_path: Path) -> None:
    program = (
        "import signal, sys, threading\n"
        "from shallop_client import Live\n"
        "live = Live('digits', sys.argv[1])\n"
        "signal.signal(signal.SIGALRM, lambda *_: live.record(latency_ms=1.0))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "for _ in range(100000): live.record(latency_ms=1.0)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    assert total(told(tmp_path)["latency"]) >= 100_000


FORKING = """
import os, sys, threading
from shallop_client import Live
live = Live("digits", sys.argv[1])
for _ in range(10): live.record(latency_ms=1.0)
stop = threading.Event()
def busy():
    while not stop.is_set(): live.record(latency_ms=1.0)
thread = threading.Thread(target=busy)
thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        live.record(latency_ms=9.0)
        live.flush()
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
thread.join()
sys.exit(max(codes))
"""


def test_a_forked_child_counts_for_itself(tmp_path: Path) -> None:
    """Also where another thread held the lock at the moment of the fork."""
    subprocess.run([sys.executable, "-c", FORKING, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    files = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    nine = latency_bucket(9.0)
    assert len(files) == 21
    assert sorted(told["latency"] == [[nine, 1]] for told in files) == [False] + [True] * 20


def test_the_end_of_a_program_writes_the_rest(tmp_path: Path) -> None:
    program = (
        "import sys; from shallop_client import Live\n"
        "live = Live('digits', sys.argv[1]); live.record(latency_ms=1.0)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)
    assert total(told(tmp_path)["latency"]) == 1


def test_a_program_that_starts_tidies_up_after_the_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    (tmp_path / f"digits@{dead.pid}-00000000.json").write_text("{}")
    (tmp_path / f".digits@{dead.pid}-00000000.json.tmp").write_text("{}")
    kept = [f"digits@{os.getpid()}-22222222.json", f"faces@{dead.pid}-0.json", "digits@x-0.json", "other"]
    for name in kept:
        (tmp_path / name).write_text("{}")
    Live("digits", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_crowded_directory_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES_TIDIED_MAX", 5)
    for number in range(20):
        (tmp_path / f"digits@1073741{number:02d}-0.json").write_text("{}")
    Live("digits", tmp_path)
    assert len(list(tmp_path.iterdir())) == 15


def test_a_killed_program_leaves_a_whole_file(tmp_path: Path) -> None:
    program = (
        "import sys; from shallop_client import Live\n"
        "live = Live('digits', sys.argv[1])\n"
        "print(flush=True)\n"
        "while True: live.record(latency_ms=1.0); live.flush()"
    )
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.05)
            writer.send_signal(signal.SIGKILL)
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text())["kind"] == "shallop-live"
