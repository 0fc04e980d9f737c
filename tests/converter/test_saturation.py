"""Emulated 16-bit sums against a slow, literal computation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converter.dataset import Samples
from converter.quantize import Material
from converter.quantize.plan import Plan, make_plan
from converter.quantize.qparams import quantize
from converter.quantize.saturation import bound, count_saturated, saturating
from converter.recipe import parse
from tests.converter.builders import conv_net, images, material_of, model

RECIPE = parse("static_wi8_au8_pc_minmax")
Ints = NDArray[np.int32]


def _literal(rows: Ints, matrix: Ints) -> int:
    """One pair of bytes after the other."""
    found = 0
    for row in rows:
        for column in matrix.T:
            for k in range(0, len(column), 2):
                pair = sum(int(row[i]) * int(column[i]) for i in range(k, min(k + 2, len(column))))
                found += not -(2**15) <= pair < 2**15
    return found


@pytest.mark.parametrize("depth", [1, 6, 7])
@pytest.mark.parametrize("seed", range(4))
def test_sums_are_counted_as_one_by_one(depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (9, depth)).astype(np.int32)
    matrix = rng.integers(-127, 128, (depth, 5)).astype(np.int32)
    found, near = count_saturated(rows, matrix, 10**9)
    assert found == _literal(rows, matrix)
    alone = [_literal(rows, matrix[:, [n]]) > 0 for n in range(5)]
    assert (near | ~np.array(alone)).all()


def test_the_edge_of_16_bits_is_not_saturation() -> None:
    rows = np.array([[255, 255]], dtype=np.int32)
    for weights, found in (((64, 64), 0), ((64, 65), 1), ((-64, -64), 0), ((-65, -64), 1), ((127, -127), 0)):
        matrix = np.array([weights], dtype=np.int32).T
        assert count_saturated(rows, matrix, 10**9)[0] == found
        assert bound([matrix]) == found or weights == (127, -127)
    assert (
        count_saturated(np.array([[256, 127]], dtype=np.int32), np.array([[127], [2]], np.int32), 9)[0] == 0
    )
    assert (
        count_saturated(np.array([[256, 128]], dtype=np.int32), np.array([[127], [2]], np.int32), 9)[0] == 1
    )


def _samples(array: NDArray[np.float32]) -> Samples:
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def _plan(material: Material, *, reduced: dict[str, tuple[int, ...]] | None = None) -> Plan:
    return make_plan(material, RECIPE, material.calibration.ranges, reduced=reduced or {})


@pytest.mark.parametrize(
    ("kernel", "extra"),
    [
        (3, {"pads": [1, 1, 1, 1]}),
        (3, {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        (2, {"dilations": [2, 2], "pads": [1, 0, 1, 2]}),
        (2, {"auto_pad": "SAME_UPPER"}),
        (3, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        (1, {"group": 2}),
    ],
)  # fmt: skip
def test_a_convolution_is_unrolled_channels_last(kernel: int, extra: dict[str, object]) -> None:
    """Against loops over positions, with weights and inputs large enough that many sums leave 16 bits."""
    rng = np.random.default_rng(3)
    groups = int(str(extra.get("group", 1)))
    gains = np.array([-1.0, 0.4, 0.5, -0.8], dtype=np.float32).reshape(4, 1, 1, 1)
    lift = numpy_helper.from_array(gains, "lift")
    raw = np.sign(rng.normal(0, 1, (6, 4 // groups, kernel, kernel))) * rng.uniform(
        0.7, 1, (6, 4 // groups, kernel, kernel)
    )
    weight = numpy_helper.from_array(raw.astype(np.float32), "w")
    head = numpy_helper.from_array(rng.normal(0, 1, (6, 4)).astype(np.float32), "v")
    nodes = [
        helper.make_node("Conv", ["image", "lift"], ["a"], name="lift"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="wide", **extra),
        helper.make_node("GlobalAveragePool", ["b"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["logits"]),
    ]
    made = model(nodes, [lift, weight, head], 17)
    array = np.abs(images(3)) + np.float32(1.0)
    material = material_of(made, _samples(array))
    plan = _plan(material)
    found = {one.node: one for one in saturating(made, plan, material.samples)}
    assert found["wide"].samples == 3
    params = plan.activations["a"]
    assert int(params.zero_point) > 140
    lifted = array * numpy_helper.to_array(lift).reshape(1, 4, 1, 1)
    stored = quantize(lifted.astype(np.float32), params).astype(np.int32)
    weights = quantize(raw.astype(np.float32), plan.weights["wide"].params).astype(np.int32)
    total = sum(_literal_conv(one, weights, int(params.zero_point), extra) for one in stored)
    assert found["wide"].saturated == total > 0


def _literal_conv(stored: Ints, weights: Ints, zero: int, extra: dict[str, object]) -> int:
    kernel, groups = weights.shape[2], int(str(extra.get("group", 1)))
    stride = 2 if "strides" in extra else 1
    dilation = 2 if "dilations" in extra else 1
    top, left, bottom, right = {  # by hand from ONNX's definition, for 8 x 8
        "SAME_UPPER": (0, 0, 1, 1),
        "SAME_LOWER": (1, 1, 0, 0),
    }.get(str(extra.get("auto_pad")), tuple(extra.get("pads", [0] * 4)))  # type: ignore[arg-type]
    padded = np.pad(stored, ((0, 0), (top, bottom), (left, right)), constant_values=zero)
    reach = (kernel - 1) * dilation + 1
    found = 0
    for part, filters in zip(np.split(padded, groups), np.split(weights, groups), strict=True):
        for i in range(0, padded.shape[1] - reach + 1, stride):
            for j in range(0, padded.shape[2] - reach + 1, stride):
                seen = part[:, i : i + reach : dilation, j : j + reach : dilation]
                row = np.moveaxis(seen, 0, -1).reshape(1, -1)
                found += _literal(row, np.moveaxis(filters, 1, -1).reshape(len(filters), -1).T)
    return found


def test_reduced_weights_do_not_saturate() -> None:
    made = conv_net()
    material = material_of(made, _samples(images(40, seed=8)))
    before = saturating(made, _plan(material), material.samples)
    assert [one.node for one in before] == ["Conv_0"]
    assert "16-bit sums saturate on 32 samples" in before[0].words
    assert saturating(made, _plan(material, reduced={"Conv_0": before[0].channels}), material.samples) == ()


def test_a_channel_that_comes_near_is_named() -> None:
    rows = np.array([[255, 255]], dtype=np.int32)
    found, near = count_saturated(rows, np.array([[60, 57, 40, 127], [60, 55, 40, 127]], np.int32), 10**9)
    assert found == 1
    assert near.tolist() == [True, False, False, True]


def test_few_sums_are_looked_at_where_there_are_too_many() -> None:
    rows = np.full((100, 2), 255, dtype=np.int32)
    matrix = np.full((2, 10), 127, dtype=np.int32)
    assert count_saturated(rows, matrix, 100)[0] == 100
    assert count_saturated(rows[:0], matrix, 100)[0] == 0
