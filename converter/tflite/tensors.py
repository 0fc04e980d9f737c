"""A TFLite file as plain data, before it is bytes.

For: `Tensor`, `Operator` and `Graph`, which operators' lowerings build and `converter.tflite.serialize`
writes.
Not for: ONNX, layouts, or deciding anything.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from converter.quantize.qparams import QParams


class Tensor(Struct, frozen=True, kw_only=True, eq=False):
    """One tensor of the file; it is itself, whatever else looks like it.

    Attributes:
        name: in the file.
        shape: fixed, in the file's order of axes.
        dtype: numpy's name of the element type.
        values: of a constant; None for what is computed or given.
        quant: how integers stand for reals, its axis in the file's order; None for plain numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    values: NDArray[Any] | None = None
    quant: QParams | None = None


class Operator(Struct, frozen=True, kw_only=True, eq=False):
    """One operator.

    Attributes:
        kind: the schema's name, such as `CONV_2D`.
        inputs: in the operator's order; None where an optional one is left out.
        outputs: in the operator's order.
        options: one of the schema's options objects, or None.
        version: lowest that will do (`converter.tflite.versions`).
    """

    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any = None
    version: int = 1


class Graph(Struct, kw_only=True):
    """One subgraph in the making.

    Attributes:
        operators: in the order in which they run.
        inputs: tensors by signature name.
        outputs: tensors by signature name.
    """

    operators: list[Operator]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
