"""The same variant on two machines: equal, within a step, or where it diverges."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.worker.conformity import conformance, step_of
from agent.worker.measuring import run_trial
from tests.agent.models import (
    VARIANT,
    Array,
    good_job,
    model_of,
    samples,
    save_shard,
    scores,
    shard_arrays,
)
from tests.agent.tflite import features, job_of, quantized_product
from wire.bundle import host_key
from wire.measures import Conformance, Divergence

SCALES = st.floats(1e-4, 1e3).map(np.float32)
STORED = st.lists(st.integers(-128, 127), min_size=24, max_size=96).map(
    # Neighbours among them: any real set of outputs has some.
    lambda found: np.array([*range(-4, 8), *found], np.int16)
)


def real(stored: Array, scale: np.float32, zero_point: int) -> Array:
    """As DequantizeLinear computes it, in float32."""
    values: Array = (stored.astype(np.float32) - np.float32(zero_point)) * scale
    return values


def compared(own: Array, host: Array, same: bool = True) -> Conformance:
    return conformance({"y": own}, {"y": host}, np.full(len(own), same))


@given(stored=STORED, scale=SCALES, zero_point=st.integers(-128, 127))
def test_a_quantized_output_shows_its_step(stored: Array, scale: np.float32, zero_point: int) -> None:
    assert step_of(real(stored, scale, zero_point)) == pytest.approx(float(scale), rel=1e-3)


@given(st.integers(0, 2**31))
def test_an_output_of_floats_has_no_step(seed: int) -> None:
    assert step_of(np.random.default_rng(seed).standard_normal((6, 5)).astype(np.float32)) is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_integers_have_a_step_of_one(dtype: type) -> None:
    assert step_of(np.zeros((2, 2), dtype)) == 1.0


def test_an_output_of_more_levels_than_eight_bits_give_is_not_told_to_be_quantized() -> None:
    assert step_of(np.arange(513, dtype=np.float32)) == 1.0
    assert step_of(np.arange(514, dtype=np.float32)) is None


def test_few_values_and_none_have_no_step() -> None:
    assert step_of(np.arange(7, dtype=np.float32)) is None
    assert step_of(np.arange(8, dtype=np.float32)) == 1.0
    assert step_of(np.full(20, np.nan, np.float32)) is None
    assert step_of(np.zeros((0,), np.float32)) is None


@given(
    stored=STORED,
    scale=SCALES,
    steps=st.integers(-3, 3).filter(bool),
    where=st.integers(0, 10**6),
)
def test_one_step_is_within_and_more_is_told_with_its_place(
    stored: Array, scale: np.float32, steps: int, where: int
) -> None:
    rows = stored[: len(stored) // 4 * 4].reshape(-1, 2, 2)
    host = real(rows, scale, 3)
    moved = rows.copy()
    moved.reshape(-1)[where % moved.size] += steps
    own, n = real(moved, scale, 3), len(rows)
    found = compared(own, host)
    assert found.equal == pytest.approx((n - 1) / n)
    assert found.worst == pytest.approx(abs(steps) * float(scale), rel=1e-2)
    if abs(steps) == 1:
        assert (found.within_step, found.divergence, found.grade) == (1.0, None, "within_step")
        return
    place = np.unravel_index(where % moved.size, moved.shape)
    assert found.grade == "diverges"
    assert found.within_step == pytest.approx((n - 1) / n)
    told = found.divergence
    assert told is not None
    assert (told.output, told.sample, told.element) == ("y", int(place[0]), tuple(int(i) for i in place[1:]))
    assert (told.device, told.host) == (float(own[place]), float(host[place]))
    assert told.steps == pytest.approx(abs(steps), rel=1e-2)


def test_equal_outputs_need_no_step() -> None:
    host = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    found = compared(host.copy(), host)
    assert (found.grade, found.equal, found.within_step, found.divergence) == ("equal", 1.0, 1.0, None)


def test_floats_that_differ_have_no_step_to_be_within() -> None:
    host = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    own = host.copy()
    own[2, 1] += 1e-3
    found = compared(own, host)
    assert (found.grade, found.equal, found.within_step) == ("diverges", 0.75, None)
    assert found.divergence is not None
    assert (found.divergence.sample, found.divergence.element, found.divergence.steps) == (2, (1,), None)


def test_the_first_output_that_diverges_is_named_and_the_worst_of_all_is_the_worst() -> None:
    host = {name: np.arange(20, dtype=np.int8).reshape(5, 4) for name in ("a", "b", "c")}
    own = {name: values.copy() for name, values in host.items()}
    own["a"][0, 0] += 1
    own["b"][3, 2] += 2
    own["c"][4, 3] += 9
    found = conformance(own, host, np.ones(5, np.bool_))
    assert found.divergence == Divergence(
        output="b", sample=3, element=(2,), device=16.0, host=14.0, difference=2.0, steps=2.0
    )
    assert (found.worst, found.equal, found.within_step) == (9.0, 0.4, 0.6)


def test_a_number_that_is_none_is_the_worst_and_crosses_as_json() -> None:
    host = np.arange(8, dtype=np.float32)
    own = host.copy()
    own[3] = np.nan
    found = compared(own, host, same=False)
    assert found.divergence is not None
    assert (found.divergence.sample, found.divergence.element) == (3, ())
    assert (found.divergence.device, found.divergence.host) == (None, 3.0)
    assert math.isfinite(found.worst)
    again = msgspec.json.decode(msgspec.json.encode(found), type=Conformance)
    assert again == found


def test_what_is_no_number_on_both_is_equal() -> None:
    host = np.array([[np.nan, 1.0]], np.float32)
    assert compared(host.copy(), host).grade == "equal"


def test_a_real_quantized_model_whose_host_was_a_step_away(tmp_path: Path) -> None:
    twins, x = quantized_product(tmp_path, "float32"), features()
    job = job_of(tmp_path, twins, x, "onnxruntime")
    result = run_trial(job)
    assert result.conformance is not None
    assert result.conformance.grade == "equal"
    with np.load(job.shards[0]) as archive:
        arrays = dict(archive)
    key = host_key(job.candidate.variant, "y")
    arrays[key] = arrays[key].copy()
    arrays[key][5, 1] += np.float32(0.1)  # the output's scale
    save_shard(Path(job.shards[0]), arrays)
    found = run_trial(job).conformance
    assert found is not None
    assert (found.grade, found.within_step, found.equal) == ("within_step", 1.0, 39 / 40)
    arrays[key][5, 1] += np.float32(0.3)
    save_shard(Path(job.shards[0]), arrays)
    found = run_trial(job).conformance
    assert found is not None
    assert found.divergence is not None
    assert (found.grade, found.divergence.sample, found.divergence.element) == ("diverges", 5, (1,))
    assert found.divergence.steps == pytest.approx(4.0, rel=1e-3)


def test_a_float_model_on_another_machine(tmp_path: Path) -> None:
    job, x = good_job(tmp_path), samples()
    reference = scores(model_of(job), x)
    arrays = shard_arrays(x, reference)
    arrays[host_key(VARIANT, "y")] = reference * np.float32(1.0 + 1e-6)
    shard = save_shard(tmp_path / "other.npz", arrays)
    found = run_trial(replace(job, shards=(str(shard),))).conformance
    assert found is not None
    assert (found.grade, found.conforms, found.within_step) == ("diverges", True, None)
