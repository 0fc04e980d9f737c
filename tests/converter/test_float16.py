"""Half precision: what shrinks, what stays in float32 and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Samples
from converter.errors import RecipeError
from converter.passes import clean
from converter.quantize import quantize
from converter.quantize.float16 import FLOAT16_MAX, overflowing
from converter.recipe import parse
from tests.converter.builders import CLASSES, answers, conv_net, images, material_of, model, weights
from wire.figures import Interval

HALF = parse("float_wf16_af16")


def _samples() -> Samples:
    array = images(40, seed=8)
    return Samples(path="here", sha256="0" * 64, arrays={"image": array}, data={}, n=len(array))


def _loud_net(factor: float) -> onnx.ModelProto:
    """Flatten, times `factor`, divided by it again, Gemm: answers that do not depend on the factor."""
    rng = np.random.default_rng(4)
    constants = [weights(rng, "w", CLASSES, 64), weights(rng, "b", CLASSES)]
    constants.append(numpy_helper.from_array(np.float32(factor), "factor"))
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Mul", ["flat", "factor"], ["loud"]),
        helper.make_node("Abs", ["loud"], ["heard"]),
        helper.make_node("Div", ["heard", "factor"], ["quiet"]),
        helper.make_node("Gemm", ["quiet", "w", "b"], ["logits"], transB=1),
    ]
    return model(nodes, constants, 17)


def test_weights_halve_and_answers_stay() -> None:
    cleaned, _ = clean(conv_net())
    made = quantize(material_of(cleaned, _samples()), HALF)
    assert made.decisions == ()
    kept = {t.name for t in made.model.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert kept == set()
    assert made.model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    exact = answers(cleaned, images(30))
    assert np.abs(answers(made.model, images(30)) - exact).max() < 0.01 * np.abs(exact).max()


def test_what_overflows_stays_in_float32_and_is_named() -> None:
    cleaned, _ = clean(_loud_net(1e5))
    made = quantize(material_of(cleaned, _samples()), HALF)
    assert "loud" in made.decisions[0]
    assert "overflow" in made.decisions[0]
    exact = answers(cleaned, images(30))
    near = answers(made.model, images(30))
    assert np.isfinite(near).all()
    assert np.abs(near - exact).max() < 0.01 * np.abs(exact).max()
    quiet, _ = clean(_loud_net(2.0))
    assert quantize(material_of(quiet, _samples()), HALF).decisions == ()


def test_a_square_overflows_though_no_tensor_shows_it() -> None:
    node = helper.make_node("ReduceL2", ["x"], ["y"], name="norm")
    made = helper.make_model(helper.make_graph([node], "g", [], []))
    assert overflowing(made, {"x": Interval(-10.0, 300.0), "y": Interval(0.0, 310.0)}) == {"norm": "x"}
    assert overflowing(made, {"x": Interval(-10.0, 12.0), "y": Interval(0.0, 40.0)}) == {}


@pytest.mark.parametrize(("high", "stays"), [(FLOAT16_MAX, True), (FLOAT16_MAX / 4, False)])
def test_half_the_range_is_headroom(high: float, stays: bool) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="act")
    made = helper.make_model(helper.make_graph([node], "g", [], []))
    assert bool(overflowing(made, {"x": Interval(0.0, 1.0), "y": Interval(0.0, high)})) is stays


def test_where_all_would_stay_there_is_no_candidate() -> None:
    rng = np.random.default_rng(4)
    huge = numpy_helper.from_array(np.full((CLASSES, 64), 1e6, dtype=np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    made, _ = clean(model(nodes, [huge, weights(rng, "b", CLASSES)], 17))
    loud = Samples(path="here", sha256="0" * 64, arrays={"image": images(8) * np.float32(1e6)}, data={}, n=8)
    with pytest.raises(RecipeError, match="stay in float32"):
        quantize(material_of(made, loud), HALF)
