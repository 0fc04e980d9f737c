"""A machine that has no thread to give for a while: what was ordered waits for one, and is not forgotten."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest import mock

import pytest

from agent.lanes import Lane
from tests.agent.rig import TWO, deploy, running
from tests.agent.twins import until


def test_work_that_gets_no_thread_is_begun_once_there_is_one(tmp_path: Path) -> None:
    real, left = threading.Thread.start, iter(range(3))

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("lane-") and next(left, None) is not None:
            raise RuntimeError("can't start new thread")
        real(thread)

    with mock.patch.object(threading.Thread, "start", start), running(tmp_path) as rig:
        deploy(rig)
        deploy(rig, TWO, 2)
        assert rig.running == TWO.digest
        assert next(left, None) is None


def test_a_lane_outlives_a_thread_that_could_not_be_had() -> None:
    lane, done = Lane("x"), threading.Event()
    with (
        mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")),
        pytest.raises(RuntimeError),
    ):
        lane.submit(lambda _cancel: None)
    lane.submit(lambda _cancel: done.set())
    until(done.is_set, "the task")
    assert lane.close(5.0)
