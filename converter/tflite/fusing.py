"""What ONNX says in several operators and TFLite in one.

For: `fuse()`, on a graph that is read: the Add of a constant row behind a MatMul becomes its bias, and the
Gelu that exporters make of Erf becomes Gelu. In float only: between stored numbers every operator rounds, so
that these would not stay the same.
Not for: activations, which reading fuses, or passes over ONNX (`converter.passes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from converter.tflite.reading import Op, Source

_CLOSE = 1e-3
"""How near a constant of an Erf form must be: exporters write 1.4142 as well as sqrt(2) in full."""


def fuse(source: Source) -> Source:
    """The graph with fewer operators; equal in what it computes, but for rounding."""
    graph = _Graph(source)
    ops = {op.name: op for op in source.ops}
    for op in source.ops:
        if op.op_type == "Erf" and not op.integer:
            for found in _gelu(graph, op):
                ops = _replaced(ops, found)
    graph = _Graph(msgspec.structs.replace(source, ops=tuple(ops.values())))
    for op in graph.source.ops:
        if op.op_type == "Add" and not op.integer:
            for found in _biased(graph, op):
                ops = _replaced(ops, found)
    return msgspec.structs.replace(source, ops=tuple(ops.values()))


class _Found(Struct, frozen=True, kw_only=True, eq=False):
    """One fusion: the operator that stands for others, in the place of the last of them."""

    op: Op
    gone: tuple[str, ...]
    last: str


def _replaced(ops: dict[str, Op], found: _Found) -> dict[str, Op]:
    gone = set(found.gone)
    made = {}
    for name, op in ops.items():
        if name == found.last:
            made[name] = found.op
        elif name not in gone:
            made[name] = op
    return made


class _Graph:
    """Who makes and who reads what."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._maker = {name: op for op in source.ops for name in op.outputs}
        self._readers: dict[str, list[Op]] = {}
        for op in source.ops:
            for name in op.inputs:
                self._readers.setdefault(name, []).append(op)

    def maker(self, name: str, kind: str) -> Op | None:
        """The float operator of this type that makes a tensor."""
        op = self._maker.get(name)
        return op if op is not None and op.op_type == kind and not op.integer else None

    def reader(self, op: Op, kind: str) -> Op | None:
        """The only reader of an operator's output, if it is a float operator of this type."""
        readers = self._readers.get(op.outputs[0], [])
        if len(readers) != 1 or op.outputs[0] in self.source.outputs:
            return None
        return readers[0] if readers[0].op_type == kind and not readers[0].integer else None

    def number(self, name: str) -> float | None:
        """A float constant of one element."""
        found = self.source.constants.get(name)
        if found is None or found.quant is not None or found.values.size != 1:
            return None
        return float(found.values.reshape(-1)[0])

    def times(self, op: Op, factor: float) -> str | None:
        """The other operand of a Mul by about this number."""
        for name, other in zip(op.inputs, reversed(op.inputs), strict=True):
            found = self.number(name)
            if found is not None and math.isclose(found, factor, rel_tol=_CLOSE):
                return other
        return None


def _biased(graph: _Graph, add: Op) -> Iterator[_Found]:
    """A MatMul by a constant matrix, and the constant row that is added behind it."""
    for product, row in (add.inputs, add.inputs[::-1]):
        matmul = graph.maker(product, "MatMul")
        bias = graph.source.constants.get(row)
        if matmul is None or bias is None or graph.reader(matmul, "Add") is None or len(matmul.inputs) > 2:
            continue
        weight, shape = graph.source.constants.get(matmul.inputs[1]), bias.values.shape
        if weight is None or weight.values.ndim != 2 or graph.source.constants.get(matmul.inputs[0]):
            continue
        fits = bias.values.size in {1, weight.values.shape[1]} and shape[-1:] in {(), (bias.values.size,)}
        if not fits or len(shape) > len(graph.source.shapes[product]):
            continue
        inputs = (*matmul.inputs, row)
        op = msgspec.structs.replace(
            matmul, inputs=inputs, outputs=add.outputs, activation=add.activation
        )  # fmt: skip
        yield _Found(op=op, gone=(matmul.name,), last=add.name)
        return


def _gelu(graph: _Graph, erf: Op) -> Iterator[_Found]:
    """Gelu as x * 0.5 * (1 + erf(x / sqrt(2))), the factors in any order."""
    inner, x = _over_root_two(graph, erf)
    plus = graph.reader(erf, "Add")
    if x is None or inner is None or plus is None or plus.activation != "NONE" or len(erf.outputs) != 1:
        return
    one = [graph.number(name) for name in plus.inputs if name != erf.outputs[0]]
    product = graph.reader(plus, "Mul")
    if one != [1.0] or product is None:
        return
    gone = [erf.name, plus.name]
    if graph.reader(inner, "Erf") is not None:
        gone.append(inner.name)
    for last, more in _halved(graph, plus, product, x):
        op = Op(
            name=last.name, op_type="Gelu", inputs=(x,), outputs=last.outputs, attributes={},
        )  # fmt: skip
        if last.activation == "NONE":
            yield _Found(op=op, gone=(*gone, *more), last=last.name)
        return


def _over_root_two(graph: _Graph, erf: Op) -> tuple[Op | None, str | None]:
    """Who divides by sqrt(2) in front of Erf, and what."""
    divided = graph.maker(erf.inputs[0], "Div")
    if divided is not None:
        root = graph.number(divided.inputs[1])
        near = root is not None and math.isclose(root, math.sqrt(2), rel_tol=_CLOSE)
        return divided, divided.inputs[0] if near else None
    scaled = graph.maker(erf.inputs[0], "Mul")
    return scaled, None if scaled is None else graph.times(scaled, math.sqrt(0.5))


def _halved(graph: _Graph, plus: Op, product: Op, x: str) -> Iterator[tuple[Op, tuple[str, ...]]]:
    """The last operator of the form, and those before it that go with it."""
    factor = next((name for name in product.inputs if name != plus.outputs[0]), "")
    if factor == x:
        last = graph.reader(product, "Mul")
        if last is not None and product.activation == "NONE" and graph.times(last, 0.5) == product.outputs[0]:
            yield last, (product.name,)
        return
    half = graph.maker(factor, "Mul")
    if half is not None and graph.times(half, 0.5) == x and half.activation == "NONE":
        yield product, (half.name,) if graph.reader(half, "Mul") is not None else ()
        return
    last = graph.reader(product, "Mul") if product.activation == "NONE" else None
    if last is not None and graph.times(product, 0.5) == plus.outputs[0] and x in last.inputs:
        yield last, (product.name,)
