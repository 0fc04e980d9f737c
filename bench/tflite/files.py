"""What is in a .tflite file, and which of its edges is which of the ONNX model.

For: operators, types and edges of a file of any tool, read through the schema's classes.
Not for: running it (`bench.tflite.running`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from converter.tflite.schema import schema

Shape = tuple[int, ...]

_KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
_TYPES = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
_CHANNELS_LAST: Mapping[int, Shape] = {3: (0, 2, 1), 4: (0, 2, 3, 1)}


class Outline(Struct, frozen=True, kw_only=True):
    """A file.

    Attributes:
        size_bytes: of it.
        operators: number by kind, of all subgraphs.
        computing: number of the operators but QUANTIZE and DEQUANTIZE by the type of their first output.
        inputs: shape by the name that the signature gives, or the tensor's own where there is none.
        outputs: the same.
    """

    size_bytes: int
    operators: dict[str, int]
    computing: dict[str, int]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]

    def figures(self) -> dict[str, object]:
        """For a table."""
        return {
            "size_bytes": self.size_bytes,
            "operators": sum(self.operators.values()),
            "transposes": self.operators.get("TRANSPOSE", 0),
            "quantizes": self.operators.get("QUANTIZE", 0),
            "dequantizes": self.operators.get("DEQUANTIZE", 0),
            "float_operators": self.computing.get("FLOAT32", 0),
            "by_kind": dict(sorted(self.operators.items())),
        }


def outline(content: bytes) -> Outline:
    """Of a file's bytes."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    ops = [(graph, op) for graph in model.subgraphs for op in graph.operators]
    kinds = [(graph, op, _kind(model.operatorCodes[op.opcodeIndex])) for graph, op in ops]
    computing = Counter(
        _TYPES[graph.tensors[op.outputs[0]].type]
        for graph, op, kind in kinds
        if kind not in {"QUANTIZE", "DEQUANTIZE"}
    )
    inputs, outputs = _edges(model)
    return Outline(
        size_bytes=len(content),
        operators=dict(Counter(kind for _, _, kind in kinds)),
        computing=dict(computing),
        inputs=inputs,
        outputs=outputs,
    )


def _kind(code: Any) -> str:  # noqa: ANN401 - generated classes without types
    # Old readers find numbers below 127 in the deprecated field.
    kind: str = _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return kind


def _edges(model: Any) -> tuple[dict[str, Shape], dict[str, Shape]]:  # noqa: ANN401 - generated classes
    graph = model.subgraphs[0]

    def shape(place: int) -> Shape:
        return tuple(int(size) for size in graph.tensors[place].shape)

    if model.signatureDefs:
        signature = model.signatureDefs[0]
        inputs, outputs = (
            {one.name.decode(): shape(one.tensorIndex) for one in maps}
            for maps in (signature.inputs, signature.outputs)
        )
        return inputs, outputs
    inputs, outputs = (
        {graph.tensors[place].name.decode(): shape(place) for place in places}
        for places in (graph.inputs, graph.outputs)
    )
    return inputs, outputs


def placed(wanted: Mapping[str, Sequence[int]], offered: Mapping[str, Shape]) -> dict[str, tuple[str, Shape]]:
    """The file's edge for each of the ONNX model's: its name and the axes that ONNX's is transposed by.

    The one of that name, else the first that no other has and whose shape fits as it is or with the
    channels last.

    Args:
        wanted: ONNX shapes by name.
        offered: the file's shapes by name.

    Raises:
        ValueError: nothing fits.
    """
    found: dict[str, tuple[str, Shape]] = {}
    left = {name: shape for name, shape in offered.items() if name not in wanted}
    for name, shape in wanted.items():
        choices = {name: offered[name]} if name in offered else left
        fits = (
            (other, axes)
            for other, have in choices.items()
            if (axes := _axes(tuple(shape), have)) is not None
        )
        place = next(fits, None)
        if place is None:
            raise ValueError(f"{name} {list(shape)} is none of the file's {dict(offered)}")
        found[name] = place
        left.pop(place[0], None)
    return found


def _axes(shape: Shape, have: Shape) -> Shape | None:
    """How the first becomes the second; None where neither order of axes fits."""
    same = tuple(range(len(shape)))
    for axes in (same, _CHANNELS_LAST.get(len(shape), same)):
        if tuple(shape[axis] for axis in axes) == have:
            return axes
    return None
