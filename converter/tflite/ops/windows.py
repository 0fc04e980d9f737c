"""What convolutions and pools share: windows over two spatial axes.

For: reading kernel, strides, dilations and pads of an ONNX operator, one spatial axis made two (height 1
first), and the PAD that TFLite's SAME and VALID cannot say.
Not for: the operators themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from converter.tflite.errors import TFLiteError
from converter.tflite.layout import Shape, channels_last, laid, padding_of
from converter.tflite.lowering import Lowering
from converter.tflite.reading import Op
from converter.tflite.schema import schema
from converter.tflite.tensors import Tensor

PAIR = tuple[int, int]


class Window(Struct, frozen=True, kw_only=True):
    """Two spatial axes, height before width.

    Attributes:
        kernel: lengths.
        strides: steps.
        dilations: between taps.
        same: SAME rather than VALID.
        explicit: what a PAD adds (before, after) by axis; empty for none.
    """

    kernel: PAIR
    strides: PAIR
    dilations: PAIR
    same: bool
    explicit: tuple[PAIR, ...]

    @property
    def padding(self) -> int:
        """The schema's number."""
        return int(schema.Padding.SAME if self.same else schema.Padding.VALID)


def window_of(op: Op, shape: Shape, kernel: Sequence[int], out: Shape) -> Window:
    """The window of an operator whose input has logical shape [N, C, spatial...].

    Args:
        op: with ONNX's attributes.
        shape: of the input.
        kernel: its spatial lengths.
        out: shape of the output, which with ceil_mode tells what is padded behind.

    Raises:
        TFLiteError: `tflite_rank`: not one or two spatial axes.
    """
    n = len(shape) - 2
    if n not in {1, 2}:
        raise TFLiteError("tflite_rank", f"{op.where} has {n} spatial axes, TFLite's windows have two")
    strides = list(op.attributes.get("strides", [1] * n))
    dilations = list(op.attributes.get("dilations", [1] * n))
    pads = pads_of(op, shape[2:], kernel, strides, dilations)
    for i in range(n):
        reach = (kernel[i] - 1) * dilations[i] + 1
        needed = (out[2 + i] - 1) * strides[i] + reach - shape[2 + i] - pads[i]
        # What a window leaves unread behind is no padding; what ceil_mode reads beyond the end is.
        pads[n + i] = max(needed, 0)
    if n == 1:
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        pads, shape = [0, pads[0], 0, pads[1]], (*shape[:2], 1, shape[2])
    found = padding_of(shape[2:], kernel, strides, dilations, pads)
    return Window(
        kernel=_pair(kernel), strides=_pair(strides), dilations=_pair(dilations), same=found.same,
        explicit=found.explicit,
    )  # fmt: skip


def _pair(values: Sequence[int]) -> PAIR:
    return int(values[0]), int(values[1])


def pads_of(
    op: Op, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """ONNX's pads, all fronts before all ends, `auto_pad` worked out."""
    n = len(sizes)
    auto = op.attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return [int(x) for x in op.attributes.get("pads", [0] * (2 * n))]
    pads = [0] * (2 * n)
    if auto == "VALID":
        return pads
    for i in range(n):
        reach = (kernel[i] - 1) * dilations[i] + 1
        total = max((-(-sizes[i] // strides[i]) - 1) * strides[i] + reach - sizes[i], 0)
        front = total // 2 if auto == "SAME_UPPER" else total - total // 2
        pads[i], pads[n + i] = front, total - front
    return pads


def image(b: Lowering, name: str) -> Tensor:
    """The operator's input as NHWC; one spatial axis stands as the width of images of height 1."""
    shape = b.shape(name)
    tensor = b.take(name, channels_last(len(shape)))
    if len(shape) == 4:
        return tensor
    n, length, channels = tensor.shape
    return b.reshape(tensor, (n, 1, length, channels), f"{name}_image")


def image_output(b: Lowering, op: Op, like: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The tensor that the kernel writes, and the one of ONNX's output where that must be reshaped to."""
    shape = b.shape(op.outputs[0])
    axes = channels_last(len(shape))
    made = b.output(op, axes, like=like)
    if len(shape) == 4:
        return made, None
    n, length, channels = laid(shape, axes)
    return b.new(f"{op.outputs[0]}_image", (n, 1, length, channels), made.dtype, made.quant), made


def settle(b: Lowering, written: Tensor, wanted: Tensor | None) -> None:
    """The reshape that `image_output` asked for."""
    if wanted is not None:
        b.reshape_into(written, wanted)


def padded(b: Lowering, op: Op, tensor: Tensor, window: Window, value: float | None = None) -> Tensor:
    """An NHWC tensor with the window's explicit padding; with zeros, or with `value`.

    A stored tensor is padded with its zero point, and with its lowest integer for minus infinity.
    """
    if not window.explicit:
        return tensor
    n, height, width, channels = tensor.shape
    (top, bottom), (left, right) = window.explicit
    if min(top, bottom, left, right) < 0:
        raise TFLiteError("tflite_attribute", f"{op.where} has negative pads")
    made = b.new(
        f"{op.inputs[0]}_padded", (n, height + top + bottom, width + left + right, channels), tensor.dtype,
        tensor.quant,
    )  # fmt: skip
    edges = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], dtype=np.int32)
    sizes = b.new_constant(edges, f"{made.name}_pads")
    if value is None:
        b.add("PAD", [tensor, sizes], [made], schema.PadOptionsT())
        return made
    number = np.array([value], dtype=np.float32)
    if tensor.quant is not None:
        number = np.array([-128], dtype=np.int8)
    filler = b.new_constant(number, f"{made.name}_value", tensor.quant)
    b.add("PADV2", [tensor, sizes, filler], [made], schema.PadV2OptionsT())
    return made
