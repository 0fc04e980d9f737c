"""Real processes and a real Dask cluster: order, what is shared, what is raised."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from converter.errors import InputError
from converter.executor import open_executor
from converter.pipeline import run
from tests.converter.builders import Workshop


def _add(shared: list[int], item: int) -> tuple[int, int]:
    if item == 13:
        raise ValueError("thirteen")
    return shared[0] + item, os.getpid()


def _await_worker(address: str) -> None:
    """Until the cluster has its worker; the processes start one after the other."""
    distributed: Any = pytest.importorskip("distributed")
    with distributed.Client(address, timeout=60) as client:
        client.wait_for_workers(1, timeout=60)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and one worker, as a user starts them, gone when the tests end."""
    pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("dask")
    commands = [
        ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        ["worker", f"tcp://127.0.0.1:{port}", "--nworkers", "1", "--nthreads", "1", "--no-dashboard",
         "--local-directory", str(folder)],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = []
    with (folder / "log").open("wb") as log:
        for command in commands:
            whole = [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]]
            processes.append(subprocess.Popen(whole, stdout=log, stderr=log, env=environment))
    try:
        _await_worker(f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=20)


@pytest.mark.parametrize("name", [None, "serial", "processes:2"])
def test_results_come_in_order(name: str | None) -> None:
    with open_executor(name) as executor:
        found = list(executor.run(_add, [100], [3, 1, 2]))
    assert [value for value, _ in found] == [103, 101, 102]
    here = {pid == os.getpid() for _, pid in found}
    assert here == {name != "processes:2"}


@pytest.mark.parametrize("name", [None, "processes:2"])
def test_what_the_work_raises_is_raised_here(name: str | None) -> None:
    with open_executor(name) as executor, pytest.raises(ValueError, match="thirteen"):
        list(executor.run(_add, [0], [1, 13]))


def test_no_items_need_no_process() -> None:
    with open_executor("processes:2") as executor:
        assert list(executor.run(_add, [0], [])) == []


@pytest.mark.parametrize(
    "name",
    ["processes", "processes:0", "processes:65", "processes:x", "dask", "dask:", "cloud:1"],
)
def test_what_is_no_executor_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        open_executor(name)
    assert caught.value.code == "executor_malformed"


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(scheduler: str) -> None:
    with open_executor(f"dask:{scheduler}") as executor:
        found = list(executor.run(_add, [100], [3, 1, 2]))
    assert [value for value, _ in found] == [103, 101, 102]
    assert all(pid != os.getpid() for _, pid in found)


@pytest.mark.slow
def test_a_whole_conversion_runs_on_the_cluster(scheduler: str, tmp_path: Path) -> None:
    here = Workshop(_folder(tmp_path / "here"))
    there = Workshop(_folder(tmp_path / "there"))
    alone = run(here.options())
    spread = run(structs.replace(there.options(), executor=f"dask:{scheduler}"))
    assert [(row.recipe, row.sha256) for row in spread.report.candidates] == [
        (row.recipe, row.sha256) for row in alone.report.candidates
    ]
    assert {row.status for row in spread.report.candidates} == {"pass"}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    pytest.importorskip("distributed", reason="the extra `dask` is not installed")
    with pytest.raises(InputError) as caught, open_executor("dask:nowhere.invalid:1"):
        pass
    assert caught.value.code == "executor_unreachable"
