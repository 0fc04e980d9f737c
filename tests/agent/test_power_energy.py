"""Energy per inference on every board's tree: measured, estimated or unknown, and said so."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.adapters.power import find_model, find_sensor
from agent.adapters.power_model import ProcessorLoad
from agent.adapters.power_rpi import WALL_FITS, at_the_wall
from agent.judging import judged
from agent.worker import energy
from agent.worker.job import TrialSettings
from agent.worker.measuring import run_trial
from tests.agent.models import good_job
from tests.agent.test_power import WATTS
from tests.device_trees import PMIC, PMIC_WATTS, TREES, build, processor_ticks, write
from tests.integration.bundles import make_bundle
from wire.measures import Source
from wire.sla import Limits, Maximum, Outcome, Status

ENERGY = "sys/class/powercap/intel-rapl:0/energy_uj"
BRIEF = TrialSettings(warmup=1, latency_runs=5, energy_windows=5, energy_window_s=0.06)


class Board:
    """A board whose clock ticks: busy while somebody infers, idle else; its counter of energy goes round."""

    IDLE_UW, LOAD_UW, RANGE_UJ = 2_000_000, 5_000_000, 1_000_000
    """A range so small that it wraps several times in a test."""

    def __init__(self, root: Path, name: str) -> None:
        self._root, self._name, self._works = root, name, threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Its clock ticks meanwhile."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def infer(self, _index: int) -> None:
        self._works.set()
        time.sleep(0.004)

    def _tick(self) -> None:
        busy, idle, energy_uj, last = 0, 0, 999_999.0, time.monotonic()
        while not self._ended.wait(0.002):
            works = self._works.is_set()
            busy, idle = (busy + 1, idle) if works else (busy, idle + 1)
            now = time.monotonic()
            energy_uj += (self.LOAD_UW if works else self.IDLE_UW) * (now - last)
            last = now
            # By rename: the kernel's own files are never half written.
            beside = self._root / "beside"
            if self._name == "rpi4":
                processor_ticks(beside, busy=busy, idle=idle)
                (beside / "proc/stat").replace(self._root / "proc/stat")
            if self._name == "x86":
                write(beside, ENERGY, int(energy_uj) % self.RANGE_UJ)
                (beside / ENERGY).replace(self._root / ENERGY)


SENSORS = {name: sensor for name, (sensor, _) in WATTS.items()} | {
    "x86": "rapl_package", "rpi4": "rpi4_model_estimate", "rk3588": None,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TREES))
def test_every_boards_energy_per_inference(tmp_path: Path, name: str) -> None:
    root = build(tmp_path, name)
    if name == "x86":
        write(root, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", Board.RANGE_UJ)
    board = Board(root, name)
    with board.running():
        power = energy.measure(root, BRIEF, board.infer)
    assert power.power_sensor == SENSORS[name]
    if SENSORS[name] is None:
        assert power == energy.Power()
        return
    assert power.energy_mj is not None
    assert power.energy_mj_gross is not None
    assert power.power_watts_idle is not None
    assert power.power_watts_load is not None
    assert power.energy_mj.n == power.energy_mj_gross.n == BRIEF.energy_windows
    estimated = name == "rpi4"
    for measure in (power.energy_mj, power.energy_mj_gross):
        assert measure.source is (Source.ESTIMATED if estimated else Source.MEASURED)
    if name == "rpi4":
        assert power.power_watts_idle == pytest.approx(3.04)
        assert power.power_watts_load == pytest.approx(6.44)
    elif name == "x86":  # the tree's clock is a thread's, which may be late: how much is another test's
        assert power.power_watts_idle >= 0.0
        assert power.power_watts_load > 0.0
    else:  # the tree stands still
        assert power.power_watts_load == pytest.approx(WATTS[name][1])
        assert power.power_watts_idle == pytest.approx(WATTS[name][1])
        assert power.energy_mj.value == pytest.approx(0.0, abs=1e-6)
    assert power.energy_mj.value <= power.energy_mj_gross.value
    assert bool(power.remarks) == (name == "rpi5")


def test_only_a_raspberry_pi_4_has_a_model_and_it_is_no_sensor(tmp_path: Path) -> None:
    for name in TREES:
        root = build(tmp_path / name, name)
        model = find_model(root)
        assert (model is not None) == (name == "rpi4")
        if model is not None:
            assert model.estimate
            assert find_sensor(root) is None


@pytest.mark.parametrize("said", ["", "cpu", "cpu 1 2 3 4", "cpu a b c d e", "intr 1 2 3 4 5 6"])
def test_a_load_that_cannot_be_read_is_unknown(tmp_path: Path, said: str) -> None:
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.5\0")
    write(tmp_path, "proc/stat", said)
    assert ProcessorLoad(tmp_path / "proc/stat").share() is None
    assert find_model(tmp_path) is None


@given(
    first=st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    more=st.tuples(st.integers(0, 10**6), st.integers(-5, 10**6)),
)
def test_the_load_is_a_share(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[int, int], more: tuple[int, int]
) -> None:
    root = tmp_path_factory.mktemp("stat")
    load = ProcessorLoad(root / "proc/stat")
    processor_ticks(root, busy=first[0], idle=first[1] + 5)
    assert load.share() is None
    processor_ticks(root, busy=first[0] + more[0], idle=first[1] + 5 + more[1])
    share = load.share()
    if sum(more) <= 0:
        assert share is None
    else:
        assert share == pytest.approx(min(1.0, more[0] / sum(more)))


def test_what_lies_inside_the_total_of_proc_stat_is_not_counted_twice(tmp_path: Path) -> None:
    """Guest time is part of user time (proc(5)); waiting for a disk is idle."""
    load = ProcessorLoad(tmp_path / "proc/stat")
    write(tmp_path, "proc/stat", "cpu 0 0 0 0 0 0 0 0 0 0")
    load.share()
    write(tmp_path, "proc/stat", "cpu 10 0 0 20 10 0 0 0 999 999")
    assert load.share() == 0.25


def test_the_plug_of_a_raspberry_pi_5_is_a_remark_and_the_figure_is_the_chips(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "rpi5")
    result = run_trial(replace(good_job(tmp_path, settings=BRIEF), system_root=str(root)))
    assert result.power_watts_load == pytest.approx(PMIC_WATTS)
    low, high = sorted(factor * PMIC_WATTS + more for factor, more in WALL_FITS)
    assert result.notes == (at_the_wall(PMIC_WATTS),)
    for words in ("estimated", f"{low:.2f} to {high:.2f} W", f"{PMIC_WATTS:.2f} W"):
        assert words in result.notes[0]
    assert len([line for line in PMIC.splitlines() if "current" in line]) == 12


def test_an_estimate_is_reported_and_decides_nothing(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "rpi4")
    with Board(root, "rpi4").running():
        result = run_trial(replace(good_job(tmp_path, settings=BRIEF), system_root=str(root)))
    assert result.energy_mj_gross is not None
    assert result.energy_mj_gross.source is Source.ESTIMATED
    made = make_bundle(tmp_path / "bundle")
    for bound in (1e-9, 1e9):
        strict = replace(made, sla=Limits(energy_mj_max=bound))
        verdict = judged(result, strict, made.variants[0]).verdict
        assert ([f.outcome for f in verdict.findings], verdict.status) == (
            [Outcome.UNMEASURED],
            Status.INCONCLUSIVE,
        )
        lenient = replace(made, sla=Limits(energy_mj_max=Maximum(max=bound, if_unmeasured="accept")))
        assert judged(result, lenient, made.variants[0]).verdict.status is Status.PASS
