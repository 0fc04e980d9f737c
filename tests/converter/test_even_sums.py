"""Sums that both runtimes round alike: the emulation against both, and the scales that it finds."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converter import litert, runtime
from converter.quantize import even_sums
from converter.quantize.even_sums import Inputs, Output, evened, is_even
from converter.quantize.qparams import DTYPES, QParams
from converter.tflite import write


def _model(kind: str, dtype: str, inputs: Inputs, output: Output) -> onnx.ModelProto:
    """Stored integers in and out, `[256, 256]`."""
    stored = {"u8": TensorProto.UINT8, "i8": TensorProto.INT8}[dtype]
    params = {"a": inputs[:2], "b": inputs[2:], "y": output}
    constants = [numpy_helper.from_array(np.array(s, np.float32), f"{n}_s") for n, (s, _) in params.items()]
    constants += [
        numpy_helper.from_array(np.array(z, DTYPES[dtype]), f"{n}_z") for n, (_, z) in params.items()
    ]
    nodes = [helper.make_node("DequantizeLinear", [n, f"{n}_s", f"{n}_z"], [f"{n}_real"]) for n in "ab"]
    nodes.append(helper.make_node(kind, ["a_real", "b_real"], ["exact"]))
    nodes.append(helper.make_node("QuantizeLinear", ["exact", "y_s", "y_z"], ["y"]))
    values = [helper.make_tensor_value_info(n, stored, [256, 256]) for n in "aby"]
    made = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _both(kind: str, dtype: str, inputs: Inputs, output: Output) -> tuple[NDArray[Any], NDArray[Any]]:
    """LiteRT's answer and ONNX Runtime's, in the integers of `dtype`."""
    model = _model(kind, dtype, inputs, output)
    limits = np.iinfo(DTYPES[dtype])
    grid = np.meshgrid(
        np.arange(limits.min, limits.max + 1), np.arange(limits.min, limits.max + 1), indexing="ij"
    )
    config = {"session.qdqisint8allowed": "1"} if dtype == "i8" else {}
    feeds = {name: array.astype(DTYPES[dtype]) for name, array in zip("ab", grid, strict=True)}
    (theirs,) = runtime.open_session(model.SerializeToString(), config=config).run(["y"], feeds)
    shift = 128 if dtype == "u8" else 0
    session = litert.open_session(write(model).content)
    signed = {name: (array - shift).astype(np.int8) for name, array in zip("ab", grid, strict=True)}
    (mine,) = session.invoke(session.prepare(signed))
    return mine.astype(np.int64) + shift, theirs.astype(np.int64)


def _drawn(random: np.random.Generator, dtype: str, kind: str = "Add") -> tuple[Inputs, Output]:
    limits = np.iinfo(DTYPES[dtype])
    a, b, y = (int(x) for x in random.integers(limits.min, limits.max + 1, 3))
    first, second = (np.float32(x) for x in random.uniform(0.005, 0.05, 2))
    whole = first * second * 100 if kind == "Mul" else max(first, second)
    return (first, a, second, b), (np.float32(whole * random.uniform(0.6, 1.8)), y)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub"])
def test_both_runtimes_are_emulated_bit_for_bit(kind: str, dtype: str) -> None:
    random = np.random.default_rng(7)
    uneven = 0
    for _ in range(12):
        inputs, output = _drawn(random, dtype, kind)
        mine, theirs = _both(kind, dtype, inputs, output)
        np.testing.assert_array_equal(even_sums.litert(kind, dtype, inputs, output), mine)
        # Which of the two ONNX Runtime does depends on the CPU that it was compiled for.
        emulated = even_sums.onnxruntime(kind, dtype, inputs, output)
        assert any(np.array_equal(one, theirs) for one in emulated)
        shift = 128 if dtype == "u8" else 0
        signed = (inputs[0], inputs[1] - shift, inputs[2], inputs[3] - shift)
        if is_even(kind, signed, (output[0], output[1] - shift)):
            np.testing.assert_array_equal(mine, theirs)
        uneven += not np.array_equal(mine, theirs)
    assert uneven > 1 or kind == "Mul"


def _params(dtype: str, scale: np.float32, zero: int) -> QParams:
    return QParams(scale=np.array(scale), zero_point=np.array(zero, DTYPES[dtype]), dtype=dtype)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
@pytest.mark.parametrize("kind", ["Add", "Mul", "Sub"])
def test_a_wider_scale_makes_every_sum_equal(kind: str, dtype: str) -> None:
    random = np.random.default_rng(11)
    moved = 0
    for _ in range(12):
        inputs, (scale, zero) = _drawn(random, dtype, kind)
        out = _params(dtype, scale, zero)
        found = evened(kind, _params(dtype, *inputs[:2]), _params(dtype, *inputs[2:]), out)
        assert found is not None
        assert scale <= found.scale <= scale * 1.013
        assert (found.dtype, found.zero_point, found.axis) == (dtype, out.zero_point, None)
        mine, theirs = _both(kind, dtype, inputs, (np.float32(found.scale), zero))
        np.testing.assert_array_equal(mine, theirs)
        moved += bool(found.scale > scale)
    assert moved < 12
    assert moved > 2 or kind == "Mul"


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_products_that_the_runtimes_round_apart(dtype: str) -> None:
    random = np.random.default_rng(3)
    shift = 128 if dtype == "u8" else 0
    found = 0
    while found < 8:
        inputs, (scale, zero) = _drawn(random, dtype, "Mul")
        signed = (inputs[0], inputs[1] - shift, inputs[2], inputs[3] - shift)
        if is_even("Mul", signed, (scale, zero - shift)):
            continue
        found += 1
        mine, theirs = _both("Mul", dtype, inputs, (scale, zero))
        np.testing.assert_array_equal(even_sums.litert("Mul", dtype, inputs, (scale, zero)), mine)
        plain, *_ = emulated = even_sums.onnxruntime("Mul", dtype, inputs, (scale, zero))
        assert any(np.array_equal(one, theirs) for one in emulated)
        assert platform.machine() != "x86_64" or np.array_equal(plain, theirs)
        params = [_params(dtype, s, z) for s, z in (inputs[:2], inputs[2:], (scale, zero))]
        wider = evened("Mul", *params)
        assert wider is not None
        assert wider.scale > scale
        mine, theirs = _both("Mul", dtype, inputs, (np.float32(wider.scale), zero))
        np.testing.assert_array_equal(mine, theirs)


def test_signed_and_unsigned_storage_get_one_scale() -> None:
    random = np.random.default_rng(13)
    for _ in range(4):
        (first, a, second, b), (scale, zero) = _drawn(random, "i8")
        signed = evened("Add", *(_params("i8", s, z) for s, z in ((first, a), (second, b), (scale, zero))))
        raised = ((first, a + 128), (second, b + 128), (scale, zero + 128))
        unsigned = evened("Add", *(_params("u8", s, z) for s, z in raised))
        assert signed is not None
        assert unsigned is not None
        assert signed.scale == unsigned.scale


def test_what_xnnpack_leaves_to_others_is_not_touched() -> None:
    tiny, out = _params("i8", np.float32(1e-6), 0), _params("i8", np.float32(1.0), 0)
    assert evened("Add", tiny, out, out) is None
