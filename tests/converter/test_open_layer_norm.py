"""LayerNormalization written out, and in integers for targets that take nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import structs

from converter.passes import INTEGER_PASSES, clean
from converter.passes.open_layer_norm import open_layer_norm
from converter.quantize import quantize
from converter.recipe import parse
from converter.targets.loader import find_target
from converter.tflite import Options, write
from tests.converter.quantizing import Line, floats, graph, inputs, material, run
from tests.converter.test_passes_fold import applied, operators
from tests.converter.tflite.harness import Session, check_float, compare_int8
from tests.converter.twins import attention

_TWIN = "static_wi8_ai8_pc_minmax_twin"


def _normed(*, offset: bool = True, axis: int = -1, opset: int = 17, outputs: str = "y") -> onnx.ModelProto:
    shape = (5, 6) if axis in {-1, 2} else (30,)
    constants: dict[str, Any] = {"g": floats(1, *shape[-1:]) + 1.0, "b": floats(2, *shape[-1:])}
    if axis == 1:
        constants = {"g": floats(1, 5, 6) + 1.0, "b": floats(2, 5, 6)}
    line: Line = (
        "LayerNormalization",
        "x g b" if offset else "x g",
        outputs,
        {"axis": axis, "epsilon": 1e-3},
    )
    return graph([line], constants if offset else {"g": constants["g"]},
                 outputs={"y": [None] * 3}, shape=(5, 6), opset=opset)  # fmt: skip


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("opset", [17, 18])
def test_the_answers_stay(offset: bool, axis: int, opset: int) -> None:
    made, changes = applied(open_layer_norm, _normed(offset=offset, axis=axis, opset=opset))
    assert changes == 1
    assert Counter(operators(made)) == {
        "ReduceMean": 2, "Sub": 1, "Mul": 3, "Add": 2 if offset else 1, "Pow": 1,
    }  # fmt: skip


def test_one_whose_mean_is_read_stays() -> None:
    model = _normed(outputs="y m")
    model.graph.output.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, [None] * 3))
    assert open_layer_norm(model) == 0
    assert operators(model) == ["LayerNormalization"]


def _opened_attention() -> onnx.ModelProto:
    made, said = clean(attention(), INTEGER_PASSES)
    assert any(one.startswith("open_layer_norm") for one in said)
    return made


def test_an_attention_block_is_all_integers_for_a_target_that_takes_nothing_else() -> None:
    known = structs.replace(material(_opened_attention()), rules=find_target("coral_edgetpu").rules)
    twin = quantize(known, parse(_TWIN)).model
    written = write(twin, Options(edge="int8"))
    assert written.float_left == ()
    assert written.operators["RSQRT"] == 1
    assert not {"DEQUANTIZE", "LAYER_NORMALIZATION"} & set(written.operators)
    x = inputs(known.model, 24, seed=11)
    wanted = run(known.model, x)[0]
    session = Session(write(twin))
    mine = np.concatenate([next(iter(session.run({"x": one[None]}).values())) for one in x])
    assert 10 * np.log10((wanted**2).sum() / ((wanted - mine) ** 2).sum()) > 15.0


def test_its_integers_are_within_a_step_of_onnx() -> None:
    known = structs.replace(material(_opened(_normed())), rules=find_target("coral_edgetpu").rules)
    steps = compare_int8(quantize(known, parse(_TWIN)).model, inputs(known.model))
    assert steps.integer
    assert steps.written.operators["RSQRT"] == 1
    assert steps.worst <= 2


def _opened(model: onnx.ModelProto) -> onnx.ModelProto:
    open_layer_norm(model)
    return model


@pytest.mark.parametrize("exponent", [-0.5, 2.0])
def test_only_the_root_below_has_an_integer_kernel(exponent: float) -> None:
    made = graph(
        [("Conv", "x w", "c"), ("Relu", "c", "r"), ("Add", "r one", "a"), ("Pow", "a e", "p"),
         ("Conv", "p v", "y")],
        {"w": floats(1, 4, 3, 1, 1), "v": floats(2, 2, 4, 1, 1), "one": np.array(1.0, dtype=np.float32),
         "e": np.array(exponent, dtype=np.float32)},
        outputs={"y": [None] * 4},
    )  # fmt: skip
    check_float(made, atol=1e-4)
    twin = quantize(material(made), parse(_TWIN))
    written = write(twin.model, Options(edge="int8"))
    root = exponent == -0.5
    assert ("RSQRT" in written.operators) is root
    assert (written.float_left == ()) is root
    if root:
        steps = compare_int8(twin.model, inputs(made))
        assert steps.worst <= 1
