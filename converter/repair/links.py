"""Where a graph allows channels to be scaled without changing what it computes.

For: finding *links*: a tensor whose writer (convolution, matrix product, normalization) can give each channel
divided by a factor, and whose readers can all take it back. Between them may stand only operators with
f(x / s) = f(x) / s for s > 0 (positive homogeneity: Nagel et al. 2019, arXiv:1906.04721, section 4.1) that do
not mix channels.
Not for: choosing the factors (`converter.repair.equalize`).
"""

from __future__ import annotations

import numpy as np
import onnx
from msgspec import Struct

from converter.repair.graph import Floats, GraphIndex, attribute, label

_WRITERS = frozenset({"Conv", "Gemm", "MatMul", "LayerNormalization"})
_READERS = frozenset({"Conv", "Gemm", "MatMul"})
_HOMOGENEOUS = frozenset(
    {
        "AveragePool",
        "Dropout",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "Relu",
    }
)
_CHANNEL_OF_IMAGES = 1


class Link(Struct, frozen=True, kw_only=True):
    """A tensor whose channels may be scaled.

    Attributes:
        tensor: what the writer makes; names the link.
        tensors: all tensors between writer and readers, `tensor` first; each holds the scaled channels.
        writer: the node that makes `tensor`.
        readers: the nodes that take the factors back.
        divided: initializers that are divided by the factors, with the axis of the channels.
        axes: axis of the channels of each of `tensors`.
        channels: how many there are.
    """

    tensor: str
    tensors: tuple[str, ...]
    axes: tuple[int, ...]
    writer: onnx.NodeProto
    readers: tuple[onnx.NodeProto, ...]
    divided: tuple[tuple[str, int], ...]
    channels: int


class Refusal(Struct, frozen=True, kw_only=True):
    """A writer whose channels cannot be scaled, and why."""

    tensor: str
    reason: str


class _Walk:
    """What was met between a writer and its readers."""

    def __init__(self, index: GraphIndex, channels: int) -> None:
        self.index = index
        self.channels = channels
        self.tensors: list[str] = []
        self.axes: list[int] = []
        self.readers: list[onnx.NodeProto] = []
        self.divided: list[tuple[str, int]] = []

    def follow(self, tensor: str, axis: int) -> str | None:
        """Walks on to all readers of `tensor`; why that is not possible, or None."""
        self.tensors.append(tensor)
        self.axes.append(axis)
        if tensor in self.index.outputs:
            return f"{tensor} is an output of the model"
        if not self.index.readers[tensor]:
            return f"nothing reads {tensor}"
        reasons = (self._step(node, place, axis) for node, place in self.index.readers[tensor])
        return next((reason for reason in reasons if reason is not None), None)

    def _step(self, node: onnx.NodeProto, place: int, axis: int) -> str | None:
        if place == 0 and node.op_type in _READERS:
            return self._read(node, axis)
        if node.op_type == "Add" and place >= 0:
            return self._offset(node, place, axis)
        after = axis if place != 0 else _axis_after(self.index, node, axis)
        if place != 0 or after is None:
            return f"{label(node)} ({node.op_type}) is not positively homogeneous channel by channel"
        return self.follow(node.output[0], after)

    def _read(self, node: onnx.NodeProto, axis: int) -> str | None:
        weight = self.index.constant(node.input[1])
        if weight is None or not self.index.used_once(node.input[1]):
            return f"{label(node)} has no weight of its own"
        if node.op_type == "Conv" and axis != _CHANNEL_OF_IMAGES:
            return f"{label(node)} reads the channels along another axis"
        if node.op_type != "Conv" and not self._is_last(node.input[0], axis, weight):
            return f"{label(node)} does not multiply along the channels"
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            return f"{label(node)} transposes what it reads"
        self.readers.append(node)
        return None

    def _is_last(self, tensor: str, axis: int, weight: Floats) -> bool:
        """Whether the channels are the axis that a matrix product sums over."""
        shape = self.index.shapes.get(tensor)
        last = axis == -1 or (shape is not None and axis == len(shape) - 1)
        return last and weight.ndim == 2

    def _offset(self, node: onnx.NodeProto, place: int, axis: int) -> str | None:
        """An Add of one constant per channel, as the bias of a MatMul stands in a graph."""
        other = node.input[1 - place]
        values = self.index.constant(other)
        shape = self.index.shapes.get(node.input[place])
        if values is None or not self.index.used_once(other) or shape is None:
            return f"{label(node)} adds something that is no constant of its own"
        from_end = axis if axis < 0 else axis - len(shape)
        if values.ndim < -from_end or values.shape[from_end] != self.channels or values.size != self.channels:
            return f"{label(node)} adds a constant that is not one number a channel"
        self.divided.append((other, values.ndim + from_end))
        return self.follow(node.output[0], axis)


def find_links(index: GraphIndex) -> tuple[list[Link], list[Refusal]]:
    """All links of a graph in its order, and why the other writers have none."""
    links, refusals = [], []
    for node in index.model.graph.node:
        if node.op_type not in _WRITERS:
            continue
        found = _link(index, node)
        if isinstance(found, Link):
            links.append(found)
        else:
            refusals.append(Refusal(tensor=node.output[0], reason=found))
    return links, refusals


def _link(index: GraphIndex, node: onnx.NodeProto) -> Link | str:
    """The link behind a writer, or why there is none."""
    divided = _written(index, node)
    if isinstance(divided, str):
        return divided
    weight = index.constant(divided[0][0])
    if weight is None:
        return f"{label(node)} has no constant weight"
    channels = weight.shape[divided[0][1]]
    walk = _Walk(index, channels)
    reason = walk.follow(
        node.output[0], _CHANNEL_OF_IMAGES if node.op_type == "Conv" else _last_axis(index, node)
    )
    if reason is not None:
        return reason
    if len({reader.output[0] for reader in walk.readers}) != len(walk.readers):
        return "one operator reads it twice"
    return Link(
        tensor=node.output[0], tensors=tuple(walk.tensors), axes=tuple(walk.axes), writer=node,
        readers=tuple(walk.readers), divided=(*divided, *walk.divided), channels=channels,
    )  # fmt: skip


def _last_axis(index: GraphIndex, node: onnx.NodeProto) -> int:
    shape = index.shapes.get(node.output[0])
    return -1 if shape is None else len(shape) - 1


def _written(index: GraphIndex, node: onnx.NodeProto) -> tuple[tuple[str, int], ...] | str:
    """The constants of a writer that hold its channels, each with their axis."""
    names = [name for name in node.input[1:3] if name]
    arrays = [array for name in names if (array := index.constant(name)) is not None]
    if not names or len(arrays) != len(names):
        return f"{label(node)} has no constant weight"
    if not all(index.used_once(name) for name in names):
        return f"{label(node)} shares its weight or bias with another operator"
    if arrays[0].ndim != {"MatMul": 2, "Gemm": 2, "LayerNormalization": 1}.get(node.op_type, arrays[0].ndim):
        return f"{label(node)} has a weight with other axes than channels"
    out_first = node.op_type in {"Conv", "LayerNormalization"} or bool(attribute(node, "transB", 0))
    axis = 0 if out_first else 1
    if len(names) == 2 and arrays[1].size != arrays[0].shape[axis]:
        return f"{label(node)} has a bias that is not one number a channel"
    return (
        (names[0], axis),
        *((name, array.ndim - 1) for name, array in zip(names[1:], arrays[1:], strict=True)),
    )


def _axis_after(index: GraphIndex, node: onnx.NodeProto, axis: int) -> int | None:
    """Where the channels stand after an operator that keeps them apart and is homogeneous, else None."""
    kind = node.op_type
    if kind == "ReduceMean":
        return _axis_after_mean(index, node, axis)
    if kind == "Transpose":
        order = list(attribute(node, "perm", []))
        return order.index(axis) if axis in order else None
    return axis if _keeps(index, node, axis) else None


def _keeps(index: GraphIndex, node: onnx.NodeProto, axis: int) -> bool:
    """Whether the operator is homogeneous and leaves the channels on their axis."""
    kind = node.op_type
    if kind in _HOMOGENEOUS:
        return len(node.output) == 1 and (axis == _CHANNEL_OF_IMAGES or not kind.endswith("Pool"))
    if kind == "PRelu":
        slope = index.constant(node.input[1])
        return slope is not None and bool((slope >= 0).all())
    if kind == "Flatten":
        shape = index.shapes.get(node.input[0])
        single = shape is not None and axis == 1 and all(size == 1 for size in shape[2:])
        return single and attribute(node, "axis", 1) == 1
    return kind == "Clip" and _is_relu(index, node)


def _is_relu(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Clip from 0 without an upper bound; ReLU6 is not homogeneous: its 6 would have to differ by channel."""
    names = [*node.input[1:], "", ""][:2]
    low = index.constant(names[0]) if names[0] else None
    high = index.constant(names[1]) if names[1] else None
    open_above = not names[1] or (high is not None and bool(np.isinf(high).all()))
    return open_above and low is not None and bool((low == 0).all()) and not node.attribute


def _axis_after_mean(index: GraphIndex, node: onnx.NodeProto, axis: int) -> int | None:
    """A mean over axes behind the channels leaves them where they are."""
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        tensor = next((t for t in index.model.graph.initializer if t.name == node.input[1]), None)
        axes = None if tensor is None else onnx.numpy_helper.to_array(tensor).tolist()
    shape = index.shapes.get(node.input[0])
    if axes is None or shape is None or axis < 0:
        return None
    reduced = {one % len(shape) for one in axes}
    if axis in reduced:
        return None
    gone = 0 if attribute(node, "keepdims", 1) else sum(one < axis for one in reduced)
    return axis - gone
