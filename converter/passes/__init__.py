"""Graph clean-ups, each with what it requires, what it ensures and how many changes it made.

For: bringing a model into the form that quantization and devices need, without changing its answers; a
pass that changes them, or that raises, is left out and named.
Not for: comparing answers; the caller says how (`clean_checked`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import onnx
from msgspec import Struct

from converter.passes.constants import lift_constants
from converter.passes.fold_batch_norm import fold_batch_norm
from converter.passes.fold_constants import fold_constants
from converter.passes.fold_hard_sigmoid import fold_hard_sigmoid
from converter.passes.fold_shapes import fold_shapes
from converter.passes.fuse_activations import fuse_activations
from converter.passes.fuse_gemm import fuse_gemm
from converter.passes.fuse_pad import fuse_pad
from converter.passes.identities import drop_identities
from converter.passes.names import name_nodes
from converter.passes.open_layer_norm import open_layer_norm
from converter.passes.strip import strip
from converter.passes.unused import drop_unused, share_constants

_ROUNDS_MAX = 6
"""One fold makes way for another; real models were still after three."""


class Pass(Struct, frozen=True, kw_only=True):
    """One clean-up; `apply` changes the model in place and returns the number of changes."""

    name: str
    requires: str
    ensures: str
    apply: Callable[[onnx.ModelProto], int]


SameAnswers = Callable[[onnx.ModelProto, onnx.ModelProto], bool]

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
        name="drop_identities",
        requires="inference only",
        ensures="no Identity, Dropout, needless Cast, Transpose or Reshape",
        apply=drop_identities,
    ),
    Pass(
        name="fold_shapes",
        requires="constants are initializers",
        ensures="sizes that are known are constants, a Reshape's target too where only free axes are open",
        apply=fold_shapes,
    ),
    Pass(
        name="fold_constants",
        requires="constants are initializers",
        ensures="nothing is computed from constants alone, but Q/DQ and what would grow much",
        apply=fold_constants,
    ),
    Pass(
        name="fuse_pad",
        requires="pads are constants",
        ensures="no Pad of zeros before a Conv or a pooling that can do it",
        apply=fuse_pad,
    ),
    Pass(
        name="fuse_activations",
        requires="bounds are constants",
        ensures="Max, Min and Clip are one Clip or Relu; HardSigmoid and HardSwish are one operator",
        apply=fuse_activations,
    ),
    Pass(
        name="fuse_gemm",
        requires="weights are initializers",
        ensures="a matrix product with a constant row added is a Gemm, its bias of one axis",
        apply=fuse_gemm,
    ),
    Pass(
        name="fold_batch_norm",
        requires="weights are initializers",
        ensures="no scale or offset per channel beside a Conv, ConvTranspose or Gemm that could hold it",
        apply=fold_batch_norm,
    ),
    Pass(
        name="fold_hard_sigmoid",
        requires="weights are initializers",
        ensures="no HardSigmoid behind a Conv, ConvTranspose or Gemm that could hold its slope: a Clip",
        apply=fold_hard_sigmoid,
    ),
    Pass(
        name="share_constants",
        requires="nothing",
        ensures="large constants of equal bytes are one",
        apply=share_constants,
    ),
    Pass(
        name="drop_unused",
        requires="nothing",
        ensures="every node and initializer reaches an output",
        apply=drop_unused,
    ),
    Pass(
        name="name_nodes",
        requires="nothing",
        ensures="every node of the main graph has a name of its own (the quantizer keys on it)",
        apply=name_nodes,
    ),
)
"""In the order in which they run, until none of them finds anything more."""

INTEGER_PASSES = (
    *PASSES,
    Pass(
        name="open_layer_norm",
        requires="scale and offset are initializers",
        ensures="LayerNormalization is means, a difference, products and x ** -0.5",
        apply=open_layer_norm,
    ),
)
"""For targets that take integers only: what has no INT8 kernel is written out."""


def clean(
    model: onnx.ModelProto, passes: tuple[Pass, ...] = PASSES
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A cleaned copy, and in words what was changed.

    Raises:
        Exception: what a pass raises.
    """
    cleaned = _copied(model)
    counts: Counter[str] = Counter()
    for _ in range(_ROUNDS_MAX):
        found = {one.name: one.apply(cleaned) for one in passes}
        counts.update(found)
        if not any(found.values()):
            break
    return cleaned, _words(counts, passes)


def clean_checked(
    model: onnx.ModelProto, same_answers: SameAnswers, passes: tuple[Pass, ...] = PASSES
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A cleaned copy with the answers of the model, and in words what was changed or left out.

    Args:
        model: that is not changed.
        same_answers: whether the second model answers as the first; it may raise for a second one that
            does not run.
        passes: to apply. If all of them together change the answers or raise, they are applied one by
            one, each result is compared, and those that fail are left out and named.
    """
    with suppress(Exception):  # which pass raised is found out one by one
        cleaned, said = clean(model, passes)
        if not said or same_answers(model, cleaned):
            return cleaned, said
    return _one_by_one(model, same_answers, passes)


def _one_by_one(
    model: onnx.ModelProto, same_answers: SameAnswers, passes: tuple[Pass, ...]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    cleaned, left_out = _copied(model), {}
    counts: Counter[str] = Counter()
    for _ in range(_ROUNDS_MAX):
        changed = False
        for one in passes:
            if one.name in left_out:
                continue
            tried, changes, why = _tried(model, cleaned, one, same_answers)
            if why is not None:
                left_out[one.name] = why
            elif changes:
                cleaned, changed = tried, True
                counts[one.name] += changes
        if not changed:
            break
    refused = tuple(f"{name} left out: {why}" for name, why in left_out.items())
    return cleaned, (*_words(counts, passes), *refused)


def _tried(
    model: onnx.ModelProto, cleaned: onnx.ModelProto, one: Pass, same_answers: SameAnswers
) -> tuple[onnx.ModelProto, int, str | None]:
    """One pass on a copy: the copy, the changes, and why it cannot be used, None if it can."""
    tried = _copied(cleaned)
    try:
        changes = one.apply(tried)
        same = not changes or same_answers(model, tried)
    except Exception as error:  # noqa: BLE001 - a pass that raises is left out, never the end of the run
        first = (str(error).strip() or "no message").splitlines()[0][:200]
        return cleaned, 0, f"{type(error).__name__}: {first}"
    return tried, changes, None if same else "it changed the answers"


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _words(counts: Counter[str], passes: tuple[Pass, ...]) -> tuple[str, ...]:
    return tuple(f"{one.name}: {counts[one.name]} changed" for one in passes if counts[one.name])
