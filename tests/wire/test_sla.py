"""`judge()` against its table, and its laws by property."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import LimitsError
from wire.measures import Measure, Source
from wire.sla import (
    AccuracyLimit,
    AgreementLimit,
    Limits,
    Maximum,
    Measures,
    Outcome,
    Scope,
    Status,
    judge,
    parse_limits,
)

HOSTS = (Scope.HOST, Scope.HOST_OF_TARGET_CLASS)
DEVICES = (Scope.DEVICE, Scope.WAVE)


def outcome(limits: Limits, measures: Measures, scope: Scope) -> Outcome:
    (finding,) = judge(limits, measures, scope).findings
    return finding.outcome


def m(value: float, low: float | None = None, high: float | None = None) -> Measure:
    return Measure(value=value, low=low, high=high)


MIN_90 = Limits(accuracy=AccuracyLimit(min=0.9))


@pytest.mark.parametrize("scope", Scope)
def test_reaching_the_accuracy_limit_passes_everywhere(scope: Scope) -> None:
    assert outcome(MIN_90, Measures(accuracy=m(0.9, 0.8, 0.95)), scope) is Outcome.PASS


@pytest.mark.parametrize("scope", HOSTS)
def test_on_the_host_the_point_decides(scope: Scope) -> None:
    assert outcome(MIN_90, Measures(accuracy=m(0.89, 0.8, 0.95)), scope) is Outcome.FAIL


@pytest.mark.parametrize("scope", DEVICES)
def test_on_a_device_only_the_whole_interval_fails(scope: Scope) -> None:
    assert outcome(MIN_90, Measures(accuracy=m(0.89, 0.8, 0.95)), scope) is Outcome.INCONCLUSIVE
    assert outcome(MIN_90, Measures(accuracy=m(0.5, 0.4, 0.6)), scope) is Outcome.FAIL
    assert outcome(MIN_90, Measures(accuracy=m(0.89)), scope) is Outcome.FAIL


def test_a_fraction_of_the_baseline_looks_at_the_ratio_alone() -> None:
    limits = Limits(accuracy=AccuracyLimit(min_fraction_of_baseline=0.99))
    measures = Measures(accuracy=m(0.1), accuracy_ratio=m(0.995))
    assert outcome(limits, measures, Scope.HOST) is Outcome.PASS
    assert outcome(limits, Measures(accuracy=m(1.0)), Scope.HOST) is Outcome.UNMEASURED


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("latency_ms_p95", {Scope.HOST_OF_TARGET_CLASS, *DEVICES}),
        ("size_bytes", set(Scope)),
        ("energy_mj", set(DEVICES)),
        ("memory_bytes", set(DEVICES)),
    ],
)
def test_a_maximum_is_decided_in_its_scopes_and_deferred_elsewhere(name: str, scopes: set[Scope]) -> None:
    limits = parse_limits({f"{name}_max": 10})
    for scope in Scope:
        expected = Outcome.FAIL if scope in scopes else Outcome.DEFERRED
        verdict = judge(limits, Measures(**{name: m(11.0)}), scope)
        assert verdict.findings[0].outcome is expected
        assert verdict.deferred == (() if scope in scopes else (name,))
        within = judge(limits, Measures(**{name: m(10.0)}), scope)
        assert within.status is Status.PASS


def test_unmeasured_on_a_device_is_inconclusive_and_forbids_activation() -> None:
    verdict = judge(Limits(latency_ms_p95_max=30), Measures(), Scope.DEVICE)
    assert verdict.status is Status.INCONCLUSIVE
    assert not verdict.activatable
    assert "unknown" in verdict.reason


def test_unmeasured_may_be_accepted_and_is_recorded() -> None:
    limits = Limits(energy_mj_max=Maximum(max=12, if_unmeasured="accept"))
    verdict = judge(limits, Measures(), Scope.DEVICE)
    assert verdict.findings[0].outcome is Outcome.ACCEPTED
    assert verdict.status is Status.PASS
    assert verdict.activatable


def test_accepting_what_is_unmeasured_does_not_accept_a_miss() -> None:
    limits = Limits(energy_mj_max=Maximum(max=12, if_unmeasured="accept"))
    assert judge(limits, Measures(energy_mj=m(13)), Scope.DEVICE).status is Status.FAIL


def test_an_unproven_accuracy_does_not_forbid_activation() -> None:
    verdict = judge(MIN_90, Measures(accuracy=m(0.89, 0.8, 0.95)), Scope.DEVICE)
    assert verdict.status is Status.INCONCLUSIVE
    assert verdict.activatable


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_unmeasured(value: float) -> None:
    assert outcome(MIN_90, Measures(accuracy=m(value)), Scope.HOST) is Outcome.UNMEASURED


def test_an_estimate_never_gates() -> None:
    estimate = Measure(value=99.0, source=Source.ESTIMATED)
    limits = Limits(energy_mj_max=12)
    assert outcome(limits, Measures(energy_mj=estimate), Scope.DEVICE) is Outcome.UNMEASURED


def test_an_inherited_figure_counts() -> None:
    inherited = Measure(value=0.95, source=Source.INHERITED)
    assert outcome(MIN_90, Measures(accuracy=inherited), Scope.DEVICE) is Outcome.PASS


def test_no_limit_no_finding() -> None:
    verdict = judge(Limits(), Measures(), Scope.DEVICE)
    assert verdict.findings == ()
    assert verdict.status is Status.PASS


def test_the_worst_finding_is_the_status() -> None:
    limits = Limits(agreement=AgreementLimit(min=0.9), size_bytes_max=10)
    both = judge(limits, Measures(agreement=m(0.95), size_bytes=m(11)), Scope.HOST)
    assert both.status is Status.FAIL
    assert "size" in both.reason
    assert "agreement" not in both.reason


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"acuracy": {"min": 0.9}}, "acuracy"),
        ({"accuracy": {}}, "exactly one"),
        ({"accuracy": {"min": 0.9, "min_fraction_of_baseline": 0.9}}, "exactly one"),
        ({"accuracy": {"minimum": 0.9}}, "minimum"),
        ({"accuracy": {"min": -0.1}}, "min"),
        ({"latency_ms_p95_max": "30"}, "latency_ms_p95_max"),
        ({"latency_ms_p95_max": -1}, "latency_ms_p95_max"),
        ({"latency_ms_p95_max": {"max": 0}}, "max"),
        ({"latency_ms_p95_max": {"max": math.inf}}, "finite"),
        ({"energy_mj_max": {"max": 3, "if_unmeasured": "ignore"}}, "if_unmeasured"),
        ({"objective": "beauty"}, "objective"),
        ([1], "Expected"),
    ],
)
def test_an_sla_that_cannot_be_judged_is_refused_and_the_key_named(mapping: object, words: str) -> None:
    with pytest.raises(LimitsError, match=words) as caught:
        parse_limits(mapping)
    assert caught.value.code == "sla_malformed"


def test_an_empty_file_limits_nothing() -> None:
    assert parse_limits(None) == Limits()


MEASURE = st.none() | st.builds(
    lambda v, w: Measure(value=v, low=v - w, high=v + w), st.floats(0, 1), st.floats(0, 0.3)
)


@given(MEASURE, st.floats(0, 1), st.sampled_from(Scope))
def test_a_device_never_fails_what_the_host_passes(raw: Measure | None, bound: float, scope: Scope) -> None:
    limits = Limits(accuracy=AccuracyLimit(min=bound))
    host = outcome(limits, Measures(accuracy=raw), Scope.HOST)
    other = outcome(limits, Measures(accuracy=raw), scope)
    if host is Outcome.PASS:
        assert other is Outcome.PASS
    if other is Outcome.FAIL:
        assert host is Outcome.FAIL


@given(MEASURE, st.floats(0, 1), st.floats(0, 1), st.sampled_from(Scope))
def test_a_looser_limit_is_never_harder(raw: Measure | None, a: float, b: float, scope: Scope) -> None:
    rank = {Outcome.PASS: 0, Outcome.INCONCLUSIVE: 1, Outcome.FAIL: 2, Outcome.UNMEASURED: 3}
    loose, tight = sorted((a, b))
    measures = Measures(accuracy=raw)
    loose_rank = rank[outcome(Limits(accuracy=AccuracyLimit(min=loose)), measures, scope)]
    assert loose_rank <= rank[outcome(Limits(accuracy=AccuracyLimit(min=tight)), measures, scope)]


def test_limits_survive_the_wire() -> None:
    limits = parse_limits(
        {
            "accuracy": {"min": 0.9},
            "energy_mj_max": {"max": 12, "if_unmeasured": "accept"},
            "size_bytes_max": 5,
        }
    )
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits
