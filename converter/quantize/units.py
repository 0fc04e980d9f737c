"""Which nodes run in integers.

For: cutting a graph into units (a node, with the activation absorbed into it) and finding the ones worth
quantizing: those that carry the work ask for integers, others join where their neighbours make it pay.
Not for: scales (`converter.quantize.plan`), or what an operator is (`converter.quantize.operators`).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from msgspec import Struct

from converter.quantize.operators import Operator, Role
from converter.quantize.qparams import Floats
from converter.quantize.view import View, attribute
from wire.figures import Interval

_PERMUTES = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "SpaceToDepth", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
"""Every value of the input is in the output: quantizing before is as good as behind, and moves less."""


class Unit(Struct, frozen=True, kw_only=True):
    """One node as the quantizer sees it.

    Attributes:
        node: its name.
        op_type: of the node.
        operator: its row of the table.
        inputs: activations that it reads.
        outputs: tensors that it gives, behind the absorbed activation.
        absorbed: name of a Relu or Clip that the output's range replaces.
    """

    node: str
    op_type: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    absorbed: str | None = None


def unit_of(view: View, node: onnx.NodeProto, bounded: frozenset[str], *, fused: bool = False) -> Unit:
    """The unit of a listed operator.

    Args:
        view: the graph.
        node: of an operator in the table.
        bounded: tensors whose stored range itself says what bounds them.
        fused: the target runs Relu and Clip within the operator before them.
    """
    outputs, absorbed = tuple(name for name in node.output if name), None
    operator = view.operators[node.op_type]
    absorbs = operator.role in {Role.WEIGHTED, Role.COMPUTE} and operator.fixed is None
    if absorbs and len(outputs) == 1:
        reader = view.sole_reader(outputs[0])
        if reader is not None and is_absorbed(view, reader):
            if reader.output[0] in bounded:
                outputs, absorbed = (reader.output[0],), reader.name
            elif fused:
                outputs = (reader.output[0],)
    return Unit(
        node=node.name, op_type=node.op_type, operator=operator, inputs=tuple(view.activations(node)),
        outputs=outputs, absorbed=absorbed,
    )  # fmt: skip


def is_absorbed(view: View, node: onnx.NodeProto) -> bool:
    """Whether the node is a Relu or Clip, which what stands before it may absorb."""
    operator = view.operators.get(node.op_type)
    return operator is not None and operator.role is Role.ABSORBED


def bounds_of(view: View, node: onnx.NodeProto) -> tuple[float, float] | None:
    """What a Relu or Clip lets through; None where its bounds are computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [attribute(node, "min", -float("inf")), attribute(node, "max", float("inf"))]
    for place, name in enumerate(list(node.input)[1:3]):
        if name:
            value = view.constant(name)
            if value is None or value.size != 1:
                return None
            bounds[place] = float(value.flat[0])
    return bounds[0], bounds[1]


def why_not(view: View, unit: Unit, ranges: Mapping[str, Interval]) -> str | None:
    """Why a listed operator cannot be quantized here at all, or None."""
    node = view.by_name[unit.node]
    if view.opset < unit.operator.opset_min:
        return f"its integer form needs opset {unit.operator.opset_min}"
    if not unit.inputs:
        return "it reads no float activation"
    for name in view.data_inputs(node):
        if name not in unit.inputs and view.constant(name) is None and not _is_parameter(unit, node, name):
            return f"its input {name} is not float32"
    unknown = next((n for n in (*unit.inputs, *unit.outputs) if n not in ranges), None)
    return _why_not_operator(view, node) if unknown is None else f"no range is known of {unknown}"


def _why_not_operator(view: View, node: onnx.NodeProto) -> str | None:
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        return _why_not_weighted(view, node)
    modes = view.operators[node.op_type].modes
    if modes is not None and mode_of(node) not in modes:
        return f"{node.op_type} by {mode_of(node)} has no integer kernel"
    return None


def _is_parameter(unit: Unit, node: onnx.NodeProto, name: str) -> bool:
    """Weight and bias are looked at by themselves."""
    return name in [node.input[i] for i in (unit.operator.weight, unit.operator.bias) if i is not None
                    and i < len(node.input)]  # fmt: skip


def mode_of(node: onnx.NodeProto) -> str:
    """Attribute `mode`, or the operator's default."""
    default = "nearest" if node.op_type == "Resize" else "constant"
    return next((a.s.decode() for a in node.attribute if a.name == "mode"), default)


def _why_not_weighted(view: View, node: onnx.NodeProto) -> str | None:
    """These need constant parameters; a MatMul may multiply two activations."""
    weight = view.constant(node.input[1])
    if weight is None:
        return f"its weight {node.input[1]} is not a float32 constant"
    bias_name = node.input[2] if len(node.input) > 2 else ""
    bias = view.constant(bias_name)
    if bias_name and bias is None:
        return f"its bias {bias_name} is not a float32 constant"
    return _why_not_gemm(node, weight.shape, bias) if node.op_type == "Gemm" else None


def _why_not_gemm(node: onnx.NodeProto, weight: tuple[int, ...], bias: Floats | None) -> str | None:
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "its alpha or beta is not 1"
    channels = weight[0] if attribute(node, "transB", 0) else weight[1]
    if bias is not None and bias.size not in {1, channels}:
        return f"its bias of shape {list(bias.shape)} is not one number per output channel"
    return None


def integer_units(view: View, able: Mapping[str, Unit], *, whole: bool) -> dict[str, Unit]:
    """The units that run in integers, by node.

    Args:
        view: the graph.
        able: units that could.
        whole: take all of them (accelerators that run quantized graphs only).

    Those that carry the work come first. Then, until nothing changes: data movement joins where its input
    is in integers already, or its output is wanted so; a computation joins where all its inputs are there
    and one really comes from integers, or where its output and one input are.
    """
    if whole:
        return dict(able)
    chosen = {name: unit for name, unit in able.items() if unit.operator.asks}
    quantized = {t for unit in chosen.values() for t in _wanted(unit)}
    made = {t for unit in chosen.values() for t in unit.outputs}
    waiting = {name: unit for name, unit in able.items() if name not in chosen}
    grown = True
    while grown:
        grown = False
        for name, unit in list(waiting.items()):
            if _joins(unit, quantized, made & quantized):
                chosen[name] = waiting.pop(name)
                quantized |= {*unit.inputs, *unit.outputs}
                made |= set(unit.outputs)
                grown = True
    return {node.name: chosen[node.name] for node in view.nodes if node.name in chosen}


def _wanted(unit: Unit) -> tuple[str, ...]:
    return (*unit.inputs, *unit.outputs) if unit.operator.gives else unit.inputs


def _joins(unit: Unit, quantized: set[str], integers: set[str]) -> bool:
    wanted = any(name in quantized for name in unit.outputs)
    if unit.operator.role is Role.SAME_SCALE:
        return unit.inputs[0] in integers or (wanted and unit.op_type in _PERMUTES)
    there = [name in quantized for name in unit.inputs]
    from_integers = any(name in integers for name in unit.inputs)
    return (all(there) and from_integers) or (wanted and any(there))
