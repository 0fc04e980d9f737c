"""What two operators say together and one says as well.

For: `shortened()`, on the finished graph: a reduction whose kept axes a RESHAPE takes away does not keep
them, and of two RESHAPEs in a row the second is enough.
Not for: layouts; there is nothing left to cancel (`converter.tflite.lowering`).
"""

from __future__ import annotations

from collections import Counter

from msgspec import structs

from converter.tflite.schema import schema
from converter.tflite.tensors import Graph, Operator

_REDUCTIONS = frozenset({"MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"})


def shortened(graph: Graph) -> Graph:
    """The graph with fewer operators; tensors keep their identity, the given graph is not changed."""
    readers = Counter(id(t) for operator in graph.operators for t in operator.inputs if t is not None)
    readers.update(id(t) for t in graph.outputs.values())
    makers: dict[int, int] = {}
    kept: list[Operator | None] = []
    for operator in graph.operators:
        source = operator.inputs[0] if operator.inputs else None
        place = None if source is None else makers.get(id(source))
        joined = None
        if place is not None and source is not None and readers[id(source)] == 1:
            joined = _joined(kept[place], operator)
        if joined is not None and place is not None:
            kept[place] = None
        kept.append(joined or operator)
        makers |= {id(made): len(kept) - 1 for made in operator.outputs}
    return structs.replace(graph, operators=[one for one in kept if one is not None])


def _joined(first: Operator | None, second: Operator) -> Operator | None:
    """One operator that does what both do; None where there is none."""
    if first is None or second.kind != "RESHAPE" or len(first.outputs) != 1:
        return None
    made = second.outputs[0]
    if first.kind == "RESHAPE":
        return structs.replace(second, inputs=(first.inputs[0], *second.inputs[1:]))
    if first.kind in _REDUCTIONS and first.options.keepDims and made.shape == _reduced(first):
        options = schema.ReducerOptionsT()
        options.keepDims = False
        return structs.replace(first, outputs=(made,), options=options)
    return None


def _reduced(reduction: Operator) -> tuple[int, ...] | None:
    """The shape without the axes that go; None where those are computed."""
    source, axes = reduction.inputs[:2]
    if source is None or axes is None or axes.values is None:
        return None
    gone = {int(i) % len(source.shape) for i in axes.values.reshape(-1)}
    return tuple(size for i, size in enumerate(source.shape) if i not in gone)
