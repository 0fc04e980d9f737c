"""The tensors of a model's file, whichever format it has, as runs of bytes with a kind.

For: one list for ONNX and TFLite files in which a weight's scales stand beside it. A file that is neither
has no tensors, and all of it is glue.
Not for: values.
"""

from __future__ import annotations

from msgspec import Struct

from wire import delta_format as df
from wire import onnx_walk, tflite_walk
from wire.chunks import Span

_ONNX_KINDS = {
    1: df.FLOAT32, 2: df.BYTES, 3: df.BYTES, 4: df.INT16, 5: df.INT16, 6: df.INT32, 10: df.FLOAT16,
    12: df.INT32, 21: df.BYTES, 22: df.BYTES,
}  # fmt: skip
_ONNX_UINT8 = 2
_TFLITE_KINDS = {
    "float32": df.FLOAT32, "float16": df.FLOAT16, "int32": df.INT32, "uint32": df.INT32, "uint8": df.BYTES,
    "int8": df.BYTES, "int16": df.INT16, "uint16": df.INT16, "int4": df.BYTES,
}  # fmt: skip
_MIDDLE = 128


class Tensor(Struct, frozen=True):
    """A run of elements.

    Attributes:
        kind: of `wire.delta_format`.
        zero: the byte that stands for 0, where elements are bytes.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    span: Span
    zero: int = 0

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.span.offset + self.span.size_bytes


def tensors_of(content: bytes) -> tuple[Tensor, ...]:
    """Tensors in the order of the format's own list; none where the file is of no format that is known.

    Those whose bytes overlap another's are left out, as are those that end within an element.
    """
    try:
        is_tflite = content[4:8] == tflite_walk.IDENTIFIER
        found = _of_tflite(content) if is_tflite else _of_onnx(content)
    except (onnx_walk.WalkError, tflite_walk.WalkError):
        return ()
    return _apart([one for one in found if one.span.size_bytes % df.WIDTHS[one.kind] == 0])


def _of_onnx(content: bytes) -> list[Tensor]:
    return [
        Tensor(
            one.name,
            _ONNX_KINDS[one.data_type],
            one.shape,
            one.span,
            _MIDDLE if one.data_type == _ONNX_UINT8 else 0,
        )
        for one in onnx_walk.initializers(content)
        if one.data_type in _ONNX_KINDS
    ]


def _of_tflite(content: bytes) -> list[Tensor]:
    found = []
    for one in tflite_walk.constants(content):
        if one.scales is not None:
            count = one.scales.size_bytes // 4
            found.append(Tensor(f"{one.name}/scales", df.FLOAT32, (count,), one.scales))
        if one.dtype in _TFLITE_KINDS:
            zero = _MIDDLE if one.dtype == "uint8" else 0
            found.append(Tensor(one.name, _TFLITE_KINDS[one.dtype], one.shape, one.span, zero))
    return found


def _apart(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Without those that begin before another has ended."""
    kept, end = set(), 0
    for one in sorted(tensors, key=lambda tensor: (tensor.span.offset, tensor.span.size_bytes)):
        if one.span.offset >= end:
            kept.add(one.span)
            end = one.end
    seen: set[Span] = set()
    return tuple(
        one
        for one in tensors
        if one.span in kept and not (one.span in seen or seen.add(one.span))  # type: ignore[func-returns-value]
    )
