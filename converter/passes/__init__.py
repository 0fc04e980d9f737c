"""Graph clean-ups, each with what it requires, what it ensures and how many changes it made.

For: bringing a model into the form that quantization and devices need, without changing its answers.
Not for: proving that the answers stayed equal; the pipeline compares outputs and says so.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from msgspec import Struct

from converter.passes.constants import lift_constants
from converter.passes.fold_batch_norm import fold_batch_norm
from converter.passes.names import name_nodes
from converter.passes.strip import strip


class Pass(Struct, frozen=True, kw_only=True):
    """One clean-up; `apply` changes the model in place and returns the number of changes."""

    name: str
    requires: str
    ensures: str
    apply: Callable[[onnx.ModelProto], int]


PASSES = (
    Pass(
        name="strip",
        requires="nothing",
        ensures="no metadata_props and no doc_string anywhere (they crash a preprocessor: FACTS.md trap 12)",
        apply=strip,
    ),
    Pass(
        name="lift_constants",
        requires="a valid graph",
        ensures="tensor Constant nodes are initializers, and no initializer is a graph input",
        apply=lift_constants,
    ),
    Pass(
        name="fold_batch_norm",
        requires="weights are initializers",
        ensures="no BatchNormalization directly after a Conv that feeds nothing else",
        apply=fold_batch_norm,
    ),
    Pass(
        name="name_nodes",
        requires="nothing",
        ensures="every node of the main graph has a name of its own (the quantizer keys on it)",
        apply=name_nodes,
    ),
)
"""In the order in which they run."""


def clean(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A cleaned copy, and in words what was changed."""
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    said = []
    for one in PASSES:
        changes = one.apply(cleaned)
        if changes:
            said.append(f"{one.name}: {changes} changed")
    return cleaned, tuple(said)
