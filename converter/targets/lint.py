"""Does a model keep a target's rules?

For: `lint()`, every rule that an ONNX model breaks, by node, with where the rule comes from. It reads the
graph and runs nothing, so it serves targets whose compiler cannot be had here.
Not for: proving that a compiler takes the model; only the compiler can. What falls to the CPU is counted in
`converter.targets.fallback`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, Literal

import onnx
from msgspec import Struct
from onnx import numpy_helper

from converter.errors import InputError
from converter.targets.graph import NO_WORK, QDQ, GraphView, graphs_of, integers, options, shapes_of
from converter.targets.loader import Rule, Rules, Target, activations_of, weights_of

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_POOLS = frozenset({"AveragePool", "MaxPool"})
_FOUR_AXES = 4
_NAMED_MAX = 3

Severity = Literal["error", "warning"]


class LintFinding(Struct, frozen=True, kw_only=True):
    """One rule that a model breaks.

    Attributes:
        code: of the rule.
        severity: an error is known to be refused or wrong there; a warning costs speed or is not certain.
        node: that breaks it, or the tensor; empty where it is the model.
        words: what is wrong.
        source: where the rule comes from.
        confidence: how well it is known.
    """

    code: str
    severity: Severity
    node: str
    words: str
    source: str
    confidence: str


def lint(target: Target, model: onnx.ModelProto) -> tuple[LintFinding, ...]:
    """Every rule of the target that the model breaks, the model's own first, then in the graph's order.

    Bodies of If, Loop and Scan are looked into; shapes are those of the main graph.
    """
    rules = target.rules
    found = [*_opset(rules, model), *open_shapes(rules, model), *_inputs(rules, model)]
    if any(one.value is not None for one in (rules.rank_max, rules.inner_axes_max, rules.size_max)):
        main = GraphView(model.graph)
        for name, shape in shapes_of(model).items():
            if main.stored(name) is None:  # weights behind their pairs are no activations
                found += _tensor(rules, name, shape)
    for graph in graphs_of(model.graph):
        view = GraphView(graph)
        for node in graph.node:
            found += _pair(rules, view, node) if node.op_type in QDQ else _operator(rules, view, node)
    return tuple(found)


def require_shapes(target: Target, model: onnx.ModelProto) -> None:
    """Refuses open shapes where the target's compiler takes none.

    Raises:
        InputError: `target_static_shapes`; the message says which axes and how to fix them.
    """
    found = tuple(open_shapes(target.rules, model))
    if found:
        words = "; ".join(one.words for one in found[:_NAMED_MAX])
        raise InputError(
            "target_static_shapes",
            f"{target.id}: {words} ({found[0].source}). Export with batch 1, or fix a named axis with "
            "`python -m onnxruntime.tools.make_dynamic_shape_fixed --dim_param NAME --dim_value 1 IN OUT`",
        )


def _finding(code: str, rule: Rule[Any], node: str, words: str, severity: Severity = "error") -> LintFinding:
    return LintFinding(
        code=code, severity=severity, node=node, words=words, source=rule.source, confidence=rule.confidence
    )


def _opset(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    opset = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), 0)
    if opset < rules.opset_min.value:
        words = f"opset {opset}, at least {rules.opset_min.value} is needed"
        yield _finding("opset", rules.opset_min, "", words)
    if opset > rules.opset_max.value:
        words = f"opset {opset}, what reads it there is known to have {rules.opset_max.value}"
        yield _finding("opset", rules.opset_max, "", words, "warning")


def _given(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """Inputs that a caller gives."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return (value for value in model.graph.input if value.name not in constants)


def open_shapes(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    """Inputs with open axes where every shape must be fixed; a TFLite file's first axis is its writer's."""
    if not rules.static_shapes.value:
        return
    written = rules.format.value == "TFLite"
    for value in _given(model):
        dims = value.type.tensor_type.shape.dim
        open_axes = [i for i, dim in enumerate(dims) if not dim.HasField("dim_value") and (i or not written)]
        if open_axes:
            words = f"axes {open_axes} of input {value.name} are open, every shape must be fixed"
            yield _finding("static_shapes", rules.static_shapes, value.name, words)


def _inputs(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    most = rules.batch_max.value
    for value in _given(model):
        dims = value.type.tensor_type.shape.dim
        if most is not None and len(dims) >= _FOUR_AXES and dims[0].dim_value > most:
            words = f"input {value.name} takes {dims[0].dim_value} samples at once, at most {most} are taken"
            yield _finding("batch", rules.batch_max, value.name, words)


def _tensor(rules: Rules, name: str, shape: tuple[int | None, ...]) -> Iterator[LintFinding]:
    most, inner, size = rules.rank_max.value, rules.inner_axes_max.value, rules.size_max.value
    if most is not None and len(shape) > most:
        yield _finding("rank", rules.rank_max, name, f"tensor {name} has {len(shape)} axes, at most {most}")
    if inner is not None and any(
        axis is not None and axis > 1 for axis in shape[: max(len(shape) - inner, 0)]
    ):
        words = f"tensor {name} is {list(shape)}, only its {inner} innermost axes may be larger than 1"
        yield _finding("inner_axes", rules.inner_axes_max, name, words)
    if size is not None and any(axis is not None and axis > size for axis in shape):
        yield _finding("size", rules.size_max, name, f"tensor {name} is {list(shape)}, axes go up to {size}")


def _pair(rules: Rules, view: GraphView, node: onnx.NodeProto) -> Iterator[LintFinding]:
    """Rules of one QuantizeLinear or DequantizeLinear."""
    if len(node.input) < 2:
        return
    name = node.name or node.output[0]
    stored, kind = view.stored(node.input[0]), view.integer(node)
    if kind == "i32":
        if not rules.quantize_bias.value:
            words = f"bias {node.input[0]} is quantized, it must stay in float"
            yield _finding("quantized_bias", rules.quantize_bias, name, words)
        return
    yield from _types(rules, view, node, stored, kind)
    zero = view.constants.get(node.input[2]) if len(node.input) > 2 else None
    if rules.symmetric.value and zero is not None and kind is not None:
        middle = 0 if kind[0] == "i" else 1 << (int(kind[1:]) - 1)
        if (numpy_helper.to_array(zero).astype("int64") != middle).any():
            yield _finding("zero_point", rules.symmetric, name, f"the zero point is not {middle}")
    scale = view.constants.get(node.input[1])
    if scale is not None and prod(scale.dims) > 1:
        yield from _channels(rules, view, node, stored)


def _types(
    rules: Rules, view: GraphView, node: onnx.NodeProto, stored: onnx.TensorProto | None, kind: str | None
) -> Iterator[LintFinding]:
    name = node.name or node.output[0]
    if stored is None:
        if kind not in activations_of(rules):
            words = f"activations of type {kind or 'unknown'}, {rules.activation.value} is wanted"
            yield _finding("activation_type", rules.activation, name, words)
        return
    if kind in {"i4", "u4"}:
        if not rules.int4.value:
            yield _finding("int4", rules.int4, name, f"weights {stored.name} of 4 bits are not read there")
    elif kind not in weights_of(rules):
        words = f"weights of type {kind or 'unknown'}, {rules.weight.value} is wanted"
        yield _finding("weight_type", rules.weight, name, words)
    if rules.weight_pairs.value and node.op_type == "DequantizeLinear" and node.input[0] in view.constants:
        words = f"weights {stored.name} are stored as integers, a whole Q/DQ pair on float ones is wanted"
        yield _finding("weight_pair", rules.weight_pairs, name, words, "warning")


def _channels(
    rules: Rules, view: GraphView, node: onnx.NodeProto, stored: onnx.TensorProto | None
) -> Iterator[LintFinding]:
    name = node.name or node.output[0]
    if not rules.per_channel.value:
        yield _finding("per_channel", rules.per_channel, name, "a scale per channel", "warning")
    given = options(node)
    if stored is None or given.get("block_size"):
        return
    axis = given.get("axis", 1)
    place = axis % len(stored.dims) if isinstance(axis, int) and stored.dims else axis
    for reader in view.readers.get(node.output[0], []):
        wanted = _channel_axis(reader, len(stored.dims))
        if wanted is not None and reader.input[1] == node.output[0] and place != wanted:
            words = f"scales lie on axis {place} of the weight of {reader.op_type}, they belong on {wanted}"
            yield _finding("channel_axis", rules.per_channel, name, words)


def _channel_axis(reader: onnx.NodeProto, rank: int) -> int | None:
    """Axis of the output channels in a weight; None where the operator is another."""
    if reader.op_type == "Gemm":
        return 0 if options(reader).get("transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(reader.op_type)


def _operator(rules: Rules, view: GraphView, node: onnx.NodeProto) -> Iterator[LintFinding]:
    name = node.name or (node.output[0] if node.output else node.op_type)
    if node.op_type in rules.exclude.value and any(view.dequantized(one) for one in node.input):
        words = f"{node.op_type} reads quantized values, it must stay in float"
        yield _finding("excluded_operator", rules.exclude, name, words)
    if rules.operators.value and node.op_type not in {*rules.operators.value, *NO_WORK}:
        words = f"{node.op_type} is not on the accelerator's list and falls to the CPU"
        yield _finding("fallback", rules.operators, name, words, "warning")
    yield from beyond_limits(rules, view, node)


def beyond_limits(rules: Rules, view: GraphView, node: onnx.NodeProto) -> Iterator[LintFinding]:
    """Sizes of one convolution or pool that the accelerator does not take."""
    name, given = node.name or (node.output[0] if node.output else node.op_type), options(node)
    if node.op_type not in _CONVOLUTIONS | _POOLS:
        return
    yield from _within(rules.stride, "stride", name, integers(given.get("strides"), [1]))
    weight = view.stored(node.input[1]) if node.op_type in _CONVOLUTIONS else None
    sizes = integers(given.get("kernel_shape"), list(weight.dims[2:]) if weight is not None else [])
    if node.op_type == "AveragePool" and any(integers(given.get("pads"), [])):
        yield from _below(rules.average_pool_max, "pool_kernel", name, max(sizes, default=0))
    elif node.op_type == "MaxPool":
        yield from _below(rules.max_pool_height_max, "pool_kernel", name, sizes[0] if sizes else 0)
    elif node.op_type in _CONVOLUTIONS:
        dilations = integers(given.get("dilations"), [1] * len(sizes))
        reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=False)]
        yield from _within(rules.kernel, "kernel", name, reach[:1])
        yield from _below(rules.kernel_area_max, "kernel_area", name, prod(reach))


def _within(rule: Rule[tuple[int, ...]], code: str, name: str, values: list[int]) -> Iterator[LintFinding]:
    if rule.value and any(not rule.value[0] <= value <= rule.value[1] for value in values):
        words = f"{code} {values} lies outside {rule.value[0]} to {rule.value[1]}"
        yield _finding(code, rule, name, words)


def _below(rule: Rule[int | None], code: str, name: str, value: int) -> Iterator[LintFinding]:
    if rule.value is not None and value > rule.value:
        yield _finding(code, rule, name, f"{code} {value} is above {rule.value}")
