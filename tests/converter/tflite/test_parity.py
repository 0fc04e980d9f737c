"""The proof of parity: what it finds equal, what it finds different, and what it may cost."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.dataset import Feeds
from converter.quantize import quantize
from converter.recipe import parse
from converter.tflite import Options, write
from converter.tflite.parity import Limits, exact_config, prove
from converter.tflite.proof import NodeProof, Proof, allowed, kinds_of, verdict_of
from converter.tflite.same_scales import compare_scales
from converter.tflite.whole import steps, summed
from tests.converter.quantizing import floats, graph, inputs, material
from tests.converter.tflite.harness import quantized
from wire.bundle import Parity

_RECIPES = ["static_wi8_ai8_pc_minmax_twin", "static_wi8_au8_pc_minmax_twin"]


def _twin(made: onnx.ModelProto, recipe: str = _RECIPES[0]) -> onnx.ModelProto:
    return quantize(material(made), parse(recipe)).model


def _images(made: onnx.ModelProto, n: int = 4) -> list[Feeds]:
    return [{"x": one[None]} for one in inputs(made, n)]


def _residual() -> onnx.ModelProto:
    """Conv, Relu, depthwise, a sum, a pool, a table and a matrix."""
    return graph(
        [
            ("Conv", "x w1 b1", "c1", {"pads": [1, 1, 1, 1]}), ("Relu", "c1", "r1"),
            ("Conv", "r1 w2 b2", "c2", {"pads": [1, 1, 1, 1], "group": 8}), ("Add", "r1 c2", "a"),
            ("AveragePool", "a", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Sigmoid", "p", "s"),
            ("Mul", "p s", "m"), ("Transpose", "m", "t", {"perm": [0, 2, 3, 1]}), ("Flatten", "t", "f"),
            ("Gemm", "f w3 b3", "y", {"transB": 1}),
        ],
        {"w1": floats(1, 8, 3, 3, 3), "b1": floats(2, 8), "w2": floats(3, 8, 1, 3, 3), "b2": floats(4, 8),
         "w3": floats(5, 4, 128), "b3": floats(6, 4)},
        outputs={"y": ["N", 4]},
    )  # fmt: skip


def _plain() -> onnx.ModelProto:
    """A convolution and a matrix: nothing rounds differently."""
    return graph(
        [("Conv", "x w b", "c", {"pads": [1, 1, 1, 1]}), ("Relu", "c", "r"), ("Flatten", "r", "f"),
         ("Gemm", "f w2 b2", "y")],
        {"w": floats(1, 4, 3, 3, 3), "b": floats(2, 4), "w2": floats(3, 256, 5), "b2": floats(4, 5)},
        outputs={"y": ["N", 5]},
    )  # fmt: skip


def _stored_sum(
    kind: str, scales: tuple[float, float, float], zeros: tuple[int, int, int]
) -> onnx.ModelProto:
    """Y = a + b over every pair of stored integers, `[1, 256, 256]`; the inputs are floats."""
    constants, nodes = [], []
    for name, scale, zero in zip("aby", scales, zeros, strict=True):
        constants.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        constants.append(numpy_helper.from_array(np.array(zero, np.int8), f"{name}_zero"))
    pairs = {name: [f"{name}_scale", f"{name}_zero"] for name in "aby"}
    for name in "ab":
        nodes.append(helper.make_node("QuantizeLinear", [name, *pairs[name]], [f"{name}_stored"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_stored", *pairs[name]], [f"{name}_real"]))
    nodes.append(helper.make_node(kind, ["a_real", "b_real"], ["exact"], name="sum"))
    nodes.append(helper.make_node("QuantizeLinear", ["exact", *pairs["y"]], ["y_stored"]))
    nodes.append(helper.make_node("DequantizeLinear", ["y_stored", *pairs["y"]], ["y"]))
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 256, 256]) for n in "aby"]
    made = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _all_pairs(scales: tuple[float, float, float], zeros: tuple[int, int, int]) -> Feeds:
    a, b = np.meshgrid(np.arange(-128, 128), np.arange(-128, 128))
    return {
        name: ((stored - zero) * np.float32(scale)).astype(np.float32)[None]
        for name, stored, scale, zero in zip("ab", (a, b), scales, zeros, strict=False)
    }


def _kinds(proof: Proof) -> dict[str, tuple[int, int]]:
    return {kind.op_type: (kind.nodes, kind.worst_steps) for kind in proof.kinds}


@pytest.mark.parametrize("recipe", _RECIPES)
def test_the_whole_of_a_small_network(recipe: str) -> None:
    made = _residual()
    proof = prove(_twin(made, recipe), _images(made))
    found = _kinds(proof)
    assert {"Add", "Conv", "Gemm", "Mul", "Sigmoid", "QuantizeLinear"} <= set(found)
    assert proof.beyond == ()
    assert all(worst == 0 for kind, (_, worst) in found.items() if kind != "AveragePool")
    assert proof.is_twin
    assert proof.scales.tensors == proof.scales.equal > 12
    assert proof.operators == proof.count("equal") + proof.count("one_step") == len(proof.nodes)
    assert proof.samples == proof.end.samples == 4
    assert proof.end.argmax_agreement == 1.0
    assert proof.notes == ()
    assert msgspec.json.decode(msgspec.json.encode(proof), type=Proof) == proof


def test_convolutions_and_matrices_are_equal() -> None:
    made = _plain()
    proof = prove(_twin(made), _images(made))
    assert {node.verdict for node in proof.nodes} == {"equal"}
    assert proof.end.tensors_equal == proof.end.tensors
    assert (proof.end.outputs_equal, proof.end.worst_steps, proof.end.first_divergence) == (1.0, 0, None)


def _bad_sum() -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """Scales with which the two runtimes round some sum to different sides; the first of a seeded row."""
    random = np.random.default_rng(0)
    for _ in range(40):
        first, second = (float(x) for x in random.uniform(0.01, 0.05, 2))
        scales = (first, second, max(first, second) * float(random.uniform(1, 1.8)))
        a, b, c = (int(x) for x in random.integers(-128, 128, 3))
        proof = prove(_stored_sum("Add", scales, (a, b, c)), [_all_pairs(scales, (a, b, c))])
        if proof.beyond:
            return scales, (a, b, c)
    raise AssertionError("no such scales")


def test_what_is_rounded_twice_says_so() -> None:
    made = _residual()
    proof = prove(quantized(made), _images(made))
    (sigmoid,) = (node for node in proof.nodes if node.op_type == "Sigmoid")
    assert sigmoid.written_as == ("LOGISTIC", "QUANTIZE")
    assert sigmoid.verdict == "one_step"
    assert "QUANTIZE follows" in sigmoid.reason
    assert sigmoid in proof.beyond


def test_an_operator_that_is_not_equal_is_named_with_its_reason() -> None:
    scales, zeros = _bad_sum()
    proof = prove(_stored_sum("Add", scales, zeros), [_all_pairs(scales, zeros)])
    (node,) = proof.beyond
    assert (node.node, node.op_type, node.verdict, node.worst_steps) == ("sum", "Add", "one_step", 1)
    assert 0 < node.elements - node.equal < 10
    assert "integer multipliers" in node.reason
    assert [kind.kept for kind in proof.kinds if kind.op_type == "Add"] == [False]
    first = proof.end.first_divergence
    assert first is not None
    assert (first.tensor, first.node, first.worst_steps, first.sample) == ("y_stored", "sum", 1, 0)
    assert proof.end.worst_steps == 1
    assert proof.summary() == Parity(
        operators=3, equal=2, one_step=1, worse=0, outputs_equal=first.equal, first_divergence="y_stored"
    )
    assert proof.end.outputs_equal == first.equal == node.equal / node.elements < 1


@pytest.mark.parametrize("kind", ["Mul", "Sub"])
def test_every_pair_of_stored_numbers(kind: str) -> None:
    scales, zeros = (0.02, 0.03, 0.025), (1, -2, 3)
    proof = prove(_stored_sum(kind, scales, zeros), [_all_pairs(scales, zeros)])
    found = _kinds(proof)
    assert found[kind] == (1, 0)
    assert found["QuantizeLinear"][1] == 0


def test_what_costs_too_much_is_left_unmeasured_and_said() -> None:
    made = _residual()
    ticks = iter(range(1000))
    proof = prove(
        _twin(made),
        _images(made),
        limits=Limits(samples=3, seconds=0.5),
        clock=lambda: float(next(ticks)),
    )
    assert proof.samples == proof.end.samples == 1
    assert proof.operators == 1
    assert {node.reason for node in proof.nodes[1:]} == {"time ran out"}
    assert [note.split(" were")[0] for note in proof.notes] == ["single operators", "whole runs"]
    assert proof.beyond == ()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    made = _plain()
    prove(_twin(made), _images(made, 2), progress=lambda *args: told.append(args))
    assert [x for x in told if x[0] == "whole runs"] == [("whole runs", i, 2) for i in range(3)]
    assert told[0][0] == "operators"
    assert all(done <= total for _, done, total in told)


@pytest.mark.parametrize("options", [Options(edge="int8"), Options(batch=2)])
def test_a_proof_needs_float_edges_of_single_samples(options: Options) -> None:
    with pytest.raises(ValueError, match="float edges"):
        prove(_twin(_plain()), _images(_plain()), options)


def test_a_proof_needs_samples() -> None:
    with pytest.raises(ValueError, match="there are none"):
        prove(_twin(_plain()), [])


def test_the_runtime_computes_as_a_device_does() -> None:
    signed, unsigned = (_twin(_plain(), recipe) for recipe in _RECIPES)
    assert exact_config(signed) == {"session.qdqisint8allowed": "1"}
    assert exact_config(unsigned) == {"session.x64quantprecision": "1"}


def _changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def test_a_scale_that_differs_in_its_last_bit_is_an_exception() -> None:
    made = _twin(_residual())
    written = write(made)
    values = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    scale = float(values["c2_scale"])
    other = float(np.nextafter(np.float32(scale), np.float32(1)))
    content = _changed(written.content, struct.pack("<f", scale), struct.pack("<f", other))
    found = compare_scales(made, msgspec.structs.replace(written, content=content))
    assert [line.split(" ")[0] for line in found.exceptions] == ["c2_quantized"]
    assert found.equal == found.tensors - 1
    assert compare_scales(made, written).exceptions == ()


def test_a_zero_point_that_differs_is_an_exception() -> None:
    made = _twin(_residual(), _RECIPES[1])
    written = write(made)
    values = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for tensor in made.graph.initializer:
        if tensor.name == "x_zero_point":
            tensor.CopyFrom(
                numpy_helper.from_array(np.array(int(values["x_zero_point"]) - 1, np.uint8), tensor.name)
            )
    (line,) = compare_scales(made, written).exceptions
    assert line.startswith("x_quantized has zero point")


def _node(op_type: str, equal: int, worst: int) -> NodeProof:
    verdict = verdict_of(10, equal, worst)
    return NodeProof(
        node=op_type,
        op_type=op_type,
        tensor="t",
        elements=10,
        equal=equal,
        worst_steps=worst,
        verdict=verdict,
    )


@pytest.mark.parametrize(
    ("op_type", "equal", "worst", "is_allowed"),
    [("Conv", 10, 0, True), ("Conv", 9, 1, False), ("Resize", 9, 1, True), ("Resize", 9, 2, False)],
)
def test_what_a_type_is_allowed(op_type: str, equal: int, worst: int, *, is_allowed: bool) -> None:
    node = _node(op_type, equal, worst)
    assert allowed(node) is is_allowed
    (kind,) = kinds_of([node, NodeProof(node="n", op_type=op_type, tensor="t")])
    assert (kind.kept, kind.nodes, kind.share) == (is_allowed, 1, equal / 10)


def test_a_product_of_two_computed_matrices_may_be_a_step_off() -> None:
    node = _node("MatMul", 9, 1)
    assert not allowed(msgspec.structs.replace(node, written_as=("FULLY_CONNECTED",)))
    assert allowed(msgspec.structs.replace(node, written_as=("TRANSPOSE", "BATCH_MATMUL")))


def test_sums_by_type() -> None:
    first, second = kinds_of([_node("Resize", 7, 2), _node("Add", 10, 0), _node("Resize", 9, 1)])
    assert (first.op_type, first.equal) == ("Add", 10)
    assert (second.op_type, second.nodes, second.worst_steps) == ("Resize", 2, 2)
    assert (second.elements, second.equal) == (20, 16)


def test_distances_of_bytes_do_not_wrap() -> None:
    far = steps(np.array([127, -128], np.int8), np.array([-128, -128], np.int8))
    assert summed([far, far[1:]]) == (3, 2, 255)
    with pytest.raises(ValueError, match="beside"):
        steps(far, far[1:])
