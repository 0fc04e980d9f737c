"""What is folded gives the same answers with fewer nodes, and what must not be folded stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from converter.passes import clean
from converter.passes.fold_batch_norm import fold_batch_norm
from converter.passes.fold_constants import fold_constants
from converter.passes.fold_hard_sigmoid import fold_hard_sigmoid
from converter.passes.fold_shapes import fold_shapes
from converter.passes.identities import drop_identities
from converter.passes.intake import intake
from converter.passes.unused import drop_unused, share_constants
from converter.passes.walk import View
from converter.runtime import open_session
from tests.converter.zoo import Net, samples_of
from tests.converter.zoo_layers import LAYERS
from tests.converter.zoo_odd import ODD, doubled_constants, quantized_aware, quantized_stored, torch_script

KEPT = {name: one for name, one in (LAYERS | ODD).items() if one.refused is None}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def same_answers(before: onnx.ModelProto, after: onnx.ModelProto, n: int = 3) -> None:
    """Both valid, and equal but for the order of float arithmetic."""
    onnx.checker.check_model(after, full_check=True)
    feeds = samples_of(before, n)
    old = open_session(before.SerializeToString()).run(None, feeds)
    new = open_session(after.SerializeToString()).run(None, feeds)
    for mine, theirs in zip(old, new, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-5)


def applied(one: object, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy that the pass changed, and how much it says that was; the answers are compared."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    changes = one(copy) if callable(one) else -1
    same_answers(model, copy)
    return copy, changes


@pytest.mark.parametrize("product", ["Conv", "ConvTranspose", "Gemm", "Gemm transB"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_norm_after_a_product_goes_in(product: str, bias: bool) -> None:
    net = Net()
    if product.startswith("Gemm"):
        x = net.input("features", "N", 5)
        turned = int(product.endswith("transB"))
        weight = net.weight(*((6, 5) if turned else (5, 6)))
        more = [net.weight(1, 6)] if bias else []
        x = net.op("Gemm", x, weight, *more, transB=turned, alpha=0.5, beta=3.0)
        net.answer(net.norm(x, 6), shape=("N", 6))
    else:
        shape = (6, 2, 3, 3) if product == "Conv" else (4, 3, 3, 3)
        parts = [net.image(4), net.weight(*shape), *([net.weight(6)] if bias else [])]
        net.head(net.norm(net.op(product, *parts, group=2), 6), 6)
    made, changes = applied(fold_batch_norm, net.model())
    assert changes == 1
    assert "BatchNormalization" not in operators(made)


@pytest.mark.parametrize("product", ["Conv", "ConvTranspose", "Gemm", "Gemm transB"])
@pytest.mark.parametrize("slope", [{}, {"alpha": 1 / 6, "beta": 0.25}])
def test_the_slope_of_a_hard_sigmoid_goes_into_the_product(product: str, slope: dict[str, float]) -> None:
    net = Net()
    if product.startswith("Gemm"):
        turned = int(product.endswith("transB"))
        x = net.input("features", "N", 5)
        weight = net.weight(*((6, 5) if turned else (5, 6)), scale=3.0)
        x = net.op("Gemm", x, weight, net.weight(6), transB=turned, alpha=0.5, beta=3.0)
        net.answer(net.op("HardSigmoid", x, **slope), shape=("N", 6))
    else:
        shape = (6, 2, 3, 3) if product == "Conv" else (4, 3, 3, 3)
        x = net.op(product, net.image(4), net.weight(*shape, scale=2.0), net.weight(6), group=2)
        net.head(net.op("HardSigmoid", x, **slope), 6)
    made, changes = applied(fold_hard_sigmoid, net.model())
    assert changes == 1
    assert "HardSigmoid" not in operators(made)
    assert operators(made).count("Clip") == 1


def test_a_hard_sigmoid_stays_where_the_product_is_read_elsewhere_or_is_none() -> None:
    net = Net()
    x = net.conv(net.image(3), 3, 6)
    gated = net.op("Mul", x, net.op("HardSigmoid", x))
    net.head(net.op("HardSigmoid", net.op("Abs", gated)), 6)
    _, changes = applied(fold_hard_sigmoid, net.model())
    assert changes == 0


@pytest.mark.parametrize("build", ["Conv", "grouped Conv", "Gemm", "Gemm transB"])
def test_a_batch_norm_before_a_product_goes_in(build: str) -> None:
    net = Net()
    if build.startswith("Gemm"):
        x = net.norm(net.input("features", "N", 5), 5)
        turned = int(build.endswith("transB"))
        weight = net.weight(*((4, 5) if turned else (5, 4)))
        net.answer(net.op("Gemm", x, weight, net.weight(4), transB=turned, alpha=0.5))
    else:
        groups = 2 if build.startswith("grouped") else 1
        x = net.norm(net.image(4), 4)
        net.head(net.conv(x, 4, 6, group=groups, pads=[0] * 4), 6)
    made, changes = applied(fold_batch_norm, net.model())
    assert changes == 1
    assert "BatchNormalization" not in operators(made)


@pytest.mark.parametrize("more", [{"pads": [1] * 4}, {"auto_pad": "SAME_UPPER"}])
def test_a_batch_norm_before_padding_stays(more: dict[str, object]) -> None:
    net = Net()
    parts = (net.norm(net.image(), 3), net.weight(4, 3, 3, 3))
    net.head(net.op("Conv", *parts, **more), 4)
    made, changes = applied(fold_batch_norm, net.model())
    assert changes == 0
    assert "BatchNormalization" in operators(made)


@pytest.mark.parametrize("operator", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
def test_a_constant_per_channel_goes_into_a_conv(operator: str, shape: tuple[int, ...]) -> None:
    net = Net()
    x = net.op(operator, net.conv(net.image(), 3, 6), net.constant(net.rng.uniform(0.5, 2, shape)))
    net.head(x, 6)
    _, changes = applied(fold_batch_norm, net.model())
    assert changes == 1


@pytest.mark.parametrize(
    ("operator", "shape", "first"),
    [("Mul", (8,), True), ("Add", (1, 1, 8, 8), True), ("Add", (1, 1, 6, 1, 1), True),
     ("Mul", (1, 1, 1, 1, 1), True), ("Div", (1,), False),
     ("Sub", (1,), False)],
)  # fmt: skip
def test_what_is_not_per_channel_stays(operator: str, shape: tuple[int, ...], first: bool) -> None:
    net = Net()
    x, other = net.conv(net.image(), 3, 6), net.constant(net.rng.uniform(0.5, 2, shape))
    result = net.op(operator, *((x, other) if first else (other, x)))
    net.answer(result, shape=("N", *["?"] * (max(4, len(shape)) - 1)))
    _, changes = applied(fold_batch_norm, net.model())
    assert changes == 0


def test_what_leaves_float32_is_not_folded() -> None:
    net = Net()
    x = net.op("Mul", net.conv(net.image(), 3, 4), net.constant(3e38))
    net.head(net.op("Mul", x, net.constant(1e-30)), 4)
    before = net.model()
    made = net.model()
    assert fold_batch_norm(made) == 0
    assert operators(made) == operators(before)


def test_a_conv_that_a_subgraph_reads_is_not_folded() -> None:
    net = Net()
    x = net.conv(net.image(), 3, 4)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 8, 8])
    branches = {
        name: helper.make_graph([helper.make_node(kind, [x], ["out"])], name, [], [out])
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    y = net.op("If", net.constant(True, np.bool_), **branches)
    net.head(net.op("Add", net.norm(x, 4), y), 4)
    _, changes = applied(fold_batch_norm, net.model())
    assert changes == 0


def test_identities_go_and_what_stands_between_ends_stays() -> None:
    net = Net()
    image = net.image()
    x = net.op("Identity", net.op("Cast", image, to=TensorProto.FLOAT))
    x = net.op("Transpose", net.op("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    x = net.op("Dropout", net.op("Reshape", net.conv(x, 3, 4), net.ints(0, 4, 8, 8)))
    x = net.op("Reshape", net.op("Reshape", x, net.ints(0, 4, 64)), net.ints(-1, 256))
    net.classify(net.op("Identity", x), 256)
    net.answer(net.op("Identity", image), "copy", ("N", 3, 8, 8))
    made, changes = applied(drop_identities, net.model())
    assert operators(made) == ["Conv", "Reshape", "Gemm", "Identity"]
    assert changes >= 6


def test_a_reshape_that_copies_a_size_needs_the_one_before() -> None:
    net = Net()
    x = net.op("Reshape", net.op("Relu", net.image(4)), net.ints(-1, 64))
    net.answer(net.op("Reshape", x, net.ints(0, 8, 8)), shape=("?", 8, 8))
    made, changes = applied(drop_identities, net.model())
    assert changes == 0
    assert operators(made) == ["Relu", "Reshape", "Reshape"]


def test_an_identity_at_the_end_hands_its_name_on() -> None:
    net = Net()
    x = net.op("Relu", net.input("features", "N", 4))
    net.answer(net.op("Identity", x))
    net.answer(net.op("Neg", x), "other", ("N", 4))
    made, changes = applied(drop_identities, net.model())
    assert changes == 1
    assert [list(node.output) for node in made.graph.node] == [["logits"], ["other"]]


def test_a_transpose_with_other_readers_stays() -> None:
    net = Net()
    x = net.op("Transpose", net.input("tokens", "N", 3, 4), perm=[0, 2, 1])
    net.answer(net.op("Transpose", x, perm=[1, 0, 2]), shape=(4, "N", 3))
    net.answer(net.op("Transpose", x, perm=[0, 2, 1]), "same", ("N", 3, 4))
    made, _ = applied(drop_identities, net.model())
    perms = [list(node.attribute[0].ints) for node in made.graph.node if node.op_type == "Transpose"]
    assert perms == [[2, 0, 1], [0, 1, 2]]


def test_a_dropout_whose_mask_is_read_stays() -> None:
    net = Net()
    kept, mask = net.ops("Dropout", 2, net.input("features", "N", 4))
    net.answer(net.op("Where", mask, kept, net.constant(0.0)))
    _, changes = applied(drop_identities, net.model())
    assert changes == 0


def test_a_torch_script_export_comes_out_clean() -> None:
    made, _ = applied(lambda model: model.CopyFrom(clean(model)[0]), torch_script())
    assert operators(made) == ["Conv", "Clip"] * 3 + ["GlobalAveragePool", "Reshape", "Gemm"]
    assert all(list(node.attribute[-1].ints) for node in made.graph.node if node.op_type == "Conv")


@pytest.mark.parametrize("side", [8, "S"])
def test_a_flattened_size_becomes_a_constant_target(side: int | str) -> None:
    """`x.view(x.size(0), x.size(1), -1)` with a free batch, and a free image size too."""
    net = Net()
    x = net.op("Relu", net.image(4, side=side))
    shape = net.op("Shape", x)
    first = net.op("Unsqueeze", net.op("Gather", shape, net.constant(0, np.int64)), net.ints(0))
    second = net.op("Slice", shape, net.ints(1), net.ints(2), net.ints(0))
    both = net.op("Mul", net.op("Squeeze", second, net.ints(0)), net.constant(2, np.int64))
    target = net.op("Concat", first, net.op("Unsqueeze", both, net.ints(0)), net.ints(-1), axis=0)
    net.answer(net.op("Reshape", x, target), shape=("N", 8, "rest"))
    made, changes = applied(fold_shapes, net.model())
    assert changes > 0
    drop_unused(made)
    assert operators(made) == ["Relu", "Reshape"]
    value = View(made).array(made.graph.node[-1].input[1])
    assert value is not None
    assert value.tolist() == [0, 8, -1]
    same_answers(net.model(), made)


def test_a_multiple_of_a_free_axis_is_what_is_left() -> None:
    """Attention in torch folds its heads into the batch: [batch * 2, 4, 64]."""
    net = Net()
    x = net.op("Relu", net.image(8))
    heads = net.op("Mul", net.op("Shape", x, start=0, end=1), net.ints(2))
    target = net.op("Concat", heads, net.ints(4), net.ints(64), axis=0)
    net.answer(net.op("Reshape", x, target), shape=("?", 4, 64))
    made, changes = applied(fold_shapes, net.model())
    assert changes == 1
    drop_unused(made)
    assert operators(made) == ["Relu", "Reshape"]


def test_two_open_sizes_stay_computed() -> None:
    net = Net()
    x = net.op("Relu", net.input("maps", "N", "A", "B"))
    sizes = [net.op("Shape", x, start=i, end=i + 1) for i in (2, 1, 0)]
    net.answer(net.op("Reshape", x, net.op("Concat", *sizes, axis=0)), shape=("?", "?", "?"))
    made, changes = applied(fold_shapes, net.model())
    assert changes == 0
    assert "Concat" in operators(made)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
@settings(max_examples=40, deadline=None)
def test_sizes_are_what_the_runtime_computes(dims: list[int], data: st.DataObject) -> None:
    """Gather, Slice, Mul, Add and Sub of a known shape, against onnxruntime."""
    net = Net()
    x = net.input("maps", "N", *dims)
    shape = net.op("Shape", x)
    place = data.draw(st.integers(1 - len(dims), len(dims)).filter(lambda i: i != 0))
    start = data.draw(st.integers(1, len(dims)))
    picked = net.op("Gather", shape, net.constant(place, np.int64))
    operator = data.draw(st.sampled_from(["Mul", "Add", "Sub"]))
    changed = net.op(operator, picked, net.constant(data.draw(st.integers(-3, 5)), np.int64))
    step = data.draw(st.integers(1, 2))
    part = net.op("Slice", shape, net.ints(start), net.ints(9), net.ints(0), net.ints(step))
    whole = net.op("Concat", net.op("Unsqueeze", changed, net.ints(0)), part, axis=0)
    net.answer(net.op("Cast", whole, to=TensorProto.FLOAT), shape=("K",))
    made, changes = applied(fold_shapes, net.model())
    assert changes == 5
    drop_unused(made)
    assert operators(made) == ["Cast"]


def test_constants_are_computed_and_large_ones_not_stored() -> None:
    net = Net()
    small = net.op("Exp", net.op("Mul", net.weight(8), net.constant(2.0)))
    scalar = net.op("Neg", net.constant(1.5))
    x = net.op("Add", net.op("Mul", net.image(8), net.op("Reshape", small, net.ints(8, 1, 1))), scalar)
    large = net.op("Expand", net.constant(1.0), net.ints(1, 1, 4096, 4096))
    far = net.op("ReduceMax", large, keepdims=0)
    net.head(net.op("Add", x, far), 8)
    before = net.model()
    made, changes = applied(fold_constants, before)
    assert changes == 4
    assert "Expand" in operators(made)
    assert made.ByteSize() < 64 * 1024
    assert "Exp" not in operators(made)
    folded = [tuple(tensor.dims) for tensor in made.graph.initializer if tensor.name.endswith("_folded")]
    assert () in folded, "a scalar stays a scalar"


def test_what_would_not_fit_in_memory_is_not_tried() -> None:
    net = Net()
    large = [
        net.op("Expand", net.constant(1.0), net.ints(2**20, 2**20)),
        net.op("ConstantOfShape", net.ints(2**20, 2**20)),
        net.op("Tile", net.constant([1.0]), net.ints(2**40)),
        net.op("Range", net.constant(0, np.int64), net.constant(2**40, np.int64), net.constant(1, np.int64)),
    ]
    net.answer(large[0])
    for i, name in enumerate(large[1:]):
        net.answer(name, f"other{i}", ("?",))
    made = net.model(check=False)
    made.graph.node.append(helper.make_node("Neg", ["logits"], ["used"]))
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("used", TensorProto.FLOAT, None))
    assert fold_constants(made) == 0


def test_random_numbers_and_pairs_are_not_constants() -> None:
    net = Net()
    noise = net.op("RandomNormalLike", net.weight(3, 1, 1), seed=1.0)
    net.head(net.conv(net.op("Add", net.image(), noise), 3, 4), 4)
    assert fold_constants(net.model()) == 0


@pytest.mark.parametrize("build", [quantized_aware, quantized_stored])
def test_pairs_live_through_cleaning(build: object) -> None:
    made = build() if callable(build) else onnx.ModelProto()
    cleaned, _ = clean(made)
    assert operators(cleaned) == operators(made)
    same_answers(made, cleaned)


def test_equal_weights_are_stored_once_and_biases_apart() -> None:
    net = Net()
    image = net.image()
    weight, bias = net.rng.normal(0, 0.4, (300, 3, 1, 1)), net.rng.normal(0, 0.4, 300)
    parts = [net.op("Conv", image, net.constant(weight), net.constant(bias)) for _ in range(2)]
    net.head(net.op("Sub", net.op("Relu", parts[0]), net.op("Sigmoid", parts[1])), 300)
    made, changes = applied(share_constants, net.model())
    assert changes == 1
    assert made.graph.node[0].input[1] == made.graph.node[1].input[1]
    assert made.graph.node[0].input[2] != made.graph.node[1].input[2]


def test_equal_weights_shrink_the_file() -> None:
    before = doubled_constants()
    made, _ = clean(before)
    assert len(made.graph.initializer) == len(before.graph.initializer) - 2
    same_answers(before, made)


def test_what_reaches_nothing_goes() -> None:
    net = Net()
    image = net.image()
    net.op("Exp", net.op("Neg", image))
    net.weight(7)
    net.head(net.conv(image, 3, 4), 4)
    made, changes = applied(drop_unused, net.model())
    assert changes == 3
    assert {"Exp", "Neg"}.isdisjoint(operators(made))


@pytest.mark.parametrize("name", KEPT)
def test_cleaning_the_zoo_keeps_every_answer_and_ends(name: str) -> None:
    before, _ = intake(KEPT[name].build())
    made, _ = clean(before)
    same_answers(before, made, n=1)
    assert clean(made)[1] == ()
    assert len(made.graph.node) <= len(before.graph.node)
