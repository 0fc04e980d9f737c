"""What is fused gives the same answers, and what would not is left; a pass that errs is left out by name."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from converter.passes import PASSES, Pass, clean, clean_checked
from converter.passes.fuse_activations import fuse_activations
from converter.passes.fuse_gemm import fuse_gemm
from converter.passes.fuse_pad import fuse_pad
from converter.passes.walk import attribute
from tests.converter.test_passes_fold import applied, operators, same_answers
from tests.converter.zoo import Net
from tests.converter.zoo_layers import hard_swish_decomposed, residual
from tests.converter.zoo_odd import batch_norm_first, opset_9, torch_script


def _padded(reader: str, pads: tuple[int, ...] = (1, 2, 0, 1), **more: Any) -> onnx.ModelProto:  # noqa: ANN401 - attributes
    """Relu, Pad, and a Conv or pooling."""
    net = Net()
    top, left, bottom, right = pads
    x = net.op("Relu", net.image()) if more.pop("relu", True) else net.image()
    value = [net.constant(more.pop("value"))] if "value" in more else []
    mode = more.pop("mode", "constant")
    x = net.op("Pad", x, net.ints(0, 0, top, left, 0, 0, bottom, right), *value, mode=mode)
    if reader == "Conv":
        net.head(net.conv(x, 3, 3, **({"pads": [0] * 4} | more)), 3)
    else:
        net.head(net.op(reader, x, **({"kernel_shape": [3, 3]} | more)), 3)
    return net.model()


@pytest.mark.parametrize(
    "made",
    [
        _padded("Conv"), _padded("Conv", relu=False, pads=(3, 0, 0, 5)),
        _padded("Conv", pads=(0, 0, 1, 1), strides=[2, 2]),
        _padded("Conv", value=0.0), _padded("Conv", dilations=[2, 2], relu=False),
        _padded("AveragePool"), _padded("AveragePool", count_include_pad=1, pads=(1, 0, 0, 0)),
        _padded("MaxPool"), _padded("MaxPool", strides=[2, 2], pads=(1, 1, 1, 1)),
    ],
)  # fmt: skip
def test_a_pad_of_zeros_goes_into_its_reader(made: onnx.ModelProto) -> None:
    fused, changes = applied(fuse_pad, made)
    assert changes == 1
    assert "Pad" not in operators(fused)


@pytest.mark.parametrize(
    "made",
    [
        _padded("Conv", value=1.0), _padded("Conv", mode="reflect"), _padded("Conv", pads=(-1, 0, 0, 0)),
        _padded("Conv", auto_pad="SAME_UPPER", pads=(1, 1, 1, 1)),
        _padded("AveragePool", ceil_mode=1, strides=[2, 2]),
        _padded("MaxPool", relu=False),
    ],
)  # fmt: skip
def test_a_pad_that_its_reader_cannot_do_stays(made: onnx.ModelProto) -> None:
    if any(attribute(node, "auto_pad") for node in made.graph.node):
        for node in made.graph.node:
            for one in [one for one in node.attribute if one.name == "pads"]:
                node.attribute.remove(one)
    fused, changes = applied(fuse_pad, made)
    assert changes == 0
    assert "Pad" in operators(fused)


def test_an_average_that_does_not_count_its_own_pads_keeps_the_pad() -> None:
    made = _padded("AveragePool", pads=(1, 1, 1, 1))
    pool = next(node for node in made.graph.node if node.op_type == "AveragePool")
    pool.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    _, changes = applied(fuse_pad, made)
    assert changes == 0


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_a_pad_as_large_as_the_kernel_stays(pool: str) -> None:
    """Not compared: onnxruntime 1.31.1 fuses such a Pad itself and then refuses the MaxPool."""
    assert fuse_pad(_padded(pool, pads=(3, 0, 0, 0))) == 0


def test_a_chain_of_pads_and_the_old_form_go() -> None:
    net = Net()
    x = net.image()
    for pads in ((0, 0, 1, 0, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0, 1, 1)):
        x = net.op("Pad", x, net.ints(*pads))
    net.head(net.conv(x, 3, 4, pads=[0] * 4), 4)
    fused, changes = applied(fuse_pad, net.model())
    assert changes == 2
    conv = next(node for node in fused.graph.node if node.op_type == "Conv")
    assert list(attribute(conv, "pads")) == [1, 1, 1, 1]
    assert applied(fuse_pad, opset_9())[1] == 1


def test_a_pad_of_channels_stays() -> None:
    net = Net()
    net.head(net.conv(net.op("Pad", net.image(), net.ints(0, 1, 0, 0, 0, 0, 0, 0)), 4, 4), 4)
    assert applied(fuse_pad, net.model())[1] == 0


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Max", 0.0)], "Relu"), ([("Max", 0.0), ("Min", 6.0)], "Clip"),
        ([("Min", 6.0), ("Max", 0.0)], "Clip"),
        ([("Max", -1.0)], "Clip"), ([("Min", 0.5)], "Clip"), ([("Max", 1.0), ("Min", -1.0)], "Clip"),
        ([("Relu", 0.0), ("Min", 1.0)], "Clip"), ([("Max", -0.5), ("Relu", 0.0)], "Relu"),
    ],
)  # fmt: skip
def test_bounds_become_one_clip(steps: list[tuple[str, float]], expected: str) -> None:
    net = Net()
    x = net.op("Neg", net.input("features", "N", 4))
    for kind, bound in steps:
        x = net.op(kind, x) if kind == "Relu" else net.op(kind, net.constant(bound), x)
    net.answer(x)
    fused, changes = applied(fuse_activations, net.model())
    assert changes >= len(steps) - (steps[0][0] == "Relu")
    assert operators(fused) == ["Neg", expected]


def test_a_bound_of_higher_rank_or_per_channel_stays() -> None:
    net = Net()
    x = net.op("Max", net.input("features", 4), net.constant([[0.0]]))
    net.answer(net.op("Min", x, net.weight(1, 4)), shape=(1, 4))
    assert fuse_activations(net.model()) == 0


def test_a_first_clip_that_is_read_elsewhere_stays() -> None:
    net = Net()
    x = net.op("Relu", net.input("features", "N", 4))
    net.answer(net.op("Min", x, net.constant(1.0)))
    net.answer(net.op("Neg", x), "other", ("N", 4))
    fused, _ = applied(fuse_activations, net.model())
    assert operators(fused) == ["Relu", "Clip", "Neg"]


def _hard_swish(order: str, factor: float = 1 / 6) -> onnx.ModelProto:
    net = Net()
    x = net.op("Neg", net.input("features", "N", 4))
    gate = net.op("Clip", net.op("Add", net.constant(3.0), x), net.constant(0.0), net.constant(6.0))
    sixth = net.constant(factor)
    if order == "gate first":
        x = net.op("Mul", net.op("Mul", gate, sixth), x)
    elif order == "product first":
        x = net.op("Mul", net.op("Mul", x, gate), sixth)
    else:
        x = net.op("Mul", x, net.op("Div", gate, net.constant(1 / factor)))
    net.answer(x)
    return net.model()


@pytest.mark.parametrize("order", ["gate first", "product first", "division"])
def test_a_hard_swish_becomes_one_operator(order: str) -> None:
    fused, changes = applied(fuse_activations, _hard_swish(order))
    assert changes > 0
    assert operators(fused) == ["Neg", "HardSwish"]


@pytest.mark.parametrize("order", ["gate first", "product first", "division"])
def test_another_factor_is_no_hard_swish(order: str) -> None:
    fused, changes = applied(fuse_activations, _hard_swish(order, factor=0.2))
    assert changes == 0
    assert "HardSwish" not in operators(fused)


def test_before_opset_14_a_hard_sigmoid_is_what_there_is() -> None:
    made = _hard_swish("division")
    made.opset_import[0].version = 13
    fused, _ = applied(fuse_activations, made)
    assert operators(fused) == ["Neg", "HardSigmoid", "Mul"]


def test_hard_swish_of_a_normalised_conv_is_two_operators() -> None:
    before = hard_swish_decomposed()
    made, _ = clean(before)
    same_answers(before, made)
    assert operators(made)[:2] == ["Conv", "HardSwish"]


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), ()])
@pytest.mark.parametrize("turned", [True, False])
def test_a_matrix_product_with_a_row_is_a_gemm(bias: tuple[int, ...], turned: bool) -> None:
    net = Net()
    product = net.op("MatMul", net.input("features", "N", 6), net.weight(6, 4))
    row = net.constant(net.rng.normal(0, 1, bias))
    net.answer(net.op("Add", *((row, product) if turned else (product, row))))
    fused, changes = applied(fuse_gemm, net.model())
    assert changes == 1
    assert operators(fused) == ["Gemm"]
    used = fused.graph.node[0].input[2]
    assert [list(tensor.dims) for tensor in fused.graph.initializer if tensor.name == used] == [[4]]
    assert (used == row) == (bias == (4,)), "a bias that will do keeps its name"


@pytest.mark.parametrize(
    ("shape", "bias"), [(("N", 3, 6), (4,)), (("N", 6), (2, 4)), ((2, 6), (2, 1)), ((4, 6), (4, 1))]
)
def test_other_products_stay(shape: tuple[int | str, ...], bias: tuple[int, ...]) -> None:
    net = Net()
    product = net.op("MatMul", net.input("features", *shape), net.weight(6, 4))
    net.answer(net.op("Add", product, net.weight(*bias)), shape=("?",) * len(shape))
    copy = net.model()
    assert fuse_gemm(copy) == 0
    assert copy == net.model()


@pytest.mark.parametrize(("bias", "changes"), [((1, 4), 1), ((1,), 1), ((), 1), ((4,), 0), ((3, 1), 0)])
def test_a_gemm_bias_gets_one_axis(bias: tuple[int, ...], changes: int) -> None:
    net = Net()
    x, weight = net.input("features", 3, 6), net.weight(4, 6)
    row = net.constant(net.rng.normal(0, 1, bias))
    net.answer(net.op("Gemm", x, weight, row, transB=1, beta=2.0), shape=(3, 4))
    assert applied(fuse_gemm, net.model())[1] == changes


def _breaking(model: onnx.ModelProto) -> int:
    """Scales the first weight, once."""
    tensor = model.graph.initializer[0]
    if tensor.name.startswith("broken"):
        return 0
    array = onnx.numpy_helper.to_array(tensor) * 2
    old = tensor.name
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, f"broken_{old}"))
    for node in model.graph.node:
        node.input[:] = [tensor.name if name == old else name for name in node.input]
    return 1


def _raising(_: onnx.ModelProto) -> int:
    raise ValueError("no such luck")


def _same(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    try:
        same_answers(before, after)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    ("apply", "why"), [(_breaking, "it changed the answers"), (_raising, "ValueError: no such luck")]
)
def test_a_pass_that_errs_is_left_out_and_the_others_stay(apply: object, why: str) -> None:
    assert callable(apply)
    bad = Pass(name="bad", requires="", ensures="", apply=apply)
    passes = (*PASSES[:4], bad, *PASSES[4:])
    for before in (batch_norm_first(), residual()):
        found, said = clean_checked(before, _same, passes)
        whole, words = clean(before)
        assert said == (*words, f"bad left out: {why}")
        assert found == whole


def test_a_clean_model_is_compared_once() -> None:
    calls: list[int] = []

    def same(_before: onnx.ModelProto, _after: onnx.ModelProto) -> bool:
        calls.append(1)
        return True

    before = torch_script()
    assert clean_checked(before, same) == clean(before)
    assert calls == [1]
    assert clean_checked(clean(before)[0], same)[1] == ()
    assert calls == [1]


def test_a_model_that_no_pass_may_touch_comes_back_as_it_is() -> None:
    before = residual()
    found, said = clean_checked(before, lambda _before, _after: False)
    assert found == before
    assert {words.split(" left out")[0] for words in said} == {"fold_batch_norm", "name_nodes"}
