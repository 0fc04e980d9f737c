"""The quantization arithmetic, held against ONNX's own reference evaluator."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converter.quantize.qparams import (
    BIAS_STEPS_MAX,
    DTYPES,
    QParams,
    bias_scale_needed,
    dequantize,
    of_range,
    of_weight,
    quantize,
    quantize_bias,
    weight_params,
)

Floats = NDArray[np.float32]
_TINY = float(np.finfo(np.float32).tiny)

bounds = st.one_of(
    st.sampled_from([0.0, 1e-42, -1e-42, 1e-38, 1e30, -1e30, 3.4e38, -3.4e38, 6.0, -1.0]),
    st.floats(-1e6, 1e6, width=32),
    st.floats(-(2.0**-10), 2.0**-10, width=32),
)
spans = st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair)))
dtypes = st.sampled_from(sorted(DTYPES))


@cache
def _pair(elem_type: int, axis: int | None) -> ReferenceEvaluator:
    extra = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **extra),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["back"], **extra),
    ]
    types = {"x": 1, "scale": 1, "zero": elem_type, "q": elem_type, "back": 1}
    values = {name: helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()}
    graph = helper.make_graph(
        nodes, "pair", [values["x"], values["scale"], values["zero"]], [values["q"], values["back"]]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ReferenceEvaluator(made)


def _reference(values: Floats, params: QParams) -> tuple[NDArray[Any], Floats]:
    """Stored and recovered, as ONNX itself has it."""
    elem_type = helper.np_dtype_to_tensor_dtype(DTYPES[params.dtype])
    feeds = {"x": values, "scale": params.scale, "zero": params.zero_point}
    stored, back = _pair(elem_type, params.axis).run(None, feeds)
    return np.asarray(stored), np.asarray(back)


@settings(max_examples=300, deadline=None)
@given(span=spans, dtype=dtypes, symmetric=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_a_round_trip_within_the_range_is_off_by_half_a_step_and_zero_is_exact(
    span: tuple[float, float], dtype: str, symmetric: bool, seed: int
) -> None:
    params = of_range(*span, dtype, symmetric=symmetric)
    scale = float(params.scale)
    assert _TINY <= scale < np.inf
    inside = np.random.default_rng(seed).uniform(0.0, 1.0, 50)
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    values = np.array([low, high, 0.0, *(low * (1 - inside) + high * inside)], dtype=np.float32)
    values = np.clip(values, np.float32(low), np.float32(high))
    back = dequantize(quantize(values, params), params)
    # float32 itself rounds x / scale and q * scale: 2^-23 of the value, far below the step but for u16.
    slack = np.abs(values.astype(np.float64)) * 2.0**-22 + 1e-45
    assert (np.abs(back.astype(np.float64) - values) <= scale / 2 * (1 + 1e-6) + slack).all()
    assert back[2] == 0.0


@settings(max_examples=150, deadline=None)
@given(span=spans, dtype=dtypes, symmetric=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_numbers_are_stored_and_recovered_as_onnx_does(
    span: tuple[float, float], dtype: str, symmetric: bool, seed: int
) -> None:
    """Beyond the range too, and exactly between two steps."""
    params = of_range(*span, dtype, symmetric=symmetric)
    scale = float(params.scale)
    rng = np.random.default_rng(seed)
    steps = np.concatenate([rng.uniform(-400, 400, 20), rng.integers(-300, 300, 20) + 0.5])
    with np.errstate(over="ignore"):
        values = np.clip(steps * scale, -1e38, 1e38).astype(np.float32)
    stored, back = _reference(values, params)
    assert np.array_equal(quantize(values, params), stored)
    assert np.array_equal(dequantize(stored, params), back)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_symmetric_zero_stands_in_the_middle(dtype: str) -> None:
    middle = {"u8": 128, "i8": 0, "u16": 32768, "i16": 0}[dtype]
    assert int(of_range(-1.0, 3.0, dtype, symmetric=True).zero_point) == middle


def test_a_range_above_zero_is_widened_to_hold_it() -> None:
    params = of_range(2.0, 5.1, "u8")
    assert int(params.zero_point) == 0
    assert params.interval == pytest.approx((0.0, 5.1))
    assert of_range(-5.1, -2.0, "i8").interval == pytest.approx((-5.1, 0.0))


@given(span=spans, dtype=dtypes)
def test_the_steps_reach_from_end_to_end_of_the_range(span: tuple[float, float], dtype: str) -> None:
    """A scale rounded down to float32 would cut the end of the range."""
    steps = 255 if dtype in {"u8", "i8"} else 65535
    width = max(span[1], 0.0) - min(span[0], 0.0)
    assert float(of_range(*span, dtype).scale) * steps >= min(width, 6.8e38)


@pytest.mark.parametrize("span", [(0.0, float("inf")), (float("nan"), 1.0), (1.0, -1.0)])
def test_what_is_no_range_is_refused(span: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no range"):
        of_range(*span, "u8")


@settings(max_examples=100, deadline=None)
@given(
    axis=st.sampled_from([None, 0, 1, 2]),
    dtype=st.sampled_from(["i8", "u8"]),
    reduced=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_keep_to_their_steps_per_channel_along_the_right_axis(
    axis: int | None, dtype: str, reduced: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (3, 4, 5)).astype(np.float32)
    if axis is not None:
        shape = [-1 if i == axis else 1 for i in range(3)]
        values *= np.exp(rng.uniform(-8, 8, values.shape[axis])).reshape(shape).astype(np.float32)
    params = of_weight(values, dtype, axis, reduced=reduced)
    stored, back = _reference(values, params)
    assert np.array_equal(quantize(values, params), stored)
    steps = stored.astype(int) - (128 if dtype == "u8" else 0)
    assert np.abs(steps).max() == (64 if reduced else 127)
    scale = params.scale if axis is None else params.scale.reshape(shape)
    assert (np.abs(back - values) <= scale / 2 * (1 + 1e-5)).all()
    if axis is not None:
        others = tuple(i for i in range(3) if i != axis)
        assert (np.abs(steps).max(axis=others) == (64 if reduced else 127)).all()


def test_a_channel_of_zeros_has_a_small_scale_and_a_weight_of_zeros_a_usable_one() -> None:
    values = np.zeros((3, 2), dtype=np.float32)
    values[0] = 1.0
    scale = of_weight(values, "i8", 0).scale
    assert scale[1] == scale[2] == pytest.approx(scale[0] * 2.0**-24)
    assert float(of_weight(np.zeros((3, 2), dtype=np.float32), "i8", None).scale) == 2.0**-10
    with pytest.raises(ValueError, match="NaN"):
        of_weight(np.array([[np.nan]], dtype=np.float32), "i8", None)


@settings(max_examples=100, deadline=None)
@given(
    bias=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=6),
    scale_in=st.floats(2.0**-20, 2.0**4, width=32),
)
def test_a_bias_fits_with_the_scale_that_it_needs(bias: list[float], scale_in: float) -> None:
    values = np.array(bias, dtype=np.float32)
    scale = np.maximum(bias_scale_needed(values, scale_in), 1e-9) * scale_in
    stored = quantize_bias(values, scale.astype(np.float32))
    assert np.abs(stored.astype(np.int64)).max() <= BIAS_STEPS_MAX * (1 + 1e-6)
    assert (np.abs(stored * scale - values) <= scale / 2 + np.abs(values) * 1e-6).all()


def test_equal_means_equal_numbers() -> None:
    one = weight_params(np.array([1.0, 2.0], dtype=np.float32), "i8", 0)
    assert one.same_as(weight_params(np.array([1.0, 2.0], dtype=np.float32), "i8", 0))
    assert not one.same_as(weight_params(np.array([1.0, 2.5], dtype=np.float32), "i8", 0))
    assert not one.same_as(weight_params(np.array([1.0, 2.0], dtype=np.float32), "i8", 1))
    assert not one.same_as(weight_params(np.array([1.0, 2.0], dtype=np.float32), "u8", 0))
    assert numpy_helper.from_array(one.zero_point).data_type == onnx.TensorProto.INT8
