"""What is quantized, and how: a plan that is plain data.

For: from graph, recipe, ranges and a target's rules to one `Plan`, which `converter.quantize.emit` turns
into a graph and `converter.repair` simulates and changes.
Not for: building graphs, or choosing ranges (`converter.calibrate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from msgspec import Struct, field

from converter.errors import RecipeError
from converter.quantize.material import Material
from converter.quantize.operators import Placement, Role
from converter.quantize.placement import placement_of
from converter.quantize.qparams import (
    DTYPES,
    Floats,
    QParams,
    bias_scale_needed,
    of_range,
    of_weight,
    redundant,
    weight_params,
)
from converter.quantize.traps import mask_adds, mixed_heads
from converter.quantize.twin_refusals import require_twin, why_not_twin
from converter.quantize.twin_rules import TWIN_OPERATORS
from converter.quantize.twin_scales import twin_scales
from converter.quantize.units import Unit, bounds_of, integer_units, is_absorbed, unit_of, why_not
from converter.quantize.view import View, attribute
from converter.recipe import Recipe
from wire.figures import Interval

_OPSET_QDQ, _OPSET_PER_CHANNEL = 10, 13
_MULTIPLIES = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Weight(Struct, frozen=True, kw_only=True):
    """One node's weight.

    Attributes:
        initializer: its name in the FP32 graph.
        params: of its own shape; the axis is that of the output channels.
    """

    initializer: str
    params: QParams


class Bias(Struct, frozen=True, kw_only=True, eq=False):
    """One node's bias, stored as int32 with zero point 0.

    Attributes:
        initializer: its name in the FP32 graph.
        scale: scale_in * scale_weight, `[]` or `[C]`.
        channels: C; a bias of one number is spread over them.
    """

    initializer: str
    scale: Floats
    channels: int


class Plan(Struct, frozen=True, kw_only=True, eq=False):
    """What is quantized; what is not named stays in float.

    A tensor of `activations` is quantized for every node of `integer` that reads it. A node in float reads
    the quantized tensor too, except where the tensor's maker is in float (or it is a graph input): then it
    reads the exact one.

    Attributes:
        activations: by tensor name; per tensor, in the graph's order.
        constants: initializers that stand where an activation would (the offset of an Add), by name.
        weights: by node.
        biases: by node.
        integer: nodes that run in integers, with the Relu or Clip that each absorbed ("" for none). An
            absorbed one is not in the emitted graph.
        left_float: reason by node, for what computes and stays in float.
        decisions: what was decided, in words for people.
        edges: by node and tensor (or constant) that it reads: parameters that differ from the tensor's own,
            for which it gets a pair of its own (`converter.quantize.twin_scales`).
        groups: by tensor the one that speaks for all of its scale; empty but for a twin.
        twin: whether roles are those of `TWIN_OPERATORS`.
    """

    activations: Mapping[str, QParams]
    constants: Mapping[str, QParams]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Bias]
    integer: Mapping[str, str]
    left_float: Mapping[str, str]
    decisions: tuple[str, ...] = ()
    edges: Mapping[tuple[str, str], QParams] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    twin: bool = False


def view_of(model: onnx.ModelProto, recipe: Recipe) -> View:
    """The graph as the plans of a recipe read it: a twin's operators have roles of their own."""
    return View(model, TWIN_OPERATORS) if recipe.twin else View(model)


def make_plan(  # noqa: PLR0913 - every argument but the first three is a keyword
    material: Material,
    recipe: Recipe,
    ranges: Mapping[str, Interval],
    *,
    islands: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset(),
    reduced: Mapping[str, Sequence[int]] | None = None,
    placement: Placement | None = None,
    view: View | None = None,
) -> Plan:
    """The plan of a static recipe.

    Args:
        material: the cleaned FP32 graph and the target's rules; nothing of it is changed.
        recipe: types, granularity, `sym`, `rr` and `twin`.
        ranges: of activations by tensor name; a tensor without one stays in float.
        islands: tensors kept in float, with the node that makes each and all that read it (FACTS.md, trap
            5), and with the tensors that share its scale (`View.groups`).
        wide: tensors with 16-bit activations, and those that share their scale.
        reduced: output channels by node whose weights keep to 7 bits (without a scale per channel, all of
            the node's); None for what the recipe's `rr` says, all or none.
        placement: where integers are wanted; by default what the target's rules say.
        view: of the graph (`view_of`), where the caller makes many plans of it; inference of shapes is most
            of a plan's time on a large model.

    Raises:
        RecipeError: `recipe_type` (no such type here), `recipe_opset` (the graph's is too low), `no_twin` (no
            TFLite graph could hold these types).
        ValueError: a range or a weight is not finite.
    """
    view = view_of(material.model, recipe) if view is None else view
    if placement is None:
        placement = placement_of(material.rules, twin=recipe.twin)
    _require(view, recipe)
    groups = view.groups()
    closed = {name for name, head in groups.items() if head in {groups.get(i, i) for i in islands}}
    broad = {name for name, head in groups.items() if head in {groups.get(w, w) for w in wide}}
    units, reasons, said = _able(view, ranges, recipe, placement, frozenset(closed))
    chosen = integer_units(view, units, whole=placement.whole)
    reasons |= {name: "its neighbours are in float" for name in units if name not in chosen}
    scales = twin_scales(view, chosen, ranges, recipe) if recipe.twin else None
    if scales is None:
        activations = _activations(view, chosen, ranges, recipe, broad, whole=placement.whole)
    else:
        activations, said = dict(scales.activations), (*said, *scales.decisions)
    weights, biases = _parameters(view, chosen, activations, recipe, reduced)
    inner = {unit.absorbed for unit in chosen.values()}
    return Plan(
        activations=activations,
        constants=_constants(view, chosen, recipe, weights),
        weights=weights,
        biases=biases if placement.biases else {},
        integer={name: unit.absorbed or "" for name, unit in chosen.items()},
        left_float={name: why for name, why in reasons.items() if name not in inner},
        decisions=(*said, *_left_words(view, reasons)),
        edges={} if scales is None else scales.edges,
        groups={} if scales is None else scales.groups,
        twin=recipe.twin,
    )


def _require(view: View, recipe: Recipe) -> None:
    if recipe.twin:
        require_twin(recipe)
    for name, known in ((recipe.weight, {"i8", "u8"}), (recipe.activation, set(DTYPES))):
        if name not in known:
            raise RecipeError("recipe_type", f"type {name} cannot be emitted by this scheme")
    needed = _OPSET_PER_CHANNEL if recipe.per_channel else _OPSET_QDQ
    if view.opset < needed:
        how = "per channel" if recipe.per_channel else "QDQ"
        raise RecipeError("recipe_opset", f"{how} needs opset {needed}, the model has {view.opset}")


def _able(
    view: View,
    ranges: Mapping[str, Interval],
    recipe: Recipe,
    placement: Placement,
    closed: frozenset[str],
) -> tuple[dict[str, Unit], dict[str, str], tuple[str, ...]]:
    """Units that could run in integers, why the others cannot, and what is worth saying of it."""
    bounded = _bounded(view, ranges, recipe) - closed
    masks, heads = mask_adds(view, ranges), mixed_heads(view, ranges)
    units: dict[str, Unit] = {}
    reasons: dict[str, str] = dict(masks | heads)
    absorbed: set[str | None] = set()
    for node in view.nodes:
        if node.name in reasons or not any(name in view.floats for name in node.output):
            continue
        operator = view.operators.get(node.op_type)
        if operator is None or node.domain not in {"", "ai.onnx"}:
            reasons[node.name] = f"{node.op_type} has no quantized form here"
            continue
        touched = next((n for n in (*node.input, *node.output) if n in closed), None)
        unit = unit_of(view, node, bounded, fused=placement.fused_activations)
        # What could go into the operator before it is never quantized alone, not even where that is in float.
        absorbed.add(unit.absorbed)
        if touched is not None:
            reasons[node.name] = f"a float island: it makes or reads {touched}"
        elif node.name in absorbed or (operator.role is Role.ABSORBED and not operator.alone):
            reasons[node.name] = f"{node.op_type} is not absorbed by what stands before it"
        elif node.op_type not in placement.operators:
            reasons[node.name] = f"the target runs {node.op_type} in float"
        else:
            why = why_not(view, unit, ranges) or (why_not_twin(view, node) if recipe.twin else None)
            if why is None:
                units[node.name] = unit
            else:
                reasons[node.name] = why
    said = tuple(f"{name} stays in float: {why}" for name, why in (masks | heads).items())
    return units, reasons, said


def _bounded(view: View, ranges: Mapping[str, Interval], recipe: Recipe) -> frozenset[str]:
    """Outputs of Relu and Clip whose stored range lies within what these let through."""
    found = set()
    for node in view.nodes:
        if not is_absorbed(view, node) or node.output[0] not in ranges:
            continue
        if redundant(bounds_of(view, node), _params(ranges[node.output[0]], recipe.activation, recipe)):
            found.add(node.output[0])
    return frozenset(found)


def _params(span: Interval, dtype: str, recipe: Recipe) -> QParams:
    return of_range(span.low, span.high, dtype, symmetric=recipe.symmetric)


def _activations(
    view: View,
    chosen: Mapping[str, Unit],
    ranges: Mapping[str, Interval],
    recipe: Recipe,
    broad: set[str],
    *,
    whole: bool,
) -> dict[str, QParams]:
    """QParams of every tensor that an integer unit needs, in the graph's order."""
    wide_type = recipe.activation[0] + "16"
    needed = {name for unit in chosen.values() for name in unit.inputs}
    for unit in chosen.values():
        needed.update(unit.outputs if unit.operator.gives or whole else ())
    found: dict[str, QParams] = {}

    def add(name: str) -> None:
        if name in needed and name not in found:
            dtype = wide_type if name in broad else recipe.activation
            found[name] = _params(ranges[name], dtype, recipe)

    for value in view.model.graph.input:
        add(value.name)
    for node in view.nodes:
        moved = chosen.get(node.name)
        for name in node.output:
            if moved is not None and moved.operator.role is Role.SAME_SCALE and name in needed:
                found[name] = found[moved.inputs[0]]
            else:
                add(name)
    return found


def _constants(
    view: View, chosen: Mapping[str, Unit], recipe: Recipe, weights: Mapping[str, Weight]
) -> dict[str, QParams]:
    """Constant operands of computations, each with the range of its own values."""
    found = {}
    for node in view.nodes:
        unit = chosen.get(node.name)
        if unit is None or unit.operator.role in {Role.SAME_SCALE, Role.JOINED}:
            continue
        own = weights.get(node.name)
        for name in view.data_inputs(node):
            values = view.constant(name)
            if values is None or (own is not None and own.initializer == name):
                continue
            low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
            found[name] = of_range(low, high, recipe.activation, symmetric=recipe.symmetric)
    return found


def _parameters(
    view: View,
    chosen: Mapping[str, Unit],
    activations: Mapping[str, QParams],
    recipe: Recipe,
    reduced: Mapping[str, Sequence[int]] | None,
) -> tuple[dict[str, Weight], dict[str, Bias]]:
    """Weights and biases of every weighted unit."""
    weights: dict[str, Weight] = {}
    biases: dict[str, Bias] = {}
    for node in view.nodes:
        unit = chosen.get(node.name)
        values = view.constant(node.input[1]) if unit is not None and len(node.input) > 1 else None
        if unit is None or unit.operator.role is not Role.WEIGHTED or values is None:
            continue
        axis = weight_axis(node, values.ndim) if recipe.per_channel else None
        seven_bits = recipe.reduce_range if reduced is None else reduced.get(node.name, ())
        params = of_weight(values, recipe.weight, axis, reduced=seven_bits)
        place = unit.operator.bias
        has_bias = place is not None and len(node.input) > place and bool(node.input[place])
        if has_bias and place is not None:
            scale_in = activations[unit.inputs[0]].scale
            params, bias = with_bias(view, node, params, float(scale_in))
            biases[node.name] = bias
        weights[node.name] = Weight(initializer=node.input[1], params=params)
    return weights, biases


def weight_axis(node: onnx.NodeProto, ndim: int) -> int | None:
    """Axis of a weight's output channels; None where it can have but one scale."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if ndim == 2 else None


def with_bias(view: View, node: onnx.NodeProto, params: QParams, scale_in: float) -> tuple[QParams, Bias]:
    """The weight's QParams, widened where the bias would not fit into 32 bits, and the bias.

    A channel of tiny weights under a large bias has a step of the bias so small that int32 overflows; its
    weights are then stored with a larger step (as ONNX Runtime and TFLite do), which costs nothing that
    the sum could show.
    """
    values, weight = view.constant(node.input[2]), view.constant(node.input[1])
    if values is None or weight is None:
        raise RuntimeError(f"{node.name} was taken for weighted without its constants")
    groups = int(attribute(node, "group", 1)) if node.op_type == "ConvTranspose" else 1
    axis = weight_axis(node, weight.ndim)
    channels = weight.shape[0 if axis is None else axis] * groups
    spread = np.broadcast_to(values.reshape(-1), (channels,))
    needed = bias_scale_needed(spread, scale_in)
    # Channels of a transposed convolution share their scale across groups.
    wanted = needed.max() if params.axis is None else needed.reshape(groups, -1).max(axis=0)
    if (wanted > params.scale).any():
        scale = np.maximum(params.scale, np.asarray(wanted, dtype=np.float32))
        params = weight_params(scale, params.dtype, params.axis)
    scale = params.scale if params.axis is None else np.tile(params.scale, groups)
    bias_scale = np.asarray(scale * np.float32(scale_in), dtype=np.float32)
    return params, Bias(initializer=node.input[2], scale=bias_scale, channels=channels)


def _left_words(view: View, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Multiplications that stay in float, by name and reason."""
    left = [n for n in view.nodes if n.op_type in _MULTIPLIES and n.name in reasons]
    return tuple(f"{node.op_type} {node.name} stays in float: {reasons[node.name]}" for node in left)
