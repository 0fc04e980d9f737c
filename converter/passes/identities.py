"""Takes out what changes nothing.

Requires: a valid graph, inference only. Ensures: no Identity, no Dropout whose mask nobody reads, no Cast
to the type that is there, no Transpose that keeps the order, no Transpose or Reshape whose effect the next
one undoes or replaces; unless such a node stands between an input and an output of the model.
Not for: Q/DQ pairs, or nodes in subgraphs.
"""

from __future__ import annotations

import onnx

from converter.passes.walk import View, attribute, inferred, is_op, set_attribute, shapes_of


def drop_identities(model: onnx.ModelProto) -> int:
    """Drops in place; returns how many nodes went."""
    types = _types(model)
    view = View(model)
    changes = 0
    for node in list(view.graph.node):
        if is_op(node, "Transpose"):
            _join_transposes(view, node)
        elif is_op(node, "Reshape"):
            _join_reshapes(view, node)
        if _does_nothing(view, node, types):
            changes += view.bypass(node)
    return changes + _drop_dead(view) + _same_shape(model)


def _does_nothing(view: View, node: onnx.NodeProto, types: dict[str, int]) -> bool:
    if is_op(node, "Identity"):
        return True
    if is_op(node, "Dropout"):
        mask = node.output[1] if len(node.output) > 1 else ""
        training = view.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        given = len(node.input) > 2 and node.input[2]
        return not view.reads[mask] and (not given or (training is not None and not training.any()))
    if is_op(node, "Cast"):
        return types.get(node.input[0]) == int(attribute(node, "to"))
    perm = attribute(node, "perm") if is_op(node, "Transpose") else None
    return perm is not None and list(perm) == sorted(perm)


def _join_transposes(view: View, node: onnx.NodeProto) -> None:
    """Makes one permutation of two in a row; the first stays for its other readers, if it has some."""
    before, perm = view.makers.get(node.input[0]), attribute(node, "perm")
    if before is None or perm is None or not is_op(before, "Transpose"):
        return
    first = attribute(before, "perm")
    if first is not None:
        set_attribute(node, "perm", [int(first[i]) for i in perm])
        view.set_inputs(node, before.input[0])


def _join_reshapes(view: View, node: onnx.NodeProto) -> None:
    """A Reshape after a Reshape needs only the last shape, where that copies no size of the first."""
    before, shape = view.makers.get(node.input[0]), view.array(node.input[1])
    if before is None or shape is None or not is_op(before, "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return
    if (shape > 0).sum() + (shape == -1).sum() == shape.size:
        view.set_inputs(node, before.input[0], node.input[1])


def _drop_dead(view: View) -> int:
    """Moves that nobody reads since they were joined."""
    changes = 0
    for node in reversed(list(view.graph.node)):
        moves = is_op(node, "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
        if moves and not view.reads[node.output[0]]:
            view.remove(node)
            changes += 1
    return changes


def _same_shape(model: onnx.ModelProto) -> int:
    """A Reshape or Flatten to the shape that is there, all of it known or the same free axis."""
    shapes = shapes_of(model)
    view = View(model)
    changes = 0
    for node in [node for node in view.graph.node if is_op(node, "Reshape", "Flatten")]:
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if before is not None and before == after and None not in before:
            changes += view.bypass(node)
    return changes


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = inferred(model)
    types = {t.name: int(t.data_type) for t in graph.initializer}
    values = (*graph.value_info, *graph.input, *graph.output)
    return types | {value.name: int(value.type.tensor_type.elem_type) for value in values}
