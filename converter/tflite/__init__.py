"""The TFLite writer: a float or QDQ ONNX graph as a .tflite flatbuffer, with the same scales and zero points.

For: `write()`. No TensorFlow: the graph is read (`reading`), lowered operator by operator (`lowering`,
`ops`) and written through the schema's classes (`serialize`).
Not for: quantizing (`converter.quantize` does that once, for both formats), or running (`converter.litert`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from msgspec import Struct

from converter.tflite.errors import TFLiteError
from converter.tflite.fusing import fuse
from converter.tflite.layout import Axes, identity
from converter.tflite.lowering import Lowering, Value
from converter.tflite.ops import ENTRIES
from converter.tflite.options import Options
from converter.tflite.peephole import shortened
from converter.tflite.reading import Op, Source, read
from converter.tflite.serialize import names_of, serialize
from converter.tflite.tensors import Graph
from converter.tflite.verify import verify

__all__ = ["Lowered", "Options", "Placed", "TFLiteError", "Written", "lower", "write"]

_SPATIAL = frozenset(
    {"AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
     "Resize", "SpaceToDepth", "Upsample"}
)  # fmt: skip
_PASSES_ON = frozenset(
    {"Add", "Clip", "DequantizeLinear", "Div", "Identity", "Mul", "Pad", "QuantizeLinear", "Relu", "Sub"}
)


class Placed(Struct, frozen=True, kw_only=True):
    """Where an ONNX tensor lies: its name in the file, and the file's order of ONNX's axes."""

    name: str
    axes: Axes


class Written(Struct, frozen=True, kw_only=True):
    """A file.

    Attributes:
        content: of the .tflite file.
        axes: by name of an input or output: the file's tensor is ONNX's, transposed by these axes. Those that
            lie as in ONNX are not named.
        tensors: by ONNX name, every tensor that the file holds under its own name; of a pair, the stored one.
        operators: number by TFLite operator.
        float_left: operators that compute in float, by name of their ONNX node.
    """

    content: bytes
    axes: dict[str, Axes]
    tensors: dict[str, Placed]
    operators: dict[str, int]
    float_left: tuple[str, ...]


class Lowered(Struct, frozen=True, kw_only=True, eq=False):
    """A graph in TFLite's operators, before it is bytes.

    Attributes:
        source: what was read of the ONNX graph.
        graph: of the file.
        made: by ONNX name, where its operator left each tensor.
        placed: the same once the file's outputs are put in the order in which it gives them.
    """

    source: Source
    graph: Graph
    made: Mapping[str, Value]
    placed: Mapping[str, Value]


def write(model: onnx.ModelProto, options: Options | None = None) -> Written:
    """The graph as TFLite.

    Args:
        model: float or QDQ, as `converter.quantize` makes it; it is not changed. Per-tensor activations of 8
            bits; u8 is shifted to int8.
        options: of the file.

    Raises:
        TFLiteError: it cannot be written; the code says why and the text names the node. Nothing is written.
    """
    options = Options() if options is None else options
    lowered = lower(model, options)
    source, graph, placed = lowered.source, shortened(lowered.graph), lowered.placed
    content = serialize(
        graph, name=options.name, description=options.description, metadata=options.metadata
    )  # fmt: skip
    verify(content)
    edges = {name: placed[name].axes for name in source.inputs}
    edges |= {name: placed[_written_as(source, options, name)].axes for name in source.outputs}
    names = names_of(graph)
    return Written(
        content=content,
        axes={name: axes for name, axes in edges.items() if axes != identity(len(axes))},
        tensors={name: Placed(name=names[id(value.tensor)], axes=value.axes)
                 for name, value in placed.items() if value.order is None and id(value.tensor) in names},
        operators=dict(sorted(Counter(one.kind for one in graph.operators).items())),
        float_left=tuple(op.name for op in source.ops if _computes_in_float(source, op)),
    )  # fmt: skip


def lower(model: onnx.ModelProto, options: Options | None = None) -> Lowered:
    """The graph in TFLite's operators, as `write` puts it into bytes.

    Raises:
        TFLiteError: as `write`.
    """
    options = Options() if options is None else options
    source = fuse(read(model, {kind: entry.traits for kind, entry in ENTRIES.items()}, options.batch))
    lowering = Lowering(source, options)
    lowering.open(lambda name: _comes_to_an_image(source, lowering, name))
    for op in source.ops:
        # An edge that is stored needs no reals in front of it.
        if options.edge == "float32" or op.op_type != "DequantizeLinear" or lowering.readers(op.outputs[0]):
            ENTRIES[op.op_type].lower(lowering, op)
    made = dict(lowering.placed())
    lowering.close()
    return Lowered(source=source, graph=lowering.graph, made=made, placed=lowering.placed())


def _written_as(source: Source, options: Options, name: str) -> str:
    """The tensor that stands for an output."""
    return source.aliases.get(name, name) if options.edge != "float32" else name


def _computes_in_float(source: Source, op: Op) -> bool:
    """Whether anything but a border between reals and integers runs on float."""
    if op.integer or op.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return False
    return any(source.dtypes.get(name) == "float32" for name in op.outputs)


def _comes_to_an_image(source: Source, b: Lowering, name: str) -> bool:
    """Whether an input of rank 3 or 4 is read, past operators that take any layout, as an image."""
    if len(source.shapes[name]) not in {3, 4}:
        return False
    waiting, seen = [name], {name}
    while waiting:
        for op in b.readers(waiting.pop()):
            if op.op_type in _SPATIAL:
                return True
            if op.op_type in _PASSES_ON:
                fresh = [
                    n
                    for n in op.outputs
                    if n not in seen and len(source.shapes[n]) == len(source.shapes[name])
                ]
                seen.update(fresh)
                waiting += fresh
    return False
