"""Gives every node a name of its own.

Requires: nothing. Ensures: nodes of the main graph have distinct, non-empty names.
Not for: tensors, whose names are the model's own.
"""

from __future__ import annotations

import onnx


def name_nodes(model: onnx.ModelProto) -> int:
    """Names in place; returns how many nodes got a new name."""
    taken: set[str] = set()
    changes = 0
    every = {node.name for node in model.graph.node}
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            name = f"{node.op_type}_{number}"
            while name in every or name in taken:
                name += "_"
            node.name = name
            changes += 1
        taken.add(node.name)
    return changes
