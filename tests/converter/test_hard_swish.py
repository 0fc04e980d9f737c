"""HardSwish as a convolution and a product, which both runtimes compute in integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from msgspec import structs

from converter.quantize import quantize
from converter.quantize.hard_swish import opened
from converter.recipe import parse
from converter.targets.loader import Rule, Rules
from tests.converter.quantizing import floats, graph, inputs, material, run
from tests.converter.tflite.harness import compare_int8

_TWIN = "static_wi8_ai8_pc_minmax_twin"
_W = {"w": floats(1, 6, 3, 3, 3, scale=1.0), "b": floats(2, 6, scale=2.0)}
_CONV = ("Conv", "x w b", "c")


def _image() -> onnx.ModelProto:
    return graph([_CONV, ("HardSwish", "c", "h"), ("Conv", "h w2", "y")],
                 _W | {"w2": floats(3, 4, 6, 1, 1)}, outputs={"y": [None] * 4})  # fmt: skip


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("rank", [3, 4])
def test_the_answers_stay(rank: int) -> None:
    shape, weight = ((3, 8, 8), (6, 3, 3, 3)) if rank == 4 else ((3, 16), (6, 3, 3))
    made = graph([("Conv", "x w", "c"), ("HardSwish", "c", "y")], {"w": floats(1, *weight, scale=2.0)},
                 outputs={"y": [None] * rank}, shape=shape)  # fmt: skip
    before = material(made)
    after, ranges, said = opened(before, before.calibration.ranges)
    assert _operators(after.model) == ["Conv", "Conv", "Clip", "Mul"]
    assert before.model is made
    assert _operators(made) == ["Conv", "HardSwish"]
    onnx.checker.check_model(after.model, full_check=True)
    np.testing.assert_allclose(run(after.model, inputs(made))[0], run(made, inputs(made))[0], atol=1e-5)
    assert said == ("1 HardSwish written as a 1 x 1 convolution, its Clip and a product: all in integers",)
    assert set(ranges) == {*before.calibration.ranges, "y_line", "y_gate"}


def test_the_new_ranges_are_the_lines_of_the_old() -> None:
    before = material(_image())
    _, ranges, _ = opened(before, before.calibration.ranges)
    span, line, gate = (ranges[name] for name in ("c", "h_line", "h_gate"))
    assert (span.low < -3.0, span.high > 3.0) == (True, True)
    assert line.low == pytest.approx(span.low / 6 + 0.5)
    assert line.high == pytest.approx(span.high / 6 + 0.5)
    assert (gate.low, gate.high) == (0.0, 1.0)


def test_a_twin_of_it_is_all_integers_and_agrees_to_the_bit() -> None:
    made = quantize(material(_image()), parse(_TWIN))
    assert any("HardSwish" in said for said in made.decisions)
    steps = compare_int8(made.model, inputs(_image()))
    assert steps.integer
    assert steps.written.operators == {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1, "MUL": 1}
    assert (steps.worst, steps.equal) == (0, 1.0)


def test_it_is_within_a_step_or_two_of_the_operator_itself() -> None:
    """The gate has 8 bits: half of one of its steps, times x, is little beside a step of the output."""
    made = _image()
    known = material(made)
    twin = quantize(known, parse(_TWIN)).model
    whole = structs.replace(known, rules=_listing_hard_swish(known.rules))
    plain = quantize(whole, parse(_TWIN)).model
    wanted, x = run(made, inputs(made))[0], inputs(made)
    errors = [float(np.abs(run(one, x)[0] - wanted).mean()) for one in (twin, plain)]
    assert errors[0] < 1.3 * errors[1]


def _listing_hard_swish(rules: Rules) -> Rules:
    return structs.replace(
        rules, operators=Rule(value=["Conv", "HardSwish"], confidence="V", source="this test")
    )


def test_a_target_that_lists_the_operator_keeps_it() -> None:
    known = material(_image())
    known = structs.replace(known, rules=_listing_hard_swish(known.rules))
    after, ranges, said = opened(known, known.calibration.ranges)
    assert (after, ranges, said) == (known, known.calibration.ranges, ())


def test_a_vector_keeps_it_and_so_does_another_recipe() -> None:
    flat = graph([("Gemm", "x w", "c"), ("HardSwish", "c", "y")], {"w": floats(1, 5, 6)},
                 outputs={"y": ["N", 6]}, shape=(5,))  # fmt: skip
    known = material(flat)
    assert opened(known, known.calibration.ranges)[0] is known
    plain = quantize(material(_image()), parse("static_wi8_ai8_pc_minmax"))
    assert "HardSwish" in _operators(plain.model)
