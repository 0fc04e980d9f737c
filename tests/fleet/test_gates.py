"""Gates: what is refused when they are read, every part by itself, and the e-values' guarantees."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.evalues import (
    harm_e_value,
    no_harm_e_value,
    proof_devices_min,
    proof_e_value,
    proof_samples_min,
    success_harm_e_value,
)
from fleet.evidence import DeviceEvidence, Evidence, Standing, pool
from fleet.gates import (
    SMALL_FLEET,
    AccuracyTest,
    Decision,
    Gate,
    GateVerdict,
    Part,
    Proofs,
    check_proofs,
    evaluate,
    parse_gate,
)
from tests.fleet.simulator import FIRST, LIMITS, trial
from wire.errors import LimitsError
from wire.figures import PairedCounts
from wire.measures import Latency, Measure, Source, TrialResult
from wire.sla import AccuracyLimit, AgreementLimit, Limits, Maximum

SHARDS = ((0,), (1,), (2,), (3,))


def device(index: int, standing: Standing = Standing.SUCCEEDED, tried: bool = True) -> DeviceEvidence:
    result = trial(FIRST, SHARDS[index % 4]) if tried else None
    return DeviceEvidence(device=f"d{index}", standing=standing, trial=result, arch="aarch64")


def evidence(*devices: DeviceEvidence, **fields: object) -> Evidence:
    return replace(Evidence(devices=devices, limits=LIMITS, waves=3), **fields)


def tried(result: Callable[[TrialResult], TrialResult], n: int = 3, **fields: object) -> Evidence:
    devices = [replace(device(i), trial=result(trial(FIRST, SHARDS[i % 4]))) for i in range(n)]
    return evidence(*devices, **fields)


def part(name: str, gate: Gate, what: Evidence) -> tuple[Decision, str]:
    found = next(part for part in evaluate(gate, what).parts if part.name == name)
    return found.decision, found.reason


@pytest.mark.parametrize("empty", [None, {}])
def test_nothing_written_is_the_defaults(empty: object) -> None:
    gate = parse_gate(empty)
    assert (gate.min_fraction, gate.failures_max, gate.silence.max) == (1.0, None, 0)
    assert gate.accuracy is not None


def test_a_whole_gate_is_read() -> None:
    gate = parse_gate(
        {
            "min_fraction": 0.9,
            "failures_max": 2,
            "latency_ratio_max": 1.2,
            "success": {"min_rate": 0.9, "false_alarm": 0.01},
            "accuracy": None,
            "silence": {"after_s": 60, "max": 1},
            "proofs": {"success_rate": 0.9},
        }
    )
    assert gate.failures_max == 2
    assert gate.accuracy is None
    assert gate.silence.after_s == 60.0


@pytest.mark.parametrize(
    "mapping",
    [
        {"failure_max": 1},
        {"failures_max": -1},
        {"failures_max": "none"},
        {"failures_max": 0.5},
        {"min_fraction": 0},
        {"min_fraction": 1.01},
        {"min_fraction": float("nan")},
        {"latency_ratio_max": float("inf")},
        {"success": {"min_rate": 1.0}},
        {"success": {"rate": 0.9}},
        {"success": None},
        {"accuracy": {"incumbent_drop_max": "1%"}},
        {"silence": {"after_s": -1}},
        {"proofs": {"accuracy_drop_max": 0}},
        ["failures_max"],
        "failures_max: 1",
        7,
    ],
)
def test_a_gate_that_cannot_be_read_is_refused(mapping: object) -> None:
    with pytest.raises(LimitsError) as caught:
        parse_gate(mapping)
    assert caught.value.code == "gate_malformed"


@given(st.lists(st.sampled_from(list(Decision)), max_size=6))
def test_the_worst_part_decides_and_nothing_is_no_pass(decisions: list[Decision]) -> None:
    parts = tuple(Part(name=f"p{i}", decision=d, reason="so") for i, d in enumerate(decisions))
    verdict = GateVerdict(parts=parts)
    worst_first = [Decision.FAIL, Decision.INCONCLUSIVE, Decision.WAIT, Decision.PASS]
    expected = next((d for d in worst_first if d in decisions), Decision.INCONCLUSIVE)
    assert verdict.decision is expected
    assert verdict.reason


def test_a_good_wave_passes() -> None:
    assert evaluate(Gate(), evidence(device(0), device(1))).decision is Decision.PASS


def test_no_device_is_no_pass() -> None:
    assert evaluate(Gate(), evidence()).decision is Decision.INCONCLUSIVE
    gone = [device(0, Standing.GONE), device(1, Standing.TAKEN_OVER)]
    assert part("reach", Gate(), evidence(*gone))[0] is Decision.INCONCLUSIVE
    assert evaluate(Gate(), evidence(unreached=1)).decision is Decision.WAIT


def test_failures_below_forty_devices_and_above() -> None:
    few = [device(i) for i in range(SMALL_FLEET - 2)]
    failed = device(99, Standing.FAILED)
    assert part("failures", Gate(), evidence(*few, failed))[0] is Decision.FAIL
    assert "d99" in part("failures", Gate(), evidence(*few, failed))[1]
    assert part("failures", Gate(), evidence(*few, device(98), failed))[0] is Decision.PASS
    assert part("failures", Gate(failures_max=1), evidence(*few, failed))[0] is Decision.PASS
    assert part("failures", Gate(failures_max=0), evidence(*few, *few, failed))[0] is Decision.FAIL


def test_success_harm_fires_on_many_failures_only() -> None:
    good = [device(i) for i in range(60)]
    bad = [device(i, Standing.FAILED) for i in range(12)]
    assert part("success", Gate(), evidence(*good, *bad[:2]))[0] is Decision.PASS
    assert part("success", Gate(), evidence(*good, *bad))[0] is Decision.FAIL


def test_soak_waits_for_its_fraction() -> None:
    flying = device(9, Standing.IN_FLIGHT, tried=False)
    three = [device(i) for i in range(3)]
    assert part("soak", Gate(), evidence(*three, flying))[0] is Decision.WAIT
    assert part("soak", Gate(min_fraction=0.75), evidence(*three, flying))[0] is Decision.PASS
    assert part("soak", Gate(), evidence(flying))[0] is Decision.WAIT
    silent = device(1, Standing.SILENT, tried=False)
    assert part("soak", Gate(min_fraction=0.01), evidence(silent))[0] is Decision.INCONCLUSIVE


def test_silence_asks_a_person_and_names_the_devices() -> None:
    silent = replace(device(7, Standing.SILENT), detail="is fetching")
    decision, reason = part("silence", Gate(), evidence(device(0), silent))
    assert decision is Decision.INCONCLUSIVE
    assert "d7 is fetching" in reason
    tolerant = parse_gate({"silence": {"max": 1}})
    assert evaluate(tolerant, evidence(device(0), silent)).decision is Decision.PASS


def test_degraded_devices_have_their_own_limit() -> None:
    degraded = replace(device(1), degraded=True)
    assert part("degraded", Gate(), evidence(device(0), degraded))[0] is Decision.FAIL
    assert part("degraded", Gate(), evidence(device(0), degraded, wave=1))[0] is Decision.PASS
    more = [replace(device(i), degraded=True) for i in range(2)]
    assert part("degraded", Gate(), evidence(*more, wave=1))[0] is Decision.FAIL
    assert part("degraded", Gate(degraded_max=2), evidence(*more))[0] is Decision.PASS


def counted(counts: PairedCounts | None, field: str) -> Callable[[TrialResult], TrialResult]:
    return lambda result: replace(result, **{field: counts})


WORSE = PairedCounts(both=150, candidate_only=1, reference_only=20, neither=29)


@pytest.mark.parametrize("field", ["against_baseline", "against_incumbent"])
def test_accuracy_harm_fires_pooled(field: str) -> None:
    assert part("accuracy", Gate(), tried(counted(WORSE, field)))[0] is Decision.FAIL
    assert part("accuracy", Gate(accuracy=None), tried(counted(WORSE, field)))[0] is Decision.PASS


def test_accuracy_without_figures_is_no_pass() -> None:
    unlabelled = tried(counted(None, "against_baseline"))
    assert part("accuracy", Gate(), unlabelled)[0] is Decision.INCONCLUSIVE
    flying = device(9, Standing.IN_FLIGHT, tried=False)
    still = replace(unlabelled, devices=(*unlabelled.devices, flying))
    assert part("accuracy", Gate(), still)[0] is Decision.WAIT
    had_one = tried(counted(None, "against_incumbent"))
    assert "the incumbent" in part("accuracy", Gate(), had_one)[1]
    first_install = tried(lambda r: replace(r, incumbent=None, against_incumbent=None))
    assert part("accuracy", Gate(), first_install)[0] is Decision.PASS


def test_the_baseline_margin_follows_the_sla() -> None:
    loses = PairedCounts(both=3000, candidate_only=10, reference_only=150, neither=100)
    lenient = Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.9))
    worse = tried(counted(loses, "against_baseline"))
    assert part("accuracy", Gate(), worse)[0] is Decision.FAIL
    assert part("accuracy", Gate(), replace(worse, limits=lenient))[0] is Decision.PASS
    strict = Gate(accuracy=AccuracyTest(baseline_drop_max=0.0))
    assert part("accuracy", strict, replace(worse, limits=lenient))[0] is Decision.FAIL


def test_pooling_counts_each_sample_once_per_variant_runtime_and_cpu() -> None:
    same = [replace(device(i), trial=trial(FIRST, (0,))) for i in range(5)]
    (pooled,) = pool(evidence(*same))
    assert pooled.devices == 5
    assert pooled.baseline is not None
    assert pooled.baseline.n == 200
    other = replace(device(7), trial=trial(FIRST, (0,), cpu="a72"))
    assert [p.baseline.n for p in pool(evidence(*same, other)) if p.baseline] == [200, 200]
    spread = [replace(device(i), trial=trial(FIRST, SHARDS[i])) for i in range(4)]
    (pooled,) = pool(evidence(*spread))
    assert pooled.baseline is not None
    assert pooled.baseline.n == 700
    assert pool(evidence(device(0, Standing.TAKEN_OVER), device(1, Standing.GONE))) == ()


def slow(ms: float) -> Callable[[TrialResult], TrialResult]:
    return lambda r: replace(r, latency=Latency(ms_p50=ms, ms_p95=ms, ms_p99=ms, n=50))


def test_hard_limits_hold_over_the_wave() -> None:
    assert part("sla", Gate(), tried(slow(29.0)))[0] is Decision.PASS
    decision, reason = part("sla", Gate(), tried(slow(31.0)))
    assert (decision, "latency p95 (ms) 31 is above 30" in reason) == (Decision.FAIL, True)
    unmeasured = tried(lambda r: replace(r, latency=None) if r.shards == (1,) else r)
    assert part("sla", Gate(), unmeasured)[0] is Decision.INCONCLUSIVE
    accepted = Limits(latency_ms_p95_max=Maximum(max=30.0, if_unmeasured="accept"))
    assert part("sla", Gate(), replace(unmeasured, limits=accepted))[0] is Decision.PASS
    assert part("sla", Gate(), evidence(device(0, tried=False)))[0] is Decision.INCONCLUSIVE
    assert part("sla", Gate(), evidence(device(0, tried=False), limits=Limits()))[0] is Decision.PASS


def test_a_trial_on_a_throttled_machine_proves_nothing_about_speed() -> None:
    def held_back(result: TrialResult) -> TrialResult:
        return replace(slow(31.0)(ratio(9.0)(result)), throttled=True)

    decision, reason = part("sla", Gate(), tried(held_back))
    assert (decision, "above" in reason) == (Decision.INCONCLUSIVE, False)
    assert part("latency", Gate(latency_ratio_max=1.1), tried(held_back))[0] is Decision.INCONCLUSIVE


def test_an_estimate_of_energy_does_not_outweigh_what_was_measured() -> None:
    def spent(result: TrialResult) -> TrialResult:
        guess = Measure(value=99.0, source=Source.ESTIMATED)
        return replace(result, energy_mj=guess if result.shards == (0,) else Measure(value=3.0))

    limits = Limits(energy_mj_max=Maximum(max=5.0, if_unmeasured="accept"))
    decision, reason = part("sla", Gate(), replace(tried(spent), limits=limits))
    assert (decision, "above" in reason) == (Decision.PASS, False)
    assert pool(replace(tried(spent), limits=limits))[0].measures.energy_mj == Measure(value=3.0)


def test_a_failed_device_does_not_make_the_wave_slow() -> None:
    failed = replace(device(9, Standing.FAILED), trial=slow(99.0)(trial(FIRST, (1,))))
    assert part("sla", Gate(), evidence(device(0), failed))[0] is Decision.PASS


def test_what_ran_before_needs_no_trial_but_all_of_it_must_have() -> None:
    held = [replace(device(i, tried=False), held=True) for i in range(2)]
    assert evaluate(Gate(latency_ratio_max=1.1), evidence(*held)).decision is Decision.PASS
    new = device(3, tried=False)
    assert evaluate(Gate(), evidence(*held, new)).decision is Decision.INCONCLUSIVE
    flying = device(3, Standing.IN_FLIGHT, tried=False)
    assert evaluate(Gate(min_fraction=0.1), evidence(*held, flying)).decision is Decision.WAIT
    failed = replace(device(4, Standing.FAILED, tried=False), held=True)
    assert part("sla", Gate(), evidence(failed))[0] is Decision.INCONCLUSIVE


def test_size_limit_uses_the_variant_that_runs() -> None:
    limits = Limits(size_bytes_max=500.0)
    sizes = evidence(device(0), limits=limits, size_bytes={FIRST: 501})
    assert part("sla", Gate(), sizes)[0] is Decision.FAIL
    assert part("sla", Gate(), replace(sizes, size_bytes={}))[0] is Decision.INCONCLUSIVE


def nonconforming(accuracy: float, counts: PairedCounts) -> Callable[[TrialResult], TrialResult]:
    measure = Measure(value=accuracy, n=counts.n)
    ratio = Measure(value=0.5, low=0.4, high=0.6, n=counts.n)
    return lambda r: replace(r, accuracy=measure, accuracy_ratio=ratio, against_baseline=counts)


def test_pooled_accuracy_is_of_devices_that_do_not_conform_if_any() -> None:
    counts = PairedCounts(both=190, candidate_only=2, reference_only=2, neither=6)
    what = tried(nonconforming(0.96, counts))
    (pooled,) = pool(what)
    assert pooled.measures.accuracy_ratio is not None
    assert pooled.measures.accuracy_ratio.value == 1.0
    assert pooled.measures.accuracy_ratio.n == 600
    assert pooled.measures.accuracy is not None
    assert pooled.measures.accuracy.source is Source.MEASURED
    assert pool(tried(lambda r: r))[0].measures.accuracy == Measure(
        value=0.97, n=2000, source=Source.INHERITED
    )
    assert part("sla", Gate(), what)[0] is Decision.PASS


def test_agreement_across_its_limit_is_inconclusive_and_beyond_it_fails() -> None:
    limits = Limits(agreement=AgreementLimit(min=0.97))
    near = tried(lambda r: replace(r, agreement=Measure(value=0.96, n=100)), limits=limits)
    assert part("sla", Gate(), near)[0] is Decision.INCONCLUSIVE
    far = tried(lambda r: replace(r, agreement=Measure(value=0.8, n=100)), limits=limits)
    assert part("sla", Gate(), far)[0] is Decision.FAIL


def ratio(value: float) -> Callable[[TrialResult], TrialResult]:
    return lambda r: replace(r, latency_ratio_to_incumbent=Measure(value=value))


def test_latency_against_the_incumbent_is_asked_only_if_written() -> None:
    gate = Gate(latency_ratio_max=1.1)
    assert part("latency", Gate(), tried(ratio(9.0)))[0] is Decision.PASS
    assert part("latency", gate, tried(ratio(1.05)))[0] is Decision.PASS
    assert part("latency", gate, tried(ratio(1.2)))[0] is Decision.FAIL
    mixed = tried(lambda r: ratio(1.0 if r.shards == (0,) else 1.2)(r))
    assert part("latency", gate, mixed)[0] is Decision.INCONCLUSIVE
    none = tried(lambda r: replace(r, latency_ratio_to_incumbent=None))
    assert part("latency", gate, none)[0] is Decision.INCONCLUSIVE


def test_proofs_are_due_where_the_wave_can_reach_them_and_at_the_end() -> None:
    gate = Gate(proofs=Proofs(success_rate=0.9))
    few = [device(i) for i in range(5)]
    assert part("proofs", gate, evidence(*few, proof_devices=5))[0] is Decision.PASS
    assert part("proofs", gate, evidence(*few, proof_devices=43))[0] is Decision.INCONCLUSIVE
    assert part("proofs", gate, evidence(*few, proof_devices=5, wave=2))[0] is Decision.INCONCLUSIVE
    many = [device(i) for i in range(43)]
    assert part("proofs", gate, evidence(*many, proof_devices=43))[0] is Decision.PASS


def test_accuracy_proof() -> None:
    gate = Gate(proofs=Proofs(accuracy_drop_max=0.05))
    equal = PairedCounts(both=200, candidate_only=0, reference_only=0, neither=0)
    shown = tried(counted(equal, "against_incumbent"), proof_samples=600)
    assert part("proofs", gate, shown)[0] is Decision.PASS
    differing = PairedCounts(both=150, candidate_only=24, reference_only=26, neither=0)
    not_shown = tried(counted(differing, "against_incumbent"), proof_samples=600)
    assert part("proofs", gate, not_shown)[0] is Decision.INCONCLUSIVE
    assert part("proofs", gate, replace(not_shown, proof_samples=50))[0] is Decision.PASS
    assert part("proofs", gate, evidence(wave=2))[0] is Decision.INCONCLUSIVE


def test_unreachable_proofs_are_refused_with_what_they_take() -> None:
    check_proofs(Gate(), 0, 0)
    success, accuracy = Proofs(success_rate=0.9), Proofs(accuracy_drop_max=0.01)
    check_proofs(Gate(proofs=success), 43, 0)
    check_proofs(Gate(proofs=accuracy), 0, proof_samples_min(0.01, 0.95))
    with pytest.raises(LimitsError, match=r"takes 43 devices.*has 42"):
        check_proofs(Gate(proofs=success), 42, 0)
    with pytest.raises(LimitsError, match="distinct samples"):
        check_proofs(Gate(proofs=accuracy), 0, proof_samples_min(0.01, 0.95) - 1)


def test_least_numbers_are_least() -> None:
    for rate, least in ((0.8, 20), (0.9, 43), (0.95, 88), (0.99, 449)):
        assert proof_devices_min(rate, 0.95) == least
        assert proof_e_value(0, least, 1 - rate) >= 20.0 > proof_e_value(0, least - 1, 1 - rate)
    least = proof_samples_min(0.02, 0.95)
    assert (
        no_harm_e_value(PairedCounts(both=least, candidate_only=0, reference_only=0, neither=0), 0.02) >= 20
    )
    assert least < proof_samples_min(0.01, 0.95) < 500


@settings(max_examples=60)
@given(n=st.integers(0, 60), rate=st.floats(0.01, 0.99))
def test_e_values_expect_no_gain_where_the_hypothesis_holds(n: int, rate: float) -> None:
    """Exactly: over all outcomes of n devices that fail at the bound's rate, the mean account is 1."""
    for e_value in (success_harm_e_value, proof_e_value):
        mean = sum(_chance(n, k, rate) * e_value(k, n, rate) for k in range(n + 1))
        assert mean == pytest.approx(1.0, rel=1e-6)


def _chance(n: int, k: int, rate: float) -> float:
    return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)


def test_success_test_is_seldom_wrong_however_often_it_looks() -> None:
    """A fleet exactly at the bound, looked at after each of 300 devices: at most 5% alarms, with margin."""
    draw, runs = random.Random(20240607), 400
    alarms = sum(_alarms(draw, 0.05, 300) for _ in range(runs))
    assert alarms / runs <= 0.05


def test_success_test_finds_a_bad_release() -> None:
    draw = random.Random(7)
    assert sum(_alarms(draw, 0.2, 100) for _ in range(50)) >= 45


def _alarms(draw: random.Random, rate: float, n: int) -> bool:
    failures = 0
    for count in range(1, n + 1):
        failures += draw.random() < rate
        if success_harm_e_value(failures, count, 0.05) >= 20.0:
            return True
    return False


@pytest.mark.parametrize("drop", [0.0, 0.02])
def test_accuracy_test_is_seldom_wrong_however_often_it_looks(drop: float) -> None:
    """A release exactly at the margin, looked at after each of 20 shards of 100 samples."""
    draw, runs = random.Random(99), 300
    alarms = sum(_harm_alarm(draw, drop, drop) for _ in range(runs))
    assert alarms / runs <= 0.05


def test_accuracy_test_finds_a_two_point_drop() -> None:
    """Ten canaries with different shards of 200 samples find it (FACTS.md section 4)."""
    draw = random.Random(5)
    assert sum(_harm_alarm(draw, 0.0, 0.02) for _ in range(100)) >= 80


def _harm_alarm(draw: random.Random, margin: float, drop: float) -> bool:
    """Whether the harm test ever fires; 2% of samples are won, 2% and the drop lost."""
    won = lost = n = 0
    for _ in range(20):
        for _ in range(100):
            chance = draw.random()
            won += chance < 0.02
            lost += 0.02 <= chance < 0.04 + drop
            n += 1
        counts = PairedCounts(both=n - won - lost, candidate_only=won, reference_only=lost, neither=0)
        if harm_e_value(counts, margin) >= 20.0:
            return True
    return False


@pytest.mark.parametrize("counts", [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_e_values_of_nonsense_are_refused(counts: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="not defined"):
        success_harm_e_value(*counts)
    with pytest.raises(ValueError, match="not defined"):
        proof_e_value(*counts)
