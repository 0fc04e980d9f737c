"""Does a model keep a target's rules?

For: `lint()`, every rule that an ONNX model breaks, by node, with where the rule comes from; and
`fallback()`, what the accelerator is expected to leave to the CPU. Both read the graph and run nothing, so
they serve targets whose compiler cannot be had here.
Not for: proving that a compiler takes the model; only the compiler can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import onnx
from msgspec import Struct
from onnx import helper, numpy_helper

from converter.targets.loader import Rule, Rules, Target

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TYPES = {
    onnx.TensorProto.UINT8: "u8", onnx.TensorProto.INT8: "i8",
    onnx.TensorProto.UINT16: "u16", onnx.TensorProto.INT16: "i16",
}  # fmt: skip
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


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
    severity: Literal["error", "warning"]
    node: str
    words: str
    source: str
    confidence: str


class Fallback(Struct, frozen=True, kw_only=True):
    """What is expected to run where.

    Attributes:
        accelerated: nodes on the accelerator.
        on_cpu: nodes left to the CPU, by operator.
    """

    accelerated: int
    on_cpu: dict[str, int]

    @property
    def any(self) -> bool:
        """Whether something is left to the CPU."""
        return bool(self.on_cpu)


def lint(target: Target, model: onnx.ModelProto) -> tuple[LintFinding, ...]:
    """Every rule of the target that the model breaks, the model's own first, then in the graph's order."""
    graph = _Graph(model)
    rules = target.rules
    found = [*_opset(rules, model), *_shapes(rules, model), *_ranks(rules, model)]
    for node in model.graph.node:
        found += _pair(rules, graph, node) if node.op_type in _QDQ else _operator(rules, graph, node)
    return tuple(found)


def fallback(target: Target, model: onnx.ModelProto) -> Fallback | None:
    """Predicted from the target's list of operators; None where none is known (or all run on a CPU)."""
    known = set(target.rules.operators.value)
    if not known:
        return None
    nodes = [node for node in model.graph.node if node.op_type not in _QDQ]
    left = Counter(node.op_type for node in nodes if node.op_type not in known)
    return Fallback(accelerated=len(nodes) - sum(left.values()), on_cpu=dict(sorted(left.items())))


class _Graph:
    """Constants and makers of the main graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def dequantized(self, name: str) -> bool:
        """Whether a tensor comes out of a DequantizeLinear."""
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear"


def _finding(
    code: str, rule: Rule[Any], node: str, words: str, severity: Literal["error", "warning"] = "error"
) -> LintFinding:
    return LintFinding(
        code=code, severity=severity, node=node, words=words, source=rule.source, confidence=rule.confidence
    )


def _opset(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    opset = next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), 0)
    if opset < rules.opset_min.value:
        words = f"opset {opset}, at least {rules.opset_min.value} is needed"
        yield _finding("opset", rules.opset_min, "", words)
    if opset > rules.opset_max.value:
        words = f"opset {opset}, runtimes there are known to have {rules.opset_max.value}"
        yield _finding("opset", rules.opset_max, "", words, "warning")


def _shapes(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    if not rules.static_shapes.value:
        return
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        open_axes = [i for i, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if open_axes:
            words = (
                f"axes {open_axes} of input {value.name} are open, shapes must be fixed (export with batch 1)"
            )
            yield _finding("static_shapes", rules.static_shapes, value.name, words)


def _ranks(rules: Rules, model: onnx.ModelProto) -> Iterator[LintFinding]:
    most = rules.rank_max.value
    if most is None:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        rank = len(value.type.tensor_type.shape.dim)
        if rank > most:
            words = f"tensor {value.name} has {rank} axes, at most {most} are taken"
            yield _finding("rank", rules.rank_max, value.name, words)


def _pair(rules: Rules, graph: _Graph, node: onnx.NodeProto) -> Iterator[LintFinding]:
    """Rules of one QuantizeLinear or DequantizeLinear."""
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    scale = graph.constants.get(node.input[1])
    stored = graph.constants.get(node.input[0])
    name = node.name or node.output[0]
    if stored is not None and stored.data_type == onnx.TensorProto.INT32:
        if not rules.quantize_bias.value:
            words = f"bias {stored.name} is quantized, it must stay in float"
            yield _finding("quantized_bias", rules.quantize_bias, name, words)
        return
    kind = _TYPES.get(zero.data_type if zero is not None else onnx.TensorProto.UINT8)
    if stored is not None:
        if kind != rules.weight.value:
            words = f"weights of type {kind}, {rules.weight.value} is wanted"
            yield _finding("weight_type", rules.weight, name, words)
    elif kind not in {rules.activation.value, *rules.wide_activation.value}:
        words = f"activations of type {kind}, {rules.activation.value} is wanted"
        yield _finding("activation_type", rules.activation, name, words)
    if rules.symmetric.value and zero is not None and numpy_helper.to_array(zero).any():
        yield _finding("zero_point", rules.symmetric, name, "the zero point is not 0")
    if scale is not None and scale.dims and scale.dims[0] > 1:
        yield from _channels(rules, graph, node, name)


def _channels(rules: Rules, graph: _Graph, node: onnx.NodeProto, name: str) -> Iterator[LintFinding]:
    if not rules.per_channel.value:
        yield _finding("per_channel", rules.per_channel, name, "a scale per channel", "warning")
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    for reader in graph.readers.get(node.output[0], []):
        wanted = _CHANNEL_AXIS.get(reader.op_type)
        if wanted is not None and axis != wanted:
            words = f"scales lie on axis {axis} of the weight of {reader.op_type}, they belong on {wanted}"
            yield _finding("channel_axis", rules.per_channel, name, words)


def _operator(rules: Rules, graph: _Graph, node: onnx.NodeProto) -> Iterator[LintFinding]:
    name = node.name or node.output[0]
    if node.op_type in rules.exclude.value and any(graph.dequantized(i) for i in node.input):
        words = f"{node.op_type} reads quantized values, it must stay in float"
        yield _finding("excluded_operator", rules.exclude, name, words)
    if rules.operators.value and node.op_type not in rules.operators.value:
        words = f"{node.op_type} is not on the accelerator's list and falls to the CPU"
        yield _finding("fallback", rules.operators, name, words, "warning")
    if node.op_type not in {"Conv", "ConvTranspose"}:
        return
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    yield from _within(rules.stride, "stride", name, options.get("strides", [1]))
    weight = graph.constants.get(node.input[1])
    sizes = options.get("kernel_shape", list(weight.dims[2:]) if weight is not None else [])
    dilations = options.get("dilations", [1] * len(sizes))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    yield from _within(rules.kernel, "kernel", name, reach[:1])


def _within(rule: Rule[tuple[int, ...]], code: str, name: str, values: list[int]) -> Iterator[LintFinding]:
    if rule.value and any(not rule.value[0] <= value <= rule.value[1] for value in values):
        words = f"{code} {values} lies outside {rule.value[0]} to {rule.value[1]}"
        yield _finding(code, rule, name, words)
