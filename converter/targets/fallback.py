"""What an accelerator is expected to leave to the CPU, and everything that a target says of a model.

For: `fallback()`, predicted from the target's list of operators and its limits, and `verdict()`, the words
that stand in a candidate's row. The graph is read and nothing is run.
Not for: what a compiler really does: it may split elsewhere, and only it knows.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from math import prod

import onnx
from msgspec import Struct

from converter.targets.graph import NO_WORK, GraphView, graphs_of, options, shapes_of
from converter.targets.lint import LintFinding, beyond_limits, lint
from converter.targets.loader import Target

_KINDS_NAMED_MAX = 5


class Fallback(Struct, frozen=True, kw_only=True):
    """What is expected to run where; Q/DQ pairs and Constants are no operators.

    Attributes:
        accelerated: nodes on the accelerator.
        on_cpu: nodes left to the CPU, by operator.
        share: of all multiplications, those on the accelerator; None where they cannot be counted.
    """

    accelerated: int
    on_cpu: dict[str, int]
    share: float | None

    @property
    def any(self) -> bool:
        """Whether something is left to the CPU."""
        return bool(self.on_cpu)


class Verdict(Struct, frozen=True, kw_only=True):
    """What a target says of a model.

    Attributes:
        words: sentences for its row.
        errors: how many rules are broken that are known to be refused or wrong there.
        falls_back: whether something is expected on the CPU; None where no list of operators is known.
    """

    words: tuple[str, ...]
    errors: int
    falls_back: bool | None


def fallback(target: Target, model: onnx.ModelProto) -> Fallback | None:
    """Predicted; None where no list of operators is known (or all run on a CPU).

    A node counts as left to the CPU where its operator is not on the list, or its sizes are beyond a limit.
    """
    known = set(target.rules.operators.value)
    if not known:
        return None
    main = GraphView(model.graph)
    left = {
        id(node): node.op_type
        for graph in graphs_of(model.graph)
        for view in (main if graph is model.graph else GraphView(graph),)
        for node in graph.node
        if node.op_type not in NO_WORK
        and (node.op_type not in known or any(beyond_limits(target.rules, view, node)))
    }
    nodes = sum(node.op_type not in NO_WORK for graph in graphs_of(model.graph) for node in graph.node)
    return Fallback(
        accelerated=nodes - len(left),
        on_cpu=dict(sorted(Counter(left.values()).items())),
        share=_share(model, main, set(left)),
    )


def _share(model: onnx.ModelProto, view: GraphView, left: set[int]) -> float | None:
    """Of the main graph's multiplications with constant weights, those outside `left`."""
    shapes = shapes_of(model)
    counts = {
        id(node): multiplications(node, view, shapes)
        for node in model.graph.node
        if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    }
    if not counts or None in counts.values():
        return None
    whole = sum(count or 0 for count in counts.values())
    return sum(count or 0 for key, count in counts.items() if key not in left) / whole if whole else None


def multiplications(
    node: onnx.NodeProto, view: GraphView, shapes: dict[str, tuple[int | None, ...]]
) -> int | None:
    """Of one node for one sample; None without a constant weight or with an open axis beyond the first.

    Conv: elements of the output times those of one filter. ConvTranspose: elements of the input times what
    each spreads over. Gemm and MatMul: elements of the output times the shared axis.
    """
    weight = view.stored(node.input[1]) if len(node.input) > 1 else None
    shape = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
    if weight is None or len(weight.dims) < 2 or not shape or None in shape[1:]:
        return None
    elements = prod(axis or 1 for axis in shape[1:])
    if node.op_type == "Gemm":
        return elements * int(weight.dims[1 if options(node).get("transB") else 0])
    if node.op_type == "MatMul":
        return elements * int(weight.dims[-2])
    return elements * int(prod(weight.dims[1:]))


def verdict(target: Target, model: onnx.ModelProto) -> Verdict:
    """Whether the model keeps the target's rules and what is expected on the CPU, in words.

    None of a target that takes TFLite files: an ONNX model is only the baseline there.
    """
    if target.rules.format.value == "TFLite":
        return Verdict(words=(), errors=0, falls_back=None)
    found = lint(target, model)
    expected = fallback(target, model)
    words = [] if target.not_compiled is None else [target.not_compiled]
    broken = sorted((one for one in found if one.code != "fallback"), key=_place)
    words += [_told(target, list(alike)) for _, alike in groupby(broken, key=_place)]
    if expected is not None:
        words.append(_expected(target, expected))
    return Verdict(
        words=tuple(words),
        errors=sum(one.severity == "error" for one in found),
        falls_back=None if expected is None else expected.any,
    )


def _place(finding: LintFinding) -> tuple[str, str]:
    return finding.severity, finding.code


def _told(target: Target, alike: list[LintFinding]) -> str:
    """One sentence for all findings of a kind; `alike` is not empty."""
    first = alike[0]
    at = f" at {first.node}" if first.node else ""
    more = f" and {len(alike) - 1} more like it" if len(alike) > 1 else ""
    rule = "a rule" if first.severity == "error" else "advice"
    return f"breaks {rule} of {target.id}: {first.words}{at}{more} ({first.confidence}: {first.source})"


def _expected(target: Target, expected: Fallback) -> str:
    """The prediction in words."""
    total = expected.accelerated + sum(expected.on_cpu.values())
    rule = target.rules.operators
    share = "" if expected.share is None else f", {expected.share:.0%} of the multiplications"
    kinds = sorted(expected.on_cpu.items(), key=lambda one: (-one[1], one[0]))
    named = ", ".join(f"{kind} {count}" for kind, count in kinds[:_KINDS_NAMED_MAX])
    rest = f" and {len(kinds) - _KINDS_NAMED_MAX} kinds more" if len(kinds) > _KINDS_NAMED_MAX else ""
    on_cpu = f"; on the CPU {named}{rest}" if kinds else "; nothing on the CPU"
    return (
        f"predicted, not compiled: {expected.accelerated} of {total} operators on the accelerator"
        f"{share}{on_cpu} ({rule.confidence}: {rule.source})"
    )
