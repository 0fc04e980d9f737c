"""Energy's arithmetic, classes of processors, and which figures count before the SLA."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent import hardware
from agent.adapters.power import PowerSensor
from agent.judging import judged, measures_of
from agent.measure import LOAD_WINDOWS_MIN, Window, cpu_class, energy_per_inference_mj
from agent.worker import energy
from agent.worker.job import TrialSettings
from agent.worker.measuring import run_trial
from tests.agent.models import good_job
from tests.device_trees import A72_FLAGS, A76_FLAGS, build, write
from tests.integration.bundles import make_bundle
from wire.bundle import HostFigures
from wire.measures import Conformance, Latency, Measure, Source, TrialResult
from wire.sla import AccuracyLimit, Limits, Status

# --- energy per inference

WATTS = st.floats(0.1, 100.0)
IDLE = st.lists(WATTS, min_size=1, max_size=20).map(lambda w: Window(seconds=10.0, watts=tuple(w)))
LOAD = st.builds(
    Window,
    seconds=st.floats(0.1, 100.0),
    watts=st.lists(WATTS, min_size=1, max_size=20).map(tuple),
    inferences=st.integers(1, 10_000),
)
LOADS = st.lists(LOAD, min_size=LOAD_WINDOWS_MIN, max_size=9)


@given(idle=IDLE, loads=LOADS)
def test_gross_is_what_the_windows_used(idle: Window, loads: list[Window]) -> None:
    figures = energy_per_inference_mj(idle, loads, throttled=False)
    assert figures is not None
    joules = [sum(w.watts) / len(w.watts) * w.seconds for w in loads]
    each = [1000 * j / w.inferences for j, w in zip(joules, loads, strict=True)]
    assert figures.gross.value == pytest.approx(median(each))
    assert figures.gross.n == figures.net.n == len(loads)
    for measure in (figures.gross, figures.net):
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low <= measure.value <= measure.high


@given(idle=IDLE, loads=LOADS)
def test_net_is_gross_without_the_idle_power(idle: Window, loads: list[Window]) -> None:
    figures = energy_per_inference_mj(idle, loads, throttled=None)
    nothing = energy_per_inference_mj(Window(seconds=1.0, watts=(0.0,)), loads, throttled=None)
    assert figures is not None
    assert nothing is not None
    assert nothing.net.value == nothing.gross.value == figures.gross.value
    assert figures.net.value < figures.gross.value
    assert figures.watts_idle == pytest.approx(sum(idle.watts) / len(idle.watts))


@given(loads=LOADS, watts=WATTS)
def test_equal_windows_have_the_plain_answer(loads: list[Window], watts: float) -> None:
    same = [replace(w, watts=(watts,), seconds=2.0, inferences=100) for w in loads]
    figures = energy_per_inference_mj(Window(seconds=1.0, watts=(watts / 2,)), same, throttled=False)
    assert figures is not None
    assert figures.gross.value == pytest.approx(1000 * watts * 2.0 / 100)
    assert figures.net.value == pytest.approx(1000 * watts / 2 * 2.0 / 100)
    assert figures.watts_load == pytest.approx(watts)


@given(idle=IDLE, loads=LOADS)
def test_a_machine_that_was_held_back_has_no_figure(idle: Window, loads: list[Window]) -> None:
    assert energy_per_inference_mj(idle, loads, throttled=True) is None


@given(idle=IDLE, loads=LOADS, which=st.integers(0, 100), what=st.sampled_from(["watts", "inferences"]))
def test_a_window_without_readings_makes_it_unknown(
    idle: Window, loads: list[Window], which: int, what: str
) -> None:
    index = which % len(loads)
    broken = replace(loads[index], watts=()) if what == "watts" else replace(loads[index], inferences=0)
    loads[index] = broken
    assert energy_per_inference_mj(idle, loads, throttled=False) is None


@given(loads=LOADS)
def test_an_idle_window_without_readings_makes_it_unknown(loads: list[Window]) -> None:
    assert energy_per_inference_mj(Window(seconds=1.0, watts=()), loads, throttled=False) is None


@given(idle=IDLE, loads=st.lists(LOAD, max_size=LOAD_WINDOWS_MIN - 1))
def test_fewer_than_five_windows_are_none(idle: Window, loads: list[Window]) -> None:
    assert energy_per_inference_mj(idle, loads, throttled=False) is None


# --- energy in a real trial, on a machine's tree

BRIEF = TrialSettings(warmup=1, latency_runs=5, energy_windows=5, energy_window_s=0.05)


def test_a_trial_on_a_machine_with_a_sensor(tmp_path: Path) -> None:
    """The tree's power never changes, so the net energy is nothing and the gross one is not."""
    build(tmp_path / "root", "jetson_orin_nano")
    job = replace(good_job(tmp_path, settings=BRIEF), system_root=str(tmp_path / "root"))
    result = run_trial(job)
    watts = 4.984 * 0.912
    assert result.power_sensor == "ina3221"
    assert result.power_watts_idle == pytest.approx(watts)
    assert result.power_watts_load == pytest.approx(watts)
    assert result.energy_mj is not None
    assert result.energy_mj.value == pytest.approx(0.0, abs=1e-9)
    assert result.energy_mj_gross is not None
    assert result.energy_mj_gross.value > 0
    assert result.energy_mj_gross.n == 5
    assert result.temperature_c_before == result.temperature_c_after == 48.625
    assert result.throttled is None


def test_a_throttling_bit_that_rises_voids_the_energy(tmp_path: Path) -> None:
    root = build(tmp_path, "rpi5")

    def infer(index: int) -> None:
        if index == 1:
            write(root, "usr/bin/said_get_throttled", "throttled=0x70000")  # bit 17 has risen, 1 has not

    power = energy.measure(root, BRIEF, infer)
    assert power.power_sensor == "rpi5_pmic"
    assert power.energy_mj is None
    assert power.energy_mj_gross is None


def test_a_counter_that_stands_still_is_zero_watts_and_not_unknown(tmp_path: Path) -> None:
    ran: list[int] = []
    power = energy.measure(build(tmp_path, "x86"), BRIEF, ran.append)
    assert power.power_watts_idle == power.power_watts_load == 0.0
    assert ran


def test_a_sensor_that_falls_silent_costs_no_load_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "find_sensor", lambda _root: PowerSensor("mute", lambda: None))
    ran: list[int] = []
    assert energy.measure(tmp_path, BRIEF, ran.append) == energy.Power(power_sensor="mute")
    assert ran == []


def test_without_a_sensor_no_time_is_spent(tmp_path: Path) -> None:
    ran: list[int] = []
    assert energy.measure(build(tmp_path, "rk3588"), BRIEF, ran.append) == energy.Power()
    assert ran == []


# --- classes of processors


@pytest.mark.parametrize(
    ("arch", "features", "expected"),
    [
        ("x86_64", "sse2 avx2 avx512bw avx512_vnni", "x86-64-vnni"),
        ("x86_64", "sse2 avx2 avx_vnni", "x86-64-vnni"),
        ("AMD64", "sse2 avx2 avx512bw", "x86-64-avx512"),
        ("x86_64", "sse2 avx2", "x86-64-avx2"),
        ("x86_64", "sse2", "x86-64-baseline"),
        ("x86_64", "", None),
        ("aarch64", A72_FLAGS, "aarch64-baseline"),
        ("aarch64", A76_FLAGS, "aarch64-dotprod"),
        ("arm64", f"{A76_FLAGS} i8mm", "aarch64-i8mm"),
        ("aarch64", "", None),
        ("armv7l", "neon", "armv7l"),
        ("riscv64", "", "riscv64"),
        ("unknown", "", None),
        ("", "", None),
    ],
)
def test_the_class_that_answers_are_pooled_by(arch: str, features: str, expected: str | None) -> None:
    assert cpu_class(arch, features.split()) == expected


def test_a_trial_says_its_class(tmp_path: Path) -> None:
    machine = hardware.detect()
    assert run_trial(good_job(tmp_path)).cpu == cpu_class(machine.arch, machine.cpu_features)


# --- which figures count

HOST = HostFigures(
    accuracy=Measure(value=0.91, low=0.90, high=0.92, n=2000),
    accuracy_ratio=Measure(value=0.995, low=0.99, high=1.0, n=2000),
    agreement=Measure(value=0.98, low=0.97, high=0.99, n=2000),
)
OWN = Measure(value=0.5, low=0.4, high=0.6, n=40)
CONFORMS = Conformance(n=40, equal=0.9, same_answer=1.0, worst=0.01, conforms=True)
DIFFERS = replace(CONFORMS, same_answer=0.975, conforms=False)


def result_with(conformance: Conformance | None) -> TrialResult:
    return TrialResult(
        variant="onnxruntime/float_wf32_af32",
        runtime="onnxruntime",
        runtime_version="1",
        shards=(0,),
        n_samples=40,
        accuracy=OWN,
        accuracy_ratio=OWN,
        agreement=OWN,
        conformance=conformance,
        latency=Latency(ms_p50=1.0, ms_p95=2.0, ms_p99=3.0, n=200),
        memory_bytes_peak=10**8,
    )


def test_a_conforming_device_inherits_the_hosts_figures(tmp_path: Path) -> None:
    variant = replace(make_bundle(tmp_path).variants[0], host=HOST)
    measures = measures_of(result_with(CONFORMS), variant)
    for inherited, host in (
        (measures.accuracy, HOST.accuracy),
        (measures.accuracy_ratio, HOST.accuracy_ratio),
        (measures.agreement, HOST.agreement),
    ):
        assert host is not None
        assert inherited == replace(host, source=Source.INHERITED)


@pytest.mark.parametrize("conformance", [DIFFERS, None])
def test_any_other_device_has_its_own_figures(tmp_path: Path, conformance: Conformance | None) -> None:
    variant = replace(make_bundle(tmp_path).variants[0], host=HOST)
    measures = measures_of(result_with(conformance), variant)
    assert measures.accuracy == measures.accuracy_ratio == measures.agreement == OWN
    assert OWN.source is Source.MEASURED


def test_where_the_host_measured_nothing_there_is_nothing_to_inherit(tmp_path: Path) -> None:
    variant = replace(make_bundle(tmp_path).variants[0], host=HostFigures())
    assert measures_of(result_with(CONFORMS), variant).accuracy == OWN


def test_latency_memory_and_energy_are_always_the_devices_own(tmp_path: Path) -> None:
    variant = replace(make_bundle(tmp_path).variants[0], host=HOST)
    measures = measures_of(result_with(CONFORMS), variant)
    assert measures.latency_ms_p95 == Measure(value=2.0, n=200)
    assert measures.memory_bytes == Measure(value=float(10**8))
    assert measures.energy_mj is None
    unmeasured = replace(result_with(CONFORMS), latency=None, memory_bytes_peak=None)
    assert measures_of(unmeasured, variant).latency_ms_p95 is None
    assert measures_of(unmeasured, variant).memory_bytes is None


def test_the_verdict_follows_from_what_is_inherited(tmp_path: Path) -> None:
    """Forty samples that look bad are no matter where the device does what the host did."""
    made = make_bundle(tmp_path)
    variant = replace(made.variants[0], host=HOST)
    manifest = replace(made, sla=Limits(accuracy=AccuracyLimit(min=0.9)))
    assert judged(result_with(CONFORMS), manifest, variant).verdict.status is Status.PASS
    assert judged(result_with(DIFFERS), manifest, variant).verdict.status is Status.FAIL
