"""Heat and supply during a trial: what is void, what is measured again, and when it is given up."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.adapters.thermal import Throttling, cpu_mhz, throttling
from agent.errors import RetryError
from agent.judging import judged, measures_of, require_fair
from agent.measure import COOL_WITHIN_C, fits, has_cooled
from agent.worker import conditions, measuring
from agent.worker.conditions import LOOK_EVERY_S, Settled, Watch, settle
from agent.worker.job import TrialSettings
from agent.worker.timing import interleaved, warm_up
from tests.agent.models import FAST, good_job
from tests.device_trees import build, write
from tests.integration.bundles import make_bundle
from wire.measures import Latency, Measure, TrialResult
from wire.messages import TrialSummary
from wire.sla import AccuracyLimit, Limits, Maximum, Outcome, Status

BRIEF = replace(FAST, energy_window_s=0.05)
SETTINGS = TrialSettings(throttled_repeats_max=2, cooling_s_max=0.0, wall_s_max=60.0)


def bits(root: Path, value: int) -> None:
    write(root, "usr/bin/said_get_throttled", f"throttled={value:#x}")


def heat(root: Path, millidegrees: int) -> None:
    write(root, "sys/class/thermal/thermal_zone0/temp", millidegrees)


# --- looking


def test_what_happens_between_two_looks_counts_and_so_does_what_passes_by(tmp_path: Path) -> None:
    root, now = build(tmp_path, "rpi5"), [0.0]
    watch = Watch(root, lambda: now[0])
    bits(root, 0x50004)  # now, though the bit that remembers it was set before
    watch.glance()
    bits(root, 0x50000)
    assert watch.ended() is False  # nobody looked: it was not yet time to
    watch = Watch(root, lambda: now[0])
    bits(root, 0x50004)
    now[0] += LOOK_EVERY_S
    watch.glance()
    bits(root, 0x50000)
    for _ in range(3):  # calm since, and it stays so
        now[0] += LOOK_EVERY_S
        watch.glance()
    assert watch.ended() is True


def test_a_bit_that_rises_is_seen_at_the_end(tmp_path: Path) -> None:
    root = build(tmp_path, "rpi5")
    watch = Watch(root)
    bits(root, 0x70000)
    assert watch.ended() is True


def test_a_machine_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    assert Watch(build(tmp_path, "jetson_orin_nano")).ended() is None


def test_a_sign_that_goes_missing_is_no_news(tmp_path: Path) -> None:
    root = build(tmp_path, "rpi4")
    watch = Watch(root)
    (root / "sys/class/hwmon/hwmon1/in0_lcrit_alarm").unlink()
    assert watch.ended() is False


def test_what_rose_while_nobody_could_tell_is_seen_afterwards(tmp_path: Path) -> None:
    root, now = build(tmp_path, "rpi5"), [0.0]
    watch = Watch(root, lambda: now[0])
    bits(root, 0xFFFFFFFFF)  # more digits than the tool ever gives: an answer that is none
    (root / "sys/class/hwmon/hwmon3/in0_lcrit_alarm").unlink()
    assert throttling(root) is None
    now[0] += LOOK_EVERY_S
    watch.glance()
    bits(root, 0x70000)
    assert watch.ended() is True


# --- again, within a bound


def rounds(*throttled: bool | None) -> tuple[Callable[[], tuple[int, bool | None]], list[int]]:
    """Runs that end so, numbered."""
    told, ran = iter(throttled), list[int]()

    def measure() -> tuple[int, bool | None]:
        ran.append(len(ran))
        return len(ran), next(told)

    return measure, ran


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((False,), Settled(run=1, throttled=False, void=0)),
        ((None,), Settled(run=1, throttled=None, void=0)),
        ((True, False), Settled(run=2, throttled=False, void=1)),
        ((True, True, False), Settled(run=3, throttled=False, void=2)),
        (
            (True, True, True),
            Settled(run=3, throttled=True, void=2, gave_up="throttled_repeats_max is 2"),
        ),
    ],
)
def test_a_run_that_was_held_back_is_repeated(
    tmp_path: Path, ends: tuple[bool | None, ...], expected: Settled[int]
) -> None:
    measure, ran = rounds(*ends)
    assert settle(tmp_path, SETTINGS, time.monotonic(), measure) == expected
    assert len(ran) == len(ends)


def test_without_repeats_one_run_is_all(tmp_path: Path) -> None:
    measure, ran = rounds(True)
    once = replace(SETTINGS, throttled_repeats_max=0)
    assert settle(tmp_path, once, time.monotonic(), measure).throttled is True
    assert ran == [0]


def test_no_run_is_begun_for_which_there_is_no_time(tmp_path: Path) -> None:
    measure, ran = rounds(True)
    settled = settle(tmp_path, replace(SETTINGS, cooling_s_max=40.0), time.monotonic() - 30.0, measure)
    assert settled == Settled(run=1, throttled=True, void=0, gave_up="there is no time left for another run")
    assert ran == [0]


def test_no_run_is_begun_for_which_there_is_no_processor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter([100.0, 160.0])
    monkeypatch.setattr(time, "process_time", lambda: next(used))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (220, 225))
    settled = settle(tmp_path, SETTINGS, time.monotonic(), rounds(True)[0])
    assert settled.gave_up == "there is no processor time left for another run"


class Naps:
    """time, of which every nap is an event of the test's."""

    def __init__(self, events: Iterator[object]) -> None:
        self.now, self.naps, self._events = 1000.0, 0, events

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.naps += 1
        next(self._events, None)


def test_it_waits_until_nothing_holds_it_back_and_it_is_cool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = build(tmp_path, "rpi5")
    heat(root, 50_000)

    def events() -> Iterator[object]:
        yield "nothing changes"
        bits(root, 0x50000)
        yield "cooled by the firmware's measure"
        heat(root, 60_000)
        yield "and a little more"
        heat(root, 54_900)
        yield "cool"

    def measure() -> tuple[int, bool]:
        runs.append(naps.naps)
        if len(runs) == 1:
            bits(root, 0x50004)
            heat(root, 80_000)
        return len(runs), len(runs) == 1

    naps, runs = Naps(events()), list[int]()
    monkeypatch.setattr(conditions, "time", naps)
    settled = settle(root, replace(SETTINGS, cooling_s_max=30.0), naps.now, measure)
    assert settled == Settled(run=2, throttled=False, void=1)
    assert runs == [0, 4]


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = build(tmp_path, "rpi5")
    bits(root, 0x50001)  # a weak supply: waiting does not help
    naps = Naps(iter(()))
    monkeypatch.setattr(conditions, "time", naps)
    settled = settle(root, replace(SETTINGS, cooling_s_max=5.0), naps.now, rounds(True, True, True)[0])
    assert settled.throttled is True
    assert naps.now == pytest.approx(1000.0 + 3 * 5.0)


@given(now=st.floats(-40, 120), cool=st.floats(-40, 120))
def test_cool_is_what_it_was(now: float, cool: float) -> None:
    assert has_cooled(now, cool, held_back=False) == (now <= cool + COOL_WITHIN_C)
    assert not has_cooled(now, cool, held_back=True)
    assert has_cooled(None, cool, held_back=False)
    assert has_cooled(now, None, held_back=False)


@pytest.mark.parametrize(("needed", "left", "does"), [(10, 11.1, True), (10, 11, False), (1, -5, False)])
def test_a_run_fits_with_a_little_to_spare(needed: float, left: float, does: bool) -> None:
    assert fits(needed, left) is does


# --- in a real trial


def test_a_real_trial_tells_heat_and_frequency(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "rpi4")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1_800_000)
    job = replace(good_job(tmp_path, settings=BRIEF), system_root=str(root))
    result = measuring.run_trial(job)
    assert (result.throttled, result.runs_void) == (False, 0)
    assert (result.temperature_c_before, result.temperature_c_after) == (52.095, 52.095)
    assert (result.cpu_mhz_before, result.cpu_mhz_after) == (1800.0, 1800.0)


def test_a_real_trial_on_a_weak_supply_says_so_after_its_repeats(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "rpi4")
    write(root, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", 1)
    settings = replace(BRIEF, throttled_repeats_max=1, cooling_s_max=0.0)
    result = measuring.run_trial(replace(good_job(tmp_path, settings=settings), system_root=str(root)))
    assert (result.throttled, result.runs_void) == (True, 1)
    assert result.accuracy is not None
    assert result.notes == ("the machine was held back in every run, and throttled_repeats_max is 1",)


class Recorder:
    """A model that notes who ran."""

    def __init__(self, name: str, ran: list[str]) -> None:
        self.name, self.ran, self.session = name, ran, self

    def one(self, index: int) -> dict[str, object]:
        return {"turn": index}

    def run(self, inputs: dict[str, object]) -> None:
        self.ran.append(f"{self.name}{inputs['turn']}")

    def infer(self, index: int) -> None:
        self.run(self.one(index))


def test_the_two_take_turns_at_going_first_and_looks_fall_between() -> None:
    ran: list[str] = []
    pair = [Recorder("a", ran), Recorder("b", ran)]
    settings = TrialSettings(warmup=2, latency_runs=3)
    warm_up(pair, settings)  # type: ignore[arg-type]
    assert ran == ["a0", "b0", "a1", "b1"]
    ran.clear()
    took = interleaved(pair, settings, lambda: ran.append("look"))  # type: ignore[arg-type]
    assert ran == ["a0", "b0", "look", "b1", "a1", "look", "a2", "b2", "look"]
    assert [len(one) for one in took] == [3, 3]


def resident(path: Path) -> int:
    """Pages of a file that the kernel holds in memory (mincore(2))."""
    size = path.stat().st_size
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    held = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as view:
        start = ctypes.c_char.from_buffer(view)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), held) == 0
        del start
    return sum(flag & 1 for flag in held)


def test_a_model_is_loaded_from_the_disk_and_not_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(b"x" * 64 * mmap.PAGESIZE)
        file.flush()
        os.fsync(file.fileno())
    if resident(path) != 64:
        pytest.skip("this file system does not show what it holds in memory")
    measuring.forget(tmp_path)
    if resident(path) == 64:
        pytest.skip(f"{tmp_path} lies in memory; set TMPDIR to a folder on a disk")
    assert resident(path) == 0
    measuring.forget(tmp_path / "absent")


# --- before the SLA

SLOW = TrialResult(
    variant="onnxruntime/float_wf32_af32",
    runtime="onnxruntime",
    runtime_version="1",
    shards=(0,),
    n_samples=40,
    accuracy=Measure(value=0.95, low=0.9, high=1.0, n=40),
    latency=Latency(ms_p50=1.0, ms_p95=2.0, ms_p99=3.0, n=200),
    energy_mj=Measure(value=1.0, n=5),
    memory_bytes_peak=10**8,
    throttled=True,
    runs_void=2,
)


def verdict_on(folder: Path, result: TrialResult, limits: Limits) -> TrialSummary:
    made = make_bundle(folder)
    return judged(result, replace(made, sla=limits), made.variants[0])


@pytest.mark.parametrize(
    "limits", [Limits(latency_ms_p95_max=10.0), Limits(latency_ms_p95_max=1.0), Limits(energy_mj_max=5.0)]
)
def test_a_throttled_figure_neither_passes_nor_fails(tmp_path: Path, limits: Limits) -> None:
    summary = verdict_on(tmp_path, SLOW, limits)
    assert summary.verdict.status is Status.INCONCLUSIVE
    assert not summary.verdict.activatable
    assert "throttled while it was measured" in summary.verdict.reason
    with pytest.raises(RetryError, match="3 times in a row") as raised:
        require_fair(summary)
    assert raised.value.code == "throttled"


def test_what_is_unknown_for_another_reason_is_not_blamed_on_heat(tmp_path: Path) -> None:
    limits = Limits(latency_ms_p95_max=10.0, memory_bytes_max=1e9)
    summary = verdict_on(tmp_path, replace(SLOW, memory_bytes_peak=None), limits)
    latency, memory = summary.verdict.findings
    assert "throttled" in latency.reason
    assert "throttled" not in memory.reason
    require_fair(summary)  # a cooler machine would not know its memory either


def test_the_same_figures_decide_on_a_machine_that_was_not_held_back(tmp_path: Path) -> None:
    limits = Limits(latency_ms_p95_max=1.0, energy_mj_max=5.0)
    for throttled in (False, None):
        summary = verdict_on(tmp_path, replace(SLOW, throttled=throttled), limits)
        assert [f.outcome for f in summary.verdict.findings] == [Outcome.FAIL, Outcome.PASS]
        require_fair(summary)


def test_without_such_a_limit_heat_is_no_obstacle(tmp_path: Path) -> None:
    limits = Limits(accuracy=AccuracyLimit(min=0.9), memory_bytes_max=1e9)
    summary = verdict_on(tmp_path, SLOW, limits)
    assert summary.verdict.activatable
    require_fair(summary)


def test_what_fails_anyway_is_not_tried_again(tmp_path: Path) -> None:
    for limits in (
        Limits(latency_ms_p95_max=10.0, memory_bytes_max=1.0),
        Limits(latency_ms_p95_max=10.0, size_bytes_max=1.0),
    ):
        summary = verdict_on(tmp_path, SLOW, limits)
        assert summary.verdict.status is Status.FAIL
        require_fair(summary)


def test_an_sla_that_accepts_the_unknown_accepts_this_too(tmp_path: Path) -> None:
    limits = Limits(energy_mj_max=Maximum(max=5.0, if_unmeasured="accept"))
    summary = verdict_on(tmp_path, SLOW, limits)
    assert [f.outcome for f in summary.verdict.findings] == [Outcome.ACCEPTED]
    require_fair(summary)


def test_accuracy_does_not_depend_on_heat(tmp_path: Path) -> None:
    measures = measures_of(SLOW, make_bundle(tmp_path).variants[0])
    assert measures.accuracy is not None
    assert measures.memory_bytes is not None
    assert measures.latency_ms_p95 is measures.energy_mj is None


# --- more signs of being held back, and frequencies


@pytest.mark.parametrize(
    ("kind", "state", "now"),
    [
        ("cpufreq-cpu0", 0, False),
        ("cpufreq-cpu4", 3, True),
        ("thermal-cpufreq-0", 1, True),
        ("Processor", 2, True),
        ("pwm-fan", 3, None),
        ("devfreq-gpu", 1, None),
    ],
)
def test_a_kernel_that_slows_the_processor_says_so(
    tmp_path: Path, kind: str, state: int, now: bool | None
) -> None:
    root = build(tmp_path, "rk3588")
    write(root, "sys/class/thermal/cooling_device0/type", kind)
    write(root, "sys/class/thermal/cooling_device0/cur_state", state)
    assert throttling(root) == (None if now is None else Throttling(now=now))


def test_a_jetsons_over_current_events_are_remembered(tmp_path: Path) -> None:
    root = build(tmp_path, "jetson_orin_nano")
    write(root, "sys/class/hwmon/hwmon7/name", "soctherm_oc")
    write(root, "sys/class/hwmon/hwmon7/oc1_event_cnt", 2)
    write(root, "sys/class/hwmon/hwmon7/oc3_event_cnt", 0)
    watch = Watch(root)
    assert throttling(root) == Throttling(now=False, past=(2, 0))
    write(root, "sys/class/hwmon/hwmon7/oc3_event_cnt", 1)
    assert watch.ended() is True


def test_all_signs_count_together(tmp_path: Path) -> None:
    root = build(tmp_path, "rpi5")
    write(root, "sys/class/thermal/cooling_device0/type", "cpufreq-cpu0")
    write(root, "sys/class/thermal/cooling_device0/cur_state", 1)
    assert throttling(root) == Throttling(now=True, past=(0x50000,))


def test_the_fastest_core_counts(tmp_path: Path) -> None:
    root = build(tmp_path, "rk3588")
    assert cpu_mhz(root) is None
    for core, khz in enumerate(("1800000", "2400000", "<unknown>", "0")):
        write(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
    assert cpu_mhz(root) == 2400.0


def test_x86_without_cpufreq_says_it_in_cpuinfo(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2799.998\n\ncpu MHz\t\t: 3100.5\n")
    assert cpu_mhz(tmp_path) == 3100.5
