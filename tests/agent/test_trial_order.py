"""Which variant is tried when: the registry's choice, the next on failure, FP32 last; and trials in heat."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import FinalError
from agent.trials import FP32, preferred
from agent.worker.job import TrialJob
from tests.agent.rig import DEVICE, Rig, running
from tests.agent.twins import MemoryTrials, Release, release
from wire.bundle import Manifest, Variant
from wire.measures import TrialResult
from wire.messages import OrderOutcome, Phase, Reason
from wire.sla import Limits

CHOICE, FULL, SECOND, THIRD = (
    "onnxruntime/static_wi8_au8_pc",
    "onnxruntime/float_wf32_af32",
    "onnxruntime/dynamic_wi8_af32",
    "onnxruntime/float_wf16_af16",
)
PRECISIONS = {CHOICE: "int8", FULL: "fp32", SECOND: "int8", THIRD: "fp16"}


def with_variants(*names: str, limits: Limits | None = None) -> Release:
    made = release("3", variants=names)
    variants = tuple(replace(v, precision=PRECISIONS[v.id]) for v in made.manifest.variants)
    sla = made.manifest.sla if limits is None else limits
    return Release(replace(made.manifest, variants=variants, sla=sla), made.blobs)


BASE = with_variants(CHOICE).manifest
VARIANTS = st.lists(
    st.sampled_from(sorted({"fp32", "float32", "int8", "fp16", "int4"})), min_size=1, max_size=8
)


def manifest_of(precisions: list[str]) -> Manifest:
    base: Variant = BASE.variants[0]
    named = [replace(base, id=f"onnxruntime/v{i}", precision=p) for i, p in enumerate(precisions)]
    return replace(BASE, variants=tuple(named))


@given(VARIANTS)
def test_the_choice_is_first_and_of_the_others_full_precision_is_last(precisions: list[str]) -> None:
    manifest = manifest_of(precisions)
    order = preferred(manifest)
    assert sorted(order) == sorted(v.id for v in manifest.variants)
    assert order[0] == manifest.variants[0].id
    full = [precisions[int(name.removeprefix("onnxruntime/v"))] in FP32 for name in order[1:]]
    assert full == sorted(full)
    for kind in (True, False):  # and else as they were
        names = [name for name, one in zip(order[1:], full, strict=True) if one is kind]
        assert names == sorted(names)


def tried(rig: Rig) -> list[str]:
    return [job.candidate.variant for job in rig.trials.jobs]


LOAD = FinalError("model_load_failed", "no such kernel")


@pytest.mark.parametrize(
    ("fail", "order"),
    [
        ((), [CHOICE]),
        ((CHOICE,), [CHOICE, SECOND]),
        ((CHOICE, SECOND), [CHOICE, SECOND, THIRD]),
        ((CHOICE, SECOND, THIRD), [CHOICE, SECOND, THIRD, FULL]),
    ],
)
def test_where_the_order_leaves_it_open_fp32_is_the_last(
    tmp_path: Path, fail: tuple[str, ...], order: list[str]
) -> None:
    """The manifest lists it second."""
    made = with_variants(CHOICE, FULL, SECOND, THIRD)
    with running(tmp_path) as rig:
        rig.trials.errors = dict.fromkeys(fail, LOAD)
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(1)})
        state = rig.wait(1, OrderOutcome.ACTIVE)
        assert tried(rig) == order
        assert state.active is not None
        assert state.active.variant == order[-1]
        assert state.degraded is (len(order) > 1)


def test_a_release_whose_choice_is_fp32_begins_with_it(tmp_path: Path) -> None:
    made = with_variants(FULL, SECOND)
    with running(tmp_path) as rig:
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(1)})
        assert not rig.wait(1, OrderOutcome.ACTIVE).degraded
        assert tried(rig) == [FULL]


def test_the_registrys_own_order_is_followed_as_it_stands(tmp_path: Path) -> None:
    made = with_variants(CHOICE, FULL, SECOND, THIRD)
    wanted = (FULL, THIRD, CHOICE)
    with running(tmp_path) as rig:
        rig.trials.errors = {FULL: LOAD, THIRD: LOAD, CHOICE: LOAD}
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(1, variants=wanted)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert tried(rig) == list(wanted)
        assert state.active is None
        assert state.reason is not None
        assert state.reason.code == "model_load_failed"


class HotTrials(MemoryTrials):
    """A machine that is held back in its first trials."""

    def __init__(self, hot: int) -> None:
        super().__init__()
        self.hot = hot

    def run(self, job: TrialJob, cancel: threading.Event) -> TrialResult:
        result = super().run(job, cancel)
        return replace(result, throttled=len(self.jobs) <= self.hot, runs_void=2)


def hot(rig: Rig, times: int) -> None:
    rig.trials = HotTrials(times)


def test_in_the_heat_a_limit_on_latency_waits_for_a_cooler_hour(tmp_path: Path) -> None:
    made = with_variants(CHOICE, FULL, limits=Limits(latency_ms_p95_max=10.0))
    with running(tmp_path, prepare=lambda rig: hot(rig, 1)) as rig:
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(1)})
        state = rig.wait(1, OrderOutcome.ACTIVE)
        assert tried(rig) == [CHOICE, CHOICE]
        assert not state.degraded
        assert state.trial is not None
        assert state.trial.result.throttled is False


def test_heat_that_lasts_ends_with_its_name_and_the_old_release(tmp_path: Path) -> None:
    made = with_variants(CHOICE, FULL, limits=Limits(latency_ms_p95_max=10.0))
    with running(tmp_path, prepare=lambda rig: hot(rig, 99)) as rig:
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(1, deadline_s=2.0)})
        state = rig.wait(1, OrderOutcome.FAILED)
        assert isinstance(state.reason, Reason)
        assert state.reason.code == "throttled"
        assert state.phase is Phase.IDLE
        assert rig.running is None
        assert set(tried(rig)) == {CHOICE}


def test_an_evaluation_in_the_heat_is_reported_as_it_was(tmp_path: Path) -> None:
    made = with_variants(CHOICE, limits=Limits(latency_ms_p95_max=10.0))
    with running(tmp_path, prepare=lambda rig: hot(rig, 99)) as rig:
        rig.broker.hold(made)
        rig.broker.desire(DEVICE, {"digits": made.order(5, mode="evaluate")})
        state = rig.wait(5, OrderOutcome.EVALUATED)
        assert state.trial is not None
        assert state.trial.result.throttled is True
        assert "throttled while it was measured" in state.trial.verdict.reason
        assert rig.running is None
