"""Works out shapes that the graph computes although they are known: Shape, Gather, Concat, Reshape chains.

Requires: constants are initializers. Ensures: whole numbers that follow from known sizes are constants,
and a Reshape whose target is known but for free axes has a constant target (0 copies the axis, -1 takes the
one that is left). TorchScript exports compute the flattened size of `x.view(x.size(0), -1)` in the graph.
Not for: constants of other kinds (`fold_constants`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from converter.passes.walk import View, attribute, is_op, shapes_of

Size = int | str
"""A known size, or the name of a free axis; different axes without a name get different names."""


class _Whole:
    """The value of an integer tensor of rank 0 or 1 whose elements are sizes."""

    def __init__(self, sizes: list[Size], *, scalar: bool = False) -> None:
        self.sizes, self.scalar = sizes, scalar

    @property
    def known(self) -> bool:
        return all(isinstance(size, int) for size in self.sizes)


Values = dict[str, _Whole]
Rule = Callable[[onnx.NodeProto, list[_Whole]], _Whole | None]
Shapes = dict[str, tuple[Size | None, ...]]


def fold_shapes(model: onnx.ModelProto) -> int:
    """Folds in place; returns how many tensors became constant."""
    shapes = shapes_of(model)
    view = View(model)
    values: Values = {}
    for tensor in view.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) <= 1:
            array = view.array(tensor.name)
            if array is not None:
                values[tensor.name] = _Whole([int(one) for one in array.reshape(-1)], scalar=array.ndim == 0)
    changes = 0
    for node in list(view.graph.node):
        found = _value(node, values, shapes)
        if found is not None:
            values[node.output[0]] = found
            if found.known and node.output[0] not in view.outputs:
                changes += 1
                view.remove(node)
                whole = np.asarray(found.sizes[0] if found.scalar else found.sizes, dtype=np.int64)
                view.rename(node.output[0], view.add(f"{node.output[0]}_known", whole))
                values[view.graph.initializer[-1].name] = found
        elif is_op(node, "Reshape") and node.input[1] in values and not attribute(node, "allowzero", 0):
            changes += _constant_target(view, node, values[node.input[1]], shapes)
    return changes


def _value(node: onnx.NodeProto, values: Values, shapes: Shapes) -> _Whole | None:
    """What a node gives, if it gives sizes."""
    if is_op(node, "Shape"):
        shape = shapes.get(node.input[0])
        if shape is None:
            return None
        sizes = [f"{node.input[0]}.{i}" if size is None else size for i, size in enumerate(shape)]
        return _Whole(sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))])
    rule = _RULES.get(node.op_type)
    if rule is None or not is_op(node, *_RULES) or not all(name in values for name in node.input):
        return None
    return rule(node, [values[name] for name in node.input])


def _gather(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    data, places = given
    picked = [
        data.sizes[i] for i in places.sizes if isinstance(i, int) and -len(data.sizes) <= i < len(data.sizes)
    ]
    return _Whole(picked, scalar=places.scalar) if len(picked) == len(places.sizes) else None


def _slice(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    if len(given) < 3 or not all(one.known and len(one.sizes) == 1 for one in given[1:]):
        return None
    start, end, step = given[1].sizes[0], given[2].sizes[0], given[4].sizes[0] if len(given) > 4 else 1
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int) or step < 1:
        return None
    return _Whole(given[0].sizes[start:end:step])


def _concat(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    return _Whole([size for one in given for size in one.sizes])


def _unsqueeze(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    return _Whole(given[0].sizes) if given[0].scalar else None


def _squeeze(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    one = len(given[0].sizes) == 1 and not given[0].scalar
    return _Whole(given[0].sizes, scalar=True) if one else None


def _cast(node: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
    return given[0] if attribute(node, "to") == onnx.TensorProto.INT64 else None


def _arithmetic(sign: str, combine: Callable[[int, int], int]) -> Rule:
    def rule(_: onnx.NodeProto, given: list[_Whole]) -> _Whole | None:
        left, right = given
        if len(left.sizes) != 1 or len(right.sizes) != 1:
            return None
        a, b = left.sizes[0], right.sizes[0]
        known = isinstance(a, int) and isinstance(b, int)
        # What is made of a free axis is an unknown size with a name of its own: batch times heads.
        size: Size = combine(int(a), int(b)) if known else f"({a}{sign}{b})"
        return _Whole([size], scalar=left.scalar and right.scalar)

    return rule


_RULES: dict[str, Rule] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _cast,
    "Mul": _arithmetic("*", lambda a, b: a * b),
    "Add": _arithmetic("+", lambda a, b: a + b),
    "Sub": _arithmetic("-", lambda a, b: a - b),
}


def _constant_target(view: View, node: onnx.NodeProto, target: _Whole, shapes: Shapes) -> bool:
    """Gives a Reshape a constant target where free axes can be told by 0 or -1."""
    if target.known:
        return False
    before = shapes.get(node.input[0], ())
    sizes: list[int] = []
    for i, size in enumerate(target.sizes):
        if isinstance(size, int):
            if size == 0:
                return False
            sizes.append(size)
        else:
            sizes.append(0 if i < len(before) and before[i] == size else -1)
    if sizes.count(-1) > 1:
        return False
    name = view.add(f"{node.output[0]}_shape", np.asarray(sizes, dtype=np.int64))
    view.set_inputs(node, node.input[0], name)
    return True
